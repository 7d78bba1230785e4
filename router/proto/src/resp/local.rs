//! Commands that concern the connection rather than data: answered without asking any server.

use alloc::{format, string::String, vec::Vec};

use super::{Args, Connection, Local, Password, Proto, push_bulk, push_error, push_header};

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It goes on.
    Continue,
    /// It ends once everything is written.
    Close,
}

/// What the router knows of itself, for those who ask.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// The password that clients have to give, if any.
    pub password: Option<&'a Password>,
    /// Clients of the service.
    pub clients: u64,
    /// Commands of the service that were sent to servers.
    pub commands: u64,
    /// The service's RACS.
    pub racs: usize,
    /// Whether this client hears nothing but messages now.
    pub subscribed: bool,
}

/// What `INFO` and `HELLO` call the version: clients look there for what they may use, and servers before it are not tested.
const REDIS_VERSION: &str = "7.0.0";

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";

/// Appends the router's answer to a command of its own; `command` and `args` are as scanned, and as many as the
/// command takes.
pub fn answer(
    local: Local,
    command: &[u8],
    args: &Args,
    connection: &mut Connection,
    facts: &Facts<'_>,
    out: &mut Vec<u8>,
) -> After {
    let arg = |at: usize| args.get(command, at);
    let ok = |out: &mut Vec<u8>| out.extend_from_slice(b"+OK\r\n");
    match local {
        Local::Ping if args.len() > 2 => wrong_args("ping", out),
        Local::Ping if facts.subscribed && connection.proto == Proto::Resp2 => {
            push_header(out, b'*', 2);
            push_bulk(out, b"pong");
            push_bulk(out, if args.len() == 2 { arg(1) } else { b"" });
        }
        Local::Ping if args.len() == 1 => out.extend_from_slice(b"+PONG\r\n"),
        Local::Ping | Local::Echo => push_bulk(out, arg(1)),
        Local::Quit => {
            ok(out);
            return After::Close;
        }
        Local::Reset => {
            *connection = Connection::new(connection.id, facts.password.is_none());
            out.extend_from_slice(b"+RESET\r\n");
        }
        Local::Select if arg(1) == b"0" => ok(out),
        Local::Select if arg(1).is_empty() || !arg(1).iter().all(u8::is_ascii_digit) => {
            push_error(out, format_args!("ERR value is not an integer or out of range"));
        }
        Local::Select => {
            push_error(out, format_args!("ERR phalanx: a partitioned service has database 0 alone"));
        }
        Local::Acl if arg(1).eq_ignore_ascii_case(b"whoami") && args.len() == 2 => push_bulk(out, b"default"),
        Local::Acl => refuse("acl", arg(1), "users are each server's own", out),
        // redis-benchmark asks for `save` and `appendonly`; the router has no such parameters. A server's would
        // show the password with which the router asks it.
        Local::Config if arg(1).eq_ignore_ascii_case(b"get") && args.len() >= 3 => {
            connection.proto.push_map(0, out);
        }
        Local::Config => refuse("config", arg(1), "it concerns one server: ask that server", out),
        Local::Auth => auth(command, args, connection, facts, out),
        Local::Hello => hello(command, args, connection, facts, out),
        Local::Client => client(command, args, connection, facts, out),
        Local::Info => info(facts, out),
    }
    After::Continue
}

fn wrong_args(name: &str, out: &mut Vec<u8>) {
    push_error(out, format_args!("ERR wrong number of arguments for '{name}' command"));
}

/// A word as error messages show it.
fn shown(word: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(word).chars().take(64).collect();
    text.to_lowercase()
}

fn refuse(name: &str, sub: &[u8], why: &str, out: &mut Vec<u8>) {
    push_error(out, format_args!("ERR phalanx: '{name}|{}' is refused: {why}", shown(sub)));
}

/// The name that a client gives itself; it stands in lists, so it is plain.
fn set_name(name: &[u8], connection: &mut Connection) -> bool {
    let plain = name.len() <= 256 && name.iter().all(u8::is_ascii_graphic);
    if plain {
        connection.name = name.into();
    }
    plain
}

fn admit(user: &[u8], password: &[u8], connection: &mut Connection, facts: &Facts<'_>) -> bool {
    // Without a password the user `default` may say anything, as in Redis.
    let right = facts.password.is_none_or(|own| own.is(password)) && user == b"default";
    connection.admitted |= right;
    right
}

fn auth(command: &[u8], args: &Args, connection: &mut Connection, facts: &Facts<'_>, out: &mut Vec<u8>) {
    let (user, password) = match args.len() {
        2 => (&b"default"[..], args.get(command, 1)),
        3 => (args.get(command, 1), args.get(command, 2)),
        _ => return push_error(out, format_args!("ERR syntax error")),
    };
    if args.len() == 2 && facts.password.is_none() {
        let text = "ERR AUTH <password> called without any password configured for the default user. Are you \
                    sure your configuration is correct?";
        push_error(out, format_args!("{text}"));
    } else if admit(user, password, connection, facts) {
        out.extend_from_slice(b"+OK\r\n");
    } else {
        push_error(out, format_args!("{WRONG_PASSWORD}"));
    }
}

fn hello(command: &[u8], args: &Args, connection: &mut Connection, facts: &Facts<'_>, out: &mut Vec<u8>) {
    let arg = |at: usize| args.get(command, at);
    let proto = match (args.len() > 1).then(|| arg(1)) {
        None => connection.proto,
        Some(b"2") => Proto::Resp2,
        Some(b"3") => Proto::Resp3,
        Some(other) if !other.is_empty() && other.iter().all(u8::is_ascii_digit) => {
            return push_error(out, format_args!("NOPROTO unsupported protocol version"));
        }
        Some(_) => {
            let text = "ERR Protocol version is not an integer or out of range";
            return push_error(out, format_args!("{text}"));
        }
    };
    let (mut at, mut name) = (2, None);
    while at < args.len() {
        let more = args.len() - at - 1;
        if arg(at).eq_ignore_ascii_case(b"auth") && more >= 2 {
            if !admit(arg(at + 1), arg(at + 2), connection, facts) {
                return push_error(out, format_args!("{WRONG_PASSWORD}"));
            }
            at += 3;
        } else if arg(at).eq_ignore_ascii_case(b"setname") && more >= 1 {
            name = Some(arg(at + 1));
            at += 2;
        } else {
            let option = shown(arg(at));
            return push_error(out, format_args!("ERR Syntax error in HELLO option '{option}'"));
        }
    }
    if !connection.admitted {
        let text = "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
                    <proto> AUTH <user> <pass> option can be used to authenticate the client and select the \
                    RESP protocol version at the same time";
        return push_error(out, format_args!("{text}"));
    }
    if name.is_some_and(|name| !set_name(name, connection)) {
        return push_error(out, format_args!("{BAD_NAME}"));
    }
    connection.proto = proto;
    proto.push_map(7, out);
    for (name, value) in [("server", "phalanx"), ("version", REDIS_VERSION)] {
        push_bulk(out, name.as_bytes());
        push_bulk(out, value.as_bytes());
    }
    push_bulk(out, b"proto");
    push_header(out, b':', proto.number());
    push_bulk(out, b"id");
    push_header(out, b':', connection.id);
    for (name, value) in [("mode", "proxy"), ("role", "master")] {
        push_bulk(out, name.as_bytes());
        push_bulk(out, value.as_bytes());
    }
    push_bulk(out, b"modules");
    out.extend_from_slice(b"*0\r\n");
}

fn client(command: &[u8], args: &Args, connection: &mut Connection, facts: &Facts<'_>, out: &mut Vec<u8>) {
    let arg = |at: usize| args.get(command, at);
    let is = |at: usize, word: &[u8]| at < args.len() && arg(at).eq_ignore_ascii_case(word);
    let sub = arg(1).to_ascii_lowercase();
    let (fewest, most) = match &sub[..] {
        b"id" | b"getname" | b"info" | b"getredir" => (2, 2),
        b"setname" | b"reply" | b"no-evict" => (3, 3),
        b"setinfo" => (4, 4),
        _ => (2, usize::MAX),
    };
    if args.len() < fewest || args.len() > most {
        return wrong_args(&format!("client|{}", shown(&sub)), out);
    }
    let ok = b"+OK\r\n";
    match &sub[..] {
        b"id" => push_header(out, b':', connection.id),
        b"getname" if connection.name.is_empty() => connection.proto.push_null(out),
        b"getname" => push_bulk(out, &connection.name),
        b"setname" if set_name(arg(2), connection) => out.extend_from_slice(ok),
        b"setname" => push_error(out, format_args!("{BAD_NAME}")),
        b"setinfo" => {
            let of = [&b"lib-name"[..], b"lib-ver"].iter().position(|attribute| is(2, attribute));
            match of {
                Some(of) if arg(3).len() <= 256 && arg(3).iter().all(u8::is_ascii_graphic) => {
                    connection.library[of] = arg(3).into();
                    out.extend_from_slice(ok);
                }
                Some(_) => push_error(
                    out,
                    format_args!(
                        "ERR {} cannot contain spaces, newlines or special characters.",
                        shown(arg(2))
                    ),
                ),
                None => push_error(out, format_args!("ERR Unrecognized option '{}'", shown(arg(2)))),
            }
        }
        b"info" => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let line = format!(
                "id={} name={} db=0 sub={} multi=-1 user=default resp={} lib-name={} lib-ver={}\n",
                connection.id,
                text(&connection.name),
                u8::from(facts.subscribed),
                connection.proto.number(),
                text(&connection.library[0]),
                text(&connection.library[1]),
            );
            push_bulk(out, line.as_bytes());
        }
        b"getredir" => out.extend_from_slice(b":-1\r\n"),
        // Nothing here chooses clients to throw out by the memory that they use.
        b"no-evict" if is(2, b"on") || is(2, b"off") => out.extend_from_slice(ok),
        b"reply" if is(2, b"on") => out.extend_from_slice(ok),
        b"reply" if is(2, b"off") || is(2, b"skip") => {
            refuse("client", b"reply", "every command is answered", out);
        }
        b"no-evict" | b"reply" => push_error(out, format_args!("ERR syntax error")),
        b"tracking" if is(2, b"off") && args.len() == 3 => out.extend_from_slice(ok),
        b"tracking" | b"caching" | b"trackinginfo" => {
            refuse("client", &sub, "servers cannot tell clients that share a connection apart", out);
        }
        b"list" | b"kill" | b"pause" | b"unpause" | b"unblock" | b"no-touch" | b"help" => {
            refuse("client", &sub, "a client sees itself alone", out);
        }
        _ => push_error(out, format_args!("ERR unknown subcommand '{}'. Try CLIENT HELP.", shown(&sub))),
    }
}

fn info(facts: &Facts<'_>, out: &mut Vec<u8>) {
    let text = format!(
        "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:proxy\r\narch_bits:{}\r\nphalanx_version:{}\r\n\
         \r\n# Clients\r\nconnected_clients:{}\r\n\
         \r\n# Persistence\r\nloading:0\r\n\
         \r\n# Stats\r\ntotal_commands_processed:{}\r\n\
         \r\n# Cluster\r\ncluster_enabled:0\r\n\
         \r\n# Phalanx\r\nphalanx_racs:{}\r\n",
        usize::BITS,
        env!("CARGO_PKG_VERSION"),
        facts.clients,
        facts.commands,
        facts.racs,
    );
    push_bulk(out, text.as_bytes());
}
