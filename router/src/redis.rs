//! The Redis side: where a command's keys are decides where it goes.
//!
//! | file | one idea |
//! | --- | --- |
//! | `route.rs` | from a command to its partition, one RACS or several |
//! | `session.rs` | what a client has said before, and whose turn it is |
//! | `transaction.rs` | transactions, kept until they are whole |
//! | `private.rs` | a connection that one client has for itself |
//! | `subscribe.rs` | channels and patterns |

mod private;
mod route;
mod session;
mod subscribe;
mod transaction;

use std::{
    cell::RefCell,
    fmt, io,
    rc::{Rc, Weak},
    task::Context,
};

use router_proto::{
    pipelined::{Reorder, Seq},
    resp::{self, Args, Gather, Proto, ReplyScanner, Scan, Scanner, Split, TooLarge},
};

use crate::{
    config::{self, Auth},
    limits::Limits,
    pipelined::{Dialect, Failure, Lanes, Says, Service, Spare},
    worker::{self, Dialogue, Server, Share, Taken},
};
use private::Private;
use session::Session;

/// The Redis protocol.
pub(crate) struct Redis {
    limits: resp::Limits,
    auth: Auth,
    /// The connections that clients have for themselves.
    privates: RefCell<Vec<Weak<Private>>>,
    gathers: Spare<Gather>,
    /// Where a command is taken apart.
    split: RefCell<Split>,
}

/// One Redis service on one worker.
pub(crate) type RedisService = Service<Redis>;
type Client = worker::Client<Redis>;

/// What is kept of a client's input between two reads.
#[derive(Default)]
pub(crate) struct Commands {
    scanner: Scanner,
    args: Args,
    share: Share,
}

/// What must be known of a command when its reply comes.
#[derive(Clone, Copy)]
pub(crate) struct Note {
    /// How many replies the server gives: several to a transaction, of which the last one counts.
    replies: u32,
    proto: Proto,
}

/// How large a command may be before its client has given the password: as in Redis.
const STRANGERS: resp::Limits = resp::Limits { args: 10, bulk: 16 * 1024, command: 64 * 1024 };

/// What becomes of a client after a command.
enum Next {
    Continue,
    Close,
    /// The command waits until every earlier one has its reply.
    Later,
}

impl Dialogue for Redis {
    const PROTOCOL: &'static str = "redis";

    type Service = RedisService;
    type Session = Session;
    type Input = Commands;
    type UnderWay = Reorder;

    fn session(service: &RedisService) -> Session {
        Session::new(service)
    }

    fn told(client: &Client) -> Vec<u8> {
        client.session.told()
    }

    fn heard(client: &Client, told: &[u8]) {
        client.session.heard(told);
    }

    fn is_blocked(client: &Client) -> bool {
        client.session.is_blocking() && !client.is_answered()
    }

    /// Of a command that was refused nothing is kept but how much is still to come.
    fn is_between(commands: &Commands) -> bool {
        !commands.scanner.is_skipping()
    }

    fn may_move(client: &Client) -> bool {
        client.session.may_move(client.is_answered())
    }

    fn moved(client: &Client, _commands: &mut Commands) {
        client.session.moved();
    }

    fn left(client: &Client) {
        client.session.left();
    }

    fn has_room(
        service: &Rc<RedisService>,
        commands: &mut Commands,
        begun: &mut Vec<u8>,
        cx: &Context<'_>,
    ) -> bool {
        commands.share.suffices(&service.room, commands.scanner.wants(begun), begun, cx)
    }

    fn take(service: &Rc<RedisService>, client: &Rc<Client>, commands: &mut Commands, input: &[u8]) -> Taken {
        let Commands { scanner, args, share } = commands;
        let admitted = client.session.is_admitted(service);
        let limits = if admitted { &service.dialect.limits } else { &STRANGERS };
        let scan = scanner.scan(input, args, limits);
        if scan == Ok(Scan::Incomplete) {
            return Taken::Incomplete;
        }
        let held = share.take();
        let (len, next) = match scan {
            Ok(Scan::Incomplete) => unreachable!("that was asked before"),
            Ok(Scan::Empty(len) | Scan::Skipped(len)) => (len, Next::Continue),
            Ok(Scan::TooLarge(len, what)) if admitted => {
                service.too_large(client, what);
                (len, Next::Continue)
            }
            Ok(Scan::TooLarge(..)) => {
                let text = format_args!("ERR Protocol error: unauthenticated bulk length");
                service.refuse_command(client, client.open(), text);
                return Taken::Refused;
            }
            Ok(Scan::Command(len)) => {
                let next = client.holding(&held, || service.dispatch(client, &input[..len], args));
                (len, next)
            }
            Ok(Scan::Inline(len)) => (len, service.inline(client, &input[..len], args)),
            Err(error) => {
                service.refuse_command(client, client.open(), format_args!("ERR {error}"));
                return Taken::Refused;
            }
        };
        match next {
            Next::Continue => Taken::Bytes(len),
            Next::Close => Taken::Last(len),
            Next::Later => {
                share.put_back(held);
                Taken::Later
            }
        }
    }
}

impl Dialect for Redis {
    const NAME: &'static str = "RESP";
    /// Redis' own words.
    const TOO_MANY_CLIENTS: &'static [u8] = b"-ERR max number of clients reached\r\n";

    type Replies = ReplyScanner;
    type Note = Note;
    type Gather = Gather;

    /// One for each version of the protocol: so replies pass as they are.
    const LANES: usize = 2;

    fn new(service: &config::Service, limits: &Limits) -> Self {
        Self {
            limits: resp::Limits { bulk: limits.value, command: limits.command, ..resp::Limits::default() },
            auth: service.auth.clone(),
            privates: RefCell::default(),
            gathers: Spare::default(),
            split: RefCell::default(),
        }
    }

    /// The first argument, whose length stands before it.
    fn name(command: &[u8]) -> &[u8] {
        let mut lines = command.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_end());
        let first = lines.next().unwrap_or_default();
        if first.starts_with(b"*") { lines.nth(1).unwrap_or_default() } else { &[] }
    }

    fn tables_changed(service: &RedisService) {
        let all: Vec<_> = service.dialect.privates.borrow().iter().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|private| private.table_changed());
    }

    fn scan_reply(
        replies: &mut ReplyScanner,
        note: Note,
        _command: &[u8],
        input: &[u8],
    ) -> Result<Option<usize>, ()> {
        replies.scan_many(input, note.replies).map_err(drop)
    }

    fn says(note: Note, reply: &[u8]) -> Says {
        match Self::shown(note, reply) {
            reply if !resp::is_error(reply) => Says::Well,
            reply if resp::cannot_serve(reply) => Says::CannotServe,
            _ => Says::Error,
        }
    }

    fn begins_early(note: Note) -> bool {
        note.replies > 1
    }

    fn shown(note: Note, reply: &[u8]) -> &[u8] {
        if note.replies == 1 {
            return reply;
        }
        match ReplyScanner::default().scan_many(reply, note.replies - 1) {
            Ok(Some(before)) => &reply[before..],
            // An error of the router's own, in place of all of them.
            _ => reply,
        }
    }

    fn gather(gather: &mut Gather, part: u16, reply: &[u8], whole: &mut Vec<u8>) -> bool {
        let all = gather.put(part, reply);
        if all {
            whole.reserve(gather.kept());
            gather.write(whole);
            gather.shrink();
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

    fn lanes(server: &Server) -> &Lanes<Self> {
        &server.redis
    }

    fn lane(note: Note) -> usize {
        match note.proto {
            Proto::Resp2 => 0,
            Proto::Resp3 => 1,
        }
    }

    fn greeting(&self, lane: usize) -> Vec<u8> {
        let login = self.auth.servers.as_ref().map(|login| {
            let user = login.user.as_deref().map(str::as_bytes);
            (user, login.password.bytes())
        });
        let proto = if lane == 0 { Proto::Resp2 } else { Proto::Resp3 };
        resp::greeting(proto, login)
    }

    fn welcome(reply: &[u8]) -> io::Result<bool> {
        let malformed = |error| io::Error::new(io::ErrorKind::PermissionDenied, error);
        match ReplyScanner::default().scan(reply).map_err(malformed)? {
            None => Ok(false),
            Some(_) if reply.starts_with(b"-") => {
                let said = String::from_utf8_lossy(&reply[1..]);
                let said: String = said.trim_end().chars().take(200).collect();
                Err(io::Error::new(io::ErrorKind::PermissionDenied, said))
            }
            // Nothing was asked but this.
            Some(len) if len == reply.len() => Ok(true),
            Some(_) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it speaks unasked")),
        }
    }
}

impl RedisService {
    /// Refuses a command that is larger than commands may be here. Nothing of it goes to a server.
    fn too_large(&self, client: &Client, what: TooLarge) {
        client.session.spoil_transaction();
        let limits = self.limits();
        let (what, name, most) = match what {
            TooLarge::Argument(len) => (format!("an argument of {len} bytes"), "value", limits.value),
            TooLarge::Command(len) => {
                (format!("a command of {len} bytes or more"), "command", limits.command)
            }
        };
        let text = format_args!(
            "ERR phalanx: {what} is above the limit of {most}: raise `{name}` in [service.limits]; nothing was done"
        );
        self.refuse_command(client, client.open(), text);
    }

    /// Answers with an error of the router's own.
    fn refuse_command(&self, client: &Client, seq: Seq, text: fmt::Arguments<'_>) {
        self.refused(client, b"", &text.to_string());
        client.answer(seq, |out| resp::push_error(out, text));
    }

    /// A person at a terminal may say `PING` and `QUIT`.
    fn inline(self: &Rc<Self>, client: &Rc<Client>, line: &[u8], args: &Args) -> Next {
        let Some(name) = (!args.is_empty()).then(|| args.get(line, 0)) else { return Next::Continue };
        if let Some(resp::Keys::None(_)) = resp::lookup(name).map(|command| command.keys)
            && !client.session.in_transaction()
        {
            return self.dispatch(client, line, args);
        }
        // A page that a browser shows may send such requests to anybody, with commands of its choice as their body.
        if [&b"POST"[..], b"HOST:"].iter().any(|http| name.eq_ignore_ascii_case(http)) {
            let text = format_args!("ERR phalanx: this is Redis, and HTTP is not spoken here");
            self.refuse_command(client, client.open(), text);
            return Next::Close;
        }
        let text = format_args!("ERR phalanx: inline commands are not routed: send arrays of bulk strings");
        self.refuse_command(client, client.open(), text);
        client.session.spoil_transaction();
        Next::Continue
    }
}
