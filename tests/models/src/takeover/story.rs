//! A run in words: what each node may do, and each step of a counterexample.

use membership_proto::{Msg, witness::Answer};
use membership_types::Instant;

use super::{
    Action, GROUPS, Takeover, UNIT, clock,
    world::{Packet, Place, Reply, Said, World},
};
use crate::search::Story;

impl Story for Takeover {
    /// What each node may do, and for how many steps.
    fn show(&self, world: &World) -> Option<String> {
        let show = |(n, place): (usize, &Place)| {
            let now = clock(n, world.step);
            let left = |until: Instant| (until - now).as_nanos() as f64 / UNIT as f64;
            let cluster = &place.node.cluster;
            let mut text = format!("{}", cluster.id());
            if !place.up {
                return text + " is down";
            }
            if let Some(state) = cluster.committed() {
                text += &format!(" at {} core {:?}", state.index, state.core);
            }
            if let Some(until) = cluster.authority() {
                text += &format!(" has authority for {}", left(until));
            }
            text += &format!(" a lease for {}", left(place.node.lease));
            for (group, token) in place.acts(now) {
                text += &format!(" leads {group} under {token}");
            }
            text
        };
        let nodes: Vec<String> = world.places.iter().enumerate().map(show).collect();
        Some(nodes.join("; "))
    }

    fn tell(&self, world: &World, action: &Action) -> String {
        let id = |place: usize| world.places[place].node.cluster.id();
        let packet = |n: usize| {
            let Packet { from, to, msgs, .. } = &world.flight[n];
            let words: Vec<String> = msgs.iter().map(name_of).collect();
            format!("from {from} to {to}: {}", words.join(", "))
        };
        match action {
            Action::Deliver(n) if world.flight[*n].held => format!("arrives late {}", packet(*n)),
            Action::Deliver(n) => format!("arrives {}", packet(*n)),
            Action::Hold(n) => format!("is late {}", packet(*n)),
            Action::Advance => "time goes on".into(),
            Action::Cut(from, to) => format!("{} is not heard by {} any more", id(*from), id(*to)),
            Action::Isolate(place) => format!("{} is cut off", id(*place)),
            Action::Split(with) => format!("{} and {} part from the others", id(0), id(*with)),
            Action::Heal => "all links carry again".into(),
            Action::Crash(place) => format!("{} dies", id(*place)),
            Action::Prove(place, dead) => format!("{} has proof that {} is dead", id(*place), id(*dead)),
            Action::Restart(place) => format!("{} starts again", id(*place)),
            Action::Stall(place) => format!("{} stands still", id(*place)),
            Action::Resume(place) => format!("{} goes on", id(*place)),
            Action::StepDown(place, n) => format!("{} steps down in {}", id(*place), GROUPS[*n]),
            Action::Leave(place) => format!("{} leaves", id(*place)),
            Action::Answer(n) => {
                let Reply { to, answer, .. } = &world.replies[*n];
                let Answer { core, epoch, record, .. } = answer;
                format!("the witness says to {to}, in epoch {epoch}, of the core of {core:?}: {record:?}")
            }
            Action::HoldAnswer(n) => format!("is late what the witness says to {}", world.replies[*n].to),
            Action::Mute(place) => format!("{} does not reach the witness any more", id(*place)),
            Action::Forget => "the witness loses its memory".into(),
            Action::Say(place) => format!("{} multicasts something", id(*place)),
        }
    }
}

/// The name of a message's variant.
fn name_of(said: &Said) -> String {
    let text = match said {
        Said::Msg(Msg::In(_, msg)) => format!("{msg:?}"),
        Said::Msg(msg) => format!("{msg:?}"),
        Said::Frame(_, frame) => format!("{frame:?}"),
    };
    text.chars().take_while(char::is_ascii_alphanumeric).collect()
}
