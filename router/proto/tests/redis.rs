//! Redis commands and replies: limits, what the router answers itself, splitting and putting together again.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use membership_types::Rng;
use router_proto::pmap::RacsId;
use router_proto::resp::{
    After, Args, Connection, Facts, Family, Found, Gather, Keys, Limits, Password, Proto, ProtocolError,
    ReplyError, ReplyScanner, Scan, Scanner, Split, Spread, TooLarge, answer, greeting, lookup, pattern_tag,
};

fn scan(bytes: &[u8]) -> (Result<Scan, ProtocolError>, Args) {
    let mut args = Args::default();
    let scan = Scanner::default().scan(bytes, &mut args, &Limits { args: 1000, bulk: 100, command: 250 });
    (scan, args)
}

fn command(words: &[&str]) -> (Vec<u8>, Args) {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    let mut args = Args::default();
    let scan = Scanner::default().scan(text.as_bytes(), &mut args, &Limits::default());
    assert_eq!(scan, Ok(Scan::Command(text.len())));
    (text.into_bytes(), args)
}

#[test]
fn what_is_not_resp_is_refused_for_the_right_reason() {
    use ProtocolError::*;
    for (bytes, reason) in [
        (&b"*x\r\n"[..], ArgCount),
        (b"*\r\n", ArgCount),
        (b"*-x\r\n", ArgCount),
        (b"*-\r\n", ArgCount),
        (b"*-0\r\n", ArgCount),
        (b"*-02\r\n", ArgCount),
        (b"*--2\r\n", ArgCount),
        (b"*1001\r\n", ArgCount),
        (b"*99999999999999999999\r\n", ArgCount),
        (b"*01\r\n$1\r\na\r\n", ArgCount),
        (b"*+1\r\n", ArgCount),
        (b"*1\n$1\r\na\r\n", ArgCount),
        (b"*1\r\r", ArgCount),
        (b"*1\r\n:1\r\n", ExpectedBulk(':')),
        (b"*2\r\n$1\r\na\r\n*", ExpectedBulk('*')),
        (b"*1\r\n$-1\r\n", BulkLength),
        (b"*1\r\n$536870913\r\n", BulkLength),
        (b"*1\r\n$1x\r\n", BulkLength),
        (b"*1\r\n$01\r\na\r\n", BulkLength),
        (b"*1\r\n$1\r\nab\r\n", BulkEnd),
        (b"*1\r\n$1\r\na\n\r\n", BulkEnd),
        (b"GET\0x\r\n", Inline),
        (b"\x16\x03\x01\r\n", Inline),
    ] {
        assert_eq!(scan(bytes).0, Err(reason), "{:?}", String::from_utf8_lossy(bytes));
    }
    // Redis answers nothing to so few arguments.
    for (bytes, len) in [(&b"*-1\r\n"[..], 5), (b"*-20\r\n$1\r\n", 6), (b"*0\r\n", 4)] {
        assert_eq!(scan(bytes).0, Ok(Scan::Empty(len)));
    }
    assert_eq!(scan(b"*-1").0, Ok(Scan::Incomplete));
    let long = format!("*3\r\n$100\r\n{0}\r\n$100\r\n{0}\r\n$100\r\n", "x".repeat(100));
    assert_eq!(
        scan(long.as_bytes()).0,
        Ok(Scan::TooLarge(long.len(), TooLarge::Command(long.len() + 102))),
        "refused before the bytes that make it too long arrive"
    );
    assert_eq!(scan(&[b'a'; 1024]).0, Err(Inline));
    assert_eq!(scan(&[b'a'; 1023]).0, Ok(Scan::Incomplete));
}

#[test]
fn arguments_come_out_raw_and_plain() {
    let (text, args) = command(&["SET", "key", "", "0123456789"]);
    assert_eq!(args.get(&text, 1), b"key");
    assert_eq!(args.raw(&text, 1..2), b"$3\r\nkey\r\n");
    assert_eq!(args.raw(&text, 2..3), b"$0\r\n\r\n");
    assert_eq!(args.raw(&text, 3..4), b"$10\r\n0123456789\r\n");
}

#[test]
fn what_is_too_large_is_passed_over_to_its_end_however_it_is_cut() {
    let limits = Limits { args: 10, bulk: 100, command: 250 };
    let (fits, long) = ("x".repeat(100), "GET".repeat(50));
    let (one, two, three) =
        (&["SET", "k", &long, "$9", ""][..], &["MSET", &fits, &fits, &fits, "v"], &["SET", &long]);
    let all = [one, &["SET", "k", &fits], two, three].map(|words| command(words).0);
    let stream = all.concat();
    for size in [1, 2, 3, 7, 64, stream.len()] {
        let (mut scanner, mut args) = (Scanner::default(), Args::default());
        let (mut input, mut seen, mut passed) = (vec![], vec![], 0);
        for piece in stream.chunks(size) {
            input.extend_from_slice(piece);
            loop {
                let len = match scanner.scan(&input, &mut args, &limits).unwrap() {
                    Scan::Incomplete => break,
                    Scan::TooLarge(len, what) => {
                        seen.push((passed, Some(what)));
                        len
                    }
                    Scan::Skipped(len) => len,
                    Scan::Command(len) => {
                        seen.push((passed, None));
                        len
                    }
                    other => panic!("{other:?}"),
                };
                passed += len;
                input.drain(..len);
            }
        }
        let starts: Vec<usize> = (0..4).map(|at| all[..at].iter().map(Vec::len).sum()).collect();
        // Where the third argument of a hundred bytes ends.
        let third = 4 + 10 + 3 * (6 + 100 + 2);
        let what = [
            Some(TooLarge::Argument(150)),
            None,
            Some(TooLarge::Command(third)),
            Some(TooLarge::Argument(150)),
        ];
        assert_eq!(seen, starts.into_iter().zip(what).collect::<Vec<_>>(), "{size}");
        assert_eq!((passed, scanner.is_skipping()), (stream.len(), false), "{size}");
    }
    // What is passed over is RESP, too, or nobody knows where it ends.
    for (rest, error) in [
        ("x", ProtocolError::BulkEnd),
        ("\r\n:1\r\n", ProtocolError::ExpectedBulk(':')),
        ("\r\n$-1\r\n", ProtocolError::BulkLength),
        ("\r\n$536870913\r\n", ProtocolError::BulkLength),
    ] {
        let mut scanner = Scanner::default();
        let mut input = format!("*3\r\n$101\r\n{}{rest}...", "x".repeat(101)).into_bytes();
        let found = loop {
            match scanner.scan(&input, &mut Args::default(), &limits) {
                Ok(Scan::TooLarge(len, _) | Scan::Skipped(len)) => _ = input.drain(..len),
                other => break other,
            }
        };
        assert_eq!(found, Err(error), "{rest:?}");
    }
}

#[test]
fn a_large_argument_says_how_much_room_it_wants() {
    let mut scanner = Scanner::default();
    let head = b"*2\r\n$3\r\nGET\r\n$5000\r\nabc";
    let scan = scanner.scan(head, &mut Args::default(), &Limits::default());
    assert_eq!(scan, Ok(Scan::Incomplete));
    assert_eq!(scanner.wants(head), 13 + 7 + 5000 + 2);
}

/// What the router answers on this connection.
fn ask(connection: &mut Connection, facts: &Facts<'_>, words: &[&str]) -> (String, After) {
    let (text, args) = command(words);
    let Some(Keys::None(local)) = lookup(words[0].as_bytes()).map(|command| command.keys) else {
        panic!("{} is not the router's own", words[0]);
    };
    let mut out = vec![];
    let after = answer(local, &text, &args, connection, facts, &mut out);
    let scan = ReplyScanner::default().scan(&out);
    assert_eq!(scan, Ok(Some(out.len())), "one well-formed reply to {words:?}");
    (String::from_utf8(out).unwrap(), after)
}

#[test]
fn the_router_answers_for_itself() {
    let mut connection = Connection::new(7, true);
    let mut all = |words: &[&str]| ask(&mut connection, &Facts::default(), words);
    for (words, reply) in [
        (&["PING"][..], "+PONG\r\n"),
        (&["ping", "x\r\ny"], "$4\r\nx\r\ny\r\n"),
        (&["PING", "a", "b"], "-ERR wrong number of arguments for 'ping' command\r\n"),
        (&["ECHO", "hi"], "$2\r\nhi\r\n"),
        (&["SELECT", "0"], "+OK\r\n"),
        (&["SELECT", "1"], "-ERR phalanx: a partitioned service has database 0 alone\r\n"),
        (&["SELECT", "x"], "-ERR value is not an integer or out of range\r\n"),
        (&["CLIENT", "ID"], ":7\r\n"),
        (&["CLIENT", "GETNAME"], "$-1\r\n"),
        (
            &["client", "setname", "a b"],
            "-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
        ),
        (&["client", "setname", "me"], "+OK\r\n"),
        (&["CLIENT", "GETNAME"], "$2\r\nme\r\n"),
        (&["CLIENT", "SETINFO", "LIB-NAME", "x"], "+OK\r\n"),
        (&["CLIENT", "SETINFO", "COLOUR", "x"], "-ERR Unrecognized option 'colour'\r\n"),
        (&["CLIENT", "NO-EVICT", "on"], "+OK\r\n"),
        (&["CLIENT", "REPLY", "ON"], "+OK\r\n"),
        (
            &["CLIENT", "REPLY", "OFF"],
            "-ERR phalanx: 'client|reply' is refused: every command is answered\r\n",
        ),
        (&["CLIENT", "KILL", "x"], "-ERR phalanx: 'client|kill' is refused: a client sees itself alone\r\n"),
        (&["CLIENT", "A\r\nB"], "-ERR unknown subcommand 'a  b'. Try CLIENT HELP.\r\n"),
        (&["CLIENT", "ID", "x"], "-ERR wrong number of arguments for 'client|id' command\r\n"),
        (&["CONFIG", "GET", "save"], "*0\r\n"),
        (&["ACL", "WHOAMI"], "$7\r\ndefault\r\n"),
        (
            &["AUTH", "x"],
            "-ERR AUTH <password> called without any password configured for the default user. Are \
          you sure your configuration is correct?\r\n",
        ),
        (&["AUTH", "default", "x"], "+OK\r\n"),
        (&["AUTH", "other", "x"], "-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
        (&["HELLO", "4"], "-NOPROTO unsupported protocol version\r\n"),
        (&["HELLO", "x"], "-ERR Protocol version is not an integer or out of range\r\n"),
        (&["HELLO", "2", "AUTH", "u"], "-ERR Syntax error in HELLO option 'auth'\r\n"),
        (
            &["HELLO", "2", "AUTH", "u", "p"],
            "-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        ),
    ] {
        assert_eq!(all(words), (reply.into(), After::Continue), "{words:?}");
    }
    let config = all(&["CONFIG", "SET", "save", ""]).0;
    assert!(config.starts_with("-ERR phalanx: 'config|set' is refused"), "{config}");
    assert!(all(&["HELLO", "2", "SETNAME", "x"]).0.starts_with("*14\r\n$6\r\nserver\r\n$7\r\nphalanx\r\n"));
    assert!(all(&["CLIENT", "INFO"]).0.contains("id=7 name=x "));
    // Clients go by either of them.
    assert!(all(&["INFO"]).0.contains("redis_version:7.0.0\r\n"));
    assert!(all(&["HELLO", "2"]).0.contains("$7\r\nversion\r\n$5\r\n7.0.0\r\n"));
    assert!(all(&["HELLO", "3"]).0.starts_with("%7\r\n$6\r\nserver\r\n"));
    assert!(all(&["HELLO"]).0.contains("$5\r\nproto\r\n:3\r\n"));
    assert_eq!(all(&["CONFIG", "GET", "save"]).0, "%0\r\n");
    assert_eq!(all(&["RESET"]).0, "+RESET\r\n");
    assert_eq!(all(&["CLIENT", "GETNAME"]).0, "$-1\r\n", "the name is forgotten, and RESP2 is back");
    assert_eq!(all(&["QUIT"]), ("+OK\r\n".into(), After::Close));
    let subscribed = Facts { subscribed: true, ..Facts::default() };
    assert_eq!(ask(&mut connection, &subscribed, &["PING"]).0, "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
}

#[test]
fn who_must_give_a_password_is_nobody_before() {
    let password = Password::new(b"secret");
    let facts = Facts { password: Some(&password), ..Facts::default() };
    let mut connection = Connection::new(7, false);
    let wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    for words in
        [&["AUTH", "guess"][..], &["AUTH", "root", "secret"], &["HELLO", "3", "AUTH", "default", "x"]]
    {
        assert_eq!(ask(&mut connection, &facts, words).0, wrong);
        assert!(!connection.admitted && connection.proto == Proto::Resp2);
    }
    assert!(ask(&mut connection, &facts, &["HELLO", "3"]).0.starts_with("-NOAUTH HELLO must be called"));
    assert!(ask(&mut connection, &facts, &["HELLO", "3", "AUTH", "default", "secret"]).0.starts_with("%7"));
    assert!(connection.admitted && connection.proto == Proto::Resp3);
    ask(&mut connection, &facts, &["RESET"]);
    assert!(!connection.admitted);
    assert_eq!(ask(&mut connection, &facts, &["AUTH", "secret"]).0, "+OK\r\n");
    assert!(connection.admitted);
    assert_eq!(ask(&mut connection, &facts, &["AUTH", "guess"]).0, wrong);
    assert!(connection.admitted, "as in Redis, a wrong guess takes nothing away");
}

#[test]
fn servers_are_greeted_in_the_client_s_protocol() {
    let text = |proto, login| String::from_utf8(greeting(proto, login)).unwrap();
    assert_eq!(text(Proto::Resp2, None), "");
    assert_eq!(text(Proto::Resp2, Some((None, b"pw"))), "*2\r\n$4\r\nAUTH\r\n$2\r\npw\r\n");
    assert_eq!(text(Proto::Resp2, Some((Some(b"u"), b"pw"))), "*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$2\r\npw\r\n");
    assert_eq!(text(Proto::Resp3, None), "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n");
    let full = text(Proto::Resp3, Some((None, b"pw")));
    assert_eq!(full, "*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$2\r\npw\r\n");
}

#[test]
fn keys_are_where_the_server_sees_them() {
    let keys = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let (text, args) = command(&words);
        let known = lookup(words[0].as_bytes()).unwrap();
        assert!(known.fits(args.len()), "{line}");
        let mut keys = vec![];
        known
            .each_key(&text, &args, &mut |at| keys.push(words[at]))
            .map(|()| keys.join(" "))
            .map_err(|why| why.0)
    };
    for (line, found) in [
        ("GET a", "a"),
        ("MSET a 1 b 2", "a b"),
        ("BITOP AND d a b", "d a b"),
        ("BLPOP a b 0", "a b"),
        ("EVAL x 2 a b c", "a b"),
        ("EVAL x 0 a", ""),
        ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "d a b"),
        ("BLMPOP 0 2 a b LEFT", "a b"),
        ("XREAD COUNT 2 BLOCK 5 STREAMS a b 0 0", "a b"),
        ("XREADGROUP GROUP streams STREAMS NOACK STREAMS a >", "a"),
        ("XREADGROUP GROUP g STREAMS STREAMS streams >", "streams"),
        ("SORT a BY nosort GET # STORE d", "a d"),
        ("SORT store LIMIT 0 1 STORE store STORE d", "store store d"),
        ("GEORADIUS a 1 2 3 m COUNT 3 STORE d", "a d"),
        ("GEORADIUSBYMEMBER a store 3 m STOREDIST d", "a d"),
        ("LMOVE a b LEFT RIGHT", "a b"),
        ("COPY a db DB 0 REPLACE", "a db"),
    ] {
        assert_eq!(keys(line).as_deref(), Ok(found), "{line}");
    }
    for (line, why) in [
        ("EVAL x -1 a", "ERR Number of keys can't be negative"),
        ("EVAL x 3 a b", "ERR Number of keys can't be greater than number of args"),
        ("EVAL x 01 a b", "ERR value is not an integer or out of range"),
        ("EVAL x 99999999999999999999 a b", "ERR value is not an integer or out of range"),
        ("LMPOP 0 a LEFT", "ERR numkeys should be greater than 0"),
        ("ZUNION 0 a", "ERR at least 1 input key is needed for 'zunion' command"),
        ("zdiff x a", "ERR value is not an integer or out of range"),
        ("SINTERCARD 2 a", "ERR Number of keys can't be greater than number of args"),
        ("FCALL f x a", "ERR Bad number of keys provided"),
        ("ZUNION 3 a b", "ERR syntax error"),
        ("XREAD COUNT STREAMS a 0", "ERR syntax error"),
        ("XREAD GROUP g c STREAMS a 0", "ERR syntax error"),
        ("SORT a LIMIT 0", "ERR syntax error"),
        ("COPY a b REPLACE db 1", "ERR phalanx: a partitioned service has database 0 alone"),
        ("MSETNX a 1 b 2 c", "ERR wrong number of arguments for 'msetnx' command"),
    ] {
        assert_eq!(keys(line), Err(why), "{line}");
    }
    assert!(keys("XREAD STREAMS a b 0").unwrap_err().starts_with("ERR Unbalanced"));
    // Patterns are told apart from keys; only a tag before the star says where their keys are.
    let (text, args) = command(&["SORT", "a", "BY", "w_{t}_*", "GET", "*->f", "GET", "#"]);
    let Keys::Together(find, _) = lookup(b"sort").unwrap().keys else { panic!() };
    let mut patterns = vec![];
    let visit = &mut |found| {
        if let Found::Pattern(at) = found {
            patterns.push(args.get(&text, at))
        }
    };
    find.each(&text, &args, visit).unwrap();
    assert_eq!(patterns.iter().map(|one| pattern_tag(one)).collect::<Vec<_>>(), [Some(&b"t"[..]), None]);
    assert_eq!(pattern_tag(b"*_{t}"), None, "an element may bring a tag of its own");
}

#[test]
fn how_long_a_command_may_wait_is_in_it() {
    let wait = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let (text, args) = command(&words);
        let Keys::Blocking(_, _, patience) = lookup(words[0].as_bytes()).unwrap().keys else {
            panic!("{line}")
        };
        patience.of(&text, &args).map(|time| time.as_millis())
    };
    for (line, millis) in [
        ("BLPOP a b 0", Some(0)),
        ("BLPOP a 1.5", Some(1500)),
        ("BLPOP a x", Some(0)),
        ("BLPOP a -1", Some(0)),
        ("BZMPOP 2 1 a MIN", Some(2000)),
        ("BLMOVE a b LEFT LEFT 3", Some(3000)),
        ("XREAD STREAMS a 0", None),
        ("XREAD BLOCK 250 STREAMS a 0", Some(250)),
        ("XREADGROUP GROUP g c BLOCK 0 STREAMS a >", Some(0)),
        ("XREADGROUP GROUP block c STREAMS a >", None),
    ] {
        assert_eq!(wait(line), millis, "{line}");
    }
}

#[test]
fn one_reply_comes_of_those_of_all_servers() {
    let all = |spread, random, replies: &[&str]| {
        let mut gather = Gather::default();
        gather.all(spread, replies.len() as u16, random);
        for (part, reply) in (0..).zip(replies) {
            gather.put(part, reply.as_bytes());
        }
        let mut out = vec![];
        gather.write(&mut out);
        assert_eq!(ReplyScanner::default().scan(&out), Ok(Some(out.len())));
        String::from_utf8(out).unwrap()
    };
    assert_eq!(all(Spread::Sum, 0, &[":1\r\n", ":20\r\n"]), ":21\r\n");
    assert_eq!(all(Spread::Most, 0, &[":1\r\n", ":20\r\n", ":3\r\n"]), ":20\r\n");
    assert_eq!(all(Spread::Same, 0, &["+OK\r\n", "+OK\r\n"]), "+OK\r\n");
    let keys = ["*2\r\n$1\r\na\r\n$1\r\nb\r\n", "*0\r\n", "*1\r\n$1\r\na\r\n"];
    assert_eq!(all(Spread::Concat, 0, &keys), "*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\na\r\n");
    assert_eq!(all(Spread::Channels, 0, &keys), "*2\r\n$1\r\na\r\n$1\r\nb\r\n");
    assert_eq!(
        all(Spread::SumByName, 0, &["*2\r\n$1\r\na\r\n:1\r\n", "*2\r\n$1\r\na\r\n:2\r\n"]),
        "*2\r\n$1\r\na\r\n:3\r\n"
    );
    assert_eq!(all(Spread::Every, 0, &["*2\r\n:1\r\n:1\r\n", "*2\r\n:0\r\n:1\r\n"]), "*2\r\n:0\r\n:1\r\n");
    assert!(
        all(Spread::SumByName, 0, &["*1\r\n$1\r\na\r\n"]).starts_with("-ERR phalanx: "),
        "a name without a number"
    );
    for random in 0..4 {
        let one = all(Spread::One, random, &["$-1\r\n", "$1\r\na\r\n", "_\r\n", "$1\r\nb\r\n"]);
        assert_eq!(one, if random % 2 == 0 { "$1\r\na\r\n" } else { "$1\r\nb\r\n" });
    }
    assert_eq!(all(Spread::One, 9, &["$-1\r\n", "$-1\r\n"]), "$-1\r\n");
    for spread in
        [Spread::Sum, Spread::Most, Spread::Concat, Spread::Channels, Spread::SumByName, Spread::Every]
    {
        assert_eq!(all(spread, 0, &["*0\r\n", "-OOM x\r\n"]), "-OOM x\r\n", "{spread:?}");
        let odd = all(spread, 0, &["*2\r\n$1\r\na\r\n:1\r\n", "+what\r\n"]);
        assert!(odd.starts_with("-ERR phalanx: "), "{spread:?}: {odd}");
    }
}

/// Splits a command whose keys are in these RACS; the parts as text, or where the whole goes.
fn split(room: &mut Split, words: &[&str], family: Family, racs: &[u32]) -> Result<Vec<(u32, String)>, u32> {
    let (text, args) = command(words);
    assert_eq!(family.keys(&args), Some(racs.len()));
    let count = racs.iter().max().map_or(0, |most| *most as usize + 1);
    let mut next = racs.iter();
    let only = room.split(&text, &args, family, count, |_| RacsId::new(*next.next().unwrap()));
    assert_eq!(next.next(), None, "each key is located once");
    let Some(only) = only else {
        let shown = |(racs, text): (RacsId, &[u8])| (racs.get(), String::from_utf8(text.to_vec()).unwrap());
        return Ok(room.parts().map(shown).collect());
    };
    Err(only.get())
}

/// Waits for the replies to the parts of a command whose keys are in these RACS.
fn gather(family: Family, racs: &[u32]) -> Gather {
    let (mut gather, mut room) = (Gather::default(), Split::default());
    let words: Vec<&str> = std::iter::once("X").chain(vec!["k"; racs.len() * family.step()]).collect();
    split(&mut room, &words, family, racs).unwrap();
    gather.keys(family, &room);
    gather
}

#[test]
fn commands_over_many_keys_are_split_with_their_keys_in_order() {
    let mut room = Split::default();
    // The same room again and again: nothing of the one before is left.
    for _ in 0..2 {
        let (one, other) = ("*3\r\n$4\r\nmGET\r\n$1\r\na\r\n$1\r\nc\r\n", "*2\r\n$4\r\nmGET\r\n$2\r\nbb\r\n");
        assert_eq!(
            split(&mut room, &["mGET", "a", "bb", "c"], Family::Mget, &[8, 3, 8]),
            Ok(vec![(8, one.into()), (3, other.into())])
        );
        let one = "*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nc\r\n$12\r\n333333333333\r\n";
        let other = "*3\r\n$4\r\nMSET\r\n$1\r\nb\r\n$0\r\n\r\n";
        assert_eq!(
            split(&mut room, &["MSET", "a", "1", "b", "", "c", "333333333333"], Family::Mset, &[0, 1, 0]),
            Ok(vec![(0, one.into()), (1, other.into())])
        );
        assert_eq!(split(&mut room, &["MGET", "a", "bb"], Family::Mget, &[2, 2]), Err(2));
        assert_eq!(split(&mut room, &["DEL", "a"], Family::CountUpdate, &[0]), Err(0));
        room.shrink();
    }
    let (_, args) = command(&["MSET", "a", "1", "b"]);
    assert_eq!(Family::Mset.keys(&args), None, "a key without a value");
}

#[test]
fn replies_are_put_together_in_the_order_of_the_keys() {
    let gather = |family: Family, parts: &[u32], replies: &[(u16, &str)]| {
        let mut gather = gather(family, parts);
        for (at, (part, reply)) in replies.iter().enumerate() {
            assert_eq!(gather.put(*part, reply.as_bytes()), at + 1 == replies.len());
        }
        let mut out = vec![];
        gather.write(&mut out);
        assert_eq!(ReplyScanner::default().scan(&out), Ok(Some(out.len())));
        String::from_utf8(out).unwrap()
    };
    let mget = |replies: &[(u16, &str)]| gather(Family::Mget, &[0, 1, 0, 1], replies);
    assert_eq!(
        mget(&[(1, "*2\r\n$2\r\nb1\r\n$-1\r\n"), (0, "*2\r\n$2\r\na1\r\n$2\r\na2\r\n")]),
        "*4\r\n$2\r\na1\r\n$2\r\nb1\r\n$2\r\na2\r\n$-1\r\n"
    );
    // The keys of a part that failed carry its error; the others have their values.
    assert_eq!(
        mget(&[(1, "-TRYAGAIN phalanx: x\r\n"), (0, "*2\r\n$1\r\na\r\n$1\r\nb\r\n")]),
        "*4\r\n$1\r\na\r\n-TRYAGAIN phalanx: x\r\n$1\r\nb\r\n-TRYAGAIN phalanx: x\r\n"
    );
    // A server that answers with too few or too many elements, or no array, must not shift the others'.
    for odd in ["*1\r\n$1\r\na\r\n", "*3\r\n:1\r\n:2\r\n:3\r\n", "+OK\r\n", "*-1\r\n", "$3\r\nabc\r\n"] {
        let all = mget(&[(1, odd), (0, "*2\r\n$1\r\na\r\n$1\r\nb\r\n")]);
        assert_eq!(all.matches("-ERR phalanx: a server's reply").count(), 2, "{all}");
        assert!(all.starts_with("*4\r\n$1\r\na\r\n-ERR"), "{all}");
    }
    let mset = |replies: &[(u16, &str)]| gather(Family::Mset, &[0, 1], replies);
    assert_eq!(mset(&[(0, "+OK\r\n"), (1, "+OK\r\n")]), "+OK\r\n");
    assert_eq!(mset(&[(1, "-ERR b\r\n"), (0, "-ERR a\r\n")]), "-ERR a\r\n", "the first by order of keys");
    let count = |replies: &[(u16, &str)]| gather(Family::CountUpdate, &[0, 1, 1], replies);
    assert_eq!(count(&[(0, ":1\r\n"), (1, ":2\r\n")]), ":3\r\n");
    assert_eq!(
        count(&[(0, ":1\r\n"), (1, "-MOVED 1 a\r\n")]),
        "-ERR phalanx: a part of it was done: MOVED 1 a\r\n"
    );
    assert!(count(&[(0, ":1\r\n"), (1, "+OK\r\n")]).starts_with("-ERR phalanx"));
}

#[test]
fn an_update_of_which_a_part_was_done_says_so() {
    let gather = |family: Option<Family>, replies: [&str; 3]| {
        let mut gather = match family {
            Some(family) => gather(family, &[0, 1, 2]),
            None => {
                let mut gather = Gather::default();
                gather.all(Spread::Same, 3, 0);
                gather
            }
        };
        for (part, reply) in (0..).zip(replies) {
            gather.put(part, reply.as_bytes());
        }
        let mut out = vec![];
        gather.write(&mut out);
        assert_eq!(ReplyScanner::default().scan(&out), Ok(Some(out.len())));
        String::from_utf8(out).unwrap()
    };
    let refused = "-TRYAGAIN phalanx: too many requests are under way; nothing was done\r\n";
    let unknown = "-ERR phalanx: outcome unknown: it failed\r\n";
    for (family, ok) in
        [(Some(Family::Mset), "+OK\r\n"), (Some(Family::CountUpdate), ":1\r\n"), (None, "+OK\r\n")]
    {
        for replies in [[ok, refused, refused], [refused, refused, ok], [refused, ok, unknown]] {
            assert_eq!(
                gather(family, replies),
                "-ERR phalanx: a part of it was done: too many requests are under way\r\n"
            );
        }
        assert_eq!(
            gather(family, [unknown, ok, refused]),
            "-ERR phalanx: a part of it was done: outcome unknown: it failed\r\n"
        );
        let partly = gather(family, [ok, "!6\r\nOOM no\r\n", ok]);
        assert_eq!(partly, "-ERR phalanx: a part of it was done: OOM no\r\n");
        // A server may be a router, too.
        assert_eq!(gather(family, [refused, &partly, refused]).matches("was done").count(), 1);
        assert_eq!(gather(family, [&partly, ok, ok]), partly);
        assert_eq!(gather(family, [refused, unknown, refused]), unknown, "who may have been done is told of");
        assert_eq!(gather(family, [refused; 3]), refused, "nothing was done");
        let long = format!("-ERR {}\r\n", "x".repeat(100_000));
        assert!(gather(family, [ok, ok, &long]).len() < 600);
    }
    assert_eq!(
        gather(Some(Family::CountRead), [":1\r\n", refused, ":1\r\n"]),
        refused,
        "a read does nothing"
    );
}

/// Room for all parts was once reserved by the length of the first reply: one command took terabytes.
#[test]
fn a_long_reply_to_one_part_takes_no_room_for_the_others() {
    let long = vec![b'x'; 16 << 20];
    let parts: Vec<u32> = (0..u16::MAX.into()).collect();
    let mut gather = gather(Family::Mget, &parts);
    assert!(!gather.put(0, &long));
    assert!(!gather.put(1, b"$-1\r\n"));
    assert_eq!(gather.kept(), long.len() + 5);
}

#[test]
fn split_and_gather_are_inverse_over_random_keys() {
    let (mut rng, mut room) = (Rng::seeded(11), Split::default());
    for _ in 0..200 {
        let keys = rng.between(1, 60) as usize;
        let count = rng.between(1, 5);
        let racs: Vec<u32> = (0..keys).map(|_| rng.below(count) as u32).collect();
        let words: Vec<String> = (0..keys).map(|key| format!("k{key}")).collect();
        let mut all = vec!["MGET"];
        all.extend(words.iter().map(String::as_str));
        let Ok(parts) = split(&mut room, &all, Family::Mget, &racs) else { continue };
        let mut gather = Gather::default();
        gather.keys(Family::Mget, &room);
        for (part, (_, sub)) in (0u16..).zip(&parts) {
            // A server whose value for each key is the key.
            let mut args = Args::default();
            Scanner::default().scan(sub.as_bytes(), &mut args, &Limits::default()).unwrap();
            let mut reply = format!("*{}\r\n", args.len() - 1).into_bytes();
            reply.extend_from_slice(args.raw(sub.as_bytes(), 1..args.len()));
            gather.put(part, &reply);
        }
        let mut out = vec![];
        gather.write(&mut out);
        let expected: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        assert_eq!(String::from_utf8(out).unwrap(), format!("*{keys}\r\n{expected}"));
    }
}

#[test]
fn replies_that_are_none_are_refused() {
    let scan = |bytes: &[u8]| ReplyScanner::default().scan(bytes);
    assert_eq!(scan(b"hello\r\n"), Err(ReplyError::Type('h')));
    assert_eq!(scan(b"h"), Err(ReplyError::Type('h')));
    assert_eq!(scan(b">2\r\n+a\r\n+b\r\n"), Err(ReplyError::Type('>')), "nobody subscribed");
    assert_eq!(scan(b"$x\r\n"), Err(ReplyError::Length));
    assert_eq!(scan(b"$999999999\r\n"), Err(ReplyError::Length));
    assert_eq!(scan(b"*99999999999\r\n"), Err(ReplyError::Length));
    assert_eq!(scan(b"%-1\r\n"), Err(ReplyError::Length));
    assert_eq!(scan(b"+OK\n"), Err(ReplyError::End));
    assert_eq!(scan(b"$1\r\nab\r\n"), Err(ReplyError::End));
    // Deep nesting is counted, not descended into.
    let deep = [b"*1\r\n".repeat(100_000), b":1\r\n".to_vec()].concat();
    assert_eq!(scan(&deep), Ok(Some(deep.len())));
}
