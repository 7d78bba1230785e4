//! The memcached protocol, classic text commands and meta commands, as a router must read it: where commands
//! and replies end, which key decides, and how a command over many keys is split by server.
//!
//! Every command that goes to a server gets exactly one reply there, so that the k-th reply belongs to the
//! k-th command: `noreply` and the quiet flag `q` are taken out on the way, and [`Note::shown`] withholds what
//! they ask to withhold. A line is passed on only if memcached is sure to read it as the router did; above
//! all if it announces data, which would be taken for commands otherwise. Nothing is decoded into objects:
//! commands and replies are byte ranges that are copied once into the buffer they leave from.

mod key;
mod line;
mod meta;
mod reply;
mod request;
mod split;

pub use key::{MAX_KEY, decode};
pub use reply::{ReplyError, ReplyScanner};
pub use request::{Keys, Limits, Local, One, ProtocolError, Request, Scan, Scanner};
pub use split::{Gather, Split, TooManyParts};

/// What must be known of a command when its reply comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// What its replies look like.
    pub kind: Kind,
    /// Which of them its client does not want to see.
    pub hush: Hush,
}

/// What the replies to a command look like. Any may also be an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `VALUE` and data for each key that is there, then `END`.
    Values,
    /// The same, to commands that old servers do not know and call an `ERROR`.
    TouchedValues,
    /// `STORED` or why not.
    Stored,
    /// `DELETED` or `NOT_FOUND`.
    Deleted,
    /// `TOUCHED` or `NOT_FOUND`.
    Touched,
    /// A number or `NOT_FOUND`.
    Number,
    /// `OK`.
    Ok,
    /// Of `mg`: `VA` and data, `HD` or `EN`.
    MetaGet,
    /// Of `ms`: `HD`, `NS`, `EX` or `NF`.
    MetaSet,
    /// Of `md`: `HD`, `NF`, `EX` or `NS`.
    MetaDelete,
    /// Of `ma`: `VA` and data, `HD`, `NF`, `NS` or `EX`.
    MetaArithmetic,
    /// Of `me`: `ME` or `EN`.
    MetaDebug,
}

/// Which replies a client does not want to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hush {
    /// It wants to see all.
    Nothing,
    /// It said `noreply`: it waits for nothing, so whatever came would be taken for the reply to a later
    /// command, errors included.
    Everything,
    /// It gave the flag `q`: what memcached itself withholds then. Errors are shown.
    Nominal,
}

impl Note {
    /// What the client gets to see of a reply to its command.
    pub fn shown(self, reply: &[u8]) -> &[u8] {
        let hide = match self.hush {
            Hush::Nothing => false,
            Hush::Everything => true,
            Hush::Nominal => matches!(
                (self.kind, reply.get(..2)),
                (Kind::MetaGet, Some(b"EN"))
                    | (Kind::MetaSet | Kind::MetaDelete, Some(b"HD"))
                    | (Kind::MetaArithmetic, Some(b"HD" | b"VA"))
            ),
        };
        if hide { &[] } else { reply }
    }
}

/// Whether a reply is one of memcached's three kinds of errors.
pub fn is_error(reply: &[u8]) -> bool {
    reply.starts_with(b"ERROR") || reply.starts_with(b"SERVER_ERROR ") || reply.starts_with(b"CLIENT_ERROR ")
}

/// Whether a reply says that its server cannot serve: `SERVER_ERROR`, unless that is about the size of one object, or the
/// memory for it.
pub fn cannot_serve(reply: &[u8]) -> bool {
    let why = reply.strip_prefix(b"SERVER_ERROR ");
    why.is_some_and(|why| !why.starts_with(b"object too large") && !why.starts_with(b"out of memory"))
}

/// Appends an error of the router's: `SERVER_ERROR`, the text with line ends made harmless, CRLF.
pub fn push_error(out: &mut alloc::vec::Vec<u8>, text: core::fmt::Arguments<'_>) {
    struct OneLine<'a>(&'a mut alloc::vec::Vec<u8>);
    impl core::fmt::Write for OneLine<'_> {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            self.0.extend(text.bytes().map(|byte| if byte < b' ' { b' ' } else { byte }));
            Ok(())
        }
    }
    out.extend_from_slice(b"SERVER_ERROR phalanx: ");
    // Writing to a vector cannot fail, and a value that cannot print itself leaves a shorter line.
    let _ = core::fmt::write(&mut OneLine(out), text);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_cannot_serve_is_told_from_an_object_that_it_cannot_keep() {
        for reply in [&b"SERVER_ERROR backend is away\r\n"[..], b"SERVER_ERROR \r\n"] {
            assert!(is_error(reply) && cannot_serve(reply));
        }
        for reply in [
            &b"SERVER_ERROR object too large for cache\r\n"[..],
            b"SERVER_ERROR out of memory storing object\r\n",
            b"CLIENT_ERROR bad command line format\r\n",
            b"ERROR\r\n",
        ] {
            assert!(is_error(reply) && !cannot_serve(reply));
        }
        assert!(!cannot_serve(b"VALUE k 0 14\r\nSERVER_ERROR x\r\nEND\r\n"));
    }
}
