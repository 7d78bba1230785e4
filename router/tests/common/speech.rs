//! The same questions in every protocol: servers that answer with their name and the key that was asked for, so that an
//! answer that reaches the wrong client is seen.

use std::{io::Read, net::SocketAddr};

use rmpv::Value;

use super::{Client, FakeServer, Peer, post, service};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speech {
    Http,
    Redis,
    Memcached,
    Frames,
}

use Speech::{Frames, Http, Memcached, Redis};

/// All of them.
pub const ALL: [Speech; 4] = [Http, Redis, Memcached, Frames];

fn framed(value: &Value) -> Vec<u8> {
    let mut message = Vec::new();
    rmpv::encode::write_value(&mut message, value).unwrap();
    [&u32::try_from(message.len()).unwrap().to_be_bytes(), &message[..]].concat()
}

fn read_frame(reader: &mut impl Read) -> Option<Vec<Value>> {
    let mut len = [0; 4];
    reader.read_exact(&mut len).ok()?;
    let mut message = vec![0; u32::from_be_bytes(len) as usize];
    reader.read_exact(&mut message).ok()?;
    let value = rmpv::decode::read_value(&mut &message[..]).unwrap();
    let Value::Array(list) = value else { panic!("{value}") };
    Some(list)
}

impl Speech {
    fn header(self, more: &str) -> (&'static str, String) {
        let (name, own) = match self {
            Http => ("http", "key = \"header:x-key\"\n"),
            Redis => ("redis", ""),
            Memcached => ("memcached", ""),
            Frames => ("frames", "key = \"msgpack:/params/0\"\nread_methods = [\"get\"]\n"),
        };
        (name, format!("{own}{more}"))
    }

    pub fn config(self, more: &str, racs: &[&[SocketAddr]]) -> String {
        let (name, more) = self.header(more);
        service(name, &more, racs)
    }

    pub fn grouped(self, more: &str) -> String {
        let (name, more) = self.header(more);
        super::grouped(name, &more)
    }

    /// Answers reads and updates with its own name and the key, each after `pause`.
    pub fn server(self, name: &'static str, pause: impl Fn() + Send + Sync + 'static) -> FakeServer {
        FakeServer::start(move |peer| {
            while let Some((id, is_read, key)) = self.asked(peer) {
                pause();
                let text = format!("{name}:{key}");
                match (self, is_read) {
                    (Http, _) => peer.respond(&text),
                    (Redis, _) => peer.send(&format!("${}\r\n{text}\r\n", text.len())),
                    (Memcached, true) => {
                        peer.send(&format!("VALUE {key} 0 {}\r\n{text}\r\nEND\r\n", text.len()));
                    }
                    (Memcached, false) => peer.send("STORED\r\n"),
                    (Frames, _) => {
                        let answer = vec![1.into(), id.into(), Value::Nil, text.into()];
                        peer.send_bytes(&framed(&Value::Array(answer)));
                    }
                }
            }
        })
    }

    /// The next question: its id, whether it is a read, and the key.
    fn asked(self, peer: &mut Peer) -> Option<(u64, bool, String)> {
        match self {
            Http => {
                let head = peer.request()?.head;
                let key = head.split(['/', ' ']).nth(2).unwrap().to_owned();
                Some((0, head.starts_with("GET"), key))
            }
            Redis => peer.command().map(|args| (0, args[0] == "GET", args[1].clone())),
            Memcached => {
                let text = peer.text()?;
                Some((0, text.starts_with("get"), text.split(' ').nth(1).unwrap().to_owned()))
            }
            Frames => {
                let list = read_frame(&mut peer.reader)?;
                let [_, id, method, params, ..] = &list[..] else { panic!("{list:?}") };
                let (method, key) = (method.as_str().unwrap(), params[0].as_str().unwrap());
                peer.note(format!("{method} {key}"));
                Some((id.as_u64().unwrap(), method == "get", key.to_owned()))
            }
        }
    }

    /// Asks, and takes the answer.
    pub fn ask(self, client: &mut Client, read: bool, key: &str) -> String {
        match self {
            Http => {
                client.send(match read {
                    true => format!("GET /{key} HTTP/1.1\r\nHost: h\r\nX-Key: {key}\r\n\r\n"),
                    false => post(key, "v").replace("/x", &format!("/{key}")),
                });
                let response = client.response();
                match response.status {
                    200 => response.body,
                    status => format!("{status} {:?} {}", response.field("retry-after"), response.body),
                }
            }
            Redis if read => client.command(&["GET", key]),
            Redis => client.command(&["SET", key, "v"]),
            Memcached if read => client.ask(&format!("get {key}\r\n")),
            Memcached => client.ask(&format!("set {key} 0 0 1\r\nv\r\n")),
            Frames => {
                let method = if read { "get" } else { "set" };
                let params = Value::Array(vec![key.into()]);
                client.send(framed(&Value::Array(vec![0.into(), 7.into(), method.into(), params])));
                let list = read_frame(&mut client.reader).expect("an answer");
                assert_eq!(list[1].as_u64(), Some(7));
                if list[2].is_nil() { list[3].as_str().unwrap().into() } else { list[2].to_string() }
            }
        }
    }

    /// Who answered a question about `key`; `None` if it was the router itself.
    pub fn answered(self, reply: &str, key: &str) -> Option<String> {
        let text = match self {
            _ if reply.contains("phalanx") || self == Http && reply.contains("\"retry\"") => return None,
            // An update's answer says no more.
            Memcached if reply == "STORED\r\n" => return Some("?".into()),
            Redis | Memcached => reply.lines().nth(1),
            Http | Frames => reply.lines().next(),
        };
        match text.and_then(|text| text.split_once(':')) {
            Some((name, asked)) if asked == key => Some(name.into()),
            _ => panic!("{self:?}: {reply:?} is no answer about {key}"),
        }
    }

    /// Who answered a question about `key`: a server.
    pub fn whose(self, reply: &str, key: &str) -> String {
        self.answered(reply, key).unwrap_or_else(|| panic!("{self:?}: {reply:?}"))
    }

    /// Whose answer to a read it is.
    pub fn read(self, client: &mut Client, key: &str) -> String {
        let reply = self.ask(client, true, key);
        self.whose(&reply, key)
    }
}
