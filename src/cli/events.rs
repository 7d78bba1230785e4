//! How events are printed: one JSON object a line, or a line for people. Each is written as soon as its reader takes it.

use std::{
    fmt,
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use membership::{Event, GroupName, Message, Standing, What, clock::now_ns};
use serde_json::{Value, json};

use super::output;

/// The event as the JSON object that the documentation describes; `None` for what commands do not print.
pub(crate) fn to_json(event: &Event) -> Option<Value> {
    // Of the cluster's views, operators ask the admin API.
    if matches!(event.what, What::ClusterView(_)) { None } else { event.to_json() }
}

/// The event as a line for people.
fn to_text(event: &Event, object: &Value) -> String {
    let name = &event.name;
    let group = event.group.as_ref().map_or(String::new(), |g| format!(" of {g}"));
    match &event.what {
        What::Started { listen, .. } => format!("{name} ({}) listens on {listen}", event.node),
        What::View(view) => {
            let members: Vec<&str> = view.members.iter().map(|m| &*m.name).collect();
            format!(
                "view {}{group}: {}",
                view.id,
                if members.is_empty() { "nobody".into() } else { members.join(", ") }
            )
        }
        What::Leading { token, .. } => format!("{name} leads{group}, token {token}"),
        What::NotLeading { why, token, .. } => {
            format!("{name} does not lead{group} any more (token {token}): {}", why.as_str())
        }
        What::Dissolved { into, lost } if !lost.is_empty() => {
            let lost: Vec<&str> = lost.iter().map(GroupName::as_str).collect();
            format!(
                "{name} dissolved into lineage {into}: what these groups acknowledged before is lost: {}",
                lost.join(", ")
            )
        }
        What::Missed { count } => {
            format!("{name}: {count} events are missing here: they were not read in time")
        }
        What::State { standing: Standing::Kept { here, of, .. } } => {
            format!("{name}: the state{group} is here, and {here} of {of} data directories")
        }
        What::State { .. } => {
            let standing = object["standing"].as_str().unwrap_or_default();
            format!("{name}: the state{group}: {standing} {}", object["why"].as_str().unwrap_or_default())
        }
        _ => {
            let word = object["event"].as_str().unwrap_or_default();
            let why = object["why"].as_str().or(object["into"].as_str()).unwrap_or_default();
            format!("{name} {word} {why}").trim_end().to_string()
        }
    }
}

/// The line for an event, if commands print it.
pub(crate) fn line_of(event: &Event, json: bool) -> Option<String> {
    let object = to_json(event)?;
    Some(if json { object.to_string() } else { to_text(event, &object) })
}

/// The line for a message of a group, now.
pub(crate) fn line_of_message(
    me: &str,
    group: Option<&GroupName>,
    from: &str,
    message: &Message,
    json: bool,
) -> String {
    let text = String::from_utf8_lossy(&message.payload);
    let class = message.class.as_str();
    if !json {
        let seq = message.seq.map_or(String::new(), |seq| format!(" {seq}"));
        return format!("{class}{seq} from {from}: {text}");
    }
    let object = json!({
        "event": "message",
        "group": group.map(ToString::to_string),
        "view": message.view.get(),
        "from": from,
        "seq": message.seq,
        "class": class,
        "text": text,
        "node": me,
        "at_ns": now_ns(),
    });
    object.to_string()
}

/// Prints all events until the node stops. A wrapper goes on for its server's sake even if nobody reads this; what a reader
/// that stalls misses is counted in the queue of the events, and told when it goes on.
pub(crate) async fn print_all(mut events: membership::Events, json: bool) {
    while let Some(event) = events.next().await {
        if let Some(text) = line_of(&event, json) {
            let _unread = say(text).await;
        }
    }
}

/// Prints one line as soon as there is room for it. False once standard output is closed.
pub(crate) async fn say(mut text: String) -> bool {
    match output::out() {
        Some(out) => {
            text.push('\n');
            out.say(text.into()).await
        }
        None => line(&text),
    }
}

/// Waits until standard output is closed.
pub(crate) async fn gone() {
    match output::out() {
        Some(out) => out.gone().await,
        None => std::future::pending().await,
    }
}

/// Prints one line before it returns, for commands that have nothing else to do. False once standard output is closed.
pub(crate) fn line(text: &str) -> bool {
    write(format!("{text}\n").as_bytes())
}

/// Writes to standard output. False if that is not possible: the reader went away, which is an orderly end, or the bytes are
/// [lost].
pub(crate) fn write(bytes: &[u8]) -> bool {
    let mut out = io::stdout().lock();
    let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) else { return true };
    CLOSED.store(true, Ordering::Relaxed);
    if error.kind() != io::ErrorKind::BrokenPipe {
        lose(error);
    }
    false
}

/// Says, once, that something could not be printed though its reader did not go away.
pub(crate) fn lose(why: impl fmt::Display) {
    if !LOST.swap(true, Ordering::Relaxed) {
        super::complain(format_args!("standard output: {why}"));
    }
}

static CLOSED: AtomicBool = AtomicBool::new(false);
static LOST: AtomicBool = AtomicBool::new(false);

/// Whether a line could not be printed.
pub(crate) fn closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Whether a line could not be printed, though its reader did not go away.
pub(crate) fn lost() -> bool {
    LOST.load(Ordering::Relaxed)
}
