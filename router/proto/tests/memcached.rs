//! memcached's commands and replies: what is read as what, what is refused, splitting and putting together
//! again; and the same however the bytes are cut.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::{collection::vec, prelude::*};
use router_proto::{
    RacsId,
    memcached::{
        Gather, Hush, Keys, Kind, Limits, Local, Note, One, ProtocolError, ReplyError, ReplyScanner, Request,
        Scan, Scanner, Split,
    },
    racs::Access::{self, Read, Update},
};

const LIMITS: Limits = Limits { value: 20, line: 4000 };

fn scan(text: &str) -> Result<Scan, ProtocolError> {
    Scanner::default().scan(text.as_bytes(), &LIMITS)
}

fn request(text: &str) -> Request {
    match scan(text) {
        Ok(Scan::Request(len, request)) => {
            assert!(len == text.len() || matches!(request, Request::Refused { .. }), "{text:?}: {len}");
            request
        }
        other => panic!("{text:?}: {other:?}"),
    }
}

fn one(text: &str) -> One {
    match request(text) {
        Request::One(one) => one,
        other => panic!("{text:?}: {other:?}"),
    }
}

/// What goes to a server.
fn passed_on(text: &str) -> String {
    let one = one(text);
    format!("{}{}", &text[..one.cut.start], &text[if one.cut.is_empty() { 0 } else { one.cut.end }..])
}

#[test]
fn commands_with_one_key() {
    let rows: &[(&str, &str, Access, Kind)] = &[
        ("get k\r\n", "k", Read, Kind::Values),
        ("gets key\n", "key", Read, Kind::Values),
        ("gat -1 k\r\n", "k", Update, Kind::TouchedValues),
        ("gats 0 k\r\n", "k", Update, Kind::TouchedValues),
        ("set k 0 0 0\r\n\r\n", "k", Update, Kind::Stored),
        ("add k 4294967295 -1 3\r\na\nb\r\n", "k", Update, Kind::Stored),
        ("cas k 0 0 1 18446744073709551615\r\nx\r\n", "k", Update, Kind::Stored),
        ("append  k  0 0 1\r\nx\r\n", "k", Update, Kind::Stored),
        ("delete noreply\r\n", "noreply", Update, Kind::Deleted),
        ("delete k 0\r\n", "k", Update, Kind::Deleted),
        ("incr k 18446744073709551615\r\n", "k", Update, Kind::Number),
        ("touch k 5\r\n", "k", Update, Kind::Touched),
        ("mg k\r\n", "k", Read, Kind::MetaGet),
        ("mg k v t f c s k h l O123 u Ppath Lhint C5\r\n", "k", Read, Kind::MetaGet),
        ("mg k v T30\r\n", "k", Update, Kind::MetaGet),
        ("mg k v N30\r\n", "k", Update, Kind::MetaGet),
        ("mg k v R30\r\n", "k", Update, Kind::MetaGet),
        ("mg k v E30\r\n", "k", Update, Kind::MetaGet),
        ("mg k v z\r\n", "k", Update, Kind::MetaGet),
        ("ms k 1 T5\r\nx\r\n", "k", Update, Kind::MetaSet),
        ("md k\r\n", "k", Update, Kind::MetaDelete),
        ("ma k N0 J5\r\n", "k", Update, Kind::MetaArithmetic),
        ("me k\r\n", "k", Read, Kind::MetaDebug),
    ];
    for &(text, key, access, kind) in rows {
        let one = one(text);
        assert_eq!(&text[one.key.clone()], key, "{text:?}");
        assert_eq!((one.access, one.note.kind, one.note.hush), (access, kind, Hush::Nothing), "{text:?}");
        assert!(!one.binary && one.cut.is_empty(), "{text:?}");
    }
    assert!(one("mg YQ== b v\r\n").binary);
}

#[test]
fn what_keeps_replies_back_stays_here() {
    for (text, sent, hush) in [
        ("set k 0 0 1 noreply\r\nx\r\n", "set k 0 0 1\r\nx\r\n", Hush::Everything),
        ("set k 0 0 1  noreply \r\nx\r\n", "set k 0 0 1\r\nx\r\n", Hush::Everything),
        ("cas k 0 0 1 9 noreply\nx\r\n", "cas k 0 0 1 9\nx\r\n", Hush::Everything),
        ("delete k noreply\r\n", "delete k\r\n", Hush::Everything),
        ("delete k 0 noreply\r\n", "delete k 0\r\n", Hush::Everything),
        ("delete noreply noreply\r\n", "delete noreply\r\n", Hush::Everything),
        ("incr k 1 noreply\r\n", "incr k 1\r\n", Hush::Everything),
        ("touch k 1 noreply\r\n", "touch k 1\r\n", Hush::Everything),
        ("mg k q v\r\n", "mg k v\r\n", Hush::Nominal),
        ("mg k v q\r\n", "mg k v\r\n", Hush::Nominal),
        ("ms k 1 T0 q O7\r\nx\r\n", "ms k 1 T0 O7\r\nx\r\n", Hush::Nominal),
        ("md k q\r\n", "md k\r\n", Hush::Nominal),
    ] {
        assert_eq!(passed_on(text), sent, "{text:?}");
        assert_eq!(one(text).note.hush, hush, "{text:?}");
        assert_eq!(one(sent).cut, 0..0, "{sent:?}");
    }
    match request("flush_all 10 noreply\r\n") {
        Request::Everywhere { note, cut } => {
            assert_eq!((note.hush, cut), (Hush::Everything, 12..20));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_memcached_withholds_is_withheld() {
    let shown = |kind, hush, reply: &'static str| !Note { kind, hush }.shown(reply.as_bytes()).is_empty();
    for (kind, reply, quiet) in [
        (Kind::MetaGet, "EN\r\n", false),
        (Kind::MetaGet, "HD t5\r\n", true),
        (Kind::MetaGet, "VA 0\r\n\r\n", true),
        (Kind::MetaSet, "HD\r\n", false),
        (Kind::MetaSet, "NS\r\n", true),
        (Kind::MetaSet, "NF\r\n", true),
        (Kind::MetaDelete, "HD O1\r\n", false),
        (Kind::MetaDelete, "NF\r\n", true),
        (Kind::MetaArithmetic, "HD\r\n", false),
        (Kind::MetaArithmetic, "VA 1\r\n5\r\n", false),
        (Kind::MetaArithmetic, "NF\r\n", true),
        (Kind::MetaSet, "SERVER_ERROR out of memory\r\n", true),
    ] {
        assert_eq!(shown(kind, Hush::Nominal, reply), quiet, "{kind:?} {reply:?}");
        assert!(shown(kind, Hush::Nothing, reply));
        assert!(!shown(kind, Hush::Everything, reply));
    }
}

#[test]
fn the_router_answers_or_refuses() {
    for (text, local) in [
        ("mn\r\n", Local::Noop),
        ("version\r\n", Local::Version),
        ("verbosity 1\r\n", Local::Verbosity(Hush::Nothing)),
        ("verbosity 1 noreply\r\n", Local::Verbosity(Hush::Everything)),
        ("stats\r\n", Local::Stats),
        ("stats items\r\n", Local::NoStats),
        ("quit\n", Local::Quit),
    ] {
        assert_eq!(request(text), Request::Local(local), "{text:?}");
    }
    let long = format!("get {}\r\n", "x".repeat(251));
    for (text, starts) in [
        ("\r\n", "ERROR"),
        ("get\r\n", "ERROR"),
        ("GET k\r\n", "ERROR"),
        ("gat k\r\n", "CLIENT_ERROR invalid exptime"),
        ("gat 0\r\n", "ERROR"),
        ("get a\tb\r\n", "CLIENT_ERROR bad"),
        ("get a b\0c\r\n", "CLIENT_ERROR bad"),
        ("get a\rb\r\n", "CLIENT_ERROR bad"),
        (&long, "CLIENT_ERROR bad"),
        ("delete\r\n", "ERROR"),
        ("delete k 1\r\n", "CLIENT_ERROR bad command line format.  Usage"),
        ("incr k -1\r\n", "CLIENT_ERROR invalid numeric"),
        ("incr k\r\n", "ERROR"),
        ("touch k x\r\n", "CLIENT_ERROR invalid exptime"),
        ("flush_all x\r\n", "CLIENT_ERROR invalid exptime"),
        ("flush_all 1 2\r\n", "ERROR"),
        ("verbosity\r\n", "ERROR"),
        ("mg\r\n", "CLIENT_ERROR bad"),
        ("mg k qq\r\n", "CLIENT_ERROR invalid or duplicate"),
        ("mg k v v\r\n", "CLIENT_ERROR invalid or duplicate"),
        ("mg k 5\r\n", "CLIENT_ERROR invalid or duplicate"),
        ("mg k a b c d e f g h i j l m n o p r s\r\n", "CLIENT_ERROR options flags"),
        ("mg YQ= b\r\n", "CLIENT_ERROR error decoding"),
        ("me k v\r\n", "CLIENT_ERROR bad"),
        ("shutdown graceful\r\n", "ERROR: shutdown"),
        ("lru_crawler enable\r\n", "CLIENT_ERROR phalanx: "),
        ("stats reset\r\n", "CLIENT_ERROR phalanx: "),
    ] {
        match request(text) {
            Request::Refused { line, hush } => {
                assert!(line.starts_with(starts.as_bytes()), "{text:?}: {}", line.escape_ascii());
                assert!(line.ends_with(b"\r\n") && hush == Hush::Nothing, "{text:?}");
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }
    for (text, error) in [
        ("set k 0 0 x\r\n", ProtocolError::Length),
        ("set k 0 0\r\n", ProtocolError::Length),
        ("set k 0 0 01\r\nx\r\n", ProtocolError::Length),
        ("set k 0 0 2147483646\r\n", ProtocolError::Length),
        ("ms k\r\n", ProtocolError::Length),
        ("ms k S5\r\n", ProtocolError::Length),
        ("set k 0 0 1\r\nxyz", ProtocolError::DataEnd),
        ("get / HTTP/1.1\r\n", ProtocolError::DataEnd),
        ("GET / HTTP/1.1\r\n", ProtocolError::Http),
        (&"x".repeat(1024), ProtocolError::LineTooLong),
        (&format!("mg k O{}\r\n", "x".repeat(1024)), ProtocolError::LineTooLong),
        (&"get k ".repeat(1000), ProtocolError::LineTooLong),
    ] {
        if text.starts_with("get /") {
            assert!(matches!(request(text), Request::Many(_)), "a key may look like that");
        } else {
            assert_eq!(scan(text), Err(error), "{text:?}");
        }
    }
    assert_eq!(Scanner::default().scan(b"\x80\x00", &LIMITS), Err(ProtocolError::Binary));
}

#[test]
fn data_of_a_refused_command_are_no_commands() {
    let large = format!("set k 0 0 21\r\n{}\r\n", "x".repeat(21));
    let key = format!("set {} 0 0 5\r\nquit \r\n", "k".repeat(251));
    for text in
        [&large, &key, "set k 0 0 4 5 6\r\nquit\r\n", "set k -1 0 4\r\nquit\r\n", "ms k 4 v v\r\nquit\r\n"]
    {
        let mut scanner = Scanner::default();
        let bytes = text.as_bytes();
        let Ok(Scan::Request(mut at, Request::Refused { .. })) = scanner.scan(bytes, &LIMITS) else {
            panic!("{text:?} is refused")
        };
        while at < bytes.len() {
            match scanner.scan(&bytes[at..], &LIMITS) {
                Ok(Scan::Skipped(len)) => at += len,
                other => panic!("{text:?}: {other:?}"),
            }
        }
        assert!(matches!(scanner.scan(b"mn\r\n", &LIMITS), Ok(Scan::Request(4, Request::Local(_)))));
    }
    let mut scanner = Scanner::default();
    scanner.scan(b"set k 0 0 4 5\r\n", &LIMITS).unwrap();
    assert_eq!(scanner.scan(b"quit", &LIMITS), Ok(Scan::Skipped(4)));
    assert_eq!(scanner.scan(b"quit\r\n", &LIMITS), Err(ProtocolError::DataEnd), "what is it, then?");
}

#[test]
fn replies_end_where_they_end_and_fit_their_commands() {
    let scan = |kind, command: &str, reply: &str| {
        ReplyScanner::default().scan(kind, command.as_bytes(), reply.as_bytes())
    };
    for (kind, command, reply) in [
        (Kind::Values, "get a\r\n", "END\r\n"),
        (Kind::Values, "get a b c\r\n", "VALUE a 0 3\r\n\r\nE\r\nVALUE c 5 0\r\n\r\nEND\r\n"),
        (Kind::Values, "gets  a a \r\n", "VALUE a 0 0 1\r\n\r\nVALUE a 0 0 1\r\n\r\nEND\r\n"),
        (Kind::TouchedValues, "gat 5 5\r\n", "VALUE 5 0 1\r\nx\r\nEND\r\n"),
        (Kind::Values, "get a\r\n", "SERVER_ERROR out of memory writing get response\r\n"),
        (Kind::Stored, "set", "STORED\r\n"),
        (Kind::Stored, "set", "SERVER_ERROR object too large for cache\r\n"),
        (Kind::Number, "incr", "18446744073709551615\r\n"),
        (Kind::Number, "decr", "9 \r\n"),
        (Kind::Number, "incr", "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
        (Kind::Touched, "touch", "ERROR\r\n"),
        (Kind::MetaGet, "mg", "VA 3 t5 f0\r\nEN\r\r\n"),
        (Kind::MetaGet, "mg", "EN\r\n"),
        (Kind::MetaSet, "ms", "HD O5\r\n"),
        (Kind::MetaArithmetic, "ma", "VA 1\r\n5\r\n"),
        (Kind::MetaDebug, "me", "ME k exp=-1 la=0\r\n"),
    ] {
        assert_eq!(scan(kind, command, reply), Ok(Some(reply.len())), "{reply:?}");
        let more = format!("{reply}STORED\r\n");
        assert_eq!(scan(kind, command, &more), Ok(Some(reply.len())), "{reply:?}");
        for len in 0..reply.len() {
            assert_eq!(scan(kind, command, &reply[..len]), Ok(None), "{:?}", &reply[..len]);
        }
    }
    for (kind, command, reply, error) in [
        (Kind::Values, "get a\r\n", "STORED\r\n", ReplyError::Kind),
        (Kind::Values, "get a\r\n", "ERROR\r\n", ReplyError::Kind),
        (Kind::Values, "get a\r\n", "VALUE b 0 0\r\n\r\nEND\r\n", ReplyError::Key),
        (Kind::Values, "get a b\r\n", "VALUE b 0 0\r\n\r\nVALUE a 0 0\r\n\r\n", ReplyError::Key),
        (Kind::Values, "get a\r\n", "VALUE a 0 0\r\n\r\nVALUE a 0 0\r\n\r\n", ReplyError::Key),
        (Kind::Values, "get a\r\n", "VALUE a 0 0\r\n\r\nSERVER_ERROR x\r\n", ReplyError::Kind),
        (Kind::Values, "get a\r\n", "VALUE a 0 x\r\n", ReplyError::Length),
        (Kind::Values, "get a\r\n", "VALUE a 0\r\n", ReplyError::Length),
        (Kind::Values, "get a\r\n", "VALUE a 0 1 2 3\r\n", ReplyError::Length),
        (Kind::Values, "get a\r\n", "VALUE a 0 9999999999\r\n", ReplyError::Length),
        (Kind::Values, "get a\r\n", "VALUE a 0 1\r\nxyz", ReplyError::End),
        (Kind::Values, "get a\r\n", "END\n", ReplyError::End),
        (Kind::TouchedValues, "gat 5 a\r\n", "VALUE 5 0 1\r\nx\r\n", ReplyError::Key),
        (Kind::Stored, "set", "CLIENT_ERROR bad command line format\r\n", ReplyError::Kind),
        (Kind::Stored, "set", "ERROR\r\n", ReplyError::Kind),
        (Kind::Stored, "set", "DELETED\r\n", ReplyError::Kind),
        (Kind::Number, "incr", "STORED\r\n", ReplyError::Kind),
        (Kind::MetaSet, "ms", "VA 1\r\nx\r\n", ReplyError::Kind),
        (Kind::MetaGet, "mg", "VA x\r\n", ReplyError::Length),
        (Kind::MetaGet, "mg", "HDx\r\n", ReplyError::Kind),
    ] {
        assert_eq!(scan(kind, command, reply), Err(error), "{command:?} {reply:?}");
    }
    assert_eq!(scan(Kind::Stored, "set", &"S".repeat(2048)), Err(ReplyError::End));
}

fn many(text: &str) -> Keys {
    match Scanner::default().scan(text.as_bytes(), &Limits::default()) {
        Ok(Scan::Request(_, Request::Many(keys))) => keys,
        other => panic!("{text:?}: {other:?}"),
    }
}

/// Keys are digits, and live on the RACS of their last one, of three.
fn place(key: &[u8]) -> RacsId {
    RacsId::new(u32::from(key[key.len() - 1] - b'0') % 3)
}

fn split(text: &str) -> Split {
    let mut split = Split::default();
    split.split(text.as_bytes(), &many(text), 3, place).unwrap();
    split
}

#[test]
fn a_command_over_many_keys_is_split_and_its_replies_put_together() {
    let text = "get 1 0  3 4 9 8\r\n";
    let split_up = split(text);
    let parts: Vec<(u32, String)> = split_up
        .parts()
        .map(|(racs, text)| (racs.get(), String::from_utf8(text.to_vec()).unwrap()))
        .collect();
    assert_eq!(parts, [(1, "get 1 4\r\n".into()), (0, "get 0 3 9\r\n".into()), (2, "get 8\r\n".into())]);
    let together = |replies: [&str; 3]| {
        let mut gather = Gather::default();
        gather.values(text.as_bytes(), &many(text), &split_up);
        // In another order than the parts were sent.
        assert!(!gather.put(2, replies[2].as_bytes()));
        assert!(!gather.put(0, replies[0].as_bytes()));
        assert!(gather.put(1, replies[1].as_bytes()));
        let mut out = b"before ".to_vec();
        gather.write(&mut out);
        String::from_utf8(out).unwrap().split_off(7)
    };
    let [one, four, nine] = ["VALUE 1 0 3\r\nEND\r\n", "VALUE 4 7 0\r\n\r\n", "VALUE 9 0 1\r\n9\r\n"];
    let first = format!("{one}{four}END\r\n");
    assert_eq!(together([&first, &format!("{nine}END\r\n"), "END\r\n"]), format!("{one}{four}{nine}END\r\n"));
    assert_eq!(together(["END\r\n"; 3]), "END\r\n");
    assert_eq!(together([&first, "SERVER_ERROR x\r\n", "SERVER_ERROR y\r\n"]), "SERVER_ERROR x\r\n");
    // A scanner lets no such thing pass; should it come all the same, nothing of it does.
    assert!(
        together(["END\r\n", "VALUE 5 0 1\r\nx\r\nEND\r\n", "END\r\n"]).starts_with("SERVER_ERROR phalanx")
    );
    assert!(
        together(["END\r\n", "VALUE 0 0 9\r\nx\r\nEND\r\n", "END\r\n"]).starts_with("SERVER_ERROR phalanx")
    );
}

#[test]
fn parts_stay_as_short_as_memcached_wants_them() {
    let keys: Vec<String> = (0..3000).map(|n| format!("{n:0100}")).collect();
    for (head, most, parts) in [("get", 16 * 1024, 22), ("gats 100", 1024, 330)] {
        let text = format!("{head} {}\r\n", keys.join(" "));
        let split = split(&text);
        assert!(split.parts().len() < parts, "{}", split.parts().len());
        let mut seen = Vec::new();
        for (racs, part) in split.parts() {
            assert!(part.len() <= most && part.starts_with(head.as_bytes()));
            let part = std::str::from_utf8(part).unwrap().trim_end();
            let mine: Vec<String> = part[head.len() + 1..].split(' ').map(String::from).collect();
            assert!(mine.iter().all(|key| place(key.as_bytes()) == racs));
            seen.extend(mine);
        }
        seen.sort();
        assert_eq!(seen, keys);
    }
}

#[test]
fn all_must_say_ok() {
    let mut gather = Gather::default();
    for (replies, expected) in [
        (["OK\r\n", "OK\r\n"], "OK\r\n"),
        (
            ["CLIENT_ERROR flush_all not allowed\r\n", "CLIENT_ERROR flush_all not allowed\r\n"],
            "CLIENT_ERROR flush_all not allowed\r\n",
        ),
        // Who hears that nothing was done must be able to believe it.
        (
            ["OK\r\n", "CLIENT_ERROR flush_all not allowed\r\n"],
            "SERVER_ERROR phalanx: a part of it was done: CLIENT_ERROR flush_all not allowed\r\n",
        ),
        (
            ["SERVER_ERROR phalanx: busy; nothing was done\r\n", "OK\r\n"],
            "SERVER_ERROR phalanx: a part of it was done: busy\r\n",
        ),
        (
            [
                "SERVER_ERROR phalanx: busy; nothing was done\r\n",
                "SERVER_ERROR phalanx: outcome unknown: x\r\n",
            ],
            "SERVER_ERROR phalanx: outcome unknown: x\r\n",
        ),
        (
            [
                "SERVER_ERROR phalanx: busy; nothing was done\r\n",
                "SERVER_ERROR phalanx: no leader; nothing was done\r\n",
            ],
            "SERVER_ERROR phalanx: busy; nothing was done\r\n",
        ),
    ] {
        gather.oks(2);
        assert!(!gather.put(1, replies[1].as_bytes()));
        assert!(gather.put(0, replies[0].as_bytes()));
        let mut out = Vec::new();
        gather.write(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

/// Everything that a scanner makes of a stream that comes in these pieces.
fn read(pieces: &[&[u8]]) -> Vec<String> {
    let (mut scanner, mut input, mut seen) = (Scanner::default(), Vec::new(), Vec::new());
    let mut skipped = 0;
    for piece in pieces {
        input.extend_from_slice(piece);
        let mut done = 0;
        loop {
            match scanner.scan(&input[done..], &LIMITS) {
                Ok(Scan::Incomplete) => break,
                Ok(Scan::Skipped(len)) => {
                    skipped += len;
                    done += len;
                }
                Ok(Scan::Request(len, request)) => {
                    assert!(len > 0 && done + len <= input.len());
                    seen.push(format!("{skipped} {:?} {request:?}", &input[done..done + len]));
                    done += len;
                }
                Err(error) => {
                    seen.push(format!("{skipped} {error}"));
                    return seen;
                }
            }
        }
        input.drain(..done);
    }
    seen
}

fn replies(kind: Kind, command: &[u8], pieces: &[&[u8]]) -> Vec<String> {
    let (mut scanner, mut input, mut seen) = (ReplyScanner::default(), Vec::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        let mut done = 0;
        loop {
            match scanner.scan(kind, command, &input[done..]) {
                Ok(None) => break,
                Ok(Some(len)) => {
                    assert!(len > 0 && done + len <= input.len());
                    seen.push(format!("{:?}", &input[done..done + len]));
                    done += len;
                }
                Err(error) => {
                    seen.push(error.to_string());
                    return seen;
                }
            }
        }
        input.drain(..done);
    }
    seen
}

const COMMANDS: &[u8] = b"get a\r\nset k 0 0 12 noreply\r\nget a\r\nset \0\r\n\r\nget 1 2  3\ngat 5 1 2\r\n\
    set k 0 0 28\r\nflush_all\r\nshutdown\r\nquit \r\n\r\nms k 2 q T5\r\nxy\r\nmn\r\nmg YQ== b v q\r\n\
    set k x 0 4\r\nquit\r\nverbosity 1\r\nnosuch\r\ndelete k noreply\r\nincr k 5\r\nversion\r\nquit\r\n";
const REPLIES: &[u8] = b"VALUE 1 0 5\r\nEND\r\n\r\nVALUE 3 7 0 99\r\n\r\nEND\r\nEND\r\nSERVER_ERROR x\r\n\
    VALUE 2 0 0\r\n\r\nEND\r\n";
const KINDS: [Kind; 12] = [
    Kind::Values,
    Kind::TouchedValues,
    Kind::Stored,
    Kind::Deleted,
    Kind::Touched,
    Kind::Number,
    Kind::Ok,
    Kind::MetaGet,
    Kind::MetaSet,
    Kind::MetaDelete,
    Kind::MetaArithmetic,
    Kind::MetaDebug,
];

#[test]
fn every_cut_in_two_and_every_byte_alone_give_the_same() {
    let whole = read(&[COMMANDS]);
    assert!(whole.len() > 14 && whole.last().unwrap().contains("Quit"), "{whole:#?}");
    assert_eq!(read(&COMMANDS.chunks(1).collect::<Vec<_>>()), whole);
    for cut in 0..COMMANDS.len() {
        assert_eq!(read(&[&COMMANDS[..cut], &COMMANDS[cut..]]), whole, "cut at {cut}");
    }
    let command = b"get 1 2 3\r\n";
    let whole = replies(Kind::Values, command, &[REPLIES]);
    assert_eq!(whole.len(), 4, "{whole:#?}");
    assert_eq!(replies(Kind::Values, command, &REPLIES.chunks(1).collect::<Vec<_>>()), whole);
    for cut in 0..REPLIES.len() {
        assert_eq!(
            replies(Kind::Values, command, &[&REPLIES[..cut], &REPLIES[cut..]]),
            whole,
            "cut at {cut}"
        );
    }
}

/// Bytes that look like memcached's, more often than not.
fn noise(alphabet: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        8 => (0..alphabet.len()).prop_map(|at| alphabet[at].as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..12),
    ];
    vec(word, 0..40).prop_map(|words| words.concat())
}

const WORDS: &[&str] = &[
    "get ",
    "gets ",
    "gat 0 ",
    "set k 0 0 3\r\n",
    "cas ",
    "delete ",
    "incr ",
    "mg ",
    "ms k 3 ",
    "md ",
    "ma ",
    "me ",
    "mn\r\n",
    "flush_all ",
    "stats",
    "quit",
    "\r\n",
    "\r\n",
    "\n",
    " ",
    "key ",
    "noreply",
    "q ",
    "b ",
    "v ",
    "YQ== ",
    "0 ",
    "3 ",
    "99 ",
    "abc",
    "-1 ",
    "HTTP/1.1",
];
const ANSWERS: &[&str] = &[
    "VALUE ",
    "k ",
    "1 ",
    "0 ",
    "3",
    "\r\n",
    "\r\n",
    "abc\r\n",
    "END\r\n",
    "STORED\r\n",
    "VA ",
    "HD",
    "EN\r\n",
    "ME ",
    "SERVER_ERROR x\r\n",
    "ERROR\r\n",
    "NOT_FOUND\r\n",
    "OK\r\n",
    "17\r\n",
    " t5",
    "VALUE k 0 3\r\nabc\r\n",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn any_commands_are_the_same_however_they_are_cut(bytes in noise(WORDS), cuts in vec(0usize..400, 0..6)) {
        let whole = read(&[&bytes]);
        prop_assert_eq!(read(&pieces(&bytes, cuts)), whole);
    }

    #[test]
    fn any_replies_are_the_same_however_they_are_cut(
        bytes in noise(ANSWERS),
        cuts in vec(0usize..400, 0..6),
        kind in 0..KINDS.len(),
    ) {
        let command = b"get k 1 k\r\n";
        let whole = replies(KINDS[kind], command, &[&bytes]);
        prop_assert_eq!(replies(KINDS[kind], command, &pieces(&bytes, cuts)), whole);
    }

    #[test]
    fn what_is_passed_on_is_read_alike_by_the_next(bytes in noise(WORDS)) {
        let mut scanner = Scanner::default();
        if let Ok(Scan::Request(len, Request::One(one))) = scanner.scan(&bytes, &LIMITS) {
            let mut sent = bytes[..len].to_vec();
            let key = bytes[one.key.clone()].to_vec();
            sent.drain(one.cut.clone());
            match Scanner::default().scan(&sent, &LIMITS) {
                Ok(Scan::Request(again, Request::One(other))) => {
                    prop_assert_eq!(again, sent.len());
                    prop_assert_eq!(&sent[other.key.clone()], &key[..]);
                    prop_assert_eq!(other.note, Note { hush: Hush::Nothing, ..one.note });
                    prop_assert_eq!((other.binary, other.access), (one.binary, one.access));
                    prop_assert!(other.cut.is_empty());
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn split_and_put_together_is_as_from_one_server(
        keys in vec(0u32..40, 2..60),
        there in vec(any::<bool>(), 40),
        order in any::<u64>(),
    ) {
        let names: Vec<String> = keys.iter().map(u32::to_string).collect();
        let text = format!("get {}\r\n", names.join(" "));
        let values = |names: &[&str]| {
            let all: String = names
                .iter()
                .filter(|name| there[name.parse::<usize>().unwrap()])
                .map(|name| format!("VALUE {name} 0 {}\r\n{}\r\n", name.len() * 3, name.repeat(3)))
                .collect();
            all + "END\r\n"
        };
        let split = split(&text);
        let mut gather = Gather::default();
        gather.values(text.as_bytes(), &many(&text), &split);
        let mut parts: Vec<(u16, String)> = (0..).zip(split.parts()).map(|(part, (_, text))| {
            let names: Vec<&str> = std::str::from_utf8(text).unwrap().trim_end()[4..].split(' ').collect();
            (part, values(&names))
        }).collect();
        let turn = order as usize % parts.len();
        parts.rotate_left(turn);
        for (at, (part, reply)) in parts.iter().enumerate() {
            prop_assert_eq!(gather.put(*part, reply.as_bytes()), at + 1 == parts.len());
        }
        let mut out = Vec::new();
        gather.write(&mut out);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        prop_assert_eq!(String::from_utf8(out).unwrap(), values(&names));
    }
}

fn pieces(bytes: &[u8], mut cuts: Vec<usize>) -> Vec<&[u8]> {
    cuts.iter_mut().for_each(|cut| *cut = (*cut).min(bytes.len()));
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect()
}
