//! The Redis side: where a command's keys are decides where it goes.

use std::{cell::RefCell, fmt, rc::Rc};

use router_proto::{
    RacsId,
    key::tagged,
    pipelined::Seq,
    resp::{self, After, Args, Family, Gather, Keys, ProtocolError, ReplyScanner, Scan, Scanner, SubCommand},
};

use crate::{
    limits::Limits,
    pipelined::{self, Dialect, Failure, Service, Tag, Taken, Upstream},
    worker::Server,
};

/// The Redis protocol.
pub(crate) struct Redis {
    limits: resp::Limits,
}

/// One Redis service on one worker.
pub(crate) type RedisService = Service<Redis>;
type Client = pipelined::Client<Redis>;

/// What is kept of a client's input between two reads.
#[derive(Default)]
pub(crate) struct Commands {
    scanner: Scanner,
    args: Args,
}

impl Dialect for Redis {
    const NAME: &'static str = "RESP";
    /// Redis' own words.
    const TOO_MANY_CLIENTS: &'static [u8] = b"-ERR max number of clients reached\r\n";

    type Commands = Commands;
    type Replies = ReplyScanner;
    type Note = ();
    type Gather = Gather;

    fn new(_limits: &Limits) -> Self {
        Self { limits: resp::Limits::default() }
    }

    fn take(service: &Rc<RedisService>, client: &Rc<Client>, commands: &mut Commands, input: &[u8]) -> Taken {
        let Commands { scanner, args } = commands;
        let (len, after) = match scanner.scan(input, args, &service.dialect.limits) {
            Ok(Scan::Incomplete) => return Taken::Incomplete,
            Ok(Scan::Empty(len)) => (len, After::Continue),
            Ok(Scan::Command(len)) => (len, service.dispatch(client, &input[..len], args)),
            Ok(Scan::Inline(len)) => (len, service.inline(client, &input[..len], args)),
            Err(error) => {
                service.refuse(client, error);
                return Taken::Refused;
            }
        };
        match after {
            After::Continue => Taken::Bytes(len),
            After::Close => Taken::Last(len),
        }
    }

    fn scan_reply(
        replies: &mut ReplyScanner,
        (): (),
        _command: &[u8],
        input: &[u8],
    ) -> Result<Option<usize>, ()> {
        replies.scan(input).map_err(drop)
    }

    fn gather(gather: &mut Gather, part: u16, reply: &[u8], whole: &mut Vec<u8>) -> bool {
        let all = gather.put(part, reply);
        if all {
            whole.reserve(gather.kept());
            gather.write(whole);
        }
        all
    }

    fn push_failure(out: &mut Vec<u8>, failure: Failure) {
        match failure {
            Failure::Unavailable(why) => {
                resp::push_error(out, format_args!("TRYAGAIN phalanx: {why}; nothing was done"));
            }
            Failure::Unknown(why) => {
                resp::push_error(out, format_args!("ERR phalanx: outcome unknown: {why}"));
            }
        }
    }

    fn upstream(server: &Server) -> &RefCell<Option<Rc<Upstream<Self>>>> {
        &server.redis
    }
}

impl RedisService {
    /// Routes one command, whose arguments are given, or answers it. Returns whether the client goes on.
    fn dispatch(self: &Rc<Self>, client: &Rc<Client>, command: &[u8], args: &Args) -> After {
        let seq = client.open();
        let name = args.get(command, 0);
        let Some(known) = resp::lookup(name) else {
            let name: String = String::from_utf8_lossy(name).chars().take(64).collect();
            let name = name.to_lowercase();
            self.counters.refused.add(1);
            client.fail(seq, format_args!("ERR phalanx: command '{name}' is not routed yet"));
            return After::Continue;
        };
        match known.keys {
            Keys::One { at, access } if args.len() >= known.min_args => {
                let key = tagged(args.get(command, at));
                let racs = {
                    let mut table = self.table.borrow_mut();
                    let table = table.load();
                    table.pmap.racs(table.pmap.locate(key))
                };
                self.counters.requests.add(1);
                self.send(Tag::new(client, seq, (), racs, access), command);
            }
            Keys::Many(family) if args.len() >= known.min_args => {
                let sub = SubCommand::of(command, args, family);
                match sub.keys() {
                    Some(keys) => self.dispatch_many(client, seq, family, sub, keys, command),
                    None => self.wrong_args(client, seq, known.name),
                }
            }
            Keys::None(local) => {
                self.counters.local.add(1);
                return client.answer(seq, |out| resp::answer(local, command, args, out));
            }
            Keys::One { .. } | Keys::Many(_) => self.wrong_args(client, seq, known.name),
        }
        After::Continue
    }

    fn wrong_args(&self, client: &Client, seq: Seq, name: &str) {
        self.counters.refused.add(1);
        client.fail(seq, format_args!("ERR wrong number of arguments for '{name}' command"));
    }

    /// Routes a command over many keys: untouched if one RACS holds them all, else one part per RACS.
    fn dispatch_many(
        self: &Rc<Self>,
        client: &Rc<Client>,
        seq: Seq,
        family: Family,
        sub: SubCommand<'_>,
        keys: usize,
        command: &[u8],
    ) {
        self.counters.requests.add(1);
        let mut racs: Vec<RacsId> = Vec::new();
        let mut parts: Vec<u16> = Vec::with_capacity(keys);
        {
            let mut table = self.table.borrow_mut();
            let table = table.load();
            // Which part each RACS is, if any: one look per key, however many RACS there are.
            let mut part_of: Vec<Option<u16>> = vec![None; self.racs()];
            for key in 0..keys {
                let id = table.pmap.racs(table.pmap.locate(tagged(sub.key(key))));
                let part = *part_of[id.get() as usize].get_or_insert_with(|| {
                    racs.push(id);
                    u16::try_from(racs.len() - 1).expect("a service has fewer than 2^16 RACS")
                });
                parts.push(part);
            }
        }
        if let [only] = racs[..] {
            self.send(Tag::new(client, seq, (), only, family.access()), command);
            return;
        }
        let count = u16::try_from(racs.len()).expect("checked above");
        let mut texts: Vec<Vec<u8>> = Vec::with_capacity(racs.len());
        for part in 0..count {
            let mut text = Vec::new();
            sub.write(&parts, part, &mut text);
            texts.push(text);
        }
        let gather = Rc::new(RefCell::new(Gather::new(family, parts, count)));
        for ((part, racs), text) in (0..count).zip(racs).zip(texts) {
            let tag = Tag::new(client, seq, (), racs, family.access());
            self.send(tag.part(&gather, part), &text);
        }
    }

    /// A person at a terminal may say `PING` and `QUIT`.
    fn inline(self: &Rc<Self>, client: &Rc<Client>, line: &[u8], args: &Args) -> After {
        let Some(name) = (!args.is_empty()).then(|| args.get(line, 0)) else { return After::Continue };
        if let Some(Keys::None(_)) = resp::lookup(name).map(|command| command.keys) {
            return self.dispatch(client, line, args);
        }
        self.counters.refused.add(1);
        let text = format_args!("ERR phalanx: inline commands are not routed: send arrays of bulk strings");
        client.fail(client.open(), text);
        After::Continue
    }

    fn refuse(&self, client: &Client, error: ProtocolError) {
        self.counters.refused.add(1);
        client.fail(client.open(), format_args!("ERR {error}"));
    }
}

impl Client {
    /// Answers with an error of the router's own.
    fn fail(&self, seq: Seq, text: fmt::Arguments<'_>) {
        self.answer(seq, |out| resp::push_error(out, text));
    }
}
