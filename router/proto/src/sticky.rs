//! Sticky sessions: which clone of each RACS a client was with, as the client itself remembers it.
//!
//! The placement travels in a cookie, so it survives the router and is the same at every router. It needs no
//! signature: the key decides the partition and so the RACS; what a client says here only chooses among clones
//! any of which may answer it anyway. Whoever forges it picks who serves his own reads, as he could by asking
//! until he is lucky. What it cannot name is a server of another partition, or one that is being avoided.

use core::fmt::{self, Write};

use crate::{http::RequestHead, key::KeyHash, l2p::Logical, racs::Racs};

/// A client's placements, the latest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    placed: [Placement; Self::MAX],
    len: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Placement {
    racs: u32,
    clone: CloneTag,
}

/// Stands for a clone, by its name and address: at a server that comes back as another one, sessions begin
/// anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloneTag(u32);

impl CloneTag {
    /// The tag of this clone.
    pub fn of(clone: &Logical) -> Self {
        // Several members of a group may have one name, and one address may get another member.
        let name = KeyHash::of(clone.name.as_bytes()).get();
        let mut bytes = [0; 26];
        bytes[..8].copy_from_slice(&name.to_be_bytes());
        bytes[8..24].copy_from_slice(&match clone.addr.ip() {
            core::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(ip) => ip.octets(),
        });
        bytes[24..].copy_from_slice(&clone.addr.port().to_be_bytes());
        Self((KeyHash::of(&bytes).get() >> 32) as u32)
    }
}

impl Session {
    /// The most RACS that a session remembers; of more, the one placed longest ago is forgotten.
    pub const MAX: usize = 8;

    /// The session of a request, out of its cookie of this name. What cannot be read counts as none: the
    /// client is placed anew.
    pub fn of(request: &RequestHead, head: &[u8], cookie: &[u8]) -> Self {
        let fields = request.fields().values(head, b"cookie");
        let mut cookies = fields.flat_map(crate::extract::cookies);
        let value = cookies.find(|(name, _)| *name == cookie).map(|(_, value)| value);
        value.and_then(Self::parse).unwrap_or_default()
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut session = Self::default();
        for part in text.split(|&byte| byte == b'.') {
            let (racs, clone) = part.split_at_checked(8)?;
            let placement = Placement { racs: hex(racs)?, clone: CloneTag(hex(clone)?) };
            *session.placed.get_mut(session.len)? = placement;
            session.len += 1;
        }
        Some(session)
    }

    /// The clone of this RACS that the client was with.
    pub fn clone_of(&self, racs: &Racs) -> Option<CloneTag> {
        let racs = tag_of(racs);
        self.placed[..self.len].iter().find(|placed| placed.racs == racs).map(|placed| placed.clone)
    }

    /// Notes where the client is now.
    pub fn place(&mut self, racs: &Racs, clone: CloneTag) {
        let racs = tag_of(racs);
        let known = self.placed[..self.len].iter().position(|placed| placed.racs == racs);
        self.len += usize::from(known.is_none() && self.len < Self::MAX);
        let at = known.unwrap_or(self.len - 1);
        self.placed[..=at].rotate_right(1);
        self.placed[0] = Placement { racs, clone };
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, placed) in self.placed[..self.len].iter().enumerate() {
            if at > 0 {
                f.write_char('.')?;
            }
            write!(f, "{:08x}{:08x}", placed.racs, placed.clone.0)?;
        }
        Ok(())
    }
}

/// RACS stand by their names, so that their order in a file does not matter.
fn tag_of(racs: &Racs) -> u32 {
    (KeyHash::of(racs.name().as_bytes()).get() >> 32) as u32
}

/// Eight hexadecimal digits.
fn hex(digits: &[u8]) -> Option<u32> {
    let digits: &[u8; 8] = digits.try_into().ok()?;
    digits.iter().try_fold(0, |number, &digit| Some(number << 4 | (digit as char).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::ToString, vec, vec::Vec};

    use crate::{l2p::Physicals, pmap::Epoch};

    fn racs(name: &str) -> Racs {
        Racs::new(name, vec![], None, Epoch::FIRST)
    }

    #[test]
    fn a_session_remembers_the_last_eight_arrays() {
        let all: Vec<Racs> = (0..10).map(|at| racs(&format!("r{at}"))).collect();
        let mut session = Session::default();
        assert_eq!(session.to_string(), "");
        for (at, racs) in all.iter().enumerate() {
            session.place(racs, CloneTag(at as u32));
        }
        session.place(&all[3], CloneTag(77));
        let read = Session::parse(session.to_string().as_bytes()).unwrap();
        assert_eq!(read, session);
        for (at, racs) in all.iter().enumerate() {
            let expected = match at {
                0 | 1 => None,
                3 => Some(CloneTag(77)),
                at => Some(CloneTag(at as u32)),
            };
            assert_eq!(read.clone_of(racs), expected, "{at}");
        }
        assert_eq!(session.to_string().len(), 8 * 17 - 1);
        session.place(&all[0], CloneTag(5));
        assert_eq!(session.clone_of(&all[2]), None, "the one placed longest ago");
        assert_eq!(session.clone_of(&all[3]), Some(CloneTag(77)));
    }

    #[test]
    fn what_was_not_written_here_is_no_session() {
        let good = "0123456789abcdef";
        assert!(Session::parse(good.as_bytes()).is_some());
        assert!(Session::parse([good; 8].join(".").as_bytes()).is_some());
        for bad in
            ["", ".", "0123456789abcde", "0123456789abcdef0", "0123456789abcdeg", "+123456789abcdef", "\"\""]
        {
            assert_eq!(Session::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Session::parse([good; 9].join(".").as_bytes()), None);
        assert_eq!(Session::parse(format!("{good}.").as_bytes()), None);
    }

    #[test]
    fn a_request_brings_its_session_in_its_own_cookie() {
        let of = |cookie: &str| {
            let head = format!("GET / HTTP/1.1\r\nHost: h\r\nCookie: {cookie}\r\n\r\n");
            let request = RequestHead::parse(head.as_bytes()).unwrap();
            Session::of(&request, head.as_bytes(), b"phalanx-s").to_string()
        };
        assert_eq!(of("a=b; phalanx-s=0123456789abcdef"), "0123456789abcdef");
        assert_eq!(of("phalanx-t=0123456789abcdef; phalanx-s=nonsense"), "");
    }

    #[test]
    fn clones_are_told_apart_by_name_and_address() {
        let mut physicals = Physicals::default();
        let mut tag = |name: &str, addr: &str| {
            let addr = addr.parse().unwrap();
            CloneTag::of(&Logical::new(name, physicals.id_of(addr), addr))
        };
        let one = tag("web", "10.0.0.1:80");
        assert_eq!(tag("web", "10.0.0.1:80"), one);
        for other in [tag("web", "10.0.0.2:80"), tag("web", "10.0.0.1:81"), tag("api", "10.0.0.1:80")] {
            assert_ne!(other, one);
        }
        // For ever the same, or every session moves when the router is replaced.
        assert_eq!(one, CloneTag(394_940_854));
    }
}
