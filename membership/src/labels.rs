//! What nodes say of themselves by labels: what may fail together with them, and what those who send them requests
//! should know.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use membership_proto::{ClusterView, Domains, NodeInfo};
use membership_types::{NodeId, Weight};

use crate::{error::StartError, node::lock};

/// Of labels that all nodes are told, the most bytes.
const LONGEST: usize = 128;

/// Refuses labels that all nodes are to be told and that are too long or mean nothing.
pub(crate) fn check(labels: &BTreeMap<String, String>) -> Result<(), StartError> {
    let wrong = |problem| Err(StartError::setting("label", problem));
    for key in ["dc", "zone", "rack", "power"] {
        if labels.get(key).is_some_and(|value| value.len() > LONGEST) {
            return wrong(format!("{key}: its value is too long, give at most {LONGEST} bytes"));
        }
    }
    match labels.get("weight") {
        Some(text) if weight(labels).is_none() => {
            wrong(format!("weight: {text:?} is no weight, give 1 to {}", Weight::MAX))
        }
        _ => Ok(()),
    }
}

/// What may fail together with a node.
pub(crate) fn domains(labels: &BTreeMap<String, String>) -> Domains {
    let label = |key: &str| labels.get(key).map(|value| value.as_str().into());
    // Zones of two data centres are different ones, whatever their names.
    let zone = match (labels.get("dc"), labels.get("zone")) {
        (Some(dc), Some(zone)) => Some(format!("{dc}/{zone}").into()),
        _ => label("zone").or_else(|| label("dc")),
    };
    Domains { zone, rack: label("rack"), power: label("power") }
}

/// How much of the load a node takes, if that is said.
pub(crate) fn weight(labels: &BTreeMap<String, String>) -> Option<Weight> {
    labels.get("weight")?.parse::<u16>().ok().and_then(Weight::new)
}

/// What nodes of the present cluster view say to those who send them requests.
#[derive(Default)]
pub(crate) struct Labels(Mutex<BTreeMap<NodeId, Label>>);

/// What one of them says.
#[derive(Clone, Default)]
pub(crate) struct Label {
    /// Where it is.
    pub(crate) zone: Option<Arc<str>>,
    /// How much of the load it takes.
    pub(crate) weight: Weight,
}

impl Labels {
    /// There is another cluster view. Gives those who are new there with a weight that is none: it counts as 1.
    pub(crate) fn set<'a>(&self, view: &'a ClusterView) -> Vec<&'a NodeInfo> {
        let mut known = lock(&self.0);
        let (mut labels, mut strange) = (BTreeMap::new(), Vec::new());
        for node in &view.members {
            let zone = node.domains.zone.as_deref().map(Into::into);
            let weight = node.load_weight.and_then(Weight::new);
            if node.load_weight.is_some() && weight.is_none() && !known.contains_key(&node.id) {
                strange.push(node);
            }
            if zone.is_some() || node.load_weight.is_some() {
                labels.insert(node.id, Label { zone, weight: weight.unwrap_or_default() });
            }
        }
        *known = labels;
        strange
    }

    /// What this one says.
    pub(crate) fn of(&self, node: NodeId) -> Label {
        lock(&self.0).get(&node).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use membership_types::ViewId;

    use super::*;

    #[test]
    fn a_weight_is_a_whole_number_from_1_to_1000() {
        let labels = |weight: &str| BTreeMap::from([("weight".to_owned(), weight.to_owned())]);
        for (text, weight) in [("1", 1), ("1000", 1000)] {
            assert!(check(&labels(text)).is_ok());
            assert_eq!(self::weight(&labels(text)), Weight::new(weight));
        }
        for wrong in ["", "0", "1001", "-1", "1.5", "70000", "much"] {
            let why = check(&labels(wrong)).expect_err(wrong).to_string();
            assert!(why.contains("1 to 1000") && why.contains("label"), "{why}");
        }
        assert!(check(&BTreeMap::new()).is_ok() && weight(&BTreeMap::new()).is_none());
    }

    #[test]
    fn a_weight_of_a_strange_build_counts_as_1_and_is_noticed_once() {
        let node = |n: u16, load_weight| NodeInfo {
            id: NodeId::new(n.into(), 1),
            name: format!("n{n}").into(),
            addr: SocketAddr::from(([10, 0, 0, 1], n)),
            eligible: true,
            slot: None,
            keeps_floor: false,
            domains: Domains::default(),
            load_weight,
        };
        let mut members = vec![node(1, None), node(2, Some(7)), node(3, Some(70_000))];
        let view = |members: &[NodeInfo]| ClusterView {
            id: ViewId::new(1),
            prev: ViewId::NONE,
            members: members.to_vec(),
        };
        let labels = Labels::default();
        let first = view(&members);
        assert_eq!(labels.set(&first), [&members[2]]);
        let weights = || [1, 2, 3].map(|n| labels.of(NodeId::new(n, 1)).weight.get());
        assert_eq!(weights(), [1, 7, 1]);
        members.remove(1);
        assert!(labels.set(&view(&members)).is_empty(), "the same one again");
        assert_eq!(weights(), [1, 1, 1], "who is gone says nothing");
    }
}
