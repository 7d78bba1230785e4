//! Servers and clients of the library, through a running router and without one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{PATIENCE, Router, eventually, grouped, service, view};
use router::{
    Config, Limits, Options, Surroundings,
    rpc::{CallError, Client, Failure, LeaderHint, Office, Overload, Reply, Request, Server, serve},
};

const READS: &str = "key = \"msgpack:/params/0\"\nread_methods = [\"get\", \"endless-get\"]\nstamp = true";

/// What all clones of a test have been told to do, each update with its nonce: the oracle.
#[derive(Default)]
struct Journal {
    updates: Mutex<HashMap<u64, usize>>,
    reads: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
}

/// Leads or not, as it is told.
#[derive(Clone, Default)]
struct Chair {
    leads: Arc<AtomicBool>,
    leader: Arc<Mutex<Option<SocketAddr>>>,
}

impl Office for Chair {
    fn token(&self) -> Option<u64> {
        self.leads.load(Ordering::SeqCst).then_some(7)
    }

    fn hint(&self) -> LeaderHint {
        let leader = self.leader.lock().unwrap().map(|leader| leader.to_string());
        LeaderHint { epoch: Some(9), leader }
    }
}

/// A server that is a process of its own, as far as its clients can tell: it has its own runtime, and can be killed.
struct Clone {
    addr: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
    server: Option<Server>,
}

impl Clone {
    fn start(
        name: &'static str,
        journal: &Arc<Journal>,
        adjust: impl FnOnce(
            router::rpc::Serve<Box<dyn Fn(Request) -> Answer + Send + Sync>>,
        ) -> router::rpc::Serve<Box<dyn Fn(Request) -> Answer + Send + Sync>>,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let journal = Arc::clone(journal);
        let handler: Box<dyn Fn(Request) -> Answer + Send + Sync> =
            Box::new(move |request| Box::pin(handle(name, Arc::clone(&journal), request)));
        let (addr, server) = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            (addr, adjust(serve(listener, handler).reads(["get", "endless-get"])).start())
        });
        Self { addr, runtime: Some(runtime), server: Some(server) }
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        self.kill();
    }
}

type Answer = std::pin::Pin<Box<dyn Future<Output = Result<Reply, Failure>> + Send>>;

/// `put(key, nonce)`, `get(key, nonce)`: both answer who it was, and the nonce.
async fn handle(name: &'static str, journal: Arc<Journal>, request: Request) -> Result<Reply, Failure> {
    let running = journal.running.fetch_add(1, Ordering::SeqCst) + 1;
    journal.most.fetch_max(running, Ordering::SeqCst);
    let answer = async {
        let (key, nonce): (String, u64) = request.params()?;
        match request.method() {
            "put" => {
                *journal.updates.lock().unwrap().entry(nonce).or_default() += 1;
                // Some time in which the server may die.
                tokio::time::sleep(Duration::from_micros(nonce % 900)).await;
            }
            "get" => {
                journal.reads.fetch_add(1, Ordering::SeqCst);
            }
            "slow-put" => tokio::time::sleep(Duration::from_millis(600)).await,
            "endless-get" | "endless-put" => std::future::pending().await,
            "token" => return Reply::of(&request.token()),
            "left" => {
                let left = request.deadline().map(|deadline| deadline - Instant::now());
                return Reply::of(&(left.map(|left| left.as_millis() as u64), request.partition()));
            }
            "fail" => return Err(Failure::new("no such item")),
            "lost" => return Err(Failure::not_leader()),
            "panic" => panic!("as it was told to"),
            _ => return Err(request.no_such_method()),
        }
        Reply::of(&(name, key, nonce))
    };
    let answer = answer.await;
    journal.running.fetch_sub(1, Ordering::SeqCst);
    answer
}

fn plain<H>(serve: router::rpc::Serve<H>) -> router::rpc::Serve<H> {
    serve
}

fn config(text: &str) -> Config {
    let surroundings = Surroundings { follows_groups: true, ..Surroundings::default() };
    Config::parse(text, "t".as_ref(), surroundings).unwrap()
}

fn client(text: &str) -> Client {
    Client::start(&config(text), "s", Options::new()).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("in time") })
}

type Told = (String, String, u64);

/// A client whose server is the router: what it says goes through one more hop, by the same rules.
fn through(router: &Router) -> Client {
    let text = service("frames", READS, &[&[router.addr()]]);
    client(&text)
}

#[test]
fn requests_are_answered_through_a_router_and_without_one() {
    let journal = Arc::new(Journal::default());
    let (a, b) = (Clone::start("a", &journal, plain), Clone::start("b", &journal, plain));
    let text = service("frames", READS, &[&[a.addr], &[b.addr]]);
    let router = Router::start(&text);
    block_on(async {
        let mut placed = HashSet::new();
        for n in 0..100 {
            let key = format!("k{n}");
            let direct: Told = client(&text).call("put", &(&key, 2 * n)).await.unwrap();
            let routed: Told = through(&router).call("put", &(&key, 2 * n + 1)).await.unwrap();
            assert_eq!((&direct.1, direct.2, &routed.1, routed.2), (&key, 2 * n, &key, 2 * n + 1));
            assert_eq!(direct.0, routed.0, "the same key, the same server");
            placed.insert(direct.0);
        }
        assert_eq!(placed.len(), 2);
    });
    assert_eq!(journal.updates.lock().unwrap().values().filter(|times| **times == 1).count(), 200);
}

#[test]
fn errors_say_what_happened() {
    let journal = Arc::new(Journal::default());
    let a = Clone::start("a", &journal, plain);
    let text = service("frames", READS, &[&[a.addr]]);
    let router = Router::start(&text);
    for client in [client(&text), through(&router)] {
        block_on(async {
            let fail = client.call::<Told>("fail", &("k", 1)).await.unwrap_err();
            assert!(
                matches!(&fail, CallError::Failed(error) if error.read::<String>().unwrap() == "no such item")
            );
            assert_eq!(fail.to_string(), "no such item");
            let refused = |result: Result<Told, CallError>, why: &str| match result {
                Err(CallError::Refused(text)) => assert!(text.contains(why), "{text}"),
                other => panic!("{other:?}"),
            };
            refused(client.call("fly", &("k", 1)).await, "there is no method \"fly\"");
            refused(client.call("put", &("k", "one")).await, "the params of put: ");
            refused(client.call("put", &(1.5, 1)).await, "the key is not a text, bytes or an integer");
            refused(client.call("put", &"k").await, "the params are not an array");
            refused(client.call("put", &("k", vec![u64::MAX; 2 << 20])).await, "16 MiB");
            assert!(matches!(client.call::<u64>("get", &("k", 1)).await, Err(CallError::Result(_))));
            assert!(matches!(client.call::<Told>("panic", &("k", 1)).await, Err(CallError::Unknown(_))));
            let alive: Told = client.call("get", &("k", 2)).await.unwrap();
            assert_eq!(alive.2, 2);
        });
    }
    let unknown = Client::start(&config(&text), "t", Options::new()).err().unwrap();
    assert_eq!(unknown.to_string(), "there is no service \"t\" in the configuration: there are s");
}

#[test]
fn deadlines_reach_the_handler_and_are_kept() {
    let journal = Arc::new(Journal::default());
    let a = Clone::start("a", &journal, plain);
    let text = service("frames", READS, &[&[a.addr]]);
    let router = Router::start(&text);
    for client in [client(&text), through(&router)] {
        block_on(async {
            let (left, partition): (Option<u64>, Option<String>) =
                client.request("left", &("abc", 1)).within(Duration::from_secs(5)).send().await.unwrap();
            assert!((1000..=5000).contains(&left.unwrap()), "{left:?}");
            assert_eq!(partition.as_deref(), Some("7"));
            let none: (Option<u64>, Option<String>) = client.call("left", &("abc", 1)).await.unwrap();
            assert_eq!(none.0, None);
            // Long enough that both are on their way by then.
            let within = Duration::from_millis(800);
            let ask = async |method| {
                let start = Instant::now();
                let outcome = client.request::<Told>(method, &("k", 1)).within(within).send().await;
                assert!((800..5000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
                outcome
            };
            let (get, put) = tokio::join!(ask("endless-get"), ask("endless-put"));
            assert!(matches!(get, Err(CallError::Late)), "{get:?}");
            assert!(matches!(put, Err(CallError::Unknown(_))), "{put:?}");
        });
    }
}

#[test]
fn more_than_a_server_takes_is_refused_or_waits() {
    for overload in [Overload::Refuse, Overload::Wait] {
        let journal = Arc::new(Journal::default());
        let a = Clone::start("a", &journal, |serve| serve.at_once(4).overload(overload));
        let client = client(&service("frames", READS, &[&[a.addr]]));
        let outcomes: Vec<Result<Told, CallError>> = block_on(async {
            let calls: Vec<_> = (0..12u64)
                .map(|n| {
                    let client = client.clone();
                    tokio::spawn(async move { client.call("slow-put", &("k", n)).await })
                })
                .collect();
            let mut outcomes = vec![];
            for call in calls {
                outcomes.push(call.await.unwrap());
            }
            outcomes
        });
        assert_eq!(journal.most.load(Ordering::SeqCst), 4);
        let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let busy = |outcome: &&Result<Told, CallError>| matches!(outcome, Err(CallError::Unavailable(why)) if why.contains("nothing was done"));
        match overload {
            Overload::Refuse => {
                assert_eq!((done, outcomes.iter().filter(busy).count()), (4, 8), "{outcomes:?}");
            }
            Overload::Wait => assert_eq!(done, 12, "{outcomes:?}"),
        }
    }
}

#[test]
fn only_who_leads_takes_updates_and_a_request_finds_who_does() {
    let journal = Arc::new(Journal::default());
    let chairs = [Chair::default(), Chair::default()];
    let (chair, other) = (chairs[0].clone(), chairs[1].clone());
    let a = Clone::start("a", &journal, |serve| serve.office(chair));
    let b = Clone::start("b", &journal, |serve| serve.office(other));
    let text = grouped("frames", READS);
    let (client, router) = (client(&text), Router::start(&text));
    let routed = through(&router);
    // The views say that a leads, for ever.
    let said = view(7, Some(0), &[a.addr, b.addr]);
    client.update_group("g", &said).unwrap();
    router.handle.update_group("g", &said).unwrap();
    for (round, leads) in [0, 1, 0, 1].into_iter().enumerate() {
        for (at, chair) in chairs.iter().enumerate() {
            chair.leads.store(at == leads, Ordering::SeqCst);
            *chair.leader.lock().unwrap() = Some([a.addr, b.addr][leads]);
        }
        for client in [&client, &routed] {
            let told: Told = block_on(client.call("put", &("k", 1))).unwrap();
            assert_eq!(told.0, ["a", "b"][leads], "round {round}");
            assert_eq!(block_on(client.call::<Option<u64>>("token", &("k", 1))).unwrap(), Some(7));
        }
    }
    // Nobody leads: updates wait, reads do not.
    chairs.iter().for_each(|chair| chair.leads.store(false, Ordering::SeqCst));
    let took = block_on(async {
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.call::<Told>("put", &("k", 99)).await }
        });
        client.call::<Told>("get", &("k", 1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(!waiting.is_finished());
        chairs[0].leads.store(true, Ordering::SeqCst);
        waiting.await.unwrap().unwrap()
    });
    assert_eq!((took.0.as_str(), journal.updates.lock().unwrap()[&99]), ("a", 1));
    // A handler that notices by itself is believed, too; but not for ever.
    let limits = Limits::default();
    assert!(limits.wait > Duration::from_secs(1), "or the next line takes no time");
    let lost = block_on(client.request::<Told>("lost", &("k", 1)).within(Duration::from_millis(200)).send());
    // Unknown if its time is over at a moment when it is on its way once more.
    assert!(matches!(lost, Err(CallError::Late | CallError::Unknown(_))), "{lost:?}");
}

#[test]
fn a_server_that_ends_in_order_leaves_no_request_without_answer() {
    let journal = Arc::new(Journal::default());
    let mut clones: Vec<Clone> = (0..2).map(|_| Clone::start("x", &journal, plain)).collect();
    let text = grouped("frames", READS);
    let router = Router::start(&text);
    let addrs = [clones[0].addr, clones[1].addr];
    router.handle.update_group("g", &view(1, Some(0), &addrs)).unwrap();
    let client = through(&router);
    let stop = Arc::new(AtomicBool::new(false));
    let nonces = Arc::new(AtomicU64::new(0));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop, nonces) = (client.clone(), stop.clone(), nonces.clone());
            thread::spawn(move || {
                block_on(async {
                    while !stop.load(Ordering::SeqCst) {
                        let nonce = nonces.fetch_add(1, Ordering::SeqCst);
                        let method = if nonce % 2 == 0 { "put" } else { "get" };
                        let told: Told = client.call(method, &("k", nonce)).await.unwrap();
                        assert_eq!(told.2, nonce);
                    }
                })
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(100));
    // It steps down first, as members of groups do.
    router.handle.update_group("g", &view(2, Some(0), &[addrs[1]])).unwrap();
    let old = &mut clones[0];
    let server = old.server.take().unwrap();
    let start = Instant::now();
    old.runtime.as_ref().unwrap().block_on(server.shutdown(PATIENCE));
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::SeqCst);
    load.into_iter().for_each(|one| one.join().unwrap());
    assert!(journal.updates.lock().unwrap().values().all(|times| *times == 1));
}

/// The nonce oracle: while servers are killed under load, no answer is another request's, no update runs twice, and none of which the
/// client was told that nothing was done has run.
#[test]
fn answers_never_cross_and_updates_never_run_twice_while_servers_die() {
    let journal = Arc::new(Journal::default());
    let text = grouped("frames", READS);
    let router = Router::with(&text, 2, |_| {});
    let direct = client(&text);
    let routed = through(&router);
    let feed = |epoch, addrs: &[SocketAddr]| {
        let view = view(epoch, Some(0), addrs);
        router.handle.update_group("g", &view).unwrap();
        direct.update_group("g", &view).unwrap();
    };
    let mut clones: Vec<Clone> = (0..3).map(|_| Clone::start("x", &journal, plain)).collect();
    feed(1, &clones.iter().map(|clone| clone.addr).collect::<Vec<_>>());

    let stop = Arc::new(AtomicBool::new(false));
    let nonces = Arc::new(AtomicU64::new(0));
    let tally: Arc<Mutex<HashMap<u64, &'static str>>> = Arc::default();
    let load: Vec<_> = [&direct, &routed, &routed]
        .into_iter()
        .map(|client| {
            let (client, stop, nonces, tally) = (client.clone(), stop.clone(), nonces.clone(), tally.clone());
            thread::spawn(move || {
                block_on(async {
                    let mut tasks = vec![];
                    for _ in 0..16 {
                        let (client, stop, nonces, tally) =
                            (client.clone(), stop.clone(), nonces.clone(), tally.clone());
                        tasks.push(tokio::spawn(async move {
                            while !stop.load(Ordering::SeqCst) {
                                let nonce = nonces.fetch_add(1, Ordering::SeqCst);
                                let key = format!("k{}", nonce % 97);
                                let update = nonce % 3 == 0;
                                let method = if update { "put" } else { "get" };
                                let outcome = match client.call::<Told>(method, &(&key, nonce)).await {
                                    Ok(told) => {
                                        assert_eq!((told.1, told.2), (key, nonce), "crossed");
                                        "done"
                                    }
                                    Err(CallError::Unknown(_)) if update => "unknown",
                                    Err(CallError::Unavailable(_)) => "nothing",
                                    Err(other) => panic!("{other:?}"),
                                };
                                if update {
                                    tally.lock().unwrap().insert(nonce, outcome);
                                }
                            }
                        }));
                    }
                    for task in tasks {
                        task.await.unwrap();
                    }
                })
            })
        })
        .collect();
    for kill in 0..6 {
        let before = nonces.load(Ordering::SeqCst);
        eventually("load goes on", || nonces.load(Ordering::SeqCst) > before + 300);
        clones[0].kill();
        thread::sleep(Duration::from_millis(10));
        clones.remove(0);
        clones.push(Clone::start("x", &journal, plain));
        feed(2 + kill, &clones.iter().map(|clone| clone.addr).collect::<Vec<_>>());
    }
    stop.store(true, Ordering::SeqCst);
    load.into_iter().for_each(|one| one.join().unwrap());
    let (updates, tally) = (journal.updates.lock().unwrap(), tally.lock().unwrap());
    for (nonce, outcome) in &*tally {
        let ran = updates.get(nonce).copied().unwrap_or(0);
        let allowed = match *outcome {
            "done" => ran == 1,
            "nothing" => ran == 0,
            _ => ran <= 1,
        };
        assert!(allowed, "{nonce} was told {outcome}, and ran {ran} times");
    }
    let of = |wanted| tally.values().filter(|outcome| **outcome == wanted).count();
    println!("{} done, {} unknown, {} nothing", of("done"), of("unknown"), of("nothing"));
    assert!(of("done") > 300 && of("unknown") > 0, "{} done, {} unknown", of("done"), of("unknown"));
}
