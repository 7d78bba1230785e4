//! Events as the JSON objects that commands print and `/v1/events` sends.

use membership_types::{GroupName, Rank};
use serde_json::{Value, json};

use super::{Event, What};
use crate::{control::shown_names, replica::Standing};

impl Event {
    /// The event as the JSON object that the documentation describes; `None` for what is only for those who embed the node.
    pub fn to_json(&self) -> Option<Value> {
        let mut object = match &self.what {
            What::Started { listen, admin } => {
                json!({ "event": "started", "id": self.node.to_string(), "listen": listen, "admin": admin })
            }
            What::Refused { why } => json!({ "event": "refused", "why": why }),
            What::ClusterView(view) => {
                let names = shown_names(view);
                let members: Vec<&str> = view.members.iter().map(|node| &*names[&node.id]).collect();
                json!({
                    "event": "cluster_view",
                    "view": view.id.get(),
                    "rank": view.rank_of(self.node).map(Rank::get),
                    "members": members,
                    "prev": view.prev.get(),
                })
            }
            What::Blocked { why } => json!({ "event": "blocked", "why": why }),
            What::Unblocked => json!({ "event": "unblocked" }),
            What::Removed { view, why } => json!({ "event": "removed", "view": view.get(), "why": why }),
            What::Dissolved { into, lost } => {
                let lost: Vec<&str> = lost.iter().map(GroupName::as_str).collect();
                json!({ "event": "dissolved", "into": format!("lineage {into}"), "lost": lost })
            }
            What::StartOver { why } => json!({ "event": "start_over", "why": why }),
            What::Ended { why } => json!({ "event": "ended", "why": why }),
            What::View(view) => {
                let members: Vec<&str> = view.members.iter().map(|m| &*m.name).collect();
                json!({
                    "event": "view",
                    "view": view.id.get(),
                    "rank": view.rank_of(self.node).map(Rank::get),
                    "leader": members.first(),
                    "members": members,
                    "prev": view.prev.get(),
                })
            }
            What::Leading { token, lineage } => {
                json!({ "event": "leading", "token": token.get(), "lineage": lineage.to_string() })
            }
            What::NotLeading { token, why, until_ns, .. } => json!({
                "event": "not_leading",
                "token": token.get(),
                "why": why.as_str(),
                "until_ns": until_ns,
            }),
            What::State { standing } => {
                let mut object = standing_json(standing);
                object["event"] = json!("state");
                object
            }
            What::Stuck { why } => json!({ "event": "stuck", "why": why }),
            What::Unstuck => json!({ "event": "unstuck" }),
            What::Missed { count } => json!({ "event": "missed", "count": count }),
            What::Out { .. } => return None,
        };
        object["node"] = json!(&*self.name);
        object["at_ns"] = json!(self.at_ns);
        if let Some(group) = &self.group {
            object["group"] = json!(group.as_str());
        }
        Some(object)
    }
}

/// Where a group's state is.
pub(crate) fn standing_json(standing: &Standing) -> Value {
    match standing {
        Standing::Memory => json!({ "standing": "memory" }),
        Standing::Lost => json!({ "standing": "lost", "why": "those who had it are gone" }),
        Standing::Waiting { why } => json!({ "standing": "waiting", "why": why }),
        Standing::Kept { here, of, enough } => {
            json!({ "standing": "kept", "here": here, "of": of, "enough": enough })
        }
        Standing::Refused { why } => json!({ "standing": "refused", "why": why }),
    }
}
