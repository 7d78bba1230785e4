//! Somebody without the keys against nodes that run: everything that went over the wire is recorded, and said again to all of
//! them, changed or not, while they go on with their work.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use membership::{Class, Delivered, Membership, Node, Secret};
use membership_types::Rng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    task::JoinSet,
    time::{sleep, timeout},
};

/// How many connections the stranger has at a time.
const AT_ONCE: u64 = 64;
/// And how many more on which it says nothing, so that it takes the places of others.
const SILENT: usize = 300;
/// How much of a connection is recorded, in each direction.
const RECORDED: usize = 32 * 1024;
/// Where the head of a handshake says whether what follows is sealed.
const MANNER: usize = 8;
/// How many records are added to each direction of a connection: one more would close it.
const ADDED: u64 = 2;
/// How much must have come by in a direction before that: handshakes, which end with what is added, are over by then.
const GREETED: u64 = 4;
/// Long, so that a slow machine does not look like a dead one.
const LEASE: Duration = Duration::from_secs(5);

/// What became of a stranger's attempts against nodes that run.
#[derive(Debug)]
pub struct Outcome {
    /// Connections that were made, each with something recorded, changed or not.
    pub tried: u64,
    /// How many records were added to connections of nodes before that.
    pub added: u64,
    /// How many messages the group said meanwhile, and delivered everywhere exactly once.
    pub honest: u64,
    /// How long the slowest percent of them took at least until they were delivered, with the stranger and before.
    pub slow: (Duration, Duration),
    /// By how much the memory of this process grew, with all nodes and the stranger in it.
    pub grown: u64,
    /// The most descriptors of the nodes at a time, beyond those of before.
    pub descriptors: usize,
    /// How far each counter of the first node went that moved.
    pub moved: BTreeMap<String, u64>,
}

/// Bytes in one direction, as they came.
type Recorded = Arc<Mutex<Vec<u8>>>;

/// Stands before a node, writes down what comes by, and adds to it when told to.
#[derive(Clone, Default)]
struct Tap {
    to: Arc<Mutex<Option<SocketAddr>>>,
    connections: Arc<Mutex<Vec<(Recorded, Recorded)>>>,
    adds: Arc<AtomicBool>,
    added: Arc<AtomicU64>,
    /// How many connections have ended.
    ended: Arc<AtomicU64>,
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tap {
    async fn new() -> std::io::Result<(Self, SocketAddr)> {
        let tap = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let serves = tap.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serves.clone().pass(stream));
            }
        });
        Ok((tap, addr))
    }

    /// Passes one direction on, whole records at a time.
    async fn copy(&self, mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, recorded: Recorded) {
        let (mut buffer, mut waits, mut last, mut adds) = (vec![0; 16 * 1024], Vec::new(), Vec::new(), 0);
        let (mut open, mut passed) = (false, 0);
        while let Ok(size @ 1..) = from.read(&mut buffer).await {
            {
                let mut recorded = held(&recorded);
                let room = RECORDED - recorded.len();
                recorded.extend_from_slice(&buffer[..size.min(room)]);
            }
            waits.extend_from_slice(&buffer[..size]);
            // Without a secret there are no records.
            if waits.len() > MANNER && last.is_empty() && waits[MANNER] == 0 || open {
                open = true;
                if to.write_all(&waits).await.is_err() {
                    return;
                }
                waits.clear();
            }
            while let Some(size) = unit(&waits, last.is_empty()) {
                let record: Vec<u8> = waits.drain(..size).collect();
                let mut sent = Vec::new();
                if passed >= GREETED && adds < ADDED && self.adds.load(Relaxed) {
                    // What came before, and what is to come with a bit of it changed.
                    let mut forged = if adds % 2 == 0 { record.clone() } else { last };
                    if adds % 2 == 0 {
                        forged[2 + adds as usize] ^= 1;
                    }
                    sent = forged;
                    adds += 1;
                    self.added.fetch_add(1, Relaxed);
                }
                sent.extend_from_slice(&record);
                last = record;
                passed += 1;
                if to.write_all(&sent).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn pass(self, from: TcpStream) {
        let to = *held(&self.to);
        let Some(to) = to else { return };
        let Ok(to) = TcpStream::connect(to).await else { return };
        let (forth, back) = (Recorded::default(), Recorded::default());
        held(&self.connections).push((Arc::clone(&forth), Arc::clone(&back)));
        let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
        tokio::join!(self.copy(from_read, to_write, forth), self.copy(to_read, from_write, back));
        self.ended.fetch_add(1, Relaxed);
    }
}

/// The size of what these bytes begin with, if that can be told: the message of a handshake, or a record.
fn unit(bytes: &[u8], first: bool) -> Option<usize> {
    let at = if first { 17 } else { 0 };
    let size = bytes.get(at..at + 2)?;
    let size = at + 2 + usize::from(u16::from_be_bytes([size[0], size[1]]));
    (size <= bytes.len()).then_some(size)
}

/// A node behind a tap, in a group.
struct Member {
    node: Node,
    group: Membership,
    tap: Tap,
    /// What was delivered, how often. From whom does not matter: each message is another one.
    heard: Arc<Mutex<BTreeMap<Vec<u8>, u64>>>,
}

async fn member(
    name: &str,
    cluster: &str,
    secret: Option<Secret>,
    rendezvous: &str,
    tap: &(Tap, SocketAddr),
) -> Member {
    let builder = Node::builder().name(name).cluster(cluster).lease(LEASE);
    let builder = if let Some(secret) = secret { builder.secret(secret) } else { builder };
    let builder = builder.rendezvous(rendezvous.parse().expect("a provider")).advertise(tap.1);
    let node = builder.start().await.expect("it starts");
    *held(&tap.0.to) = Some(node.listen_addr());
    node.wait_joined(Duration::from_secs(60)).await.expect("it joins");
    let (group, mut deliveries) = node.join_multicast("g", None).await.expect("it joins");
    let heard = Arc::new(Mutex::new(BTreeMap::new()));
    let told = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Some(delivered) = deliveries.next().await {
            if let Delivered::Message(message) = delivered {
                *held(&told).entry(message.payload.to_vec()).or_default() += 1;
            }
        }
    });
    Member { node, group, tap: tap.0.clone(), heard }
}

/// What must not change: everything that a node believes, but for how long its lease lasts.
fn believed(members: &[Member]) -> Vec<String> {
    let one = |member: &Member| {
        let status = member.node.status();
        format!(
            "{:?} {} {:?} {:?} {:?} {:?} {:?} {:?}",
            status.id,
            status.phase,
            status.lineage,
            status.view,
            status.core,
            status.coordinator,
            status.blocked,
            status.groups
        )
    };
    members.iter().map(one).collect()
}

/// Counters and gauges by name.
fn counted(node: &Node) -> BTreeMap<String, u64> {
    let text = node.extensions().metrics_text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' ').and_then(|(name, n)| Some((name.into(), n.parse().ok()?))))
        .collect()
}

fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("Linux").count()
}

/// Says so many messages in the group, from all members in turn, and waits until all have delivered them. Gives how long each
/// took to arrive everywhere.
async fn talk(members: &[Member], what: &str, until: impl Fn(u64) -> bool) -> Vec<Duration> {
    let mut took = Vec::new();
    for n in 0.. {
        if until(n) {
            break;
        }
        let (begun, said) = (Instant::now(), format!("{what} {n}").into_bytes());
        let speaker = &members[n as usize % members.len()].group;
        speaker.multicast(Class::Safe, said.clone()).await.expect("the group goes on");
        let everywhere = async {
            while !members.iter().all(|m| held(&m.heard).contains_key(&said)) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(60), everywhere).await.expect("it is delivered everywhere");
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    took
}

fn slowest_percent(took: &[Duration]) -> Duration {
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

/// All that was recorded behind these taps, in both directions.
fn recorded<'a>(taps: impl Iterator<Item = &'a Tap>) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for tap in taps {
        for (forth, back) in held(&tap.connections).iter() {
            all.push(held(forth).clone());
            all.push(held(back).clone());
        }
    }
    all.retain(|bytes| !bytes.is_empty());
    all
}

/// A beginning of a recording, or its changed, cut or reordered self, or one that goes on as another.
fn forged(recordings: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let one = rng.pick(recordings).expect("something was said");
    let mut bytes = one[..one.len().min(rng.between(1, 4096) as usize)].to_vec();
    for _ in 0..rng.below(4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        let end = (at + rng.below(256) as usize).min(bytes.len());
        match rng.below(6) {
            0..3 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            3 => bytes.truncate(at.max(1)),
            4 => {
                let other = rng.pick(recordings).expect("the same");
                let from = rng.below(other.len() as u64) as usize;
                bytes.truncate(at);
                bytes.extend(other[from..].iter().take(2048));
            }
            _ => {
                let part: Vec<u8> = bytes.drain(at..end).collect();
                let to = rng.below(bytes.len() as u64 + 1) as usize;
                bytes.splice(to..to, part);
            }
        }
    }
    bytes
}

/// One attempt: says it, and waits for what is answered, which must be no more than a refusal or a handshake.
async fn attempt(to: SocketAddr, bytes: &[u8]) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect(to).await?;
    // A port that waits for stragglers is of no use for the next attempt.
    stream.set_zero_linger()?;
    let mut answered = 0;
    if stream.write_all(bytes).await.is_ok() {
        let mut buffer = [0; 8192];
        let answer = async {
            while let Ok(size @ 1..) = stream.read(&mut buffer).await {
                answered += size;
            }
        };
        // Most are refused at once; those that are waited for have said too little.
        let _silence = timeout(Duration::from_millis(20), answer).await;
    }
    Ok(answered)
}

/// Lets somebody without the keys make so many attempts against three nodes with a secret.
///
/// # Panics
/// If anything of what the nodes believe changes, if anything that they say is lost or delivered twice, if a lease is lost,
/// or if memory, descriptors or connections grow beyond their limits.
pub async fn against_nodes(tries: u64, seed: u64) -> Outcome {
    let secret = |byte: u8| {
        let digits: String = (0..32_u8).map(|n| format!("{:02x}", n ^ byte)).collect();
        Some(digits.parse::<Secret>().expect("a key"))
    };
    let mut taps = Vec::new();
    for _ in 0..3 {
        taps.push(Tap::new().await.expect("a free port"));
    }
    let all: Vec<String> = taps.iter().map(|(_, addr)| addr.to_string()).collect();
    let rendezvous = format!("static:{}", all.join(","));
    let mut members = Vec::new();
    for (name, tap) in ["a", "b", "c"].iter().zip(&taps) {
        members.push(member(name, "default", secret(0), &rendezvous, tap).await);
    }
    settled(&members).await;
    talk(&members, "earlier", |n| n == 30).await;
    // Others: another cluster of the same key, one of the same name, and one of the same name that has no secret.
    for (cluster, secret) in [("elsewhere", secret(0)), ("default", secret(0x55)), ("default", None)] {
        let tap = Tap::new().await.expect("a free port");
        let rendezvous = format!("static:{}", tap.1);
        let first = member("a", cluster, secret.clone(), &rendezvous, &tap).await;
        let second = Tap::new().await.expect("a free port");
        let second = member("b", cluster, secret, &rendezvous, &second).await;
        let pair = [first, second];
        settled(&pair).await;
        talk(&pair, "others", |n| n == 10).await;
        for member in &pair {
            taps.push((member.tap.clone(), tap.1));
            member.node.leave().await;
        }
    }
    // Another incarnation at the same place.
    members.pop().expect("three").node.leave().await;
    members.push(member("c", "default", secret(0), &rendezvous, &taps[2]).await);
    settled(&members).await;
    let calm = talk(&members, "before", |n| n == 200).await;
    let recordings = Arc::new(recorded(taps.iter().map(|(tap, _)| tap)));
    assert!(recordings.len() > 16, "only {} recordings", recordings.len());

    let believed_before = believed(&members);
    let added = added_to(&members).await;
    let counted_before: Vec<_> = members.iter().map(|m| counted(&m.node)).collect();
    let (resident_before, descriptors_before) = (resident(), descriptors());
    let (made, finished) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let open = Arc::new(AtomicU64::new(0));
    let targets: Vec<SocketAddr> = members.iter().map(|m| m.node.listen_addr()).collect();
    let mut strangers = JoinSet::new();
    for n in 0..AT_ONCE {
        let (recordings, made, open) = (Arc::clone(&recordings), Arc::clone(&made), Arc::clone(&open));
        let (targets, mut rng) = (targets.clone(), Rng::seeded(seed.wrapping_add(n)));
        strangers.spawn(async move {
            let mut most = 0;
            while made.fetch_add(1, Relaxed) < tries {
                let bytes = forged(&recordings, &mut rng);
                let to = *rng.pick(&targets).expect("three");
                open.fetch_add(1, Relaxed);
                most = most.max(attempt(to, &bytes).await.expect("a connection can be made"));
                open.fetch_sub(1, Relaxed);
            }
            most
        });
    }
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(targets[0]).await.expect("a connection can be made"));
    }
    let watch = {
        let (finished, open) = (Arc::clone(&finished), Arc::clone(&open));
        tokio::spawn(async move {
            let mut most = 0;
            while !finished.load(Relaxed) {
                let strangers = open.load(Relaxed) as usize + SILENT;
                most = most.max(descriptors().saturating_sub(descriptors_before + strangers));
                sleep(Duration::from_millis(5)).await;
            }
            most
        })
    };
    let ends = Arc::clone(&finished);
    let attack = tokio::spawn(async move {
        let mut most = 0;
        while let Some(answered) = strangers.join_next().await {
            most = most.max(answered.expect("a stranger does not panic"));
        }
        ends.store(true, Relaxed);
        most
    });
    let hard = talk(&members, "meanwhile", |n| n >= 50 && finished.load(Relaxed)).await;
    let answered = attack.await.expect("it ends");
    let most = watch.await.expect("it ends");
    drop(silent);
    talk(&members, "after", |n| n == 10).await;

    assert_eq!(believed(&members), believed_before, "a stranger changed what nodes believe");
    let honest: BTreeSet<Vec<u8>> = held(&members[0].heard).keys().cloned().collect();
    for member in &members {
        let heard = held(&member.heard);
        for (said, times) in heard.iter() {
            assert_eq!(*times, 1, "{} was delivered again", said.escape_ascii());
        }
        let of_now = |said: &&Vec<u8>| said.starts_with(b"meanwhile") || said.starts_with(b"after");
        assert!(honest.iter().filter(of_now).eq(heard.keys().filter(of_now)), "not all heard the same");
    }
    let mut moved = BTreeMap::new();
    for (member, before) in members.iter().zip(&counted_before) {
        let after = counted(&member.node);
        for same in [
            "phalanx_cluster_views_total",
            "phalanx_group_views_total",
            "phalanx_blocked_total",
            "phalanx_incarnations_total",
            "phalanx_reigns_total",
            "phalanx_cluster_members",
            "phalanx_death_proofs_total",
            "phalanx_messages_dropped_total",
        ] {
            assert_eq!(after.get(same), before.get(same), "{same}");
        }
        for (name, value) in &after {
            let by = value.saturating_sub(before.get(name).copied().unwrap_or(0));
            if by > 0 {
                *moved.entry(name.clone()).or_insert(0) += by;
            }
        }
    }
    assert!(
        moved.contains_key("phalanx_authentications_failed_total")
            && moved.contains_key("phalanx_replays_total")
    );
    // A second message and a refusal, and no more.
    assert!(answered <= 4096, "a stranger was answered {answered} bytes");
    // As many strangers as may wait at each node; the rest is what was just accepted or closed.
    assert!(most <= 3 * 256 + 128, "{most} descriptors of nodes");
    let grown = resident().saturating_sub(resident_before);
    assert!(grown < 128 << 20, "memory grew by {grown} bytes");
    let slow = (slowest_percent(&hard), slowest_percent(&calm));
    assert!(slow.0 < LEASE, "the slowest percent took {:?}", slow.0);
    for member in members {
        member.node.leave().await;
    }
    Outcome { tried: tries, added, honest: hard.len() as u64, slow, grown, descriptors: most, moved }
}

/// Adds records to the connections that there are, while the group goes on: each is counted, no connection ends, and what was
/// sent is delivered. Gives how many.
async fn added_to(members: &[Member]) -> u64 {
    let of_all = |names: &[&str]| -> u64 {
        let counted = members.iter().map(|m| counted(&m.node));
        counted.map(|all| names.iter().map(|name| all.get(*name).copied().unwrap_or(0)).sum::<u64>()).sum()
    };
    let refused = ["phalanx_corrupt_records_total", "phalanx_replays_total"];
    let ended = || members.iter().map(|m| m.tap.ended.load(Relaxed)).sum::<u64>();
    let before = (of_all(&refused), ended());
    for member in members {
        member.tap.adds.store(true, Relaxed);
    }
    talk(members, "added to", |n| n == 60).await;
    for member in members {
        member.tap.adds.store(false, Relaxed);
    }
    let added = || members.iter().map(|m| m.tap.added.load(Relaxed)).sum::<u64>();
    // What is on its way yet; and then whatever would be one too many.
    let arrived = async {
        while of_all(&refused) - before.0 < added() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let _in_time = timeout(Duration::from_secs(30), arrived).await;
    sleep(Duration::from_millis(500)).await;
    let added = added();
    assert!(added >= 8, "only {added} records were added");
    assert_eq!((of_all(&refused) - before.0, ended() - before.1), (added, 0));
    added
}

/// Waits until all are in one view of the group.
async fn settled(members: &[Member]) {
    let together = async {
        loop {
            let views: Vec<_> =
                members.iter().map(|m| m.node.status().groups.values().next().cloned()).collect();
            let full = |g: &membership::GroupStatus| {
                g.view.as_ref().is_some_and(|v| v.members.len() == members.len())
            };
            let ready = members.iter().all(|m| m.node.status().is_ready());
            let same = views.windows(2).all(|w| {
                let id = |g: &Option<membership::GroupStatus>| {
                    g.as_ref().and_then(|g| g.view.as_ref().map(|v| v.id))
                };
                id(&w[0]) == id(&w[1])
            });
            if ready && same && views.iter().all(|g| g.as_ref().is_some_and(full)) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), together).await.expect("all come into one view");
    // What follows from that at the leader, and at its clients.
    sleep(Duration::from_secs(1)).await;
}
