//! The router, its servers and its attackers, as processes.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    attack::Kind,
    honest::Speaks,
    journal::{self, Told},
    variant,
};

/// A process of this binary; it ends with this value, or with the process that started it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
    /// What it said first.
    pub said: Vec<SocketAddr>,
}

impl Process {
    fn start(binary: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this binary can be started");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("it says where it is");
        let said = line.split_whitespace().map(|addr| addr.parse().expect("an address")).collect();
        Self { child, out, said }
    }

    /// Gives an order of one line, and returns what it says to that.
    fn order(&mut self, line: &str) -> String {
        let input = self.child.stdin.as_mut().expect("piped");
        writeln!(input, "{line}").expect("it lives");
        let mut answer = String::new();
        self.out.read_line(&mut answer).expect("it answers");
        answer.trim_end().to_owned()
    }

    /// Stops it for a while.
    fn stall(&self, time: Duration) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).expect("it lives");
        std::thread::sleep(time);
        kill_process(pid, Signal::CONT).expect("it lives");
    }

    /// How much memory of it is resident, in bytes.
    pub fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).expect("it lives");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
    }

    /// How many files it has open, sockets above all.
    ///
    /// # Panics
    /// If it has ended.
    pub fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it lives").count()
    }

    /// How long it has used a processor, in clock ticks.
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it lives");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("a number")).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A router with a service of each protocol, and clones behind each. Some servers may be killed; those of plain TCP may not,
/// since connections end with their server.
#[derive(Debug)]
pub struct Field {
    binary: PathBuf,
    /// The router.
    pub router: Process,
    servers: Vec<Process>,
    /// The addresses of the services, in the order of [`Speaks::ALL`].
    pub services: [SocketAddr; 5],
    /// Where passwords are, and the servers' journal.
    directory: PathBuf,
}

/// How many servers may be killed, and how many there are.
pub const MORTAL: usize = 3;
const SERVERS: usize = 5;
/// The name of the servers' journal.
const JOURNAL: &str = "journal";

/// What a router has now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// Clients.
    pub clients: u64,
    /// Tasks.
    pub tasks: u64,
    /// Open files, sockets above all.
    pub files: u64,
}

impl Field {
    /// Puts it up. `binary` is this crate's.
    pub fn start(binary: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let directory = env::temp_dir().join(format!("siege-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a place for a file");
        let journal = directory.join(JOURNAL);
        let journal = journal.to_str().expect("a path that we made");
        let start = || {
            let at = [(); 4].map(|()| ports::nobody().to_string());
            let [http, redis, memcached, frames] = at.each_ref().map(String::as_str);
            Process::start(binary, &["be-server", http, redis, memcached, frames, journal])
        };
        let servers = (0..SERVERS).map(|_| start());
        let servers: Vec<Process> = servers.collect();
        let text = variant::text(0, &Self::said(&servers), &directory);
        let router = Process::start(binary, &["be-router", &text]);
        let services = router.said[..5].try_into().expect("one of each");
        Self { binary: binary.into(), router, servers, services, directory }
    }

    fn said(servers: &[Process]) -> Vec<Vec<SocketAddr>> {
        servers.iter().map(|server| server.said.clone()).collect()
    }

    /// The address of the service of this protocol.
    pub fn service(&self, speaks: Speaks) -> SocketAddr {
        self.services[Speaks::ALL.iter().position(|one| *one == speaks).expect("one of all")]
    }

    /// Has the router go over to the `n`th of a series of configurations.
    ///
    /// # Errors
    /// Why it does not.
    pub fn reload(&mut self, n: u64) -> Result<(), String> {
        let text = variant::text(n, &Self::said(&self.servers), &self.directory);
        let said = self.router.order(&format!("reload {}", text.replace('\n', LINE_END)));
        if said == "ok" { Ok(()) } else { Err(said) }
    }

    /// What the router has now.
    pub fn holds(&mut self) -> Holds {
        let said = self.router.order("count");
        let mut numbers = said.split(' ').map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("three numbers");
        Holds { clients: next(), tasks: next(), files: next() }
    }

    /// What is wrong with the updates of which clients were told this.
    pub fn judge(&self, told: &HashMap<String, Told>) -> Vec<String> {
        journal::judge(&self.directory.join(JOURNAL), told)
    }

    /// Starts so many attackers, in a process of their own.
    pub fn attack(&self, kind: Kind, count: usize) -> Process {
        let addr = self.service(if kind.is_redis() { Speaks::Redis } else { Speaks::Http });
        Process::start(&self.binary, &["be-attacker", kind.name(), &addr.to_string(), &count.to_string()])
    }

    /// Kills a server, and starts it anew at the same place after a while. For the first part of that the router stands still: it
    /// gets no processor.
    pub fn bounce(&mut self, server: usize, stall: Duration, pause: Duration) {
        let said = self.servers[server].said.clone();
        let _ = self.servers[server].child.kill();
        let _ = self.servers[server].child.wait();
        if !stall.is_zero() {
            self.router.stall(stall);
        }
        std::thread::sleep(pause);
        let args: Vec<String> = said.iter().map(SocketAddr::to_string).collect();
        let journal = self.directory.join(JOURNAL);
        let mut args: Vec<&str> =
            std::iter::once("be-server").chain(args.iter().map(String::as_str)).collect();
        args.push(journal.to_str().expect("a path that we made"));
        self.servers[server] = Process::start(&self.binary, &args);
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Stands for the end of a line inside an order.
pub const LINE_END: &str = "\u{1f}";

/// This binary, where it runs as such.
pub fn this_binary() -> PathBuf {
    env::current_exe().expect("Linux")
}
