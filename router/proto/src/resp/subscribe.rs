//! Channels: what a client has subscribed to, and what servers say about it.

use alloc::{boxed::Box, collections::BTreeSet, vec::Vec};

use super::{Channels, Proto, push_bulk, push_header, split::Elements};

/// What a client has subscribed to.
#[derive(Clone, Debug, Default)]
pub struct Subscriptions {
    plain: BTreeSet<Box<[u8]>>,
    patterns: BTreeSet<Box<[u8]>>,
    shard: BTreeSet<Box<[u8]>>,
    bytes: usize,
}

/// What keeping a name costs besides its bytes, about.
const OVERHEAD: usize = 64;

impl Subscriptions {
    fn of(&mut self, channels: Channels) -> &mut BTreeSet<Box<[u8]>> {
        match channels {
            Channels::Plain => &mut self.plain,
            Channels::Pattern => &mut self.patterns,
            Channels::Shard => &mut self.shard,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.patterns.is_empty() && self.shard.is_empty()
    }

    /// What keeping them costs, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All names of one kind.
    pub fn names(&mut self, channels: Channels) -> Vec<Box<[u8]>> {
        self.of(channels).iter().cloned().collect()
    }

    /// Adds a name or takes it out. Returns whether that changed anything.
    pub fn set(&mut self, channels: Channels, name: &[u8], on: bool) -> bool {
        let cost = name.len() + OVERHEAD;
        let changed = if on { self.of(channels).insert(name.into()) } else { self.of(channels).remove(name) };
        match (changed, on) {
            (true, true) => self.bytes += cost,
            (true, false) => self.bytes -= cost,
            (false, _) => {}
        }
        changed
    }

    /// How many a client is told that it has, when it is told of this kind.
    pub fn count(&self, channels: Channels) -> u64 {
        (match channels {
            Channels::Plain | Channels::Pattern => self.plain.len() + self.patterns.len(),
            Channels::Shard => self.shard.len(),
        }) as u64
    }

    /// Appends what a client is told once this name was added or taken out; `None` where it had nothing to take
    /// out.
    pub fn confirm(
        &self,
        channels: Channels,
        on: bool,
        name: Option<&[u8]>,
        proto: Proto,
        out: &mut Vec<u8>,
    ) {
        push_header(out, if proto == Proto::Resp3 { b'>' } else { b'*' }, 3);
        push_bulk(out, word(channels, on).as_bytes());
        match name {
            Some(name) => push_bulk(out, name),
            None => proto.push_null(out),
        }
        push_header(out, b':', self.count(channels));
    }
}

/// The command, which is also the first word of its confirmation.
fn word(channels: Channels, on: bool) -> &'static str {
    match (channels, on) {
        (Channels::Plain, true) => "subscribe",
        (Channels::Plain, false) => "unsubscribe",
        (Channels::Pattern, true) => "psubscribe",
        (Channels::Pattern, false) => "punsubscribe",
        (Channels::Shard, true) => "ssubscribe",
        (Channels::Shard, false) => "sunsubscribe",
    }
}

/// Appends the command that subscribes to one channel, or ends that.
pub fn push_subscribe(channels: Channels, on: bool, name: &[u8], out: &mut Vec<u8>) {
    push_header(out, b'*', 2);
    push_bulk(out, word(channels, on).as_bytes());
    push_bulk(out, name);
}

/// What a server says on a connection that has subscribed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message: for the client, as it is.
    Message,
    /// The answer to the oldest command without one.
    Confirmed,
    /// An error, in answer to the oldest command without one.
    Refused,
    /// Nothing that was asked for.
    Strange,
}

/// What this frame is; it is whole.
pub fn heard(frame: &[u8]) -> Heard {
    if frame.starts_with(b"-") {
        return Heard::Refused;
    }
    let Some(kind) = Elements::of(frame).and_then(|mut elements| elements.next()) else {
        return Heard::Strange;
    };
    match kind {
        b"$7\r\nmessage\r\n" | b"$8\r\npmessage\r\n" | b"$8\r\nsmessage\r\n" => Heard::Message,
        b"$9\r\nsubscribe\r\n" | b"$10\r\npsubscribe\r\n" | b"$10\r\nssubscribe\r\n" => Heard::Confirmed,
        b"$11\r\nunsubscribe\r\n" | b"$12\r\npunsubscribe\r\n" | b"$12\r\nsunsubscribe\r\n" => {
            Heard::Confirmed
        }
        _ => Heard::Strange,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    #[test]
    fn counts_are_as_redis_counts() {
        let mut all = Subscriptions::default();
        assert!(all.set(Channels::Plain, b"a", true));
        assert!(!all.set(Channels::Plain, b"a", true), "twice is once");
        assert!(all.set(Channels::Pattern, b"a", true));
        assert!(all.set(Channels::Shard, b"a", true));
        assert_eq!(
            [all.count(Channels::Plain), all.count(Channels::Pattern), all.count(Channels::Shard)],
            [2, 2, 1]
        );
        let told = |all: &Subscriptions, channels, name, proto| {
            let mut out = Vec::new();
            all.confirm(channels, false, name, proto, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert!(all.set(Channels::Plain, b"a", false));
        assert_eq!(
            told(&all, Channels::Plain, Some(b"a"), Proto::Resp2),
            "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n"
        );
        assert_eq!(
            told(&all, Channels::Shard, None, Proto::Resp3),
            ">3\r\n$12\r\nsunsubscribe\r\n_\r\n:1\r\n"
        );
        assert!(all.set(Channels::Pattern, b"a", false) && all.set(Channels::Shard, b"a", false));
        assert!(all.is_empty());
        assert_eq!(all.bytes(), 0);
    }

    #[test]
    fn messages_and_answers_are_told_apart() {
        assert_eq!(heard(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n"), Heard::Message);
        assert_eq!(heard(b">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nc\r\n$1\r\nm\r\n"), Heard::Message);
        assert_eq!(heard(b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"), Heard::Confirmed);
        assert_eq!(heard(b"-NOPERM\r\n"), Heard::Refused);
        for strange in [&b"+OK\r\n"[..], b"*0\r\n", b"*1\r\n$3\r\nfoo\r\n", b":1\r\n"] {
            assert_eq!(heard(strange), Heard::Strange);
        }
    }
}
