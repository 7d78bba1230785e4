//! From a command to its partition: to one RACS, to several and back to one reply, or to none.
//!
//! Keys that must be together must be in one *partition*, not only in one RACS: partitions may move one day, and
//! what a client may do must not hang on where they are just now.

use std::rc::Rc;

use router_proto::{
    Pmap, RacsId,
    key::tagged,
    pipelined::Seq,
    pmap::PartitionId,
    racs::Access,
    resp::{self, Args, Command, Cursor, Family, Find, Found, Keys, Malformed, Spread},
};

use super::{Client, Next, Note, RedisService};
use crate::pipelined::Tag;

/// Redis Cluster's own words.
pub(super) const CROSSED: &str = "CROSSSLOT Keys in request don't hash to the same slot";

/// Where the keys of one command are.
pub(super) enum Place {
    Partition(PartitionId),
    /// It names no key.
    Nowhere,
    /// In several partitions.
    Crossed,
}

/// The command that is meant, once the word after its name was looked at.
pub(super) enum Meant {
    Command(&'static Command),
    /// Not one, for this reason.
    Not(String),
}

/// What is meant by a command with these arguments.
pub(super) fn meant(command: &[u8], args: &Args) -> Meant {
    let shown =
        |at: usize| String::from_utf8_lossy(args.get(command, at)).chars().take(128).collect::<String>();
    let Some(known) = resp::lookup(args.get(command, 0)) else {
        let mut text = format!("ERR unknown command '{}', with args beginning with: ", shown(0));
        let start = text.len();
        for at in 1..args.len() {
            if text.len() - start >= 128 {
                break;
            }
            text += &format!("'{}' ", shown(at));
        }
        return Meant::Not(text);
    };
    if !known.fits(args.len()) {
        return Meant::Not(format!("ERR wrong number of arguments for '{}' command", known.name));
    }
    let Keys::Sub(subs) = known.keys else { return Meant::Command(known) };
    let word = args.get(command, 1);
    match subs.iter().find(|sub| sub.name.as_bytes().eq_ignore_ascii_case(word)) {
        None => {
            let help = known.name.to_uppercase();
            Meant::Not(format!("ERR unknown subcommand '{}'. Try {help} HELP.", shown(1)))
        }
        Some(sub) if !sub.fits(args.len()) => {
            Meant::Not(format!("ERR wrong number of arguments for '{}|{}' command", known.name, sub.name))
        }
        Some(sub) => Meant::Command(sub),
    }
}

/// The partition of the keys that are found in this way.
pub(super) fn together(find: Find, command: &[u8], args: &Args, pmap: &Pmap) -> Result<Place, Malformed> {
    let (mut place, mut crossed) = (None, false);
    find.each(command, args, &mut |found| {
        let at = match found {
            Found::Key(at) => Some(pmap.locate(tagged(args.get(command, at)))),
            Found::Pattern(_) if pmap.len().get() == 1 => return,
            Found::Pattern(at) => resp::pattern_tag(args.get(command, at)).map(|tag| pmap.locate(tag)),
        };
        crossed |= at.is_none() || place.is_some_and(|place| Some(place) != at);
        place = at;
    })?;
    Ok(match place {
        _ if crossed => Place::Crossed,
        Some(partition) => Place::Partition(partition),
        None => Place::Nowhere,
    })
}

impl RedisService {
    /// Routes one command, whose arguments are given, or answers it.
    pub(super) fn dispatch(self: &Rc<Self>, client: &Rc<Client>, command: &[u8], args: &Args) -> Next {
        if client.session.is_special()
            && let Some(next) = self.dispatch_special(client, command, args)
        {
            return next;
        }
        // What nearly all clients send nearly always.
        if let Some(known) = resp::lookup(args.get(command, 0))
            && let Keys::One { at, access } = known.keys
            && known.fits(args.len())
        {
            let key = tagged(args.get(command, at));
            let racs = self.locate(key);
            self.counters.requests.add(1);
            let note = Note { replies: 1, proto: client.session.proto() };
            self.send(Tag::new(client, client.open(), note, racs, access), command);
            return Next::Continue;
        }
        match meant(command, args) {
            Meant::Command(known) => self.route(client, known, command, args),
            Meant::Not(why) => {
                self.refuse_command(client, client.open(), format_args!("{why}"));
                Next::Continue
            }
        }
    }

    fn route(
        self: &Rc<Self>,
        client: &Rc<Client>,
        known: &'static Command,
        command: &[u8],
        args: &Args,
    ) -> Next {
        match known.keys {
            Keys::None(local) => {
                self.counters.local.add(1);
                return self.answer(client, local, command, args);
            }
            Keys::Transaction(step) => return self.transact(client, step, command, args),
            Keys::Subscribe(channels, on) => return self.subscribe(client, channels, on, command, args),
            Keys::Blocking(find, access, patience) => {
                let place = together(find, command, args, &self.table.borrow_mut().load().pmap);
                if let (Ok(Place::Partition(partition)), Some(patience)) = (place, patience.of(command, args))
                {
                    return self.block(client, partition, access, patience, command);
                }
                if !client.takes_turn(false, false) {
                    return Next::Later;
                }
            }
            _ => {}
        }
        let seq = client.open();
        match known.keys {
            Keys::One { at, access } => {
                let racs = self.racs_of(self.partition(args.get(command, at)));
                self.forward(client, seq, racs, access, command);
            }
            Keys::Many(family) => {
                if family.keys(args).is_some() {
                    self.dispatch_many(client, seq, family, command, args);
                } else {
                    let name = known.name;
                    let text = format_args!("ERR wrong number of arguments for '{name}' command");
                    self.refuse_command(client, seq, text);
                }
            }
            Keys::Together(find, access) | Keys::Blocking(find, access, _) => {
                let place = together(find, command, args, &self.table.borrow_mut().load().pmap);
                match place {
                    Ok(Place::Partition(partition)) => {
                        self.forward(client, seq, self.racs_of(partition), access, command);
                    }
                    // A script without keys: always in the same place, so that it finds what it left.
                    Ok(Place::Nowhere) => {
                        self.forward(client, seq, self.racs_of(self.partition(b"")), access, command);
                    }
                    Ok(Place::Crossed) => self.refuse_command(client, seq, format_args!("{CROSSED}")),
                    Err(malformed) => self.refuse_command(client, seq, format_args!("{malformed}")),
                }
            }
            Keys::Any(access) => self.forward(client, seq, self.any_racs(), access, command),
            Keys::All(spread) => self.dispatch_all(client, seq, spread, command),
            Keys::Scan => self.scan(client, seq, command, args),
            Keys::Refused(why) => {
                let container = resp::lookup(args.get(command, 0)).map_or(known.name, |first| first.name);
                let sub = if container == known.name { String::new() } else { format!("|{}", known.name) };
                let name = format!("{container}{sub}");
                self.refuse_command(client, seq, format_args!("ERR phalanx: '{name}' is refused: {why}"));
            }
            Keys::None(_) | Keys::Transaction(_) | Keys::Subscribe(..) | Keys::Sub(_) => {
                unreachable!("dealt with before")
            }
        }
        Next::Continue
    }

    pub(super) fn partition(&self, key: &[u8]) -> PartitionId {
        self.table.borrow_mut().load().pmap.locate(tagged(key))
    }

    pub(super) fn racs_of(&self, partition: PartitionId) -> RacsId {
        self.table.borrow_mut().load().pmap.racs(partition)
    }

    /// Sends a command as it is.
    fn forward(self: &Rc<Self>, client: &Rc<Client>, seq: Seq, racs: RacsId, access: Access, command: &[u8]) {
        self.counters.requests.add(1);
        let note = Note { replies: 1, proto: client.session.proto() };
        self.send(Tag::new(client, seq, note, racs, access), command);
    }

    /// Routes a command over many keys: untouched if one RACS holds them all, else one part per RACS.
    fn dispatch_many(
        self: &Rc<Self>,
        client: &Rc<Client>,
        seq: Seq,
        family: Family,
        command: &[u8],
        args: &Args,
    ) {
        let mut split = self.dialect.split.borrow_mut();
        let only = {
            let mut table = self.table.borrow_mut();
            let pmap = &table.load().pmap;
            split.split(command, args, family, self.racs(), |key| {
                let key = tagged(key);
                let partition = pmap.locate(key);
                self.counters.key(partition);
                self.counters.hot.note(partition, key);
                pmap.racs(partition)
            })
        };
        if let Some(racs) = only {
            self.forward(client, seq, racs, family.access(), command);
            split.shrink();
            return;
        }
        self.counters.requests.add(1);
        let note = Note { replies: 1, proto: client.session.proto() };
        if !self.admits(client, seq, note, command) {
            split.shrink();
            return;
        }
        let gather = self.dialect.gathers.take();
        gather.borrow_mut().keys(family, &split);
        for (part, (racs, text)) in (0..).zip(split.parts()) {
            let tag = Tag::new(client, seq, note, racs, family.access());
            self.send(tag.part(&gather, part), text);
        }
        split.shrink();
    }

    /// Sends a command to every RACS.
    fn dispatch_all(self: &Rc<Self>, client: &Rc<Client>, seq: Seq, spread: Spread, command: &[u8]) {
        self.counters.requests.add(1);
        let count = u16::try_from(self.racs()).expect("a service has fewer than 2^16 RACS");
        let note = Note { replies: 1, proto: client.session.proto() };
        if !self.admits(client, seq, note, command) {
            return;
        }
        let gather = self.dialect.gathers.take();
        gather.borrow_mut().all(spread, count, self.random());
        for part in 0..count {
            let tag = Tag::new(client, seq, note, RacsId::new(part.into()), spread.access());
            self.send(tag.part(&gather, part), command);
        }
    }

    /// One step of a walk over all RACS. Cursors are one server's own, so the leader is asked.
    fn scan(self: &Rc<Self>, client: &Rc<Client>, seq: Seq, command: &[u8], args: &Args) {
        let racs = u32::try_from(self.racs()).expect("a service has fewer than 2^16 RACS");
        let Some(cursor) = Cursor::parse(args.get(command, 1), racs) else {
            self.refuse_command(client, seq, format_args!("ERR invalid cursor"));
            return;
        };
        self.counters.requests.add(1);
        let note = Note { replies: 1, proto: client.session.proto() };
        if !self.admits(client, seq, note, command) {
            return;
        }
        let mut text = Vec::new();
        cursor.write(command, args, &mut text);
        let gather = self.dialect.gathers.take();
        gather.borrow_mut().scan(cursor, racs);
        let tag = Tag::new(client, seq, note, RacsId::new(cursor.racs), Access::Update);
        self.send(tag.part(&gather, 0), &text);
    }
}
