//! Nodes that call each other on a local network: on loopback, and between network namespaces.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use membership::{Bootstrap, Node, NodeBuilder, Rendezvous, StartError};
use ports::free_port;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::harness::{PATIENCE, installed, leave, one_view, quiet, skipped, together, within};

const ALONE: Bootstrap = Bootstrap::AloneAfter(Duration::from_millis(300));

fn on_loopback(name: &str, rendezvous: &str) -> NodeBuilder {
    quiet(name).rendezvous(rendezvous.parse().expect("valid")).bootstrap(ALONE)
}

#[tokio::test]
async fn nodes_of_one_host_that_start_at_once_call_each_other() {
    for url in [
        format!("multicast:239.255.70.1:{}", free_port()),
        format!("broadcast:{}", free_port()),
        format!("broadcast:{}?interface=127.0.0.1", free_port()),
    ] {
        let nodes = together(4, |n| on_loopback(&format!("n{n}"), &url)).await;
        one_view(&nodes).await;
        let late = on_loopback("late", &url).bootstrap(Bootstrap::Join).start().await.expect("starts");
        within("joined", late.joined()).await.expect("a member answers");
        leave(nodes.into_iter().chain([late])).await;
    }
}

#[tokio::test]
async fn clusters_of_other_names_share_a_port_and_noise_disturbs_nobody() {
    let port = free_port();
    let url = format!("multicast:239.255.70.2:{port}");
    let noise = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket2::SockRef::from(&noise).set_multicast_if_v4(&Ipv4Addr::LOCALHOST).expect("loopback");
    let (stop, stopped) = mpsc::channel::<()>();
    let noisy = thread::spawn(move || {
        let everything: Vec<Vec<u8>> = vec![
            vec![],
            vec![0xff; 1400],
            b"{\"phalanx\":1,\"cluster\":\"red\",\"id\":\"1.1\",\"addr\":\"127.0.0.1:1\",\"asks\":true}"
                .to_vec(),
            b"{\"phalanx\":1".to_vec(),
        ];
        while stopped.recv_timeout(Duration::from_millis(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
            for datagram in &everything {
                // A full buffer loses it, as a network would.
                let _lost = noise.send_to(datagram, (Ipv4Addr::new(239, 255, 70, 2), port));
            }
        }
    });
    let red = together(2, |n| on_loopback(&format!("r{n}"), &url).cluster("red")).await;
    let blue = together(3, |n| on_loopback(&format!("b{n}"), &url).cluster("blue")).await;
    one_view(&red).await;
    one_view(&blue).await;
    drop(stop);
    noisy.join().expect("it only sends");
    leave(red.into_iter().chain(blue)).await;
}

#[tokio::test]
async fn loopback_addresses_are_not_announced_to_other_machines() {
    let url = "multicast:239.255.70.3:7000?interface=10.1.2.3";
    let error = on_loopback("a", url).start().await.expect_err("refused");
    assert!(error.is_configuration() && matches!(error, StartError::Setting { flag: "rendezvous", .. }));
    assert!(error.to_string().contains("--listen"), "{error}");
}

#[tokio::test]
async fn nobody_founds_while_its_calls_cannot_go_out() {
    // TEST-NET-1: no interface of ours has it.
    let url = format!("broadcast:{}?interface=192.0.2.1", free_port());
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let elsewhere = SocketAddr::from(([192, 0, 2, 9], 0));
    let builder = on_loopback("a", &url).listen(listen).advertise(elsewhere);
    let node = builder.start().await.expect("starts");
    node.wait_joined(Duration::from_secs(2)).await.expect_err("somebody may be there");
    leave([node]).await;
}

/// Network namespaces with a cable between them; gone when this is dropped.
struct Networks {
    names: [String; 2],
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("ip can be run");
    assert!(status.success(), "ip {args}");
}

impl Networks {
    const ADDRS: [[u8; 4]; 2] = [[10, 70, 0, 1], [10, 70, 0, 2]];

    /// `None` where that is not possible.
    fn new(what: &str) -> Option<Self> {
        installed("ip")?;
        let test = format!("phx-{}-{what}", std::process::id());
        let names = [format!("{test}-a"), format!("{test}-b")];
        if !rustix::process::geteuid().is_root() {
            skipped("network namespaces need root");
            return None;
        }
        let made = Command::new("ip").args(["netns", "add", &names[0]]).output().expect("ip can be run");
        if !made.status.success() {
            skipped(&format!("no network namespaces here: {}", String::from_utf8_lossy(&made.stderr).trim()));
            return None;
        }
        let networks = Self { names };
        let [a, b] = &networks.names;
        ip(&format!("netns add {b}"));
        ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"));
        for (name, addr) in networks.names.iter().zip(Self::ADDRS) {
            ip(&format!("-n {name} addr add {}/24 brd + dev eth0", Ipv4Addr::from(addr)));
            ip(&format!("-n {name} link set eth0 up"));
            ip(&format!("-n {name} link set lo up"));
        }
        Some(networks)
    }

    /// Starts a node inside one of them: its threads stay there.
    fn start(&self, place: usize, builder: NodeBuilder) -> Node {
        let name = self.names[place].clone();
        let inside = thread::spawn(move || {
            let space = File::open(format!("/run/netns/{name}")).expect("a namespace");
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).expect("allowed");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(builder.start()).expect("starts")
        });
        inside.join().expect("no panic")
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in &self.names {
            // It may not have been made.
            let _absent = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

async fn across(what: &str, url: &str) {
    let Some(networks) = Networks::new(what) else { return };
    let node = |name: &str, place: usize| {
        let listen = SocketAddr::from((Networks::ADDRS[place], 0));
        let rendezvous: Rendezvous = url.parse().expect("valid");
        let builder = quiet(name).insecure(true).listen(listen).rendezvous(rendezvous);
        networks.start(place, builder.bootstrap(Bootstrap::AloneAfter(Duration::from_secs(1))))
    };
    // Two share the port of one host.
    let mut nodes = vec![node("a", 0), node("b", 1), node("c", 0)];
    one_view(&nodes).await;
    let late = node("late", 1);
    within("joined", late.wait_joined(PATIENCE)).await.expect("joins");
    nodes.push(late);
    leave(nodes).await;
}

#[tokio::test]
async fn nodes_of_several_hosts_find_each_other_by_multicast() {
    across("m", "multicast:239.255.70.4:7070").await;
}

#[tokio::test]
async fn nodes_of_several_hosts_find_each_other_by_broadcast() {
    across("b", "broadcast:7070").await;
}
