//! What clients and servers say to each other: a request names a key, and its answer is the key again.

use std::io::Write;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

/// What clients and servers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    /// HTTP/1.1: a GET with the key in a header, answered with 100 bytes.
    Http,
    /// Redis' protocol: GET.
    Redis,
    /// memcached's text protocol: get.
    Memcached,
    /// MessagePack-RPC in frames.
    Frames,
}

impl Protocol {
    pub(super) fn speech(self) -> &'static dyn Speech {
        match self {
            Self::Http => &Http,
            Self::Redis => &Redis,
            Self::Memcached => &Memcached,
            Self::Frames => &Frames,
        }
    }

    /// Whether answers come in the order of their requests.
    pub(super) fn is_ordered(self) -> bool {
        self != Self::Frames
    }
}

/// As much of a protocol as it takes. Keys are numbers here, and `key-N` on the wire.
pub(super) trait Speech: Sync {
    /// Appends a request.
    fn ask(&self, key: u32, to: &mut Vec<u8>) -> Result<()>;

    /// Appends the answer to the request that `said` begins with. The request's length; `None` if it is not there as a
    /// whole.
    fn answer(&self, said: &[u8], to: &mut Vec<u8>) -> Result<Option<usize>>;

    /// The length of the answer that `heard` begins with, and whose it is; `None` if it is not there as a whole.
    fn read(&self, heard: &[u8]) -> Result<Option<(usize, u32)>>;
}

struct Http;
struct Redis;
struct Memcached;
struct Frames;

/// Bytes of a body: the key, and x to the end.
const BODY: usize = 100;

impl Speech for Http {
    fn ask(&self, key: u32, to: &mut Vec<u8>) -> Result<()> {
        write!(to, "GET /bench HTTP/1.1\r\nHost: bench\r\nX-Key: key-{key}\r\n\r\n")?;
        Ok(())
    }

    fn answer(&self, said: &[u8], to: &mut Vec<u8>) -> Result<Option<usize>> {
        let Some(head) = Head::read(said, b"x-key:") else { return Ok(None) };
        // A router that asks whether a server is well names no key.
        let key = head.field.unwrap_or_default();
        ensure!(key.len() <= BODY, "a key of {} bytes", key.len());
        write!(to, "HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n")?;
        to.extend_from_slice(key);
        to.resize(to.len() + BODY - key.len(), b'x');
        Ok(Some(said.len() - head.rest.len()))
    }

    fn read(&self, heard: &[u8]) -> Result<Option<(usize, u32)>> {
        let Some(head) = Head::read(heard, b"content-length:") else { return Ok(None) };
        ensure!(head.first.starts_with(b"HTTP/1.1 200 "), "{:?}", text(head.first));
        let length = head.field.and_then(number);
        ensure!(length == Some(BODY), "a Content-Length of {:?}", head.field.map(text));
        let Some((body, rest)) = head.rest.split_at_checked(BODY) else { return Ok(None) };
        let end = body.iter().position(|byte| *byte == b'x').unwrap_or(BODY);
        ensure!(body[end..].iter().all(|byte| *byte == b'x'), "a body of {:?}", text(body));
        Ok(Some((heard.len() - rest.len(), key(&body[..end])?)))
    }
}

impl Speech for Redis {
    fn ask(&self, key: u32, to: &mut Vec<u8>) -> Result<()> {
        write!(to, "*2\r\n$3\r\nGET\r\n${}\r\nkey-{key}\r\n", length(key))?;
        Ok(())
    }

    fn answer(&self, said: &[u8], to: &mut Vec<u8>) -> Result<Option<usize>> {
        let Some((count, mut rest)) = line(said) else { return Ok(None) };
        ensure!(count == b"*2", "{:?} instead of a command of two words", text(count));
        let mut words = [&[][..]; 2];
        for word in &mut words {
            let Some(next) = bulk(rest)? else { return Ok(None) };
            (*word, rest) = next;
        }
        let [name, key] = words;
        ensure!(name == b"GET", "{:?} instead of GET", text(name));
        write!(to, "${}\r\n", key.len())?;
        to.extend_from_slice(key);
        to.extend_from_slice(b"\r\n");
        Ok(Some(said.len() - rest.len()))
    }

    fn read(&self, heard: &[u8]) -> Result<Option<(usize, u32)>> {
        let Some((value, rest)) = bulk(heard)? else { return Ok(None) };
        Ok(Some((heard.len() - rest.len(), key(value)?)))
    }
}

impl Speech for Memcached {
    fn ask(&self, key: u32, to: &mut Vec<u8>) -> Result<()> {
        write!(to, "get key-{key}\r\n")?;
        Ok(())
    }

    fn answer(&self, said: &[u8], to: &mut Vec<u8>) -> Result<Option<usize>> {
        let Some((command, rest)) = line(said) else { return Ok(None) };
        let key = command.strip_prefix(b"get ").map(<[u8]>::trim_ascii);
        let key = key.with_context(|| format!("{:?} instead of get", text(command)))?;
        to.extend_from_slice(b"VALUE ");
        to.extend_from_slice(key);
        write!(to, " 0 {}\r\n", key.len())?;
        to.extend_from_slice(key);
        to.extend_from_slice(b"\r\nEND\r\n");
        Ok(Some(said.len() - rest.len()))
    }

    fn read(&self, heard: &[u8]) -> Result<Option<(usize, u32)>> {
        const END: &[u8] = b"\r\nEND\r\n";
        let Some((first, rest)) = line(heard) else { return Ok(None) };
        let mut words = first.split(|byte| *byte == b' ');
        ensure!(words.next() == Some(b"VALUE"), "{:?}", text(first));
        let name = words.next().unwrap_or_default();
        let length = words.nth(1).and_then(number);
        ensure!(length == Some(name.len()), "{:?}", text(first));
        let Some((value, rest)) = rest.split_at_checked(name.len() + END.len()) else { return Ok(None) };
        ensure!(value.strip_suffix(END) == Some(name), "{:?} under {:?}", text(value), text(name));
        Ok(Some((heard.len() - rest.len(), key(name)?)))
    }
}

/// The key is the id of its request, too.
impl Speech for Frames {
    fn ask(&self, key: u32, to: &mut Vec<u8>) -> Result<()> {
        let id = key.to_be_bytes();
        let head = [&[0x94, 0, 0xce][..], &id, &[0xa3], b"get", &[0x91, 0xa0 | length(key) as u8]].concat();
        to.extend_from_slice(&((head.len() + length(key)) as u32).to_be_bytes());
        to.extend_from_slice(&head);
        write!(to, "key-{key}")?;
        Ok(())
    }

    fn answer(&self, said: &[u8], to: &mut Vec<u8>) -> Result<Option<usize>> {
        let Some((message, rest)) = frame(said) else { return Ok(None) };
        let [0x94, 0, 0xce, a, b, c, d, 0xa3, b'g', b'e', b't', 0x91, param @ ..] = message else {
            bail!("{:?} instead of a request", text(message));
        };
        to.extend_from_slice(&((8 + param.len()) as u32).to_be_bytes());
        to.extend_from_slice(&[0x94, 1, 0xce, *a, *b, *c, *d, 0xc0]);
        to.extend_from_slice(param);
        Ok(Some(said.len() - rest.len()))
    }

    fn read(&self, heard: &[u8]) -> Result<Option<(usize, u32)>> {
        let Some((message, rest)) = frame(heard) else { return Ok(None) };
        let [0x94, 1, 0xce, a, b, c, d, 0xc0, short, result @ ..] = message else {
            bail!("{:?}", text(message));
        };
        let id = u32::from_be_bytes([*a, *b, *c, *d]);
        ensure!(usize::from(*short) == 0xa0 + result.len(), "{:?}", text(message));
        ensure!(key(result)? == id, "{:?} under id {id}", text(result));
        Ok(Some((heard.len() - rest.len(), id)))
    }
}

/// How a key is written.
const KEY: &[u8] = b"key-";

/// How many bytes a key has as it is written.
fn length(key: u32) -> usize {
    KEY.len() + 1 + key.checked_ilog10().unwrap_or(0) as usize
}

/// The key that is written so.
fn key(written: &[u8]) -> Result<u32> {
    let digits = written.strip_prefix(KEY).and_then(number);
    let key = digits.and_then(|number| u32::try_from(number).ok());
    key.with_context(|| format!("{:?} instead of a key", text(written)))
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// For people.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The first line, without its end, and what follows it.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

/// What a client or server of HTTP sends before a body.
struct Head<'a> {
    /// The first line.
    first: &'a [u8],
    /// The value of the field that was looked for.
    field: Option<&'a [u8]>,
    /// What follows the head.
    rest: &'a [u8],
}

impl<'a> Head<'a> {
    /// The head at the front, if it is there as a whole. `name` is that of a field, in lower case and with its colon.
    fn read(bytes: &'a [u8], name: &[u8]) -> Option<Self> {
        let (first, mut rest) = line(bytes)?;
        let mut field = None;
        loop {
            let (next, behind) = line(rest)?;
            rest = behind;
            match next.split_at_checked(name.len()) {
                _ if next.is_empty() => return Some(Self { first, field, rest }),
                Some((its, value)) if its.eq_ignore_ascii_case(name) => field = Some(value.trim_ascii()),
                _ => {}
            }
        }
    }
}

/// The bulk string at the front, and what follows it.
fn bulk(bytes: &[u8]) -> Result<Option<(&[u8], &[u8])>> {
    let Some((first, rest)) = line(bytes) else { return Ok(None) };
    let length = first.strip_prefix(b"$").and_then(number);
    let length = length.with_context(|| format!("{:?}", text(first)))?;
    let Some((value, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    Ok(rest.strip_prefix(b"\r\n").map(|rest| (value, rest)))
}

/// The message of the frame at the front, and what follows it.
fn frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_understand_clients_and_clients_servers_wherever_bytes_are_cut() {
        for protocol in Protocol::value_variants() {
            let speech = protocol.speech();
            for key in [0, 7, 10, 4_294_967_295] {
                let (mut said, mut heard) = (Vec::new(), Vec::new());
                speech.ask(key, &mut said).expect("memory takes it");
                for cut in 0..said.len() {
                    let answered = speech.answer(&said[..cut], &mut heard).expect("a part is nothing odd");
                    assert_eq!((answered, heard.len()), (None, 0), "{protocol:?} {cut}");
                }
                let whole = said.len();
                said.extend_from_slice(b"next");
                assert_eq!(speech.answer(&said, &mut heard).expect("a request"), Some(whole), "{protocol:?}");
                for cut in 0..heard.len() {
                    assert_eq!(speech.read(&heard[..cut]).expect("a part"), None, "{protocol:?} {cut}");
                }
                let whole = heard.len();
                heard.extend_from_slice(b"next");
                assert_eq!(speech.read(&heard).expect("an answer"), Some((whole, key)), "{protocol:?}");
            }
        }
    }

    #[test]
    fn what_proxies_do_to_names_and_fields_changes_nothing() {
        let said = b"GET /bench HTTP/1.1\r\nhost: u\r\nx-key: key-5\r\nConnection: close\r\n\r\n";
        let mut heard = Vec::new();
        assert_eq!(Http.answer(said, &mut heard).expect("a request"), Some(said.len()));
        let heard = String::from_utf8(heard).expect("text");
        let heard = heard.replace("Content-Length: 100", "server: nginx\r\ncontent-length:100\r\nDate: x");
        assert_eq!(Http.read(heard.as_bytes()).expect("an answer"), Some((heard.len(), 5)));
    }

    #[test]
    fn what_is_no_answer_is_told_from_one() {
        let body = |first: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{first:y<100}");
        let frame = |message: &[u8]| [&(message.len() as u32).to_be_bytes()[..], message].concat();
        for (protocol, heard) in [
            (Protocol::Http, b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_vec()),
            (Protocol::Http, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n".to_vec()),
            (Protocol::Http, body("key-1").into_bytes()),
            (Protocol::Http, body("key-1x").into_bytes()),
            (Protocol::Redis, b"-ERR no server\r\n".to_vec()),
            (Protocol::Redis, b"$-1\r\n".to_vec()),
            (Protocol::Redis, b"$5\r\nkey_1\r\n".to_vec()),
            (Protocol::Memcached, b"SERVER_ERROR none\r\n".to_vec()),
            (Protocol::Memcached, b"END\r\n".to_vec()),
            (Protocol::Memcached, b"VALUE key-1 0 5\r\nkey-2\r\nEND\r\n".to_vec()),
            (Protocol::Memcached, b"VALUE key-1 0 6\r\nkey-1x\r\nEND\r\n".to_vec()),
            (Protocol::Frames, frame(b"\x94\x01\xce\0\0\0\x01\xa3bad\xc0")),
            (Protocol::Frames, frame(b"\x94\x01\xce\0\0\0\x01\xc0\xa5key-2")),
            (Protocol::Frames, frame(b"\x94\x01\xce\0\0\0\x01\xc0\xa4key-1")),
        ] {
            assert!(protocol.speech().read(&heard).is_err(), "{protocol:?} {:?}", text(&heard));
        }
    }
}
