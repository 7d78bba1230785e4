//! What the tests are made of: servers that do as they are told, clients that say exactly what they are
//! given.
#![allow(dead_code, clippy::unwrap_used, reason = "every test uses a part, and may panic")]

pub mod journal;
pub mod real;
pub mod speech;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub use ports::nobody;
use router::{CloneAt, Config, GroupClones, Limits, Options, RouterHandle, Surroundings};

/// Longer than anything in a test takes, shorter than a person's patience.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A server whose behaviour is a function of the connection.
pub struct FakeServer {
    pub addr: SocketAddr,
    /// Everything that was received, request by request or command by command.
    pub seen: Arc<Mutex<Vec<String>>>,
    pub connections: Arc<AtomicUsize>,
    live: Arc<Mutex<Option<Vec<TcpStream>>>>,
    acceptor: Option<thread::JoinHandle<()>>,
}

/// What a server's behaviour sees of one connection.
pub struct Peer {
    pub stream: TcpStream,
    pub reader: BufReader<TcpStream>,
    /// How many connections came before.
    pub number: usize,
    seen: Arc<Mutex<Vec<String>>>,
}

impl FakeServer {
    /// At an address that stays its own, also while it is down.
    pub fn start(behaviour: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        Self::start_at(nobody(), behaviour)
    }

    pub fn start_at(addr: SocketAddr, behaviour: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        let mut bound = TcpListener::bind(addr);
        eventually("the address is free", || {
            if bound.is_err() {
                bound = TcpListener::bind(addr);
            }
            bound.is_ok()
        });
        let listener = bound.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let live = Arc::new(Mutex::new(Some(Vec::new())));
        let behaviour = Arc::new(behaviour);
        let (seen2, connections2, live2) = (seen.clone(), connections.clone(), live.clone());
        let acceptor = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                match &mut *live2.lock().unwrap() {
                    Some(live) => live.push(stream.try_clone().unwrap()),
                    None => return,
                }
                let number = connections2.fetch_add(1, Ordering::SeqCst);
                let (behaviour, seen) = (behaviour.clone(), seen2.clone());
                thread::spawn(move || {
                    stream.set_nodelay(true).unwrap();
                    let reader = BufReader::new(stream.try_clone().unwrap());
                    let mut peer = Peer { stream, reader, number, seen };
                    behaviour(&mut peer);
                    let _ = peer.stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { addr, seen, connections, live, acceptor: Some(acceptor) }
    }

    /// Answers every request with its name and the request's body.
    pub fn echo(name: &'static str) -> Self {
        Self::start(move |peer| {
            while let Some(request) = peer.request() {
                peer.respond(&format!("{name}:{}", String::from_utf8_lossy(&request.body)));
            }
        })
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until it has a request for this path.
    pub fn await_request(&self, path: &str) {
        let asked = |head: &String| head.split(' ').nth(1) == Some(path);
        eventually("the request is at its server", || self.seen().iter().any(asked));
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Ends every connection at once, with RST if something is unread; new ones are welcome.
    pub fn cut(&self) {
        for stream in self.live.lock().unwrap().iter_mut().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// As if the process had been killed: no connections, no listener.
    pub fn kill(&mut self) {
        let live = self.live.lock().unwrap().take();
        let Some(acceptor) = self.acceptor.take() else { return };
        for stream in live.into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(self.addr); // wakes the acceptor, which ends and closes the listener
        acceptor.join().unwrap();
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
}

impl Peer {
    /// The next request, whole; `None` at the end of the connection.
    pub fn request(&mut self) -> Option<Request> {
        let head = self.head()?;
        let mut body = Received::default();
        body.read(&mut self.reader, &head, false)?;
        Some(Request { head, body: body.bytes, trailers: body.trailers })
    }

    /// The head of the next request.
    pub fn head(&mut self) -> Option<String> {
        let head = read_head(&mut self.reader)?;
        self.seen.lock().unwrap().push(head.clone());
        Some(head)
    }

    pub fn respond(&mut self, body: &str) {
        self.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }

    pub fn send(&mut self, text: &str) {
        let _ = self.stream.write_all(text.as_bytes());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Keeps in mind what was received, in whatever form.
    pub fn note(&self, what: String) {
        self.seen.lock().unwrap().push(what);
    }

    /// Ends the connection so that the other side sees a reset.
    pub fn reset(&mut self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        // The descriptor lives on in the reader and the server's list, so say it by shutting down with unread
        // input.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The next Redis command.
    pub fn command(&mut self) -> Option<Vec<String>> {
        let args = read_command(&mut self.reader)?;
        self.seen.lock().unwrap().push(args.join(" "));
        Some(args)
    }
}

impl Peer {
    /// The next memcached command: its line, with its data behind `|` if it has some.
    pub fn text(&mut self) -> Option<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
        let mut text = line.strip_suffix("\r\n")?.to_owned();
        let words: Vec<&str> = text.split(' ').collect();
        let data = match words[0] {
            "set" | "add" | "replace" | "append" | "prepend" | "cas" => words.get(4),
            "ms" => words.get(2),
            _ => None,
        };
        if let Some(len) = data {
            let mut data = vec![0; len.parse::<usize>().ok()? + 2];
            self.reader.read_exact(&mut data).ok()?;
            text = text + "|" + std::str::from_utf8(&data).ok()?.strip_suffix("\r\n")?;
        }
        self.seen.lock().unwrap().push(text.clone());
        Some(text)
    }
}

pub fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    loop {
        let from = head.len();
        if in_time(reader.read_line(&mut head))? == 0 {
            return None;
        }
        if &head[from..] == "\r\n" {
            return Some(head);
        }
    }
}

/// What was read; `None` if the connection broke. To hear nothing for so long is a failure of its own.
fn in_time<T>(read: std::io::Result<T>) -> Option<T> {
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("nothing came in {PATIENCE:?}")
        }
        other => other.ok(),
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// What came of a body: all of it, unless the connection broke.
#[derive(Default)]
pub struct Received {
    pub bytes: Vec<u8>,
    /// The lines behind the last chunk.
    pub trailers: String,
}

impl Received {
    /// Reads on until the body is whole; `None` if the connection breaks before.
    pub fn read(&mut self, reader: &mut impl BufRead, head: &str, until_close: bool) -> Option<()> {
        if field(head, "transfer-encoding").is_some() {
            while self.chunk(reader)? {}
            while in_time(reader.read_line(&mut self.trailers))? > 0 {
                if self.trailers == "\r\n" || self.trailers.ends_with("\r\n\r\n") {
                    self.trailers.truncate(self.trailers.len() - 2);
                    return Some(());
                }
            }
            return None;
        }
        if let Some(len) = field(head, "content-length") {
            return self.take(reader, len.parse().ok()?);
        }
        if until_close {
            in_time(reader.read_to_end(&mut self.bytes))?;
        }
        Some(())
    }

    /// Reads a chunk. False if it is the last one.
    fn chunk(&mut self, reader: &mut impl BufRead) -> Option<bool> {
        let mut line = String::new();
        in_time(reader.read_line(&mut line))?;
        let size = usize::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
        if size == 0 {
            return Some(false);
        }
        self.take(reader, size)?;
        in_time(reader.read_exact(&mut [0; 2]))?;
        Some(true)
    }

    fn take(&mut self, reader: &mut impl BufRead, len: usize) -> Option<()> {
        let got = in_time(reader.take(len as u64).read_to_end(&mut self.bytes))?;
        (got == len).then_some(())
    }
}

fn read_command(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
    let count = line.trim().strip_prefix('*')?.parse().ok()?;
    (0..count).map(|_| read_bulk(reader)).collect()
}

fn read_bulk(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
    let len: usize = line.trim().strip_prefix('$')?.parse().ok()?;
    let mut text = vec![0; len + 2];
    reader.read_exact(&mut text).ok()?;
    text.truncate(len);
    String::from_utf8(text).ok()
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
    pub trailers: String,
}

impl Response {
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// The response to a request of this method; `None` if the connection ends before it is whole.
pub fn read_response(reader: &mut impl BufRead, method: &str) -> Option<Response> {
    let head = read_head(reader)?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let bodiless = method == "HEAD" || status == 204 || status == 304 || status < 200;
    let mut body = Received::default();
    if !bodiless {
        body.read(reader, &head, true)?;
    }
    let (body, trailers) = (String::from_utf8(body.bytes).unwrap(), body.trailers);
    Some(Response { status, head, body, trailers })
}

/// A client that says exactly what it is given.
pub struct Client {
    pub stream: TcpStream,
    pub reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    pub fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    /// The next response; `None` if the connection ends before it is whole.
    pub fn try_response(&mut self) -> Option<Response> {
        self.try_response_to("GET")
    }

    pub fn try_response_to(&mut self, method: &str) -> Option<Response> {
        read_response(&mut self.reader, method)
    }

    pub fn response(&mut self) -> Response {
        self.try_response().expect("a response")
    }

    /// One request without body.
    pub fn get(&mut self, key: &str) -> Response {
        self.send(format!("GET /x HTTP/1.1\r\nHost: h\r\nX-Key: {key}\r\n\r\n"));
        self.response()
    }

    pub fn post(&mut self, key: &str, body: &str) -> Response {
        self.send(post(key, body));
        self.response()
    }

    /// Whether the other side has ended the connection, with nothing more to read.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.read(&mut [0]), Ok(0)) || self.was_reset()
    }

    /// Whether nothing has come that was not read yet, nor an end.
    pub fn has_nothing(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        let pending = peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        pending && self.reader.buffer().is_empty()
    }

    fn was_reset(&mut self) -> bool {
        self.stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    }

    /// The next Redis reply, as it came.
    pub fn reply(&mut self) -> String {
        self.try_reply().expect("a reply, not the end of the connection")
    }

    /// The next Redis reply; `None` if the connection ends before it is whole.
    pub fn try_reply(&mut self) -> Option<String> {
        let mut line = String::new();
        if in_time(self.reader.read_line(&mut line))? == 0 {
            return None;
        }
        let rest = &line.clone()[1..];
        let many = |client: &mut Self, count: usize, line: String| {
            (0..count).try_fold(line, |all: String, _| Some(all + &client.try_reply()?))
        };
        match line.as_bytes()[0] {
            b'$' | b'=' | b'!' if rest != "-1\r\n" => {
                let mut text = vec![0; rest.trim().parse::<usize>().unwrap() + 2];
                in_time(self.reader.read_exact(&mut text))?;
                Some(line + std::str::from_utf8(&text).unwrap())
            }
            b'%' => many(self, 2 * rest.trim().parse::<usize>().unwrap(), line),
            b'*' | b'~' | b'>' if rest != "-1\r\n" => many(self, rest.trim().parse().unwrap(), line),
            _ => Some(line),
        }
    }

    pub fn command(&mut self, args: &[&str]) -> String {
        self.send(command(args));
        self.reply()
    }

    /// The next line, with its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(in_time(self.reader.read_line(&mut line)).unwrap() > 0, "the connection ended, not a line");
        line
    }

    /// The next memcached reply, as it came.
    pub fn text(&mut self) -> String {
        let mut all = String::new();
        loop {
            let line = self.line();
            let words: Vec<&str> = line.trim().split(' ').collect();
            let data = match words[0] {
                "VALUE" => words.get(3),
                "VA" => words.get(1),
                _ => None,
            };
            all += &line;
            if let Some(len) = data {
                let mut data = vec![0; len.parse::<usize>().unwrap() + 2];
                self.reader.read_exact(&mut data).unwrap();
                all += std::str::from_utf8(&data).unwrap();
            }
            if !matches!(words[0], "VALUE" | "STAT") {
                return all;
            }
        }
    }

    /// Sends a memcached command and takes its reply.
    pub fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.text()
    }
}

pub fn post(key: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: h\r\nX-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

pub fn command(args: &[&str]) -> String {
    args.iter()
        .fold(format!("*{}\r\n", args.len()), |text, arg| text + &format!("${}\r\n{arg}\r\n", arg.len()))
}

/// A router under test; it ends with the test.
pub struct Router {
    pub handle: RouterHandle,
}

impl Drop for Router {
    fn drop(&mut self) {
        self.handle.shutdown(Duration::ZERO);
    }
}

impl Router {
    pub fn start(config: &str) -> Self {
        Self::with(config, 1, |_| {})
    }

    pub fn with(config: &str, workers: usize, adjust: impl FnOnce(&mut Limits)) -> Self {
        let surroundings = Surroundings { follows_groups: true, ..Surroundings::default() };
        let config = Config::parse(config, "test.toml".as_ref(), surroundings).unwrap();
        let mut limits = Limits::default();
        adjust(&mut limits);
        let handle = router::start(&config, Options::new().workers(workers).limits(limits)).unwrap();
        Self { handle }
    }

    pub fn addr(&self) -> SocketAddr {
        self.handle.serving()[0].listen
    }

    pub fn client(&self) -> Client {
        Client::connect(self.addr())
    }

    pub fn stats(&self) -> router::ServiceStats {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(self.handle.stats()).remove(0)
    }

    pub fn server_stats(&self, addr: SocketAddr) -> router::ServerStats {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let measured = runtime.block_on(self.handle.measured());
        measured.servers.into_iter().find(|server| server.addr == addr).unwrap()
    }

    /// Kills a server to which clients share a connection, and waits until the router has heard of that one's end.
    pub fn sees_the_end_of(&self, server: &mut FakeServer) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let tasks = || runtime.block_on(self.handle.measured()).tasks;
        let before = tasks();
        server.kill();
        eventually("the task of the shared connection ends", || tasks() < before);
    }
}

/// Holds it against no server that a busy machine makes it silent for a while: clients stay with it.
pub fn patient(limits: &mut Limits) {
    limits.hedge_after = PATIENCE;
}

/// A service with `key` in `X-Key`, 16 slots, and these RACS of static servers.
pub fn http(racs: &[&[SocketAddr]]) -> String {
    service("http", "key = \"header:x-key\"\nexpose = true", racs)
}

pub fn redis(racs: &[&[SocketAddr]]) -> String {
    service("redis", "", racs)
}

pub fn memcached(racs: &[&[SocketAddr]]) -> String {
    service("memcached", "", racs)
}

pub fn service(protocol: &str, more: &str, racs: &[&[SocketAddr]]) -> String {
    let mut text = header(protocol, more);
    for (at, servers) in racs.iter().enumerate() {
        let list: Vec<String> = servers.iter().map(|addr| format!("\"{addr}\"")).collect();
        text += &format!("[[service.racs]]\nname = \"r{at}\"\nservers = [{}]\n", list.join(", "));
    }
    text
}

/// A service whose only RACS follows the group `g`.
pub fn grouped(protocol: &str, more: &str) -> String {
    header(protocol, more) + "[[service.racs]]\nname = \"r0\"\ngroup = \"g\"\n"
}

fn header(protocol: &str, more: &str) -> String {
    format!(
        "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"{protocol}\"\n{more}\n\
         [service.pmap]\nstyle = \"slots\"\npartitions = 16\n"
    )
}

pub fn view(epoch: u64, leader: Option<usize>, addrs: &[SocketAddr]) -> GroupClones {
    let clone = |(at, addr): (usize, &SocketAddr)| CloneAt::new(&format!("n{at}"), *addr);
    GroupClones { epoch, leader, clones: addrs.iter().enumerate().map(clone).collect() }
}

/// What several threads count.
pub struct Counts<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

impl<const N: usize> Counts<N> {
    pub fn add(&self, which: usize) {
        self.0[which].fetch_add(1, Ordering::SeqCst);
    }

    pub fn get(&self) -> [u64; N] {
        self.0.each_ref().map(|count| count.load(Ordering::SeqCst))
    }
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Lets what was begun go on for so long, and on a busy machine until it has come to something.
pub fn for_at_least(time: Duration, come_to_something: impl Fn() -> bool) {
    thread::sleep(time);
    let start = Instant::now();
    while !come_to_something() && start.elapsed() < 6 * PATIENCE {
        thread::sleep(Duration::from_millis(50));
    }
}

/// Does what has to be quick three times and more, each of which says how long it took: one of them must be within `limit`.
/// A busy machine is slow now and then; a router that is slow is so each time.
pub fn once_within(limit: Duration, mut what: impl FnMut() -> Duration) {
    let (start, mut took) = (Instant::now(), vec![]);
    while took.len() < 3 || start.elapsed() < PATIENCE {
        let time = what();
        if time < limit {
            return;
        }
        took.push(time);
    }
    panic!("never within {limit:?}: {took:?}");
}

/// An address at which connections are neither made nor refused, as if its machine had lost power; for as
/// long as what comes with it is kept.
pub fn black_hole() -> (SocketAddr, impl Drop) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap().as_socket().unwrap();
    // Once its queue is full the kernel drops what comes.
    let mut queued = vec![];
    while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
        queued.push(stream);
    }
    (addr, Held { _listener: listener, _queued: queued })
}

struct Held {
    _listener: socket2::Socket,
    _queued: Vec<TcpStream>,
}

impl Drop for Held {
    fn drop(&mut self) {}
}
