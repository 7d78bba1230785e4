//! Who sends without end to somebody who does not read is held up: the router keeps a little, and the rest waits in the
//! kernel's buffers, whose size is bounded there.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use common::*;

/// More than all kernel buffers on the way can hold, by far.
const ENDLESS: u64 = 96 << 20;
/// What the router may keep.
const KEPT: u64 = 1 << 20;
/// A length that nobody will ever reach.
const LENGTH: u64 = 1 << 40;

/// Writes until nobody takes anything any more. Returns how much was taken.
fn write_on(stream: &mut TcpStream) -> u64 {
    stream.set_nonblocking(true).unwrap();
    let (piece, mut taken, mut tries) = ([b'x'; 64 << 10], 0, 0);
    while tries < 40 {
        match stream.write(&piece) {
            Ok(len) => (taken, tries) = (taken + len as u64, 0),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                tries += 1;
                thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(taken < ENDLESS, "there is no end to what is taken");
    }
    stream.set_nonblocking(false).unwrap();
    taken
}

/// What the kernel has in its buffers of all connections from and to these addresses.
fn in_the_kernel(addrs: [SocketAddr; 2]) -> u64 {
    let written = addrs.map(|addr| match addr {
        SocketAddr::V4(addr) => {
            format!("{:08X}:{:04X}", u32::from_ne_bytes(addr.ip().octets()), addr.port())
        }
        SocketAddr::V6(_) => unreachable!("{addr}"),
    });
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let mut sum = 0;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if written.iter().any(|addr| fields[1..3].contains(&addr.as_str())) {
            let (sending, received) = fields[4].split_once(':').unwrap();
            sum += hex(sending) + hex(received);
        }
    }
    sum
}

/// Has one side of a connection through a router write, and looks at what the router has of it.
struct Way {
    router: Router,
    server: FakeServer,
    /// The server's side of the connection.
    accepted: mpsc::Receiver<TcpStream>,
}

impl Way {
    /// The server reads a head if there is one, answers with this, and neither reads nor writes from there on.
    fn new(config: impl Fn(SocketAddr) -> String, head: bool, answer: &'static str) -> Self {
        let (sender, accepted) = mpsc::channel();
        let server = FakeServer::start(move |peer| {
            if head && peer.head().is_none() {
                return;
            }
            peer.send(answer);
            sender.send(peer.stream.try_clone().unwrap()).unwrap();
            while !peer.stream.peek(&mut [0]).is_ok_and(|len| len == 0) {
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { router: Router::start(&config(server.addr)), server, accepted }
    }

    /// A client that has said this, and the server's side of its connection.
    fn connect(&self, say: &str) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(self.router.addr()).unwrap();
        client.write_all(say.as_bytes()).unwrap();
        (client, self.accepted.recv_timeout(PATIENCE).unwrap())
    }

    /// One writes, the other one does not read, and then does.
    fn judge(&self, what: &str, client: SocketAddr, writer: &mut TcpStream, reader: &mut TcpStream) {
        let taken = write_on(writer);
        eventually("what is taken is in the kernel", || {
            let kept = taken.saturating_sub(in_the_kernel([client, self.server.addr]));
            println!("{what}: of {taken} bytes that are taken the router keeps {kept}");
            kept < KEPT
        });
        reader.set_read_timeout(Some(PATIENCE)).unwrap();
        let read = std::io::copy(&mut reader.take(taken), &mut std::io::sink()).unwrap();
        assert_eq!(read, taken, "{what}: nothing of it is lost");
    }

    fn upwards(&self, what: &str, say: &str) {
        let (mut client, mut server) = self.connect(say);
        let addr = client.local_addr().unwrap();
        self.judge(what, addr, &mut client, &mut server);
    }

    fn downwards(&self, what: &str, say: &str) {
        let (mut client, mut server) = self.connect(say);
        let addr = client.local_addr().unwrap();
        self.judge(what, addr, &mut server, &mut client);
    }
}

const GET: &str = "GET /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n";

fn post(framing: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n{framing}\r\n\r\n")
}

fn plain(server: SocketAddr) -> String {
    http(&[&[server]])
}

#[test]
fn a_body_for_a_server_that_does_not_read_waits_at_its_client() {
    let way = Way::new(plain, true, "");
    way.upwards("a body of a known length", &post(&format!("Content-Length: {LENGTH}")));
    let chunk = format!("Transfer-Encoding: chunked\r\n\r\n{LENGTH:x}");
    way.upwards("a chunk", &(post(&chunk).trim_end().to_owned() + "\r\n"));
}

#[test]
fn an_answer_for_a_client_that_does_not_read_waits_at_its_server() {
    let length = Way::new(plain, true, "HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n");
    length.downwards("an answer of a known length", GET);
    let chunked =
        Way::new(plain, true, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000\r\n");
    chunked.downwards("a chunk of an answer", GET);
    let until_close = Way::new(plain, true, "HTTP/1.1 200 OK\r\n\r\n");
    until_close.downwards("an answer that ends with its connection", GET);
}

#[test]
fn a_tunnel_waits_for_who_does_not_read() {
    let tcp = |server: SocketAddr| service("tcp", "key = \"source\"", &[&[server]]);
    Way::new(tcp, false, "").upwards("a tunnel to a server", "");
    Way::new(tcp, false, "").downwards("a tunnel to a client", "");
    let upgrade = GET.replace("\r\n\r\n", "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    Way::new(plain, true, agreed).upwards("an upgraded connection to a server", &upgrade);
    Way::new(plain, true, agreed).downwards("an upgraded connection to a client", &upgrade);
}
