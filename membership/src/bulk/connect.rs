//! Connections: how they are made, read and written. What comes in goes to the [`Hub`](super::Hub).

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use bytes::BytesMut;
use membership_types::NodeId;
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{Notify, Semaphore, SemaphorePermit},
    task::{spawn_local, yield_now},
    time::{sleep, timeout},
};

use super::{Shared, links::Nonsense, whom::Wanted};
use crate::{
    handshake::{self, Met},
    session::Corrupt,
    transport,
};

/// How much is read from a connection before others, and the answers, get their turn.
const READ: usize = 256 << 10;
/// So many bytes at most wait in the kernel before it takes more: what is more urgent waits behind them.
const UNSENT: u32 = 256 << 10;
/// Pauses between attempts to connect double from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// So many are connected to at once, whatever else goes on, and the first of groups of many.
pub(super) const FEW: usize = 64;
/// Where there are more, so many of all at a time, while the lease is fresh.
const IN_TURN: usize = 4;
/// How often those who wait look at the lease.
const LOOK: Duration = Duration::from_millis(20);

/// Those that wait to be connected to, where there are many. When a hundred processes of one host meet, each makes a hundred
/// connections, and then the coordinator, which has only as much of the processors as each of them, is late with everybody's lease.
/// So who has less than half of its lease left has others go first.
pub(super) struct Crowd(Semaphore);

impl Crowd {
    pub(super) fn new() -> Self {
        Self(Semaphore::new(IN_TURN))
    }

    /// Waits for its turn, and for a fresh lease; for no longer than two, since there may be none without connections, and those
    /// before may be trying to reach hosts that are gone. Then all go.
    async fn turn(&self, hub: &Shared) -> Option<SemaphorePermit<'_>> {
        let term = hub.borrow().term;
        let turn = async {
            let turn = self.0.acquire().await.ok();
            while !hub.borrow().has_fresh_lease() {
                sleep(LOOK).await;
            }
            turn
        };
        timeout(term * 2, turn).await.ok().flatten()
    }
}

/// Tries to reach a node until there is a connection, or nobody wants one any more; the first time in its turn, if it is one of a
/// crowd.
pub(super) async fn dial(hub: Shared, wanted: Wanted, addr: SocketAddr, crowd: Option<Rc<Crowd>>) {
    let peer = wanted.peer;
    let (me, patience, wallet) = {
        let hub = hub.borrow();
        (Rc::clone(&hub.me), transport::patience(hub.term), hub.wallet.clone())
    };
    let mut pause = PAUSES.0;
    if !wanted.after.is_zero() {
        sleep(wanted.after).await;
    }
    let mut turn = match &crowd {
        Some(crowd) => crowd.turn(&hub).await,
        None => None,
    };
    while hub.borrow().is_wanted(&me, peer) && !hub.borrow().links.has(peer) {
        let attempt = async {
            let mut stream = TcpStream::connect(addr).await?;
            transport::prepare(&stream, patience)?;
            let met = handshake::initiate(&mut stream, &me, &wallet.get()).await?;
            Ok::<_, handshake::Refusal>((stream, met))
        };
        let outcome = timeout(patience, attempt).await;
        // Of two connections that are made at the same time both ends keep the one that the smaller id made.
        let is_too_late = peer < me.node && hub.borrow().links.has(peer);
        if is_too_late || !hub.borrow().is_wanted(&me, peer) {
            break;
        }
        match outcome {
            Ok(Ok((stream, met))) if met.hello.node == peer => {
                hub.borrow_mut().whom.gave_up(peer);
                link(&hub, stream, met, true);
                hub.borrow_mut().turn();
                return;
            }
            Ok(Ok((_, met))) => {
                tracing::debug!(%peer, found = %met.hello.node, %addr, "another incarnation answers for bulk")
            }
            Ok(Err(refusal)) => {
                refusal.count(&hub.borrow().counts);
                tracing::debug!(%peer, %addr, %refusal, "no connection for bulk");
            }
            Err(_) => tracing::debug!(%peer, %addr, "no answer to an attempt to connect for bulk"),
        }
        drop(turn.take());
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
    let mut hub = hub.borrow_mut();
    if hub.me.node == me.node {
        hub.whom.gave_up(peer);
    }
}

/// A connection begins, which this node made (`by_us`) or its peer: what is needed again is said again.
pub(super) fn link(hub: &Shared, stream: TcpStream, met: Met, by_us: bool) {
    let Met { hello, session, rest } = met;
    let peer = hello.node;
    if let Err(error) = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT) {
        tracing::debug!(%peer, %error, "the kernel queues what it likes");
    }
    let stream = Rc::new(stream);
    let mut this = hub.borrow_mut();
    if !by_us && this.me.node < peer && this.links.was_just_made(peer) {
        return; // It made this one while we made ours, which it keeps.
    }
    let link = this.links.insert(peer, Rc::clone(&stream), session, by_us);
    let epoch = link.epoch;
    spawn_local(read(Rc::clone(hub), peer, epoch, Rc::clone(&stream), Rc::clone(&link.ended), rest));
    spawn_local(write(Rc::clone(hub), peer, epoch, stream));
    this.on_linked(peer, hello.speaks);
}

async fn read(
    hub: Shared,
    peer: NodeId,
    epoch: u64,
    stream: Rc<TcpStream>,
    ended: Rc<Notify>,
    mut buffer: BytesMut,
) {
    let reading = async {
        loop {
            let patience = hub.borrow_mut().on_bytes(peer, epoch, &mut buffer)?;
            match patience {
                None => stream.readable().await?,
                // When nothing comes in time, the next turn says so.
                Some(patience) => timeout(patience, stream.readable()).await.unwrap_or(Ok(()))?,
            }
            let (mut taken, mut over) = (0, None);
            while taken < READ && over.is_none() {
                if buffer.capacity() - buffer.len() < 16 << 10 {
                    buffer.reserve(64 << 10);
                }
                match stream.try_read_buf(&mut buffer) {
                    Ok(0) => over = Some(Ok(())),
                    Ok(read) => taken += read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => over = Some(Err(Broken::Io(error))),
                }
            }
            if let Some(over) = over {
                // What was said last counts, too.
                hub.borrow_mut().on_bytes(peer, epoch, &mut buffer)?;
                return over;
            }
            if taken >= READ {
                hub.borrow_mut().on_bytes(peer, epoch, &mut buffer)?;
                yield_now().await;
            }
        }
    };
    let outcome: Result<(), Broken> = tokio::select! {
        outcome = reading => outcome,
        () = ended.notified() => return,
    };
    let mut hub = hub.borrow_mut();
    match outcome {
        Ok(()) => {}
        Err(Broken::Over) => tracing::debug!(%peer, "a connection for bulk is over before it was read"),
        Err(Broken::Io(error)) => tracing::debug!(%peer, %error, "a connection for bulk broke"),
        Err(Broken::Corrupt(corrupt)) => {
            tracing::warn!(%peer, "a connection for bulk is closed: {corrupt}");
        }
        Err(Broken::Nonsense(nonsense)) => {
            hub.counts.garbage.inc();
            tracing::warn!(%peer, "a connection for bulk is closed: {nonsense}");
        }
    }
    hub.unlink(peer, epoch);
}

async fn write(hub: Shared, peer: NodeId, epoch: u64, stream: Rc<TcpStream>) {
    let Some(wake) = hub.borrow_mut().links.wake_of(peer, epoch) else { return };
    loop {
        wake.notified().await;
        loop {
            if hub.borrow_mut().links.get(peer, epoch).is_none() || stream.writable().await.is_err() {
                return; // The reading task tells.
            }
            let outcome = hub.borrow_mut().links.write(peer, epoch);
            match outcome {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(%peer, %error, "a connection for bulk broke");
                    hub.borrow_mut().unlink(peer, epoch);
                    return;
                }
            }
        }
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("another connection has taken its place, or nobody needs it")]
    Over,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    #[error(transparent)]
    Nonsense(#[from] Nonsense),
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, net::Ipv4Addr, sync::Arc};

    use membership_proto::Kind;
    use membership_sync::NodeLease;
    use membership_types::{GroupName, Lineage, Token, ViewId};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::LocalSet,
    };

    use super::{super::Hub, *};
    use crate::{
        bulk::Bulk,
        event::{Member, View},
        handshake::{Hello, Versions},
        metrics::Counts,
        secret::{Source, Wallet},
        session::Session,
    };

    const PATIENCE: Duration = Duration::from_secs(10);

    fn hub() -> Shared {
        let wallet = Wallet::open(Source::None).expect("nothing to be read");
        let lease = NodeLease::new().expect("a page");
        let hub =
            Hub::new(Bulk::default(), Hello::sample(2), wallet, lease, PATIENCE, None, Counts::default());
        Rc::new(RefCell::new(hub))
    }

    fn met(node: u32) -> Met {
        Met { hello: Hello::sample(node), session: Session::Open, rest: BytesMut::new() }
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("listens");
        (listener.accept().await.expect("connected").0, far)
    }

    #[tokio::test]
    async fn a_connection_that_is_replaced_before_it_was_read_is_closed_and_not_read_for_ever() {
        let body = async {
            let hub = hub();
            let ((first, mut old), (second, mut new)) = (pair().await, pair().await);
            link(&hub, first, met(1), false);
            link(&hub, second, met(1), false);
            // It may be closed before all of it is written.
            let _cut = old.write_all(&[0; 4096]).await;
            let closed = timeout(PATIENCE, old.read(&mut [0])).await.expect("the first one ends");
            assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
            assert!(
                timeout(Duration::from_millis(50), new.read(&mut [0])).await.is_err(),
                "the second stays"
            );
        };
        LocalSet::new().run_until(body).await;
    }

    #[tokio::test]
    async fn of_two_connections_that_are_made_at_the_same_time_both_ends_keep_that_of_the_smaller_id() {
        let body = async {
            let hub = hub();
            for (peer, kept) in [(3, 0), (1, 1)] {
                let ((near, mut far), (other, mut made_by_peer)) = (pair().await, pair().await);
                link(&hub, near, met(peer), true);
                link(&hub, other, met(peer), false);
                let ends = [&mut far, &mut made_by_peer];
                for (number, end) in ends.into_iter().enumerate() {
                    let over = timeout(Duration::from_millis(50), end.read(&mut [0])).await.is_ok();
                    assert_eq!(over, number != kept, "connection {number} with {peer}");
                }
            }
        };
        LocalSet::new().run_until(body).await;
    }

    #[tokio::test]
    async fn of_an_older_build_groups_are_told() {
        let body = async {
            let hub = hub();
            let mut old = met(3);
            old.hello.speaks = Versions { min: 2, max: 5 };
            link(&hub, pair().await.0, old, false);
            link(&hub, pair().await.0, met(4), false);
            assert_eq!(hub.borrow().plain, [NodeId::new(3, 1)].into());
        };
        LocalSet::new().run_until(body).await;
    }

    #[tokio::test]
    async fn what_was_said_last_on_a_connection_is_heard() {
        let body = async {
            let hub = hub();
            let (near, mut far) = pair().await;
            link(&hub, near, met(3), false);
            // Of a kind that newer builds know; and the end, before anything is read.
            far.write_all(&[5, 0, 0, 0, 255, 0, 0, 0, 0]).await.expect("room");
            far.shutdown().await.expect("open");
            let gone = async {
                while hub.borrow().links.has(NodeId::new(3, 1)) {
                    yield_now().await;
                }
            };
            timeout(PATIENCE, gone).await.expect("it ends");
            assert_eq!(hub.borrow().counts.unknown.get(), 1);
        };
        LocalSet::new().run_until(body).await;
    }

    #[tokio::test]
    async fn connections_are_counted_however_they_end() {
        let body = async {
            let hub = hub();
            let count = || hub.borrow().counts.bulk_links.get();
            let (mut far, mut open) = (Vec::new(), Vec::new());
            for peer in [3, 4, 4] {
                let (near, other) = pair().await;
                far.push(other);
                link(&hub, near, met(peer), true);
                open.push(count());
            }
            assert_eq!(open, [1, 2, 2], "one takes the place of another");
            hub.borrow_mut().lose(NodeId::new(3, 1));
            assert_eq!(count(), 1);
            // No group needs it.
            hub.borrow_mut().tidy();
            assert_eq!(count(), 0);
            link(&hub, pair().await.0, met(3), false);
            hub.borrow_mut().begin(Hello::sample(2), NodeLease::new().expect("a page"));
            assert_eq!(count(), 0, "those of another incarnation");
        };
        LocalSet::new().run_until(body).await;
    }

    #[test]
    fn peers_without_a_connection_are_looked_for_only_when_something_changed() {
        let hub = hub();
        let (group, peer) = (GroupName::new("g").expect("a name"), NodeId::new(3, 1));
        let mut hub = hub.borrow_mut();
        let member = |node| Member { node, name: "n".into(), endpoint: None };
        let view = View {
            group: group.clone(),
            lineage: Lineage::new(1, 1),
            id: ViewId::new(1),
            prev: ViewId::NONE,
            token: Token::new(ViewId::new(1)),
            members: vec![member(NodeId::new(2, 1)), member(peer)],
        };
        let key = hub.room(&group);
        hub.on_view(key, Arc::new(view), Kind::Multicast, false);
        assert_eq!(hub.missing(), [], "nobody knows its address");
        let addr = Hello::sample(3).addr;
        let found = [(Wanted { peer, first: false, after: Duration::ZERO }, addr)];
        hub.set_addresses([(peer, addr)].into());
        assert_eq!(hub.missing(), found);
        assert_eq!(hub.missing(), [], "somebody tries to connect with it");
        hub.whom.gave_up(peer);
        assert_eq!(hub.missing(), found);
        hub.whom.gave_up(peer);
        hub.whom.look_again = false;
        assert_eq!(hub.missing(), [], "nothing changed");
        hub.lose(peer);
        assert_eq!(hub.missing(), found);
    }
}
