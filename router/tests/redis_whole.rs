//! All of Redis' commands through the router: a real server says what they are.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{collections::BTreeMap, thread, time::Duration};

use common::{real::*, *};
use router_proto::{
    racs::Access,
    resp::{self, Args, Command, Keys, Limits, Scan, Scanner},
};

/// What a server says of one of its commands.
struct Told {
    arity: i64,
    flags: Vec<String>,
    keys: (i64, i64, i64),
    subs: BTreeMap<String, Told>,
}

/// A reply as a tree.
enum Tree {
    Text(String),
    Number(i64),
    List(Vec<Tree>),
}

fn tree(reply: &str, at: &mut usize) -> Tree {
    let line = |at: &mut usize| {
        let end = *at + reply[*at..].find("\r\n").unwrap();
        let line = &reply[*at..end];
        *at = end + 2;
        line.to_owned()
    };
    let head = line(at);
    match head.as_bytes()[0] {
        b':' => Tree::Number(head[1..].parse().unwrap()),
        b'$' if head != "$-1" => Tree::Text(line(at)),
        b'*' => Tree::List((0..head[1..].parse().unwrap()).map(|_| tree(reply, at)).collect()),
        _ => Tree::Text(head[1..].into()),
    }
}

impl Tree {
    fn list(&self) -> &[Self] {
        if let Self::List(list) = self { list } else { panic!("no list") }
    }

    fn text(&self) -> &str {
        if let Self::Text(text) = self { text } else { panic!("no text") }
    }

    fn number(&self) -> i64 {
        if let Self::Number(number) = self { *number } else { panic!("no number") }
    }
}

fn told(list: &Tree) -> BTreeMap<String, Told> {
    let one = |command: &Tree| {
        let part = command.list();
        let name = part[0].text().rsplit('|').next().unwrap().to_owned();
        let told = Told {
            arity: part[1].number(),
            flags: part[2].list().iter().map(|flag| flag.text().to_owned()).collect(),
            keys: (part[3].number(), part[4].number(), part[5].number()),
            subs: told(&part[9]),
        };
        (name, told)
    };
    list.list().iter().map(one).collect()
}

/// Those that change nothing, or do not say so, and go where updates go all the same.
const TO_LEADERS: &[&str] = &[
    // Positions and subscribers are one server's own.
    "hscan",
    "sscan",
    "zscan",
    "scan",
    "publish",
    "spublish",
    "pubsub|channels",
    "pubsub|numpat",
    "pubsub|numsub",
    "pubsub|shardchannels",
    "pubsub|shardnumsub",
    // Scripts may change data, and are loaded on leaders.
    "eval",
    "evalsha",
    "fcall",
    "script|load",
    "script|exists",
    "script|flush",
];

fn compare(container: &str, known: &Command, told: &Told) {
    let name = format!("{container}{}", known.name);
    let access = match known.keys {
        Keys::Refused(why) => return assert!(!why.is_empty()),
        Keys::None(_) | Keys::Transaction(_) | Keys::Subscribe(..) => None,
        Keys::One { access, .. }
        | Keys::Together(_, access)
        | Keys::Blocking(_, access, _)
        | Keys::Any(access) => Some(access),
        Keys::Many(family) => Some(family.access()),
        Keys::All(spread) => Some(spread.access()),
        Keys::Scan => Some(Access::Update),
        Keys::Sub(subs) => {
            for (sub, told) in &told.subs {
                let known = subs.iter().find(|known| known.name == sub);
                compare(
                    &format!("{name}|"),
                    known.unwrap_or_else(|| panic!("{name}|{sub} is unknown")),
                    told,
                );
            }
            None
        }
    };
    // A later server may take more arguments than this one.
    let later = ["zrank", "zrevrank"];
    assert!(i64::from(known.arity) == told.arity || later.contains(&known.name), "{name}: {}", told.arity);
    if let Some(access) = access {
        let writes = told.flags.iter().any(|flag| flag == "write");
        let leader = writes || TO_LEADERS.contains(&&*name);
        assert_eq!(access == Access::Update, leader, "{name} writes: {writes}");
    }
    let movable = told.flags.iter().any(|flag| flag == "movablekeys");
    let blocks = told.flags.iter().any(|flag| flag == "blocking");
    assert_eq!(blocks, matches!(known.keys, Keys::Blocking(..)), "{name}");
    if told.keys.0 != 0 && !movable {
        let args = told.arity.unsigned_abs() as usize + 4 * usize::from(told.arity < 0);
        let (first, last, step) = told.keys;
        let last = if last < 0 { args as i64 + last } else { last };
        let expected: Vec<usize> = (first..=last).step_by(step as usize).map(|at| at as usize).collect();
        // One that goes by its own way says nothing of keys.
        if !matches!(known.keys, Keys::Transaction(_) | Keys::Subscribe(..)) {
            assert_eq!(keys_of(known, &vec!["1"; args]), expected, "{name}");
        }
    }
}

fn keys_of(known: &Command, words: &[&str]) -> Vec<usize> {
    let text = command(words);
    let mut args = Args::default();
    let scan = Scanner::default().scan(text.as_bytes(), &mut args, &Limits::default());
    assert_eq!(scan, Ok(Scan::Command(text.len())));
    let mut keys = vec![];
    known.each_key(text.as_bytes(), &args, &mut |at| keys.push(at)).unwrap();
    keys
}

#[test]
fn every_command_of_a_real_server_is_known_as_the_server_knows_it() {
    let Some(server) = RealServer::start() else { return };
    let mut client = Client::connect(server.addr);
    let all = told(&tree(&client.command(&["COMMAND"]), &mut 0));
    assert!(all.len() > 200);
    for (name, told) in &all {
        let known = resp::lookup(name.as_bytes()).unwrap_or_else(|| panic!("{name} is unknown"));
        compare("", known, told);
    }
    // Where keys are not at fixed places the server is asked for those of examples.
    for line in [
        "EVAL x 2 a b c",
        "EVALSHA x 1 a b",
        "EVAL_RO x 1 a",
        "FCALL x 2 a b",
        "ZUNIONSTORE d 2 a b WEIGHTS 1 2",
        "ZINTERSTORE d 1 a",
        "ZDIFFSTORE d 2 a b",
        "ZUNION 2 a b WITHSCORES",
        "ZINTER 2 a b",
        "ZDIFF 2 a b",
        "ZINTERCARD 2 a b LIMIT 1",
        "SINTERCARD 3 a b c",
        "LMPOP 2 a b LEFT",
        "ZMPOP 1 a MIN COUNT 2",
        "BLMPOP 0 2 a b LEFT",
        "BZMPOP 0 2 a b MAX",
        "XREAD COUNT 2 STREAMS a b 0 0",
        "XREAD BLOCK 10 STREAMS a 0",
        "XREADGROUP GROUP g c STREAMS a b > >",
        "XREADGROUP GROUP streams c NOACK STREAMS a >",
        "SORT a",
        "SORT a BY nosort LIMIT 0 1 STORE d",
        "GEORADIUS a 1 2 3 m",
        "GEORADIUS a 1 2 3 m COUNT 1 STORE d",
        "GEORADIUSBYMEMBER a m 3 m STOREDIST d",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let asked: Vec<&str> = ["COMMAND", "GETKEYS"].into_iter().chain(words.iter().copied()).collect();
        let reply = tree(&client.command(&asked), &mut 0);
        let mut expected: Vec<&str> = reply.list().iter().map(Tree::text).collect();
        let known = resp::lookup(words[0].as_bytes()).unwrap();
        let mut found: Vec<&str> = keys_of(known, &words).into_iter().map(|at| words[at]).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "{line}");
    }
}

/// A service with one partition, so that all keys are together.
fn one_partition(server: &RealServer) -> Router {
    Router::start(&redis(&[&[server.addr]]).replace("partitions = 16", "partitions = 1"))
}

#[test]
fn what_concerns_the_whole_service_is_asked_of_all_of_it() {
    let Some((servers, router)) = cluster() else { return };
    let mut client = router.client();
    for n in 0..300 {
        client.command(&["SET", &format!("key{n}"), "v"]);
    }
    assert_eq!(client.command(&["DBSIZE"]), ":300\r\n");
    let keys = client.command(&["KEYS", "key*"]);
    assert!(keys.starts_with("*300\r\n"));
    // A walk ends, and sees every key once at least.
    let (mut cursor, mut seen) = ("0".to_owned(), std::collections::BTreeSet::new());
    loop {
        let reply = tree(&client.command(&["SCAN", &cursor, "COUNT", "20"]), &mut 0);
        let [next, keys] = reply.list() else { panic!() };
        seen.extend(keys.list().iter().map(|key| key.text().to_owned()));
        cursor = next.text().into();
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(seen.len(), 300);
    assert_eq!(client.command(&["SCAN", "x"]), "-ERR invalid cursor\r\n");
    assert!(client.command(&["RANDOMKEY"]).contains("key"));
    let sha = client.command(&["SCRIPT", "LOAD", "return redis.call('get', KEYS[1])"]);
    let sha = sha.lines().nth(1).unwrap();
    assert_eq!(client.command(&["SCRIPT", "EXISTS", sha, "0000"]), "*2\r\n:1\r\n:0\r\n");
    for n in 0..30 {
        assert_eq!(client.command(&["EVALSHA", sha, "1", &format!("key{n}")]), bulk("v"));
    }
    assert_eq!(client.command(&["EVAL", "return 5", "0"]), ":5\r\n");
    assert!(client.command(&["TIME"]).starts_with("*2\r\n"));
    assert!(client.command(&["COMMAND", "COUNT"]).starts_with(':'));
    assert_eq!(client.command(&["COMMAND", "GETKEYS", "GET", "a"]), array(&["a"]));
    assert_eq!(client.command(&["FLUSHALL"]), "+OK\r\n");
    assert_eq!(client.command(&["DBSIZE"]), ":0\r\n");
    assert_eq!(client.command(&["RANDOMKEY"]), bulk("nil"));
    drop(servers);
}

#[test]
fn keys_that_must_be_together_are_in_one_partition_or_refused() {
    let Some((_servers, router)) = cluster() else { return };
    let mut client = router.client();
    const CROSSED: &str = "-CROSSSLOT Keys in request don't hash to the same slot\r\n";
    let spread: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    let mut many = vec!["MSETNX"];
    spread.iter().for_each(|key| many.extend([key.as_str(), "v"]));
    assert_eq!(client.command(&many), CROSSED);
    for start in [&["SINTERSTORE"][..], &["PFCOUNT"], &["SUNION"], &["PFMERGE"], &["BITOP", "AND"]] {
        let line: Vec<&str> = start.iter().copied().chain(spread.iter().map(String::as_str)).collect();
        assert_eq!(client.command(&line), CROSSED, "{start:?}");
    }
    let renames = spread.iter().map(|key| client.command(&["RENAME", "k0", key]));
    assert!(renames.filter(|reply| reply == CROSSED).count() > 25, "also where one RACS has both partitions");
    for (line, reply) in [
        ("MSETNX {t}a 1 {t}b 2", ":1\r\n"),
        ("RENAME {t}a {t}c", "+OK\r\n"),
        ("SADD {t}s1 a b", ":2\r\n"),
        ("SADD {t}s2 b c", ":2\r\n"),
        ("SINTERSTORE {t}d {t}s1 {t}s2", ":1\r\n"),
        ("SINTERCARD 2 {t}s1 {t}s2", ":1\r\n"),
        ("EVAL return{#KEYS,#ARGV} 2 {t}a {t}b x", "*2\r\n:2\r\n:1\r\n"),
        ("RPUSH {t}l 2 1", ":2\r\n"),
        ("SORT {t}l STORE {t}m", ":2\r\n"),
        ("SET {t}w_1 9", "+OK\r\n"),
        ("SET {t}w_2 3", "+OK\r\n"),
        ("SORT {t}l BY {t}w_*", "*2\r\n$1\r\n2\r\n$1\r\n1\r\n"),
        ("SORT {t}l BY w_*", CROSSED),
        ("XADD {t}x 1-1 f v", "$3\r\n1-1\r\n"),
        ("OBJECT FREQ", "-ERR wrong number of arguments for 'object|freq' command\r\n"),
        ("OBJECT NOSUCH x", "-ERR unknown subcommand 'NOSUCH'. Try OBJECT HELP.\r\n"),
        ("XGROUP CREATE {t}x g 0", "+OK\r\n"),
        ("LMPOP 0 {t}l LEFT", "-ERR numkeys should be greater than 0\r\n"),
        (
            "WAIT 0 0",
            "-ERR phalanx: 'wait' is refused: servers cannot tell the updates of clients that share a connection apart\r\n",
        ),
        (
            "MEMORY DOCTOR",
            "-ERR phalanx: 'memory|doctor' is refused: it concerns one server: ask that server\r\n",
        ),
        (
            "MONITOR",
            "-ERR phalanx: 'monitor' is refused: it would show one server's commands, those of all clients: ask that server\r\n",
        ),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(client.command(&words), reply, "{line}");
    }
}

#[test]
fn transactions_are_whole_and_in_one_partition() {
    let Some((_servers, router)) = cluster() else { return };
    let mut client = router.client();
    let batch = ["MULTI", "SET {t}a 1", "INCR {t}a", "GET {t}a", "PING", "EXEC", "GET {t}a"];
    let send = |client: &mut Client, lines: &[&str]| {
        let words = |line: &&str| command(&line.split(' ').collect::<Vec<_>>());
        client.send(lines.iter().map(words).collect::<String>());
        lines.iter().map(|_| client.reply()).collect::<Vec<_>>()
    };
    let queued = "+QUEUED\r\n";
    assert_eq!(
        send(&mut client, &batch),
        ["+OK\r\n", queued, queued, queued, queued, "*4\r\n+OK\r\n:2\r\n$1\r\n2\r\n+PONG\r\n", "$1\r\n2\r\n"]
    );
    const ABORTED: &str = "-EXECABORT Transaction discarded because of previous errors.\r\n";
    for (bad, said) in [
        ("GET", "-ERR wrong number of arguments for 'get' command\r\n"),
        ("NOSUCH", "-ERR unknown command 'NOSUCH', with args beginning with: \r\n"),
        (
            "KEYS *",
            "-ERR phalanx: 'keys' is refused: a transaction is in one partition, this concerns all\r\n",
        ),
        ("MGET {t}a 1 2 3 4 5 6 7 8 9", "-CROSSSLOT Keys in request don't hash to the same slot\r\n"),
        ("SUBSCRIBE c", "-ERR phalanx: 'subscribe' is refused: it is not for transactions\r\n"),
    ] {
        let replies = send(&mut client, &["MULTI", "SET {t}a 9", bad, "SET {t}a 8", "EXEC", "GET {t}a"]);
        assert_eq!(replies[2], said);
        assert_eq!(replies[4..], [ABORTED, "$1\r\n2\r\n"], "{bad}");
    }
    assert_eq!(send(&mut client, &["EXEC", "DISCARD"])[0], "-ERR EXEC without MULTI\r\n");
    let replies = send(&mut client, &["MULTI", "MULTI", "SET {t}a 7", "DISCARD", "GET {t}a"]);
    assert_eq!(replies[1], "-ERR MULTI calls can not be nested\r\n");
    assert_eq!(replies[3..], ["+OK\r\n", "$1\r\n2\r\n"]);
    assert_eq!(send(&mut client, &["MULTI", "EXEC"])[1], "*0\r\n");
    // A command that fails when it runs does not undo the others.
    let replies = send(&mut client, &["MULTI", "INCR {t}a", "LPUSH {t}a x", "EXEC"]);
    assert!(replies[3].starts_with("*2\r\n:3\r\n-WRONGTYPE"));
    // With one partition all is in it.
    let Some(server) = RealServer::start() else { return };
    let router = one_partition(&server);
    let replies = send(&mut router.client(), &["MULTI", "SET a 1", "SET b 2", "DBSIZE", "EXEC"]);
    assert_eq!(replies[4], "*3\r\n+OK\r\n+OK\r\n:2\r\n");
}

#[test]
fn large_transactions_of_many_clients_do_not_mix() {
    let Some((_servers, router)) = cluster() else { return };
    let addr = router.addr();
    let value = "v".repeat(30_000);
    let clients: Vec<_> = (0..4)
        .map(|id| {
            let value = value.clone();
            thread::spawn(move || {
                let mut client = Client::connect(addr);
                for round in 0..10 {
                    let key = format!("{{{id}}}");
                    let mut batch = command(&["MULTI"]);
                    for n in 0..60 {
                        batch += &command(&["SET", &format!("{key}{n}"), &format!("{round}{value}")]);
                    }
                    batch += &command(&["GET", &format!("{key}7")]);
                    batch += &command(&["EXEC"]);
                    client.send(batch);
                    assert_eq!(client.reply(), "+OK\r\n");
                    (0..61).for_each(|_| assert_eq!(client.reply(), "+QUEUED\r\n"));
                    let got = client.reply();
                    assert!(
                        got == format!("*61\r\n{}{}", "+OK\r\n".repeat(60), bulk(&format!("{round}{value}")))
                    );
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let router = Router::with(&redis(&[&[nobody()]]), 1, |limits| limits.transaction = 1000);
    let mut client = router.client();
    client.command(&["MULTI"]);
    let large = client.command(&["SET", "a", &"v".repeat(1000)]);
    assert_eq!(
        large,
        "-ERR phalanx: the transaction is above its limit, `transaction` in [service.limits]\r\n"
    );
    assert!(client.command(&["EXEC"]).starts_with("-EXECABORT"));
}

#[test]
fn each_client_hears_the_protocol_that_it_asked_for() {
    let Some((_servers, router)) = cluster() else { return };
    let (mut two, mut three) = (router.client(), router.client());
    two.command(&["HSET", "h", "f", "v"]);
    three.send(command(&["HGETALL", "h"]) + &command(&["HELLO", "3"]) + &command(&["HGETALL", "h"]));
    assert_eq!(three.reply(), array(&["f", "v"]), "what came before");
    assert!(three.reply().starts_with("%7\r\n"));
    assert_eq!(three.reply(), "%1\r\n$1\r\nf\r\n$1\r\nv\r\n");
    for _ in 0..20 {
        assert_eq!(two.command(&["GET", "missing"]), "$-1\r\n");
        assert_eq!(three.command(&["GET", "missing"]), "_\r\n");
        assert_eq!(two.command(&["MGET", "a", "b", "c", "d", "e"]), array(&["nil"; 5]));
        assert_eq!(three.command(&["MGET", "a", "b", "c", "d", "e"]), format!("*5\r\n{}", "_\r\n".repeat(5)));
    }
    two.command(&["ZADD", "z", "1.5", "m"]);
    assert_eq!(three.command(&["ZSCORE", "z", "m"]), ",1.5\r\n");
    three.send(["MULTI", "PING", "EXEC"].map(|word| command(&[word])).concat());
    assert_eq!([three.reply(), three.reply(), three.reply()], ["+OK\r\n", "+QUEUED\r\n", "*1\r\n+PONG\r\n"]);
    assert!(three.command(&["HELLO", "2"]).starts_with("*14\r\n"));
    assert_eq!(three.command(&["GET", "missing"]), "$-1\r\n");
}

/// A file with a password, which only its owner may read.
fn password_file(text: &str) -> std::path::PathBuf {
    use std::os::unix::fs::OpenOptionsExt;
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let path = std::env::temp_dir().join(format!("router-password-{}-{number}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    path
}

#[test]
fn passwords_are_asked_of_clients_and_given_to_servers() {
    let Some(server) = RealServer::start_with(nobody(), &["--requirepass", "of-servers"]) else { return };
    let (clients, servers) = (password_file("of-clients\n"), password_file("of-servers\n"));
    let config = |servers: &std::path::Path| {
        let auth = format!(
            "auth = {{ client_password_file = {clients:?}, server_password_file = {servers:?} }}\n[service.pmap]"
        );
        redis(&[&[server.addr]]).replace("[service.pmap]", &auth)
    };
    let router = Router::start(&config(&servers));
    let mut client = router.client();
    assert_eq!(client.command(&["GET", "a"]), "-NOAUTH Authentication required.\r\n");
    assert_eq!(client.command(&["PING"]), "-NOAUTH Authentication required.\r\n");
    let mut large = router.client();
    large.send("*2\r\n$4\r\nAUTH\r\n$20000\r\n");
    let reply = "-ERR Protocol error: unauthenticated bulk length\r\n";
    assert_eq!(large.reply(), reply, "strangers have little room");
    assert!(client.command(&["AUTH", "of-servers"]).starts_with("-WRONGPASS"));
    assert_eq!(client.command(&["AUTH", "of-clients"]), "+OK\r\n");
    assert_eq!(client.command(&["SET", "a", "1"]), "+OK\r\n");
    assert!(client.command(&["HELLO", "3"]).starts_with('%'));
    assert_eq!(
        client.command(&["GET", "a"]),
        bulk("1"),
        "over a connection of its own, with the password, too"
    );
    assert_eq!(client.command(&["RESET"]), "+RESET\r\n");
    assert_eq!(client.command(&["GET", "a"]), "-NOAUTH Authentication required.\r\n");

    let wrong = password_file("guess");
    let router = Router::with(&config(&wrong), 1, |limits| limits.wait = Duration::from_millis(200));
    let mut client = router.client();
    client.command(&["AUTH", "of-clients"]);
    assert!(client.command(&["SET", "a", "2"]).starts_with("-TRYAGAIN phalanx: "));
    for file in [clients, servers, wrong] {
        let _ = std::fs::remove_file(file);
    }
}
