//! What the command line refuses, and how it says so.

mod common;

use std::net::TcpListener;

use common::{Dir, phalanx, run, stderr, stdout};

/// The command fails with this code and says all of this.
fn refused(args: &[&str], code: i32, says: &[&str]) {
    let output = run(args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    for part in says {
        assert!(text.contains(part), "{args:?} should say {part:?}: {text}");
    }
}

#[test]
fn wrong_flags_and_what_is_not_built_yet_exit_with_2() {
    refused(&["lock", "g", "--", "true"], 2, &["lock"]);
    refused(&["frobnicate"], 2, &["frobnicate"]);
    refused(&["join"], 2, &["GROUP"]);
    refused(&["join", "g", "--tls-ca", "x"], 2, &["--tls-ca"]);
    refused(&["join", "g", "--lease", "5"], 2, &["--lease", "300ms"]);
    refused(&["join", "g", "--lease", "1ms"], 2, &["lease", "20ms"]);
    refused(&["join", "g", "--bootstrap", "maybe"], 2, &["--bootstrap", "expect=N"]);
    refused(&["join", "g", "--rendezvous", "dns:x:1"], 2, &["--rendezvous", "static:", "file:"]);
    refused(&["join", "g", "--listen", "0.0.0.0:0"], 2, &["--insecure"]);
    refused(&["join", "a group"], 2, &["group"]);
    refused(&["sim", "--faults", "earthquake"], 2, &["--faults", "crash"]);
    refused(&["sim", "--seeds", "2", "--trace", "x"], 2, &["--trace"]);
    refused(&["run", "--group", "g"], 2, &["CMD"]);
    let help = stdout(&run(&["--help"]));
    for absent in ["lock", "force-new", "pub", "sub"] {
        assert!(
            !help.lines().any(|l| l.trim_start().starts_with(&format!("{absent} "))),
            "{absent} is not built"
        );
    }
    assert!(stdout(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let addr = taken.local_addr().expect("it is bound").to_string();
    let output = run(&["join", "g", "--listen", &addr]);
    assert!(!output.status.success());
    let text = stderr(&output);
    assert!(text.contains("--listen") && text.contains(&addr), "{text}");
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    let dir = Dir::new();
    refused(
        &["run", "--group", "g", "--rendezvous", &dir.rendezvous(), "--", "no-such-program-here"],
        2,
        &["no-such-program-here"],
    );
}

#[test]
fn broken_configurations_name_file_line_and_key() {
    let dir = Dir::new();
    let file = dir.write("node.toml", "name = \"x\"\nleese = \"1s\"\n");
    refused(&["join", "g", "--config", &file], 2, &["node.toml", "2", "leese"]);
    let file = dir.write("broken.toml", "name = \n");
    refused(&["join", "g", "--config", &file], 2, &["broken.toml", "1"]);
    refused(&["join", "g", "--config", "/no/such/file"], 2, &["--config", "/no/such/file"]);

    let service =
        "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\nkey = \"header:x-key\"\n";
    let gap = "[service.pmap]\nstyle = \"ranges\"\nranges = [{ from = \"B\", racs = \"a\" }]\n\
               [[service.racs]]\nname = \"a\"\nservers = [\"127.0.0.1:1\"]\n";
    let file = dir.write("gap.toml", &format!("{service}{gap}"));
    refused(&["router", "--check", "--config", &file], 2, &["gap.toml", "range"]);
    let group =
        "[service.pmap]\nstyle = \"slots\"\npartitions = 8\n[[service.racs]]\nname = \"a\"\ngroup = \"a\"\n";
    let file = dir.write("group.toml", &format!("{service}{group}"));
    refused(&["router", "--check", "--config", &file], 2, &["group.toml", "rendezvous"]);
    let output = run(&["router", "--check", "--config", &file, "--rendezvous", &dir.rendezvous()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn a_cluster_that_cannot_be_joined_in_time_is_exit_code_3() {
    let dir = Dir::new();
    let args = ["join", "g", "--bootstrap", "join", "--join-timeout", "300ms", "--no-stdin"];
    let output = run(&[&args[..], &["--rendezvous", &dir.rendezvous()]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
fn a_seed_replays_byte_for_byte_and_its_trace_passes() {
    let dir = Dir::new();
    let files = [dir.file("a.jsonl"), dir.file("b.jsonl")];
    for file in &files {
        let output = run(&["sim", "--seed", "7", "--trace", file, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let last = stdout(&output).lines().last().map(str::to_owned).expect("a summary");
        let summary: serde_json::Value = serde_json::from_str(&last).expect("JSON");
        assert_eq!((&summary["event"], &summary["seed"]), (&"summary".into(), &7.into()));
        assert_eq!(summary["violations"], 0);
    }
    let [a, b] = files.each_ref().map(|f| std::fs::read(f).expect("it was written"));
    assert!(a.len() > 10_000 && a == b, "one seed, two traces");
    let output = run(&["check", &files[0], "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert!(stdout(&output).contains("GM4"));

    let half = dir.write("half.jsonl", &String::from_utf8_lossy(&a[..a.len() / 2]));
    assert_eq!(run(&["check", &half]).status.code(), Some(2), "a truncated trace is no evidence");
    let garbage = dir.write("garbage.jsonl", "not a trace\n");
    refused(&["check", &garbage], 2, &["garbage.jsonl"]);
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let dir = Dir::new();
    let rendezvous = format!("file:{}", dir.file("rdv"));
    let config = dir.write(
        "router.toml",
        "[[service]]\nname = \"kv\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"redis\"\n\
         [service.pmap]\nstyle = \"slots\"\npartitions = 4\n\
         [[service.racs]]\nname = \"a\"\nservers = [\"127.0.0.1:1\"]\n",
    );
    let commands: [&[&str]; 3] = [
        &["router", "--check", "--config", &config],
        &["sim", "--seed", "1"],
        &["join", "g", "--no-stdin", "--rendezvous", &rendezvous],
    ];
    for command in commands {
        let output = phalanx().args(command).stdout(full()).stderr(std::process::Stdio::piped()).output();
        let output = output.expect("the binary can be started");
        assert_eq!(output.status.code(), Some(1), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("standard output: "), "{command:?}: {}", stderr(&output));
    }
}

#[test]
fn durations_and_counts_beyond_all_reason_are_refused() {
    let commands: [&[&str]; 6] = [
        &["demo", "--for", "5000000000000000h"],
        &["demo", "--for", "1s", "--kill-every", "5000000000000000h"],
        &["run", "--group", "g", "--start-timeout", "5000000000000000h", "--", "true"],
        &["sim", "--seeds", "0"],
        &["sim", "--seed", "18446744073709551615", "--seeds", "3"],
        &["bench", "takeover", "--times", "0"],
    ];
    for command in commands {
        let output = run(command);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", stderr(&output));
    }
}

#[test]
fn a_wrapper_refuses_an_address_at_which_somebody_answers_already() {
    let somebody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let at = somebody.local_addr().expect("bound").to_string();
    let dir = Dir::new();
    let rendezvous = format!("file:{}", dir.file("rdv"));
    let output =
        run(&["run", "--group", "g", "--endpoint", &at, "--rendezvous", &rendezvous, "--", "sleep", "60"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("something answers there already"), "{}", stderr(&output));
}

#[test]
fn a_server_that_goes_to_the_background_is_told_to_stay() {
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").to_string();
    let dir = Dir::new();
    let rendezvous = format!("file:{}", dir.file("rdv"));
    let output =
        run(&["run", "--group", "g", "--endpoint", &free, "--rendezvous", &rendezvous, "--", "true"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("in the foreground"), "{}", stderr(&output));
}

#[test]
fn an_admin_api_that_does_not_answer_is_said_so() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let output = run(&["status", "--admin", &silent.local_addr().expect("bound").to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no answer from"), "{}", stderr(&output));
}
