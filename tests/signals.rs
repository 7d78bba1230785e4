//! INT and TERM are heeded at every moment: the first one is the end in order, a second one the end at once.

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Dir, PATIENCE, Proc, catches_term};
use ports::free_port;

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} never came");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_process_that_is_told_to_end_while_it_starts_ends_in_order() {
    let dir = Dir::new();
    let (rendezvous, kept) = (dir.rendezvous(), dir.file("kept"));
    let mut holder = Proc::start(&["agent", "--rendezvous", &rendezvous, "--data-dir", &kept]);
    holder.until_event("started");
    let node = ["--rendezvous", &rendezvous, "--data-dir", &kept];
    let commands: [(&[&str], &[&str], i32); 6] = [
        (&["agent"], &[], 0),
        (&["join", "g"], &[], 0),
        (&["watch", "g"], &[], 0),
        (&["inventory", "--serve", "127.0.0.1:0", "--directories", "1"], &[], 0),
        (&["run", "--group", "g"], &["--", "true"], 1),
        (&["lock", "g"], &["--", "true"], 1),
    ];
    for (command, rest, code) in commands {
        // It waits for the directory, some seconds long.
        let mut proc = Proc::start(&[command, &node, rest].concat());
        until("a process that heeds signals", || catches_term(proc.pid()));
        proc.signal("TERM");
        assert_eq!(proc.end(), Some(code), "{command:?}");
    }
}

#[test]
fn a_second_signal_ends_a_wrapper_at_once_though_its_command_has_not_come_up() {
    let dir = Dir::new();
    let (rendezvous, file) = (dir.rendezvous(), dir.file("began"));
    let endpoint = ports::nobody().to_string();
    let told = dir.file("told");
    // Its command is told of the first one, and does not heed it.
    let script = format!("trap 'touch {told}' TERM; touch {file}; while :; do sleep 0.1; done");
    for exclusive in [&[][..], &["--exclusive"]] {
        let args = ["run", "--group", "g", "--rendezvous", &rendezvous, "--endpoint", &endpoint];
        let more = ["--grace", "10m", "--start-timeout", "10m", "--", "sh", "-c", &script];
        let mut run = Proc::start(&[&args, exclusive, &more].concat());
        until("the command", || Path::new(&file).exists());
        run.signal("TERM");
        until("the first one is heeded", || Path::new(&told).exists());
        run.signal("TERM");
        assert_eq!(run.end(), Some(130), "{exclusive:?}");
        for file in [&file, &told] {
            fs::remove_file(file).expect("it is there");
        }
    }
}

/// Once a router that ended left all but the first 128 in its queue, who were reset.
#[test]
fn a_router_that_ends_answers_all_who_are_in_its_queue() {
    const CLIENTS: usize = 600;
    let (dir, port) = (Dir::new(), free_port());
    let config = format!(
        "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:{port}\"\nprotocol = \"redis\"\n[service.pmap]\nstyle = \"slots\"\n\
         partitions = 8\n[[service.racs]]\nname = \"a\"\nservers = [\"127.0.0.1:1\"]\n"
    );
    let config = dir.write("router.toml", &config);
    let mut router = Proc::start(&["router", "--workers", "1", "--config", &config]);
    router.until_event("serving");
    router.signal("STOP");
    let mut clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| {
            let mut client = TcpStream::connect(("127.0.0.1", port)).expect("there is room in the queue");
            client.set_read_timeout(Some(PATIENCE)).expect("a limit");
            client.write_all(b"*1\r\n$4\r\nPING\r\n").expect("the kernel takes it");
            client
        })
        .collect();
    router.signal("TERM");
    router.signal("CONT");
    for (n, client) in clients.iter_mut().enumerate() {
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap_or_else(|error| panic!("client {n} of {CLIENTS}: {error}"));
        assert_eq!(said, "+PONG\r\n", "client {n} of {CLIENTS}");
    }
    assert_eq!(router.end(), Some(0));
}
