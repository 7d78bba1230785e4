//! Routers that are measured: how each is told to route by key, to whom, and what it uses.

use std::{
    env, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use backplane::wait_for_port;
use clap::ValueEnum;
use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Signal, geteuid, kill_process_group},
};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use super::{layout::Places, speech::Protocol};
use crate::cli::{Failure, bench::name_of, exit};

/// A router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Contender {
    Phalanx,
    Nginx,
    Haproxy,
    /// Also known as twemproxy. It has one thread, whatever `--workers` says.
    Nutcracker,
}

/// How long one may take until it serves.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it is asked whether it does.
const EVERY: Duration = Duration::from_millis(5);

/// What a router is to do.
pub(super) struct Task<'a> {
    pub(super) protocol: Protocol,
    pub(super) servers: &'a [SocketAddr],
    pub(super) workers: usize,
    /// For its files.
    pub(super) dir: &'a Path,
    pub(super) places: &'a Places,
}

impl Contender {
    /// Can it be measured here?
    pub(super) fn check(self, protocol: Protocol) -> Result<(), Failure> {
        let all = Self::value_variants().iter();
        let able: Vec<String> = all.filter(|one| one.routes(protocol)).map(name_of).collect();
        if !self.routes(protocol) {
            let (name, protocol) = (name_of(&self), name_of(&protocol));
            let why = format!(
                "--by {name}: it does not route {protocol} by key; of {protocol} there are {}",
                able.join(", ")
            );
            return Err(Failure::usage(why));
        }
        self.program().map(drop)
    }

    fn routes(self, protocol: Protocol) -> bool {
        match self {
            Self::Phalanx => true,
            Self::Nginx | Self::Haproxy => protocol == Protocol::Http,
            Self::Nutcracker => matches!(protocol, Protocol::Redis | Protocol::Memcached),
        }
    }

    fn program(self) -> Result<PathBuf, Failure> {
        // Users who are not root have no directories of servers in their PATH.
        let path = env::var_os("PATH").unwrap_or_default();
        self.find(env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)))
    }

    fn find(self, mut dirs: impl Iterator<Item = PathBuf>) -> Result<PathBuf, Failure> {
        let package = match self {
            Self::Phalanx => return Ok(env::current_exe()?),
            Self::Nginx => "nginx-light",
            Self::Haproxy => "haproxy",
            Self::Nutcracker => "nutcracker",
        };
        let name = name_of(&self);
        let program = dirs.find_map(|dir| Some(dir.join(&name)).filter(|file| file.is_file()));
        program.ok_or_else(|| {
            let how = format!("`apt-get install {package}` installs it on Debian, or leave it out");
            Failure::usage(format!("--by {name}: {name} is not installed: {how}"))
        })
    }

    /// Its configuration, for a service at this address.
    fn configuration(self, task: &Task<'_>, at: SocketAddr) -> String {
        match self {
            Self::Phalanx => phalanx(task, at),
            Self::Nginx => nginx(task, at),
            Self::Haproxy => haproxy(task, at),
            Self::Nutcracker => nutcracker(task, at),
        }
    }

    /// Its arguments, with that configuration in a file.
    fn arguments(self, task: &Task<'_>, file: &str) -> Result<Vec<String>, Failure> {
        let (workers, dir) = (task.workers.to_string(), task.dir.display().to_string());
        let stats = ports::free_port().to_string();
        let args: &[&str] = match self {
            Self::Phalanx => &["--die-with-parent", "router", "--workers", &workers, "--config", file],
            Self::Nginx => &["-e", "stderr", "-p", &dir, "-c", file],
            Self::Haproxy => &["-db", "-f", file],
            Self::Nutcracker => &["-a", "127.0.0.1", "-s", &stats, "-v", "2", "-c", file],
        };
        Ok(args.iter().map(ToString::to_string).collect())
    }
}

/// Servers as a configuration has them: each as `each` writes it, by its number and its address.
fn list(task: &Task<'_>, each: impl Fn((usize, &SocketAddr)) -> String) -> String {
    task.servers.iter().enumerate().map(each).collect()
}

fn phalanx(task: &Task<'_>, at: SocketAddr) -> String {
    let protocol = name_of(&task.protocol);
    let key = match task.protocol {
        Protocol::Http => "key = \"header:x-key\"\n",
        Protocol::Frames => "key = \"msgpack:/params/0\"\nread_methods = [\"get\"]\n",
        Protocol::Redis | Protocol::Memcached => "",
    };
    let servers = list(task, |(n, at)| format!("[[service.racs]]\nname = \"r{n}\"\nservers = [\"{at}\"]\n"));
    format!(
        "[[service]]\nname = \"bench\"\nlisten = \"{at}\"\nprotocol = \"{protocol}\"\n{key}\
         pmap = {{ style = \"slots\", partitions = 1024 }}\n{servers}"
    )
}

fn nginx(task: &Task<'_>, at: SocketAddr) -> String {
    let servers = list(task, |(_, at)| format!("server {at}; "));
    // Else it becomes somebody who cannot read the directory of its files.
    let user = if geteuid().is_root() { "user root;" } else { "" };
    format!(
        "daemon off; {user} worker_processes {}; worker_rlimit_nofile 16384; pid nginx.pid; error_log stderr crit;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 600s;\n\
         client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;\n\
         scgi_temp_path scgi;\n\
         upstream servers {{ zone servers 256k; hash $http_x_key consistent; {servers}\n\
         keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 600s; }}\n\
         server {{ listen {at} reuseport; location / {{ proxy_pass http://servers; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; }} }} }}\n",
        task.workers
    )
}

fn haproxy(task: &Task<'_>, at: SocketAddr) -> String {
    let servers = list(task, |(n, at)| format!("  server s{n} {at}\n"));
    format!(
        "global\n  nbthread {}\n  maxconn 4096\n\
         defaults\n  mode http\n  timeout client 600s\n  timeout connect 1s\n  timeout server 30s\n  http-reuse always\n\
         frontend clients\n  bind {at}\n  default_backend servers\n\
         backend servers\n  balance hdr(X-Key)\n  hash-type consistent\n{servers}",
        task.workers
    )
}

fn nutcracker(task: &Task<'_>, at: SocketAddr) -> String {
    let redis = task.protocol == Protocol::Redis;
    let servers = list(task, |(n, at)| format!("   - {at}:1 s{n}\n"));
    format!(
        "bench:\n  listen: {at}\n  hash: fnv1a_64\n  distribution: ketama\n  redis: {redis}\n  preconnect: true\n  \
         auto_eject_hosts: false\n  timeout: 30000\n  backlog: 1024\n  server_connections: 1\n  servers:\n{servers}"
    )
}

/// A router that serves: a process with all that it starts, which end with this.
pub(super) struct Router {
    child: Child,
    group: Pid,
    pub(super) name: String,
    pub(super) at: SocketAddr,
}

impl Router {
    /// Starts one, and waits until it serves. A dropped future leaves nothing behind.
    pub(super) async fn start(contender: Contender, task: &Task<'_>) -> Result<Self, Failure> {
        let name = name_of(&contender);
        let at = ports::nobody();
        let file = task.dir.join(format!("{name}.conf")).display().to_string();
        fs::write(&file, contender.configuration(task, at))?;
        let mut command = Command::new(contender.program()?);
        command.args(contender.arguments(task, &file)?);
        // What the environment says of nodes and their configuration is not meant for this one.
        for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PHALANX_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).kill_on_drop(true);
        let child =
            task.places.among_routers(|| command.spawn()).with_context(|| format!("starting {name}"))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it has a number")?;
        let mut router = Self { child, group, name, at };
        tokio::select! {
            up = wait_for_port(at, EVERY, Instant::now() + PATIENCE) => {
                up.with_context(|| format!("{} does not serve", router.name))?;
            }
            ended = router.child.wait() => {
                let why = format!("{} does not serve: {}, and its words are above", router.name, ended?);
                return Err(Failure::new(exit::FAILED, why));
            }
        }
        Ok(router)
    }

    /// CPU time that its processes have used, in microseconds, to the kernel's tick (10 ms).
    pub(super) fn cpu_us(&self) -> io::Result<f64> {
        let mut ticks = 0;
        for entry in fs::read_dir("/proc")? {
            // What cannot be read is no process, or not any more.
            if let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) {
                ticks += ticks_of(&stat, self.group).unwrap_or(0);
            }
        }
        Ok(ticks as f64 * 1e6 / clock_ticks_per_second() as f64)
    }

    /// Ends it, and waits until it is gone.
    pub(super) async fn end(mut self) -> Result<(), Failure> {
        self.kill();
        self.child.wait().await?;
        Ok(())
    }

    fn kill(&self) {
        // Until somebody has waited for it, its number is nobody else's.
        if self.child.id().is_some() {
            // It may have ended by itself.
            let _gone = kill_process_group(self.group, Signal::KILL);
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.kill();
    }
}

/// User and system time of a process of this group, in ticks, out of its `/proc/PID/stat`.
fn ticks_of(stat: &str, group: Pid) -> Option<u64> {
    // Behind its name, in which there may be anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if fields.nth(2)?.parse() != Ok(group.as_raw_nonzero().get()) {
        return None;
    }
    let (user, system) = (fields.nth(8)?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_is_told_with_how_to_install_it() {
        for (contender, package) in [
            (Contender::Nginx, "apt-get install nginx-light"),
            (Contender::Haproxy, "apt-get install haproxy"),
            (Contender::Nutcracker, "apt-get install nutcracker"),
        ] {
            let why = contender.find(["/nowhere".into()].into_iter()).expect_err("not there").to_string();
            assert!(why.contains(&format!("--by {}", name_of(&contender))) && why.contains(package), "{why}");
        }
    }

    #[test]
    fn ticks_are_those_of_a_group() {
        let stat = "7 (a) b) S 1 7 5 0 -1 4194560 100 0 0 0 41 17 0 0 20 0 2 0 100 1 1";
        let group = |number| Pid::from_raw(number).expect("not 0");
        assert_eq!(ticks_of(stat, group(7)), Some(58));
        assert_eq!(ticks_of(stat, group(5)), None);
        assert_eq!(ticks_of("", group(7)), None);
    }
}
