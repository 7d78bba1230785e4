//! Real servers of Redis, where there are any.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Router, eventually, nobody, redis};

/// A real redis-server on a free port, with its files in a directory of its own. Killed at the end of the
/// test.
pub struct RealServer {
    child: Child,
    pub addr: SocketAddr,
    dir: std::path::PathBuf,
}

impl RealServer {
    /// `None` where there is no redis-server: then the test is skipped, or fails where servers are required.
    pub fn start() -> Option<Self> {
        Self::start_with(nobody(), &[])
    }

    /// With these options besides.
    pub fn start_with(addr: SocketAddr, options: &[&str]) -> Option<Self> {
        let dir = std::env::temp_dir().join(format!("router-redis-{}-{}", std::process::id(), addr.port()));
        std::fs::create_dir_all(&dir).unwrap();
        let spawned = command(addr, &dir, options).spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("PHALANX_REQUIRE_SERVERS").is_none(), "redis-server: {error}");
                println!("SKIPPED: redis-server cannot be started: {error}");
                return None;
            }
        };
        eventually("redis-server listens", || std::net::TcpStream::connect(addr).is_ok());
        Some(Self { child, addr, dir })
    }
}

fn command(addr: SocketAddr, dir: &std::path::Path, options: &[&str]) -> Command {
    let mut command = Command::new("redis-server");
    let port = addr.port().to_string();
    command
        .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(options)
        .arg("--dir")
        .arg(dir)
        .stdout(Stdio::null());
    command
}

impl RealServer {
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it anew where it was, with its files.
    pub fn come_back(&mut self, options: &[&str]) {
        self.child = command(self.addr, &self.dir, options).spawn().unwrap();
        eventually("redis-server listens", || std::net::TcpStream::connect(self.addr).is_ok());
    }

    /// Stops it where it stands: sockets stay open, and the kernel goes on taking bytes for it.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Three real servers, each a RACS, and the router before them.
pub fn cluster() -> Option<(Vec<RealServer>, Router)> {
    let servers: Vec<RealServer> = (0..3).map(|_| RealServer::start()).collect::<Option<_>>()?;
    let racs: Vec<[SocketAddr; 1]> = servers.iter().map(|server| [server.addr]).collect();
    let racs: Vec<&[SocketAddr]> = racs.iter().map(|racs| &racs[..]).collect();
    let router = Router::start(&redis(&racs));
    Some((servers, router))
}

pub fn array(elements: &[&str]) -> String {
    elements.iter().fold(format!("*{}\r\n", elements.len()), |text, element| text + &bulk(element))
}

pub fn bulk(text: &str) -> String {
    if text == "nil" { "$-1\r\n".into() } else { format!("${}\r\n{text}\r\n", text.len()) }
}
