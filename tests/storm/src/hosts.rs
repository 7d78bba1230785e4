//! Hosts on one machine: network namespaces without names, joined by a bridge in a namespace of its own.
//!
//! A namespace lives as long as a process in it; one that only waits for the end of its input holds it. So nothing is left
//! behind however this program ends, and two of them share nothing.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{Read, Write},
    net::Ipv4Addr,
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Holds one namespace.
struct Space {
    child: Child,
}

impl Space {
    fn new() -> anyhow::Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("starting unshare, of Debian's package util-linux")?;
        // What comes back was written by the process inside.
        let echoed = || -> std::io::Result<()> {
            child.stdin.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?.write_all(b"x")?;
            child.stdout.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?.read_exact(&mut [0])
        }();
        let space = Self { child };
        echoed.context("no network namespaces can be made here")?;
        Ok(space)
    }

    /// A command that runs inside.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.child.id())).arg(program).process_group(0);
        command
    }

    fn ip(&self, args: &str) -> anyhow::Result<()> {
        run(self.command("ip").args(args.split(' ')), "")
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // It waits for nothing else.
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
}

/// Runs a command to its end, with this input.
fn run(command: &mut Command, input: &str) -> anyhow::Result<()> {
    finish(start(command, input)?)
}

fn start(command: &mut Command, input: &str) -> anyhow::Result<Child> {
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    child.stdin.take().context("it is piped")?.write_all(input.as_bytes())?;
    Ok(child)
}

fn finish(child: Child) -> anyhow::Result<()> {
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The way into a namespace, for threads.
pub struct Door(File);

impl Door {
    /// From now on this thread is on that host.
    pub fn enter(&self) -> anyhow::Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .context("going into a network namespace")
    }
}

/// What becomes of packets from one host to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// Nothing arrives.
    Cut,
    /// Four of ten packets are lost.
    Loss,
}

/// All hosts. Each drops what it is to drop when it arrives, by sets of addresses: so cuts may be one way.
pub struct Hosts {
    hosts: Vec<Space>,
    _hub: Space,
    /// How many faults harm each directed pair.
    harmed: BTreeMap<(Harm, usize, usize), u32>,
}

/// A directed pair, and how it is harmed.
pub type Link = (Harm, usize, usize);

const RULES: &str = "table inet storm {
  set cut { type ipv4_addr; }
  set loss { type ipv4_addr; }
  chain in {
    type filter hook input priority 0;
    iif lo accept
    ip saddr @cut drop
    ip saddr @loss numgen random mod 10 < 4 drop
  }
}
";

impl Hosts {
    /// So many, and one more for clients.
    pub fn new(count: usize) -> anyhow::Result<Self> {
        let hub = Space::new()?;
        hub.ip("link add name hub type bridge").context("making a bridge")?;
        hub.ip("link set hub up")?;
        let mut hosts = Vec::new();
        for n in 0..=count {
            let host = Space::new()?;
            let pid = host.child.id();
            hub.ip(&format!("link add v{n} type veth peer name eth0 netns {pid}"))?;
            hub.ip(&format!("link set v{n} master hub up"))?;
            host.ip(&format!("addr add {}/24 dev eth0", address(n)))?;
            host.ip("link set eth0 up")?;
            host.ip("link set lo up")?;
            run(host.command("nft").args(["-f", "-"]), RULES).context("setting up nftables")?;
            hosts.push(host);
        }
        Ok(Self { hosts, _hub: hub, harmed: BTreeMap::new() })
    }

    /// A command that runs on a host.
    pub fn command(&self, host: usize, program: &str) -> Command {
        self.hosts[host].command(program)
    }

    /// The way to the host for clients, which nothing harms.
    pub fn outside(&self) -> anyhow::Result<Door> {
        let space = self.hosts.last().context("there is one more than asked for")?;
        Ok(Door(File::open(format!("/proc/{}/ns/net", space.child.id()))?))
    }

    /// Harms links. What several faults harm is whole again after the last of them.
    pub fn harm(&mut self, links: &[Link]) -> anyhow::Result<()> {
        let fresh = links.iter().filter(|link| {
            let count = self.harmed.entry(**link).or_default();
            *count += 1;
            *count == 1
        });
        let fresh: Vec<Link> = fresh.copied().collect();
        self.apply("add", &fresh)
    }

    /// Takes harm back. Gives the links that are whole now.
    pub fn heal(&mut self, links: &[Link]) -> anyhow::Result<Vec<Link>> {
        let mut whole = Vec::new();
        for link in links {
            match self.harmed.get_mut(link) {
                Some(1) => {
                    self.harmed.remove(link);
                    whole.push(*link);
                }
                Some(count) => *count -= 1,
                None => bail!("a link is healed that nobody harmed: {link:?}"),
            }
        }
        self.apply("delete", &whole)?;
        Ok(whole)
    }

    /// Takes all harm back.
    pub fn heal_all(&mut self) -> anyhow::Result<Vec<Link>> {
        let whole: Vec<Link> = std::mem::take(&mut self.harmed).into_keys().collect();
        self.apply("delete", &whole)?;
        Ok(whole)
    }

    /// All rules of one host at once; the hosts as nearly at once as processes start.
    fn apply(&self, verb: &str, links: &[Link]) -> anyhow::Result<()> {
        let mut scripts: BTreeMap<usize, String> = BTreeMap::new();
        for (harm, from, to) in links {
            let set = if *harm == Harm::Cut { "cut" } else { "loss" };
            let script = scripts.entry(*to).or_default();
            writeln!(script, "{verb} element inet storm {set} {{ {} }}", address(*from))?;
        }
        let running: Vec<anyhow::Result<Child>> = scripts
            .iter()
            .map(|(host, script)| start(self.command(*host, "nft").args(["-f", "-"]), script))
            .collect();
        for child in running {
            finish(child?).context("nft")?;
        }
        Ok(())
    }
}

pub fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host as u8 + 1)
}
