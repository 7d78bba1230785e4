//! The name that a TLS client asks for, read in passing: nothing is decrypted, nothing answered.
//!
//! A ClientHello comes in clear text, in one or more records, cut anywhere. Only what is needed to find the
//! server's name is looked at, and what cannot be a hello is refused. (Where a client encrypts its hello, the
//! outer one counts: it is what the network in front of the server is meant to see.)
//!
//! Source: RFC 8446, 4.1.2 and 5.1; RFC 6066, 3.

use alloc::{boxed::Box, string::String, vec::Vec};

/// The most that a hello may have, with the heads of its records, in bytes. Usual ones have 250 to 2,000.
pub const MAX_HELLO: usize = 16 * 1024;
/// The longest fragment in a record of plain text.
const MAX_FRAGMENT: usize = 1 << 14;

/// Why what came is not a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// Not a record of a handshake.
    #[error("this is not TLS")]
    NotTls,
    /// A handshake begins with another message.
    #[error("the handshake does not begin with a ClientHello")]
    NotHello,
    /// The hello contradicts itself.
    #[error("malformed ClientHello")]
    Malformed,
    /// The hello is longer than [`MAX_HELLO`].
    #[error("the ClientHello is longer than 16 KiB")]
    TooLong,
    /// The name is not that of a host.
    #[error("the server name is not that of a host")]
    Name,
}

/// Follows a hello through any cuts.
#[derive(Debug, Default)]
pub struct HelloScan {
    /// The head of the record in hand.
    head: [u8; 5],
    head_len: usize,
    /// Bytes of its fragment that are still to come.
    left: usize,
    /// The handshake's bytes so far.
    message: Vec<u8>,
    /// How many bytes were looked at.
    seen: usize,
}

/// What a hello says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The name of the server that the client wants, in lower case, if it says that.
    pub server_name: Option<Box<str>>,
}

impl HelloScan {
    /// Looks at further bytes, which follow those of the last call. `None` while some are missing.
    ///
    /// # Errors
    /// What no further byte can mend.
    pub fn advance(&mut self, mut input: &[u8]) -> Result<Option<Hello>, HelloError> {
        while !input.is_empty() {
            if self.seen >= MAX_HELLO {
                return Err(HelloError::TooLong);
            }
            if self.left == 0 {
                self.head[self.head_len] = input[0];
                self.head_len += 1;
                self.seen += 1;
                input = &input[1..];
                self.judge_head()?;
                continue;
            }
            let len = self.left.min(input.len()).min(MAX_HELLO - self.seen);
            self.message.extend_from_slice(&input[..len]);
            self.seen += len;
            self.left -= len;
            input = &input[len..];
            if let Some(hello) = self.judge_message()? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }

    fn judge_head(&mut self) -> Result<(), HelloError> {
        // A record of the handshake, of any version 3.x.
        match (self.head_len, self.head) {
            (1, [22, ..]) | (2, [_, 3, ..]) | (3 | 4, _) => Ok(()),
            (5, [.., high, low]) => {
                self.head_len = 0;
                self.left = usize::from(u16::from_be_bytes([high, low]));
                if (1..=MAX_FRAGMENT).contains(&self.left) { Ok(()) } else { Err(HelloError::NotTls) }
            }
            _ => Err(HelloError::NotTls),
        }
    }

    fn judge_message(&mut self) -> Result<Option<Hello>, HelloError> {
        match self.message[..] {
            [1, ..] => {}
            _ => return Err(HelloError::NotHello),
        }
        let Some((&[_, a, b, c], rest)) = self.message.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        if len > MAX_HELLO {
            return Err(HelloError::TooLong);
        }
        match rest.get(..len) {
            Some(hello) => server_name(hello).map(|server_name| Some(Hello { server_name })),
            None => Ok(None),
        }
    }
}

/// What is left of a message.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// As many bytes as the number before them says, which itself has `width` bytes.
    fn vector(&mut self, width: usize) -> Result<&'a [u8], HelloError> {
        let len = self.take(width)?.iter().fold(0, |len, &byte| len << 8 | usize::from(byte));
        self.take(len)
    }

    fn number(&mut self) -> Result<u16, HelloError> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().expect("two bytes")))
    }
}

fn server_name(hello: &[u8]) -> Result<Option<Box<str>>, HelloError> {
    let mut hello = Rest(hello);
    hello.take(2 + 32)?; // version and random
    let session = hello.vector(1)?;
    let suites = hello.vector(2)?;
    let compressions = hello.vector(1)?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return Err(HelloError::Malformed);
    }
    if hello.0.is_empty() {
        return Ok(None); // as clients of old did it
    }
    let mut extensions = Rest(hello.vector(2)?);
    if !hello.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let data = extensions.vector(2)?;
        if kind == 0 && name.replace(host_name(data)?).is_some() {
            return Err(HelloError::Malformed);
        }
    }
    Ok(name)
}

/// The one name of a host in a list of names.
fn host_name(data: &[u8]) -> Result<Box<str>, HelloError> {
    let mut data = Rest(data);
    let mut list = Rest(data.vector(2)?);
    let kind = list.take(1)?[0];
    let name = list.vector(2)?;
    if kind != 0 || !list.0.is_empty() || !data.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    if !(1..=255).contains(&name.len())
        || !name.iter().all(valid)
        || name.starts_with(b".")
        || name.ends_with(b".")
    {
        return Err(HelloError::Name);
    }
    Ok(name.iter().map(|&byte| char::from(byte.to_ascii_lowercase())).collect::<String>().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    /// A hello with these extensions, without record.
    fn message(extensions: Option<&[(u16, &[u8])]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[2, 9, 9, 0, 4, 0x13, 1, 0x13, 2, 1, 0]);
        if let Some(list) = extensions {
            let mut all = vec![];
            for (kind, data) in list {
                all.extend_from_slice(&kind.to_be_bytes());
                all.extend_from_slice(&(data.len() as u16).to_be_bytes());
                all.extend_from_slice(data);
            }
            body.extend_from_slice(&(all.len() as u16).to_be_bytes());
            body.extend_from_slice(&all);
        }
        let len = (body.len() as u32).to_be_bytes();
        [&[1, len[1], len[2], len[3]], &body[..]].concat()
    }

    fn name_extension(name: &[u8]) -> Vec<u8> {
        let len = name.len() as u16;
        [&(len + 3).to_be_bytes()[..], &[0], &len.to_be_bytes(), name].concat()
    }

    fn records(message: &[u8], fragment: usize) -> Vec<u8> {
        message
            .chunks(fragment)
            .flat_map(|part| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat())
            .collect()
    }

    fn scan(input: &[u8]) -> Result<Option<Hello>, HelloError> {
        HelloScan::default().advance(input)
    }

    fn named(name: &str) -> Result<Option<Hello>, HelloError> {
        Ok(Some(Hello { server_name: Some(name.into()) }))
    }

    #[test]
    fn the_name_is_found_in_whatever_records() {
        let hello = message(Some(&[(43, &[2, 3, 4]), (0, &name_extension(b"A.Example")), (21, &[0; 300])]));
        for fragment in [1, 2, 5, 100, 5000] {
            assert_eq!(scan(&records(&hello, fragment)), named("a.example"), "{fragment}");
        }
        let mut followed = records(&hello, 5000);
        followed.extend_from_slice(b"whatever follows is the server's");
        assert_eq!(scan(&followed), named("a.example"));
    }

    #[test]
    fn hellos_without_a_name() {
        let none = Ok(Some(Hello { server_name: None }));
        assert_eq!(scan(&records(&message(None), 500)), none);
        assert_eq!(scan(&records(&message(Some(&[])), 500)), none);
        assert_eq!(scan(&records(&message(Some(&[(43, &[2, 3, 4])])), 500)), none);
    }

    #[test]
    fn whatever_is_no_hello_is_refused() {
        let name = name_extension(b"a");
        let hello = |list: &[(u16, &[u8])]| records(&message(Some(list)), 5000);
        let mut other_message = records(&message(None), 500);
        other_message[5] = 2;
        let mut longer = message(None);
        longer[3] += 1;
        longer.push(0);
        for (input, error) in [
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), HelloError::NotTls),
            (vec![22, 2], HelloError::NotTls),
            (vec![22, 3, 1, 0, 0], HelloError::NotTls),
            (vec![22, 3, 1, 0x40, 1], HelloError::NotTls),
            (vec![21, 3, 1, 0, 2, 2, 0], HelloError::NotTls),
            (other_message, HelloError::NotHello),
            (records(&[1, 0, 0x40, 1], 4), HelloError::TooLong),
            (records(&longer, 5000), HelloError::Malformed),
            (hello(&[(0, &name), (0, &name)]), HelloError::Malformed),
            (hello(&[(0, &[])]), HelloError::Malformed),
            (hello(&[(0, &[0, 0])]), HelloError::Malformed),
            (hello(&[(0, &[0, 4, 1, 0, 1, b'a'])]), HelloError::Malformed),
            (hello(&[(0, &[0, 8, 0, 0, 1, b'a', 0, 0, 1, b'b'])]), HelloError::Malformed),
            (hello(&[(0, &[0, 4, 0, 0, 2, b'a'])]), HelloError::Malformed),
            (hello(&[(0, &name_extension(b""))]), HelloError::Name),
            (hello(&[(0, &name_extension(b"a b"))]), HelloError::Name),
            (hello(&[(0, &name_extension(b"a."))]), HelloError::Name),
            (hello(&[(0, &name_extension("\u{e9}".as_bytes()))]), HelloError::Name),
            (hello(&[(0, &name_extension(&[b'a'; 256]))]), HelloError::Name),
        ] {
            assert_eq!(scan(&input), Err(error), "{input:?}");
        }
    }

    #[test]
    fn what_never_ends_does_not_grow() {
        let mut scan = HelloScan::default();
        let record = [&[22, 3, 1, 0, 1][..], &[1]].concat();
        let mut hello = records(&[1, 0, 0x3f, 0xff], 1);
        assert_eq!(scan.advance(&hello), Ok(None));
        hello.clear();
        let error = (0..10_000).find_map(|_| scan.advance(&record).err());
        assert_eq!(error, Some(HelloError::TooLong));
        assert!(scan.message.len() <= MAX_HELLO);
    }

    proptest! {
        #[test]
        fn the_same_however_the_bytes_are_cut(
            hello in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..80),
                (prop::collection::vec(any::<u8>(), 0..40), 1usize..60, any::<bool>()).prop_map(|(name, fragment, whole)| {
                    let name = name_extension(&name);
                    let hello = records(&message(Some(&[(0, &name)])), fragment);
                    if whole { hello } else { hello[..hello.len() / 2].to_vec() }
                }),
                ("[a-z.]{1,30}", 1usize..60).prop_map(|(name, fragment)| {
                    let name = name_extension(name.as_bytes());
                    records(&message(Some(&[(16, b"xy"), (0, &name)])), fragment)
                }),
            ],
            cuts in prop::collection::vec(0usize..200, 0..8),
        ) {
            let whole = scan(&hello);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(hello.len())).collect();
            cuts.push(hello.len());
            cuts.sort_unstable();
            let (mut scan, mut from, mut found) = (HelloScan::default(), 0, Ok(None));
            for cut in cuts {
                if found == Ok(None) {
                    found = scan.advance(&hello[from..cut]);
                }
                from = cut;
            }
            prop_assert_eq!(found, whole);
        }
    }
}
