//! An air-traffic-control centre: three towers, and only the leader holds the connection to the flight database.
//!
//! `cargo run --example leader_election`. Here the towers are tasks of one process; in life each is a process of its own.

use std::{error::Error, path::Path, time::Duration};

use phalanx::{Membership, Node, Token};

/// The flight database, which refuses whoever comes with an older token than it has seen.
struct Connection {
    tower: &'static str,
    token: Token,
}

impl Connection {
    fn open(tower: &'static str, token: Token) -> Self {
        println!("{tower} opens the database connection with token {token}");
        Self { tower, token }
    }

    fn clear_for_landing(&self, flight: u32) {
        println!("{} clears flight {flight} for landing (token {})", self.tower, self.token);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        println!("{} closes the database connection", self.tower);
    }
}

async fn tower(name: &'static str, dir: &Path) -> Result<(Node, Membership), Box<dyn Error>> {
    let rendezvous = format!("file:{}", dir.display()).parse()?;
    let node = Node::builder().name(name).rendezvous(rendezvous).start().await?;
    let group = node.join("air-traffic-control", None).await?;
    Ok((node, group))
}

/// Leads when it is this tower's turn, clears two flights, and goes off duty.
async fn on_duty(name: &'static str, node: Node, group: Membership) -> Result<(), Box<dyn Error>> {
    let leadership = group.until_leader().await?;
    let Some(token) = leadership.token() else { return Err("the lease ran out at once".into()) };
    let connection = Connection::open(name, token);
    for flight in 1..=2 {
        // A clock read, no I/O: check it before every act.
        if leadership.is_current() {
            connection.clear_for_landing(flight);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{name} goes off duty");
    drop(connection);
    node.leave().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("phalanx-towers-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let mut towers = Vec::new();
    for name in ["north", "south", "west"] {
        towers.push((name, tower(name, &dir).await?));
    }
    let mut duties = Vec::new();
    for (name, (node, group)) in towers {
        duties.push(on_duty(name, node, group));
    }
    let outcome = tokio::time::timeout(Duration::from_secs(60), async {
        for duty in join_all(duties).await {
            duty?;
        }
        Ok::<(), Box<dyn Error>>(())
    });
    outcome.await??;
    std::fs::remove_dir_all(&dir)?;
    println!("all towers are off duty");
    Ok(())
}

/// Runs all of them on this task.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|cx| {
        running.retain_mut(|f| f.as_mut().poll(cx).map(|out| done.push(out)).is_pending());
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}
