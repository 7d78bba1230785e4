//! How nodes start: what is refused, and how those that start together find each other.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use membership::{Bootstrap, JoinError, Rendezvous, StartError, What};
use ports::nobody;

use crate::harness::{Place, event, one_view, quiet, together, within};

async fn refused(builder: membership::NodeBuilder) -> StartError {
    builder.start().await.expect_err("refused")
}

#[tokio::test]
async fn listening_beyond_loopback_is_refused_and_the_way_out_is_named() {
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    for builder in [quiet("a").listen(everywhere), quiet("a").admin(everywhere)] {
        let error = refused(builder).await;
        assert!(error.is_configuration() && error.to_string().contains("--insecure"), "{error}");
    }
    let error = refused(quiet("a").listen(everywhere).insecure(true)).await;
    assert!(error.is_configuration() && error.to_string().contains("--advertise"), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_told_apart_from_a_wrong_configuration() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("bound");
    for builder in [quiet("a").listen(addr), quiet("a").admin(addr)] {
        let error = refused(builder).await;
        assert!(matches!(error, StartError::Listen { .. }) && !error.is_configuration(), "{error}");
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}

#[tokio::test]
async fn settings_out_of_range_are_refused_by_name() {
    let place = Place::new();
    let lists = Rendezvous::Static(vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()]);
    let cases = [
        (quiet("a").lease(Duration::from_millis(1)), "lease"),
        (quiet("a").heartbeat(Duration::from_secs(2)), "heartbeat"),
        (quiet("a").bootstrap(Bootstrap::Expect(0)), "expect=0"),
        (quiet("a").bootstrap(Bootstrap::AloneAfter(Duration::ZERO)), "alone-after"),
        (quiet("a").cluster("no/slash"), "--cluster"),
        (quiet("with\nnewline"), "--name"),
        (quiet("a").bootstrap(Bootstrap::Expect(3)), "--rendezvous"),
        (quiet("a").bootstrap(Bootstrap::Expect(2)).rendezvous(lists.clone()), "--bootstrap join"),
        (quiet("a").bootstrap(Bootstrap::Expect(3)).rendezvous(lists), "which has 2"),
    ];
    for (builder, named) in cases {
        let error = refused(builder).await;
        assert!(error.is_configuration() && error.to_string().contains(named), "{named}: {error}");
    }
    let nowhere = place.dir().join("missing").join("trace.jsonl");
    let error = refused(quiet("a").trace(nowhere)).await;
    assert!(matches!(error, StartError::Trace { .. }), "{error}");
    std::fs::write(place.dir().join("file"), "").expect("written");
    let error = refused(quiet("a").rendezvous(Rendezvous::File(place.dir().join("file")))).await;
    assert!(matches!(error, StartError::Rendezvous { .. }), "{error}");
}

#[tokio::test]
async fn nodes_that_start_at_once_and_find_each_other_by_files_end_in_one_cluster() {
    let place = Place::new();
    let nodes = together(8, |number| place.builder(&format!("n{number}"))).await;
    one_view(&nodes).await;
    place.judge(nodes).await;
}

#[tokio::test]
async fn founders_that_start_at_once_with_a_static_list_end_in_one_cluster() {
    let place = Place::new();
    let ports: Vec<SocketAddr> = (0..5).map(|_| nobody()).collect();
    let list = Rendezvous::Static(ports.iter().map(ToString::to_string).collect());
    let builder = |number: usize| {
        let expected = place.builder(&format!("n{number}")).bootstrap(Bootstrap::Expect(5));
        expected.rendezvous(list.clone()).listen(ports[number])
    };
    let nodes = together(5, builder).await;
    one_view(&nodes).await;
    let founders: Vec<Option<u16>> =
        nodes[0].status().view.as_ref().expect("joined").members.iter().map(|n| n.slot).collect();
    assert_eq!(founders, [Some(0), Some(1), Some(2), Some(3), Some(4)], "founders rank by slot");
    place.judge(nodes).await;
}

#[tokio::test]
async fn founder_slots_in_a_directory_are_taken_once_and_one_founder_too_many_is_refused() {
    let place = Place::new();
    let builder = |number: usize| place.builder(&format!("n{number}")).bootstrap(Bootstrap::Expect(3));
    let nodes = together(3, builder).await;
    one_view(&nodes).await;
    let error = refused(builder(3)).await;
    assert!(error.is_configuration() && error.to_string().contains("--bootstrap join"), "{error}");
    let joiner = quiet("joiner").rendezvous(place.rendezvous()).bootstrap(Bootstrap::Join);
    let joiner = joiner.start().await.expect("starts");
    within("joined", joiner.joined()).await.expect("joins");
    within("leaving", joiner.leave()).await;
    within("leaving", nodes[0].leave()).await;
    let heir = builder(4).start().await.expect("a slot is free again");
    within("joined", heir.joined()).await.expect("joins");
    for node in nodes.into_iter().chain([heir]) {
        within("leaving", node.leave()).await;
    }
}

#[tokio::test]
async fn a_node_that_may_only_join_waits_and_says_that_it_did_not_join_in_time() {
    let place = Place::new();
    let builder = quiet("a").rendezvous(place.rendezvous()).bootstrap(Bootstrap::Join);
    let node = builder.join_timeout(Duration::from_millis(300)).start().await.expect("starts");
    assert!(matches!(node.joined().await, Err(JoinError::Timeout { why: None, .. })));
    let founder = place.node("b").await;
    within("joined", node.wait_joined(crate::harness::PATIENCE)).await.expect("joins at last");
    for node in [node, founder] {
        within("leaving", node.leave()).await;
    }
}

#[tokio::test]
async fn a_node_whose_rendezvous_never_answered_founds_nothing() {
    let nowhere = Rendezvous::Static(vec!["host.invalid:1".into()]);
    let alone = Bootstrap::AloneAfter(Duration::from_millis(100));
    let builder = quiet("a").rendezvous(nowhere).bootstrap(alone);
    let node = builder.join_timeout(Duration::from_secs(2)).start().await.expect("starts");
    assert!(matches!(node.joined().await, Err(JoinError::Timeout { .. })), "there may be a cluster");
    within("leaving", node.leave()).await;
}

#[tokio::test]
async fn a_node_with_another_lease_is_not_admitted_and_told_why() {
    let place = Place::new();
    let founder = place.node("a").await;
    within("joined", founder.joined()).await.expect("founds");
    let other =
        quiet("b").lease(Duration::from_secs(2)).rendezvous(place.rendezvous()).bootstrap(Bootstrap::Join);
    let node = other.start().await.expect("starts");
    let event = within("told", event(&mut node.events(), |w| matches!(w, What::Refused { .. }))).await;
    let What::Refused { why } = event.what else { unreachable!() };
    assert!(why.contains("lease"), "{why}");
    let Err(JoinError::Timeout { why: Some(told), .. }) = node.wait_joined(Duration::from_millis(500)).await
    else {
        panic!("it has joined")
    };
    assert_eq!(told, why);
    for node in [node, founder] {
        within("leaving", node.leave()).await;
    }
}

#[tokio::test]
async fn a_node_that_has_stopped_says_so_to_everyone() {
    let place = Place::new();
    let node = place.node("a").await;
    let member = node.join("g", None).await.expect("runs");
    within("leaving", node.leave()).await;
    within("leaving twice", node.leave()).await;
    assert!(node.events().next().await.is_none());
    assert!(matches!(node.join("h", None).await, Err(membership::GroupError::Stopped)));
    assert!(matches!(node.join("not a name", None).await, Err(membership::GroupError::Name(_))));
    assert_eq!(node.joined().await, Err(JoinError::Stopped));
    within("leaving the group", member.leave()).await;
    within("stepping down", member.step_down()).await;
    place.judge([node]).await;
}
