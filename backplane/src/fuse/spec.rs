//! What the wrapper tells the fuse to run, as bytes.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use crate::ChildSpec;

/// No command and environment is longer: the kernel takes 2 MiB by default.
const MOST: usize = 8 << 20;
/// Absent where a length is expected.
const NONE: u32 = u32::MAX;

/// The part of a [`ChildSpec`] that the fuse needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) own_group: bool,
    pub(super) bound: bool,
    pub(super) dir: Option<PathBuf>,
    pub(super) command: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
}

impl Order {
    /// The bytes that say `spec`, with their length in front.
    pub(super) fn encode(spec: &ChildSpec) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 4];
        bytes.push(u8::from(spec.own_group) | u8::from(spec.bound) << 1);
        let put = |bytes: &mut Vec<u8>, text: &[u8]| {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text);
        };
        match &spec.dir {
            Some(dir) => put(&mut bytes, dir.as_os_str().as_bytes()),
            None => bytes.extend(NONE.to_le_bytes()),
        }
        bytes.extend((spec.command.len() as u32).to_le_bytes());
        spec.command.iter().for_each(|text| put(&mut bytes, text.as_bytes()));
        for (name, value) in &spec.env {
            put(&mut bytes, name.as_bytes());
            put(&mut bytes, value.as_bytes());
        }
        if bytes.len() > MOST {
            return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, "a command of more than 8 MiB"));
        }
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        Ok(bytes)
    }

    /// Reads what the wrapper wrote.
    pub(super) fn read(mut from: impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        Self::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        fn number(bytes: &mut &[u8]) -> Option<u32> {
            let (number, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(u32::from_le_bytes(*number))
        }
        fn text(bytes: &mut &[u8], length: u32) -> Option<OsString> {
            let (text, rest) = bytes.split_at_checked(length as usize)?;
            *bytes = rest;
            Some(OsString::from_vec(text.to_vec()))
        }
        let (flags, rest) = bytes.split_first()?;
        bytes = rest;
        let bytes = &mut bytes;
        let dir = match number(bytes)? {
            NONE => None,
            length => Some(text(bytes, length)?.into()),
        };
        let mut order = Self { own_group: flags & 1 != 0, bound: flags & 2 != 0, dir, ..Self::default() };
        for _ in 0..number(bytes)? {
            let length = number(bytes)?;
            order.command.push(text(bytes, length)?);
        }
        while !bytes.is_empty() {
            let length = number(bytes)?;
            let name = text(bytes, length)?;
            let length = number(bytes)?;
            order.env.push((name, text(bytes, length)?));
        }
        Some(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ordered_is_what_is_run() {
        let mut spec = ChildSpec::new(["sh", "-c", "", "exit 7"]);
        spec.env = vec![("A".into(), "1".into()), ("B".into(), "".into())];
        for dir in [None, Some(PathBuf::from("/tmp")), Some(PathBuf::new())] {
            spec.dir = dir;
            spec.bound = !spec.bound;
            let order = Order::read(&*Order::encode(&spec).expect("short")).expect("whole");
            let same = (order.own_group, order.bound, &order.dir) == (spec.own_group, spec.bound, &spec.dir);
            assert!(same && order.command == spec.command && order.env == spec.env, "{order:?}");
        }
    }

    #[test]
    fn orders_cut_short_or_beyond_all_bounds_are_refused() {
        let mut spec = ChildSpec::new(["true"]);
        spec.env = vec![("A".into(), "1".into())];
        let bytes = Order::encode(&spec).expect("short");
        for end in 4..bytes.len() {
            let whole_without_variables = bytes.len() - 10;
            assert_eq!(Order::decode(&bytes[4..end]).is_some(), end == whole_without_variables, "{end}");
        }
        assert!(Order::read(&u32::MAX.to_le_bytes()[..]).is_err());
        spec.command = vec!["x".repeat(MOST).into()];
        assert!(Order::encode(&spec).is_err());
    }
}
