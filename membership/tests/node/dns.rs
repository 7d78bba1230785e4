//! Nodes that find each other in the DNS: a real server on loopback, whose records the tests change.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use membership::{Bootstrap, JoinError, NodeBuilder, Rendezvous};
use ports::{free_port, nobody};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{PATIENCE, Scratch, installed, leave, one_view, quiet, together, within};

/// A DNS server for everything below `test`; stopped when this is dropped.
struct Server {
    child: Child,
    addr: SocketAddr,
    hosts: PathBuf,
    _scratch: Scratch,
}

impl Server {
    /// With these records: lines of a hosts file. `None` where there is no such program.
    async fn start(hosts: &str, more: &[String]) -> Option<Self> {
        let program = installed("dnsmasq")?;
        let scratch = Scratch::new();
        let file = scratch.path().join("hosts");
        fs::write(&file, hosts).expect("written");
        let addr = nobody();
        let child = Command::new(program)
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file=",
                "--no-resolv",
                "--no-hosts",
            ])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local=/test/", "--log-facility=-"])
            .arg(format!("--port={}", addr.port()))
            .arg(format!("--addn-hosts={}", file.display()))
            .args(more)
            .args(if rustix::process::geteuid().is_root() { &["--user=root"][..] } else { &[] })
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq runs");
        let server = Self { child, addr, hosts: file, _scratch: scratch };
        let listens = async {
            while tokio::net::TcpStream::connect(addr).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("the DNS server listens", listens).await;
        Some(server)
    }

    fn change(&self, hosts: &str) {
        fs::write(&self.hosts, hosts).expect("written");
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::HUP).expect("it runs");
    }

    /// A node that asks this server.
    fn builder(&self, name: &str, what: &str, listen: SocketAddr) -> NodeBuilder {
        let url = format!("dns:{what}?server={}", self.addr);
        let alone = Bootstrap::AloneAfter(Duration::from_millis(500));
        quiet(name).rendezvous(url.parse().expect("valid")).bootstrap(alone).listen(listen)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn on_loopback(last: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, last as u8], port))
}

#[tokio::test]
async fn nodes_that_start_at_once_find_each_other_by_the_addresses_of_a_name() {
    let Some(server) =
        Server::start("127.0.0.1 nodes.test\n127.0.0.2 nodes.test\n127.0.0.3 nodes.test\n", &[]).await
    else {
        return;
    };
    let port = free_port();
    let name = format!("nodes.test:{port}");
    let nodes = together(3, |n| server.builder(&format!("n{n}"), &name, on_loopback(n + 1, port))).await;
    one_view(&nodes).await;
    leave(nodes).await;
}

#[tokio::test]
async fn services_have_ports_of_their_own() {
    let addrs = [nobody(), nobody(), nobody()];
    let services: Vec<String> =
        addrs.iter().map(|a| format!("--srv-host=_phalanx._tcp.test,host.test,{}", a.port())).collect();
    let Some(server) = Server::start("127.0.0.1 host.test\n", &services).await else { return };
    let nodes = together(3, |n| server.builder(&format!("n{n}"), "_phalanx._tcp.test", addrs[n])).await;
    one_view(&nodes).await;
    leave(nodes).await;
}

#[tokio::test]
async fn a_name_that_is_not_there_yet_is_asked_for_again() {
    let Some(server) = Server::start("", &[]).await else { return };
    let founder = nobody();
    let name = format!("late.test:{}", founder.port());
    // No such name is an answer: nobody is there, and who may found does.
    let founder = server.builder("a", &name, founder).start().await.expect("starts");
    within("founded", founder.joined()).await.expect("founds");
    let joiner = server.builder("b", &name, on_loopback(2, 0)).bootstrap(Bootstrap::Join);
    let joiner = joiner.start().await.expect("starts");
    assert!(matches!(joiner.wait_joined(Duration::from_secs(1)).await, Err(JoinError::Timeout { .. })));
    server.change("127.0.0.1 late.test\n");
    within("joined", joiner.wait_joined(PATIENCE)).await.expect("joins at last");
    leave([joiner, founder]).await;
}

#[tokio::test]
async fn nobody_founds_before_the_dns_has_answered() {
    // Neither silence nor a refusal says that nobody is there.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().map(|addr| (silent, addr)).expect("bound");
    let refusing = Server::start("", &[]).await;
    let servers = [Some(("nodes.test", silent.1)), refusing.as_ref().map(|s| ("elsewhere.example", s.addr))];
    for (name, server) in servers.into_iter().flatten() {
        let url: Rendezvous = format!("dns:{name}.:7000?server={server}").parse().expect("valid");
        let alone = Bootstrap::AloneAfter(Duration::from_millis(100));
        let node = quiet("a").rendezvous(url).bootstrap(alone).start().await.expect("starts");
        let joined = node.wait_joined(Duration::from_secs(3)).await;
        assert!(matches!(joined, Err(JoinError::Timeout { .. })), "{server}: {joined:?}");
        leave([node]).await;
    }
}
