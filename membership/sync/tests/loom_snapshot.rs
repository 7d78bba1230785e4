//! Every interleaving of publications with readers. Run as the crate's documentation says.
#![cfg(loom)]

use std::sync::Arc as ValueArc;

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use membership_sync::{Reader, Snapshot};

/// Loads twice: values are whole (each value is its version) and never go back.
fn load_twice(mut reader: Reader<u64>) {
    let first = *reader.load();
    assert_eq!(first, reader.version());
    let second = *reader.load();
    assert_eq!(second, reader.version());
    assert!(first <= second, "went back from {first} to {second}");
}

/// Two readers race with two publications.
///
/// Found when weakened: readers keep the version that they loaded and not the one under the lock. (Where the
/// publisher stores the version is harmless as long as they do not: then it only costs a second lock.)
#[test]
fn a_reader_never_goes_back_and_sees_the_value_of_its_version() {
    loom::model(|| {
        let mut snapshot = Snapshot::new(ValueArc::new(0));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let reader = snapshot.reader();
                thread::spawn(move || load_twice(reader))
            })
            .collect();
        snapshot.publish(ValueArc::new(1));
        snapshot.publish(ValueArc::new(2));
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// Who hears of a publication loads it or a newer one.
///
/// No ordering of the version carries this: the message's own release and acquire do, and the lock publishes
/// the value. Found when weakened: the message sent before `publish`; Relaxed instead of Release at the
/// message; the version not stored.
#[test]
fn whoever_heard_of_a_publication_loads_it() {
    loom::model(|| {
        let mut snapshot = Snapshot::new(ValueArc::new(0));
        let published = Arc::new(AtomicU64::new(0));
        let mut reader = snapshot.reader();
        let follower = thread::spawn({
            let published = published.clone();
            move || {
                let heard = published.load(Ordering::Acquire);
                assert!(*reader.load() >= heard);
                assert!(reader.version() >= heard);
            }
        });
        for _ in 0..2 {
            let next = ValueArc::new(snapshot.version() + 1);
            published.store(snapshot.publish(next), Ordering::Release);
        }
        follower.join().unwrap();
    });
}
