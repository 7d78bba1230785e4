//! Somebody without the keys who has recorded everything gets nothing accepted. `cargo run --release -p fuzz -- forge 1000000` does
//! the same for longer.

/// The long one makes so many, and a fiftieth of that against nodes that run.
const LONG: u64 = 1_000_000;

#[test]
fn nothing_that_is_forged_or_repeated_is_accepted() {
    let forged = membership::fuzz::forge(LONG / 20, 7);
    assert!(forged.tried() >= LONG / 20 && forged.honest > 1000, "{forged:?}");
    // Each attempt moved a counter, but for those that were no attempt before they ended.
    assert_eq!(forged.counted + forged.broken, forged.tried(), "{forged:?}");
    assert!(forged.introductions > 1000 && forged.answers > 100 && forged.records > 10_000, "{forged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_changes_nothing_but_counters_and_takes_no_more_than_its_share() {
    let outcome = fuzz::forge::against_nodes(LONG / 500, 7).await;
    assert!(outcome.honest >= 50, "{outcome:?}");
}
