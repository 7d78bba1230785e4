//! In steady state a request costs no allocation: a budget that is easily lost and hard to find again.
//!
//! One test, alone in its process: the count is the process's, and while it runs nobody else may allocate.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use common::Router;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it is; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A server that answers every so many bytes with the same bytes, without allocating.
fn server(request_len: usize, response: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let mut buffer = vec![0; request_len];
                while stream.read_exact(&mut buffer).is_ok() && stream.write_all(response).is_ok() {}
            });
        }
    });
    addr
}

/// A server of memcached that has nothing: answers every line with `END`, without allocating.
fn empty() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    for _ in buffer[..len].iter().filter(|&&byte| byte == b'\n') {
                        let _ = stream.write_all(b"END\r\n");
                    }
                }
            });
        }
    });
    addr
}

/// Sends the same bytes again and again and takes the same bytes back; returns how many allocations that
/// cost.
fn allocations(router: &Router, request: &[u8], response_len: usize, rounds: usize) -> u64 {
    let mut client = TcpStream::connect(router.addr()).unwrap();
    client.set_nodelay(true).unwrap();
    let mut buffer = vec![0; response_len];
    let mut run = |rounds| {
        for _ in 0..rounds {
            client.write_all(request).unwrap();
            client.read_exact(&mut buffer).unwrap();
        }
    };
    run(200);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    run(rounds);
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn a_request_in_steady_state_allocates_nothing() {
    const ROUNDS: usize = 2_000;
    // Timers, sweeps and the like may allocate now and then, whatever the requests do.
    const STRAY: u64 = 20;

    let request = b"GET /item HTTP/1.1\r\nHost: h\r\nX-Key: abc\r\nAccept: */*\r\n\r\n";
    let response = b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 5\r\n\r\nhello";
    let addr = server(request.len(), response);
    let plain = Router::start(&common::service("http", "key = \"header:x-key\"", &[&[addr]]));
    let http = allocations(&plain, request, response.len(), ROUNDS);

    let shared = common::service("http", "key = \"header:x-key\"", &[&[addr]]);
    let sharing = Router::with(&shared.replace("\nservers", "\npipeline = 8\nservers"), 1, |limits| {
        limits.hedge_after = common::PATIENCE; // what a crowded machine does to servers is not measured here
    });
    let shared = allocations(&sharing, request, response.len(), ROUNDS);

    let exposing = Router::start(&common::http(&[&[addr]]));
    let lines = format!("x-phalanx-partition: 7\r\nx-phalanx-epoch: 1\r\nx-phalanx-server: {addr}\r\n");
    let exposed_len = response.len() + lines.len();
    let exposed = allocations(&exposing, request, exposed_len, ROUNDS);

    // Ids are of the same length, whatever they are.
    let ids = format!("traceparent: {0:055}\r\nX-Request-Id: {0:032}\r\n", 0);
    let addr = server(request.len() + ids.len(), response);
    let tracing =
        Router::start(&common::service("http", "key = \"header:x-key\"\ntrace = \"0%\"", &[&[addr]]));
    let traced = allocations(&tracing, request, response.len(), ROUNDS);

    let post = b"POST /item HTTP/1.1\r\nHost: h\r\nX-Key: abc\r\nContent-Length: 5\r\n\r\nhello";
    let addr = server(post.len(), response);
    let posting = Router::start(&common::service("http", "key = \"header:x-key\"", &[&[addr]]));
    let posted = allocations(&posting, post, response.len(), ROUNDS);

    let json =
        b"POST /item HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n\
        {\"x\":[1],\"id\":\"a\\u0062\"}";
    let addr = server(json.len(), response);
    let reading = Router::start(&common::service("http", "key = \"json:/id\"", &[&[addr]]));
    let read = allocations(&reading, json, response.len(), ROUNDS);

    let ask =
        |cookie: &str| format!("GET /?id=a%62 HTTP/1.1\r\nHost: h\r\nCookie: phalanx-s={cookie:016}\r\n\r\n");
    let addr = server(ask("").len(), response);
    let sticky =
        Router::start(&common::service("http", "key = \"query:id\"\nreads = \"sticky\"", &[&[addr]]));
    let mut client = sticky.client();
    client.send(ask(""));
    let placed = client.response();
    let cookie =
        placed.field("set-cookie").unwrap()["phalanx-s=".len()..].split(';').next().unwrap().to_owned();
    let stuck = allocations(&sticky, ask(&cookie).as_bytes(), response.len(), ROUNDS);

    let get = common::command(&["GET", "some:key"]);
    let addr = server(get.len(), b"$5\r\nhello\r\n");
    let redis = Router::start(&common::redis(&[&[addr]]));
    let batch = get.repeat(32);
    let commands = allocations(&redis, batch.as_bytes(), 32 * 11, ROUNDS);

    let get = b"get some:key\r\n";
    let reply = b"VALUE some:key 0 5\r\nhello\r\nEND\r\n";
    let memcached = Router::start(&common::memcached(&[&[server(get.len(), reply)]]));
    let gets = allocations(&memcached, &get.repeat(32), 32 * reply.len(), ROUNDS);
    // Split over three servers and put together again.
    let memcached = Router::start(&common::memcached(&[&[empty()], &[empty()], &[empty()]]));
    let many = b"get a b c d e f g h i j\r\n";
    let many = allocations(&memcached, many, b"END\r\n".len(), ROUNDS);

    println!(
        "allocations in {ROUNDS} rounds: http {http}, on a shared connection {shared}, exposed {exposed}, traced {traced}, post {posted}, \
         key in the body {read}, sticky {stuck}, redis {commands}, memcached {gets}, of many keys {many}"
    );
    assert!(http <= STRAY && exposed <= STRAY && traced <= STRAY && posted <= STRAY && commands <= STRAY);
    assert!(shared <= STRAY && read <= STRAY && stuck <= STRAY && gets <= STRAY && many <= STRAY);
}
