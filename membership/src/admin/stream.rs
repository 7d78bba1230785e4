//! `/v1/events`: what happens to the node, as server-sent events. Each has the JSON object of one event as its data.
//!
//! A client is told the current state first, then every change. What it does not take in time waits in its queue, and is
//! missing where that is full: then it is told how much (`missed`), and the then current state. Nobody else waits for it.

use std::{
    convert::Infallible,
    fmt::Write,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Response,
    body::{Body, Frame},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use prometheus_client::metrics::gauge::Gauge;
use pubsub::Topics;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::{AdminResponse, LIFE};
use crate::{
    event::{Events, What},
    node::{Shared, lock},
};

/// How many clients may follow the events at once, so that there is always room for other requests.
pub(crate) const STREAMS: usize = 32;
/// A stream on which nothing happened for so long says that it is still there.
const BEAT: Duration = Duration::from_secs(15);
/// Events that wait are sent together up to so many bytes, and one more.
const FRAME: usize = 16 * 1024;
/// Browsers that lost the stream come back after this many milliseconds.
const BEGIN: &str = "retry: 1000\n\n";

/// How long a connection lives: a while, and as much longer as somebody takes events on it.
#[derive(Clone)]
pub(crate) struct Life(Arc<Mutex<Instant>>);

impl Life {
    pub(super) fn begin() -> Self {
        Self(Arc::new(Mutex::new(Instant::now() + LIFE)))
    }

    fn goes_on(&self) {
        *lock(&self.0) = Instant::now() + LIFE;
    }

    pub(super) async fn over(&self) {
        loop {
            let until = *lock(&self.0);
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// The events, as they are taken.
pub(crate) struct Stream {
    events: Events,
    begun: bool,
    beat: Pin<Box<Sleep>>,
    life: Life,
    shared: Arc<Shared>,
    _open: Open,
}

/// Counts the stream as long as there is one.
struct Open {
    counted: Gauge,
    _place: OwnedSemaphorePermit,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counted.dec();
    }
}

/// A stream for one more client, if there is room.
pub(super) fn follow(shared: &Arc<Shared>, life: &Life) -> Result<Response<Stream>, AdminResponse> {
    let counts = &shared.metrics.count;
    let Ok(place) = Arc::clone(&shared.streams).try_acquire_owned() else {
        counts.streams_refused.inc();
        let why =
            format!("{STREAMS} clients follow the events of this node already: end one, or ask /v1/status");
        return Err(AdminResponse::error(503, why));
    };
    counts.streams.inc();
    let mut response = Response::new(Stream {
        events: shared.events(Topics::all()),
        begun: false,
        beat: Box::pin(sleep(BEAT)),
        life: life.clone(),
        shared: Arc::clone(shared),
        _open: Open { counted: counts.streams.clone(), _place: place },
    });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// All events that wait, up to a bound; whether there will be more.
fn waiting(events: &mut Events, text: &mut String, missed: impl Fn(u64), cx: &mut Context<'_>) -> bool {
    while text.len() < FRAME {
        match events.poll_next(cx) {
            Poll::Ready(Some(event)) => {
                if let What::Missed { count } = event.what {
                    missed(count);
                }
                if let Some(object) = event.to_json() {
                    write!(text, "data: {object}\n\n").expect("a String takes everything");
                }
            }
            Poll::Ready(None) => return false,
            Poll::Pending => return true,
        }
    }
    true
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    /// Called only once there is room for more.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let mut text = String::new();
        if !std::mem::replace(&mut this.begun, true) {
            text.push_str(BEGIN);
        }
        let missed = |count| {
            this.shared.metrics.count.events_missed.inc_by(count);
        };
        let more = waiting(&mut this.events, &mut text, missed, cx);
        if text.is_empty() {
            if !more {
                return Poll::Ready(None);
            }
            ready!(this.beat.as_mut().poll(cx));
            // A comment.
            text.push_str(":\n\n");
        }
        this.beat.as_mut().reset(Instant::now() + BEAT);
        this.life.goes_on();
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream},
        time::timeout,
    };

    use super::*;
    use crate::{
        Node,
        admin::{Places, converse},
    };

    /// A client that follows the events of a node, with so much room for what it does not take.
    async fn client(node: &Node, room: usize) -> BufReader<DuplexStream> {
        let (mut client, server) = tokio::io::duplex(room);
        let shared = Arc::clone(&node.inner.shared);
        let place = Places::new().take().await;
        tokio::spawn(async move { converse(server, &shared, [127, 0, 0, 1].into(), &place).await });
        client.write_all(b"GET /v1/events HTTP/1.0\r\n\r\n").await.expect("it reads");
        BufReader::new(client)
    }

    async fn alone() -> Node {
        let node = Node::builder().panic_hook(false).start().await.expect("starts");
        node.joined().await.expect("joins");
        node
    }

    /// The next line; `None` at the end.
    async fn line(client: &mut BufReader<DuplexStream>) -> Option<String> {
        let mut line = String::new();
        let read = client.read_line(&mut line);
        let read = timeout(Duration::from_secs(3600), read).await.expect("in time").expect("text");
        (read > 0).then(|| line.trim_end().to_owned())
    }

    async fn event(client: &mut BufReader<DuplexStream>) -> Option<Value> {
        loop {
            if let Some(data) = line(client).await?.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).expect("JSON"));
            }
        }
    }

    #[tokio::test]
    async fn who_is_too_slow_is_told_how_much_it_missed_and_then_how_things_stand() {
        const GROUPS: usize = 9_000;
        let node = alone().await;
        let mut slow = client(&node, 256).await;
        assert_eq!(event(&mut slow).await.expect("events")["event"], "started");
        let mut observers = Vec::new();
        for n in 0..GROUPS {
            observers.push(node.observe(&format!("g{n:05}")).await.expect("runs"));
        }
        let mut last = observers.last().expect("there are some").views();
        timeout(Duration::from_secs(60), last.next()).await.expect("in time").expect("runs");
        let missed = loop {
            let event = event(&mut slow).await.expect("events");
            if event["event"] == "missed" {
                break event["count"].as_u64().expect("a number");
            }
        };
        assert!(missed > 8192, "{missed}");
        assert_eq!(node.inner.shared.metrics.count.events_missed.get(), missed);
        assert_eq!(event(&mut slow).await.expect("events")["event"], "started");
        for n in 0..GROUPS {
            let view = loop {
                let event = event(&mut slow).await.expect("events");
                if event["event"] == "view" {
                    break event;
                }
            };
            assert_eq!(view["group"], format!("g{n:05}"), "the whole state, each group once");
        }
        drop(observers);
        node.leave().await;
    }

    #[tokio::test]
    async fn a_quiet_stream_says_that_it_is_there_for_as_long_as_it_is_taken() {
        let node = alone().await;
        let mut patient = client(&node, 1 << 16).await;
        while event(&mut patient).await.expect("events")["event"] != "cluster_view" {}
        // From here on time passes as soon as nothing else happens.
        tokio::time::pause();
        let begun = Instant::now();
        let mut beats = 0;
        while begun.elapsed() < 2 * LIFE {
            beats += usize::from(line(&mut patient).await.expect("it goes on") == ":");
        }
        assert!(beats as u32 >= 2 * LIFE.as_secs() as u32 / BEAT.as_secs() as u32 - 1, "{beats}");
        drop(patient);
        tokio::time::resume();
        node.leave().await;
    }

    #[tokio::test]
    async fn who_takes_nothing_for_too_long_makes_room_for_others() {
        let node = alone().await;
        // The limit is counted from the last event that is taken, at one of these moments or between them.
        let begun = Instant::now();
        let mut stuck = client(&node, 16).await;
        line(&mut stuck).await.expect("a head");
        let free = || node.inner.shared.streams.available_permits();
        assert_eq!((free(), node.inner.shared.metrics.count.streams.get()), (STREAMS - 1, 1));
        // More than the connection holds.
        let mut observers = Vec::new();
        for n in 0..500 {
            observers.push(node.observe(&format!("g{n}")).await.expect("runs"));
            observers[n].views().next().await.expect("runs");
        }
        tokio::time::pause();
        let filled = Instant::now();
        sleep_until(begun + LIFE - Duration::from_secs(1)).await;
        assert_eq!(free(), STREAMS - 1, "not too early");
        sleep_until(filled + LIFE + Duration::from_secs(1)).await;
        assert_eq!((free(), node.inner.shared.metrics.count.streams.get()), (STREAMS, 0));
        tokio::time::resume();
        drop(observers);
        node.leave().await;
    }
}
