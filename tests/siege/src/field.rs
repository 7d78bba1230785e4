//! The router, its servers and its attackers, as processes.

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::attack::Kind;

/// A process of this binary; it ends with this value, or with the process that started it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// What it said first.
    pub said: Vec<SocketAddr>,
}

impl Process {
    fn start(binary: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this binary can be started");
        let mut line = String::new();
        let out = child.stdout.as_mut().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("it says where it is");
        let said = line.split_whitespace().map(|addr| addr.parse().expect("an address")).collect();
        Self { child, said }
    }

    /// How much memory of it is resident, in bytes.
    pub fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).expect("it lives");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
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

/// A router with two services, and two clones behind each.
#[derive(Debug)]
pub struct Field {
    binary: PathBuf,
    /// The router.
    pub router: Process,
    servers: Vec<Process>,
    /// The address of the HTTP service.
    pub http: SocketAddr,
    /// The address of the Redis service.
    pub redis: SocketAddr,
}

impl Field {
    /// Puts it up. `binary` is this crate's.
    pub fn start(binary: &Path) -> Self {
        let server = |_| Process::start(binary, &["be-server", "127.0.0.1:0", "127.0.0.1:0"]);
        let servers: Vec<Process> = (0..2).map(server).collect();
        let mut text = String::new();
        for (at, (protocol, key)) in
            [("http", "key = [\"header:x-key\", \"path:/items/{key}/*\"]\n"), ("redis", "")]
                .iter()
                .enumerate()
        {
            let addrs: Vec<String> =
                servers.iter().map(|server| format!("\"{}\"", server.said[at])).collect();
            text += &format!(
                "[[service]]\nname = \"{protocol}\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"{protocol}\"\n{key}[service.pmap]\n\
                 style = \"slots\"\npartitions = 16\n[[service.racs]]\nname = \"r\"\nservers = [{}]\n",
                addrs.join(", ")
            );
        }
        let router = Process::start(binary, &["be-router", &text]);
        let (http, redis) = (router.said[0], router.said[1]);
        Self { binary: binary.into(), router, servers, http, redis }
    }

    /// Starts so many attackers, in a process of their own.
    pub fn attack(&self, kind: Kind, count: usize) -> Process {
        let addr = if kind.is_redis() { self.redis } else { self.http };
        Process::start(&self.binary, &["be-attacker", kind.name(), &addr.to_string(), &count.to_string()])
    }

    /// Kills a server, and starts it anew at the same place after a while.
    pub fn bounce(&mut self, server: usize, pause: std::time::Duration) {
        let said = self.servers[server].said.clone();
        let _ = self.servers[server].child.kill();
        let _ = self.servers[server].child.wait();
        std::thread::sleep(pause);
        let args = ["be-server".to_owned(), said[0].to_string(), said[1].to_string()];
        self.servers[server] = Process::start(&self.binary, &args.each_ref().map(String::as_str));
    }
}

/// This binary, where it runs as such.
pub fn this_binary() -> PathBuf {
    env::current_exe().expect("Linux")
}
