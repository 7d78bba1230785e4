//! Streams on which parsers disagree, through a running router, to servers that believe anything: none of them ever sees a request
//! that the router did not see, and honest clients on the same connections get their own responses.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use conformance::{
    families::{COVERED, FAMILIES},
    payloads,
    reading::Reading,
};
use membership_types::Rng;
use router::{Config, Limits, Options, Surroundings};

/// How a server reads what is not as it should be.
#[derive(Clone, Copy, Debug)]
struct Belief {
    /// Chunks go before lengths; else the other way round.
    chunks_first: bool,
    /// A CR alone ends a line, too. A bare LF always does.
    cr_ends: bool,
    /// Of two lengths the last one counts.
    last_length: bool,
    /// Names count without what cannot be in one at their ends, and whatever stands within them for a hyphen.
    sloppy_names: bool,
    /// Lines that begin with white space are fields; else they are skipped.
    indented: bool,
}

const BELIEFS: [Belief; 5] = [
    Belief { chunks_first: true, cr_ends: false, last_length: false, sloppy_names: true, indented: true },
    Belief { chunks_first: false, cr_ends: false, last_length: false, sloppy_names: false, indented: false },
    Belief { chunks_first: true, cr_ends: true, last_length: true, sloppy_names: true, indented: true },
    Belief { chunks_first: false, cr_ends: true, last_length: true, sloppy_names: true, indented: true },
    Belief { chunks_first: true, cr_ends: false, last_length: false, sloppy_names: false, indented: false },
];

/// A connection as a gullible server reads it.
struct Gullible {
    stream: TcpStream,
    buffer: Vec<u8>,
    belief: Belief,
}

impl Gullible {
    fn more(&mut self) -> Option<()> {
        let mut space = [0; 4096];
        let len = self.stream.read(&mut space).ok().filter(|len| *len > 0)?;
        self.buffer.extend_from_slice(&space[..len]);
        Some(())
    }

    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < len {
            self.more()?;
        }
        Some(self.buffer.drain(..len).collect())
    }

    /// The next line, however it ends.
    fn line(&mut self) -> Option<String> {
        loop {
            let ends = |byte: &u8| *byte == b'\n' || self.belief.cr_ends && *byte == b'\r';
            if let Some(at) = self.buffer.iter().position(ends) {
                let mut line = self.take(at + 1)?;
                if line.ends_with(b"\r") {
                    if self.buffer.is_empty() {
                        self.more()?;
                    }
                    if self.buffer.starts_with(b"\n") {
                        self.take(1)?;
                    }
                }
                line.truncate(at);
                return Some(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned());
            }
            self.more()?;
        }
    }

    /// The next request: its target, and its nonce.
    fn request(&mut self) -> Option<(String, String)> {
        let mut first = String::new();
        while first.is_empty() {
            first = self.line()?;
        }
        let (mut length, mut chunked, mut nonce) = (None, false, String::new());
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if line.starts_with([' ', '\t']) && !self.belief.indented {
                continue;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            let name = name.to_ascii_lowercase();
            let odd = |c: char| !c.is_ascii_graphic();
            let name = if self.belief.sloppy_names {
                name.trim_matches(odd).replace(|c: char| !c.is_ascii_alphanumeric(), "-")
            } else {
                name
            };
            let digits: String =
                value.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
            match name.as_str() {
                "content-length" if length.is_none() || self.belief.last_length => {
                    length = digits.parse::<usize>().ok()
                }
                "transfer-encoding" => chunked |= value.to_ascii_lowercase().contains("chunk"),
                "x-nonce" => value.trim().clone_into(&mut nonce),
                _ => {}
            }
        }
        match (chunked, length) {
            (true, None) => self.chunks()?,
            (true, Some(_)) if self.belief.chunks_first => self.chunks()?,
            (_, Some(length)) => drop(self.take(length.min(1 << 20))?),
            (false, None) => {}
        }
        Some((first.split([' ', '\t']).nth(1).unwrap_or("").to_owned(), nonce))
    }

    fn chunks(&mut self) -> Option<()> {
        loop {
            let line = self.line()?;
            let digits: String = line.trim_start().chars().take_while(char::is_ascii_hexdigit).collect();
            match usize::from_str_radix(&digits, 16).unwrap_or(0) {
                0 => break,
                size => drop(self.take(size.min(1 << 20))?),
            }
            self.line()?;
        }
        while !self.line()?.is_empty() {}
        Some(())
    }
}

type Seen = Arc<Mutex<BTreeSet<String>>>;

fn gullible(belief: Belief, seen: Seen) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nodelay(true).unwrap();
            let seen = seen.clone();
            thread::spawn(move || {
                let mut server = Gullible { stream, buffer: Vec::new(), belief };
                while let Some((target, nonce)) = server.request() {
                    seen.lock().unwrap().insert(target);
                    let response =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{nonce}", nonce.len());
                    if server.stream.write_all(response.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

/// Sends a stream, says that this is all, and waits for what is answered.
fn attack(addr: SocketAddr, stream: &[u8], paused: bool) {
    let mut client = TcpStream::connect(addr).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head = stream.windows(4).position(|end| end == b"\r\n\r\n").map_or(stream.len() / 2, |at| at + 4);
    let (before, after) = stream.split_at(if paused { head } else { 0 });
    let _ = client.write_all(before);
    if paused {
        thread::sleep(Duration::from_millis(20));
    }
    let _ = client.write_all(after);
    let _ = client.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = client.read_to_end(&mut answer) {
        assert!(error.kind() != std::io::ErrorKind::WouldBlock, "no end after {}", stream.escape_ascii());
    }
}

/// Asks for one nonce after the other, over connections that others use, too. Counts them.
fn honest(addr: SocketAddr, id: usize, stop: &AtomicBool) -> u64 {
    let mut client = TcpStream::connect(addr).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        count += 1;
        let nonce = format!("{id}.{count}");
        let text = format!("GET /honest HTTP/1.1\r\nHost: h\r\nX-Key: {count}\r\nX-Nonce: {nonce}\r\n\r\n");
        client.write_all(text.as_bytes()).unwrap();
        let expected = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{nonce}", nonce.len());
        let mut response = vec![0; expected.len()];
        client.read_exact(&mut response).unwrap();
        assert_eq!(String::from_utf8_lossy(&response), expected);
    }
    count
}

/// Sends streams through a router to gullible servers, in two pieces with a pause between if that is asked for. Returns how many
/// targets servers saw, and how many honest requests were answered meanwhile.
fn besiege(mut streams: Vec<Vec<u8>>, paused: bool) -> (usize, u64) {
    let seen = Seen::default();
    let servers: Vec<String> =
        BELIEFS.iter().map(|belief| format!("\"{}\"", gullible(*belief, seen.clone()))).collect();
    let config = format!(
        "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\nkey = \"header:x-key\"\nno_key = \"partition:0\"\n\
         updates = \"any\"\n[service.pmap]\nstyle = \"slots\"\npartitions = 1\n[[service.racs]]\nname = \"r\"\nservers = [{}]\n",
        servers.join(", ")
    );
    let config = Config::parse(&config, "r.toml".as_ref(), Surroundings::default()).unwrap();
    let mut limits = Limits::default();
    limits.response = Duration::from_millis(1500);
    limits.stall = Duration::from_millis(500);
    let router = router::start(&config, Options::new().workers(1).limits(limits)).unwrap();
    let addr = router.serving()[0].listen;

    // What is smuggled tells which stream it came in, in as many characters.
    let mut allowed: BTreeSet<String> = ["/honest"].map(String::from).into();
    for (n, stream) in streams.iter_mut().enumerate() {
        while let Some(at) = stream.windows(9).position(|text| text == b"/smuggled") {
            stream[at..at + 9].copy_from_slice(format!("/s{n:07}").as_bytes());
        }
        allowed.extend(Reading::of(stream).requests().map(|request| request.target.clone()));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|id| {
            let stop = stop.clone();
            thread::spawn(move || honest(addr, id, &stop))
        })
        .collect();
    thread::scope(|scope| {
        for part in streams.chunks(streams.len().div_ceil(8)) {
            scope.spawn(move || part.iter().for_each(|stream| attack(addr, stream, paused)));
        }
    });
    stop.store(true, Ordering::SeqCst);
    let honest: u64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let seen = seen.lock().unwrap();
    let smuggled: Vec<&String> = seen.iter().filter(|target| !allowed.contains(*target)).collect();
    let text = |target: &String| {
        let stream =
            target.strip_prefix("/s").and_then(|n| n.parse::<usize>().ok()).and_then(|n| streams.get(n));
        stream.map(|stream| stream.escape_ascii().to_string())
    };
    let streams_of: Vec<_> = smuggled.iter().take(3).map(|target| text(target)).collect();
    assert!(smuggled.is_empty(), "{smuggled:?}: {streams_of:#?}");
    router.shutdown(Duration::ZERO);
    (seen.len(), honest)
}

#[test]
fn no_server_sees_a_request_that_the_router_did_not_see() {
    let mut rng = Rng::seeded(11);
    let mut streams: Vec<Vec<u8>> = payloads::classics().into_iter().step_by(3).collect();
    streams.extend((0..1000).map(|_| payloads::draw(&mut rng)));
    let count = streams.len();
    let (seen, honest) = besiege(streams, false);
    println!("{count} streams, {seen} targets seen, {honest} honest requests");
    assert!(seen > 100 && honest > 1000, "the test must have tested something");
}

/// What public collections consist of, [made anew](conformance::families::COVERED): smuggler, http-request-smuggler, HTTP Garden,
/// llhttp, h1spec. Large families are sampled; of all of them other parsers read what goes on in `cargo run --release -p conformance -- --families`.
#[test]
fn no_family_of_known_payloads_smuggles_anything() {
    for (collection, what, families) in COVERED {
        for family in families {
            assert!(
                FAMILIES.iter().any(|known| known.name == *family),
                "{collection}, {what}: no {family:?}"
            );
        }
        assert!(!families.is_empty());
    }
    let mut streams = Vec::new();
    for family in FAMILIES {
        let all = (family.streams)();
        let (count, step) = (all.len(), all.len() / 1000 + 1);
        println!("{}: {count} streams, one in {step}", family.name);
        assert!(count >= 50, "{}", family.name);
        assert!(COVERED.iter().any(|(.., families)| families.contains(&family.name)), "{}", family.name);
        // An odd step, so that no kind of body is left out.
        streams.extend(all.into_iter().step_by(step | 1));
    }
    let count = streams.len();
    let (seen, honest) = besiege(streams, false);
    println!("{count} streams, {seen} targets seen, {honest} honest requests");
    assert!(seen > 100 && honest > 300, "the test must have tested something");
}

#[test]
fn nor_do_those_that_pause_in_the_middle() {
    let mut streams: Vec<Vec<u8>> =
        FAMILIES.iter().flat_map(|family| (family.streams)().into_iter().step_by(97)).collect();
    streams.truncate(400);
    let (seen, honest) = besiege(streams, true);
    assert!(seen > 5 && honest > 100, "the test must have tested something: {seen}, {honest}");
}

#[test]
fn a_proxy_that_passes_everything_on_would_be_found() {
    // Gullible servers, asked without a router between: each sees requests that the router's parser does not.
    let seen = Seen::default();
    let servers: Vec<SocketAddr> = BELIEFS.iter().map(|belief| gullible(*belief, seen.clone())).collect();
    let mut fooled = BTreeSet::new();
    for family in FAMILIES {
        for stream in (family.streams)().into_iter().step_by(41) {
            let read: BTreeSet<String> =
                Reading::of(&stream).requests().map(|request| request.target.clone()).collect();
            for server in &servers {
                seen.lock().unwrap().clear();
                attack(*server, &stream, false);
                if seen.lock().unwrap().iter().any(|target| target == "/smuggled" && !read.contains(target)) {
                    fooled.insert(family.name);
                }
            }
        }
    }
    println!("{} of {} families fool a server: {fooled:?}", fooled.len(), FAMILIES.len());
    assert!(fooled.len() >= 10, "{fooled:?}");
}
