//! The place where a process waits for the next one. It is made beside that place first: what can go wrong goes wrong before
//! anything has been said to anybody.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with},
};

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

pub(super) fn unix_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

#[derive(Debug)]
pub(super) struct Place {
    pub socket: OwnedFd,
    path: PathBuf,
    /// Where the socket is until it is shown.
    fresh: Option<PathBuf>,
}

impl Place {
    /// Makes a socket at which only this user may connect, where nobody looks for it yet.
    pub fn make(path: &Path) -> io::Result<Self> {
        let path = behind_links(path)?;
        if fs::symlink_metadata(&path).is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(io::Error::other("something is there that is no socket: give another place"));
        }
        let mut fresh = path.clone().into_os_string();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        let addr = SocketAddrUnix::new(&fresh).map_err(|_| {
            io::Error::other("the path is too long for a socket with the process id behind it (107 bytes): give a shorter one")
        })?;
        // Of an earlier process of this number. Processes that do not see each other may have the same one.
        if connect(unix_socket()?, &addr) == Err(Errno::CONNREFUSED) {
            let _ = fs::remove_file(&fresh); // then nothing can be bound there
        }
        let socket = unix_socket()?;
        bind(&socket, &addr)?;
        let made = Self { socket, path, fresh: Some(fresh.clone()) };
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        listen(&made.socket, 8)?;
        Ok(made)
    }

    /// From now on whoever looks finds this one, and not who waited there before. At every moment somebody is found.
    pub fn show(&mut self) -> io::Result<()> {
        if let Some(fresh) = &self.fresh {
            fs::rename(fresh, &self.path)?;
            self.fresh = None;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(fresh) = &self.fresh {
            let _ = fs::remove_file(fresh); // the next process of this number does it
        }
    }
}

/// Whoever connects follows links, so the socket is where they lead.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().map(|parent| parent.join(&to)).unwrap_or(to),
            Err(_) => return Ok(path), // it is no link, or nothing is there, or nothing can be made there either
        }
    }
    Err(Errno::LOOP.into())
}
