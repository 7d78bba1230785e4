//! Every moment at which the thread that holds life lines may end. Run as the crate's documentation says.
#![cfg(loom)]

use loom::{sync::Arc, thread};
use membership_sync::LifeLinks;

/// The kernel meets every line that is on the list all the time, and its walk ends, whatever is put on the list or taken
/// off it meanwhile.
///
/// Found when weakened: the head set before the link of the new line; either of the two set without Release; a link cleared
/// when its line is taken off; what leads past it set without Release.
#[test]
fn whenever_the_thread_ends_the_walk_ends_and_meets_all_lines_that_stay() {
    loom::model(|| {
        let links = Arc::new(LifeLinks::new(3));
        links.link(0);
        links.link(1);
        let kernel = thread::spawn({
            let links = links.clone();
            move || links.walk(8)
        });
        links.unlink(1);
        links.link(2);
        links.link(1);
        links.unlink(1);
        let met = kernel.join().unwrap().expect("a walk that ends");
        assert!(met.contains(&0), "{met:?}");
        let mut all = links.walk(8).expect("a ring");
        all.sort_unstable();
        assert_eq!(all, [0, 2]);
    });
}
