//! The control thread: it gives the machine time, messages and wishes, and carries out what the machine says, in order.
//!
//! It is a thread of its own, so that a busy application does not get its node removed. Nothing on it waits for
//! anything but its own sockets and queues.
//!
//! Of leadership: the cell that applications ask is set only after the machine said so, and cleared before anybody is
//! told that it no longer holds. If the process was stopped between what the machine decided and what is done about it
//! here, the lease may have run out meanwhile. So before each event the clock is read, and a lease that has lapsed is
//! told first.
//!
//! What applications want comes first, then what others say, then what time brings; but in turns, so that none of them waits
//! for the end of another.

mod begin;
mod deaths;
mod ends;
mod groups;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use membership_proto::{
    Cluster, ClusterView, Config, End, Input, Msg, NodeInfo, Output, WhyNot,
    msg::{ClusterMsg, Grant},
};
use membership_sync::{NodeLease, Snapshot};
use membership_types::{
    GroupName, Instant, Lineage, Machine, NodeId, Rng, Weight,
    trace::{Event as TraceEvent, Group},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Sleep, sleep},
};

pub(crate) use self::begin::{Setup, spawn};
use crate::{
    bulk::Bulk,
    channel::Posted,
    clock,
    control::{deaths::Deaths, groups::Slot},
    disk::Disk,
    event::{Event, NodeBus, Said, Speaker, State, Topic, What},
    metrics::{Counts, cause},
    node::{Command, Shared, lock},
    panic::Guarded,
    rendezvous::Steering,
    status::Status,
    trace::Tracer,
    transport::{self, Arrived, Transport},
    witness::Asker,
};

/// How many arrivals wait for the machine; then connections are read no further.
const ARRIVALS: usize = 1024;
/// How many of them are handled before timers and commands get a turn.
const TURN: usize = 64;
/// How often something is dealt with in order of haste before everything that waits gets a turn.
const HASTE: u32 = 16;
/// A queue of inputs that had to be longer than this is not kept once it is empty.
const INPUTS_KEPT: usize = 256;
/// What is left of connections when the node stops has this long to be written.
const FAREWELL: Duration = Duration::from_millis(300);

struct Driver {
    shared: Arc<Shared>,
    bus: NodeBus,
    status: Snapshot<Status>,
    counts: Counts,
    config: Config,
    machine: Cluster,
    rng: Rng,
    transport: Transport,
    bulk: Bulk,
    steering: Steering,
    tracer: Option<Tracer>,
    disk: Option<Disk>,
    witness: Option<Asker>,
    /// An operator waits for a new lineage.
    forcing: Option<oneshot::Sender<Result<Lineage, String>>>,
    rejoin: bool,
    guard: bool,

    lease: NodeLease,
    _guarded: Option<Guarded>,
    lease_until: Instant,
    /// The machine leads groups of which nobody is told so, because the lease lapsed before it noticed.
    suspended: bool,
    /// A panic somewhere has ended the lease: this incarnation goes, and another one comes.
    revoked: bool,

    /// Our own node as events name it.
    speaker: Arc<Speaker>,
    view: Option<Arc<ClusterView>>,
    blocked: Option<String>,
    /// Boxed: half of what a tree holds is room for more.
    groups: BTreeMap<GroupName, Box<Slot>>,
    /// The application may have been told that it leads a group, and not yet that it does not.
    leads: bool,
    /// Groups that this node stepped out of, to come back.
    away: BTreeSet<GroupName>,
    /// The addresses that rendezvous gave last, and whether every provider has answered.
    addresses: (Vec<SocketAddr>, bool),
    deaths: Deaths,
    /// Since when time without a lease is not counted yet.
    blocked_since: Option<Instant>,
    /// The latest heartbeat that was answered, by our clock.
    answered: Instant,
    /// Who gave the last lease, and when.
    leased: Option<(NodeId, Instant)>,
    /// The node's own current state, as events.
    own_state: Vec<Arc<Event>>,
    /// What is to go into the machine once its outputs are carried out.
    inputs: VecDeque<Input>,
    end: Option<End>,
    /// The application stands still.
    late: bool,
    /// Something in the status changed that is not read from the machine.
    changed: bool,
    /// The node is to stop: until when that may take.
    stopping: Option<Instant>,
    /// The node has stopped: why.
    over: Option<String>,
}

impl Driver {
    async fn run(mut self, mut arrivals: mpsc::Receiver<Arrived>, mut commands: mpsc::Receiver<Command>) {
        let shared = Arc::clone(&self.shared);
        let bulk = self.bulk.clone();
        let mut timer = Box::pin(sleep(Duration::ZERO));
        let mut handles = true;
        for (queue, limit) in [("arrivals", ARRIVALS), ("link_frames", transport::WAITING_FRAMES)] {
            self.counts.queue_limit.get_or_create(&[("queue", queue)]).set(limit as i64);
        }
        let waiting = self.counts.queue.get_or_create_owned(&[("queue", "arrivals")]);
        let mut in_haste = 0;
        while self.over.is_none() {
            if in_haste == HASTE {
                in_haste = 0;
                self.give_turns(&mut arrivals).await;
                continue;
            }
            in_haste += 1;
            let due = self.arm(&mut timer);
            if due {
                waiting.set(i64::try_from(arrivals.len()).unwrap_or(i64::MAX));
            }
            tokio::select! {
                biased;
                command = commands.recv(), if handles => match command {
                    Some(command) => self.on_command(command),
                    None => {
                        handles = false;
                        self.stop();
                    }
                },
                () = shared.wake.notified() => self.on_dropped(),
                () = bulk.tells() => self.on_told(),
                Some(arrived) = arrivals.recv() => self.on_arrivals(arrived, &mut arrivals),
                () = timer.as_mut(), if due => self.on_time(),
            }
        }
        self.finish().await;
    }

    /// Applications that ask for things without end do not keep the node from hearing others, nor from seeing that it is time.
    async fn give_turns(&mut self, arrivals: &mut mpsc::Receiver<Arrived>) {
        // Sockets are read meanwhile.
        yield_now().await;
        self.on_dropped();
        self.on_told();
        if let Ok(arrived) = arrivals.try_recv() {
            self.on_arrivals(arrived, arrivals);
        }
        if self.over.is_none() && self.due().is_some_and(|due| due <= clock::now()) {
            self.on_time();
        }
    }

    fn on_arrivals(&mut self, first: Arrived, arrivals: &mut mpsc::Receiver<Arrived>) {
        self.on_arrived(first);
        for _ in 0..TURN {
            let Ok(arrived) = arrivals.try_recv() else { break };
            self.on_arrived(arrived);
        }
    }

    /// When the machine, or we, must do something even if nothing comes.
    fn due(&self) -> Option<Instant> {
        let own = self.stopping.into_iter().chain(self.next_rejoin());
        let pats = self.shared.pats.as_ref().filter(|_| !self.late && self.stopping.is_none());
        let own = own.chain(pats.map(|pats| pats.due()));
        self.machine.poll_timeout().into_iter().chain(own).min()
    }

    /// Sets the timer to that. False for never.
    fn arm(&self, timer: &mut std::pin::Pin<Box<Sleep>>) -> bool {
        let Some(at) = self.due() else { return false };
        let pause = (at - clock::now()).min(Duration::from_secs(3600));
        timer.as_mut().reset(tokio::time::Instant::now() + pause);
        true
    }

    /// Adds the time without a lease that is not counted yet.
    fn count_blocked(&mut self) {
        if let Some(since) = &mut self.blocked_since {
            let now = clock::now();
            self.counts.blocked_for.inc_by((now - *since).as_secs_f64());
            *since = now;
        }
    }

    fn set_queue(&self, queue: &'static str, length: usize) {
        self.counts.queue.get_or_create(&[("queue", queue)]).set(i64::try_from(length).unwrap_or(i64::MAX));
    }

    fn on_time(&mut self) {
        let now = clock::now();
        self.count_blocked();
        self.set_queue("link_frames", self.transport.longest_queue());
        if self.stopping.is_some_and(|until| now >= until) {
            tracing::warn!("the cluster did not let the node go in time: it will be removed as silent");
            self.over = Some("left without an answer of the cluster".to_owned());
            if let Some(tracer) = &self.tracer {
                tracer.end();
            }
            return;
        }
        if self.machine.poll_timeout().is_some_and(|due| due <= now) {
            self.machine.handle_timeout(now);
        }
        self.watch_application();
        self.rejoin_due(now);
        self.pump();
        if let (Some(neighbours), Some(view)) = (self.transport.neighbours(), &self.view) {
            neighbours.act_by_rank(self.config.me.id, view);
        }
    }

    fn on_arrived(&mut self, arrived: Arrived) {
        match arrived {
            // What was meant for an earlier incarnation of this process says nothing about this one.
            Arrived::Message { to, from, msg } if to == self.config.me.id => {
                if let Msg::In(_, ClusterMsg::Grant(Grant { echo: Some(echo), .. })) = &msg
                    && *echo > self.answered
                {
                    // Later grants may repeat it.
                    self.answered = *echo;
                    self.counts.round_trip.observe(clock::now() - *echo);
                }
                self.input(Input::Message { from, msg })
            }
            Arrived::Message { .. } => {}
            Arrived::Dead(node, how) => {
                self.deaths.add(node, how, clock::now());
                self.input(Input::ProvedDead { node, how });
            }
            Arrived::IsSetAside(floor) => self.input(Input::IsSetAside(floor)),
            Arrived::Witness(answer) => self.input(Input::Witness(answer)),
            Arrived::Addresses { addresses, complete } => {
                self.addresses = (addresses.clone(), complete);
                self.input(Input::Rendezvous { addresses, complete });
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Stop => self.stop(),
            Command::Join { group, endpoint, handle, mailbox } => {
                // Whoever dropped an earlier membership, and joins anew, is a new member.
                self.on_dropped();
                self.join(group, endpoint, handle, mailbox.and_then(Posted::arrives));
            }
            Command::Leave { group, done } => self.leave(group, Some(done)),
            Command::StepDown { group, done } => self.step_down(group, done),
            Command::Observe { group, handle } => self.observe(group, handle),
            Command::State { group, standing } => self.tell_state(&group, standing),
            Command::ForceNew { lineage, from, done } => self.force_new(&lineage, from, done),
            Command::Groups { wanted, done } => {
                // Whoever asked may be gone.
                let _gone = done.send(self.kept_groups(wanted));
            }
        }
        self.pump();
    }

    fn on_dropped(&mut self) {
        let dropped = std::mem::take(&mut *lock(&self.shared.dropped));
        for (group, handle) in dropped {
            self.handle_dropped(group, handle);
        }
        self.watch_application();
        self.pump();
    }

    /// The bulk thread tells of views that are installed, and of members who stay behind.
    fn on_told(&mut self) {
        let me = self.config.me.id;
        let told = self.bulk.take_told();
        for (group, (by, view)) in told.installed {
            if by == me {
                self.inputs.push_back(Input::Installed { group, view });
            }
        }
        let behind = told.behind.into_iter().map(|(group, node)| Input::Behind { group, node });
        self.inputs.extend(behind);
        self.pump();
    }

    /// An operator gives up the lineage that this node is in, if it is still the one that was meant.
    fn force_new(&mut self, lineage: &str, from: IpAddr, done: oneshot::Sender<Result<Lineage, String>>) {
        let present = self.machine.lineage().map(|lineage| lineage.to_string());
        let refusal = match &present {
            _ if self.stopping.is_some() => Some("this node is about to leave".to_owned()),
            None => Some("this node is in no lineage".to_owned()),
            Some(present) if present != lineage => {
                Some(format!("this node is in lineage {present} meanwhile"))
            }
            Some(_) => None,
        };
        if let Some(why) = refusal {
            // Whoever asked may be gone.
            let _gone = done.send(Err(why));
            return;
        }
        let (op, who) = ("force-new".to_owned(), from.to_string());
        self.trace(TraceEvent::Admin { p: self.config.me.id.into(), op, who });
        self.forcing = Some(done);
        self.inputs.push_back(Input::ForceNew);
    }

    fn forced(&mut self, outcome: Result<Lineage, String>) {
        if let Some(done) = self.forcing.take() {
            let _gone = done.send(outcome);
        }
    }

    /// Leaves the cluster, within bounds.
    fn stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let patience = (self.config.terms.lease * 3).max(Duration::from_secs(2));
        self.stopping = Some(clock::now().after(patience));
        self.inputs.push_back(Input::LeaveCluster);
        self.pump();
    }

    fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
        self.pump();
    }

    /// One input after the other, each followed by all that comes of it.
    fn pump(&mut self) {
        loop {
            while let Some(output) = self.machine.poll_output() {
                self.carry_out(output);
            }
            if let Some(end) = self.end.take() {
                self.incarnation_over(end);
                if self.over.is_some() {
                    return;
                }
                continue;
            }
            let Some(input) = self.inputs.pop_front() else { break };
            self.machine.handle(clock::now(), input);
        }
        if self.inputs.capacity() > INPUTS_KEPT {
            self.inputs = VecDeque::new();
        }
        self.refresh_status();
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(to, msg) => self.transport.send(to, &msg),
            Output::Lease(until) => self.extend_lease(until),
            Output::Change { joined, left } => {
                let changes = &self.counts.changes;
                changes.get_or_create(&[("cause", "join")]).inc_by(joined as u64);
                for (_, why) in left {
                    changes.get_or_create(&[("cause", cause(why))]).inc();
                }
            }
            Output::ClusterView(view) => self.install(view),
            Output::View(view, part) => self.learn(&view, part),
            Output::Leading { group, token, lineage } => self.begin_leading(group, token, lineage),
            Output::NotLeading { group, token, why, until } => self.end_leading(&group, token, why, until),
            Output::Blocked(why) => {
                self.counts.blocked.inc();
                self.blocked_since.get_or_insert_with(clock::now);
                self.blocked = Some(why.clone());
                // Where all leave at once, the last of them have nobody to tell.
                if self.stopping.is_some() {
                    tracing::info!(why, "blocked while leaving");
                } else {
                    tracing::warn!(why, "blocked");
                }
                self.say(What::Blocked { why });
            }
            Output::Unblocked => {
                self.count_blocked();
                self.blocked_since = None;
                self.blocked = None;
                tracing::info!("unblocked");
                self.say(What::Unblocked);
            }
            Output::Refused(why) => {
                tracing::warn!(why, "a cluster does not admit this node");
                self.say(What::Refused { why });
            }
            Output::Ended(end) => self.end = Some(end),
            Output::StepOut { group } => {
                self.counts.stepped_out.inc();
                self.step_out(&group);
            }
            Output::NotForced(why) => self.forced(Err(why)),
            Output::SetAside(floor) => {
                if let Some(disk) = &self.disk {
                    disk.set_aside(floor);
                }
            }
            Output::AskWitness(question) => {
                if let Some(witness) = &self.witness {
                    witness.ask(question);
                }
            }
            Output::Trace(event) => self.trace(event),
            Output::Mark(_) => {}
        }
    }

    fn install(&mut self, view: ClusterView) {
        let view = Arc::new(view);
        self.counts.views.inc();
        self.counts.members.set(i64::try_from(view.members.len()).unwrap_or(i64::MAX));
        self.set_names(shown_names(&view));
        for NodeInfo { name, load_weight: weight, .. } in self.shared.labels_of_nodes.set(&view) {
            let most = Weight::MAX;
            tracing::warn!(node = %name, weight, "the label is no weight from 1 to {most}: the node counts as one of weight 1");
        }
        self.bulk.set_addresses(view.members.iter().map(|node| (node.id, node.addr)).collect());
        // A death that was proved before the dead was in our view counts now.
        let last = |node| self.view.as_ref().is_some_and(|last| last.contains(node));
        let late = self.deaths.installed(last, |node| view.contains(node));
        self.inputs.extend(late.map(|(node, how)| Input::ProvedDead { node, how }));
        if let Some(neighbours) = self.transport.neighbours() {
            neighbours.keep(&self.transport, |node| view.contains(node));
            neighbours.in_view(&view, &self.transport);
        }
        self.transport.set_lineage(self.machine.lineage());
        self.steering.set_seeking(false);
        let rank = view.rank_of(self.config.me.id).map(|r| r.get());
        tracing::info!(view = %view.id, members = view.members.len(), rank, "cluster view installed");
        self.view = Some(Arc::clone(&view));
        self.say(What::ClusterView(view));
    }

    /// The machine says that the lease lasts until then.
    fn extend_lease(&mut self, until: Instant) {
        self.notice_lapse();
        if !self.lease.extend(until.as_nanos()) {
            self.lease_was_revoked();
            return;
        }
        self.counts.leases.inc();
        let now = clock::now();
        if self.lease_until > Instant::ZERO {
            self.counts.lease_margin.observe(self.lease_until - now);
        }
        if let Some(coordinator) = self.machine.coordinator() {
            let before = self.leased.replace((coordinator, now));
            if let Some((_, at)) = before.filter(|(before, _)| *before != coordinator) {
                self.counts.coordinator_gap.observe(now - at);
            }
        }
        self.lease_until = self.lease_until.max(until);
        self.changed = true;
        self.resume_leading();
        self.bulk.lease_extended();
    }

    /// A panic somewhere in this process ended the lease for ever: this incarnation leaves, another one follows.
    fn lease_was_revoked(&mut self) {
        if self.revoked {
            return;
        }
        self.revoked = true;
        tracing::error!("a panic in this process ended the node's lease: this incarnation leaves");
        self.lease_until = self.lease_until.min(clock::now());
        self.suspend_leading(WhyNot::Lease, self.lease_until);
        self.inputs.push_back(Input::LeaveCluster);
    }

    /// If the lease has run out by now, that is the first thing to be told.
    fn notice_lapse(&mut self) {
        if clock::now() >= self.lease_until {
            self.suspend_leading(WhyNot::Lease, self.lease_until);
        }
    }

    fn trace(&mut self, mut event: TraceEvent) {
        if let TraceEvent::LeadEnd { g: Group::Name(name), until, .. } = &mut event
            && let Ok(name) = GroupName::new(name)
        {
            // Until the cell is cleared the application may act.
            *until = Some(self.stop_acting(&name).as_nanos());
        }
        if let Some(tracer) = &self.tracer {
            tracer.record(event);
        }
    }

    // ---- telling ----------------------------------------------------------------------------------------------------

    fn event(&self, group: Option<GroupName>, what: What) -> Event {
        self.speaker.event(clock::now_ns(), group, what)
    }

    /// Nodes are shown by other names from now on.
    fn set_names(&mut self, names: BTreeMap<NodeId, Arc<str>>) {
        let node = self.config.me.id;
        let name = Arc::clone(names.get(&node).unwrap_or(&self.shared.name));
        self.speaker = Arc::new(Speaker { name, node });
        self.shared.names.set(names);
    }

    /// Tells something about the node itself.
    fn say(&mut self, what: What) {
        self.notice_lapse();
        let event = Arc::new(self.event(None, what));
        match &event.what {
            What::Started { .. } => self.own_state = vec![Arc::clone(&event)],
            What::ClusterView(_) | What::Refused { .. } => {
                self.own_state.retain(|e| !matches!(e.what, What::ClusterView(_) | What::Refused { .. }));
                self.own_state.push(Arc::clone(&event));
            }
            What::Blocked { .. } | What::Unblocked => {
                self.own_state.retain(|e| !matches!(e.what, What::Blocked { .. }));
                if self.blocked.is_some() {
                    self.own_state.push(Arc::clone(&event));
                }
            }
            _ => {}
        }
        self.changed = true;
        self.refresh_status();
        let state = State::Node(self.own_state.as_slice().into());
        let kept = Said { event: None, state: state.clone() };
        self.bus.publish_with(Topic::Node, Arc::new(Said { event: Some(event), state }), Arc::new(kept));
    }

    /// Puts what changed into the status; before anything is told, so that who hears of it finds it there.
    fn refresh_status(&mut self) {
        let now = self.shared.status();
        let (phase, coordinator, core) =
            (self.machine.phase_name(), self.machine.coordinator(), self.machine.core());
        let level = self.machine.level();
        let agreed = self.machine.committed().and_then(|state| state.warrant).map(|w| w.epoch);
        let same = now.phase == phase && now.coordinator == coordinator && now.core == core;
        if !self.changed && same && now.level == level && now.epoch == agreed {
            return;
        }
        self.changed = false;
        self.status.publish(Arc::new(Status {
            id: self.config.me.id,
            phase,
            lineage: self.machine.lineage(),
            view: self.view.clone(),
            core: core.to_vec(),
            coordinator,
            level,
            epoch: agreed,
            blocked: self.blocked.clone(),
            lease_until_ns: self.lease_until.as_nanos(),
            groups: Arc::default(),
        }));
    }
}

/// The names of a view's nodes; where several have the same one, with the id.
pub(crate) fn shown_names(view: &ClusterView) -> BTreeMap<NodeId, Arc<str>> {
    let mut seen = BTreeSet::new();
    let twice: BTreeSet<&str> =
        view.members.iter().map(|n| &*n.name).filter(|name| !seen.insert(*name)).collect();
    let shown = |node: &NodeInfo| {
        if twice.contains(&*node.name) {
            format!("{}#{}", node.name, node.id).into()
        } else {
            (*node.name).into()
        }
    };
    view.members.iter().map(|node| (node.id, shown(node))).collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::Node;

    #[tokio::test]
    async fn whatever_is_in_haste_everything_else_gets_its_turn() {
        const COMMANDS: u64 = 200;
        let node = Node::builder().panic_hook(false).start().await.expect("starts");
        node.joined().await.expect("joins");
        let dropped = node.observe("dropped").await.expect("runs");
        let mut views = dropped.views();
        views.next().await.expect("runs");
        let mut events = node.all_events();
        let mut dropped = Some(dropped);
        let send = |_: (&Topic, &Arc<Said>)| {
            // Once, while the thread waits with the first command for the bus, until the others and the dropped handle wait for it.
            if let Some(dropped) = dropped.take() {
                for handle in 0..COMMANDS {
                    let group = GroupName::new(&format!("g{handle}")).expect("a name");
                    let observe = Command::Observe { group, handle: 1_000_000 + handle };
                    node.inner.commands.try_send(observe).expect("room");
                }
                drop(dropped);
            }
            Some(())
        };
        let bus = lock(&node.inner.shared.bus).clone().expect("it runs");
        let topics: Vec<()> = bus.collect(send);
        assert!(!topics.is_empty(), "the node's own at least");
        let seen = async {
            let mut seen = 0;
            loop {
                match events.next().await.expect("runs").what {
                    What::Out { .. } => return seen,
                    What::View(view) if view.group.as_str().starts_with('g') => seen += 1,
                    _ => {}
                }
            }
        };
        let before = timeout(Duration::from_secs(60), seen).await.expect("it is told");
        assert!(before < COMMANDS / 2, "{before} of {COMMANDS} commands came first");
        node.leave().await;
    }
}
