//! Where the key is: paths of map keys and positions, compiled from configuration.

use alloc::{
    boxed::Box,
    string::{String, ToString},
    vec::Vec,
};

/// The paths to the key of a request, in the order in which they are tried.
///
/// `msgpack:/params/0/user` is what the map that is the first parameter has under `user`. A name in a path matches a text
/// that is the key of a map; a number is a position in an array, or such a text. `~1` stands for `/` and `~0` for `~`, as in a
/// JSON pointer.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyPaths(Box<[Box<[Step]>]>);

#[derive(Clone, Debug, PartialEq)]
struct Step {
    name: Box<[u8]>,
    index: Option<u32>,
}

/// Why a path cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyPathError {
    /// No path at all.
    #[error("no path to the key: give at least one, such as \"msgpack:/params/0\"")]
    Empty,
    /// More than are looked for at once.
    #[error("{0} paths to the key: give at most {max}", max = KeyPaths::MAX)]
    TooMany(usize),
    /// It is not such a path.
    #[error(
        "{0:?} is no path to a key: write msgpack:/params and then positions and names, such as \
         msgpack:/params/0/user"
    )]
    Form(String),
    /// It goes deeper than messages are read.
    #[error("the path {path:?} goes more than {max} values deep", max = KeyPaths::MAX_STEPS)]
    TooDeep {
        /// The path.
        path: String,
    },
    /// A `~` that stands for nothing.
    #[error("the path {path:?} has a ~ that is neither ~0 (for ~) nor ~1 (for /)")]
    Escape {
        /// The path.
        path: String,
    },
}

/// A set of paths: those that lead through some value.
pub(super) type PathSet = u8;

impl KeyPaths {
    /// Most paths of one service.
    pub const MAX: usize = PathSet::BITS as usize;
    /// Most names and positions of one path.
    pub const MAX_STEPS: usize = super::MAX_DEPTH - 1;

    /// Compiles a list of paths.
    ///
    /// # Errors
    /// The first one that is malformed.
    pub fn compile<'a>(specs: impl IntoIterator<Item = &'a str>) -> Result<Self, KeyPathError> {
        let list = specs.into_iter().map(compile_one).collect::<Result<Box<[_]>, _>>()?;
        match list.len() {
            0 => Err(KeyPathError::Empty),
            1..=Self::MAX => Ok(Self(list)),
            more => Err(KeyPathError::TooMany(more)),
        }
    }

    pub(super) fn all(&self) -> PathSet {
        PathSet::MAX >> (Self::MAX - self.0.len())
    }

    /// Those that end at this depth below the parameters.
    pub(super) fn ending(&self, paths: PathSet, depth: usize) -> PathSet {
        self.filter(paths, |path| path.len() == depth)
    }

    /// Those whose step from this depth on is this position.
    pub(super) fn through_index(&self, paths: PathSet, depth: usize, index: u32) -> PathSet {
        self.filter(paths, |path| path.get(depth).is_some_and(|step| step.index == Some(index)))
    }

    /// Those whose step from this depth on is this name.
    pub(super) fn through_name(&self, paths: PathSet, depth: usize, name: &[u8]) -> PathSet {
        self.filter(paths, |path| path.get(depth).is_some_and(|step| *step.name == *name))
    }

    fn filter(&self, paths: PathSet, keep: impl Fn(&[Step]) -> bool) -> PathSet {
        let (mut rest, mut kept) = (paths, 0);
        while rest != 0 {
            let at = rest.trailing_zeros();
            rest &= rest - 1;
            if keep(&self.0[at as usize]) {
                kept |= 1 << at;
            }
        }
        kept
    }
}

fn compile_one(spec: &str) -> Result<Box<[Step]>, KeyPathError> {
    let form = || KeyPathError::Form(spec.into());
    let steps = spec.strip_prefix("msgpack:/params").ok_or_else(form)?;
    let steps = steps.strip_prefix('/').ok_or_else(form)?;
    let steps = steps.split('/').map(|step| compile_step(step, spec)).collect::<Result<Box<[_]>, _>>()?;
    // The parameters themselves are an array.
    if steps[0].index.is_none() {
        return Err(form());
    }
    if steps.len() > KeyPaths::MAX_STEPS {
        return Err(KeyPathError::TooDeep { path: spec.into() });
    }
    Ok(steps)
}

fn compile_step(step: &str, spec: &str) -> Result<Step, KeyPathError> {
    let mut name = Vec::with_capacity(step.len());
    let mut bytes = step.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match (byte, byte == b'~') {
            (plain, false) => plain,
            (_, true) => match bytes.next() {
                Some(b'0') => b'~',
                Some(b'1') => b'/',
                _ => return Err(KeyPathError::Escape { path: spec.into() }),
            },
        });
    }
    let index = step.parse::<u32>().ok().filter(|index| index.to_string() == step);
    Ok(Step { name: name.into(), index })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_paths_are_refused_with_what_would_be_right() {
        let compile = |spec| KeyPaths::compile([spec]).unwrap_err();
        for form in
            ["header:x", "msgpack:", "msgpack:/params", "msgpack:/0", "msgpack:/params/user", "/params/0"]
        {
            assert_eq!(compile(form), KeyPathError::Form(form.into()), "{form}");
        }
        assert_eq!(compile("msgpack:/params/01"), KeyPathError::Form("msgpack:/params/01".into()));
        let path = "msgpack:/params/0/a~2".to_string();
        assert_eq!(compile(&path), KeyPathError::Escape { path: path.clone() });
        let deep = "msgpack:/params".to_string() + &"/0".repeat(KeyPaths::MAX_STEPS + 1);
        assert_eq!(compile(&deep), KeyPathError::TooDeep { path: deep.clone() });
        assert_eq!(KeyPaths::compile([]).unwrap_err(), KeyPathError::Empty);
        assert_eq!(KeyPaths::compile(["msgpack:/params/0"; 9]).unwrap_err(), KeyPathError::TooMany(9));
        KeyPaths::compile(["msgpack:/params/0"; 8]).unwrap();
    }
}
