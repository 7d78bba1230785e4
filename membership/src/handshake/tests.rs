use super::*;
use crate::metrics::Counts;

fn hello(cluster: &str, inc: u64) -> Hello {
    Hello { cluster: cluster.into(), node: NodeId::new(1, inc), ..Hello::sample(1) }
}

type Outcome = Result<Met, Refusal>;

async fn meet(a: (&Hello, &Credentials), b: (&Hello, &Credentials)) -> (Outcome, Outcome) {
    let (mut left, mut right) = tokio::io::duplex(64);
    let mut new = |_: &[u8]| true;
    tokio::join!(initiate(&mut left, a.0, a.1), respond(&mut right, b.0, b.1, &mut new))
}

async fn in_the_open(a: &Hello, b: &Hello) -> (Outcome, Outcome) {
    meet((a, &Credentials::None), (b, &Credentials::None)).await
}

/// Lets a node answer these bytes, after which nothing comes. Gives what it answered, and what it made of them.
async fn answer(bytes: &[u8], with: &Credentials, seen: &mut Seen) -> (Vec<u8>, Refusal) {
    let (mut left, mut right) = tokio::io::duplex(1 << 16);
    left.write_all(bytes).await.expect("room");
    left.shutdown().await.expect("open");
    let outcome = respond(&mut right, &hello("c", 1), with, &mut |first| seen.note(first)).await;
    drop(right);
    let mut answer = Vec::new();
    left.read_to_end(&mut answer).await.expect("it is closed");
    (answer, why(outcome))
}

fn why(outcome: Outcome) -> Refusal {
    match outcome {
        Ok(met) => panic!("met {:?}", met.hello),
        Err(refusal) => refusal,
    }
}

fn keys(texts: &[u8]) -> Credentials {
    let line = |byte: &u8| (0..32_u8).map(|n| format!("{:02x}", n ^ byte)).collect::<String>() + "\n";
    Credentials::Secret(texts.iter().map(line).collect::<String>().parse().expect("keys"))
}

#[tokio::test]
async fn two_nodes_of_a_cluster_learn_who_the_other_is() {
    let (a, b) = (hello("c", 1), hello("c", 2));
    for with in [Credentials::None, keys(&[1])] {
        let (one, two) = meet((&a, &with), (&b, &with)).await;
        let (one, two) = (one.expect("met"), two.expect("met"));
        assert_eq!((&one.hello, &two.hello), (&b, &a));
        assert_eq!(one.session.is_open(), matches!(with, Credentials::None));
        assert_eq!(one.session.is_open(), two.session.is_open());
    }
}

#[tokio::test]
async fn another_cluster_is_refused_and_both_sides_know_why() {
    for with in [Credentials::None, keys(&[1])] {
        let (one, two) = meet((&hello("mine", 1), &with), (&hello("yours", 2), &with)).await;
        let (one, two) = (why(one), why(two));
        assert!(one.is_reject() && two.is_reject());
        let (one, two) = (one.to_string(), two.to_string());
        assert!(one.contains("yours") && one.contains("mine"), "{one}");
        assert!(two.contains("mine"), "{two}");
    }
}

#[tokio::test]
async fn a_node_that_meets_itself_notices() {
    let (one, two) = in_the_open(&hello("c", 1), &hello("c", 1)).await;
    assert!(matches!(why(two), Refusal::Myself) && matches!(why(one), Refusal::Rejected(_)));
}

#[tokio::test]
async fn who_lacks_the_key_is_refused_and_both_sides_know_why() {
    let (a, b) = (hello("c", 1), hello("c", 2));
    let cases = [
        (Credentials::None, keys(&[1]), "it requires a secret", "the other side has no secret"),
        (keys(&[1]), Credentials::None, "it has no secret", "this node has none"),
        (keys(&[1]), keys(&[2]), "does not have the key", "give both the same"),
        // Whoever connects uses its first key.
        (keys(&[1, 2]), keys(&[2]), "does not have the key", "give both the same"),
    ];
    for (with_a, with_b, why_a, why_b) in cases {
        let counts = Counts::default();
        let (one, two) = meet((&a, &with_a), (&b, &with_b)).await;
        for (outcome, expected) in [(one, why_a), (two, why_b)] {
            let refusal = why(outcome);
            refusal.count(&counts);
            assert!(refusal.is_reject() && refusal.to_string().contains(expected), "{refusal}");
        }
        assert_eq!(counts.unauthenticated.get(), 2);
    }
    // While a key is replaced, both old and new nodes are met.
    for (with_a, with_b) in [(keys(&[1]), keys(&[1, 2])), (keys(&[2, 1]), keys(&[1, 2]))] {
        let (one, two) = meet((&a, &with_a), (&b, &with_b)).await;
        assert!(one.is_ok() && two.is_ok());
    }
}

#[tokio::test]
async fn a_recorded_introduction_gets_nobody_in() {
    // All that a node sent to another one is said again by somebody who does not hold the key.
    let with = keys(&[1]);
    let Credentials::Secret(secret) = &with else { panic!("just made") };
    let key = secret.first();
    let (_, first) = Agreeing::begin(key, &bound(key), &greeting(&Greeting::Hello(hello("c", 2))));
    let recorded = message(Manner::Sealed, key.id(), &first);
    let mut seen = Seen::default();
    let (reply, refusal) = answer(&[&recorded[..], &[0, 16], &[7; 16]].concat(), &with, &mut seen).await;
    assert!(matches!(refusal, Refusal::Unproved(_)), "{refusal}");
    assert!(reply.starts_with(b"PHALANX\x02\x01"), "it is answered once, and cannot read the answer");
    let (reply, refusal) = answer(&recorded, &with, &mut seen).await;
    assert!(matches!(refusal, Refusal::Replayed) && reply.is_empty(), "{refusal}");
    let counts = Counts::default();
    refusal.count(&counts);
    assert_eq!(counts.replays.get(), 1);
}

#[tokio::test]
async fn whatever_is_cut_short_or_changed_gets_nobody_in() {
    let with = keys(&[1]);
    let Credentials::Secret(secret) = &with else { panic!("just made") };
    let key = secret.first();
    let (_, first) = Agreeing::begin(key, &bound(key), &greeting(&Greeting::Hello(hello("c", 2))));
    let right = message(Manner::Sealed, key.id(), &first);
    let mut seen = Seen::default();
    for size in 0..right.len() {
        let (reply, refusal) = answer(&right[..size], &with, &mut seen).await;
        assert!(matches!(refusal, Refusal::Closed) && reply.is_empty(), "{size}: {refusal}");
    }
    for at in 0..right.len() {
        let mut changed = right.clone();
        changed[at] ^= 1;
        let (reply, _refused) = answer(&changed, &with, &mut seen).await;
        assert!(reply.len() <= HEAD, "nothing but a reason: {reply:?}");
    }
    assert!(seen.order.is_empty(), "strangers are not remembered");
}

#[tokio::test]
async fn two_builds_use_the_highest_version_that_both_speak() {
    let speaks = |node, min, max| Hello { speaks: Versions { min, max }, ..hello("c", node) };
    for with in [Credentials::None, keys(&[1])] {
        for (a, b, common) in [((2, 3), (3, 7), 3), ((2, 9), (1, 4), 4), ((5, 5), (2, 9), 5)] {
            let (a, b) = (speaks(1, a.0, a.1), speaks(2, b.0, b.1));
            let (one, two) = meet((&a, &with), (&b, &with)).await;
            let (one, two) = (one.expect("met"), two.expect("met"));
            assert_eq!(
                (a.speaks.common(one.hello.speaks), b.speaks.common(two.hello.speaks)),
                (Some(common), Some(common))
            );
        }
    }
}

#[tokio::test]
async fn builds_without_a_common_version_part_and_both_say_which_is_too_old() {
    let (ours, beyond) = (Versions::OURS, Versions::OURS.max + 1);
    let theirs = Versions { min: beyond, max: beyond + 2 };
    let (old, new) = (hello("c", 1), Hello { speaks: theirs, ..hello("c", 2) });
    for with in [Credentials::None, keys(&[1])] {
        for (a, b) in [(&old, &new), (&new, &old)] {
            let (one, two) = meet((a, &with), (b, &with)).await;
            for (outcome, me) in [(one, a), (two, b)] {
                let refusal = why(outcome);
                let older = if me.node == old.node { "start this node" } else { "start the other side" };
                let text = refusal.to_string();
                assert!(refusal.is_reject() && text.contains(older), "{text}");
                let both = [ours, theirs].map(|versions| versions.to_string());
                assert!(both.iter().all(|versions| text.contains(versions)), "{text}");
            }
        }
    }
}

#[test]
fn a_greeting_from_before_ranges_is_one_of_version_two() {
    // As the builds before wrote it; what is new in ours they skip, as we skip what is new in others'.
    #[derive(Serialize)]
    struct Before {
        cluster: String,
        node: NodeId,
        name: String,
        addr: SocketAddr,
        lineage: Option<Lineage>,
        near: Option<String>,
        of_tomorrow: [u8; 3],
    }
    let Hello { cluster, node, name, addr, lineage, near, .. } = hello("c", 2);
    let before = Before { cluster, node, name, addr, lineage, near, of_tomorrow: [1, 2, 3] };
    let bytes = rmp_serde::to_vec_named(&before).expect("encodes");
    let read: Hello = wire::decode(&bytes).expect("decodes");
    assert_eq!((read.speaks, read.speaks.common(Versions::OURS)), (Versions::before(), Some(2)));
}

#[tokio::test]
async fn another_version_and_other_protocols_are_told_apart() {
    let mut seen = Seen::default();
    let (reply, refusal) = answer(b"PHALANX\x09", &Credentials::None, &mut seen).await;
    assert!(refusal.to_string().contains("version 9"), "{refusal}");
    assert!(reply.starts_with(b"PHALANX\x02") && reply.len() == HEAD, "it learns which one: {reply:?}");
    let (reply, refusal) = answer(b"GET / HTTP/1.1\r\n", &Credentials::None, &mut seen).await;
    assert!(refusal.to_string().contains("does not speak") && reply.is_empty(), "{refusal}");
}

#[tokio::test]
async fn a_greeting_beyond_the_limit_of_strangers_is_refused() {
    let mut bytes = b"PHALANX\x02\x00........".to_vec();
    bytes.extend_from_slice(&(MAX_GREETING as u16 + 1).to_be_bytes());
    for with in [Credentials::None, keys(&[1])] {
        let (_, refusal) = answer(&bytes, &with, &mut Seen::default()).await;
        assert_eq!(refusal.kind(), "garbage", "{refusal}");
    }
}

#[test]
fn beginnings_are_remembered_for_a_while_and_in_little_memory() {
    let mut seen = Seen::default();
    let begin = |n: usize| [&n.to_be_bytes()[..], &[0; 56]].concat();
    for n in 0..=REMEMBERED {
        assert!(seen.note(&begin(n)));
    }
    assert!(!seen.note(&begin(REMEMBERED)) && !seen.note(&begin(1)) && seen.note(&begin(0)));
    assert_eq!((seen.order.len(), seen.known.len()), (REMEMBERED, REMEMBERED));
}
