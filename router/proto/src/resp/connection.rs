//! What a client has said about its connection: protocol, name, password.

use alloc::vec::Vec;

/// The two versions of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proto {
    /// What every connection begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`: maps, sets, nulls of their own, and messages beside replies.
    Resp3,
}

impl Proto {
    /// Its number.
    pub const fn number(self) -> u64 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }

    /// Appends "nothing" where a text could be.
    pub(super) fn push_null(self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self {
            Self::Resp2 => b"$-1\r\n",
            Self::Resp3 => b"_\r\n",
        });
    }

    /// Appends the header of so many names with their values.
    pub(super) fn push_map(self, pairs: u64, out: &mut Vec<u8>) {
        match self {
            Self::Resp2 => super::push_header(out, b'*', 2 * pairs),
            Self::Resp3 => super::push_header(out, b'%', pairs),
        }
    }
}

/// What a server has to be told first, if anything, by someone with this user and password. It gives one reply.
pub fn greeting(proto: Proto, login: Option<(Option<&[u8]>, &[u8])>) -> Vec<u8> {
    let mut words: Vec<&[u8]> = Vec::new();
    match (proto, login) {
        (Proto::Resp2, None) => return Vec::new(),
        (Proto::Resp2, Some((user, password))) => {
            words.push(b"AUTH");
            words.extend(user);
            words.push(password);
        }
        (Proto::Resp3, login) => {
            words.extend([&b"HELLO"[..], b"3"]);
            if let Some((user, password)) = login {
                words.extend([&b"AUTH"[..], user.unwrap_or(b"default"), password]);
            }
        }
    }
    let mut out = Vec::new();
    super::push_header(&mut out, b'*', words.len() as u64);
    words.iter().for_each(|word| super::push_bulk(&mut out, word));
    out
}

/// What a client has said about its connection.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    /// Its number, for as long as the router runs.
    pub id: u64,
    /// The protocol that it wants to hear.
    pub proto: Proto,
    /// Whether it may send commands: it gave the password, or none is asked for.
    pub admitted: bool,
    /// How it calls itself.
    pub name: Vec<u8>,
    /// The library that it says it uses, and its version.
    pub library: [Vec<u8>; 2],
}

impl Connection {
    /// A connection just made, which may send commands at once if no password is asked for.
    pub fn new(id: u64, admitted: bool) -> Self {
        Self { id, admitted, ..Self::default() }
    }
}

/// The password that clients have to give. Never printed.
#[derive(Clone)]
pub struct Password(Vec<u8>);

impl Password {
    /// This password.
    pub fn new(text: &[u8]) -> Self {
        Self(text.into())
    }

    /// The password's bytes, for a server that asks for it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the password. How long that takes tells nothing but how long `given` is.
    pub fn is(&self, given: &[u8]) -> bool {
        let mut differ = self.0.len() ^ given.len();
        for (at, byte) in given.iter().enumerate() {
            // An empty password, which configuration refuses, would differ by its length anyway.
            let own = self.0.get(at % self.0.len().max(1)).copied().unwrap_or_default();
            differ |= usize::from(core::hint::black_box(own ^ byte));
        }
        core::hint::black_box(differ) == 0
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.is(other.bytes())
    }
}

impl core::fmt::Debug for Password {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_itself_alone_and_is_not_shown() {
        let password = Password::new(b"secret");
        assert!(password.is(b"secret"));
        for other in [&b""[..], b"secre", b"secret ", b"secretsecret", b"Secret", b"secreT"] {
            assert!(!password.is(other), "{other:?}");
        }
        assert_eq!(alloc::format!("{password:?}"), "Password(..)");
    }
}
