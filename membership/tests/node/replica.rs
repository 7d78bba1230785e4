//! Members that keep a common state.

use bytes::Bytes;
use membership::{
    Delivered, Membership, Node, NodeId, NotMember, ProposeError, Replica, ReplicatedState, SendError,
};

use crate::harness::{Place, metric, within};

/// All commands so far, and so many bytes of ballast.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ballast: usize,
}

impl ReplicatedState for Log {
    type Answer = usize;

    fn apply(&mut self, _from: NodeId, command: &[u8]) -> usize {
        self.lines.push(String::from_utf8_lossy(command).into_owned());
        self.lines.len()
    }

    fn snapshot(&self) -> Bytes {
        let mut bytes = self.lines.join("\n").into_bytes();
        bytes.push(0);
        bytes.resize(bytes.len() + self.ballast, b'x');
        bytes.into()
    }

    fn restore(&mut self, snapshot: &[Bytes]) -> Result<(), String> {
        let bytes = snapshot.concat();
        let (text, rest) = bytes.split_at(bytes.iter().position(|b| *b == 0).ok_or("no end")?);
        let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
        self.lines = text.split('\n').filter(|line| !line.is_empty()).map(str::to_owned).collect();
        self.ballast = rest.len() - 1;
        Ok(())
    }
}

async fn replica(node: &Node, log: Log) -> Replica<Log> {
    Replica::join(node, "log", None, log).await.expect("runs")
}

async fn lines(replica: &Replica<Log>) -> Vec<String> {
    within("it catches up", replica.until_caught_up()).await.expect("a member");
    replica.read(|log| log.lines.clone())
}

async fn leads(membership: &Membership) {
    within("it leads", membership.until_leader()).await.expect("a member");
}

#[tokio::test]
async fn a_joiner_has_all_that_was_acknowledged_before_it_came_while_others_go_on() {
    let place = Place::new();
    let first = place.node("n0").await;
    let one = replica(&first, Log { lines: Vec::new(), ballast: 40 << 20 }).await;
    leads(one.membership()).await;
    for n in 0..50 {
        assert_eq!(one.propose(format!("before {n}")).await, Ok(n + 1));
    }
    let going_on = {
        let one = one.clone();
        tokio::spawn(async move {
            for n in 0..200 {
                one.propose(format!("meanwhile {n}")).await.expect("applied");
            }
        })
    };
    let mut nodes = vec![first];
    let mut replicas = vec![one];
    for n in 1..3 {
        let node = place.node(&format!("n{n}")).await;
        let joined = replica(&node, Log::default()).await;
        let seen = lines(&joined).await;
        assert!(seen.len() >= 50 && seen[49] == "before 49", "{n}: {} lines", seen.len());
        assert_eq!(metric(&node, "phalanx_states_received"), 1);
        nodes.push(node);
        replicas.push(joined);
    }
    within("the others go on", going_on).await.expect("no panic");
    within("an answer", replicas[2].propose("last")).await.expect("applied");
    let expected = lines(&replicas[0]).await;
    assert_eq!(expected.len(), 251);
    for replica in &replicas {
        // What was acknowledged to anybody is seen by everybody.
        assert_eq!(lines(replica).await, expected);
        assert_eq!(replica.read(|log| log.ballast), 40 << 20);
    }
    // Whoever came later leads in its turn, with the same state.
    drop(replicas.remove(0));
    within("leaving", nodes.remove(0).leave()).await;
    leads(replicas[0].membership()).await;
    assert_eq!(replicas[0].propose("after").await, Ok(252));
    assert_eq!(lines(&replicas[1]).await.last().map(String::as_str), Some("after"));
    drop(replicas);
    place.judge(nodes).await;
}

#[tokio::test]
async fn who_has_left_has_nothing_to_propose_and_comes_back_with_the_state_of_the_others() {
    let place = Place::new();
    let (a, b) = (place.node("n0").await, place.node("n1").await);
    let one = replica(&a, Log::default()).await;
    leads(one.membership()).await;
    let two = replica(&b, Log::default()).await;
    within("an answer", two.propose("both")).await.expect("applied");
    within("leaving", two.membership().leave()).await;
    assert_eq!(two.propose("alone").await, Err(ProposeError::NotSent(SendError::NotMember)));
    assert!(!two.caught_up().await);
    assert_eq!(within("an answer", two.until_caught_up()).await, Err(NotMember::Left));
    within("an answer", one.propose("without")).await.expect("applied");
    let two = replica(&b, Log::default()).await;
    assert_eq!(lines(&two).await, ["both", "without"]);
    drop((one, two));
    place.judge([a, b]).await;
}

#[tokio::test]
async fn whoever_takes_nothing_for_too_long_steps_out_and_the_others_go_on() {
    let place = Place::new();
    let mut members = Vec::new();
    for n in 0..3 {
        let node = place.node(&format!("n{n}")).await;
        members.push((node.join_multicast("g", None).await.expect("runs"), node));
    }
    let ((stuck, unread), last) = members.pop().expect("three");
    let mut sizes = Vec::new();
    let mut takers = Vec::new();
    let mut groups = Vec::new();
    for ((group, mut deliveries), node) in members {
        let (told, views) = tokio::sync::mpsc::unbounded_channel();
        takers.push(tokio::spawn(async move {
            while let Some(delivered) = deliveries.next().await {
                if let Delivered::View { view, .. } = delivered {
                    let _gone = told.send(view.members.len());
                }
            }
        }));
        sizes.push(views);
        groups.push((group, node));
    }
    let (group, _) = &groups[0];
    let until = async |views: &mut tokio::sync::mpsc::UnboundedReceiver<usize>, n: usize| {
        within("a view", async { while views.recv().await != Some(n) {} }).await;
    };
    until(&mut sizes[0], 3).await;
    let sender = group.clone();
    let load = tokio::spawn(async move {
        while sender.multicast(membership::Class::Ordered, vec![1; 100_000]).await.is_ok() {}
    });
    until(&mut sizes[0], 2).await;
    // It goes on with those who take part; and the one that stepped out comes back.
    until(&mut sizes[0], 3).await;
    load.abort();
    drop((unread, stuck));
    place.judge(groups.into_iter().map(|(_, node)| node).chain([last])).await;
}
