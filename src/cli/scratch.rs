//! A directory for what a run writes, gone at its end.

use std::{
    env,
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{Failure, complain};

pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one for this user alone, among the temporary files, where everybody may make things: nobody can guess its name, and
    /// what is there already, a link perhaps, is not taken for it.
    pub(crate) fn new(of: &str) -> Result<Self, Failure> {
        let random = getrandom::u64().context("no random numbers")?;
        let path = env::temp_dir().join(format!("phalanx-{of}-{random:016x}"));
        Self::at(path)
    }

    fn at(path: PathBuf) -> Result<Self, Failure> {
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("creating {} (TMPDIR names another place)", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            complain(format_args!("{} stays behind: {error}", self.0.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn it_is_new_and_for_this_user_alone_and_goes() {
        let (one, other) =
            (Scratch::new("test").expect("a directory"), Scratch::new("test").expect("another"));
        assert_ne!(one.path(), other.path());
        assert_eq!(fs::metadata(one.path()).expect("it is there").mode() & 0o777, 0o700);
        let (there, link) = (one.path().join("there"), one.path().join("link"));
        fs::create_dir(&there).expect("writable");
        symlink(other.path(), &link).expect("writable");
        for path in [there, link] {
            let why = Scratch::at(path).err().expect("it is somebody else's").to_string();
            assert!(why.contains("TMPDIR"), "{why}");
        }
        let paths = [one.path().to_owned(), other.path().to_owned()];
        drop((one, other));
        assert!(!paths.iter().any(|path| path.exists()));
    }
}
