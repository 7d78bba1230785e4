//! Redis commands that are larger than they may be here are refused, and change nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::thread;

use common::*;

/// Says OK to all updates, and has two values.
fn server() -> FakeServer {
    FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            match (args[0].as_str(), args[1].as_str()) {
                ("GET", "large") => peer.send(&format!("${}\r\n{}\r\n", 3 << 20, "v".repeat(3 << 20))),
                ("GET", _) => peer.send("$4\r\nkept\r\n"),
                _ => peer.send("+OK\r\n"),
            }
        }
    })
}

fn with(server: &FakeServer, limits: &str) -> Router {
    Router::start(&format!("{}\n[service.limits]\n{limits}\n", redis(&[&[server.addr]])))
}

/// Sends, from a thread of its own: nobody may read for a while.
fn send(client: &Client, bytes: impl Into<Vec<u8>>) -> thread::JoinHandle<()> {
    let (mut stream, bytes) = (client.stream.try_clone().unwrap(), bytes.into());
    thread::spawn(move || std::io::Write::write_all(&mut stream, &bytes).unwrap())
}

#[test]
fn a_value_above_the_limit_is_refused_by_the_limits_name_and_the_client_goes_on() {
    let server = server();
    let router = with(&server, "value = \"1MiB\"\ncommand = \"3MiB\"");
    let mut client = router.client();
    let (fits, above) = ("v".repeat(1 << 20), "*1\r\n$8\r\nFLUSHALL\r\n".repeat(100_000));
    assert_eq!(client.command(&["SET", "k", &fits]), "+OK\r\n");
    let says = format!(
        "-ERR phalanx: an argument of {} bytes is above the limit of 1048576: raise `value` in [service.limits]; \
         nothing was done\r\n",
        above.len()
    );
    let sent = send(
        &client,
        command(&["GET", "k"]) + &command(&["SET", "k", &above, "EX", "10"]) + &command(&["GET", "k"]),
    );
    assert_eq!([client.reply(), client.reply(), client.reply()], ["$4\r\nkept\r\n", &says, "$4\r\nkept\r\n"]);
    sent.join().unwrap();
    let four: Vec<&str> = ["MSET"].into_iter().chain(["k", &fits].into_iter().cycle().take(8)).collect();
    let sent = send(&client, command(&four) + &command(&["PING"]));
    let says = client.reply();
    assert!(says.contains("is above the limit of 3145728: raise `command` in [service.limits]"), "{says}");
    assert_eq!(client.reply(), "+PONG\r\n");
    sent.join().unwrap();
    assert_eq!(router.stats().refused, 2);
    // Of a transaction nothing is done then.
    assert_eq!(client.command(&["MULTI"]), "+OK\r\n");
    assert_eq!(client.command(&["SET", "k", "v"]), "+QUEUED\r\n");
    assert!(client.command(&["SET", "k", &above]).starts_with("-ERR phalanx: an argument of "));
    assert!(client.command(&["EXEC"]).starts_with("-EXECABORT "));
    let seen: Vec<String> = server.seen().into_iter().map(|seen| seen.chars().take(5).collect()).collect();
    assert_eq!(seen, ["SET k", "GET k", "GET k"]);
}

#[test]
fn commands_and_replies_can_hold_the_largest_value() {
    let server = server();
    let text = format!("{}\n[service.limits]\nvalue = \"3MiB\"\n", redis(&[&[server.addr]]));
    let router = Router::with(&text, 1, |limits| (limits.command, limits.unread) = (1 << 20, 1 << 20));
    let mut client = router.client();
    let large = "v".repeat(3 << 20);
    let sent = send(&client, command(&["SET", "k", &large]));
    assert_eq!(client.reply(), "+OK\r\n");
    sent.join().unwrap();
    assert!(client.command(&["GET", "large"]) == format!("${}\r\n{large}\r\n", large.len()));
    assert!(server.seen() == [format!("SET k {large}"), "GET large".into()]);
}

#[test]
fn who_announces_more_than_redis_takes_or_gave_no_password_is_sent_away() {
    let server = server();
    let router = with(&server, "value = \"512MiB\"");
    let mut client = router.client();
    client.send("*2\r\n$4\r\nECHO\r\n$536870913\r\n");
    assert_eq!(client.reply(), "-ERR Protocol error: invalid bulk length\r\n");
    assert!(client.is_closed());

    let file = std::env::temp_dir().join(format!("phalanx-large-{}", std::process::id()));
    std::fs::write(&file, "secret\n").unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let auth = format!("{}\n[service.auth]\nclient_password_file = {:?}\n", redis(&[&[server.addr]]), file);
    let router = Router::start(&auth);
    let mut client = router.client();
    client.send("*2\r\n$4\r\nAUTH\r\n$16385\r\n");
    assert_eq!(client.reply(), "-ERR Protocol error: unauthenticated bulk length\r\n");
    assert!(client.is_closed());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(server.seen(), Vec::<String>::new());
}
