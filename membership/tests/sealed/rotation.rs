//! Keys are replaced while nodes run.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use membership::{Bootstrap, Node, Secret, SecretError};

use crate::harness::{Place, metric, one_view, within};

/// A file of keys that belongs to one node.
struct Keys(PathBuf);

impl Keys {
    fn new(place: &Place, name: &str, keys: &[&str]) -> Self {
        let this = Self(place.dir().join(format!("{name}.secret")));
        this.write(keys);
        this
    }

    fn write(&self, keys: &[&str]) {
        fs::write(&self.0, keys.join("\n")).expect("written");
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o600)).expect("set");
    }
}

async fn node(place: &Place, name: &str, keys: &Keys) -> Node {
    place.builder(name).secret_file(&keys.0).start().await.expect("starts")
}

#[tokio::test]
async fn a_key_is_replaced_at_three_nodes_without_a_change_of_view() {
    let place = Place::new();
    let (old, new) = (Secret::generate().expect("random"), Secret::generate().expect("random"));
    let (old, new) = (old.as_str(), new.as_str());
    let mut nodes = Vec::new();
    let mut files = Vec::new();
    for name in ["a", "b", "c"] {
        files.push(Keys::new(&place, name, &[old]));
        nodes.push(node(&place, name, files.last().expect("just made")).await);
    }
    one_view(&nodes).await;
    let view = nodes[0].status().view.clone();
    for keys in [&[old, new][..], &[new, old], &[new]] {
        for (node, file) in nodes.iter().zip(&files) {
            file.write(keys);
            node.reload_secret().expect("right");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(nodes.iter().all(|node| node.status().view == view), "connections go on");
    }
    // Whoever has only the old key is too late; whoever has the new one comes in, and reaches all.
    let late = place.builder("late").bootstrap(Bootstrap::Join);
    let late = late.secret_file(&Keys::new(&place, "late", &[old]).0).start().await.expect("starts");
    within("refused", async {
        while metric(&late, "phalanx_authentications_failed") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(late.status().view.is_none());
    within("leaving", late.leave()).await;
    nodes.push(node(&place, "d", &Keys::new(&place, "d", &[new])).await);
    one_view(&nodes).await;
    place.judge(nodes).await;
}

#[tokio::test]
async fn a_file_that_is_wrong_leaves_the_keys_as_they_were() {
    let place = Place::new();
    let key = Secret::generate().expect("random");
    let file = Keys::new(&place, "a", &[&key]);
    let a = node(&place, "a", &file).await;
    file.write(&["too short"]);
    assert!(matches!(a.reload_secret(), Err(SecretError::Short { line: 1, bytes: 9 })));
    file.write(&[&key]);
    fs::set_permissions(&file.0, fs::Permissions::from_mode(0o644)).expect("set");
    assert!(matches!(a.reload_secret(), Err(SecretError::Public { mode: 0o644 })));
    let b = node(&place, "b", &Keys::new(&place, "b", &[&key])).await;
    one_view(&[a.clone(), b.clone()]).await;
    assert!(matches!(place.node("c").await.reload_secret(), Err(SecretError::NotUsed)));
    place.judge([a, b]).await;
}
