//! Two arrays of three tills count what their customers spend: each customer's key has its array, each array's leader takes the
//! sales. A client that routes by itself goes on selling while leaders leave.
//!
//! `cargo run --example routed_counter`. Here all tills are in one process; in life each is a process of its own.

use std::{collections::BTreeMap, error::Error, path::Path, sync::Arc, time::Duration};

use phalanx::{
    Leads, Node, NodeId, Replica, ReplicatedState, follow,
    membership::{Bytes, ProposeError},
    router::{
        Config, Options, Surroundings,
        rpc::{Client, Failure, Reply, Request, Server, serve},
    },
};

/// What each customer has spent.
#[derive(Default)]
struct Spent(BTreeMap<String, u64>);

impl ReplicatedState for Spent {
    type Answer = u64;

    /// A sale: eight bytes of money, then the customer.
    fn apply(&mut self, _till: NodeId, sale: &[u8]) -> u64 {
        let Some((money, customer)) = sale.split_first_chunk() else { return 0 };
        let sum = self.0.entry(String::from_utf8_lossy(customer).into_owned()).or_default();
        *sum += u64::from_le_bytes(*money);
        *sum
    }

    fn snapshot(&self) -> Bytes {
        let lines: Vec<String> = self.0.iter().map(|(customer, sum)| format!("{sum} {customer}")).collect();
        lines.join("\n").into()
    }

    fn restore(&mut self, snapshot: &[Bytes]) -> Result<(), String> {
        let text = String::from_utf8(snapshot.concat()).map_err(|error| error.to_string())?;
        for line in text.lines() {
            let (sum, customer) = line.split_once(' ').ok_or("a line is a sum and a customer")?;
            self.0.insert(customer.into(), sum.parse().map_err(|_| "a sum is a number")?);
        }
        Ok(())
    }
}

/// A till: a node, its clone of the state, and a server in front of it.
struct Till {
    node: Node,
    server: Server,
}

async fn till(name: &str, group: &str, dir: &Path) -> Result<Till, Box<dyn Error>> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = listener.local_addr()?.to_string();
    let node =
        Node::builder().name(name).rendezvous(format!("file:{}", dir.display()).parse()?).start().await?;
    let replica = Arc::new(Replica::join(&node, group, Some(endpoint), Spent::default()).await?);
    let office = Leads::of(replica.membership());
    let server = serve(listener, move |request| sell(Arc::clone(&replica), request))
        .reads(["spent"])
        .office(office)
        .start();
    Ok(Till { node, server })
}

async fn sell(replica: Arc<Replica<Spent>>, request: Request) -> Result<Reply, Failure> {
    match request.method() {
        "sell" => {
            let (customer, money): (String, u64) = request.params()?;
            // Acknowledged means: every till of the array holds it.
            match replica.propose([&money.to_le_bytes(), customer.as_bytes()].concat()).await {
                Ok(sum) => Reply::of(&sum),
                // Nothing was sold, so somebody else may do it.
                Err(ProposeError::NotSent(_)) => Err(Failure::not_leader()),
                Err(error) => Err(Failure::new(error.to_string())),
            }
        }
        "spent" => {
            let (customer,): (String,) = request.params()?;
            Reply::of(&replica.read(|spent| spent.0.get(&customer).copied().unwrap_or(0)))
        }
        _ => Err(request.no_such_method()),
    }
}

const CONFIG: &str = r#"
[[service]]
name = "tills"
listen = "127.0.0.1:7700" # for `phalanx router`; a client of its own needs none
protocol = "frames"
key = "msgpack:/params/0"
read_methods = ["spent"]
reads = "leader" # so that everybody reads what they were told
pmap = { style = "slots", partitions = 16 }
racs = [{ name = "a", group = "tills-a" }, { name = "b", group = "tills-b" }]
"#;

async fn day(dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut tills = Vec::new();
    for (name, group) in
        [("north", "tills-a"), ("south", "tills-a"), ("east", "tills-b"), ("west", "tills-b")]
    {
        tills.push(till(name, group, dir).await?);
    }
    let surroundings = Surroundings { follows_groups: true, ..Surroundings::default() };
    let config = Config::parse(CONFIG, "tills.toml".as_ref(), surroundings)?;
    let client = Client::start(&config, "tills", Options::new())?;
    let observer =
        Node::builder().name("desk").core(false).rendezvous(format!("file:{}", dir.display()).parse()?);
    let observer = observer.start().await?;
    let fed = client.clone();
    let groups: Vec<String> = config.groups().into_iter().map(Into::into).collect();
    let desk = observer.clone();
    let feeding = tokio::spawn(async move {
        follow(&desk, groups, |group, clones| {
            let _known = fed.update_group(group, clones); // an older view than the last one changes nothing
        })
        .await
    });

    for round in 1..=20u64 {
        for customer in ["ann", "bob", "eve", "joe"] {
            let sum: u64 = client.call("sell", &(customer, 5)).await?;
            assert_eq!(sum, 5 * round, "each sale counts once");
        }
        // The first leaders go, one after the other, in the middle of the day.
        if round == 7 || round == 13 {
            let Till { node, server } = tills.remove(if round == 7 { 0 } else { 1 });
            println!("round {round}: a leader leaves");
            node.leave().await;
            server.shutdown(Duration::from_secs(1)).await;
        }
    }
    for customer in ["ann", "bob", "eve", "joe"] {
        println!("{customer} has spent {}", client.call::<u64>("spent", &(customer,)).await?);
    }
    for Till { node, server } in tills {
        node.leave().await;
        server.shutdown(Duration::from_secs(1)).await;
    }
    observer.leave().await;
    feeding.await??;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("phalanx-routed-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let outcome = tokio::time::timeout(Duration::from_secs(60), day(&dir)).await;
    std::fs::remove_dir_all(&dir)?;
    outcome??;
    println!("the day is over");
    Ok(())
}
