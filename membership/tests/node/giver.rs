//! A member that gives the group's state to another one, and is killed in the middle of that.

use bytes::Bytes;
use membership::{Bootstrap, Delivered, Node, Rendezvous};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    harness::{Scratch, judge},
    process::{Process, crash, traces},
};

/// The pieces of a state, besides the last one, which names who gave it.
const PIECES: usize = 16;
const PIECE: usize = 1 << 20;

/// Runs in children: a member of the group `g` whose state is large, until its standard input ends. One that stalls gives half of it,
/// and then nothing more.
#[tokio::test]
async fn holder() {
    let Ok(name) = std::env::var("MEMBER_NAME") else { return };
    let var = |key: &str| std::env::var(key).expect("the parent gives it");
    let stalls = std::env::var_os("MEMBER_STALLS").is_some();
    let node = Node::builder()
        .name(&*name)
        .rendezvous(Rendezvous::File(var("MEMBER_DIR").into()))
        .bootstrap(Bootstrap::AloneAfter(std::time::Duration::from_millis(300)))
        .trace(var("MEMBER_TRACE"));
    let node = node.start().await.expect("starts");
    let (_group, mut deliveries) = node.join_with_state("g", None).await.expect("runs");
    let (leaver, runtime) = (node.clone(), tokio::runtime::Handle::current());
    let leaving = std::thread::spawn(move || {
        let _until_its_end = std::io::stdin().lines().count();
        runtime.block_on(leaver.leave());
    });
    let mut giving = JoinSet::new();
    // After the line that the test framework has begun.
    println!("\n{}", json!({ "event": "started", "id": node.id().to_string() }));
    while let Some(delivered) = deliveries.next().await {
        let line = match delivered {
            Delivered::View { view, .. } => json!({ "event": "view", "members": view.members.len() }),
            Delivered::StateRequest(request) => {
                let name = name.clone();
                giving.spawn(async move {
                    for _ in 0..PIECES / 2 {
                        request.send(Bytes::from(vec![b'x'; PIECE])).await.expect("it is taken");
                    }
                    if stalls {
                        println!("\n{}", json!({ "event": "half" }));
                        std::future::pending::<()>().await;
                    }
                    for _ in PIECES / 2..PIECES {
                        request.send(Bytes::from(vec![b'x'; PIECE])).await.expect("it is taken");
                    }
                    request.finish(Bytes::from(name)).await.expect("it is taken");
                });
                json!({ "event": "asked" })
            }
            Delivered::StateReceived(pieces) => {
                let state = pieces.concat();
                let (text, by) = state.split_at(state.len().min(PIECES * PIECE));
                let whole = text.len() == PIECES * PIECE && text.iter().all(|byte| *byte == b'x');
                json!({ "event": "received", "whole": whole, "by": String::from_utf8_lossy(by) })
            }
            _ => continue,
        };
        println!("\n{line}");
    }
    // Its last record is written once it has left.
    tokio::task::spawn_blocking(|| leaving.join().expect("no panic")).await.expect("no panic");
}

#[test]
fn a_giver_of_state_that_is_killed_halfway_is_replaced_and_the_joiner_gets_all_of_it() {
    let scratch = Scratch::new();
    let start = |name: &str, more| Process::start_as("giver::holder", scratch.path(), name, 0, true, more);
    let members = |n: u64| move |line: &serde_json::Value| line["event"] == "view" && line["members"] == n;
    let mut leads = start("leads", None);
    leads.wait("a view", members(1));
    // Who does not lead is asked first.
    let mut gives = start("gives", Some(("MEMBER_STALLS", "yes")));
    assert_eq!(gives.wait_for("received")["by"], "leads");
    let asked = leads.seen.iter().filter(|line| line["event"] == "asked").count();
    assert!(asked <= 1, "{:#?}", leads.seen);
    let mut joins = start("joins", None);
    gives.wait_for("half");
    // Most of that is there by now; all of it never will be.
    std::thread::sleep(std::time::Duration::from_millis(200));
    gives.kill();
    let died = crash(1, &gives);
    let received = joins.wait_for("received");
    assert_eq!((&received["whole"], &received["by"]), (&json!(true), &json!("leads")), "{received}");
    leads.leave();
    // It has the state now, and leads.
    joins.wait("a view", members(1));
    let mut last = start("last", None);
    assert_eq!(last.wait_for("received")["by"], "joins");
    let mut processes = [leads, gives, joins, last];
    for process in &mut processes[2..] {
        process.leave();
    }
    judge(&traces(&processes), vec![died]);
}
