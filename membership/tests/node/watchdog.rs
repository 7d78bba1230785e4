//! Applications that stand still while their node's heart beats.

use std::{
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

use membership::{Bootstrap, Watchdog, What};

use crate::harness::{Place, event, names, quiet, view, within};

/// Longer than a busy machine keeps a healthy thread waiting.
const LIMIT: Duration = Duration::from_secs(2);

/// What pats the dog, again and again: on a thread of its own, where nothing of the test is in its way.
struct Pats {
    over: Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Pats {
    fn begin(dog: Watchdog) -> Self {
        let (over, is_over) = channel();
        let thread = thread::spawn(move || {
            while is_over.recv_timeout(LIMIT / 20) == Err(RecvTimeoutError::Timeout) {
                dog.pat();
            }
        });
        Self { over, thread }
    }

    /// No pat comes after this.
    fn end(self) {
        drop(self.over);
        self.thread.join().expect("no panic");
    }
}

#[tokio::test]
async fn a_node_whose_application_stands_still_does_not_lead_and_comes_back_with_it() {
    let place = Place::new();
    let still = place.builder("still").watchdog(LIMIT).start().await.expect("starts");
    let pats = Pats::begin(still.watchdog());
    let one = still.join("g", None).await.expect("runs");
    let mut events = one.events();
    let leadership = within("the lead", one.until_leader()).await.expect("runs");
    // Not with a cluster of its own, into which the first one could dissolve.
    let other = place.builder("other").bootstrap(Bootstrap::Join).start().await.expect("starts");
    let two = other.join("g", None).await.expect("runs");
    within("both", view(&mut two.views(), |view| view.members.len() == 2)).await;
    tokio::time::sleep(LIMIT * 2).await;
    assert!(leadership.is_current(), "it is patted");

    pats.end();
    within("the other leads", two.until_leader()).await.expect("runs");
    assert!(!leadership.is_current());
    within("it is told", event(&mut events, |what| matches!(what, What::Stuck { .. }))).await;
    within("and out", event(&mut events, |what| matches!(what, What::Out { left: false }))).await;
    let more = still.join("h", None).await.expect("runs");
    assert!(
        tokio::time::timeout(LIMIT, more.until_leader()).await.is_err(),
        "nor does it lead what it joins meanwhile"
    );

    let pats = Pats::begin(still.watchdog());
    within("it is back", event(&mut events, |what| matches!(what, What::Unstuck))).await;
    let both = within("both", view(&mut two.views(), |view| view.members.len() == 2)).await;
    assert_eq!(names(&both), ["other", "still"]);
    within("the lead of what it joined", more.until_leader()).await.expect("runs");
    pats.end();
    place.judge([still, other]).await;
}

#[tokio::test]
async fn a_limit_that_makes_no_sense_is_refused() {
    for limit in [Duration::ZERO, Duration::from_millis(9), Duration::from_secs(3601)] {
        let refused = quiet("n").watchdog(limit).start().await.expect_err("no such limit").to_string();
        assert!(refused.contains("watchdog") && refused.contains("10ms"), "{refused}");
    }
}
