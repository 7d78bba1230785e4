//! Clients that wait for the answers to what they sent before they send more, and believe none of them.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime,
    task::spawn_local,
    time::{sleep, timeout_at},
};

use super::speech::Protocol;
use crate::cli::{Failure, exit};

/// How long answers may take that are missing at the end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a client that was failed waits before it comes again.
const PAUSE: Duration = Duration::from_millis(10);
/// How many failures are told in words.
const WORDS: usize = 3;

/// Who asks whom.
pub(super) struct Load {
    pub(super) protocol: Protocol,
    /// Clients are spread over them.
    pub(super) targets: Vec<SocketAddr>,
    pub(super) clients: usize,
    /// How many requests each client sends at once.
    pub(super) in_flight: usize,
    /// How many keys there are: at least as many as requests can be under way, which all have another one.
    pub(super) keys: u32,
    pub(super) threads: usize,
    /// What comes before is not counted, except for failures.
    pub(super) begin: Instant,
    pub(super) end: Instant,
}

/// What clients have seen.
#[derive(Default)]
pub(super) struct Seen {
    /// How many right answers came between the beginning and the end.
    pub(super) answered: u64,
    /// How long answers took that came after the beginning.
    pub(super) times: Times,
    /// How many requests got no answer, or one that was not theirs.
    pub(super) errors: u64,
    /// The first few of them, in words.
    pub(super) why: Vec<String>,
}

impl Load {
    /// Asks until the end. Blocks.
    pub(super) fn run(self) -> Result<Seen, Failure> {
        let load = &Arc::new(self);
        thread::scope(|scope| {
            let threads = 0..load.threads.min(load.clients);
            let threads: Vec<_> = threads.map(|n| scope.spawn(move || load.share(n))).collect();
            let mut all = Seen::default();
            for thread in threads {
                let seen = thread.join().map_err(|_| Failure::new(exit::FAILED, "a client panicked"))??;
                all.answered += seen.answered;
                all.times.merge(&seen.times);
                all.errors += seen.errors;
                all.why.extend(seen.why);
            }
            all.why.truncate(WORDS);
            Ok(all)
        })
    }

    /// The clients of one thread.
    fn share(self: &Arc<Self>, number: usize) -> io::Result<Seen> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
        let seen = Rc::new(RefCell::new(Seen::default()));
        runtime.block_on(async {
            let clients = (number..self.clients).step_by(self.threads);
            let clients: Vec<_> = clients.map(|n| spawn_local(Client::new(self, n, &seen).run())).collect();
            for client in clients {
                client.await?;
            }
            io::Result::Ok(())
        })?;
        Ok(seen.take())
    }
}

struct Client {
    load: Arc<Load>,
    target: SocketAddr,
    /// The first of its keys, of which no other client has one, and the next one.
    first: u32,
    next: u32,
    /// The keys of requests that wait for their answers.
    under_way: VecDeque<u32>,
    seen: Rc<RefCell<Seen>>,
}

impl Client {
    fn new(load: &Arc<Load>, number: usize, seen: &Rc<RefCell<Seen>>) -> Self {
        let first = number as u32;
        Self {
            load: Arc::clone(load),
            target: load.targets[number % load.targets.len()],
            first,
            next: first,
            under_way: VecDeque::new(),
            seen: Rc::clone(seen),
        }
    }

    async fn run(mut self) {
        let limit = (self.load.end + PATIENCE).into();
        while Instant::now() < self.load.end {
            let why = match timeout_at(limit, self.ask()).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("no answer within {PATIENCE:?} after the end"),
            };
            self.fail(why);
            sleep(PAUSE).await;
        }
    }

    /// None of the requests under way gets its answer any more, or the one that could not even be sent.
    fn fail(&mut self, why: String) {
        let mut seen = self.seen.borrow_mut();
        seen.errors += self.under_way.len().max(1) as u64;
        if seen.why.len() < WORDS {
            seen.why.push(why);
        }
        self.under_way.clear();
    }

    /// Asks over one connection until the end.
    async fn ask(&mut self) -> Result<()> {
        let speech = self.load.protocol.speech();
        let mut stream = TcpStream::connect(self.target).await?;
        stream.set_nodelay(true)?;
        let (mut said, mut heard) = (Vec::new(), Vec::new());
        loop {
            let sent = Instant::now();
            if sent >= self.load.end {
                return Ok(());
            }
            for _ in 0..self.load.in_flight {
                let key = self.next_key();
                speech.ask(key, &mut said)?;
                self.under_way.push_back(key);
            }
            stream.write_all(&said).await?;
            said.clear();
            while !self.under_way.is_empty() {
                heard.reserve(super::ROOM);
                ensure!(stream.read_buf(&mut heard).await? > 0, "the connection was closed");
                let now = Instant::now();
                let mut done = 0;
                while let Some((length, key)) = speech.read(&heard[done..])? {
                    done += length;
                    self.take(key)?;
                    self.count(sent, now);
                }
                heard.drain(..done);
            }
        }
    }

    fn next_key(&mut self) -> u32 {
        let key = self.next;
        self.next += self.load.clients as u32;
        if self.next >= self.load.keys {
            self.next = self.first;
        }
        key
    }

    /// Takes the answer to a request.
    fn take(&mut self, key: u32) -> Result<()> {
        match self.under_way.iter().position(|asked| *asked == key) {
            Some(at) if at == 0 || !self.load.protocol.is_ordered() => self.under_way.remove(at),
            _ => bail!("the answer to key-{key} where the next keys are {:?}", self.under_way),
        };
        Ok(())
    }

    fn count(&self, sent: Instant, now: Instant) {
        if now >= self.load.begin {
            let mut seen = self.seen.borrow_mut();
            seen.answered += u64::from(now < self.load.end);
            seen.times.add((now - sent).as_nanos() as u64);
        }
    }
}

/// How often something took how long, to less than 1 %.
#[derive(Default)]
pub(super) struct Times {
    /// The first 256 are nanoseconds; then 128 for each doubling.
    counts: Vec<u64>,
    /// In nanoseconds, exactly.
    longest: u64,
}

impl Times {
    fn add(&mut self, ns: u64) {
        let doublings = ns.checked_ilog2().unwrap_or(0).saturating_sub(7);
        let at = ((doublings << 7) as u64 + (ns >> doublings)) as usize;
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += 1;
        self.longest = self.longest.max(ns);
    }

    fn merge(&mut self, other: &Self) {
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.longest = self.longest.max(other.longest);
    }

    /// What this share of the times did not exceed, in microseconds; 0 if there are none.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let wanted = share * self.counts.iter().sum::<u64>() as f64;
        let mut below = 0;
        let at = self.counts.iter().position(|count| {
            below += count;
            *count > 0 && below as f64 >= wanted
        });
        let at = at.unwrap_or(0) as u64;
        let doublings = (at >> 7).saturating_sub(1);
        ((at - (doublings << 7)) << doublings) as f64 / 1e3
    }

    /// In microseconds.
    pub(super) fn longest(&self) -> f64 {
        self.longest as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    use super::*;

    /// Asks a server that makes something else of its answers.
    fn ask(protocol: Protocol, in_flight: usize, spoil: fn(Vec<Vec<u8>>) -> Vec<u8>) -> Seen {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = listener.local_addr().expect("bound");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a client");
                thread::spawn(move || {
                    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
                    let mut answers = Vec::new();
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        heard.extend_from_slice(&buffer[..length]);
                        let mut answer = Vec::new();
                        while let Some(done) = protocol.speech().answer(&heard, &mut answer).expect("asked") {
                            heard.drain(..done);
                            answers.push(std::mem::take(&mut answer));
                        }
                        if answers.len() >= in_flight {
                            let all = spoil(std::mem::take(&mut answers));
                            // It may have seen enough.
                            let _gone = stream.write_all(&all);
                        }
                    }
                });
            }
        });
        let begin = Instant::now();
        let end = begin + Duration::from_millis(200);
        let (targets, clients, keys, threads) = (vec![target], 4, 100, 2);
        Load { protocol, targets, clients, in_flight, keys, threads, begin, end }.run().expect("it ends")
    }

    #[test]
    fn answers_that_are_right_are_counted() {
        for protocol in [Protocol::Http, Protocol::Redis, Protocol::Memcached, Protocol::Frames] {
            let seen = ask(protocol, 3, |answers| answers.concat());
            assert!(seen.answered > 0 && seen.errors == 0, "{protocol:?}: {:?}", seen.why);
            let (p50, longest) = (seen.times.quantile(0.5), seen.times.longest());
            assert!(p50 > 0.0 && p50 <= longest, "{p50} {longest}");
        }
    }

    #[test]
    fn answers_to_others_are_errors_and_the_order_counts_where_there_is_one() {
        let turned = |mut answers: Vec<Vec<u8>>| {
            answers.reverse();
            answers.concat()
        };
        for protocol in [Protocol::Http, Protocol::Redis, Protocol::Memcached] {
            let seen = ask(protocol, 2, turned);
            assert!(seen.answered == 0 && seen.errors > 0, "{protocol:?}: {}", seen.answered);
            assert!(seen.why[0].contains("the answer to key-"), "{:?}", seen.why);
        }
        let seen = ask(Protocol::Frames, 2, turned);
        assert!(seen.answered > 0 && seen.errors == 0, "{:?}", seen.why);
        let seen = ask(Protocol::Frames, 1, |_| {
            let mut answer = Vec::new();
            let mut other = Vec::new();
            Protocol::Frames.speech().ask(99_999, &mut other).expect("memory takes it");
            Protocol::Frames.speech().answer(&other, &mut answer).expect("a request");
            answer
        });
        assert!(seen.answered == 0 && seen.errors > 0);
    }

    #[test]
    fn answers_twice_or_never_are_errors() {
        let seen = ask(Protocol::Redis, 2, |answers| [answers.concat(), answers.concat()].concat());
        assert!(seen.errors > 0);
        let seen = ask(Protocol::Redis, 2, |answers| answers[0].clone());
        assert_eq!((seen.answered, seen.errors), (4, 4), "one of two of each client: {:?}", seen.why);
        assert!(seen.why[0].contains("no answer"), "{:?}", seen.why);
    }

    #[test]
    fn times_are_told_to_a_percent() {
        let mut times = Times::default();
        assert_eq!((times.quantile(0.5), times.longest()), (0.0, 0.0));
        for ns in [0, 1, 127, 128, 255, 256, 257, 1_000, 999_999, 123_456_789, u64::MAX] {
            let mut one = Times::default();
            one.add(ns);
            let told = one.quantile(0.99) * 1e3;
            assert!(told <= ns as f64 && told >= ns as f64 * 0.992, "{ns}: {told}");
            times.merge(&one);
        }
        assert_eq!(times.counts.iter().sum::<u64>(), 11);
        assert_eq!(times.longest, u64::MAX);
        let mut times = Times::default();
        (1..=100).for_each(|us| times.add(us * 1000));
        assert!(
            (49.5..=50.0).contains(&times.quantile(0.5)) && (98.0..=99.0).contains(&times.quantile(0.99))
        );
    }
}
