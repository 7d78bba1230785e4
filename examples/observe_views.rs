//! An observer follows the views of a group that it is not in, as routers and dashboards do.
//!
//! `cargo run --example observe_views`.

use std::{error::Error, time::Duration};

use phalanx::{Node, View};

fn show(view: &View) {
    let names: Vec<&str> = view.members.iter().map(|member| &*member.name).collect();
    println!("view {}: {}", view.id, if names.is_empty() { "nobody".into() } else { names.join(", ") });
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("phalanx-views-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let node = |name: &str| -> Result<_, Box<dyn Error>> {
        Ok(Node::builder().name(name).rendezvous(format!("file:{}", dir.display()).parse()?))
    };

    // An observer need not sit in the core.
    let watcher = node("watcher")?.core(false).start().await?;
    let desk = watcher.observe("desk").await?;
    let mut views = desk.views();

    let clerk = node("clerk")?.start().await?;
    let first = clerk.join("desk", None).await?;
    let helper = node("helper")?.start().await?;
    let second = helper.join("desk", None).await?;

    let story = async {
        let mut both = false;
        // The present view comes first, then every change.
        while let Some(view) = views.next().await {
            show(&view);
            if view.members.len() == 2 && !both {
                both = true;
                println!("the first leaves");
                first.leave().await;
            } else if view.members.len() == 1 && both {
                println!("the second leaves");
                second.leave().await;
            } else if view.members.is_empty() && both {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), story).await?;
    for node in [helper, watcher, clerk] {
        node.leave().await;
    }
    std::fs::remove_dir_all(&dir)?;
    println!("the desk is closed");
    Ok(())
}
