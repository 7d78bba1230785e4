//! What replicas keep on disk, and what they say to each other about it.

use bytes::{Bytes, BytesMut};
use membership_types::NodeId;

use crate::replica::{
    keeper::{meta_bytes, read_meta, read_say, read_view, say_bytes},
    ledger::{Entry, Held, Hold, Holders, Meta, Place, Say},
    store::{put_entry, read_entries, read_log, read_state, sealed_log, sealed_state},
};

/// A byte that says what it is, and then that. What is understood can be written, and is understood the same.
pub fn kept_state(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let rest = Bytes::copy_from_slice(rest);
    match kind % 6 {
        0 => {
            if let Ok((head, state)) = read_state(rest) {
                let again = read_state(sealed_state(&head, &state).into()).expect("our own");
                assert!(again == (head, state));
            }
        }
        1 => {
            if let Ok(log) = read_log(&rest) {
                assert!(log.end <= rest.len());
                // What is cut off is not missed.
                assert_eq!(read_log(&rest.slice(..log.end)), Ok(log));
            }
        }
        2 => {
            // The same without checksums to be guessed.
            let mut entries = Vec::new();
            if read_entries(rest.clone(), &mut entries).is_ok() {
                let mut again = BytesMut::new();
                entries.iter().for_each(|entry| put_entry(entry, &mut again));
                assert_eq!(again, rest, "{entries:?}");
                let log = read_log(&sealed_log(&[rest]).into()).expect("our own");
                assert_eq!(log.entries, entries);
                let mut held = Held::begin(1);
                for entry in &entries {
                    if !held.follow(entry) {
                        return;
                    }
                }
            }
        }
        3 => {
            if let Some(say) = read_say(&rest) {
                assert_eq!(read_say(&say_bytes(&say)), Some(say));
            }
        }
        4 => {
            let cut = rest.len() / 2;
            if let Some((meta, state)) = read_meta(vec![rest.slice(..cut), rest.slice(cut..)]) {
                let (again, state_again) =
                    read_meta([vec![meta_bytes(&meta)], state.clone()].concat()).expect("our own");
                assert!(again == meta && state_again.concat() == state.concat());
            }
        }
        _ => drop(read_view(&rest)),
    }
}

/// Well-made ones.
pub fn kept_states() -> Vec<Vec<u8>> {
    let dirs = vec![1, 2, u64::MAX];
    let holders = Holders { now: dirs.clone(), before: Some(vec![7]) };
    let held = Held { history: 9, place: Place { term: 2, pos: 30 }, holders, commands: 20 };
    let node = NodeId::new(1, 5);
    let hold =
        Hold { view: 8, dir: 1, held: Some(held.clone()), promised: 3, nonce: 4, expected: 3, accept: true };
    let command = Entry::Command { from: node, command: Bytes::from_static(b"do") };
    let entries = [
        command,
        Entry::View(Bytes::from_static(b"v")),
        Entry::Term(9),
        Entry::Holders(dirs.clone()),
        Entry::Settled,
        Entry::Promise(3),
    ];
    let body = |entries: &[Entry]| {
        let mut body = BytesMut::new();
        entries.iter().for_each(|entry| put_entry(entry, &mut body));
        body.freeze()
    };
    let log = sealed_log(&[body(&entries[..2]), body(&entries)]);
    let meta = Meta {
        view: 8,
        whole: Some(held.clone()),
        holds: vec![(node, hold.clone())],
        dirs: vec![(node, 1)],
        synced: vec![(1, 30)],
    };
    let says = [
        Say::Hold(hold),
        Say::Vote { view: 8, term: 3 },
        Say::Synced { dir: 1, place: held.place, promised: 2, history: None },
        Say::Synced { dir: 1, place: held.place, promised: 2, history: Some(3) },
        Say::Holders { term: 2, was: vec![1], now: dirs.clone() },
        Say::Settled { term: 2, now: dirs },
    ];
    let mut samples = vec![
        (0, sealed_state(&crate::replica::store::Head::of(held), b"state")),
        (1, log.clone()),
        (1, log[..log.len() - 3].to_vec()),
        (2, body(&entries).to_vec()),
        (4, [&meta_bytes(&meta)[..], b"state"].concat()),
    ];
    samples.extend(says.iter().map(|say| (3, say_bytes(say))));
    samples.into_iter().map(|(kind, bytes)| [&[kind][..], &bytes].concat()).collect()
}
