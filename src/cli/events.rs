//! How events are printed: one JSON object a line, or a line for people. Each is written at once.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use membership::{Event, GroupName, Message, Standing, What, clock::now_ns};
use serde_json::{Value, json};

/// The event as the JSON object that the documentation describes; `None` for what commands do not print.
pub(crate) fn to_json(event: &Event) -> Option<Value> {
    let group = event.group.as_ref().map(ToString::to_string);
    let mut object = match &event.what {
        What::Started { listen, admin } => {
            json!({"event": "started", "id": event.node.to_string(), "listen": listen, "admin": admin})
        }
        What::Refused { why } => json!({"event": "refused", "why": why}),
        What::Blocked { why } => json!({"event": "blocked", "why": why}),
        What::Unblocked => json!({"event": "unblocked"}),
        What::Removed { view, why } => json!({"event": "removed", "view": view.get(), "why": why}),
        What::Dissolved { into, lost } => {
            let lost: Vec<&str> = lost.iter().map(GroupName::as_str).collect();
            json!({"event": "dissolved", "into": format!("lineage {into}"), "lost": lost})
        }
        What::StartOver { why } => json!({"event": "start_over", "why": why}),
        What::Ended { why } => json!({"event": "ended", "why": why}),
        What::View(view) => {
            let members: Vec<&str> = view.members.iter().map(|m| &*m.name).collect();
            json!({
                "event": "view",
                "view": view.id.get(),
                "rank": view.rank_of(event.node).map(membership::Rank::get),
                "leader": members.first(),
                "members": members,
                "prev": view.prev.get(),
            })
        }
        What::Leading { token, lineage } => {
            json!({"event": "leading", "token": token.get(), "lineage": lineage.to_string()})
        }
        What::NotLeading { token, why, until_ns, .. } => json!({
            "event": "not_leading",
            "token": token.get(),
            "why": why.as_str(),
            "until_ns": until_ns,
        }),
        What::State { standing } => match standing {
            Standing::Memory => json!({"event": "state", "standing": "memory"}),
            Standing::Lost => {
                json!({"event": "state", "standing": "lost", "why": "those who had it are gone"})
            }
            Standing::Waiting { why } => json!({"event": "state", "standing": "waiting", "why": why}),
            Standing::Kept { here, of, enough } => {
                json!({"event": "state", "standing": "kept", "here": here, "of": of, "enough": enough})
            }
            Standing::Refused { why } => json!({"event": "state", "standing": "refused", "why": why}),
            _ => return None,
        },
        What::Stuck { why } => json!({"event": "stuck", "why": why}),
        What::Unstuck => json!({"event": "unstuck"}),
        What::Missed { count } => json!({"event": "missed", "count": count}),
        _ => return None,
    };
    object["node"] = json!(&*event.name);
    object["at_ns"] = json!(event.at_ns);
    if let Some(group) = group {
        object["group"] = json!(group);
    }
    Some(object)
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

/// Prints an event. False once standard output is closed.
pub(crate) fn print(event: &Event, json: bool) -> bool {
    let Some(object) = to_json(event) else { return true };
    line(&if json { object.to_string() } else { to_text(event, &object) })
}

/// Prints a message of a group, now. False once standard output is closed.
pub(crate) fn print_message(
    me: &str,
    group: Option<&GroupName>,
    from: &str,
    message: &Message,
    json: bool,
) -> bool {
    let text = String::from_utf8_lossy(&message.payload);
    let class = message.class.as_str();
    if !json {
        let seq = message.seq.map_or(String::new(), |seq| format!(" {seq}"));
        return line(&format!("{class}{seq} from {from}: {text}"));
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
    line(&object.to_string())
}

/// Prints one line at once. False if it cannot be printed: the reader went away, which is an orderly end, or the line is
/// [lost], which is said once on standard error.
pub(crate) fn line(text: &str) -> bool {
    let mut out = io::stdout().lock();
    let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) else { return true };
    CLOSED.store(true, Ordering::Relaxed);
    if error.kind() != io::ErrorKind::BrokenPipe && !LOST.swap(true, Ordering::Relaxed) {
        super::complain(format_args!("standard output: {error}"));
    }
    false
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
