//! One connection of a server: requests in, answers out as they are there.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use router_proto::frames::{self, Complaint, FrameError, MAX_FRAME, RequestScanner, Stamp, Verdict};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, mpsc, watch},
};

use super::{
    message::{Failure, Kind, Reply, Request},
    server::{Handler, LeaderHint, Overload, Shared},
};

/// Answers that may wait for the writer.
const QUEUE: usize = 64;
/// Room for one read; answers up to so many bytes are written at once.
const READ: usize = 64 * 1024;
/// How long a connection of a server that ends has to be quiet before it is closed: requests may be on their way.
const QUIET: Duration = Duration::from_millis(100);
/// How long a peer that was sent away may go on sending, so that it can read why.
const LINGER: Duration = Duration::from_secs(1);

/// An answer, and the place that its request has until it is written.
struct Answer {
    bytes: Vec<u8>,
    _place: Option<OwnedSemaphorePermit>,
}

/// The peer is gone, or was sent away.
struct Gone;

pub(super) struct Connection<H> {
    shared: Arc<Shared<H>>,
    stopping: watch::Receiver<Option<Duration>>,
    answers: mpsc::Sender<Answer>,
    outbox: Option<mpsc::Receiver<Answer>>,
}

impl<H: Handler> Connection<H> {
    pub fn new(shared: Arc<Shared<H>>, stopping: watch::Receiver<Option<Duration>>) -> Self {
        let (answers, outbox) = mpsc::channel(QUEUE);
        Self { shared, stopping, answers, outbox: Some(outbox) }
    }

    /// Tells a peer that there are too many, if that can be said at once.
    pub fn turn_away(stream: &TcpStream) {
        let notice = told(None, Verdict::Busy, &"too many connections", &LeaderHint::default());
        let _ = stream.try_write(&notice);
    }

    pub async fn serve(mut self, stream: TcpStream) {
        let Ok(()) = stream.set_nodelay(true) else { return };
        let (mut input, output) = stream.into_split();
        let Some(outbox) = self.outbox.take() else { return };
        let writer = tokio::spawn(write(output, outbox, self.shared.stall));
        let sent_away = self.read(&mut input).await.is_err();
        // Answers that are still to come have senders of their own.
        drop(self.answers);
        if sent_away {
            let mut scratch = vec![0; 4096];
            let drained = async { while matches!(input.read(&mut scratch).await, Ok(1..)) {} };
            let _ = tokio::time::timeout(LINGER, drained).await;
        }
        let _ = writer.await;
    }

    /// Reads requests until the peer has no more, or the server ends. An error means that it was sent away.
    async fn read(&mut self, input: &mut OwnedReadHalf) -> Result<(), Gone> {
        let (mut buffer, mut scanner) = (Vec::new(), RequestScanner::default());
        loop {
            let mut done = 0;
            loop {
                match scanner.scan(&buffer[done..], MAX_FRAME, None) {
                    Ok(None) => break,
                    Ok(Some(request)) => {
                        let frame = &buffer[done..done + request.len];
                        done += request.len;
                        self.take(frame, &request).await?;
                    }
                    Err(error) => {
                        self.refuse(scanner.msgid(), error).await;
                        return Err(Gone);
                    }
                }
            }
            buffer.drain(..done);
            if buffer.is_empty() {
                buffer.shrink_to(READ);
            }
            buffer.reserve(READ);
            let is_stopping = self.is_stopping();
            let patience = match (is_stopping, buffer.is_empty()) {
                (true, true) => QUIET,
                (_, false) => self.shared.stall,
                (false, true) => Duration::MAX,
            };
            tokio::select! {
                read = tokio::time::timeout(patience, input.read_buf(&mut buffer)) => match read {
                    Ok(Ok(1..)) => {}
                    Ok(_) => return Ok(()),
                    Err(_) if !buffer.is_empty() => return Ok(()), // it hangs
                    // Each request that runs has a sender.
                    Err(_) if self.answers.strong_count() == 1 => return Ok(()),
                    Err(_) => {}
                },
                () = self.answers.closed() => return Ok(()),
                // The handle of the server may be gone.
                told = self.stopping.changed(), if !is_stopping => if told.is_err() { return Ok(()) },
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.borrow().is_some()
    }

    /// Takes one request: runs it, or says why not.
    async fn take(&self, frame: &[u8], request: &frames::Request) -> Result<(), Gone> {
        let (shared, msgid, received) = (&self.shared, request.msgid, Instant::now());
        let Ok(method) = str::from_utf8(&frame[request.method.clone()]) else {
            return self.say(msgid, Verdict::Refused, "the method is not UTF-8").await;
        };
        if self.is_stopping() {
            return self.say(msgid, Verdict::Stopping, "the server is about to end; nothing was done").await;
        }
        let is_update = !shared.reads.contains(method);
        let params = frame[request.params.clone()].to_vec();
        let (method, deadline, token, partition, epoch) = (method.to_owned(), None, None, None, None);
        let given = Request { method, params, deadline, is_update, token, partition, epoch };
        // The scanner has read it before.
        let stamp = Stamp::read(&frame[request.stamp.clone()]).unwrap_or_default();
        let given = given.stamped(&stamp, received);

        let place = match shared.overload {
            Overload::Refuse => Arc::clone(&shared.places).try_acquire_owned().ok(),
            Overload::Wait => {
                let place = Arc::clone(&shared.places).acquire_owned();
                match given.deadline {
                    None => place.await.ok(),
                    Some(deadline) => match tokio::time::timeout_at(deadline.into(), place).await {
                        Ok(place) => place.ok(),
                        Err(_) => {
                            let why = "the time for the request was over before it began; nothing was done";
                            return self.say(msgid, Verdict::Late, why).await;
                        }
                    },
                }
            }
        };
        let Some(place) = place else {
            let why = "as many requests as the server takes are under way; nothing was done";
            return self.say(msgid, Verdict::Busy, why).await;
        };
        let (shared, answers) = (Arc::clone(shared), self.answers.clone());
        tokio::spawn(async move {
            let bytes = shared.answer(msgid, given).await;
            let _ = answers.send(Answer { bytes, _place: Some(place) }).await; // the peer may have gone
        });
        Ok(())
    }

    async fn say(&self, msgid: u32, verdict: Verdict, why: &str) -> Result<(), Gone> {
        let bytes = told(Some(msgid), verdict, &why, &LeaderHint::default());
        self.answers.send(Answer { bytes, _place: None }).await.map_err(|_| Gone)
    }

    async fn refuse(&self, msgid: Option<u32>, error: FrameError) {
        let bytes = told(msgid, Verdict::Refused, &error, &LeaderHint::default());
        let _ = self.answers.send(Answer { bytes, _place: None }).await; // it may be gone already
    }
}

impl<H: Handler> Shared<H> {
    /// The whole answer to a request.
    async fn answer(&self, msgid: u32, mut request: Request) -> Vec<u8> {
        let is_update = request.is_update;
        if let (true, Some(office)) = (is_update, &self.office) {
            match office.token() {
                Some(token) => request.token = Some(token),
                None => return self.failure(msgid, Kind::NotLeader),
            }
        }
        match self.run(request).await {
            Some(Ok(Reply(result))) if result.len() < MAX_FRAME - 64 => {
                let mut bytes = Vec::with_capacity(result.len() + 16);
                frames::push_response(&mut bytes, msgid, &[&[NIL][..], &result].concat());
                bytes
            }
            Some(Ok(_)) => self.failure(msgid, Failure::new("the result has more than 16 MiB").0),
            Some(Err(Failure(kind))) => self.failure(msgid, kind),
            None if is_update => {
                let why = "outcome unknown: the server failed with this update under way";
                told(Some(msgid), Verdict::Unknown, &why, &LeaderHint::default())
            }
            None => self.failure(msgid, Failure::new("the server failed at this").0),
        }
    }

    /// Runs the handler. `None` if it panics, which has been printed.
    async fn run(&self, request: Request) -> Option<Result<Reply, Failure>> {
        let mut running = pin!(async { self.handler.call(request).await });
        std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(_) => std::task::Poll::Ready(None),
        })
        .await
    }

    fn failure(&self, msgid: u32, kind: Kind) -> Vec<u8> {
        match kind {
            Kind::Own(error) if error.len() < MAX_FRAME - 64 => {
                let mut bytes = Vec::with_capacity(error.len() + 16);
                frames::push_response(&mut bytes, msgid, &[&error[..], &[NIL]].concat());
                bytes
            }
            Kind::Own(_) => self.failure(msgid, Failure::new("the error has more than 16 MiB").0),
            Kind::Refused(text) => told(Some(msgid), Verdict::Refused, &text, &LeaderHint::default()),
            Kind::NotLeader => {
                let hint = self.office.as_ref().map(|office| office.hint()).unwrap_or_default();
                let text = "this server does not lead; nothing was done";
                told(Some(msgid), Verdict::NotLeader, &text, &hint)
            }
        }
    }
}

/// How nil is written.
const NIL: u8 = 0xc0;

/// What the server has to say about a request, or to whoever sent no request.
fn told(msgid: Option<u32>, verdict: Verdict, error: &dyn std::fmt::Display, hint: &LeaderHint) -> Vec<u8> {
    let leader = hint.leader.as_ref().map(|leader| leader as &dyn std::fmt::Display);
    let complaint = Complaint { verdict, error, service: None, partition: None, epoch: hint.epoch, leader };
    let mut bytes = Vec::new();
    match msgid {
        Some(msgid) => frames::push_complaint(&mut bytes, msgid, &complaint),
        None => frames::push_notice(&mut bytes, &complaint),
    }
    bytes
}

/// Writes answers as they come, as many as are there at once, until there can be no more of them or nobody reads them.
async fn write(mut output: OwnedWriteHalf, mut outbox: mpsc::Receiver<Answer>, stall: Duration) {
    while let Some(Answer { mut bytes, _place }) = outbox.recv().await {
        let mut places = vec![_place];
        while bytes.len() < READ
            && let Ok(Answer { bytes: more, _place }) = outbox.try_recv()
        {
            bytes.extend_from_slice(&more);
            places.push(_place);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match tokio::time::timeout(stall, output.write(rest)).await {
                Ok(Ok(len)) if len > 0 => rest = &rest[len..],
                _ => return,
            }
        }
    }
    let _ = output.shutdown().await;
}
