//! What acts under a lease: commands under `lock` and `run`, and whatever they start, end in time whatever happens to
//! their wrapper.

mod common;

use std::{
    fs,
    net::ToSocketAddrs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Dir, PATIENCE, Proc, run, stderr, stdout};
use ports::free_port;

const LEASE: Duration = Duration::from_millis(1000);

/// The kinds of fuse that this machine grants.
fn kinds() -> Vec<&'static str> {
    let dir = Dir::new();
    let grants = |kind: &&str| {
        let rendezvous = dir.rendezvous();
        let output = run(&["lock", "probe", "--fuse", kind, "--rendezvous", &rendezvous, "--", "true"]);
        let granted = output.status.success();
        if !granted {
            let required =
                ["CI", "PHALANX_REQUIRE_SERVERS"].iter().any(|name| std::env::var_os(name).is_some());
            assert!(!required, "no {kind} fuse: {}", stderr(&output));
            println!("SKIPPED: no {kind} fuse: {}", stderr(&output));
        }
        granted
    };
    ["namespace", "user-namespace", "subreaper"].into_iter().filter(grants).collect()
}

/// A command that writes the time (`CLOCK_BOOTTIME` in hundredths of a second) into a file again and again, and a daemon that
/// it leaves behind, in a session of its own and with no parent, which does the same.
fn stamps(file: &str) -> String {
    let body = format!("while :; do read up rest < /proc/uptime; echo $up >> {file}; sleep 0.005; done");
    format!("(setsid sh -c '{body}' >/dev/null 2>&1 &); {body}")
}

/// All fuses and wrappers, and what writes to this file, for the message of a test that fails.
fn processes(file: &str) -> String {
    let all = Command::new("ps").args(["-eo", "pid,ppid,stat,lstart,args"]).output().expect("ps");
    let text = String::from_utf8_lossy(&all.stdout).into_owned();
    text.lines().filter(|line| line.contains("phalanx") || line.contains(file)).collect::<Vec<_>>().join("\n")
}

/// How many processes there are whose command line names this file.
fn writers(file: &str) -> usize {
    let all = fs::read_dir("/proc").expect("Linux").flatten();
    let lines = all.map(|entry| fs::read(entry.path().join("cmdline")).unwrap_or_default());
    lines.filter(|line| String::from_utf8_lossy(line).contains(file)).count()
}

/// What was written, in hundredths of a second.
fn read(file: &str) -> Vec<u64> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| line.replace('.', "").parse().expect("a time")).collect()
}

fn uptime() -> u64 {
    let text = fs::read_to_string("/proc/uptime").expect("Linux");
    text.split_once(' ').expect("two numbers").0.replace('.', "").parse().expect("a time")
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(5));
    }
}

fn lock(dir: &Dir, kind: &str, file: &str) -> Proc {
    let (rendezvous, script) = (dir.rendezvous(), stamps(file));
    Proc::start(&["lock", "g", "--fuse", kind, "--rendezvous", &rendezvous, "--", "sh", "-c", &script])
}

/// Two that want one lock: the first has it, the second waits for it; and the files in which they leave their stamps.
fn holder_and_next(dir: &Dir, kind: &str) -> (Proc, Proc, [String; 2]) {
    let files = [dir.file("one"), dir.file("two")];
    let mut one = lock(dir, kind, &files[0]);
    one.until_event("leading");
    until("stamps", || read(&files[0]).len() > 10);
    let mut two = lock(dir, kind, &files[1]);
    two.until_members(2);
    // Until they have met, and the core has grown.
    sleep(LEASE);
    assert!(read(&files[1]).is_empty(), "one at a time");
    (one, two, files)
}

#[test]
fn a_daemon_dies_with_the_wrapper_that_is_killed() {
    for kind in kinds() {
        let dir = Dir::new();
        let file = dir.file("stamps");
        let (rendezvous, script) = (dir.rendezvous(), stamps(&file));
        let args = ["run", "--group", "g", "--fuse", kind, "--rendezvous", &rendezvous, "--", "sh", "-c"];
        let mut wrapper = Proc::start(&[&args[..], &[&script]].concat());
        wrapper.until_event("leading");
        until("stamps", || read(&file).len() > 10);
        wrapper.signal("KILL");
        wrapper.end();
        until("all who write are gone", || writers(&file) == 0);
        let before = read(&file).len();
        sleep(Duration::from_millis(500));
        assert_eq!(before, read(&file).len(), "{kind}: somebody lives on");
    }
}

#[test]
fn the_next_holder_begins_when_all_of_the_killed_one_is_gone_and_long_before_its_lease_ends() {
    for kind in kinds() {
        let dir = Dir::new();
        let (mut one, mut two, files) = holder_and_next(&dir, kind);
        let killed = Instant::now();
        one.signal("KILL");
        two.until_event("leading");
        let took = killed.elapsed();
        one.end();
        until("stamps", || read(&files[1]).len() > 10);
        let (last, first) = (read(&files[0]).last().copied(), read(&files[1]).first().copied());
        assert!(last <= first, "{kind}: one went on until {last:?}, the other one began at {first:?}");
        println!("{kind}: the next one led after {took:?}");
        two.signal("TERM");
        assert_eq!(two.end(), Some(143), "the command's own end");
    }
}

/// The processes that this one has started.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// What a hook for the lead leaves behind goes with the lead, also where the part of the fuse is killed that knew whose it was.
#[test]
fn the_next_one_leads_when_all_of_a_hook_is_gone_of_which_the_fuse_was_killed() {
    for kind in kinds() {
        let dir = Dir::new();
        let files = [dir.file("one"), dir.file("two")];
        let [mut one, mut two] = [0, 1].map(|n| {
            let (rendezvous, lead) = (dir.rendezvous(), stamps(&files[n]));
            let args = ["run", "--group", "g", "--fuse", kind, "--rendezvous", &rendezvous];
            let mut wrapper =
                Proc::start(&[&args[..], &["--on-lead", &lead, "--", "sleep", "1000"]].concat());
            wrapper.until_members(n + 1);
            wrapper
        });
        until("stamps", || read(&files[0]).len() > 10);
        sleep(LEASE); // until they have met, and the core has grown
        let command = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let roots = children(one.pid());
        let is_hook = |branch: &&u32| children(**branch).iter().any(|pid| command(pid).starts_with("sh"));
        let branches = children(roots[0]);
        let hook = branches.iter().find(is_hook).expect("it has left its stamps").to_string();
        assert!(Command::new("kill").args(["-KILL", &hook]).status().expect("it can be run").success());
        two.until_event("leading");
        until("stamps", || read(&files[1]).len() > 10);
        let (last, first) = (read(&files[0]).last().copied(), read(&files[1]).first().copied());
        assert!(last <= first, "{kind}: one went on until {last:?}, the other one began at {first:?}");
        assert_eq!(one.end(), Some(137), "its server was ended, too");
    }
}

#[test]
fn a_stopped_wrapper_cannot_prolong_its_command() {
    for kind in kinds() {
        let dir = Dir::new();
        // A stopped process is not proved dead: it takes a majority without it.
        let mut agent = Proc::start(&["agent", "--rendezvous", &dir.rendezvous()]);
        agent.until_event("unblocked");
        let (mut one, mut two, files) = holder_and_next(&dir, kind);
        one.signal("STOP");
        let stopped = uptime();
        two.until_event("leading");
        until("stamps", || read(&files[1]).len() > 10);
        let (last, first) = (*read(&files[0]).last().expect("stamps"), read(&files[1])[0]);
        assert!(last <= first, "{kind}: one went on until {last}, the other one began at {first}");
        assert!(last <= stopped + LEASE.as_millis() as u64 / 10 + 1, "{kind}: from {stopped} until {last}");
        one.signal("CONT");
        assert_eq!(one.end(), Some(5), "{kind}: lost");
    }
}

#[test]
fn what_runs_while_a_node_leads_ends_with_the_codes_that_are_documented() {
    let dir = Dir::new();
    let rendezvous = dir.rendezvous();
    // Nobody loses the lead.
    let lease = ["--lease", "5s", "--rendezvous", &rendezvous, "--"];
    let locked = |script: &str| run(&[&["lock", "g"], &lease[..], &["sh", "-c", script]].concat());
    let output =
        locked("echo $PHALANX_GROUP; test $PHALANX_TOKEN -gt 0 && test $PHALANX_VIEW -gt 0 && exit 7");
    assert_eq!((output.status.code(), stdout(&output)), (Some(7), "g\n".to_owned()), "{}", stderr(&output));
    assert_eq!(locked("kill -9 $$").status.code(), Some(137));
    assert_eq!(locked("exit 0").status.code(), Some(0));
    let exclusive = [&["run", "--exclusive", "--group", "g"], &lease[..]].concat();
    assert_eq!(run(&[&exclusive[..], &["sh", "-c", "exit 8"]].concat()).status.code(), Some(8));
    assert_eq!(run(&[&exclusive[..], &["no-such-program-here"]].concat()).status.code(), Some(2));
    let unfounded = ["lock", "g", "--bootstrap", "join", "--join-timeout", "300ms"];
    let output = run(&[&unfounded[..], &["--rendezvous", &dir.rendezvous(), "--", "true"]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

/// Old programs cannot bear high numbers of files; the wrapper itself may need many.
#[test]
fn a_command_keeps_its_limit_of_open_files_and_its_wrapper_has_more() {
    let dir = Dir::new();
    let (file, rendezvous) = (dir.file("limit"), dir.rendezvous());
    let script = format!("ulimit -Sn > {file}.new; mv {file}.new {file}; exec sleep 1000");
    let args = ["lock", "g", "--rendezvous", &rendezvous, "--", "sh", "-c", &script];
    let wrapper = Proc::start_with_files((300, 400), &args);
    until("the command runs", || fs::exists(&file).expect("a directory"));
    assert_eq!(fs::read_to_string(&file).expect("a file").trim(), "300");
    let limits = fs::read_to_string(format!("/proc/{}/limits", wrapper.pid())).expect("it runs");
    let of_files = limits.lines().find(|line| line.starts_with("Max open files")).expect("it is listed");
    assert_eq!(of_files.split_whitespace().nth(3), Some("400"));
}

#[test]
fn a_lock_that_nobody_else_can_find_says_so() {
    let output = run(&["lock", "g", "--", "true"]);
    assert!(output.status.success() && stderr(&output).contains("no --rendezvous"), "{}", stderr(&output));
    let dir = Dir::new();
    let output = run(&["lock", "g", "--rendezvous", &dir.rendezvous(), "--", "true"]);
    assert!(output.status.success() && !stderr(&output).contains("rendezvous"), "{}", stderr(&output));
}

#[test]
fn a_command_under_a_lock_reads_and_writes_as_if_it_ran_alone() {
    let dir = Dir::new();
    let mut command = common::phalanx();
    command.args(["lock", "g", "--rendezvous", &dir.rendezvous(), "--", "sh", "-c"]);
    // It finds itself under the number that it has, and reads what we write.
    command.arg("readlink /proc/$$/fd/0 | cut -c1-5; cat; echo wrong >&2; readlink /proc/$$/exe >/dev/null");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary can be started");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"hello\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), "pipe:\nhello\n".to_owned()));
    assert!(stderr(&output).ends_with("wrong\n"), "{}", stderr(&output));
}

/// A server that only sleeps, and hooks that write what they are told.
fn hooked(dir: &Dir, name: &str, more: &[&str]) -> Proc {
    let (rendezvous, file) = (dir.rendezvous(), dir.file(name));
    let lead = format!("echo lead $PHALANX_TOKEN >> {file}");
    let follow = format!("echo follow $PHALANX_LEADER >> {file}");
    let args = ["run", "--group", "g", "--name", name, "--rendezvous", &rendezvous];
    let hooks = ["--on-lead", &lead, "--on-follow", &follow];
    Proc::start(&[&args[..], &hooks, more, &["--", "sleep", "1000"]].concat())
}

fn lines(dir: &Dir, name: &str) -> Vec<String> {
    let text = fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn hooks_run_when_the_role_changes() {
    let dir = Dir::new();
    let mut one = hooked(&dir, "one", &[]);
    let token = one.until_event("leading")["token"].as_u64().expect("a token");
    until("the lead", || lines(&dir, "one") == [format!("lead {token}")]);
    let mut two = hooked(&dir, "two", &[]);
    two.until_members(2);
    until("following", || lines(&dir, "two") == ["follow one"]);
    one.signal("KILL");
    one.end();
    let token = two.until_event("leading")["token"].as_u64().expect("a token");
    until("the lead", || lines(&dir, "two") == ["follow one".to_owned(), format!("lead {token}")]);
}

/// Where no member can take the lead up, it does not go round as fast as the network is.
#[test]
fn a_lead_that_no_hook_can_take_up_stays_longer_and_longer_with_each() {
    let dir = Dir::new();
    let rendezvous = dir.rendezvous();
    let start = |name: &str| {
        let lead = format!("echo tried >> {}; false", dir.file("tries"));
        let args = ["run", "--group", "g", "--name", name, "--rendezvous", &rendezvous, "--on-lead", &lead];
        Proc::start(&[&args[..], &["--", "sleep", "1000"]].concat())
    };
    let (mut one, mut two) = (start("one"), start("two"));
    one.until_members(2);
    two.until_members(2);
    let (before, began) = (lines(&dir, "tries").len(), Instant::now());
    until("six tries", || lines(&dir, "tries").len() >= before + 6);
    assert!(began.elapsed() > Duration::from_secs(2), "six tries in {:?}", began.elapsed());
}

/// Routers forward to addresses only.
#[test]
fn a_server_whose_place_is_given_by_name_is_told_by_address() {
    let (dir, port) = (Dir::new(), free_port());
    let at = ("localhost", port).to_socket_addrs().expect("it is known").next().expect("an address");
    let (endpoint, listen, rendezvous) = (format!("localhost:{port}"), at.to_string(), dir.rendezvous());
    let admin = ports::nobody().to_string();
    let args =
        ["run", "--group", "g", "--endpoint", &endpoint, "--admin", &admin, "--rendezvous", &rendezvous];
    let server = ["--", env!("CARGO_BIN_EXE_phalanx"), "server", "--listen", &listen];
    let mut wrapper = Proc::start(&[&args[..], &server].concat());
    wrapper.until_members(1);
    let view = stdout(&run(&["view", "g", "--json", "--admin", &admin]));
    assert!(view.contains(&format!("\"endpoint\":\"{listen}\"")), "{view}");
}

#[test]
fn a_hook_for_the_lead_is_killed_when_the_wrapper_is_stopped_and_the_server_is_not() {
    let dir = Dir::new();
    let (hook, server) = (dir.file("hook"), dir.file("server"));
    let (rendezvous, lead, serve) = (dir.rendezvous(), stamps(&hook), stamps(&server));
    let args = ["run", "--group", "g", "--rendezvous", &rendezvous, "--on-lead", &lead, "--", "sh", "-c"];
    let mut one = Proc::start(&[&args[..], &[&serve]].concat());
    one.until_event("leading");
    until("stamps", || read(&hook).len() > 10);
    one.signal("STOP");
    let stopped = uptime();
    sleep(LEASE * 2);
    let last = *read(&hook).last().expect("stamps");
    let in_time = last <= stopped + LEASE.as_millis() as u64 / 10 + 1;
    assert!(in_time, "from {stopped} until {last}; seen {:#?}; processes:\n{}", one.seen, processes(&hook));
    assert!(*read(&server).last().expect("stamps") > last, "the server is not bound to the lead");
    one.signal("CONT");
}

/// The kernel continues what is stopped in a process group when the last one goes whose parent is outside, in the same session.
#[test]
fn the_end_of_a_command_continues_nobody_who_is_stopped() {
    let phalanx = env!("CARGO_BIN_EXE_phalanx");
    for kind in kinds() {
        let dir = Dir::new();
        let script = format!(
            "trap '' HUP; sleep 60 & kill -STOP $!; {phalanx} lock g --fuse {kind} --rendezvous {} -- true && cut -d' ' -f3 \
             /proc/$!/stat; kill -KILL $!",
            dir.rendezvous()
        );
        let mut alone = Command::new("setsid");
        let output = alone.args(["--wait", "sh", "-c", &script]).stdin(Stdio::null()).output();
        let output = output.expect("util-linux is installed");
        assert_eq!(stdout(&output).trim(), "T", "{kind}: {}", stderr(&output));
    }
}

/// `/proc` is hidden from the fuse while a command runs: what it cannot see it can neither end nor say to be gone.
#[test]
fn a_fuse_that_cannot_see_what_is_left_says_so_and_does_not_wait_for_ever() {
    let dir = Dir::new();
    let (rendezvous, file, daemon) = (dir.rendezvous(), dir.file("runs"), dir.file("daemon"));
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "mount namespaces need root and util-linux");
        println!("SKIPPED: no mount namespaces");
        return;
    }
    let script = format!(
        "(setsid sh -c 'echo $$ >{daemon}; exec sleep 60' >/dev/null 2>&1 &); touch {file}; exec sleep 60"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", env!("CARGO_BIN_EXE_phalanx"), "lock", "g", "--fuse", "subreaper"]);
    command.args(["--rendezvous", &rendezvous, "--", "sh", "-c", &script]);
    let wrapper = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("util-linux");
    let pid = |file: &str| fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    until("both run", || Path::new(&file).exists() && !pid(&daemon).is_empty());
    let number = wrapper.id().to_string();
    let run = |program: &str, args: &[&str]| {
        assert!(
            Command::new(program).args(args).status().expect("it can be run").success(),
            "{program} {args:?}"
        );
    };
    run("nsenter", &["--target", &number, "--mount", "mount", "-t", "tmpfs", "none", "/proc"]);
    run("kill", &["-TERM", &number]);
    let told = Instant::now();
    let output = wrapper.wait_with_output().expect("it ends");
    let took = told.elapsed();
    let orphan = pid(&daemon);
    assert!(Path::new(&format!("/proc/{orphan}")).exists(), "else there was nothing to miss");
    run("kill", &["-KILL", &orphan]);
    let said = stderr(&output);
    assert!(said.contains("/proc cannot be read") && said.contains("may still run"), "{said}");
    assert!(!output.status.success() && took < Duration::from_secs(20), "{:?} after {took:?}", output.status);
}

#[test]
fn an_unhealthy_server_does_not_lead_and_comes_back_as_the_last() {
    let dir = Dir::new();
    let healthy = dir.write("healthy", "");
    let check = format!("exec:test -f {healthy}");
    let often = ["--health", &check, "--health-every", "50ms"];
    let mut one = hooked(&dir, "one", &often);
    one.until_event("leading");
    let mut two = hooked(&dir, "two", &[]);
    two.until_members(2);
    fs::remove_file(Path::new(&healthy)).expect("it is there");
    two.until_event("leading");
    fs::write(&healthy, "").expect("written");
    let members = two.until_members(2)["members"].clone();
    assert_eq!(members, serde_json::json!(["two", "one"]));
    until("following", || lines(&dir, "one").last().is_some_and(|line| line == "follow two"));
    two.signal("KILL");
    two.end();
    let token = one.until_event("leading")["token"].as_u64().expect("a token");
    until("the lead again", || lines(&dir, "one").last() == Some(&format!("lead {token}")));
}
