//! Groups whose members send each other messages.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Wake, Waker},
    time::Duration,
};

use membership::{
    Bootstrap, Class, Delivered, Deliveries, GroupError, Membership, Message, NodeId, NotMember, SendError,
    ViewId, What,
};

use crate::harness::{PATIENCE, Place, event, names, quiet, within};

/// Members of a group, one after the other, each with its first view that has all so far.
async fn room(place: &Place, count: usize) -> Vec<(Membership, Deliveries)> {
    let mut members: Vec<(Membership, Deliveries)> = Vec::new();
    for number in 0..count {
        let node = place.node(&format!("n{number}")).await;
        members.push(node.join_multicast("g", None).await.expect("runs"));
        for (_, deliveries) in &mut members {
            installs(deliveries, number + 1).await;
        }
    }
    members
}

/// Waits for a view of so many members; gives its id.
async fn installs(deliveries: &mut Deliveries, members: usize) -> ViewId {
    let installed = async {
        loop {
            match deliveries.next().await.expect("a member") {
                Delivered::View { view, .. } if view.members.len() == members => return view.id,
                _ => {}
            }
        }
    };
    within("a view is installed", installed).await
}

async fn message(deliveries: &mut Deliveries) -> Message {
    let delivered = async {
        loop {
            if let Delivered::Message(message) = deliveries.next().await.expect("a member") {
                return message;
            }
        }
    };
    within("a message is delivered", delivered).await
}

async fn messages(deliveries: &mut Deliveries, count: usize) -> Vec<Message> {
    let mut all = Vec::new();
    while all.len() < count {
        all.push(message(deliveries).await);
    }
    all
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

/// What came until the stream had nothing more to say about a view after the given one.
async fn until_view(deliveries: &mut Deliveries, members: usize) -> Vec<Message> {
    let mut all = Vec::new();
    let reading = async {
        loop {
            match deliveries.next().await.expect("a member") {
                Delivered::Message(message) => all.push(message),
                Delivered::View { view, .. } if view.members.len() == members => return,
                _ => {}
            }
        }
    };
    within("a view is installed", reading).await;
    all
}

fn of_each(messages: &[Message]) -> BTreeMap<NodeId, Vec<String>> {
    let mut by_sender: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    for message in messages {
        by_sender.entry(message.from).or_default().push(text(message));
    }
    by_sender
}

#[tokio::test]
async fn everybody_is_delivered_the_same_in_one_order() {
    const EACH: usize = 300;
    let place = Place::new();
    let mut members = room(&place, 3).await;
    let mut sending = Vec::new();
    for (group, _) in &members {
        let group = group.clone();
        sending.push(tokio::spawn(async move {
            for number in 0..EACH {
                let class = [Class::Ordered, Class::Safe, Class::Fifo][number % 3];
                group.multicast(class, number.to_string()).await.expect("a member");
            }
        }));
    }
    let mut seen = Vec::new();
    for (_, deliveries) in &mut members {
        seen.push(messages(deliveries, 3 * EACH).await);
    }
    for task in sending {
        task.await.expect("no panic");
    }
    let expected: Vec<String> = (0..EACH).map(|n| n.to_string()).collect();
    let sequenced = |all: &[Message]| all.iter().filter(|m| m.seq.is_some()).cloned().collect::<Vec<_>>();
    for all in &seen {
        assert!(of_each(all).values().all(|texts| *texts == expected), "{:?}", of_each(all));
        assert_eq!(sequenced(all), sequenced(&seen[0]));
        assert_eq!(
            sequenced(all).iter().filter_map(|m| m.seq).collect::<Vec<_>>(),
            (1..=600).collect::<Vec<_>>()
        );
    }
    place.judge(members.iter().map(|(m, _)| m.node().clone())).await;
}

/// With more than 16 members what they say about a closing goes through the first one, and who has something to say connects.
#[tokio::test]
async fn among_many_everybody_is_delivered_the_same_and_goes_on_when_the_first_one_leaves() {
    const MANY: usize = 20;
    let place = Place::new();
    let mut members = room(&place, MANY).await;
    let links = |(group, _): &(Membership, Deliveries)| -> usize {
        let text = group.node().extensions().metrics_text();
        let links = text.lines().find_map(|line| line.strip_prefix("phalanx_bulk_links "));
        links.and_then(|count| count.parse().ok()).expect("a number")
    };
    let count: usize = members.iter().map(links).sum();
    assert!(count < MANY * (MANY - 1), "{count} ends of connections: each is connected with each");
    for round in ["all are there", "the first one is gone"] {
        let count = members.len();
        for (group, _) in [&members[0], &members[count / 2], &members[count - 1]] {
            for number in 0..10 {
                let class = [Class::Ordered, Class::Safe, Class::Fifo][number % 3];
                group.multicast(class, format!("{number}")).await.expect("a member");
            }
        }
        let mut seen: Vec<Vec<Message>> = Vec::new();
        for (_, deliveries) in &mut members {
            let all = messages(deliveries, 30).await;
            seen.push(all.into_iter().filter(|m| m.seq.is_some()).collect());
        }
        assert!(seen.iter().all(|all| all.len() == 21 && *all == seen[0]), "{round}: {seen:?}");
        if count == MANY {
            let (first, _) = members.remove(0);
            within("leaving", first.node().leave()).await;
            for (_, deliveries) in &mut members {
                installs(deliveries, MANY - 1).await;
            }
        }
    }
    place.judge(members.iter().map(|(m, _)| m.node().clone())).await;
}

#[tokio::test]
async fn what_is_said_right_before_leaving_is_heard_and_survivors_agree_on_the_rest() {
    let place = Place::new();
    let mut members = room(&place, 3).await;
    let (leaver, mut own) = members.remove(0);
    let others: Vec<Membership> = members.iter().map(|(group, _)| group.clone()).collect();
    let load = tokio::spawn(async move {
        for number in 0..500 {
            for group in &others {
                group.multicast(Class::Ordered, number.to_string()).await.expect("a member");
            }
            tokio::task::yield_now().await;
        }
    });
    leaver.multicast(Class::Safe, "farewell").await.expect("a member");
    within("leaving", leaver.node().leave()).await;
    assert_eq!(leaver.multicast(Class::Safe, "more").await, Err(SendError::NotMember));
    let mut seen = Vec::new();
    for (_, deliveries) in &mut members {
        seen.push(until_view(deliveries, 2).await);
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].iter().any(|m| text(m) == "farewell"));
    within("the load ends", load).await.expect("no panic");
    let mut heard_itself = false;
    while let Some(delivered) = within("the leaver's stream ends", own.next()).await {
        heard_itself |= matches!(&delivered, Delivered::Message(m) if text(m) == "farewell");
    }
    assert!(heard_itself);
    place.judge(members.iter().map(|(m, _)| m.node().clone())).await;
}

#[tokio::test]
async fn large_messages_arrive_whole_and_too_large_ones_are_refused() {
    let place = Place::new();
    let mut members = room(&place, 2).await;
    let size = (64 << 20) + 1;
    let refused = members[0].0.multicast(Class::Fifo, vec![0; size]).await;
    assert_eq!(refused, Err(SendError::TooLarge { size }));
    for size in [0, 1, 65_535, 65_536, 65_537, 9_000_001] {
        let payload: Vec<u8> = (0..size).map(|n: usize| (n * 31 % 251) as u8).collect();
        members[1].0.multicast(Class::Safe, payload.clone()).await.expect("a member");
        for (_, deliveries) in &mut members {
            let got = message(deliveries).await;
            assert!(got.payload == payload, "{size}: {} bytes came", got.payload.len());
        }
    }
    place.judge(members.iter().map(|(m, _)| m.node().clone())).await;
}

#[tokio::test]
async fn who_takes_nothing_makes_senders_wait_and_loses_nothing() {
    let place = Place::new();
    let mut members = room(&place, 2).await;
    let (slow, mut unread) = members.pop().expect("two");
    let (group, mut deliveries) = members.pop().expect("two");
    let reader = tokio::spawn(async move { while deliveries.next().await.is_some() {} });
    let mut sent = 0;
    let filled = async {
        loop {
            match group.try_multicast(Class::Ordered, vec![1; 100_000]) {
                Ok(()) => sent += 1,
                // For a moment, or for as long as the other does not take anything? 42 messages find room here, 42 there, and in
                // between as many as the window holds, which is what the links make of it.
                Err(SendError::Full) if sent > 60 => return,
                Err(SendError::Full) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    within("the sender has to wait", filled).await;
    for _ in 0..sent {
        assert_eq!(message(&mut unread).await.payload.len(), 100_000);
    }
    within("there is room again", group.multicast(Class::Ordered, "more")).await.expect("a member");
    assert_eq!(text(&message(&mut unread).await), "more");
    place.judge([slow.node().clone(), group.node().clone()]).await;
    within("the reader ends", reader).await.expect("no panic");
}

#[tokio::test]
async fn a_member_without_messages_takes_part_and_a_group_without_multicast_says_so() {
    let place = Place::new();
    let mut members = room(&place, 2).await;
    let third = place.node("n2").await;
    let quiet = third.join("g", None).await.expect("runs");
    for (_, deliveries) in &mut members {
        installs(deliveries, 3).await;
    }
    members[0].0.multicast(Class::Safe, "all hold it").await.expect("a member");
    for (_, deliveries) in &mut members {
        assert_eq!(text(&message(deliveries).await), "all hold it");
    }
    assert_eq!(quiet.multicast(Class::Safe, "no").await, Err(SendError::Plain));
    assert_eq!(third.join_multicast("g", None).await.err().map(|e| e.to_string()), Some(in_use()));

    let plain = third.join("plain", None).await.expect("runs");
    let mut led = plain.events();
    within("it leads", event(&mut led, |w| matches!(w, What::Leading { .. }))).await;
    let (group, mut views) = members[0].0.node().join_multicast("plain", None).await.expect("runs");
    installs(&mut views, 2).await;
    assert_eq!(group.multicast(Class::Safe, "no").await, Err(SendError::Plain));
    place.judge(members.iter().map(|(m, _)| m.node().clone()).chain([third])).await;
}

fn in_use() -> String {
    GroupError::InUse("g".parse().expect("a name")).to_string()
}

#[tokio::test]
async fn who_leaves_and_comes_back_is_new_and_the_next_one_leads_after_its_view_is_closed() {
    let place = Place::new();
    let mut members = room(&place, 3).await;
    let (first, mut gone) = members.remove(0);
    within("leaving", first.leave()).await;
    for (_, deliveries) in &mut members {
        until_view(deliveries, 2).await;
    }
    within("the next one leads", members[0].0.until_leader()).await.expect("a member");
    while within("the stream ends", gone.next()).await.is_some() {}
    let (again, mut fresh) = first.node().join_multicast("g", None).await.expect("runs");
    installs(&mut fresh, 3).await;
    again.multicast(Class::Safe, "back").await.expect("a member");
    for (group, deliveries) in &mut members {
        assert_eq!(text(&message(deliveries).await), "back");
        assert_eq!(names(&group.view().expect("a member")), ["n1", "n2", "n0"]);
    }
    place.judge(members.iter().map(|(m, _)| m.node().clone()).chain([again.node().clone()])).await;
}

#[tokio::test]
async fn nobody_catches_up_once_nobody_takes_what_is_delivered() {
    let place = Place::new();
    let mut members = room(&place, 1).await;
    let (member, deliveries) = members.pop().expect("one");
    let waiting = {
        let member = member.clone();
        tokio::spawn(async move { member.until_caught_up().await })
    };
    // Perhaps it waits for the reader by now.
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(deliveries);
    let unread = Err(NotMember::Unread);
    assert_eq!(within("an answer", waiting).await.expect("no panic"), unread);
    assert_eq!(within("an answer", member.until_caught_up()).await, unread);
    assert!(!within("an answer", member.caught_up()).await);
    place.judge([member.node().clone()]).await;
}

/// What an application may hand to a node, and should not.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker panics, on the thread that wakes");
    }
}

#[tokio::test]
async fn where_the_control_thread_panics_deliveries_end() {
    let node = quiet("n0").start().await.expect("starts");
    let (member, mut deliveries) = node.join_multicast("g", None).await.expect("runs");
    installs(&mut deliveries, 1).await;
    let mut events = member.events();
    while events.try_next().is_some() {}
    let waker = Waker::from(Arc::new(Panics));
    assert!(events.poll_next(&mut Context::from_waker(&waker)).is_pending());
    let mut all = vec![deliveries];
    let stepping = tokio::spawn(async move { member.step_down().await });
    let mut number = 0;
    // Some of these are told to a thread that does not hear them any more.
    while let Ok((_, deliveries)) = node.join_multicast(&format!("h{number}"), None).await {
        all.push(deliveries);
        number += 1;
        tokio::task::yield_now().await;
    }
    within("it has stopped", node.stopped()).await;
    within("nobody waits", stepping).await.expect("no panic");
    for mut deliveries in all {
        within("nothing is delivered any more", async { while deliveries.next().await.is_some() {} }).await;
    }
}

#[tokio::test]
async fn leaving_waits_for_all_groups_at_once() {
    // Nobody is there to take anything, and each group waits for that as long as all of them.
    let node = quiet("n0").bootstrap(Bootstrap::Join).start().await.expect("starts");
    let mut members = Vec::new();
    for number in 0..2 * PATIENCE.as_secs() {
        let (member, deliveries) = node.join_multicast(&format!("g{number}"), None).await.expect("runs");
        member.multicast(Class::Ordered, "waits").await.expect("room");
        members.push((member, deliveries));
    }
    within("a node leaves", node.leave()).await;
}

#[tokio::test]
async fn leaving_that_is_given_up_while_it_waits_for_others_leaves_all_the_same() {
    let place = Place::new();
    let node = place.node("n0").await;
    let mut members = Vec::new();
    for number in 0..20 {
        let (member, mut deliveries) = node.join_multicast(&format!("g{number}"), None).await.expect("runs");
        installs(&mut deliveries, 1).await;
        members.push((member, deliveries));
    }
    let (mut all, mut given_up) = (Vec::new(), 0);
    for (member, deliveries) in members {
        let mut events = member.events();
        while events.try_next().is_some() {}
        member.multicast(Class::Ordered, "on its way").await.expect("room");
        // Asked once, a moment after something was sent, and not again. The node may be that quick, but not each time.
        let mut leaving = Box::pin(member.leave());
        given_up += usize::from(leaving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(leaving);
        all.push((member, deliveries, events));
    }
    assert!(given_up * 2 > all.len(), "{given_up} of {} waited", all.len());
    for (member, _deliveries, mut events) in all {
        within("out", event(&mut events, |what| matches!(what, What::Out { left: true }))).await;
        assert_eq!(member.until_leader().await.err(), Some(NotMember::Left), "though it is held");
    }
    place.judge([node]).await;
}
