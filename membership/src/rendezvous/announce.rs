//! What nodes call to each other on a local network: who is there? Here am I.
//!
//! A node in no view asks, and by asking says where it is. Whoever hears that answers, to everybody and not to the asker:
//! so one answer serves all who ask, nobody can have answers sent to a third party, and a node that hears enough others
//! answer keeps silent. A node in a view also speaks up now and then, so that clusters of one name find each other.
//!
//! What is heard is an address to be probed, nothing more: nothing here is authenticated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use membership_types::{Instant, NodeId, Rng};
use serde::{Deserialize, Serialize};

use crate::rendezvous::is_reachable;

/// The largest datagram, in bytes: a cluster's name has at most 64, and an address far fewer than the rest.
pub(crate) const MAX_DATAGRAM: usize = 512;
const VERSION: u8 = 1;
const MAX_CLUSTER: usize = 64;
/// A node asks at once, and then after pauses that double from the first to the second.
const ASKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// An answer comes at a random moment within this, so that others' answers may make it needless.
const WINDOW: Duration = Duration::from_millis(60);
/// A node answers no more often than this.
const ANSWERS: Duration = Duration::from_millis(100);
/// So many answers of others are enough.
const ENOUGH: u32 = 4;
/// How often a node in a view speaks up.
const REMINDERS: Duration = Duration::from_secs(10);
/// Who was not heard for this long is forgotten.
const KEPT: Duration = Duration::from_secs(40);
/// Silence after this is an answer: nobody is there. Three questions have been asked by then.
const PATIENCE: Duration = Duration::from_millis(600);
/// How many addresses are kept, and how many that one host says. Beyond, a host's oldest one makes room; else it is too late.
const MAX_HEARD: usize = 512;
const MAX_PER_HOST: usize = 64;

/// A datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) cluster: String,
    pub(crate) id: NodeId,
    pub(crate) addr: SocketAddr,
    /// It wants answers.
    pub(crate) asks: bool,
}

/// How it is written: JSON, so that people can read what goes over their network.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    phalanx: u8,
    cluster: &'a str,
    id: &'a str,
    addr: SocketAddr,
    asks: bool,
}

impl Notice {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self { cluster, id, addr, asks } = self;
        let written = Written { phalanx: VERSION, cluster, id: &id.to_string(), addr: *addr, asks: *asks };
        serde_json::to_vec(&written).expect("strings and an address")
    }

    /// `None` for whatever is not exactly such a datagram.
    pub(crate) fn decode(datagram: &[u8]) -> Option<Self> {
        if datagram.len() > MAX_DATAGRAM {
            return None;
        }
        let written: Written<'_> = serde_json::from_slice(datagram).ok()?;
        let Written { phalanx: VERSION, cluster, id, addr, asks } = written else { return None };
        let fine = cluster.len() <= MAX_CLUSTER && is_reachable(addr);
        fine.then_some(Self { cluster: cluster.to_owned(), id: id.parse().ok()?, addr, asks })
    }
}

struct Heard {
    at: Instant,
    /// Who sent it.
    host: IpAddr,
}

/// When a node speaks, and whom it has heard.
pub(crate) struct Announcer {
    me: Notice,
    rng: Rng,
    seeking: bool,
    heard: BTreeMap<SocketAddr, Heard>,
    /// When to ask, or to speak up, next; and the pause after that.
    next: Instant,
    pause: Duration,
    /// When to answer somebody.
    answer: Option<Instant>,
    answered_at: Option<Instant>,
    /// Answers of others since somebody asked, or since we spoke up.
    others: u32,
    /// Since when we have been asking.
    asked_at: Option<Instant>,
}

impl Announcer {
    pub(crate) fn new(cluster: &str, id: NodeId, addr: SocketAddr, now: Instant, rng: Rng) -> Self {
        Self {
            me: Notice { cluster: cluster.to_owned(), id, addr, asks: true },
            rng,
            seeking: true,
            heard: BTreeMap::new(),
            next: now,
            pause: ASKS.0,
            answer: None,
            answered_at: None,
            others: 0,
            asked_at: None,
        }
    }

    /// The node is this incarnation, and is in a view or not.
    pub(crate) fn set_standing(&mut self, now: Instant, id: NodeId, seeking: bool) {
        if seeking && (!self.seeking || id != self.me.id) {
            (self.next, self.pause) = (now, ASKS.0);
        }
        (self.me.id, self.seeking) = (id, seeking);
    }

    /// A datagram came from this host.
    pub(crate) fn hear(&mut self, now: Instant, host: IpAddr, datagram: &[u8]) {
        let Some(notice) = Notice::decode(datagram) else { return };
        if notice.cluster != self.me.cluster || notice.id == self.me.id || notice.addr == self.me.addr {
            return;
        }
        self.remember(now, host, notice.addr);
        if !notice.asks {
            self.others = self.others.saturating_add(1);
            if self.others >= ENOUGH {
                self.answer = None;
            }
        } else if self.answer.is_none() {
            self.others = 0;
            let at = now.after(Duration::from_nanos(self.rng.below(WINDOW.as_nanos() as u64)));
            let earliest = self.answered_at.map_or(Instant::ZERO, |at| at.after(ANSWERS));
            self.answer = Some(at.max(earliest));
        }
    }

    fn remember(&mut self, now: Instant, host: IpAddr, addr: SocketAddr) {
        self.heard.retain(|_, heard| now - heard.at <= KEPT);
        if !self.heard.contains_key(&addr) {
            let same = || self.heard.iter().filter(|(_, heard)| heard.host == host);
            if same().count() >= MAX_PER_HOST {
                let oldest = same().min_by_key(|(_, heard)| heard.at).map(|(addr, _)| *addr);
                oldest.and_then(|addr| self.heard.remove(&addr));
            }
            if self.heard.len() >= MAX_HEARD {
                return;
            }
        }
        self.heard.insert(addr, Heard { at: now, host });
    }

    /// When there is something to say or to forget.
    pub(crate) fn due(&self, now: Instant) -> Instant {
        let patience = self.asked_at.map(|at| at.after(PATIENCE)).filter(|at| *at > now);
        let oldest = self.heard.values().map(|heard| heard.at.after(KEPT)).min();
        [Some(self.next), self.answer, patience, oldest].into_iter().flatten().min().unwrap_or(self.next)
    }

    /// What is to be sent now.
    pub(crate) fn speak(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.heard.retain(|_, heard| now - heard.at < KEPT);
        if now >= self.next {
            let asks = self.seeking;
            if asks {
                self.next = now.after(self.jittered(self.pause));
                self.pause = (self.pause * 2).min(ASKS.1);
            } else {
                self.next = now.after(self.jittered(REMINDERS));
                let enough = self.others >= ENOUGH;
                self.others = 0;
                if enough {
                    return None;
                }
            }
            return Some(self.say(now, asks));
        }
        if self.answer.is_some_and(|at| now >= at) {
            return Some(self.say(now, false));
        }
        None
    }

    /// Whatever we say tells everybody where we are.
    fn say(&mut self, now: Instant, asks: bool) -> Vec<u8> {
        self.answer = None;
        self.answered_at = Some(now);
        Notice { asks, ..self.me.clone() }.encode()
    }

    /// A question has gone out: from the first one on we wait for answers.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.asked_at.get_or_insert(now);
    }

    /// Has everybody who is there had the time to answer?
    pub(crate) fn complete(&self, now: Instant) -> bool {
        self.asked_at.is_some_and(|at| now >= at.after(PATIENCE))
    }

    /// Whom we have heard.
    pub(crate) fn found(&self) -> BTreeSet<SocketAddr> {
        self.heard.keys().copied().collect()
    }

    /// Three quarters to five quarters of it.
    fn jittered(&mut self, pause: Duration) -> Duration {
        let quarter = pause.as_nanos() as u64 / 4;
        Duration::from_nanos(self.rng.between(3 * quarter, 5 * quarter))
    }
}

#[cfg(test)]
mod tests {
    use membership_types::Rng;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 7000))
    }

    fn announcer(n: u16) -> Announcer {
        let rng = Rng::seeded(n.into());
        Announcer::new("c", NodeId::new(1, n.into()), addr(n), Instant::ZERO, rng)
    }

    fn notice(n: u16, asks: bool) -> Notice {
        Notice { cluster: "c".into(), id: NodeId::new(1, n.into()), addr: addr(n), asks }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// Lets it speak from one time to another; what it says, with the times.
    fn run(announcer: &mut Announcer, from: u64, to: u64) -> Vec<(u64, Notice)> {
        let speak = |ms| {
            let said = announcer.speak(at(ms))?;
            announcer.sent(at(ms));
            Some((ms, Notice::decode(&said).expect("well made")))
        };
        (from..to).filter_map(speak).collect()
    }

    #[test]
    fn a_seeker_asks_at_once_then_more_and_more_seldom() {
        let mut seeker = announcer(1);
        let said = run(&mut seeker, 0, 20_000);
        assert!(said.iter().all(|(_, notice)| *notice == self::notice(1, true)));
        assert_eq!(said[0].0, 0);
        let in_time = said.iter().filter(|(ms, _)| *ms < PATIENCE.as_millis() as u64).count();
        assert!(in_time >= 3, "lost datagrams prove nothing: {said:?}");
        assert!((17..=32).contains(&said.len()), "{}", said.len());
        // A member hardly ever speaks, and a new incarnation asks at once.
        seeker.set_standing(at(20_000), NodeId::new(1, 1), false);
        let said = run(&mut seeker, 20_000, 80_000);
        assert!((4..=9).contains(&said.len()) && said.iter().all(|(_, n)| !n.asks), "{said:?}");
        seeker.set_standing(at(80_000), NodeId::new(1, 77), true);
        let said = run(&mut seeker, 80_000, 80_001);
        assert_eq!((said[0].1.id, said[0].1.asks), (NodeId::new(1, 77), true));
    }

    #[test]
    fn silence_is_an_answer_only_once_a_question_went_out_and_had_time() {
        let mut seeker = announcer(1);
        assert!(!seeker.complete(at(100_000)), "nothing was sent");
        seeker.sent(at(100));
        assert!(!seeker.complete(at(100).after(PATIENCE - MS)));
        assert!(seeker.complete(at(100).after(PATIENCE)));
    }

    #[test]
    fn a_flood_of_questions_gets_few_answers_and_none_after_enough_others() {
        let mut member = announcer(1);
        member.set_standing(at(0), NodeId::new(1, 1), false);
        run(&mut member, 0, 1);
        let mut said = Vec::new();
        for ms in 1..1000 {
            member.hear(at(ms), HOST, &notice(2, true).encode());
            said.extend(run(&mut member, ms, ms + 1));
        }
        assert!((4..=10).contains(&said.len()), "{said:?}");
        assert!(said.iter().all(|(_, n)| !n.asks));
        run(&mut member, 1000, 2000);
        member.hear(at(2000), HOST, &notice(2, true).encode());
        for other in 3..7 {
            member.hear(at(2000), HOST, &notice(other, false).encode());
        }
        assert!(run(&mut member, 2000, 3000).is_empty(), "others have answered");
        assert_eq!(member.found().len(), 5);
    }

    #[test]
    fn other_clusters_and_our_own_voice_are_ignored_and_silence_is_forgotten() {
        let mut me = announcer(1);
        me.hear(at(0), HOST, &notice(1, true).encode());
        me.hear(at(0), HOST, &Notice { id: NodeId::new(9, 9), ..notice(1, true) }.encode());
        me.hear(at(0), HOST, &Notice { cluster: "d".into(), ..notice(2, true) }.encode());
        assert!(me.found().is_empty() && me.answer.is_none());
        me.hear(at(0), HOST, &notice(2, false).encode());
        assert_eq!(me.found(), BTreeSet::from([addr(2)]));
        me.speak(at(KEPT.as_millis() as u64));
        assert!(me.found().is_empty());
    }

    #[test]
    fn one_loud_host_does_not_fill_the_memory() {
        let mut me = announcer(1);
        me.hear(at(0), IpAddr::from([10, 0, 0, 8]), &notice(2, false).encode());
        for n in 10..2000 {
            me.hear(at(n.into()), HOST, &notice(n, false).encode());
        }
        assert_eq!(me.found().len(), MAX_PER_HOST + 1);
        assert!(me.found().contains(&addr(2)) && me.found().contains(&addr(1999)));
        for n in 2000..4000 {
            let host = IpAddr::from([10, 1, (n >> 8) as u8, n as u8]);
            me.hear(at(3000), host, &notice(n, false).encode());
        }
        assert_eq!(me.found().len(), MAX_HEARD);
        assert!(me.found().contains(&addr(2)), "who was there first stays");
    }

    #[test]
    fn the_longest_notice_fits_into_a_datagram() {
        let cluster = "c".repeat(MAX_CLUSTER);
        let addr = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().expect("an address");
        let id = NodeId::new(u32::MAX, NodeId::INC_BOUND - 1);
        let encoded = Notice { cluster, id, addr, asks: false }.encode();
        assert!(encoded.len() <= MAX_DATAGRAM / 2, "{}", encoded.len());
        let nowhere = String::from_utf8(notice(1, true).encode()).expect("JSON");
        for wrong in ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1", "10.0.0.1:0", "[ff02::1]:1", "x:1"] {
            let datagram = nowhere.replace("10.0.0.1:7000", wrong);
            assert_eq!(Notice::decode(datagram.as_bytes()), None, "{wrong}");
        }
        assert_eq!(Notice::decode(nowhere.replace("\"phalanx\":1", "\"phalanx\":2").as_bytes()), None);
    }

    fn any_notice() -> impl Strategy<Value = Notice> {
        let parts =
            ("[A-Za-z0-9._-]{1,64}", any::<u32>(), any::<u64>(), 1..u32::from(u16::MAX), any::<bool>());
        parts.prop_map(|(cluster, node, inc, n, asks)| Notice {
            cluster,
            id: NodeId::new(node, inc),
            addr: SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], n as u16)),
            asks,
        })
    }

    proptest! {
        #[test]
        fn notices_survive_the_wire(notice in any_notice()) {
            prop_assert_eq!(Notice::decode(&notice.encode()), Some(notice));
        }

        #[test]
        fn damaged_notices_and_noise_never_panic(
            notice in any_notice(),
            noise in proptest::collection::vec(any::<u8>(), 0..600),
            cut in any::<usize>(),
            flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..8),
        ) {
            let mut me = announcer(1);
            me.hear(at(0), HOST, &noise);
            let mut bytes = notice.encode();
            bytes.truncate(cut % (bytes.len() + 1));
            for (place, byte) in flips {
                let len = bytes.len().max(1);
                if let Some(target) = bytes.get_mut(place % len) {
                    *target = byte;
                }
            }
            me.hear(at(0), HOST, &bytes);
            prop_assert!(me.found().len() <= 2);
            // What is understood is what can be said.
            if let Some(read) = Notice::decode(&bytes) {
                prop_assert_eq!(Notice::decode(&read.encode()), Some(read));
            }
        }
    }
}
