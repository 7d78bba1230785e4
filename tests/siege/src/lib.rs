//! Clients that a router must live with: slow ones, silent ones, far too many; and servers that are killed under it.
//!
//! # Map
//!
//! The router, its servers and its attackers are processes of their own, all of this binary ([`Role`]), so that one's memory is
//! not the other's and attackers can be told to be nice. [`field`] puts them up; [`honest`] are clients that measure and check;
//! [`journal`] is what servers have carried out, and what is wrong with it; [`attack`] are the others; [`command`] are the measurements, [`soak`] the long one; [`variant`] are the configurations that the
//! router goes over to meanwhile.
#![forbid(unsafe_code)]

pub mod attack;
pub mod command;
pub mod field;
pub mod honest;
pub mod journal;
mod message;
pub mod server;
pub mod soak;
pub mod variant;

use std::{
    io::{BufRead, Read},
    net::SocketAddr,
    path::PathBuf,
};

use router::{Config, Limits, Options, RouterHandle, Surroundings};

/// What a process of this binary can be told to be.
#[derive(Debug)]
pub enum Role {
    /// A router with this configuration.
    Router(String),
    /// Servers at these addresses, for HTTP, Redis, memcached and frames, and the file of their journal.
    Server([SocketAddr; 4], PathBuf),
    /// So many attackers of this kind against an address.
    Attacker(attack::Kind, SocketAddr, usize),
}

impl Role {
    /// Reads a role from a command line.
    pub fn parse(args: &[String]) -> Option<Self> {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Some(match args[..] {
            ["be-router", config] => Self::Router(config.into()),
            ["be-server", http, redis, memcached, frames, journal] => {
                let [http, redis, memcached, frames] = [http, redis, memcached, frames].map(str::parse);
                Self::Server([http.ok()?, redis.ok()?, memcached.ok()?, frames.ok()?], journal.into())
            }
            ["be-attacker", kind, addr, count] => {
                Self::Attacker(attack::Kind::of(kind)?, addr.parse().ok()?, count.parse().ok()?)
            }
            _ => return None,
        })
    }

    /// Plays it until standard input ends, as it does when whoever started this process ends.
    pub fn play(self) {
        more_files();
        match self {
            Self::Router(text) => {
                let config = parse(&text).expect("our own");
                let mut limits = Limits::default();
                limits.clients = 100_000;
                let router =
                    router::start(&config, Options::new().workers(1).limits(limits)).expect("it starts");
                let said: Vec<String> = router.serving().iter().map(|one| one.listen.to_string()).collect();
                println!("{}", said.join(" "));
                for order in std::io::stdin().lock().lines().map_while(Result::ok) {
                    println!("{}", obey(&router, &order));
                }
            }
            Self::Server(at, journal) => {
                println!("{}", server::start_with(at, Some(journal)).map(|addr| addr.to_string()).join(" "));
                until_input_ends();
            }
            Self::Attacker(kind, addr, count) => {
                // It shall cost the router, not the honest clients beside it.
                let _ = rustix::process::nice(19);
                std::thread::spawn(move || attack::run(kind, addr, count));
                println!();
                until_input_ends();
            }
        }
    }
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, "siege.toml".as_ref(), Surroundings::default()).map_err(|error| error.to_string())
}

/// What a router says to an order.
fn obey(router: &RouterHandle, order: &str) -> String {
    if let Some(text) = order.strip_prefix("reload ") {
        let reload = |config: Config| router.reload(&config).map_err(|error| error.to_string());
        return match parse(&text.replace(field::LINE_END, "\n")).and_then(reload) {
            Ok(_) => "ok".into(),
            Err(why) => why,
        };
    }
    let measured = block_on(router.measured());
    let clients: u64 = measured.services.iter().map(|service| service.clients).sum();
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    format!("{clients} {} {files}", measured.tasks)
}

fn until_input_ends() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// As many open files as this process may have.
pub fn more_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Runs something on a runtime of one thread.
pub fn block_on<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    runtime.expect("a runtime").block_on(what)
}
