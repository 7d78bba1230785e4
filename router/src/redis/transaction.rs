//! Transactions: kept until `EXEC`, then sent as one. Where keys are watched, over the connection that watches
//! them.

use std::rc::Rc;

use router_proto::{
    key::tagged,
    pmap::PartitionId,
    racs::Access,
    resp::{Args, Command, Find, Finished, Keys, Local, Proto, Step, Transaction},
};

use super::{
    Client, Next, Note, RedisService,
    private::Whom,
    route::{CROSSED, Meant, Place, meant, together},
};
use crate::pipelined::Tag;

/// What a command of a transaction needs to know.
pub(super) enum Queued {
    /// To be kept, with the partition of its keys if it has any.
    Yes(Option<PartitionId>, Access),
    /// To be refused, and with it the transaction.
    No(String),
}

const UNWATCH: &[u8] = b"*1\r\n$7\r\nUNWATCH\r\n";
const ABORTED: &str = "EXECABORT Transaction discarded because of previous errors.";

fn ok(out: &mut Vec<u8>) {
    out.extend_from_slice(b"+OK\r\n");
}

impl RedisService {
    /// Keeps a command for the transaction in hand, or refuses both.
    pub(super) fn queue(&self, client: &Rc<Client>, command: &[u8], args: &Args) {
        let mut transaction = client.session.transaction.borrow_mut();
        let transaction = transaction.as_mut().expect("there is a transaction");
        let seq = client.open();
        let queued = match self.queued(command, args) {
            Queued::Yes(partition, access) => {
                let most = self.limits().transaction;
                transaction.queue(command, partition, access, most).map_err(str::to_owned)
            }
            Queued::No(why) => {
                transaction.refuse();
                Err(why)
            }
        };
        match queued {
            Ok(()) => client.answer(seq, |out| out.extend_from_slice(b"+QUEUED\r\n")),
            Err(why) => self.refuse_command(client, seq, format_args!("{why}")),
        }
    }

    /// What becomes of a command in a transaction.
    pub(super) fn queued(&self, command: &[u8], args: &Args) -> Queued {
        let known: &Command = match meant(command, args) {
            Meant::Command(known) => known,
            Meant::Not(why) => return Queued::No(why),
        };
        let mut table = self.table.borrow_mut();
        let pmap = &table.load().pmap;
        let locate = |key: &[u8]| pmap.locate(tagged(key));
        let refused = |why: &str| Queued::No(format!("ERR phalanx: '{}' is refused: {why}", known.name));
        match known.keys {
            Keys::One { at, access } => Queued::Yes(Some(locate(args.get(command, at))), access),
            Keys::Many(family) => {
                let Some(keys) = family.keys(args) else {
                    let name = known.name;
                    return Queued::No(format!("ERR wrong number of arguments for '{name}' command"));
                };
                let place = |key: usize| locate(args.get(command, 1 + key * family.step()));
                let first = place(0);
                if (1..keys).any(|key| place(key) != first) {
                    return Queued::No(CROSSED.into());
                }
                Queued::Yes(Some(first), family.access())
            }
            // In a transaction nothing waits.
            Keys::Together(find, access) | Keys::Blocking(find, access, _) => {
                match together(find, command, args, pmap) {
                    Ok(Place::Partition(partition)) => Queued::Yes(Some(partition), access),
                    Ok(Place::Nowhere) => Queued::Yes(None, access),
                    Ok(Place::Crossed) => Queued::No(CROSSED.into()),
                    Err(malformed) => Queued::No(malformed.to_string()),
                }
            }
            Keys::Any(access) => Queued::Yes(None, access),
            Keys::None(Local::Ping | Local::Echo) | Keys::Transaction(Step::Unwatch) => {
                Queued::Yes(None, Access::Read)
            }
            // With one partition everything is in it.
            Keys::All(spread) if pmap.len().get() == 1 => Queued::Yes(None, spread.access()),
            Keys::Scan if pmap.len().get() == 1 => Queued::Yes(None, Access::Update),
            Keys::All(_) | Keys::Scan => refused("a transaction is in one partition, this concerns all"),
            Keys::Refused(why) => refused(why),
            Keys::None(_) | Keys::Subscribe(..) | Keys::Transaction(_) | Keys::Sub(_) => {
                refused("it is not for transactions")
            }
        }
    }

    /// Begins or ends a transaction, or watches keys.
    pub(super) fn transact(
        self: &Rc<Self>,
        client: &Rc<Client>,
        step: Step,
        command: &[u8],
        args: &Args,
    ) -> Next {
        let session = &client.session;
        let begun = session.in_transaction();
        let refused = |text: &str| {
            self.refuse_command(client, client.open(), format_args!("{text}"));
            Next::Continue
        };
        let next = match (step, begun) {
            (Step::Multi, true) => refused("ERR MULTI calls can not be nested"),
            (Step::Exec, false) => refused("ERR EXEC without MULTI"),
            (Step::Discard, false) => refused("ERR DISCARD without MULTI"),
            (Step::Watch, true) => refused("ERR WATCH inside MULTI is not allowed"),
            (Step::Multi, false) => {
                let transaction =
                    session.watched.get().map_or_else(Transaction::default, Transaction::watching);
                *session.transaction.borrow_mut() = Some(transaction);
                client.answer(client.open(), ok);
                Next::Continue
            }
            (Step::Watch, false) => self.watch(client, command, args),
            (Step::Unwatch | Step::Discard, _) => self.unwatch(client),
            (Step::Exec, true) => self.exec(client),
        };
        session.update();
        next
    }

    fn watch(self: &Rc<Self>, client: &Rc<Client>, command: &[u8], args: &Args) -> Next {
        if !client.takes_turn(true, false) {
            return Next::Later;
        }
        let keys = Find::Range { first: 1, last: -1, step: 1 };
        let place = together(keys, command, args, &self.table.borrow_mut().load().pmap);
        let seq = client.open();
        let watched = client.session.watched.get();
        let partition = match place {
            Ok(Place::Partition(partition)) if watched.is_none_or(|watched| watched == partition) => {
                partition
            }
            _ => {
                self.refuse_command(client, seq, format_args!("{CROSSED}"));
                return Next::Continue;
            }
        };
        if watched.is_some() && client.session.watching().is_none() {
            // What was watched there counts as changed, so whatever else is watched changes nothing.
            client.answer(seq, ok);
            return Next::Continue;
        }
        self.counters.requests.add(1);
        let racs = self.racs_of(partition);
        let note = Note { replies: 1, proto: client.session.proto() };
        if !self.leader_admits(racs, client, seq, note, command) {
            return Next::Continue;
        }
        match client.private(racs) {
            Some(private) => {
                private.push(command, Whom::Place(seq), Access::Read, 1, None);
                client.session.watch(Some(partition));
            }
            None => self.too_many(client, seq),
        }
        Next::Continue
    }

    /// `UNWATCH`, or `DISCARD`, after which nothing is watched either.
    fn unwatch(self: &Rc<Self>, client: &Rc<Client>) -> Next {
        let session = &client.session;
        if session.watched.get().is_some() && !client.takes_turn(true, false) {
            return Next::Later;
        }
        *session.transaction.borrow_mut() = None;
        let seq = client.open();
        match session.watching() {
            Some(private) => private.push(UNWATCH, Whom::Place(seq), Access::Read, 1, None),
            None => client.answer(seq, ok),
        }
        session.watch(None);
        Next::Continue
    }

    fn exec(self: &Rc<Self>, client: &Rc<Client>) -> Next {
        let session = &client.session;
        let watched = session.watched.get();
        // What went over the other connection just before, or is to come over it next, keeps its place.
        if !client.takes_turn(watched.is_some(), false) {
            return Next::Later;
        }
        let transaction = session.transaction.borrow_mut().take().expect("there is a transaction");
        let private = session.watching();
        session.watch(None);
        let seq = client.open();
        match transaction.finish() {
            Finished::Refused => {
                // The end of the connection is the end of the watch.
                if let Some(private) = private {
                    private.finish();
                }
                self.refuse_command(client, seq, format_args!("{ABORTED}"));
            }
            Finished::Empty => client.answer(seq, |out| out.extend_from_slice(b"*0\r\n")),
            Finished::Send { bytes, replies, partition, access } => {
                self.counters.requests.add(1);
                let note = Note { replies, proto: session.proto() };
                match (watched, private) {
                    (None, _) => {
                        let partition = partition.unwrap_or_else(|| self.partition(b""));
                        self.send(Tag::new(client, seq, note, self.racs_of(partition), access), &bytes);
                    }
                    (Some(_), Some(private)) => {
                        if self.leader_admits(private.racs, client, seq, note, &bytes) {
                            private.push(&bytes, Whom::Place(seq), access, replies, None);
                        } else {
                            private.finish();
                        }
                    }
                    // Nobody can say that what was watched is unchanged.
                    (Some(_), None) => client.answer(seq, |out| {
                        out.extend_from_slice(match session.proto() {
                            Proto::Resp2 => b"*-1\r\n",
                            Proto::Resp3 => b"_\r\n",
                        });
                    }),
                }
            }
        }
        Next::Continue
    }
}
