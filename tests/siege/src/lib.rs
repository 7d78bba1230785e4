//! Clients that a router must live with: slow ones, silent ones, far too many; and servers that are killed under it.
//!
//! # Map
//!
//! The router, its servers and its attackers are processes of their own, all of this binary ([`Role`]), so that one's memory is
//! not the other's and attackers can be told to be nice. [`field`] puts them up; [`honest`] are clients that measure and check;
//! [`attack`] are the others; [`command`] are the measurements.
#![forbid(unsafe_code)]

pub mod attack;
pub mod command;
pub mod field;
pub mod honest;
mod server;

use std::{io::Read, net::SocketAddr};

use router::{Config, Limits, Options, Surroundings};

/// What a process of this binary can be told to be.
#[derive(Debug)]
pub enum Role {
    /// A router with this configuration.
    Router(String),
    /// Servers at these addresses, the first for HTTP and the second for Redis.
    Server(SocketAddr, SocketAddr),
    /// So many attackers of this kind against an address.
    Attacker(attack::Kind, SocketAddr, usize),
}

impl Role {
    /// Reads a role from a command line.
    pub fn parse(args: &[String]) -> Option<Self> {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Some(match args[..] {
            ["be-router", config] => Self::Router(config.into()),
            ["be-server", http, redis] => Self::Server(http.parse().ok()?, redis.parse().ok()?),
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
                let config =
                    Config::parse(&text, "siege.toml".as_ref(), Surroundings::default()).expect("our own");
                let mut limits = Limits::default();
                limits.clients = 100_000;
                let router =
                    router::start(&config, Options::new().workers(1).limits(limits)).expect("it starts");
                let said: Vec<String> = router.serving().iter().map(|one| one.listen.to_string()).collect();
                println!("{}", said.join(" "));
                until_input_ends();
            }
            Self::Server(http, redis) => {
                let said = server::start(http, redis);
                println!("{} {}", said[0], said[1]);
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
