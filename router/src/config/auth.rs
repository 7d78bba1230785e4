//! Passwords: each in a file of its own, never in the configuration or a message.

use std::{fs, io::Read, os::unix::fs::MetadataExt, path::Path};

use router_proto::resp::Password;
use toml::Spanned;

use super::{
    check::{Checked, wrong},
    raw,
};

/// Who asks whom for which password.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Auth {
    /// What clients have to give.
    pub clients: Option<Password>,
    /// What servers are given.
    pub servers: Option<Login>,
}

/// A user and a password.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Login {
    /// The user `default` if there is none.
    pub user: Option<Box<str>>,
    pub password: Password,
}

/// A file with a password is not longer.
const MOST: u64 = 4096;

pub(super) fn auth(written: &Spanned<raw::Auth>) -> Checked<Auth> {
    let raw = written.get_ref();
    let clients = raw.client_password_file.as_ref().map(password).transpose()?;
    let servers = match (&raw.server_password_file, &raw.server_user) {
        (Some(file), user) => Some(Login {
            user: user.as_ref().map(|user| user.get_ref().as_str().into()),
            password: password(file)?,
        }),
        (None, Some(user)) => {
            return wrong(user, "`server_user` needs a `server_password_file` beside it");
        }
        (None, None) => None,
    };
    if clients.is_none() && servers.is_none() {
        return wrong(written, "nothing in it: give client_password_file, server_password_file, or both");
    }
    Ok(Auth { clients, servers })
}

/// The first line of a file that others cannot read.
fn password(written: &Spanned<String>) -> Checked<Password> {
    let path = Path::new(written.get_ref());
    let shown = path.display();
    let read = || {
        // Opening a pipe would wait for its writer.
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(std::io::Error::other("it is no file"));
        }
        if metadata.mode() & 0o006 != 0 {
            return Err(std::io::Error::other("everybody may read or change it: chmod 600 it"));
        }
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error) => return wrong(written, format!("password file {shown}: {error}")),
    };
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || bytes.len() as u64 > MOST || line.contains(&b'\n') {
        let message = format!("password file {shown}: it must hold one line, which is the password");
        return wrong(written, message);
    }
    Ok(Password::new(line))
}
