//! Three tills share one count: a replicated state machine. One till crashes and comes back with what the others know.
//!
//! `cargo run --example replicated_counter`. Here the tills are in one process; in life each is a process of its own.

use std::{error::Error, path::Path, time::Duration};

use phalanx::{Node, NodeId, Replica, ReplicatedState, membership::Bytes};

/// How much was sold. What it holds follows from the commands that were applied, and from nothing else.
#[derive(Default)]
struct Sold(u64);

impl ReplicatedState for Sold {
    type Answer = u64;

    /// Every till applies every sale, in the same order; who sold is told the new sum.
    fn apply(&mut self, _till: NodeId, sale: &[u8]) -> u64 {
        self.0 += sale.iter().map(|item| u64::from(*item)).sum::<u64>();
        self.0
    }

    fn snapshot(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_le_bytes())
    }

    fn restore(&mut self, snapshot: &[Bytes]) -> Result<(), String> {
        let bytes = snapshot.concat().try_into().map_err(|_| "a sum has eight bytes")?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

async fn till(name: &str, dir: &Path) -> Result<(Node, Replica<Sold>), Box<dyn Error>> {
    let rendezvous = format!("file:{}", dir.display()).parse()?;
    let node = Node::builder().name(name).rendezvous(rendezvous).start().await?;
    let replica = Replica::join(&node, "tills", None, Sold::default()).await?;
    Ok((node, replica))
}

async fn day(dir: &Path) -> Result<(), Box<dyn Error>> {
    let (first, north) = till("north", dir).await?;
    let (second, south) = till("south", dir).await?;
    // Acknowledged means: every till holds it.
    println!("north sells: {} in all", north.propose([3, 4]).await?);
    println!("south sells: {} in all", south.propose([10]).await?);
    first.leave().await;
    println!("south sells without north: {} in all", south.propose([1]).await?);

    let (third, west) = till("west", dir).await?;
    // A new till gets the state first; then what it reads is never behind what anybody was told.
    west.until_caught_up().await?;
    println!("west begins with {} in all", west.read(|sold| sold.0));
    for node in [second, third] {
        node.leave().await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("phalanx-tills-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let outcome = tokio::time::timeout(Duration::from_secs(60), day(&dir)).await;
    std::fs::remove_dir_all(&dir)?;
    outcome??;
    println!("the tills are closed");
    Ok(())
}
