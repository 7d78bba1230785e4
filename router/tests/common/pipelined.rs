//! Services whose servers' connections clients share, and clients who check that they get their own answers.
#![allow(dead_code, reason = "every test uses a part")]

use std::{io::Write, net::SocketAddr, thread};

use crate::common::*;

/// A service whose RACS pipeline up to `most` requests.
pub fn pipelined(most: usize, more: &str, racs: &[&[SocketAddr]]) -> String {
    let text = service("http", &format!("key = \"header:x-key\"\n{more}"), racs);
    text.replace("\nservers", &format!("\npipeline = {most}\nservers"))
}

/// A router that takes no server for hung, however crowded this machine is.
pub fn unhurried(config: &str) -> Router {
    Router::with(config, 1, |limits| limits.hedge_after = PATIENCE)
}

pub fn request(method: &str, nonce: &str) -> String {
    format!("{method} /{nonce} HTTP/1.1\r\nHost: h\r\nX-Key: {nonce}\r\n\r\n")
}

/// The nonce in a request's target, and its method.
pub fn asked(head: &str) -> (&str, &str) {
    let mut words = head.split(' ');
    (words.next().unwrap(), words.next().unwrap().strip_prefix('/').unwrap())
}

/// What an honest server answers.
pub fn answer(head: &str) -> String {
    let (method, nonce) = asked(head);
    let body = if method == "HEAD" { "" } else { nonce };
    format!("HTTP/1.1 200 OK\r\nX-Nonce: {nonce}\r\nContent-Length: {}\r\n\r\n{body}", nonce.len())
}

pub fn honest() -> FakeServer {
    honest_at(nobody())
}

pub fn honest_at(addr: SocketAddr) -> FakeServer {
    FakeServer::start_at(addr, |peer| {
        while let Some(request) = peer.request() {
            peer.send(&answer(&request.head));
        }
    })
}

/// Sends a request and takes its answer, which must be its own; `None` if the connection ends before.
pub fn try_ask(client: &mut Client, method: &str, nonce: &str) -> Option<Response> {
    client.stream.write_all(request(method, nonce).as_bytes()).ok()?;
    let response = client.try_response_to(method)?;
    if response.status == 200 {
        assert_eq!(response.field("x-nonce"), Some(nonce), "an answer to another request");
        assert!(method == "HEAD" || response.body.ends_with(nonce), "{}", response.body);
    }
    Some(response)
}

pub fn ask(client: &mut Client, nonce: &str) -> Response {
    try_ask(client, "GET", nonce).expect("an answer")
}

/// Asks from so many clients at once, so many times each, and gives the answers that were not 200.
pub fn ask_all(router: &Router, clients: usize, times: usize) -> Vec<Response> {
    thread::scope(|scope| {
        let each = |id| {
            let mut client = router.client();
            let mut odd = vec![];
            for n in 0..times {
                let response = ask(&mut client, &format!("{id}-{n}"));
                if response.status != 200 {
                    odd.push(response);
                }
            }
            odd
        };
        let threads: Vec<_> = (0..clients).map(|id| scope.spawn(move || each(id))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// A body that names its request from end to end.
pub fn large(nonce: &str, len: usize) -> String {
    let mut body = format!("{nonce} ").repeat(len / (nonce.len() + 1) + 1);
    body.truncate(len);
    body
}
