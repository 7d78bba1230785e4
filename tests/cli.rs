//! What the command line refuses, and how it says so.

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use common::{Dir, Proc, phalanx, run, stderr, stdout};

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
    refused(&["lock", "g"], 2, &["CMD"]);
    refused(
        &["run", "--group", "g", "--health", "udp:x:1", "--", "true"],
        2,
        &["--health", "redis:HOST:PORT"],
    );
    refused(&["run", "--group", "g", "--exclusive", "--on-lead", "x", "--", "true"], 2, &["--exclusive"]);
    refused(&["lock", "g", "--fuse", "bomb", "--", "true"], 2, &["--fuse", "subreaper"]);
    refused(&["frobnicate"], 2, &["frobnicate"]);
    refused(&["join"], 2, &["GROUP"]);
    refused(&["join", "g", "--tls-ca", "x"], 2, &["--tls-ca"]);
    refused(&["join", "g", "--lease", "5"], 2, &["--lease", "300ms"]);
    refused(&["join", "g", "--lease", "1ms"], 2, &["lease", "20ms"]);
    refused(&["join", "g", "--label", "weight=0"], 2, &["label", "weight", "1 to 1000"]);
    refused(&["agent", "--label", "weight=1001"], 2, &["label", "weight", "1 to 1000"]);
    refused(&["join", "g", "--bootstrap", "maybe"], 2, &["--bootstrap", "expect=N"]);
    refused(&["join", "g", "--rendezvous", "https://x:1/"], 2, &["--rendezvous", "static:", "file:"]);
    refused(&["join", "g", "--listen", "0.0.0.0:0"], 2, &["--secret-file", "--insecure"]);
    refused(&["join", "g", "--secret-file", "absent"], 2, &["--secret-file absent", "No such file"]);
    refused(&["join", "a group"], 2, &["group"]);
    refused(&["view", "a HTTP/1.1\r\nb: c", "--admin", "127.0.0.1:1"], 2, &["[GROUP]", "A-Z"]);
    let unspecified = ["run", "--group", "g", "--endpoint", "0.0.0.0:6401", "--", "true"];
    refused(&unspecified, 2, &["--endpoint 0.0.0.0:6401", "one of this machine"]);
    refused(&["inventory", "--serve", "0.0.0.0:0"], 2, &["--endpoint", "--serve 0.0.0.0:"]);
    refused(&["sim", "--faults", "earthquake"], 2, &["--faults", "crash"]);
    refused(&["sim", "--seeds", "2", "--trace", "x"], 2, &["--trace"]);
    refused(&["run", "--group", "g"], 2, &["CMD"]);
    let told = ["sh", "-c", "echo the server runs >&2; sleep 9"];
    refused(&[&["run", "--group", "a b", "--"], &told[..]].concat(), 2, &["--group", "a group name"]);
    refused(&[&["lock", "a b", "--"], &told[..]].concat(), 2, &["a group name"]);
    let help = stdout(&run(&["--help"]));
    for absent in ["pub", "sub"] {
        assert!(
            !help.lines().any(|l| l.trim_start().starts_with(&format!("{absent} "))),
            "{absent} is not built"
        );
    }
    let help = stdout(&run(&["run", "--help"]));
    assert!(help.contains("killed with SIGKILL") && help.contains("PHALANX_TOKEN"), "{help}");
    assert!(stdout(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

/// Else a clone with a new disk could pass over what the others have.
#[test]
fn an_inventory_on_disk_is_told_with_how_many_directories_it_begins() {
    let dir = Dir::new();
    let (data, rendezvous) = (dir.file("data"), dir.rendezvous());
    let clone = ["inventory", "--serve", "127.0.0.1:0", "--data-dir", &data, "--rendezvous", &rendezvous];
    let join = ["--bootstrap", "join", "--join-timeout", "300ms"];
    refused(&[&clone[..], &join].concat(), 2, &["--data-dir", "--directories N", "expect=N"]);
    assert!(!std::fs::exists(&data).expect("a directory"), "nothing was made");
    // And that a directory is new is said: it may be one that is not mounted.
    refused(&[&clone[..], &join, &["--directories", "0"]].concat(), 2, &["--directories"]);
    let told = [&clone[..], &join, &["--directories", "3"]].concat();
    refused(&told, 3, &["the data directory was not there", &data]);
    let again = run(&told);
    assert_eq!(again.status.code(), Some(3), "{}", stderr(&again));
    assert!(!stderr(&again).contains("was not there"), "{}", stderr(&again));
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
fn a_router_takes_over_a_changed_file_on_hup_and_says_why_it_does_not() {
    let dir = Dir::new();
    let service = "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"redis\"\n[service.pmap]\nstyle = \"slots\"\n\
                   partitions = 8\n[[service.racs]]\nname = \"a\"\nservers = [\"127.0.0.1:1\"]\n";
    let config = dir.write("router.toml", service);
    let mut router = phalanx()
        .args(["router", "--json", "--config", &config])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    let pid = router.id().to_string();
    let tell = |signal: &str| {
        let told = Command::new("kill").args([signal, &pid]).status().expect("kill can be run");
        assert!(told.success(), "kill {signal} {pid}");
    };
    let mut out = BufReader::new(router.stdout.take().expect("it is piped"));
    let mut log = BufReader::new(router.stderr.take().expect("it is piped"));
    let line = |from: &mut dyn BufRead| {
        let mut line = String::new();
        from.read_line(&mut line).expect("a line");
        line
    };
    let event = |out: &mut dyn BufRead| -> Value { serde_json::from_str(&line(out)).expect("JSON") };
    let serving = event(&mut out);
    assert_eq!((&serving["event"], &serving["service"]), (&json!("serving"), &json!("s")));

    dir.write("router.toml", &service.replace("partitions = 8", "partition = 8"));
    tell("-HUP");
    let text = line(&mut log);
    assert!(text.contains(&format!("{config}:7: unknown field `partition`")), "{text}");
    let failed = event(&mut out);
    assert_eq!(failed["event"], "not_reloaded");
    assert!(failed["why"].as_str().is_some_and(|why| why.contains(":7:")), "{failed}");

    let more = service.replace("name = \"s\"", "name = \"t\"").replace("partitions = 8", "partitions = 4");
    dir.write("router.toml", &format!("lease = \"2s\"\n{service}{more}"));
    tell("-HUP");
    let mut seen = [event(&mut out), event(&mut out)];
    seen.sort_by_key(|event| event["event"].to_string());
    assert_eq!(
        (&seen[0]["event"], &seen[0]["added"], &seen[0]["unchanged"]),
        (&json!("reloaded"), &json!(["t"]), &json!(["s"]))
    );
    assert_eq!((&seen[1]["event"], &seen[1]["service"]), (&json!("serving"), &json!("t")));
    let text = line(&mut log);
    assert!(text.contains("lease are read at the start only"), "{text}");
    tell("-TERM");
    assert_eq!(router.wait().expect("it is ours").code(), Some(0));
}

#[test]
fn a_cluster_that_cannot_be_joined_in_time_is_exit_code_3() {
    let dir = Dir::new();
    let service = "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"redis\"\n";
    let map =
        "[service.pmap]\nstyle = \"slots\"\npartitions = 8\n[[service.racs]]\nname = \"a\"\ngroup = \"a\"\n";
    let config = dir.write("router.toml", &format!("{service}{map}"));
    for command in [
        &["join", "g", "--no-stdin"][..],
        &["watch", "g"],
        &["agent"],
        &["inventory", "--serve", "127.0.0.1:0"],
        &["router", "--config", &config],
        &["lock", "g", "--", "true"],
        &["run", "--group", "g", "--", "sleep", "60"],
    ] {
        let args = ["--bootstrap", "join", "--join-timeout", "300ms", "--rendezvous", &dir.rendezvous()];
        // Flags come before what is run.
        let (name, rest) = command.split_first().expect("a command");
        let output = run(&[&[*name], &args[..], rest].concat());
        assert_eq!(output.status.code(), Some(3), "{command:?}: {}", stderr(&output));
    }
}

#[test]
fn a_seed_replays_byte_for_byte_and_its_trace_passes() {
    let dir = Dir::new();
    let files = [dir.file("a.jsonl"), dir.file("b.jsonl")];
    for file in &files {
        let output = run(&["sim", "--seed", "7", "--trace", file, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let last = stdout(&output).lines().last().map(str::to_owned).expect("a summary");
        let summary: Value = serde_json::from_str(&last).expect("JSON");
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
fn seeds_amount_to_the_same_however_many_run_at_a_time() {
    let summary = |jobs: &str| {
        let output = run(&["sim", "--seed", "3", "--seeds", "5", "--jobs", jobs, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(summary("1"), summary("3"));
    refused(&["sim", "--jobs", "0"], 2, &["--jobs"]);
}

#[test]
fn scenarios_are_listed_and_run_by_their_names() {
    let list = stdout(&run(&["sim", "--scenario", "list"]));
    assert!(list.lines().count() >= 9 && list.contains("rack-lost  "), "{list}");
    let output = run(&["sim", "--scenario", "rack-lost", "--seed", "1", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let lines: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (summary, told) = lines.split_last().expect("a summary");
    assert_eq!((&summary["scenario"], &summary["violations"]), (&"rack-lost".into(), &0.into()));
    assert!(told.len() >= 3 && told.iter().all(|line| line["event"] == "told"), "{told:?}");
    refused(&["sim", "--scenario", "earthquake"], 2, &["--scenario earthquake", "--scenario list"]);
    refused(&["sim", "--scenario", "even-split", "--nodes", "5"], 2, &["--nodes 5", "even-split"]);
    refused(&["sim", "--nodes", "2001"], 2, &["--nodes 2001", "2000"]);
    refused(&["sim", "--scenario", "rack-lost", "--faults", "crash"], 2, &["--faults"]);
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
    let trace = dir.file("run.jsonl");
    assert!(run(&["sim", "--seed", "1", "--trace", &trace]).status.success());
    let mut agent =
        Proc::start(&["agent", "--admin", "127.0.0.1:0", "--rendezvous", &format!("{rendezvous}-2")]);
    let admin = agent.until_event("started")["admin"].as_str().expect("an address").to_owned();
    let commands: [&[&str]; 10] = [
        &["router", "--check", "--config", &config],
        &["sim", "--seed", "1"],
        &["check", &trace],
        &["status", "--admin", &admin],
        &["view", "--admin", &admin],
        &["top", "--once", "--admin", &admin],
        &["join", "g", "--no-stdin", "--rendezvous", &rendezvous],
        &["watch", "g", "--rendezvous", &rendezvous],
        &["agent", "--rendezvous", &rendezvous],
        &["run", "--group", "g", "--rendezvous", &rendezvous, "--", "sleep", "1"],
    ];
    for command in commands {
        let output = phalanx().args(command).stdout(full()).stderr(Stdio::piped()).output();
        let output = output.expect("the binary can be started");
        assert_eq!(output.status.code(), Some(1), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("standard output: "), "{command:?}: {}", stderr(&output));
    }
    let help = phalanx().arg("--help").stdout(full()).status().expect("the binary can be started");
    assert_eq!(help.code(), Some(1));
}

#[test]
fn a_log_that_cannot_be_written_ends_nobody() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let args =
        ["join", "g", "--no-stdin", "--log", "debug", "--bootstrap", "join", "--join-timeout", "200ms"];
    let output = phalanx().args(args).stderr(full()).output().expect("the binary can be started");
    assert_eq!(output.status.code(), Some(3), "{}", stdout(&output));
    let sim = phalanx().args(["sim", "--seed", "1", "--seeds", "2"]).stderr(full()).output();
    let sim = sim.expect("the binary can be started");
    assert_eq!(sim.status.code(), Some(0), "{}", stdout(&sim));
    assert!(stdout(&sim).contains("0 violations"), "{}", stdout(&sim));
}

#[test]
fn a_reader_that_goes_away_is_an_orderly_end() {
    let dir = Dir::new();
    let mut child = phalanx()
        .args(["join", "g", "--no-stdin", "--rendezvous", &dir.rendezvous()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("standard output"), "{}", stderr(&output));
}

#[test]
fn durations_have_ranges() {
    const ENDLESS: &str = "5000000000000000h";
    let flags = ["--lease", "--heartbeat", "--give-up", "--join-timeout"];
    for flag in flags {
        refused(&["join", "g", flag, ENDLESS], 2, &[flag, "8760h"]);
    }
    refused(&["join", "g", "--bootstrap", "alone-after=5000000000000000h"], 2, &["--bootstrap", "8760h"]);
    refused(&["join", "g", "--bootstrap", "alone-after=2h"], 2, &["10ms to 1h"]);
    refused(&["join", "g", "--lease", "61s"], 2, &["20ms to 60s"]);
    for flag in ["--start-timeout", "--grace"] {
        refused(&["run", "--group", "g", flag, ENDLESS, "--", "true"], 2, &[flag, "8760h"]);
    }
    for flag in ["--health-every", "--health-timeout", "--hook-timeout", "--start-timeout"] {
        refused(&["run", "--group", "g", flag, "0s", "--", "true"], 2, &[flag, "1ms to 8760h"]);
    }
    refused(&["demo", "--for", ENDLESS], 2, &["--for", "8760h"]);
    refused(&["demo", "--for", "1s", "--kill-every", ENDLESS], 2, &["--kill-every", "8760h"]);
    refused(&["demo", "--for", "1s", "--kill-every", "99ms"], 2, &["--kill-every", "100ms to 8760h"]);
    refused(&["bench", "takeover", "--lease", "61s"], 2, &["--lease", "20ms to 60s"]);
    let commands: [&[&str]; 8] = [
        &["demo"],
        &["agent"],
        &["join"],
        &["watch"],
        &["run"],
        &["router"],
        &["top"],
        &["bench", "takeover"],
    ];
    for command in commands {
        let help = stdout(&run(&[command, &["-h"]].concat()));
        let durations: Vec<&str> = help.lines().filter(|line| line.contains("DUR")).collect();
        assert!(!durations.is_empty(), "{command:?}");
        for line in durations {
            assert!(["up to ", "ms to "].iter().any(|range| line.contains(range)), "{command:?}: {line}");
        }
    }
}

#[test]
fn counts_and_ports_that_make_no_sense_are_refused() {
    refused(&["sim", "--seeds", "0"], 2, &["--seeds", "at least 1"]);
    refused(&["sim", "--seed", "18446744073709551615", "--seeds", "3"], 2, &["--seeds 3"]);
    refused(&["bench", "takeover", "--ballast", "1GB"], 2, &["--ballast", "1GiB"]);
    refused(&["bench", "takeover", "--ballast", "65GiB"], 2, &["--ballast", "64GiB"]);
    refused(&["bench", "takeover", "--times", "0"], 2, &["--times", "at least 1"]);
    refused(&["bench", "join", "--times", "0"], 2, &["--times", "at least 1"]);
    for wrong in ["0", "257", "100000", "x"] {
        refused(&["router", "--config", "x", "--workers", wrong], 2, &["--workers", "1 to 256"]);
    }
    refused(
        &["run", "--group", "g", "--endpoint", "127.0.0.1:0", "--", "true"],
        2,
        &["127.0.0.1:0", "port 0"],
    );
}

/// Runs a command, with these variables, that says at `debug` that it looks for a cluster, and fails soon.
fn logs_at_debug(dir: &Dir, config: &str, args: &[&str], variables: &[(&str, &str)]) -> bool {
    let output = phalanx()
        .args(["join", "g", "--no-stdin", "--bootstrap", "join", "--join-timeout", "200ms"])
        .args(["--rendezvous", &dir.rendezvous(), "--config", config])
        .args(args)
        .envs(variables.iter().copied())
        .output()
        .expect("the binary can be started");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    stderr(&output).contains("DEBUG")
}

#[test]
fn what_to_log_comes_from_the_flag_or_the_environment_or_the_file() {
    let dir = Dir::new();
    let (quiet, loud) = (dir.write("quiet.toml", ""), dir.write("loud.toml", "log = \"debug\"\n"));
    assert!(!logs_at_debug(&dir, &quiet, &[], &[]));
    assert!(logs_at_debug(&dir, &loud, &[], &[]));
    assert!(logs_at_debug(&dir, &loud, &[], &[("PHALANX_LOG", "")]));
    assert!(!logs_at_debug(&dir, &loud, &[], &[("PHALANX_LOG", "error")]));
    assert!(logs_at_debug(&dir, &quiet, &["--log", "debug"], &[("PHALANX_LOG", "error")]));
    let wrong = dir.write("wrong.toml", "log = \"nope\"\n");
    refused(&["router", "--check", "--config", &wrong], 2, &["wrong.toml", "log = ", "trace"]);
}

#[test]
fn a_configuration_may_come_through_a_pipe() {
    let mut child = phalanx()
        .args(["join", "g", "--no-stdin", "--config", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    let text = b"bootstrap = \"join\"\njoin-timeout = \"200ms\"\n";
    child.stdin.take().expect("it is piped").write_all(text).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
fn variables_are_read_as_people_write_them_and_empty_ones_count_as_unset() {
    let listen = |name: &str, value: &str| {
        let mut command = phalanx();
        command.args(["join", "g", "--no-stdin", "--listen", "0.0.0.0:0"]).env(name, value);
        stderr(&command.output().expect("the binary can be started"))
    };
    // Whoever may listen everywhere is asked next by which address others reach it.
    for yes in ["1", "yes", "true"] {
        assert!(listen("PHALANX_INSECURE", yes).contains("--advertise"), "{yes}");
    }
    for no in ["0", "no", "false", ""] {
        assert!(listen("PHALANX_INSECURE", no).contains("or --insecure"), "{no}");
    }
    assert!(listen("PHALANX_INSECURE", "perhaps").contains("--insecure"));
    let names = [
        "LOG",
        "CLUSTER",
        "NAME",
        "ADVERTISE",
        "RENDEZVOUS",
        "BOOTSTRAP",
        "LEASE",
        "HEARTBEAT",
        "LABEL",
        "ADMIN",
        "CORE",
        "GIVE_UP",
        "JOIN_TIMEOUT",
        "TRACE",
        "SECRET_FILE",
    ];
    for name in names {
        let said = listen(&format!("PHALANX_{name}"), "");
        assert!(said.contains("or --insecure"), "PHALANX_{name}: {said}");
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
    let says = format!("something already answers at {at}: ");
    assert!(stderr(&output).contains(&says), "{}", stderr(&output));
}

#[test]
fn a_wrapper_waits_a_moment_for_an_old_server_to_go_away() {
    let old = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let at = old.local_addr().expect("bound").to_string();
    let going = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        drop(old);
    });
    let dir = Dir::new();
    let exe = env!("CARGO_BIN_EXE_phalanx");
    let args = ["run", "--group", "g", "--endpoint", &at, "--rendezvous", &dir.rendezvous()];
    let mut wrapper = Proc::start(&[&args[..], &["--", exe, "server", "--listen", &at]].concat());
    wrapper.until_event("leading");
    going.join().expect("it only sleeps");
}

#[test]
fn a_server_that_goes_to_the_background_is_told_to_stay() {
    let free = ports::nobody().to_string();
    let dir = Dir::new();
    let rendezvous = format!("file:{}", dir.file("rdv"));
    let output =
        run(&["run", "--group", "g", "--endpoint", &free, "--rendezvous", &rendezvous, "--", "true"]);
    assert_eq!(output.status.code(), Some(1));
    let says = format!("true ended before its port {free} answered: run it in the foreground");
    assert!(stderr(&output).contains(&says), "{}", stderr(&output));
}

#[test]
fn an_admin_api_that_does_not_answer_is_said_so() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let output = run(&["status", "--admin", &silent.local_addr().expect("bound").to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("within 5 s"), "{}", stderr(&output));
    assert!(stderr(&output).contains("no answer from"), "{}", stderr(&output));
}

#[test]
fn an_admin_api_that_answers_without_end_is_not_listened_to_for_ever() {
    // A byte now and then keeps each read within its limit, and the whole answer beyond any.
    let drip = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = drip.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for stream in drip.incoming() {
            let mut stream = stream.expect("a connection");
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(300));
            }
        }
    });
    let begun = std::time::Instant::now();
    let output = run(&["status", "--admin", &addr]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("within 5 s"), "{}", stderr(&output));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());

    let flood = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = flood.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for stream in flood.incoming() {
            let mut stream = stream.expect("a connection");
            while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
        }
    });
    let output = run(&["view", "--admin", &addr]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("longer than 16 MiB"), "{}", stderr(&output));
}

/// Follows a node with these arguments until it has said so many lines that hold this.
fn tops(args: &[&str], lines: usize, with: &str) -> Vec<String> {
    let mut top = phalanx().arg("top").args(args).stdout(Stdio::piped()).spawn().expect("it can be started");
    let out = BufReader::new(top.stdout.take().expect("it is piped"));
    let found: Vec<String> =
        out.lines().map_while(Result::ok).filter(|line| line.contains(with)).take(lines).collect();
    let told = Command::new("kill").args(["-TERM", &top.id().to_string()]).status().expect("kill can be run");
    assert!(told.success());
    assert_eq!(top.wait().expect("it is ours").code(), Some(0));
    found
}

#[test]
fn top_shows_members_groups_and_rates_once_or_again_and_again() {
    let dir = Dir::new();
    let rendezvous = dir.rendezvous();
    let agent = ["agent", "--name", "a", "--admin", "127.0.0.1:0", "--rendezvous", &rendezvous];
    let mut agent = Proc::start(&agent);
    let admin = agent.until_event("started")["admin"].as_str().expect("an address").to_owned();
    let mut member = Proc::join("kv", "b", &rendezvous, &[]);
    member.until_event("leading");

    let once = run(&["top", "--once", "--admin", &admin]);
    assert_eq!(once.status.code(), Some(0), "{}", stderr(&once));
    let text = stdout(&once);
    assert!(text.starts_with("a of cluster default: ") && !text.contains('\x1b'), "{text}");
    for part in ["rank 0 of 2", "coordinator a", " ms left", "all groups", "each second: sent - "] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let row = text.lines().find(|line| line.starts_with("kv ")).expect("the group");
    assert_eq!(row.split_whitespace().skip(3).collect::<Vec<_>>(), ["b", "-", "b"], "{text}");

    let seen = tops(&["--admin", &admin, "--interval", "100ms", "--json"], 3, "\"rates\"");
    let seen: Vec<Value> = seen.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&seen[0]["event"], &seen[0]["rates"]), (&"top".into(), &Value::Null));
    assert!(seen[2]["lease_margin_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{}", seen[2]);
    assert!(seen.iter().any(|top| top["rates"]["received"].as_f64() > Some(0.0)), "{seen:?}");
    assert_eq!((&seen[2]["groups"]["known"], &seen[2]["members"][1]["node"]), (&"all".into(), &"b".into()));
    // Tables follow each other where there is no terminal.
    assert_eq!(tops(&["--admin", &admin, "--interval", "100ms"], 3, "a of cluster").len(), 3);

    // A node that goes away is asked again; one that never answered is an error.
    let nobody = ports::nobody().to_string();
    refused(&["top", "--admin", &nobody], 1, &[&nobody]);
    refused(&["top", "--admin", &admin, "--interval", "99ms"], 2, &["--interval", "100ms to 1h"]);
    let mut top = Proc::start(&["top", "--admin", &admin, "--interval", "100ms"]);
    top.until_event("top");
    agent.signal("TERM");
    assert_eq!(agent.end(), Some(0));
    let error = top.until("an error", |e| e["error"].is_string());
    assert!(error["error"].as_str().is_some_and(|e| e.contains(&admin)), "{error}");
    top.signal("INT");
    assert_eq!(top.end(), Some(0));
}

#[test]
fn top_draws_over_what_it_drew_on_a_terminal() {
    if !common::has("script") {
        return;
    }
    let dir = Dir::new();
    let rendezvous = dir.rendezvous();
    let agent = ["agent", "--name", "a", "--admin", "127.0.0.1:0", "--rendezvous", &rendezvous];
    let mut agent = Proc::start(&agent);
    let admin = agent.until_event("started")["admin"].as_str().expect("an address").to_owned();
    let top = format!(
        "stty rows 9 cols 30; timeout -s INT 3 {} top --admin {admin} --interval 200ms",
        env!("CARGO_BIN_EXE_phalanx")
    );
    let output = Command::new("script").args(["-qec", &top, "/dev/null"]).stdin(Stdio::null()).output();
    let text = stdout(&output.expect("it can be started"));
    let drawn: Vec<&str> = text.split("\x1b[H").skip(1).collect();
    assert!(drawn.len() >= 3, "{text}");
    for screen in drawn {
        assert!(screen.lines().count() <= 9 && screen.contains("\x1b[J"), "{screen}");
        let plain = screen.replace("\x1b[K", "").replace("\x1b[J", "").replace('\r', "");
        assert!(plain.lines().all(|line| line.chars().count() <= 30), "{plain}");
        assert!(plain.starts_with("a of cluster default: "), "{plain}");
    }
}
