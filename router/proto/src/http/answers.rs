//! The answers on a connection that many requests share: where each one ends, so that the k-th is the k-th request's.
//!
//! On a connection of its own a request can put up with a lot: whatever is odd about its answer, nobody else is
//! harmed. Here one byte too many or too few would be read as a part of somebody else's answer. So whatever leaves
//! doubt is a [`Doubt`], after which nothing on the connection can be believed.

use super::{Body, ChunkedScanner, HeadScan, Method, Refusal, ResponseHead};

/// The most interim answers to one request.
const MAX_INTERIM: u32 = 8;

/// What every answer begins with.
const START: &[u8] = b"HTTP/1.";

/// Why nothing further on a connection can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Doubt {
    /// An answer is malformed.
    #[error("an answer is refused: {0}")]
    Refused(#[from] Refusal),
    /// An answer ends with the connection, which others share.
    #[error("an answer ends with the connection")]
    UntilClose,
    /// An interim answer that nobody can have asked for, or too many of them.
    #[error("interim answers that were not asked for")]
    Interim,
    /// 408: the server means that no request came. It says so about the connection, and not to the request that is
    /// on its way meanwhile.
    #[error("408: the server waits for a request that is on its way")]
    NoRequest,
}

/// What is told of an answer as it is read.
pub trait Listener {
    /// Its head has come.
    fn head(&mut self, head: &[u8], parsed: &mut ResponseHead);
    /// A part of its body has come, framing included.
    fn body(&mut self, bytes: &[u8]);
}

/// How far one answer was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Bytes of the input that are dealt with.
    pub len: usize,
    /// If the answer ends with them: whether the connection goes on. It does not behind an answer that must have no
    /// body whatever it says, for there could be one all the same.
    pub whole: Option<bool>,
}

/// Reads the answers of one connection, whatever the cuts between its bytes.
#[derive(Clone, Debug)]
pub struct Answers(State);

#[derive(Clone, Debug)]
enum State {
    Head { scan: HeadScan, interims: u32 },
    Body { rest: Rest, persistent: bool },
}

#[derive(Clone, Debug)]
enum Rest {
    Length(u64),
    Chunked(ChunkedScanner),
}

impl Default for Answers {
    fn default() -> Self {
        Self(State::Head { scan: HeadScan::default(), interims: 0 })
    }
}

impl Answers {
    /// Whether the head of the next answer has come, and not its end.
    pub const fn is_within(&self) -> bool {
        matches!(self.0, State::Body { .. })
    }

    /// Reads on in the answer to a request of method `to`, as far as its end. What was not dealt with is to come
    /// again at the start of the next input.
    ///
    /// # Errors
    /// The connection must not be used any more.
    pub fn read(&mut self, input: &[u8], to: Method, listener: &mut impl Listener) -> Result<Read, Doubt> {
        let mut len = 0;
        loop {
            match &mut self.0 {
                State::Head { scan, interims } => {
                    // What is no answer need not become as long as a head before it is seen.
                    if !input[len..].iter().zip(START).all(|(byte, start)| byte == start) {
                        return Err(Doubt::Refused(Refusal::StatusLine));
                    }
                    let Some(head_len) = scan.response(&input[len..])? else {
                        return Ok(Read { len, whole: None });
                    };
                    let head = &input[len..len + head_len];
                    len += head_len;
                    let mut parsed = ResponseHead::parse(head, to)?;
                    if parsed.is_interim() {
                        *interims += 1;
                        // 102 (Processing) and 103 (Early Hints) come unasked, and say nothing that must be passed on.
                        // One that speaks of a body may have one.
                        let passes = matches!(parsed.status(), 102 | 103) && parsed.persistent();
                        if !passes || *interims > MAX_INTERIM {
                            return Err(Doubt::Interim);
                        }
                        *scan = HeadScan::default();
                        continue;
                    }
                    if parsed.status() == 408 {
                        return Err(Doubt::NoRequest);
                    }
                    let rest = match parsed.body() {
                        Body::None => None,
                        Body::Length(left) => Some(Rest::Length(left)),
                        Body::Chunked => Some(Rest::Chunked(ChunkedScanner::default())),
                        Body::UntilClose => return Err(Doubt::UntilClose),
                    };
                    listener.head(head, &mut parsed);
                    // Servers that send a body where there must be none are many, and what is in it a stranger may
                    // have put there: nothing behind such an answer is known to be one.
                    let bodiless = to == Method::Head || matches!(parsed.status(), 204 | 205 | 304);
                    let persistent = parsed.persistent() && !bodiless;
                    match rest {
                        Some(rest) => self.0 = State::Body { rest, persistent },
                        None => {
                            *self = Self::default();
                            return Ok(Read { len, whole: Some(persistent) });
                        }
                    }
                }
                State::Body { rest, persistent } => {
                    let (part, done) = match rest {
                        Rest::Length(left) => {
                            let part = usize::try_from(*left)
                                .map_or(input.len() - len, |left| left.min(input.len() - len));
                            *left -= part as u64;
                            (part, *left == 0)
                        }
                        Rest::Chunked(scanner) => {
                            let advance = scanner.advance(&input[len..])?;
                            (advance.len, advance.done)
                        }
                    };
                    if part > 0 {
                        listener.body(&input[len..len + part]);
                    }
                    len += part;
                    let whole = done.then_some(*persistent);
                    if done {
                        *self = Self::default();
                    }
                    return Ok(Read { len, whole });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::String, vec::Vec};
    use membership_types::Rng;

    /// Statuses and bodies.
    type Answered = Vec<(u16, Vec<u8>)>;

    #[derive(Default)]
    struct Heard(Answered);

    impl Listener for Heard {
        fn head(&mut self, head: &[u8], parsed: &mut ResponseHead) {
            assert!(head.ends_with(b"\r\n\r\n"));
            self.0.push((parsed.status(), Vec::new()));
        }

        fn body(&mut self, bytes: &[u8]) {
            self.0.last_mut().unwrap().1.extend_from_slice(bytes);
        }
    }

    /// Reads what comes in pieces of random lengths; `methods` are those of the requests.
    fn read(wire: &[u8], methods: &[Method], rng: &mut Rng) -> (Answered, Result<usize, Doubt>) {
        let (mut answers, mut heard) = (Answers::default(), Heard::default());
        let (mut rest, mut from, mut done) = (Vec::new(), 0, 0);
        while from < wire.len() {
            let cut = (from + 1 + rng.below(40) as usize).min(wire.len());
            rest.extend_from_slice(&wire[from..cut]);
            from = cut;
            while done < methods.len() {
                match answers.read(&rest, methods[done], &mut heard) {
                    Ok(read) => {
                        rest.drain(..read.len);
                        match read.whole {
                            Some(_) => done += 1,
                            None => break,
                        }
                    }
                    Err(doubt) => return (heard.0, Err(doubt)),
                }
            }
        }
        (heard.0, Ok(done))
    }

    #[test]
    fn each_answer_ends_where_it_ends_however_the_bytes_are_cut() {
        let wire = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\
            HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\n\r\n\
            HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n\
            HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n\
            HTTP/1.1 204 No Content\r\n\r\n\
            HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";
        let methods = [Method::Get, Method::Get, Method::Head, Method::Get, Method::Get, Method::Get];
        let chunked = b"4\r\nwiki\r\n0\r\n\r\n";
        let expected: [(u16, &[u8]); 6] =
            [(200, b"abc"), (200, chunked), (200, b""), (304, b""), (204, b""), (500, b"")];
        for seed in 0..200 {
            let (heard, done) = read(wire, &methods, &mut Rng::seeded(seed));
            assert_eq!(done, Ok(6));
            assert!(heard.iter().map(|(status, body)| (*status, &body[..])).eq(expected), "{heard:?}");
        }
    }

    #[test]
    fn behind_an_answer_that_must_have_no_body_nothing_is_believed() {
        for (to, status, goes_on) in [
            (Method::Get, "200 OK", true),
            (Method::Get, "404 Not Found", true),
            (Method::Head, "200 OK", false),
            (Method::Get, "204 No Content", false),
            (Method::Get, "205 Reset Content", false),
            (Method::Get, "304 Not Modified", false),
        ] {
            let wire = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            let read = Answers::default().read(wire.as_bytes(), to, &mut Heard::default());
            assert_eq!(read, Ok(Read { len: wire.len(), whole: Some(goes_on) }), "{status}");
        }
    }

    #[test]
    fn whatever_leaves_doubt_ends_the_connection() {
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        for (bad, doubt) in [
            ("HTTP/1.1 200 OK\r\n\r\nbody", Doubt::UntilClose),
            ("HTTP/1.0 200 OK\r\n\r\n", Doubt::UntilClose),
            ("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", Doubt::NoRequest),
            ("HTTP/1.1 100 Continue\r\n\r\n", Doubt::Interim),
            ("HTTP/1.1 199 Odd\r\n\r\n", Doubt::Interim),
            ("HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nok", Doubt::Interim),
            (
                "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
                Doubt::Refused(Refusal::UnaskedUpgrade),
            ),
            ("HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", Doubt::Refused(Refusal::BareLf)),
            ("garbage of a server", Doubt::Refused(Refusal::StatusLine)),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                Doubt::Refused(Refusal::ChunkSize),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
                Doubt::Refused(Refusal::RepeatedContentLength),
            ),
        ] {
            for seed in 0..50 {
                let wire = String::from(good) + bad;
                let (heard, end) = read(wire.as_bytes(), &[Method::Get; 3], &mut Rng::seeded(seed));
                assert_eq!((&heard[0].1[..], end), (&b"ok"[..], Err(doubt)), "{bad}");
            }
        }
        let hints = "HTTP/1.1 103 Early Hints\r\n\r\n";
        let (_, end) = read(hints.repeat(8).as_bytes(), &[Method::Get], &mut Rng::seeded(1));
        assert_eq!(end, Ok(0));
        let (_, end) = read(hints.repeat(9).as_bytes(), &[Method::Get], &mut Rng::seeded(1));
        assert_eq!(end, Err(Doubt::Interim));
    }

    #[test]
    fn it_is_told_whether_the_connection_goes_on() {
        let mut answers = Answers::default();
        for (wire, persistent) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", true),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", false),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", false),
        ] {
            let read = answers.read(wire.as_bytes(), Method::Get, &mut Heard::default()).unwrap();
            assert_eq!(read, Read { len: wire.len(), whole: Some(persistent) }, "{wire}");
            assert!(!answers.is_within());
        }
        let read = answers.read(
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nxy",
            Method::Get,
            &mut Heard::default(),
        );
        assert_eq!((read.unwrap().whole, answers.is_within()), (None, true));
    }
}
