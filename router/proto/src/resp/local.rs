//! Commands that concern the connection rather than data: answered without asking any server.

use alloc::{string::String, vec::Vec};

use super::{Args, Local, push_bulk, push_error, push_header};

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It goes on.
    Continue,
    /// It ends once everything is written.
    Close,
}

/// Appends the router's answer to a command of its own; `command` and `args` are as scanned.
pub fn answer(local: Local, command: &[u8], args: &Args, out: &mut Vec<u8>) -> After {
    let arg = |at: usize| args.get(command, at);
    let is = |at: usize, word: &[u8]| at < args.len() && arg(at).eq_ignore_ascii_case(word);
    match local {
        Local::Ping if args.len() == 1 => out.extend_from_slice(b"+PONG\r\n"),
        Local::Ping | Local::Echo if args.len() == 2 => push_bulk(out, arg(1)),
        Local::Quit => {
            out.extend_from_slice(b"+OK\r\n");
            return After::Close;
        }
        Local::Select if args.len() == 2 && arg(1) == b"0" => out.extend_from_slice(b"+OK\r\n"),
        Local::Select if args.len() == 2 => {
            push_error(out, format_args!("ERR phalanx: a partitioned service has database 0 alone"));
        }
        // redis-cli and libraries look here for documentation; they do without.
        Local::Command => out.extend_from_slice(b"*0\r\n"),
        Local::Client if is(1, b"setinfo") || is(1, b"setname") => out.extend_from_slice(b"+OK\r\n"),
        Local::Client if is(1, b"getname") => out.extend_from_slice(b"$-1\r\n"),
        // redis-benchmark asks for `save` and `appendonly`; the router has no such parameters.
        Local::Config if is(1, b"get") && args.len() >= 3 => out.extend_from_slice(b"*0\r\n"),
        Local::Hello => hello(command, args, out),
        Local::Client | Local::Config if args.len() >= 2 => {
            let name = if local == Local::Client { "client" } else { "config" };
            let sub: String = String::from_utf8_lossy(arg(1)).chars().take(64).collect();
            push_error(
                out,
                format_args!("ERR phalanx: command '{name}|{}' is not routed yet", sub.to_lowercase()),
            );
        }
        _ => {
            let name = match local {
                Local::Ping => "ping",
                Local::Echo => "echo",
                Local::Select => "select",
                Local::Client => "client",
                _ => "config",
            };
            push_error(out, format_args!("ERR wrong number of arguments for '{name}' command"));
        }
    }
    After::Continue
}

fn hello(command: &[u8], args: &Args, out: &mut Vec<u8>) {
    if args.len() >= 2 && args.get(command, 1) != b"2" {
        push_error(out, format_args!("NOPROTO unsupported protocol version"));
        return;
    }
    let mut at = 2;
    while at < args.len() {
        let option = args.get(command, at);
        if option.eq_ignore_ascii_case(b"setname") && at + 1 < args.len() {
            at += 2;
        } else {
            push_error(out, format_args!("ERR phalanx: this option of HELLO is not built yet"));
            return;
        }
    }
    push_header(out, b'*', 14);
    for (name, value) in [("server", "phalanx"), ("version", env!("CARGO_PKG_VERSION"))] {
        push_bulk(out, name.as_bytes());
        push_bulk(out, value.as_bytes());
    }
    push_bulk(out, b"proto");
    out.extend_from_slice(b":2\r\n");
    push_bulk(out, b"id");
    out.extend_from_slice(b":0\r\n");
    for (name, value) in [("mode", "proxy"), ("role", "master")] {
        push_bulk(out, name.as_bytes());
        push_bulk(out, value.as_bytes());
    }
    push_bulk(out, b"modules");
    out.extend_from_slice(b"*0\r\n");
}
