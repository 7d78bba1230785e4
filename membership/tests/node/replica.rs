//! Members that keep a common state.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use membership::{
    Copied, Delivered, Membership, Node, NodeId, NotMember, ProposeError, Replica, ReplicaBuilder,
    ReplicatedState, SendError, Standing, What,
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

/// A state of which a copy takes longer than a joiner waits for who says nothing.
struct Slow(Log);

impl ReplicatedState for Slow {
    type Answer = usize;

    fn apply(&mut self, from: NodeId, command: &[u8]) -> usize {
        self.0.apply(from, command)
    }

    fn snapshot(&self) -> Bytes {
        std::thread::sleep(Duration::from_secs(12));
        self.0.snapshot()
    }

    fn restore(&mut self, snapshot: &[Bytes]) -> Result<(), String> {
        self.0.restore(snapshot)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_which_a_copy_takes_long_is_copied_once_and_arrives() {
    let place = Place::new();
    let (first, second) = (place.node("n0").await, place.node("n1").await);
    let one = Replica::join(&first, "log", None, Slow(Log::default())).await.expect("runs");
    leads(one.membership()).await;
    assert_eq!(one.propose("before").await, Ok(1));
    let two = Replica::join(&second, "log", None, Slow(Log::default())).await.expect("runs");
    within("it has the state", two.until_caught_up()).await.expect("a member");
    assert_eq!(two.read(|slow| slow.0.lines.clone()), ["before"]);
    assert_eq!(metric(&first, "phalanx_states_asked"), 1, "one copy for all that it was asked");
    place.judge([first, second]).await;
}

/// Of this one a copy is made at once, and a snapshot of that takes long.
#[derive(Default)]
struct Copies(Log);

/// How long that takes: far longer than a busy disk keeps a command waiting.
const COPYING: Duration = Duration::from_secs(8);

/// How many snapshots of copies are made now.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

impl ReplicatedState for Copies {
    type Answer = usize;

    fn apply(&mut self, from: NodeId, command: &[u8]) -> usize {
        self.0.ballast += command.len();
        self.0.apply(from, &command[..8])
    }

    fn snapshot(&self) -> Bytes {
        self.0.snapshot()
    }

    fn copy(&self) -> Copied {
        let copy = Log { lines: self.0.lines.clone(), ballast: self.0.ballast };
        Box::new(move || {
            AT_WORK.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(COPYING);
            AT_WORK.fetch_sub(1, Ordering::SeqCst);
            copy.snapshot()
        })
    }

    fn restore(&mut self, snapshot: &[Bytes]) -> Result<(), String> {
        self.0.restore(snapshot)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_on_disk_goes_on_while_a_snapshot_is_made() {
    let place = Place::new();
    let data = place.dir().join("data-n0");
    let first = place.node("n0").await;
    let join = async |node: &Node| {
        ReplicaBuilder::new(node, "log").data_dir(&data).join(Copies::default()).await.expect("runs")
    };
    let one = join(&first).await;
    leads(one.membership()).await;
    let command = |n: usize| [format!("{n:8}").into_bytes(), vec![b'x'; 1 << 20]].concat();
    let (mut count, mut longest, mut meanwhile) = (0, Duration::ZERO, 0);
    let began = Instant::now();
    // One snapshot, for which so much was written, is made; and nothing waits for it.
    while count < 18 || AT_WORK.load(Ordering::SeqCst) == 0 || meanwhile < 20 {
        assert!(began.elapsed() < Duration::from_secs(60), "{meanwhile} commands while a snapshot was made");
        let at = Instant::now();
        count += 1;
        // The first one waits until the directory holds a state at all.
        let busy = count > 1 && AT_WORK.load(Ordering::SeqCst) > 0;
        let size = if count < 20 { 1 << 20 } else { 100 };
        assert_eq!(within("an answer", one.propose(&command(count)[..size])).await, Ok(count));
        if busy {
            meanwhile += 1;
            longest = longest.max(at.elapsed());
        }
    }
    assert!(longest < COPYING / 2, "{longest:?}");
    // And when it is there all is there, before and after it.
    while AT_WORK.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..3 {
        count += 1;
        assert_eq!(within("an answer", one.propose(&command(count)[..100])).await, Ok(count));
    }
    within("leaving", one.membership().leave()).await;
    drop(one);
    let again = loop {
        let builder = ReplicaBuilder::new(&first, "log").data_dir(&data);
        match builder.join(Copies::default()).await {
            Ok(replica) => break replica,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(90), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    within("it has the state", again.until_caught_up()).await.expect("a member");
    let lines: Vec<String> = (1..=count).map(|n| format!("{n:8}")).collect();
    assert_eq!(again.read(|copies| copies.0.lines.clone()), lines);
    drop(again);
    place.judge([first]).await;
}

#[tokio::test]
async fn a_request_for_state_that_is_dropped_is_asked_again() {
    let place = Place::new();
    let (first, second) = (place.node("n0").await, place.node("n1").await);
    let (one, mut told) = first.join_with_state("g", None).await.expect("runs");
    leads(&one).await;
    let (two, mut takes) = second.join_with_state("g", None).await.expect("runs");
    let mut asked = 0;
    let giving = async {
        loop {
            if let Some(Delivered::StateRequest(request)) = told.next().await {
                asked += 1;
                if asked == 2 {
                    request.send("in two ").await.expect("a member");
                    return request.finish("pieces").await.expect("a member");
                }
            }
        }
    };
    within("it is asked twice", giving).await;
    let received = async {
        loop {
            if let Some(Delivered::StateReceived(pieces)) = takes.next().await {
                return pieces.concat();
            }
        }
    };
    assert_eq!(within("the state", received).await, b"in two pieces");
    drop((one, two));
    place.judge([first, second]).await;
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

async fn kept(place: &Place, name: &str) -> (Node, Replica<Log>) {
    let node = place.node(name).await;
    let builder =
        ReplicaBuilder::new(&node, "log").directories(3).data_dir(place.dir().join(format!("data-{name}")));
    let replica = builder.join(Log::default()).await.expect("a directory of its own");
    (node, replica)
}

async fn standing(node: &Node, matches: impl Fn(&Standing) -> bool) -> Standing {
    let mut told = node.all_events();
    let found = async {
        loop {
            if let What::State { standing } = told.next().await.expect("it runs").what
                && matches(&standing)
            {
                return standing;
            }
        }
    };
    within("a standing", found).await
}

#[tokio::test]
async fn with_directories_two_of_three_go_on_where_all_ended_and_the_third_one_catches_up() {
    let place = Place::new();
    let mut members = Vec::new();
    for n in 0..3 {
        members.push(kept(&place, &format!("n{n}")).await);
    }
    for (n, (node, replica)) in members.iter().enumerate() {
        // What is acknowledged from here on is on disk at two of these three.
        standing(node, |standing| matches!(standing, Standing::Kept { here: 3, of: 3, .. })).await;
        assert_eq!(within("an answer", replica.propose(format!("line {n}"))).await, Ok(n + 1));
    }
    // The last line is missing in the first directory: a majority is enough.
    let (first, replica) = members.remove(0);
    drop(replica);
    within("leaving", first.leave()).await;
    assert_eq!(within("an answer", members[0].1.propose("without n0")).await, Ok(4));
    for (node, replica) in members.drain(..) {
        drop(replica);
        within("leaving", node.leave()).await;
    }
    let (old, behind) = kept(&place, "n0").await;
    let why = standing(&old, |standing| matches!(standing, Standing::Waiting { .. })).await;
    assert!(format!("{why:?}").contains("2 of the 3 directories"), "{why:?}");
    assert!(!behind.caught_up().await, "it does not know what the others have");
    let (new, ahead) = kept(&place, "n2").await;
    let expected = ["line 0", "line 1", "line 2", "without n0"];
    assert_eq!(lines(&behind).await, expected);
    assert_eq!(lines(&ahead).await, expected);
    assert_eq!(within("an answer", behind.propose("again")).await, Ok(5));
    assert!(matches!(ahead.standing(), Standing::Kept { of: 3, enough: true, .. }), "{:?}", ahead.standing());
    drop((behind, ahead));
    place.judge([old, new]).await;
}

#[tokio::test]
async fn members_with_and_without_a_directory_do_not_mix() {
    let place = Place::new();
    let a = place.node("n0").await;
    let one = replica(&a, Log::default()).await;
    leads(one.membership()).await;
    within("an answer", one.propose("in memory")).await.expect("applied");
    let (b, two) = kept(&place, "n1").await;
    let refused = within("an answer", two.propose("on disk")).await;
    assert_eq!(refused, Err(ProposeError::NotSent(SendError::NotMember)));
    assert!(matches!(two.standing(), Standing::Refused { .. }), "{:?}", two.standing());
    assert_eq!(within("an answer", one.propose("goes on")).await, Ok(2));
    assert_eq!(one.standing(), Standing::Memory);
    drop((one, two));
    place.judge([a, b]).await;
}

#[tokio::test]
async fn a_long_log_gives_way_to_a_snapshot_and_all_is_there_again() {
    let place = Place::new();
    let data = place.dir().join("data");
    let begin = async || {
        let node = place.node("n0").await;
        let replica = ReplicaBuilder::new(&node, "log").data_dir(&data).join(Log::default()).await;
        (node, replica.expect("a directory of its own"))
    };
    let (node, one) = begin().await;
    let line = "x".repeat(1 << 20);
    for n in 0..40 {
        assert_eq!(within("an answer", one.propose(format!("{n} {line}"))).await, Ok(n + 1));
    }
    let length = |name: &str| std::fs::metadata(data.join(name)).expect("a file").len();
    // Nobody waits for a snapshot, which is written beside the log.
    within("a snapshot", async {
        while length("state") <= 16 << 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(length("log") < 40 << 20, "{}", length("log"));
    drop(one);
    within("leaving", node.leave()).await;
    let (node, one) = begin().await;
    let all = lines(&one).await;
    assert_eq!((all.len(), &all[39][..4]), (40, "39 x"));
    assert_eq!(within("an answer", one.propose("more")).await, Ok(41));
    drop(one);
    place.judge([node]).await;
}
