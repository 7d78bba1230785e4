//! What is committed is replayed, and mutated for a while.

use fuzz::{TARGETS, Target, corpus, hunt, samples};
use membership_types::Rng;

fn seeds(target: Target) -> Vec<Vec<u8>> {
    let files = corpus(target.name).expect("a corpus");
    files.into_iter().map(|(_, bytes)| bytes).collect()
}

#[test]
fn nothing_in_the_corpus_panics() {
    for target in TARGETS {
        let files = corpus(target.name).expect("a corpus");
        assert!(files.len() >= 3, "{}", target.name);
        for (name, bytes) in files {
            println!("{}/{name}", target.name);
            (target.run)(&bytes);
        }
    }
}

#[test]
fn the_samples_in_the_corpus_are_those_that_are_made_today() {
    for target in TARGETS {
        let numbered = corpus(target.name).expect("a corpus").into_iter();
        let numbered = numbered.filter(|(name, _)| name.bytes().all(|b| b.is_ascii_digit()));
        let kept: Vec<Vec<u8>> = numbered.map(|(_, bytes)| bytes).collect();
        // Traces change whenever the protocol does.
        if target.name != "trace" {
            let name = target.name;
            assert!(
                kept == samples(name),
                "{name}: run `cargo run -p fuzz -- corpus` and commit what it writes"
            );
        }
    }
}

#[test]
fn nothing_near_the_corpus_panics() {
    for target in TARGETS {
        if let Err(input) = hunt(target, &seeds(target), target.tries, &mut Rng::seeded(7)) {
            panic!("{} panics on b\"{}\"", target.name, input.escape_ascii());
        }
    }
}

#[test]
fn the_hunt_finds_what_panics() {
    fn picky(data: &[u8]) {
        assert!(!data.starts_with(b"hxllo"));
    }
    let target = Target { name: "picky", run: picky, tries: 0 };
    let found = hunt(target, &[b"hello".to_vec()], 50_000, &mut Rng::seeded(1));
    assert!(found.expect_err("it is near").starts_with(b"hxllo"));
}
