//! Other parsers, each in a server that answers every request with what it read of it, in the field `X-Said`.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;

use crate::{
    Verdict,
    reading::{Part, Request},
};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Comes after the requests of a stream: who sees it has seen where each of them ended.
const END: &[u8] = b"GET /end HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

/// A server that says what it read.
#[derive(Debug)]
pub struct Peer {
    /// The parser's name.
    pub name: &'static str,
    /// Where it listens.
    pub addr: SocketAddr,
    _process: Option<Process>,
}

/// A process, with its files, that ends with this value.
#[derive(Debug)]
struct Process {
    child: Child,
    folder: Option<PathBuf>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(folder) = &self.folder {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// What a peer answered to a stream.
#[derive(Debug, Default)]
pub struct Answer {
    /// The requests that it read.
    pub read: Vec<Request>,
    /// The status with which it refused what came next.
    pub refused: Option<u16>,
    /// Whether it neither answered nor closed.
    pub hangs: bool,
    /// Whether it went on after it had refused something.
    pub goes_on: bool,
}

impl Answer {
    /// Compares it with what the router read.
    pub fn judge(&self, part: &Part) -> Verdict {
        let end = Request { method: "GET".into(), target: "/end".into(), body: Vec::new() };
        let expected: Vec<&Request> = part.requests.iter().chain((!part.last).then_some(&end)).collect();
        let same = self.read.len() <= expected.len()
            && self.read.iter().eq(expected[..self.read.len()].iter().copied());
        let whole = self.read.len() == expected.len();
        match (same, whole, self.refused) {
            _ if self.hangs || self.goes_on => Verdict::Other,
            (true, true, None) => Verdict::Same,
            (true, false, _) => Verdict::Stricter,
            _ => Verdict::Other,
        }
    }
}

impl Peer {
    /// Sends a stream on a connection of its own, and reads what is answered until the end.
    pub fn ask(&self, stream: &[u8], last: bool) -> Answer {
        let (text, hangs) = self.exchange(stream, last).unwrap_or_default();
        let mut answer = Answer { hangs, ..Answer::default() };
        let mut rest = &text[..];
        while let Some(len) = rest.windows(4).position(|end| end == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&rest[..len]).into_owned();
            rest = &rest[len + 4..];
            let field = |name: &str| {
                head.lines().find_map(|line| {
                    let (field, value) = line.split_once(':')?;
                    field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
                })
            };
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            if let Some(said) = field("x-said") {
                answer.goes_on |= answer.refused.is_some();
                answer.read.push(said_request(&said));
                continue;
            }
            answer.refused = Some(status);
            // Whatever it answers after that stands behind the text of its refusal.
            let next = rest.windows(9).position(|begins| begins == b"HTTP/1.1 ");
            rest = &rest[next.unwrap_or(rest.len())..];
        }
        answer
    }

    fn exchange(&self, stream: &[u8], last: bool) -> io::Result<(Vec<u8>, bool)> {
        let mut connection = TcpStream::connect(self.addr)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        // Who refuses a request may not read what follows.
        let _ = connection.write_all(&if last { stream.to_vec() } else { [stream, END].concat() });
        if last {
            connection.shutdown(Shutdown::Write)?;
        }
        let mut text = Vec::new();
        let read = connection.read_to_end(&mut text);
        Ok((text, read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)))
    }

    /// Waits until it serves.
    fn serves(self) -> Result<Self, String> {
        let started = Instant::now();
        while TcpStream::connect(self.addr).is_err() {
            if started.elapsed() > PATIENCE {
                return Err(format!("{} does not listen at {}", self.name, self.addr));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(self)
    }
}

fn said_request(said: &str) -> Request {
    let said: serde_json::Value = serde_json::from_str(said).expect("our servers speak JSON");
    let text = |name: &str| said[name].as_str().expect("a text").to_owned();
    let hex = text("body");
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("digits");
    let body = (0..hex.len()).step_by(2).map(digits).collect();
    Request { method: text("method"), target: text("target"), body }
}

/// All peers that this machine has, and why the others are missing.
pub fn start() -> (Vec<Peer>, Vec<String>) {
    // Behind the proxies stands who refuses least: what a proxy passes on and a server refuses says nothing of the proxy.
    let behind = script("h11", "/usr/bin/python3", "h11_server.py", "").and_then(Peer::serves);
    let addr = behind.as_ref().map(|behind| behind.addr).map_err(Clone::clone);
    let others = [
        behind,
        script("node", "node", "node_server.js", ""),
        script("node, lenient", "node", "node_server.js", "lenient"),
        addr.clone().and_then(nginx),
        addr.and_then(haproxy),
    ];
    let (mut peers, mut missing) = (vec![hyper()], Vec::new());
    for peer in others {
        match peer.and_then(Peer::serves) {
            Ok(peer) => peers.push(peer),
            Err(why) => missing.push(why),
        }
    }
    (peers, missing)
}

/// hyper, in this process.
fn hyper() -> Peer {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        runtime.expect("a runtime").block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            sender.send(listener.local_addr().expect("it is bound")).expect("somebody waits for it");
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(describe);
                tokio::task::spawn_local(async move {
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.half_close(true).header_read_timeout(None);
                    // A client that breaks off is no news.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    });
    let addr = receiver.recv().expect("hyper listens");
    Peer { name: "hyper", addr, _process: None }
}

async fn describe(request: hyper::Request<Incoming>) -> Result<Response<Empty<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
    let said =
        serde_json::json!({ "method": head.method.as_str(), "target": head.uri.to_string(), "body": hex });
    let response = Response::builder().header("x-said", said.to_string()).body(Empty::new());
    Ok(response.expect("JSON is a field's value"))
}

fn spawn(name: &str, mut command: Command) -> Result<Child, String> {
    command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{name} cannot be started: {error}"))
}

/// A server in `peers/` that says its port first.
fn script(name: &'static str, program: &str, file: &str, arg: &str) -> Result<Peer, String> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "peers", file].iter().collect();
    let mut command = Command::new(program);
    command.arg(path).arg(arg).stdout(Stdio::piped());
    let mut child = spawn(name, command)?;
    let out = child.stdout.take();
    let process = Some(Process { child, folder: None });
    let mut line = String::new();
    if let Some(out) = out {
        let _ = BufReader::new(out).read_line(&mut line);
    }
    let port: u16 = line.trim().parse().map_err(|_| format!("{name} ends at once: is it installed?"))?;
    Ok(Peer { name, addr: ([127, 0, 0, 1], port).into(), _process: process })
}

/// A folder for a peer's configuration, and a port that is free.
fn place(name: &str) -> Result<(PathBuf, SocketAddr), String> {
    let addr = ports::nobody();
    let folder = env::temp_dir().join(format!("conformance-{name}-{}-{}", std::process::id(), addr.port()));
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    Ok((folder, addr))
}

fn proxy(
    name: &'static str,
    folder: PathBuf,
    addr: SocketAddr,
    text: String,
    args: &[&str],
) -> Result<Peer, String> {
    let config = folder.join("config");
    fs::write(&config, text).map_err(|error| error.to_string())?;
    let program = ["/usr/sbin", name].iter().collect::<PathBuf>();
    let mut command = Command::new(program);
    command.args(args).arg(&config).stdout(Stdio::null());
    let child = spawn(name, command)?;
    Ok(Peer { name, addr, _process: Some(Process { child, folder: Some(folder) }) })
}

fn nginx(behind: SocketAddr) -> Result<Peer, String> {
    let (folder, addr) = place("nginx")?;
    let dir = folder.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
        .collect();
    let text = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log /dev/null;\nevents {{}}\nhttp {{\naccess_log off;\n{temp}\
         large_client_header_buffers 8 64k; keepalive_requests 100000;\nserver {{ listen {addr};\nlocation / {{\n\
         proxy_pass http://{behind}; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host h;\n\
         proxy_buffer_size 32k; proxy_buffers 8 32k; proxy_ignore_client_abort on;\n}} }} }}\n"
    );
    proxy("nginx", folder, addr, text, &["-c"])
}

fn haproxy(behind: SocketAddr) -> Result<Peer, String> {
    let (folder, addr) = place("haproxy")?;
    let text = format!(
        "global\n  maxconn 100\n  tune.bufsize 65536\n  nbthread 1\ndefaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  timeout connect 5s\n\
         frontend f\n  bind {addr}\n  default_backend b\nbackend b\n  server s {behind}\n"
    );
    proxy("haproxy", folder, addr, text, &["-db", "-q", "-f"])
}
