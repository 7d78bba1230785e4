//! Nodes with certificates: who comes in, who does not, and how certificates are replaced.

use std::time::{Duration, SystemTime};

use checker::{Outcome, Predicate};
use membership::{Bootstrap, Class, Delivered, Node, NodeBuilder};

use crate::{
    authority::{Authority, Files},
    harness::{Place, leave, metric, one_view, quiet, within},
};

fn with(builder: NodeBuilder, files: &Files) -> NodeBuilder {
    builder.tls_ca(&files.ca).tls_cert(&files.cert).tls_key(&files.key)
}

fn files(place: &Place, name: &str, authority: &Authority, names: &[&str]) -> Files {
    let files = Files::new(place.dir(), name);
    files.write(&[authority], &authority.sign(names));
    files
}

async fn refused(node: &Node) {
    within("refused", async {
        while metric(node, "phalanx_authentications_failed") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(node.status().view.is_none());
}

async fn problem(builder: NodeBuilder) -> String {
    match builder.start().await {
        Ok(_) => panic!("it started"),
        Err(error) => {
            assert!(error.is_configuration(), "{error}");
            error.to_string()
        }
    }
}

#[tokio::test]
async fn members_with_certificates_talk_and_others_stay_outside() {
    let place = Place::new();
    let authority = Authority::new();
    let by_name = files(&place, "a", &authority, &["a"]);
    let by_address = files(&place, "b", &authority, &["other", "127.0.0.1"]);
    let a = with(place.builder("a"), &by_name).start().await.expect("starts");
    let b = with(place.builder("b"), &by_address).start().await.expect("starts");
    one_view(&[a.clone(), b.clone()]).await;
    let (to, _of_a) = a.join_multicast("g", None).await.expect("runs");
    let (_member, mut of_b) = b.join_multicast("g", None).await.expect("runs");
    within("both are members", async {
        while to.view().is_none_or(|view| view.members.len() < 2) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // Many records, over the connection for bulk.
    let long: Vec<u8> = (0..700_000_u32).map(|n| (n >> 3) as u8).collect();
    to.multicast(Class::Safe, long.clone()).await.expect("a member");
    within("delivered", async {
        loop {
            if let Delivered::Message(message) = of_b.next().await.expect("a member") {
                assert_eq!(message.payload, long);
                break;
            }
        }
    })
    .await;
    assert!(a.extensions().metrics_text().contains("phalanx_links_sealed{by=\"certificates\"} 1"));
    let view = a.status().view.clone();
    let other = Authority::new();
    let foreign = files(&place, "foreign", &other, &["foreign"]);
    for stranger in [
        with(place.builder("foreign"), &foreign).bootstrap(Bootstrap::Join),
        place.builder("open").bootstrap(Bootstrap::Join),
    ] {
        let stranger = stranger.start().await.expect("starts");
        refused(&stranger).await;
        leave([stranger]).await;
    }
    // The other side may count it a moment after the stranger has.
    within("both are counted", async {
        let failed = |node| metric(node, "phalanx_authentications_failed");
        while failed(&a) + failed(&b) < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(a.status().view, view, "nobody came, nobody went");
    let report = place.judge([a, b]).await;
    assert_eq!(report.verdict(Predicate::SE5).outcome, Outcome::Pass, "names were proved");
}

#[tokio::test]
async fn what_others_would_refuse_is_refused_at_the_start_with_what_to_do() {
    let place = Place::new();
    let (ours, other) = (Authority::new(), Authority::new());
    let hour = Duration::from_secs(3600);
    let file = Files::new(place.dir(), "n");
    let node = || with(quiet("n"), &file);
    file.write(&[&ours], &ours.sign(&["m", "10.9.8.7"]));
    let error = problem(node()).await;
    assert!(
        error.contains("\"n\"") && error.contains("127.0.0.1") && error.contains("--tls-cert"),
        "{error}"
    );
    file.write(&[&ours], &ours.sign_until(&["n"], SystemTime::now() - hour));
    let error = problem(node()).await;
    assert!(error.contains("has expired") && error.contains("HUP"), "{error}");
    file.write(&[&ours], &other.sign(&["n"]));
    let error = problem(node()).await;
    assert!(error.contains("--tls-ca") && error.contains("signed it"), "{error}");
    let [cert, _] = ours.sign(&["n"]);
    let [_, key] = ours.sign(&["n"]);
    file.write(&[&ours], &[cert.clone(), key]);
    assert!(problem(node()).await.contains("--tls-cert"), "the key of another certificate");
    file.write(&[&ours], &[cert, "no key".into()]);
    assert!(problem(node()).await.contains("no private key"));
    std::fs::write(&file.ca, "nothing").expect("written");
    assert!(problem(node()).await.contains("--tls-ca"));
    let error = problem(quiet("n").tls_cert(&file.cert)).await;
    assert!(error.contains("--tls-ca") && error.contains("belong together"), "{error}");
    let error = problem(node().secret_file("x")).await;
    assert!(error.contains("--secret-file"), "{error}");
}

#[tokio::test]
async fn an_authority_is_replaced_without_a_change_of_view() {
    let place = Place::new();
    let (old, new) = (Authority::new(), Authority::new());
    let mut nodes = Vec::new();
    let mut all = Vec::new();
    for name in ["a", "b", "c"] {
        all.push((name, files(&place, name, &old, &[name])));
        nodes.push(
            with(place.builder(name), &all.last().expect("just made").1).start().await.expect("starts"),
        );
    }
    one_view(&nodes).await;
    let view = nodes[0].status().view.clone();
    for (trusted, signer) in [(&[&old, &new][..], &old), (&[&old, &new], &new), (&[&new], &new)] {
        for (node, (name, files)) in nodes.iter().zip(&all) {
            files.write(trusted, &signer.sign(&[name]));
            node.reload_secret().expect("right");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(nodes.iter().all(|node| node.status().view == view), "connections go on");
    }
    // What is wrong leaves what there was.
    let (_, file) = &all[0];
    file.write(&[&new], &new.sign(&["somebody else"]));
    assert!(nodes[0].reload_secret().expect_err("not its own").to_string().contains("names neither"));
    file.write(&[&new], &new.sign_until(&["a"], SystemTime::now() - Duration::from_secs(60)));
    assert!(nodes[0].reload_secret().expect_err("too old").to_string().contains("expired"));
    let late = files(&place, "late", &old, &["late"]);
    let late = with(place.builder("late"), &late).bootstrap(Bootstrap::Join).start().await.expect("starts");
    refused(&late).await;
    leave([late]).await;
    let d = files(&place, "d", &new, &["d"]);
    nodes.push(with(place.builder("d"), &d).start().await.expect("starts"));
    one_view(&nodes).await;
    place.judge(nodes).await;
}

#[tokio::test]
async fn a_certificate_that_expires_while_its_node_runs_ends_no_connection_but_makes_no_new_one() {
    let place = Place::new();
    let authority = Authority::new();
    let short = Files::new(place.dir(), "b");
    let a = with(place.builder("a"), &files(&place, "a", &authority, &["a"])).start().await.expect("starts");
    let end = SystemTime::now() + Duration::from_secs(4);
    short.write(&[&authority], &authority.sign_until(&["b"], end));
    let b = with(place.builder("b"), &short).start().await.expect("starts");
    one_view(&[a.clone(), b.clone()]).await;
    tokio::time::sleep(end.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_secs(2))
        .await;
    assert_eq!(a.status().view.as_ref().map(|view| view.members.len()), Some(2));
    let late = with(place.builder("c"), &files(&place, "c", &authority, &["c"])).bootstrap(Bootstrap::Join);
    let c = late.start().await.expect("starts");
    within("b is refused", async {
        while metric(&b, "phalanx_authentications_failed") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Renewed in time, it comes to terms with the newcomer.
    short.write(&[&authority], &authority.sign(&["b"]));
    b.reload_secret().expect("right");
    one_view(&[a.clone(), b.clone(), c.clone()]).await;
    place.judge([a, b, c]).await;
}
