//! Redis commands and replies: limits, what the router answers itself, splitting and putting together again.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use membership_types::Rng;
use router_proto::resp::{
    After, Args, Family, Gather, Keys, Limits, ProtocolError, ReplyError, ReplyScanner, Scan, Scanner,
    SubCommand, answer, lookup,
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
        (b"*-2\r\n", ArgCount),
        (b"*1001\r\n", ArgCount),
        (b"*99999999999999999999\r\n", ArgCount),
        (b"*01\r\n$1\r\na\r\n", ArgCount),
        (b"*+1\r\n", ArgCount),
        (b"*1\n$1\r\na\r\n", ArgCount),
        (b"*1\r\r", ArgCount),
        (b"*1\r\n:1\r\n", ExpectedBulk(':')),
        (b"*2\r\n$1\r\na\r\n*", ExpectedBulk('*')),
        (b"*1\r\n$-1\r\n", BulkLength),
        (b"*1\r\n$101\r\n", BulkLength),
        (b"*1\r\n$1x\r\n", BulkLength),
        (b"*1\r\n$01\r\na\r\n", BulkLength),
        (b"*1\r\n$1\r\nab\r\n", BulkEnd),
        (b"*1\r\n$1\r\na\n\r\n", BulkEnd),
        (b"GET\0x\r\n", Inline),
        (b"\x16\x03\x01\r\n", Inline),
    ] {
        assert_eq!(scan(bytes).0, Err(reason), "{:?}", String::from_utf8_lossy(bytes));
    }
    let long = format!("*3\r\n$100\r\n{0}\r\n$100\r\n{0}\r\n$100\r\n", "x".repeat(100));
    assert_eq!(
        scan(long.as_bytes()).0,
        Err(TooLong),
        "refused before the bytes that make it too long arrive"
    );
    assert_eq!(scan(&[b'a'; 1024]).0, Err(Inline));
    assert_eq!(scan(&[b'a'; 1023]).0, Ok(Scan::Incomplete));
}

#[test]
fn arguments_come_out_raw_and_plain() {
    let (text, args) = command(&["SET", "key", "", "0123456789"]);
    assert_eq!(args.get(&text, 1), b"key");
    assert_eq!(args.raw(&text, 1), b"$3\r\nkey\r\n");
    assert_eq!(args.raw(&text, 2), b"$0\r\n\r\n");
    assert_eq!(args.raw(&text, 3), b"$10\r\n0123456789\r\n");
}

#[test]
fn a_large_argument_says_how_much_room_it_wants() {
    let mut scanner = Scanner::default();
    let head = b"*2\r\n$3\r\nGET\r\n$5000\r\nabc";
    let scan = scanner.scan(head, &mut Args::default(), &Limits::default());
    assert_eq!(scan, Ok(Scan::Incomplete));
    assert_eq!(scanner.wants(head), 13 + 7 + 5000 + 2);
}

#[test]
fn the_router_answers_for_itself() {
    let all = |words: &[&str]| {
        let (text, args) = command(words);
        let Some(Keys::None(local)) = lookup(words[0].as_bytes()).map(|command| command.keys) else {
            panic!("{} is not the router's own", words[0]);
        };
        let mut out = vec![];
        let after = answer(local, &text, &args, &mut out);
        assert_eq!(
            ReplyScanner::default().scan(&out),
            Ok(Some(out.len())),
            "one well-formed reply to {words:?}"
        );
        (String::from_utf8(out).unwrap(), after)
    };
    for (words, reply) in [
        (&["PING"][..], "+PONG\r\n"),
        (&["ping", "x\r\ny"], "$4\r\nx\r\ny\r\n"),
        (&["PING", "a", "b"], "-ERR wrong number of arguments for 'ping' command\r\n"),
        (&["ECHO", "hi"], "$2\r\nhi\r\n"),
        (&["ECHO"], "-ERR wrong number of arguments for 'echo' command\r\n"),
        (&["SELECT", "0"], "+OK\r\n"),
        (&["SELECT", "1"], "-ERR phalanx: a partitioned service has database 0 alone\r\n"),
        (&["COMMAND"], "*0\r\n"),
        (&["COMMAND", "DOCS"], "*0\r\n"),
        (&["CLIENT", "SETINFO", "LIB-NAME", "x"], "+OK\r\n"),
        (&["client", "setname", "me"], "+OK\r\n"),
        (&["CLIENT", "REPLY", "OFF"], "-ERR phalanx: command 'client|reply' is not routed yet\r\n"),
        (&["CLIENT", "A\r\nB"], "-ERR phalanx: command 'client|a  b' is not routed yet\r\n"),
        (&["CLIENT"], "-ERR wrong number of arguments for 'client' command\r\n"),
        (&["CONFIG", "GET", "save"], "*0\r\n"),
        (&["CONFIG", "SET", "save", ""], "-ERR phalanx: command 'config|set' is not routed yet\r\n"),
        (&["HELLO", "3"], "-NOPROTO unsupported protocol version\r\n"),
        (&["HELLO", "2", "AUTH", "u", "p"], "-ERR phalanx: this option of HELLO is not built yet\r\n"),
    ] {
        assert_eq!(all(words), (reply.into(), After::Continue), "{words:?}");
    }
    assert!(all(&["HELLO", "2", "SETNAME", "x"]).0.starts_with("*14\r\n$6\r\nserver\r\n$7\r\nphalanx\r\n"));
    assert_eq!(all(&["QUIT"]), ("+OK\r\n".into(), After::Close));
}

fn split(words: &[&str], family: Family, parts: &[u16], count: u16) -> Vec<String> {
    let (text, args) = command(words);
    let sub = SubCommand::of(&text, &args, family);
    assert_eq!(sub.keys(), Some(parts.len()));
    (0..count)
        .map(|part| {
            let mut out = vec![];
            sub.write(parts, part, &mut out);
            String::from_utf8(out).unwrap()
        })
        .collect()
}

#[test]
fn commands_over_many_keys_are_split_with_their_keys_in_order() {
    assert_eq!(
        split(&["mGET", "a", "bb", "c"], Family::Mget, &[1, 0, 1], 2),
        ["*2\r\n$4\r\nmGET\r\n$2\r\nbb\r\n", "*3\r\n$4\r\nmGET\r\n$1\r\na\r\n$1\r\nc\r\n"]
    );
    assert_eq!(
        split(&["MSET", "a", "1", "b", "", "c", "3"], Family::Mset, &[0, 1, 0], 2),
        [
            "*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nc\r\n$1\r\n3\r\n",
            "*3\r\n$4\r\nMSET\r\n$1\r\nb\r\n$0\r\n\r\n"
        ]
    );
    let (text, args) = command(&["MSET", "a", "1", "b"]);
    assert_eq!(SubCommand::of(&text, &args, Family::Mset).keys(), None, "a key without a value");
}

#[test]
fn replies_are_put_together_in_the_order_of_the_keys() {
    let gather = |family, parts: &[u16], count, replies: &[(u16, &str)]| {
        let mut gather = Gather::new(family, parts.to_vec(), count);
        for (at, (part, reply)) in replies.iter().enumerate() {
            assert_eq!(gather.put(*part, reply.as_bytes()), at + 1 == replies.len());
        }
        let mut out = vec![];
        gather.write(&mut out);
        assert_eq!(ReplyScanner::default().scan(&out), Ok(Some(out.len())));
        String::from_utf8(out).unwrap()
    };
    let mget = |replies: &[(u16, &str)]| gather(Family::Mget, &[0, 1, 0, 1], 2, replies);
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
    let mset = |replies: &[(u16, &str)]| gather(Family::Mset, &[0, 1], 2, replies);
    assert_eq!(mset(&[(0, "+OK\r\n"), (1, "+OK\r\n")]), "+OK\r\n");
    assert_eq!(mset(&[(1, "-ERR b\r\n"), (0, "-ERR a\r\n")]), "-ERR a\r\n", "the first by order of keys");
    let count = |replies: &[(u16, &str)]| gather(Family::CountUpdate, &[0, 1, 1], 2, replies);
    assert_eq!(count(&[(0, ":1\r\n"), (1, ":2\r\n")]), ":3\r\n");
    assert_eq!(count(&[(0, ":1\r\n"), (1, "-MOVED 1 a\r\n")]), "-MOVED 1 a\r\n");
    assert!(count(&[(0, ":1\r\n"), (1, "+OK\r\n")]).starts_with("-ERR phalanx"));
}

#[test]
fn split_and_gather_are_inverse_over_random_keys() {
    let mut rng = Rng::seeded(11);
    for _ in 0..200 {
        let keys = rng.between(1, 60) as usize;
        let count = rng.between(1, 5) as u16;
        let parts: Vec<u16> = (0..keys).map(|_| rng.below(count.into()) as u16).collect();
        let words: Vec<String> = (0..keys).map(|key| format!("k{key}")).collect();
        let mut all = vec!["MGET"];
        all.extend(words.iter().map(String::as_str));
        let subs = split(&all, Family::Mget, &parts, count);
        let mut gather = Gather::new(Family::Mget, parts, count);
        for (part, sub) in (0u16..).zip(&subs) {
            // A server whose value for each key is the key.
            let mut args = Args::default();
            Scanner::default().scan(sub.as_bytes(), &mut args, &Limits::default()).unwrap();
            let mut reply = format!("*{}\r\n", args.len() - 1).into_bytes();
            (1..args.len()).for_each(|at| reply.extend_from_slice(args.raw(sub.as_bytes(), at)));
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
