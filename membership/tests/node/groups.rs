//! Groups of nodes in one process: ranks, leaders, observers.

use std::{sync::mpsc, thread, time::Duration};

use membership::{Bootstrap, GroupError, Membership, Node, NotMember, Rank, Status, ViewId, What};

use crate::harness::{PATIENCE, Place, event, leave, metric, names, quiet, view, within};

const ALONE: Bootstrap = Bootstrap::AloneAfter(Duration::from_millis(300));

#[tokio::test]
async fn members_agree_on_ranks_in_the_order_of_joining() {
    let place = Place::new();
    let members = place.members(4, "g").await;
    let mut seen = Vec::new();
    for member in &members {
        let all = within("everyone sees all", view(&mut member.views(), |v| v.members.len() == 4)).await;
        seen.push(all);
    }
    assert_eq!(names(&seen[0]), ["n0", "n1", "n2", "n3"]);
    assert!(seen.iter().all(|v| v == &seen[0]), "{seen:?}");
    assert_eq!(seen[2].rank_of(members[2].node().id()), Some(Rank::at(2)));
    place.judge(members.iter().map(|m| m.node().clone())).await;
}

#[tokio::test]
async fn when_the_leader_leaves_the_next_rank_leads_under_a_higher_token_and_never_both() {
    let place = Place::new();
    let members = place.members(3, "g").await;
    let first = within("the first leads", members[0].until_leader()).await.expect("a member");
    let token = first.token().expect("current");
    let mut old = members[0].events();
    let mut new = members[1].events();
    within("leaving", members[0].node().leave()).await;
    assert!(!first.is_current() && first.token().is_none());
    let second = within("the second leads", members[1].until_leader()).await.expect("a member");
    assert!(second.is_current());
    assert!(second.token().expect("current") > token);
    assert_eq!(second.lineage(), first.lineage());
    let end = within("the end is told", event(&mut old, |w| matches!(w, What::NotLeading { .. }))).await;
    let What::NotLeading { until_ns, token: ended, .. } = end.what else { unreachable!() };
    let begin = within("the beginning is told", event(&mut new, |w| matches!(w, What::Leading { .. }))).await;
    assert_eq!(ended, token);
    assert!(
        until_ns <= begin.at_ns,
        "the old leader could act until {until_ns}, the new one since {}",
        begin.at_ns
    );
    assert_eq!(members[0].until_leader().await.err(), Some(NotMember::Stopped));
    place.judge(members.iter().map(|m| m.node().clone())).await;
}

#[tokio::test]
async fn a_node_whose_last_handle_is_dropped_leaves() {
    let place = Place::new();
    let mut members = place.members(2, "g").await;
    let mut views = members[1].views();
    let first = members.remove(0);
    let stopped = first.node().events();
    drop(first);
    within("it is gone", view(&mut views, |v| names(v) == ["n1"])).await;
    within("the second leads", members[0].until_leader()).await.expect("a member");
    let mut stopped = stopped;
    within("its streams end", async { while stopped.next().await.is_some() {} }).await;
    place.judge(members.iter().map(|m| m.node().clone())).await;
}

#[tokio::test]
async fn stepping_down_ends_leadership_at_once_and_moves_to_the_last_rank() {
    let place = Place::new();
    let members = place.members(3, "g").await;
    let first = within("the first leads", members[0].until_leader()).await.expect("a member");
    let token = first.token().expect("current");
    within("stepping down", members[0].step_down()).await;
    assert!(!first.is_current());
    let lost = within("told", first.lost()).await;
    assert_eq!((lost.token, lost.why.map(|w| w.as_str())), (token, Some("step-down")));
    let ranks =
        within("the new order", view(&mut members[2].views(), |v| v.members[0].name == "n1".into())).await;
    assert_eq!(names(&ranks), ["n1", "n2", "n0"]);
    within("the second leads", members[1].until_leader()).await.expect("a member");
    place.judge(members.iter().map(|m| m.node().clone())).await;
}

#[tokio::test]
async fn who_steps_down_alone_leads_again_under_a_new_token() {
    let place = Place::new();
    let members = place.members(1, "g").await;
    let first = within("it leads", members[0].until_leader()).await.expect("a member");
    let token = first.token().expect("current");
    within("stepping down", members[0].step_down()).await;
    let again = within("it leads again", members[0].until_leader()).await.expect("a member");
    assert!(again.token().expect("current") > token);
    assert!(!first.is_current(), "the first reign is over");
    place.judge(members.iter().map(|m| m.node().clone())).await;
}

#[tokio::test]
async fn leaving_completes_when_it_is_known_and_joining_again_is_as_the_junior() {
    let place = Place::new();
    let members = place.members(2, "g").await;
    let waiting = {
        let member = members[1].clone();
        tokio::spawn(async move { member.until_leader().await.err() })
    };
    within("leaving", members[1].leave()).await;
    assert_eq!(members[1].view(), None);
    assert_eq!(within("told", waiting).await.expect("no panic"), Some(NotMember::Left));
    within("leaving", members[0].leave()).await;
    let node = members[0].node();
    let endpoint = Some("10.0.0.1:80".to_owned());
    let first = members[1].node().join("g", endpoint).await.expect("runs");
    within("admitted", view(&mut first.views(), |v| names(v) == ["n1"])).await;
    node.join("g", None).await.expect("runs");
    let both = within("both", view(&mut first.views(), |v| names(v) == ["n1", "n0"])).await;
    assert_eq!(both.members[0].endpoint.as_deref(), Some("10.0.0.1:80"));
    place.judge(members.iter().map(|m| m.node().clone())).await;
}

#[tokio::test]
async fn a_join_that_is_left_before_it_was_admitted_leaves_no_member_behind() {
    // Both wishes are under way at once: whoever waits for the end of it must learn of it.
    let place = Place::new();
    let node = place.node("n0").await;
    let member = node.join("g", None).await.expect("runs");
    within("leaving", member.leave()).await;
    assert!(node.status().groups.is_empty());
    let other = place.members(1, "h").await;
    let observer = other[0].node().observe("g").await.expect("runs");
    let seen = within("a view", view(&mut observer.views(), |_| true)).await;
    assert!(seen.members.is_empty());
    place.judge([node, other[0].node().clone()]).await;
}

#[tokio::test]
async fn an_observer_sees_the_current_view_first_and_then_every_change() {
    let place = Place::new();
    let watcher = place.node("watcher").await;
    within("joined", watcher.joined()).await.expect("joins");
    let observer = watcher.observe("g").await.expect("runs");
    let mut views = observer.views();
    let empty = within("a first view", views.next()).await.expect("runs");
    assert_eq!((empty.id, empty.members.len()), (ViewId::NONE, 0));
    let members = place.members(2, "g").await;
    within("the members", view(&mut views, |v| names(v) == ["n0", "n1"])).await;
    let late = within("the current view", observer.views().next()).await.expect("runs");
    assert_eq!(names(&late), ["n0", "n1"]);
    assert_eq!(observer.view().expect("known").members.len(), 2);
    for member in &members {
        within("leaving", member.leave()).await;
    }
    let last = within("the end of the group", view(&mut views, |v| v.members.is_empty())).await;
    assert!(last.id > late.id || last.id == ViewId::NONE);
    place.judge(members.iter().map(|m| m.node().clone()).chain([watcher])).await;
}

#[tokio::test]
async fn every_group_has_its_own_ranks_and_events_come_in_one_order() {
    let place = Place::new();
    let (a, b) = (place.node("a").await, place.node("b").await);
    let x = a.join("x", None).await.expect("runs");
    within("a leads x", x.until_leader()).await.expect("a member");
    let y = b.join("y", None).await.expect("runs");
    within("b leads y", y.until_leader()).await.expect("a member");
    let (x2, y2) = (b.join("x", None).await.expect("runs"), a.join("y", None).await.expect("runs"));
    within("x", view(&mut x2.views(), |v| names(v) == ["a", "b"])).await;
    within("y", view(&mut y2.views(), |v| names(v) == ["b", "a"])).await;
    let mut all = a.all_events();
    let mut last = 0;
    while let Some(event) = all.try_next() {
        let is_state = matches!(event.what, What::Started { .. } | What::ClusterView(_));
        assert!(is_state || event.at_ns >= last || event.group.is_some(), "{event:?}");
        last = event.at_ns;
    }
    place.judge([a, b]).await;
}

#[tokio::test]
async fn equal_names_are_told_apart() {
    let place = Place::new();
    let (a, b) = (place.node("same").await, place.node("same").await);
    let member = a.join("g", None).await.expect("runs");
    b.join("g", None).await.map(std::mem::forget).expect("runs");
    let both = within("both", view(&mut member.views(), |v| v.members.len() == 2)).await;
    let expected = |node: &Node| format!("same#{}", node.id());
    let mut shown: Vec<String> = names(&both).into_iter().map(str::to_owned).collect();
    shown.sort();
    let mut ids = vec![expected(&a), expected(&b)];
    ids.sort();
    assert_eq!(shown, ids);
    for node in [a, b] {
        within("leaving", node.leave()).await;
    }
}

#[tokio::test]
async fn nodes_on_one_host_watch_each_other_and_a_node_that_ends_in_a_living_process_is_no_death() {
    let place = Place::new();
    let members = place.members(2, "g").await;
    for member in &members {
        within("shown to be on one host", async {
            while metric(member.node(), "phalanx_neighbours") != 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    within("leaving", members[0].node().leave()).await;
    within("alone", view(&mut members[1].views(), |v| names(v) == ["n1"])).await;
    assert_eq!(metric(members[1].node(), "phalanx_death_proofs"), 0);
    place.judge(members.iter().map(|m| m.node().clone())).await;
}

#[tokio::test]
async fn the_last_handle_may_be_dropped_while_its_group_is_joined_anew() {
    // Whoever looks whether there is a membership holds it for a moment, and may then be the last who does.
    const ROUNDS: u32 = 1000;
    let node = quiet("n0").start().await.expect("starts");
    let (give, taken) = mpsc::channel::<Membership>();
    let dropping = thread::spawn(move || {
        for (number, member) in taken.into_iter().enumerate() {
            (0..number % 512).for_each(|_| std::hint::spin_loop());
            drop(member);
        }
    });
    let (done, is_done) = mpsc::channel();
    let (runtime, joins) = (tokio::runtime::Handle::current(), node.clone());
    // On a thread that nobody waits for, if it waits for itself.
    thread::spawn(move || {
        runtime.block_on(async {
            for _ in 0..ROUNDS {
                let member = loop {
                    match joins.join_multicast("g", None).await {
                        Ok((member, _deliveries)) => break member,
                        Err(error) => assert!(matches!(error, GroupError::InUse(_)), "{error}"),
                    }
                };
                give.send(member).expect("it takes what comes");
            }
        });
        drop((give, joins));
        done.send(()).expect("somebody waits");
    });
    let end = tokio::task::spawn_blocking(move || is_done.recv_timeout(PATIENCE));
    end.await.expect("no panic").expect("the lock is free again");
    dropping.join().expect("no panic");
    within("leaving", node.leave()).await;
}

#[tokio::test]
async fn the_end_of_a_leadership_is_told_also_to_who_asks_when_the_group_was_left_long_ago() {
    let place = Place::new();
    let members = place.members(1, "g").await;
    let leadership = within("it leads", members[0].until_leader()).await.expect("a member");
    let token = leadership.token().expect("current");
    within("leaving", members[0].leave()).await;
    let lost = within("the end is told", leadership.lost()).await;
    assert_eq!(lost.token, token);
    let again = members[0].node().join("g", None).await.expect("runs");
    let next = within("it leads again", again.until_leader()).await.expect("a member");
    assert_eq!(within("the end is told", leadership.lost()).await.token, token);
    assert!(next.is_current());
    drop((leadership, next, again));
    place.judge([members[0].node().clone()]).await;
}

/// Nine thousand groups with long endpoints are more than a message held once: the entries that make them, what is told of them, and
/// the state that a newcomer to the core gets.
#[tokio::test]
async fn a_cluster_of_many_groups_goes_on_and_a_newcomer_comes_into_its_core() {
    const GROUPS: usize = 9000;
    let place = Place::new();
    let start = async |name| {
        let builder = quiet(name).rendezvous(place.rendezvous()).bootstrap(ALONE);
        builder.lease(Duration::from_secs(4)).start().await.expect("starts")
    };
    let first = start("n0").await;
    within("joined", first.joined()).await.expect("alone");
    let endless = first.join("g", Some("e".repeat(9 << 20))).await.err();
    assert_eq!(endless, Some(GroupError::Endpoint { size: 9 << 20 }));
    let join = async |node: &Node| {
        let mut members = Vec::new();
        for group in 0..GROUPS {
            let endpoint = Some("e".repeat(Node::MAX_ENDPOINT));
            members.push(node.join(&format!("g{group}"), endpoint).await.expect("a member"));
        }
        members
    };
    let until = async |what: &str, node: &Node, fits: &dyn Fn(&Status) -> bool| {
        let looks = async {
            while !fits(&node.status()) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        within(what, looks).await;
    };
    let of_size = |status: &Status, size| {
        let views = status.groups.values().filter_map(|group| group.view.as_ref());
        views.filter(|view| view.members.len() == size).count() == GROUPS
    };
    let _one = join(&first).await;
    until("it is in all", &first, &|status| of_size(status, 1)).await;
    let second = start("n1").await;
    within("joined", second.joined()).await.expect("the first is there");
    until("both are in the core", &first, &|status| status.core.len() == 2).await;
    let _two = join(&second).await;
    until("both are members of all", &second, &|status| of_size(status, 2)).await;
    within("leaving", first.leave()).await;
    let leads = |status: &Status| status.groups.values().filter(|group| group.leading.is_some()).count();
    until("the second leads all", &second, &|status| leads(status) == GROUPS).await;
    leave([second]).await;
}
