//! How long the router waits, and how much it keeps, before it gives up: all in one place.

use std::time::Duration;

/// Limits of a router. The defaults suit services inside a data centre.
///
/// Times are kept by a coarse clock: what should happen after `t` happens between `t` and `t` + 60 ms.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// From a client's connecting to the end of its TLS handshake, and of the PROXY header before it. 5 s.
    pub handshake: Duration,
    /// Most handshakes that a worker has under way; whoever comes then is hung up on. 1000, so that clients
    /// who never end theirs hold at most some 20 MiB.
    pub handshakes: usize,
    /// From the first byte of a request's head to its last, and again to the key, if that is in the body; for
    /// the bytes that hold a TCP connection's key. 5 s; longer lets slow-loris clients hold more memory.
    pub head: Duration,
    /// How far into a body its key may be, in bytes. 64 KiB; a request whose key is not found there is
    /// refused. So much of its body is kept until then.
    pub body_key: usize,
    /// Between two requests of one client connection. 60 s.
    pub idle: Duration,
    /// For a TCP connection to a server to be made. 1 s; longer delays the attempt at another clone.
    pub connect: Duration,
    /// From a request's last byte to the first of its response. 30 s; shorter cuts off slow requests.
    pub response: Duration,
    /// Without any progress on a body or a response, in either direction. 30 s.
    pub stall: Duration,
    /// Without a byte in either direction on a plain TCP connection, or one that was upgraded (WebSocket).
    /// 10 min; longer keeps connections whose other end has vanished.
    pub tunnel: Duration,
    /// How long a connection to a server is kept without use. 50 s: below what servers usually keep.
    pub pool_idle: Duration,
    /// Most unused connections that a worker keeps to one server. 128.
    pub pool_size: usize,
    /// How long a request that nobody may answer yet waits for the next view of its RACS. 5 s.
    pub wait: Duration,
    /// Most requests that wait for one RACS, over all workers. 1000; the next one is refused at once.
    pub waiting: usize,
    /// Most requests of one service that are under way, over all workers, where the service does not say. 262 144; the next one is refused
    /// at once. A TCP connection is one.
    pub in_flight: usize,
    /// Most requests that one server has in flight, over all workers, where the service does not say. 65 536; others go to other clones, or
    /// are refused at once.
    pub in_flight_per_server: usize,
    /// How long a server that was just seen failing is avoided while another clone is left. 250 ms.
    pub avoid: Duration,
    /// How long a server may be silent, about a read or on a connection that clients share, before a second clone is
    /// asked for reads, too, however quick answers usually are. 20 ms; shorter asks twice more often, and is not kept: the clock ticks every 20 ms.
    pub hedge_after: Duration,
    /// Longest head of a request that may share a connection with others (`pipeline = N`). 8 KiB; a longer one has a
    /// connection of its own.
    pub lane_head: usize,
    /// Bytes of an answer on such a connection that are kept until it is whole, so that it can still come from elsewhere.
    /// 64 KiB; of a larger one the client gets what there is.
    pub lane_held: usize,
    /// Largest answer on such a connection, however slowly its client takes it. 1 MiB; a larger one has the connection
    /// for itself, and what is behind it goes elsewhere.
    pub lane_answer: usize,
    /// How long no such connection is made to a server on which one has just failed, or was of little use. 1 s; until
    /// then each request has a connection of its own. After silence it is [`Limits::avoid`].
    pub lane_rest: Duration,
    /// Most client connections of one worker. 10 000; the next one is told so and closed. The command
    /// `phalanx router` takes fewer where that many files may not be open.
    pub clients: usize,
    /// Most Redis or memcached commands, or requests in frames, of one client that have no reply yet; then its input waits. 1024.
    pub pipeline: usize,
    /// Most bytes of one such client's commands without reply, or of replies that it has not read; then its
    /// input waits. 1 MiB; one command or reply may be larger.
    pub backlog: usize,
    /// Bytes of replies that all such clients of a service on one worker may leave unread before those of them that
    /// have much unread send nothing more, and before HTTP requests share no connections any more. 64 MiB. At four times as much, those who have more than a sixteenth of
    /// [`Limits::backlog`] unread are cut off.
    pub unread_in_all: usize,
    /// Bytes of requests of more than 64 KiB that all clients of a Redis, memcached or frames service on one worker may have under way,
    /// from their begin to their answer; then further ones are read once there is room. 256 MiB; one may always be under way.
    pub requests_in_all: usize,
    /// Bytes of replies that such a client may leave unread before it is cut off. 256 MiB.
    pub unread: usize,
    /// Longest value that a memcached client may store, and longest argument of a Redis command, in bytes; at most 512 MiB, as in Redis.
    /// 64 MiB; a longer one is thrown away and refused, and what the key had before stays.
    pub value: usize,
    /// Longest Redis command, in bytes; at most 1 GiB. 128 MiB; a longer one is thrown away and refused.
    pub command: usize,
    /// Most bytes of a Redis transaction, from `MULTI` to `EXEC`. 8 MiB; the command that would exceed it is refused, and with
    /// it the transaction.
    pub transaction: usize,
    /// Most connections that Redis clients of a service on one worker have for themselves, because they watch keys, listen, or
    /// wait. 1000; who would need one more is refused.
    pub private: usize,
    /// How long such a connection is kept without use. 10 s.
    pub private_idle: Duration,
    /// Bytes of messages that a subscribed Redis client may leave unread before it is cut off. 32 MiB, as in Redis.
    pub messages: usize,
    /// Bytes that the names of one Redis client's channels may take. 4 MiB.
    pub subscriptions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            handshakes: 1000,
            head: Duration::from_secs(5),
            body_key: 64 << 10,
            idle: Duration::from_secs(60),
            connect: Duration::from_secs(1),
            response: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            tunnel: Duration::from_secs(600),
            pool_idle: Duration::from_secs(50),
            pool_size: 128,
            wait: Duration::from_secs(5),
            waiting: 1000,
            in_flight: 1 << 18,
            in_flight_per_server: 1 << 16,
            avoid: Duration::from_millis(250),
            hedge_after: Duration::from_millis(20),
            lane_head: 8 << 10,
            lane_held: 64 << 10,
            lane_answer: 1 << 20,
            lane_rest: Duration::from_secs(1),
            clients: 10_000,
            pipeline: 1024,
            backlog: 1 << 20,
            unread_in_all: 64 << 20,
            requests_in_all: 256 << 20,
            unread: 256 << 20,
            value: 64 << 20,
            command: 128 << 20,
            transaction: 8 << 20,
            private: 1000,
            private_idle: Duration::from_secs(10),
            messages: 32 << 20,
            subscriptions: 4 << 20,
        }
    }
}
