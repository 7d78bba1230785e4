//! The way to the witness: questions are asked on a thread of its own, since disks and networks hang; few wait, the others are
//! asked again by the machine.

use std::{
    io,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use membership_proto::witness::{Answer, Epoch, Question};
use tokio::{task::yield_now, time::timeout};

use super::{MAX_RECORD, Witness, Words, memory::Store, read_answer};
use crate::{
    clock,
    metrics::Counts,
    node::lock,
    rendezvous::{self, Lookup, ask::Far},
    secret::Wallet,
    wire::shown,
};

/// So many questions wait. A core member asks every lease or so; what does not fit is asked again.
const QUESTIONS: usize = 8;
/// How long a registry may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How the witness stands, as this node found it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reached {
    /// The epoch that it told last.
    pub(crate) epoch: Option<Epoch>,
    /// When it answered last, `CLOCK_BOOTTIME` in nanoseconds.
    pub(crate) answered_ns: Option<u64>,
    /// Why it did not answer, if it was asked since.
    pub(crate) problem: Option<String>,
}

/// The way to the witness.
pub(crate) struct Asker {
    questions: SyncSender<Question>,
}

impl Asker {
    /// Starts the thread that asks.
    pub(crate) fn start(
        at: &Witness,
        wallet: &Wallet,
        cluster: &str,
        standing: Arc<Mutex<Reached>>,
        counts: Counts,
        mut told: impl FnMut(Answer) + Send + 'static,
    ) -> io::Result<Self> {
        let (questions, asked) = sync_channel(QUESTIONS);
        let url = at.to_string();
        let mut line = Line::open(at, wallet, cluster)?;
        thread::Builder::new().name("phalanx-witness".into()).spawn(move || {
            run(&asked, &url, &standing, &counts, &mut |question| line.ask(question), &mut told);
        })?;
        Ok(Self { questions })
    }

    /// Asks, unless too much waits already.
    pub(crate) fn ask(&self, question: Question) {
        if self.questions.try_send(question).is_err() {
            tracing::debug!("the witness does not keep up: a question is left to be asked again");
        }
    }
}

fn run(
    asked: &Receiver<Question>,
    url: &str,
    standing: &Mutex<Reached>,
    counts: &Counts,
    ask: &mut dyn FnMut(&Question) -> io::Result<Answer>,
    told: &mut dyn FnMut(Answer),
) {
    while let Ok(question) = asked.recv() {
        match ask(&question) {
            Ok(answer) => {
                counts.witness_answers.inc();
                counts.witness_reached.set(1);
                let now =
                    Reached { epoch: Some(answer.epoch), answered_ns: Some(clock::now_ns()), problem: None };
                let before = std::mem::replace(&mut *lock(standing), now);
                if before.epoch != Some(answer.epoch) || before.problem.is_some() {
                    tracing::info!(witness = url, epoch = %answer.epoch, "the witness answers");
                }
                if let Some((_, half)) = &question.claim {
                    let given = answer.record.as_ref() == Some(half);
                    tracing::warn!(
                        witness = url,
                        given,
                        "half of the core asked the witness whether it may go on"
                    );
                }
                told(answer);
            }
            Err(error) => {
                counts.witness_failures.inc();
                counts.witness_reached.set(0);
                let problem = shown(&error.to_string());
                let mut standing = lock(standing);
                if standing.problem.as_ref() != Some(&problem) {
                    tracing::warn!(
                        witness = url,
                        problem,
                        "the witness does not answer: half of the core cannot go on alone"
                    );
                }
                standing.problem = Some(problem);
            }
        }
    }
}

enum Line {
    File(Store),
    Http { far: Far, lookup: Lookup, runtime: tokio::runtime::Runtime },
}

impl Line {
    fn open(at: &Witness, wallet: &Wallet, cluster: &str) -> io::Result<Self> {
        Ok(match at {
            Witness::File(dir) => Self::File(Store::new(dir.join(cluster).join("witness"))),
            Witness::Http(registry) => Self::Http {
                far: Far::new(registry, wallet, cluster, MAX_RECORD),
                lookup: Lookup::default(),
                runtime: tokio::runtime::Builder::new_current_thread()
                    .enable_io()
                    .enable_time()
                    .max_blocking_threads(1)
                    .build()?,
            },
        })
    }

    fn ask(&mut self, question: &Question) -> io::Result<Answer> {
        match self {
            Self::File(store) => store.answer(question),
            Self::Http { far, lookup, runtime } => {
                // A timer can be made only inside.
                let asked = async {
                    let outcome = timeout(PATIENCE, over_http(far, lookup, question)).await;
                    // All stands still until the next question: so that the connection is closed now.
                    yield_now().await;
                    outcome
                };
                let outcome = runtime.block_on(asked);
                outcome.map_err(|_| io::Error::other(format!("no answer in {PATIENCE:?}")))?
            }
        }
    }
}

async fn over_http(far: &Far, lookup: &mut Lookup, question: &Question) -> io::Result<Answer> {
    let Question { lineage, core, claim } = question;
    let (method, body) = match claim {
        None => ("GET", Vec::new()),
        Some((epoch, half)) => {
            let words = Words::of(*epoch, Some(half));
            ("PUT", serde_json::to_vec(&words).expect("plain"))
        }
    };
    let path = format!("/witness/{lineage}/{}", core.get());
    let asked = rendezvous::Question { method, path: &path, body: &body, ..Default::default() };
    let answer = far.open(far.reach(lookup).await?).await?.ask(asked).await?;
    if answer.status != 200 {
        return Err(answer.error());
    }
    read_answer(question, &answer.body).ok_or_else(|| io::Error::other("that is no answer of a witness"))
}
