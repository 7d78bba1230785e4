//! The memcached side: where a command's keys are decides where it goes.

use std::{cell::RefCell, fmt::Write as _, rc::Rc, task::Context};

use router_proto::{
    memcached::{
        Gather, Hush, Keys, Kind, Limits, Local, MAX_KEY, Note, One, ReplyScanner, Request, Scan, Scanner,
        Split, cannot_serve, decode, is_error, push_error,
    },
    pipelined::{Reorder, Seq},
    racs::Access,
};

use crate::{
    config, limits,
    pipelined::{Dialect, Failure, Lanes, Says, Service, Spare, Tag},
    worker::{self, Dialogue, Server, Share, Taken},
};

/// The memcached protocol.
pub(crate) struct Memcached {
    limits: Limits,
    /// Where a command is put together that does not go on as it came.
    command: RefCell<Vec<u8>>,
    split: RefCell<Split>,
    gathers: Spare<Gather>,
}

/// One memcached service on one worker.
pub(crate) type MemcachedService = Service<Memcached>;
type Client = worker::Client<Memcached>;

/// What is kept of a client's input between two reads.
#[derive(Default)]
pub(crate) struct Commands {
    scanner: Scanner,
    share: Share,
}

impl Dialogue for Memcached {
    const PROTOCOL: &'static str = "memcached";

    type Service = MemcachedService;
    type Session = ();
    type Input = Commands;
    type UnderWay = Reorder;

    fn session(_service: &Service<Self>) {}

    /// Of data that are thrown away nothing is kept but how much is still to come.
    fn is_between(commands: &Commands) -> bool {
        !commands.scanner.is_skipping()
    }

    fn has_room(
        service: &Rc<MemcachedService>,
        commands: &mut Commands,
        begun: &mut Vec<u8>,
        cx: &Context<'_>,
    ) -> bool {
        commands.share.suffices(&service.room, commands.scanner.wants(begun), begun, cx)
    }

    fn take(
        service: &Rc<MemcachedService>,
        client: &Rc<Client>,
        commands: &mut Commands,
        input: &[u8],
    ) -> Taken {
        let (len, request) = match commands.scanner.scan(input, &service.dialect.limits) {
            Ok(Scan::Incomplete) => return Taken::Incomplete,
            Ok(Scan::Skipped(len)) => return Taken::Bytes(len),
            Ok(Scan::Request(len, request)) => (len, request),
            Err(error) => {
                service.refused(client, b"", &error.to_string());
                client.answer(client.open(), |out| out.extend_from_slice(format!("{error}\r\n").as_bytes()));
                return Taken::Refused;
            }
        };
        let (seq, held) = (client.open(), commands.share.take());
        let command = &input[..len];
        match request {
            Request::One(one) => client.holding(&held, || service.one(client, seq, command, &one)),
            Request::Many(keys) => client.holding(&held, || service.many(client, seq, command, &keys)),
            Request::Everywhere { note, cut } => service.everywhere(client, seq, command, note, &cut),
            Request::Local(Local::Quit) => {
                // It has no reply, but its place is behind those that are due.
                client.answer(seq, |_| ());
                return Taken::Last(len);
            }
            Request::Local(local) => {
                service.counters.local.add(1);
                client.answer(seq, |out| service.answer(local, out));
            }
            Request::Refused { line, hush } => {
                service.refused(client, command, str::from_utf8(line).unwrap_or_default().trim_end());
                let shown = if hush == Hush::Everything { &[][..] } else { line };
                client.answer(seq, |out| out.extend_from_slice(shown));
            }
        }
        Taken::Bytes(len)
    }
}

impl Dialect for Memcached {
    const NAME: &'static str = "memcached's";
    /// memcached's own words.
    const TOO_MANY_CLIENTS: &'static [u8] = b"ERROR Too many open connections\r\n";

    type Replies = ReplyScanner;
    type Note = Note;
    type Gather = Gather;

    fn new(_service: &config::Service, limits: &limits::Limits) -> Self {
        Self {
            limits: Limits { value: limits.value, ..Limits::default() },
            command: RefCell::default(),
            split: RefCell::default(),
            gathers: Spare::default(),
        }
    }

    fn name(command: &[u8]) -> &[u8] {
        command.split(|byte| b" \r\n".contains(byte)).next().unwrap_or_default()
    }

    fn scan_reply(
        replies: &mut ReplyScanner,
        note: Note,
        command: &[u8],
        input: &[u8],
    ) -> Result<Option<usize>, ()> {
        replies.scan(note.kind, command, input).map_err(drop)
    }

    fn says(_note: Note, reply: &[u8]) -> Says {
        match reply {
            reply if !is_error(reply) => Says::Well,
            reply if cannot_serve(reply) => Says::CannotServe,
            _ => Says::Error,
        }
    }

    fn shown(note: Note, reply: &[u8]) -> &[u8] {
        note.shown(reply)
    }

    fn gather(gather: &mut Gather, part: u16, reply: &[u8], whole: &mut Vec<u8>) -> bool {
        let all = gather.put(part, reply);
        if all {
            gather.write(whole);
            gather.shrink();
        }
        all
    }

    fn push_failure(out: &mut Vec<u8>, failure: Failure) {
        match failure {
            Failure::Unavailable(why) => push_error(out, format_args!("{why}; nothing was done")),
            Failure::Unknown(why) => push_error(out, format_args!("outcome unknown: {why}")),
        }
    }

    fn lanes(server: &Server) -> &Lanes<Self> {
        &server.memcached
    }
}

impl Memcached {
    /// A command without some of its bytes, if any.
    fn without<T>(&self, command: &[u8], cut: &std::ops::Range<usize>, then: impl FnOnce(&[u8]) -> T) -> T {
        if cut.is_empty() {
            return then(command);
        }
        let mut text = self.command.borrow_mut();
        text.clear();
        text.shrink_to(64 * 1024);
        text.extend_from_slice(&command[..cut.start]);
        text.extend_from_slice(&command[cut.end..]);
        then(&text)
    }
}

impl MemcachedService {
    /// Routes a command with one key.
    fn one(self: &Rc<Self>, client: &Rc<Client>, seq: Seq, command: &[u8], one: &One) {
        let mut decoded = [0; MAX_KEY];
        let key = &command[one.key.clone()];
        let key = if one.binary { decode(key, &mut decoded).unwrap_or(key) } else { key };
        let racs = self.locate(key);
        self.counters.requests.add(1);
        let tag = Tag::new(client, seq, one.note, racs, one.access);
        self.dialect.without(command, &one.cut, |command| self.send(tag, command));
    }

    /// Routes a command over several keys: one part for each RACS that has some of them.
    fn many(self: &Rc<Self>, client: &Rc<Client>, seq: Seq, command: &[u8], keys: &Keys) {
        self.counters.requests.add(1);
        let mut split = self.dialect.split.borrow_mut();
        let done = split.split(command, keys, self.racs(), |key| self.locate(key));
        if done.is_err() {
            let text = format_args!("the keys of one command are in too many places; nothing was done");
            client.answer(seq, |out| push_error(out, text));
            return;
        }
        let tag = |racs| Tag::new(client, seq, keys.note, racs, keys.access);
        if let (1, Some((racs, text))) = (split.parts().len(), split.parts().next()) {
            self.send(tag(racs), text);
        } else if self.admits(client, seq, keys.note, command) {
            let gather = self.dialect.gathers.take();
            gather.borrow_mut().values(command, keys, &split);
            for (part, (racs, text)) in (0..).zip(split.parts()) {
                self.send(tag(racs).part(&gather, part), text);
            }
        }
        split.shrink();
    }

    /// Sends a command to every RACS: it is done once all have done it.
    fn everywhere(
        self: &Rc<Self>,
        client: &Rc<Client>,
        seq: Seq,
        command: &[u8],
        note: Note,
        cut: &std::ops::Range<usize>,
    ) {
        debug_assert_eq!(note.kind, Kind::Ok);
        self.counters.requests.add(1);
        if !self.admits(client, seq, note, command) {
            return;
        }
        let gather = self.dialect.gathers.take();
        gather.borrow_mut().oks(self.racs());
        self.dialect.without(command, cut, |command| {
            for (part, racs) in (0..).zip(self.all_racs()) {
                let tag = Tag::new(client, seq, note, racs, Access::Update);
                self.send(tag.part(&gather, part), command);
            }
        });
    }

    /// Appends the answer to a command that concerns the router alone.
    fn answer(&self, local: Local, out: &mut Vec<u8>) {
        match local {
            Local::Noop => out.extend_from_slice(b"MN\r\n"),
            // Libraries read the version as numbers with dots.
            Local::Version => {
                out.extend_from_slice(
                    concat!("VERSION ", env!("CARGO_PKG_VERSION"), "-phalanx\r\n").as_bytes(),
                );
            }
            Local::Verbosity(Hush::Everything) | Local::Quit => {}
            Local::Verbosity(_) => out.extend_from_slice(b"OK\r\n"),
            Local::Stats => self.stats(out),
            Local::NoStats => out.extend_from_slice(b"END\r\n"),
        }
    }

    /// What this worker has counted; the others count for themselves.
    fn stats(&self, out: &mut Vec<u8>) {
        let counters = &self.counters;
        let mut text = String::new();
        let uptime = self.uptime().as_secs();
        for (name, value) in [
            ("pid", u64::from(std::process::id())),
            ("uptime", uptime),
            ("curr_connections", counters.clients.get()),
            ("total_connections", counters.accepted.get()),
            ("rejected_connections", counters.shed.get()),
            ("phalanx_requests", counters.requests.get()),
            ("phalanx_local", counters.local.get()),
            ("phalanx_refused", counters.refused.get()),
            ("phalanx_retried", counters.retried.get()),
            ("phalanx_waited", counters.waited.get()),
            ("phalanx_unavailable", counters.unavailable.get()),
            ("phalanx_unknown", counters.unknown.get()),
        ] {
            let _ = write!(text, "STAT {name} {value}\r\n"); // cannot fail
        }
        let version = env!("CARGO_PKG_VERSION");
        let _ = write!(text, "STAT version {version}-phalanx\r\nSTAT phalanx_scope worker\r\nEND\r\n");
        out.extend_from_slice(text.as_bytes());
    }
}
