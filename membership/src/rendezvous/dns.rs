//! The provider `dns:NAME[:PORT]`: with a port, the A and AAAA records of the name; without, its SRV records.
//!
//! Names are completed as the system's resolv.conf says. An empty answer, or one that there is no such name, is an answer:
//! nobody is there yet. A server that fails, refuses or is silent has not answered.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use domain::{
    base::{
        Name, Rtype, ToName,
        iana::{Class, Rcode},
    },
    rdata::{A, Aaaa, Srv},
    resolv::stub::{
        Answer, StubResolver,
        conf::{ResolvConf, ServerConf, Transport},
    },
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

use crate::rendezvous::finder::Report;

/// How long one server may take to answer one question, and how long all questions of a round may take.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(6));
/// A node that is in no view asks after pauses that double from the first to the second; another one after the third.
const PAUSES: (Duration, Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(2), Duration::from_secs(10));
/// How many names are tried in place of one that resolv.conf completes.
const MAX_NAMES: usize = 8;
/// How many hosts of SRV records are looked up, and how many addresses of one name are taken.
const MAX_HOSTS: usize = 64;
const MAX_ADDRESSES: usize = 1024;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsName {
    /// The name. With a dot at its end it is taken as it is, else completed as resolv.conf says.
    pub name: String,
    /// The port of all nodes. Without it SRV records are asked for, which have one each.
    pub port: Option<u16>,
    /// The server to ask instead of those of resolv.conf.
    pub server: Option<SocketAddr>,
}

type Host = Name<Vec<u8>>;

/// Is it a name that can be asked for?
pub(crate) fn is_name(text: &str) -> bool {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let is_address = text.parse::<IpAddr>().is_ok();
    plain && !is_address && !text.is_empty() && text != "." && text.parse::<Host>().is_ok()
}

pub(crate) async fn run(target: DnsName, mut report: Report) {
    let mut pause = PAUSES.0;
    loop {
        match timeout(PATIENCE.1, ask(&target)).await {
            Ok(Ok(found)) => report.found(found),
            Ok(Err(error)) => report.failed(&error),
            Err(_) => report.failed(&format_args!("no answer of DNS in {:?}", PATIENCE.1)),
        }
        if report.seeking() {
            report.pause(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        } else {
            pause = PAUSES.0;
            report.pause(PAUSES.2).await;
        }
    }
}

/// All addresses that are known under the name.
async fn ask(target: &DnsName) -> io::Result<BTreeSet<SocketAddr>> {
    let conf = configuration(target.server).await?;
    let names = names(&target.name, &conf);
    let resolver = Arc::new(StubResolver::from_conf(conf));
    let mut failure = None;
    for name in names {
        let found = match target.port {
            Some(port) => {
                let hosts = hosts(&resolver, &name).await;
                hosts.map(|found| found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
            }
            None => services(&resolver, &name).await,
        };
        match found {
            Ok(found) if found.is_empty() => {}
            Ok(found) => return Ok(found),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(BTreeSet::new()), Err)
}

/// Read anew for every round: it may have changed. Off the control thread, because it is a file.
async fn configuration(server: Option<SocketAddr>) -> io::Result<ResolvConf> {
    let mut conf = spawn_blocking(ResolvConf::default).await.map_err(io::Error::other)?;
    if let Some(server) = server {
        conf.servers = vec![ServerConf::new(server, Transport::UdpTcp)];
    }
    conf.options.timeout = PATIENCE.0;
    Ok(conf)
}

/// The names to try, in order.
fn names(name: &str, conf: &ResolvConf) -> Vec<Host> {
    let options = &conf.options;
    let whole = name.trim_end_matches('.');
    let mut names = Vec::new();
    if !name.ends_with('.') {
        names.extend(
            options.search.as_slice().iter().filter(|s| !s.is_root()).map(|s| format!("{whole}.{s}")),
        );
    }
    let dots = whole.bytes().filter(|b| *b == b'.').count();
    names.insert(if dots >= options.ndots { 0 } else { names.len() }, whole.to_owned());
    // One that is too long when completed is no name.
    names.iter().filter_map(|name| name.parse().ok()).take(MAX_NAMES).collect()
}

/// The addresses of a host.
async fn hosts(resolver: &StubResolver, name: &Host) -> io::Result<BTreeSet<IpAddr>> {
    let (v4, v6) = tokio::join!(question(resolver, name, Rtype::A), question(resolver, name, Rtype::AAAA));
    let mut found = BTreeSet::new();
    for answer in [&v4, &v6].into_iter().flatten() {
        let records = answer.answer().map_err(io::Error::other)?;
        let v4 = records.limit_to_in::<A>().take(MAX_ADDRESSES).flatten();
        let v6 = records.limit_to_in::<Aaaa>().take(MAX_ADDRESSES).flatten();
        found.extend(v4.map(|record| IpAddr::V4(record.data().addr())));
        found.extend(v6.map(|record| IpAddr::V6(record.data().addr())));
    }
    // Some servers know nothing of AAAA: what there is counts.
    if found.is_empty() { v4.and(v6).map(|_| found) } else { Ok(found) }
}

/// The addresses and ports of a service.
async fn services(resolver: &Arc<StubResolver>, name: &Host) -> io::Result<BTreeSet<SocketAddr>> {
    let answer = question(resolver, name, Rtype::SRV).await?;
    let mut services: BTreeSet<(Host, u16)> = BTreeSet::new();
    for record in answer.answer().map_err(io::Error::other)?.limit_to_in::<Srv<_>>().take(MAX_HOSTS) {
        let Ok(record) = record else { continue };
        let (target, port) = (record.data().target(), record.data().port());
        // The root says that the service is not offered there.
        if !target.is_root() && port > 0 {
            services.insert((target.to_name(), port));
        }
    }
    let mut lookups = JoinSet::new();
    for (host, port) in services {
        let resolver = Arc::clone(resolver);
        lookups.spawn(async move {
            let found = hosts(&resolver, &host).await?;
            Ok::<_, io::Error>(found.into_iter().map(move |ip| SocketAddr::new(ip, port)))
        });
    }
    let (mut found, mut failure) = (BTreeSet::new(), None);
    while let Some(host) = lookups.join_next().await {
        match host.map_err(io::Error::other).flatten() {
            Ok(addresses) => found.extend(addresses),
            Err(error) => failure = Some(error),
        }
    }
    // What is missing will be there the next time.
    failure.filter(|_| found.is_empty()).map_or(Ok(found), Err)
}

/// Asks for one kind of records. No such name is an answer without records.
async fn question(resolver: &StubResolver, name: &Host, kind: Rtype) -> io::Result<Answer> {
    let answer = resolver.query((name, kind, Class::IN)).await?;
    match answer.header().rcode() {
        Rcode::NOERROR | Rcode::NXDOMAIN => Ok(answer),
        code => Err(io::Error::other(format!("the DNS server answered {code} for {name}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, UdpSocket},
    };

    /// The answer to a question: its own header and question, and an address for A where one is given.
    fn answer(question: &[u8], truncated: bool, ip: Option<[u8; 4]>) -> Vec<u8> {
        let end = 12 + question[12..].iter().position(|b| *b == 0).expect("a name") + 5;
        let ip = ip.filter(|_| question[end - 4..end - 2] == [0, 1]);
        let flags = if truncated { 0x8780_u16 } else { 0x8580 };
        let counts = [0, 1, 0, u8::from(ip.is_some()), 0, 0, 0, 0];
        let mut out = [&question[..2], &flags.to_be_bytes(), &counts, &question[12..end]].concat();
        if let Some(ip) = ip {
            out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            out.extend_from_slice(&ip);
        }
        out
    }

    fn target(server: SocketAddr) -> DnsName {
        DnsName { name: "nodes.test.".into(), port: Some(7), server: Some(server) }
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_for_a_datagram_is_asked_for_again_by_tcp() {
        let addr = ports::nobody();
        let tcp = TcpListener::bind(addr).await.expect("a port");
        let udp = UdpSocket::bind(addr).await.expect("the same port");
        let by_udp = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = udp.recv_from(&mut buffer).await {
                let part = answer(&buffer[..len], true, Some([127, 0, 0, 1]));
                udp.send_to(&part, from).await.expect("sent");
            }
        });
        let by_tcp = tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                tokio::spawn(async move {
                    while let Ok(len) = stream.read_u16().await {
                        let mut question = vec![0; len.into()];
                        stream.read_exact(&mut question).await.expect("whole");
                        let whole = answer(&question, false, Some([127, 0, 0, 9]));
                        stream.write_u16(whole.len() as u16).await.expect("written");
                        stream.write_all(&whole).await.expect("written");
                    }
                });
            }
        });
        let found = ask(&target(addr)).await.expect("answered");
        assert_eq!(found, BTreeSet::from([SocketAddr::from(([127, 0, 0, 9], 7))]));
        by_udp.abort();
        by_tcp.abort();
    }

    #[tokio::test]
    async fn a_round_leaves_no_task_behind() {
        // A resolver has tasks of its own, and there is a fresh one in every round.
        let nobody = ports::nobody();
        for _ in 0..5 {
            ask(&target(nobody)).await.expect_err("nobody answers");
        }
        let tasks = tokio::runtime::Handle::current().metrics();
        let gone = async {
            while tasks.num_alive_tasks() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), gone).await.expect("resolvers end with their round");
    }

    #[test]
    fn names_are_completed_as_resolv_conf_says() {
        let mut conf = ResolvConf::new();
        conf.parse(&mut &b"search a.example b.example\noptions ndots:2\n"[..]).expect("valid");
        conf.finalize();
        let tried = |name: &str| names(name, &conf).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(tried("x"), ["x.a.example", "x.b.example", "x"]);
        assert_eq!(tried("x.y.z"), ["x.y.z", "x.y.z.a.example", "x.y.z.b.example"]);
        assert_eq!(tried("x.y."), ["x.y"]);
    }
}
