//! `/v1/groups`: all groups of the cluster at a node of the core, which keeps the log; else those that the node is in or observes.
//! Each answer says which.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use membership_proto::SharedView;
use membership_types::{GroupName, LogIndex};
use serde_json::{Value, json};
use tokio::{sync::oneshot, time::timeout};

use super::{AdminResponse, name_of, percent_decoded};
use crate::{
    event::{Names, View, standing_json},
    node::{Command, Kept, Shared, Wanting},
    status::{GroupStatus, Status},
};

/// How many groups an answer has, at most; the next ones are asked for by `after`.
const MOST: usize = 10_000;
/// How long the control thread is waited for. Without its answer the node tells what it told its applications.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where an answer comes from.
enum Source {
    /// The log, as of this index: all groups are in it.
    Log(LogIndex),
    /// What the node was told as a member or an observer, and why there is no more.
    Own(String),
}

impl Source {
    fn put_into(&self, answer: &mut Value) {
        match self {
            Self::Log(index) => {
                answer["known"] = json!("all");
                answer["index"] = json!(index.get());
            }
            Self::Own(why) => {
                answer["known"] = json!("own");
                answer["why"] = json!(why);
            }
        }
    }
}

/// The groups after one by name, at most so many.
pub(super) async fn list(shared: &Shared, query: Option<&str>) -> AdminResponse {
    let (after, limit) = match read(query.unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(why) => return AdminResponse::error(400, why),
    };
    // One more shows whether there is more.
    let (kept, source) = ask(shared, Wanting::After(after.clone(), limit + 1)).await;
    let status = shared.full_status();
    let is_next = |name: &GroupName| after.as_ref().is_none_or(|after| name > after);
    let own = status.groups.iter().filter(|(name, _)| is_next(name)).take(limit + 1);
    let mut groups: BTreeMap<&GroupName, Value> =
        own.map(|(name, own)| (name, to_json(name, own, &status))).collect();
    for view in &kept {
        let group = newest(view, status.groups.get(&view.group), &shared.names);
        groups.insert(&view.group, to_json(&view.group, &group, &status));
    }
    let more = groups.len() > limit;
    let next = groups.keys().take(limit).next_back().filter(|_| more).map(|last| last.as_str());
    let mut answer = json!({ "next": next });
    source.put_into(&mut answer);
    answer["groups"] = groups.into_values().take(limit).collect();
    AdminResponse::json(200, &answer)
}

/// One group.
pub(super) async fn one(shared: &Shared, name: &str) -> AdminResponse {
    let name = percent_decoded(name);
    let Ok(name) = GroupName::new(&name) else {
        return AdminResponse::error(404, format!("{name:?} is no name of a group"));
    };
    let (kept, source) = ask(shared, Wanting::One(name.clone())).await;
    let status = shared.full_status();
    let own = status.groups.get(&name);
    let group = match (kept.first(), own) {
        (Some(view), own) => newest(view, own, &shared.names),
        (None, Some(own)) => own.clone(),
        (None, None) => {
            return AdminResponse::error(
                404,
                match source {
                    Source::Log(_) => format!("there is no group {name}: it has no member"),
                    Source::Own(why) => format!("this node is not in {name} and does not observe it: {why}"),
                },
            );
        }
    };
    let mut answer = to_json(&name, &group, &status);
    source.put_into(&mut answer);
    AdminResponse::json(200, &answer)
}

/// `after=NAME&limit=N`, both may be missing.
fn read(query: &str) -> Result<(Option<GroupName>, usize), String> {
    let (mut after, mut limit) = (None, MOST);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("after", name)) => {
                let name = percent_decoded(name);
                after = Some(GroupName::new(&name).map_err(|error| format!("after: {error}"))?);
            }
            Some(("limit", n)) => {
                let n = n.parse().ok().filter(|n| (1..=MOST).contains(n));
                limit = n.ok_or_else(|| format!("limit: give 1 to {MOST}"))?;
            }
            _ => return Err(format!("{pair:?} is nothing to ask for: give after=NAME or limit=N")),
        }
    }
    Ok((after, limit))
}

/// Asks the control thread what the log says.
async fn ask(shared: &Shared, wanted: Wanting) -> (Vec<SharedView>, Source) {
    let (done, answer) = oneshot::channel();
    let asked = async {
        let commands = shared.commands.get()?.upgrade()?;
        commands.send(Command::Groups { wanted, done }).await.ok()?;
        drop(commands);
        answer.await.ok()
    };
    let why = match timeout(PATIENCE, asked).await {
        Ok(Some(Some(Kept { index, views }))) => return (views, Source::Log(index)),
        Ok(Some(None)) => {
            let status = shared.status();
            let core: Vec<String> = status.core.iter().map(|id| name_of(&status, *id)).collect();
            if core.is_empty() {
                "this node is in no cluster yet".to_owned()
            } else {
                format!(
                    "this node keeps no log, and so knows only groups that it is in or observes; all are known at {}",
                    core.join(", ")
                )
            }
        }
        Ok(None) => "the node has stopped, or has not begun".to_owned(),
        Err(_) => format!("the node's control thread did not answer within {} s", PATIENCE.as_secs()),
    };
    (Vec::new(), Source::Own(why))
}

/// What the log says of a group, or what the node was told of it, if that is newer.
fn newest(kept: &SharedView, own: Option<&GroupStatus>, names: &Names) -> GroupStatus {
    let mut group = own.cloned().unwrap_or_default();
    let known = group.view.as_ref().filter(|view| view.lineage == kept.lineage);
    if known.is_none_or(|view| view.id < kept.id) {
        group.view = Some(Arc::new(names.view(kept)));
    }
    group
}

fn to_json(name: &GroupName, group: &GroupStatus, status: &Status) -> Value {
    let view: Option<&View> = group.view.as_deref();
    let members: Vec<Value> = view
        .map(|view| &view.members[..])
        .unwrap_or_default()
        .iter()
        .enumerate()
        .map(|(rank, member)| {
            json!({
                "rank": rank,
                "node": &*member.name,
                "id": member.node.to_string(),
                "endpoint": member.endpoint.as_deref(),
            })
        })
        .collect();
    json!({
        "group": name.as_str(),
        "view": view.map(|v| v.id.get()),
        "prev": view.map(|v| v.prev.get()),
        "token": view.map(|v| v.token.get()),
        "lineage": view.map(|v| v.lineage.to_string()),
        "leader": view.and_then(View::leader).map(|l| &*l.name),
        "rank": view.and_then(|v| v.rank_of(status.id)).map(|r| r.get()),
        "leading": group.leading.is_some(),
        "state": group.state.as_ref().map(standing_json),
        "members": members,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_bounded_and_what_makes_no_sense_is_named() {
        let name = |name: &str| GroupName::new(name).expect("a name");
        assert_eq!(read(""), Ok((None, MOST)));
        assert_eq!(read("limit=7&after=a%2Fb"), Ok((Some(name("a/b")), 7)));
        for wrong in ["limit=0", "limit=10001", "limit=x", "after=a%20b", "after=", "after", "x=1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
