//! The members of a group that multicasts, in the model of takeovers: the product of takeover, lease and flush.
//!
//! Views come to a member from its own membership machine, it leads once its view is closed behind it, and without a lease
//! nothing safe is delivered. Frames travel as membership's messages do: at once and in order, unless a link is cut; a cut breaks the
//! connection, and when the link carries again there is a new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use membership_multicast::{Class, Config, Frame, Input, Multicast, Output, View};
use membership_proto::{GroupView, Input as ClusterInput, Part};
use membership_types::{Machine, NodeId, ViewId};

use crate::takeover::{FOREIGN, OWN, SAFE, SAME_ORDER, SAME_SET, Said, Takeover, World, clock, group};

/// A message: the place of its sender, and its number there.
pub(crate) type Mid = (u8, u8);

/// What messages are, one after the other.
const CLASSES: [Class; 2] = [Class::Safe, Class::Ordered];

/// A member's part in the group.
#[derive(Clone, Hash)]
pub(crate) struct Room {
    machine: Multicast,
    /// It was told that the node has no lease.
    held: bool,
    /// The view that it is in, and what it delivered there, in order.
    view: Option<ViewId>,
    delivered: Vec<(Mid, bool)>,
}

/// What has been seen of messages in the run so far.
#[derive(Clone, Default, Hash)]
pub(crate) struct Words {
    /// In which view each message was sent.
    sent: BTreeMap<Mid, ViewId>,
    /// What those delivered in a view who went from it to this next one, and the order of what is ordered.
    closed: BTreeMap<(ViewId, ViewId), (BTreeSet<Mid>, Vec<Mid>)>,
    /// What was safe to anybody in a view.
    safe: BTreeMap<ViewId, BTreeSet<Mid>>,
}

impl Room {
    pub(crate) fn installed(&self) -> Option<ViewId> {
        self.machine.installed().map(|view| view.id)
    }

    pub(crate) fn poll_timeout(&self) -> Option<membership_types::Instant> {
        self.machine.poll_timeout()
    }
}

impl Takeover {
    /// Membership tells a member of the group a view.
    pub(crate) fn room_view(&self, world: &mut World, place: usize, view: &GroupView, part: Part) {
        let input = match part {
            Part::Member => Input::View(View {
                id: view.id,
                lineage: view.lineage,
                members: view.members.iter().map(|member| member.node).collect(),
                begins: view.prev == ViewId::NONE,
            }),
            Part::Observer | Part::Left => Input::Out,
        };
        let id = world.id(place);
        let now = clock(place, world.step());
        let node = world.node_mut(place);
        if node.room.is_none() && part == Part::Member {
            let mut config = Config::new(id, group(0));
            config.behind_after = Duration::from_secs(3600);
            let machine = Multicast::new(config, now, 0);
            node.room = Some(Room { machine, held: false, view: None, delivered: Vec::new() });
        }
        if let (Some(room), Input::Out) = (&mut world.node_mut(place).room, &input) {
            room.view = None;
            room.delivered.clear();
        }
        self.feed_room(world, place, input);
    }

    /// A member says its next word.
    pub(crate) fn say(&self, world: &mut World, place: usize) {
        let number = world.next_word(place);
        let class = CLASSES[usize::from(number) % CLASSES.len()];
        let payload = Bytes::copy_from_slice(&[place as u8, number]);
        self.feed_room(world, place, Input::Multicast(class, payload));
    }

    /// The node's lease began or ended, or time went on.
    pub(crate) fn look_at_room(&self, world: &mut World, place: usize) {
        let now = clock(place, world.step());
        let node = world.node_mut(place);
        let (Some(room), lease) = (&mut node.room, node.lease) else { return };
        let due = room.machine.poll_timeout().is_some_and(|at| at <= now);
        let held = now >= lease;
        if std::mem::replace(&mut room.held, held) != held {
            room.machine.handle(now, Input::Hold(held));
        }
        if due {
            room.machine.handle_timeout(now);
        }
        room.machine.handle(now, Input::Drained);
        self.drain_room(world, place);
    }

    pub(crate) fn feed_room(&self, world: &mut World, place: usize, input: Input) {
        if !world.is_up(place) {
            return;
        }
        let now = clock(place, world.step());
        let Some(room) = &mut world.node_mut(place).room else { return };
        room.machine.handle(now, input);
        self.look_at_room(world, place);
    }

    fn drain_room(&self, world: &mut World, place: usize) {
        let mut frames: BTreeMap<NodeId, Vec<Said>> = BTreeMap::new();
        let mut ready = None;
        loop {
            let Some(room) = &mut world.node_mut(place).room else { return };
            let lineage = room.machine.lineage();
            let Some(output) = room.machine.poll_output() else { break };
            let mut send = |to: NodeId, frame: Frame| {
                let said = lineage.map(|lineage| Said::Frame(lineage, frame));
                frames.entry(to).or_default().extend(said);
            };
            match output {
                Output::Send(to, frame) => send(to, frame),
                Output::SendAll(all, frame) => {
                    let me = world.id(place);
                    if let Frame::Data(data) = &frame {
                        let (mid, view) = (mid_of(&data.payload), data.view);
                        world.words(|words| words.sent.insert(mid, view));
                    }
                    all.iter().filter(|to| **to != me).for_each(|to| send(*to, frame.clone()));
                }
                Output::Deliver(message) => {
                    let (mid, ordered) = (mid_of(&message.payload), message.class.is_sequenced());
                    on_deliver(world, place, mid, message.view, (ordered, message.class == Class::Safe));
                }
                Output::Install { view, .. } => on_install(world, place, view.id),
                Output::Ready(view) => ready = Some(view),
                // No member keeps a state here.
                Output::StateRequest { .. }
                | Output::Given(_)
                | Output::StateReceived(_)
                | Output::StateLost(_)
                | Output::Block(_)
                | Output::Behind(_)
                | Output::Trace(_)
                | Output::Mark(_) => {}
            }
        }
        world.remark(place);
        for (to, said) in frames {
            if let Some(to_place) = world.place_of(to) {
                world.post(self, place, (to_place, to), Arc::new(said));
            }
        }
        if let Some(view) = ready {
            self.feed(world, place, ClusterInput::Installed { group: group(0), view });
        }
    }
}

fn mid_of(payload: &[u8]) -> Mid {
    (payload[0], payload[1])
}

fn on_deliver(world: &mut World, place: usize, mid: Mid, view: ViewId, (ordered, safe): (bool, bool)) {
    let sent = world.words(|words| words.sent.get(&mid).copied());
    let Some(room) = &mut world.node_mut(place).room else { return };
    // Who is alone sends to nobody.
    let foreign = sent.is_some_and(|sent| sent != view) || room.view != Some(view);
    let twice = room.delivered.iter().any(|(known, _)| *known == mid);
    room.delivered.push((mid, ordered));
    if foreign || twice {
        world.breaks(FOREIGN);
    }
    if safe {
        world.words(|words| words.safe.entry(view).or_default().insert(mid));
    }
}

fn on_install(world: &mut World, place: usize, next: ViewId) {
    let Some(room) = &mut world.node_mut(place).room else { return };
    let delivered = std::mem::take(&mut room.delivered);
    let Some(before) = room.view.replace(next) else { return };
    let set: BTreeSet<Mid> = delivered.iter().map(|(mid, _)| *mid).collect();
    let order: Vec<Mid> = delivered.iter().filter(|(_, ordered)| *ordered).map(|(mid, _)| *mid).collect();
    let broken = world.words(|words| {
        let own = |(mid, view): (&Mid, &ViewId)| usize::from(mid.0) == place && *view == before;
        if !words.sent.iter().filter(|(mid, view)| own((mid, view))).all(|(mid, _)| set.contains(mid)) {
            return Some(OWN);
        }
        if words.safe.get(&before).is_some_and(|safe| !safe.is_subset(&set)) {
            return Some(SAFE);
        }
        let known = words.closed.entry((before, next)).or_insert((set.clone(), order.clone()));
        if known.0 != set {
            Some(SAME_SET)
        } else if known.1 != order {
            Some(SAME_ORDER)
        } else {
            None
        }
    });
    if let Some(broken) = broken {
        world.breaks(broken);
    }
}
