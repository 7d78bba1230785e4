//! The machine: one node's membership, from its start to the end of its incarnation.

use alloc::{boxed::Box, vec::Vec};
use core::net::SocketAddr;

use membership_types::{
    GroupName, Instant, Lineage, Machine, NodeId, Rng, ViewId,
    trace::{Event, Group},
};

use crate::{
    config::Config,
    ctx::{Ctx, End, Output, WhyNot, release},
    entry::GroupWish,
    floor::{Durable, Floor},
    meeting::Forced,
    member::Member,
    msg::Msg,
    plant::Plant,
    seeking::{self, Found, Seeking},
    state::State,
    view::ClusterView,
    witness::{Answer, Epoch},
};

/// What comes in.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A message from another node.
    Message {
        /// Who sent it; the transport vouches for that.
        from: NodeId,
        /// What it says.
        msg: Msg,
    },
    /// Addresses at which nodes of the cluster may be found; replaces those given before.
    Rendezvous {
        /// The addresses.
        addresses: Vec<SocketAddr>,
        /// Every provider has answered at least once. Before that nobody founds alone: there may be a cluster.
        complete: bool,
    },
    /// Proof, from this very host, that a node is dead: its process can run no more code.
    ProvedDead {
        /// Who is dead.
        node: NodeId,
        /// What the proof is, for the trace.
        how: &'static str,
    },
    /// The application wants something of a group.
    Wish(GroupWish),
    /// Begin or end to observe a group.
    Observe {
        /// The group.
        group: GroupName,
        /// Begin?
        begin: bool,
    },
    /// A view of a group whose members multicast is installed: all that was sent before it is delivered.
    Installed {
        /// The group.
        group: GroupName,
        /// The view.
        view: ViewId,
    },
    /// A member of a group, in which this node is one, too, makes the others wait for too long.
    Behind {
        /// The group.
        group: GroupName,
        /// Who stays behind.
        node: NodeId,
    },
    /// The data directory has what [`Output::SetAside`] asked for.
    IsSetAside(Floor),
    /// What the witness said to [`Output::AskWitness`], now or long ago.
    Witness(Answer),
    /// An operator gives up this node's blocked lineage: found a new one from this node. Answered by
    /// [`Output::NotForced`], or by an end that says with what to begin again.
    ForceNew,
    /// Leave the cluster.
    LeaveCluster,
}

#[derive(Clone, Debug, PartialEq, Hash)]
enum Phase {
    Seeking(Box<Seeking>),
    Member(Box<Member>),
    Ended,
}

/// One node's membership as a pure machine; see the crate's documentation for the map.
///
/// It ends with [`Output::Ended`]; after that it ignores everything, and whoever still wants to take part makes a new
/// machine with a fresh [`NodeId`] and [`Cluster::highest`] of this one.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Cluster {
    ctx: Ctx,
    phase: Phase,
}

impl Cluster {
    /// A node that starts at `now`. `highest` is the highest view id that an earlier incarnation of this process knew
    /// of ([`ViewId::NONE`] if there was none).
    pub fn new(config: Config, now: Instant, rng: Rng, highest: ViewId) -> Self {
        let ctx = Ctx::new(config, now, rng, highest);
        let phase = Phase::Seeking(Box::new(Seeking::new(&ctx)));
        Self { ctx, phase }
    }

    /// The node has a data directory, which remembers this, if anything. Its [`NodeInfo`](crate::NodeInfo) must say so.
    #[must_use]
    pub fn with_floor(mut self, floor: Option<Floor>) -> Self {
        debug_assert!(self.ctx.config.me.keeps_floor, "others must know");
        self.ctx.durable = Some(Durable::new(floor));
        self
    }

    /// The node has the data directory of this one, which ended in the same process. What that had asked for may not be written
    /// yet: what is asked for now comes after it, and must not be below.
    #[must_use]
    pub fn with_floor_of(mut self, before: &Self) -> Self {
        self.ctx.durable.clone_from(&before.ctx.durable);
        self
    }

    /// The incarnation before, in the same process, ended since its lineage was dissolved into another one ([`End::Dissolved`]). Nobody
    /// there may be at an address that we know, so for three leases we wait to be found, and found nothing.
    pub fn goes_over(&mut self) {
        self.ctx.looks_until = self.ctx.now.after(self.ctx.lease() * 3);
    }

    /// Founds the lineage for which an operator gave up the one before. To be called first, after
    /// [`with_floor`](Self::with_floor) or [`with_floor_of`](Self::with_floor_of) only.
    #[must_use]
    pub fn with_forced(mut self, forced: Forced) -> Self {
        let member = seeking::found_forced(&mut self.ctx, forced);
        self.phase = Phase::Member(Box::new(member));
        self
    }

    /// Plants a bug in this node.
    #[cfg(feature = "plant")]
    pub fn plant(&mut self, plant: Option<Plant>) {
        self.ctx.plant = plant;
    }

    /// The highest view id that this node knows of.
    pub fn highest(&self) -> ViewId {
        self.ctx.highest
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.ctx.me()
    }

    /// The lineage that the node is in.
    pub fn lineage(&self) -> Option<Lineage> {
        self.member().map(|m| m.lineage)
    }

    /// The cluster view that the node has installed.
    pub fn view(&self) -> Option<&ClusterView> {
        self.member().map(|m| &m.view).filter(|v| v.id != ViewId::NONE)
    }

    /// The core as far as the node has been told.
    pub fn core(&self) -> &[NodeId] {
        self.member().map_or(&[], |m| &m.core)
    }

    /// The feature level that all members agreed on, if the node keeps the log.
    pub fn level(&self) -> Option<u16> {
        self.member()?.acceptor.as_ref().map(|a| a.state.level)
    }

    /// The coordinator that the node follows.
    pub fn coordinator(&self) -> Option<NodeId> {
        self.member().map(|m| m.following.node)
    }

    /// Does the node hold the coordinator's office?
    pub fn is_coordinator(&self) -> bool {
        self.member().is_some_and(|m| m.office.is_some())
    }

    /// Until when the node's lease lasts, if it holds one.
    pub fn lease_until(&self) -> Option<Instant> {
        self.member().and_then(Member::lease_deadline)
    }

    /// Until when the node as coordinator may believe that nobody has replaced it, if it is in office.
    pub fn authority(&self) -> Option<Instant> {
        let member = self.member()?;
        let (office, acceptor) = (member.office.as_ref()?, member.acceptor.as_ref()?);
        Some(office.authority(&self.ctx, acceptor, &member.deaths))
    }

    /// The highest ballot that the node promised, if it keeps the log.
    pub fn promised(&self) -> Option<membership_types::Ballot> {
        self.member()?.acceptor.as_ref().map(|a| a.promised)
    }

    /// What the node knows to be committed, if it keeps the log.
    pub fn committed(&self) -> Option<&State> {
        self.member()?.acceptor.as_ref().map(|a| &a.state)
    }

    /// What the witness calls its memory, as far as it told this node.
    pub fn epoch(&self) -> Option<Epoch> {
        self.ctx.witness.epoch
    }

    /// What the node is busy with, for those who inject faults at the worst moment.
    pub fn phase_name(&self) -> &'static str {
        match &self.phase {
            Phase::Seeking(_) => "seeking",
            Phase::Ended => "ended",
            Phase::Member(m) => m.phase_name(),
        }
    }

    fn member(&self) -> Option<&Member> {
        match &self.phase {
            Phase::Member(member) => Some(member),
            _ => None,
        }
    }

    /// Takes note of the time, and of what time alone has brought about, before anything else.
    fn wake(&mut self, now: Instant) {
        // A clock that seems to go back stands still.
        let now = now.max(self.ctx.now);
        let due = self.poll_timeout();
        self.ctx.now = now;
        if let Phase::Member(member) = &mut self.phase {
            member.notice_lapse(&mut self.ctx);
            let lease = self.ctx.lease();
            member.stall_end = member.stall_end.filter(|end| now - *end <= lease);
            let late = due.map_or(core::time::Duration::ZERO, |due| now - due);
            if late > self.ctx.lease() / 4 {
                member.stall_end = Some(now);
                if let Some(office) = &mut member.office {
                    office.stalled(now);
                }
            }
        }
    }

    /// After every input: whatever follows from it.
    fn settle(&mut self) {
        let Self { ctx, phase } = self;
        let end = match phase {
            Phase::Member(member) => member.settle(ctx),
            _ => None,
        };
        if let Some(end) = end {
            self.end(end);
        }
    }

    fn end(&mut self, end: End) {
        if let Phase::Member(member) = &mut self.phase {
            let why = if end == End::Left { WhyNot::Leave } else { WhyNot::Removed };
            member.stop_leading_all(&mut self.ctx, why);
            self.ctx.highest = self.ctx.highest.max(member.view.id);
        }
        self.phase = Phase::Ended;
        self.ctx.push(Output::Ended(end));
    }

    fn found(&mut self, found: Option<Found>) {
        match found {
            None => {}
            Some(Found::Member(member)) => self.phase = Phase::Member(member),
            Some(Found::End(end)) => self.end(end),
        }
    }

    fn on_message(&mut self, from: NodeId, msg: Msg) {
        let Self { ctx, phase } = self;
        match phase {
            Phase::Ended => {}
            Phase::Seeking(seeking) => {
                let found = match msg {
                    Msg::Probe(probe) => seeking.on_probe(ctx, *probe),
                    Msg::AskPledge { lineage, terms } => {
                        seeking.on_ask_pledge(ctx, from, lineage, &terms);
                        None
                    }
                    Msg::Pledge { lineage, info, highest, witness } => {
                        seeking.on_pledge(ctx, lineage, *info, highest, witness)
                    }
                    Msg::Refused(why) => {
                        seeking.on_refused(ctx, why);
                        None
                    }
                    Msg::In(lineage, msg) => seeking.on_cluster_msg(ctx, from, lineage, msg),
                    Msg::Join(_) => None,
                };
                self.found(found);
            }
            Phase::Member(member) => match msg {
                Msg::Probe(probe) => member.on_probe(ctx, *probe),
                Msg::Join(join) => member.on_join(ctx, from, *join),
                Msg::In(lineage, msg) if lineage == member.lineage => {
                    if let Some(end) = member.on_cluster_msg(ctx, from, msg) {
                        self.end(end);
                    }
                }
                Msg::AskPledge { lineage, terms } if ctx.planted(Plant::FoundWithStaleSlots) => {
                    let mut seeking = Seeking::new(ctx);
                    member.stop_leading_all(ctx, WhyNot::Removed);
                    seeking.on_ask_pledge(ctx, from, lineage, &terms);
                    self.phase = Phase::Seeking(Box::new(seeking));
                }
                Msg::In(..) | Msg::Refused(_) | Msg::AskPledge { .. } | Msg::Pledge { .. } => {}
            },
        }
    }

    fn force_new(&mut self) {
        let Self { ctx, phase } = self;
        let forced = match phase {
            Phase::Member(member) => member.force_new(ctx),
            _ => Err("this node is in no lineage that could be given up: it looks for a cluster".into()),
        };
        match forced {
            Ok(forced) => self.end(End::Forced(forced)),
            Err(why) => self.ctx.push(Output::NotForced(why)),
        }
    }

    fn on_wish(&mut self, wish: GroupWish) {
        let (left, joins) = match wish {
            GroupWish::Join { .. } => (false, true),
            GroupWish::Leave { .. } => (true, false),
            GroupWish::StepDown { .. } => (true, true),
        };
        self.ctx.wishes.push(wish.clone());
        if let Phase::Member(member) = &mut self.phase {
            member.on_wish(&mut self.ctx, &wish);
        }
        if left {
            self.ctx.trace(|p| Event::Leave { p, g: Group::from(wish.group()) });
        }
        if joins {
            self.ctx.trace(|p| Event::Join { p, g: Group::from(wish.group()), lin: None });
        }
    }
}

impl Machine for Cluster {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Instant, input: Input) {
        self.wake(now);
        match input {
            Input::Message { from, msg } => self.on_message(from, msg),
            Input::Rendezvous { addresses, complete } => {
                self.ctx.asked_around = complete;
                let news = addresses.iter().any(|a| !self.ctx.rendezvous.contains(a));
                self.ctx.rendezvous = addresses;
                if let Phase::Seeking(seeking) = &mut self.phase
                    && news
                {
                    seeking.probe_now(&self.ctx);
                }
            }
            Input::ProvedDead { node, how } => {
                if let Phase::Member(member) = &mut self.phase {
                    member.on_death(&mut self.ctx, node, how, None);
                }
            }
            Input::IsSetAside(floor) => {
                self.ctx.is_set_aside(floor);
                match &mut self.phase {
                    Phase::Seeking(seeking) => seeking.ask_to_join(&mut self.ctx),
                    Phase::Member(member) => member.send_heartbeat(&mut self.ctx),
                    Phase::Ended => {}
                }
            }
            Input::Witness(answer) => {
                self.ctx.on_witness(answer);
                if let Phase::Member(member) = &mut self.phase {
                    member.check_candidacy(&mut self.ctx);
                }
            }
            Input::ForceNew => self.force_new(),
            Input::Wish(wish) => self.on_wish(wish),
            Input::Installed { group, view } => {
                if let Phase::Member(member) = &mut self.phase {
                    member.on_installed(&mut self.ctx, &group, view);
                }
            }
            Input::Behind { group, node } => {
                if let Phase::Member(member) = &mut self.phase {
                    member.on_behind(&mut self.ctx, group, node);
                }
            }
            Input::Observe { group, begin } => {
                if begin {
                    self.ctx.observes.insert(group.clone());
                } else {
                    self.ctx.observes.remove(&group);
                }
                if let Phase::Member(member) = &mut self.phase {
                    member.on_observe(&mut self.ctx, group, begin);
                }
            }
            Input::LeaveCluster => {
                let end = match &mut self.phase {
                    Phase::Member(member) => member.leave(&mut self.ctx),
                    Phase::Seeking(_) => Some(End::Left),
                    Phase::Ended => None,
                };
                if let Some(end) = end {
                    self.end(end);
                }
            }
        }
        self.run_due();
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.wake(now);
        self.run_due();
    }

    fn poll_output(&mut self) -> Option<Output> {
        let output = self.ctx.out.pop_front();
        if output.is_none() {
            release(&mut self.ctx.out);
        }
        output
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Ended => None,
            Phase::Seeking(seeking) => Some(seeking.deadline()),
            Phase::Member(member) => Some(member.next_deadline(&self.ctx)),
        }
    }
}

impl Cluster {
    /// Whatever is due by now.
    fn run_due(&mut self) {
        if let Phase::Seeking(seeking) = &mut self.phase {
            let found = seeking.on_due(&mut self.ctx);
            self.found(found);
        }
        self.settle();
    }
}
