//! Scenes with one node, to which the test says by hand what others would: what is too rare for the simulator, or too long for a
//! model.

use alloc::{sync::Arc, vec, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use membership_types::{Ballot, GroupName, Instant, Lineage, LogIndex, Machine, NodeId, Rng, ViewId};

use crate::{
    acceptor::Acceptor,
    cluster::{Cluster, Input},
    config::{Bootstrap, Config},
    ctx::{Ctx, Dest, End, Output},
    entry::{Command, Entry, GroupWish},
    floor::{Durable, Floor},
    member::Member,
    msg::{Ask, ClusterMsg, Heartbeat, Hello, Join, Msg, Probe, Promise, Standing},
    quorum::Deaths,
    seeking::Seeking,
    spread::Domains,
    state::State,
    view::{Kind, NodeInfo, Why},
    witness::{Answer, Epoch, Question, Warrant},
};

mod arrival;
mod rules;

const LEASE: Duration = Duration::from_secs(1);

fn id(n: u32) -> NodeId {
    NodeId::new(n, u64::from(n))
}

fn ballot(round: u64, n: u32) -> Ballot {
    Ballot { round, node: id(n) }
}

fn info(n: u32) -> NodeInfo {
    NodeInfo {
        id: id(n),
        name: "n".into(),
        addr: SocketAddr::from(([127, 0, 0, 1], 1000 + n as u16)),
        eligible: true,
        slot: None,
        keeps_floor: false,
        domains: Domains::default(),
        load_weight: None,
    }
}

/// Node `me` of five, all in the core; node 1 coordinates, and nobody has a lease.
struct Scene {
    ctx: Ctx,
    member: Member,
}

impl Scene {
    fn new(me: u32) -> Self {
        let config = Config::new(info(me), Bootstrap::Join, LEASE).expect("valid");
        let mut ctx = Ctx::new(config, Instant::from_nanos(1 << 40), Rng::seeded(1), ViewId::NONE);
        let lineage = Lineage::new(1, 1);
        let founders = (1..=5).map(info).collect();
        let core = (1..=5).map(id).collect();
        let terms = ctx.config.terms.clone();
        let mut state = State::before_founding(lineage, terms, ViewId::new(100), founders, core);
        state.apply(&Entry { commands: vec![Command::Found], ..Entry::default() });
        let mut member = Member::new(&ctx, lineage, ballot(1, 1));
        member.view = state.view.clone();
        member.core.clone_from(&state.core);
        member.acceptor = Some(Acceptor::new(&mut ctx, ballot(1, 1), state));
        Self { ctx, member }
    }

    fn wait(&mut self, time: Duration) {
        self.ctx.now = self.ctx.now.after(time);
    }

    /// What the node has said since it was last asked.
    fn said(&mut self) -> Vec<(Dest, ClusterMsg)> {
        let said = self.ctx.out.drain(..).filter_map(|output| match output {
            Output::Send(to, Msg::In(_, msg)) => Some((to, msg)),
            _ => None,
        });
        said.collect()
    }

    fn commit(&self) -> LogIndex {
        self.member.acceptor.as_ref().expect("it keeps the log").state.index
    }

    /// A candidate asks for a promise. If it gets one: did the node bind itself, too?
    fn ask(&mut self, round: u64, from: u32) -> Option<bool> {
        let (commit, sent) = (self.commit(), self.ctx.now);
        let ask = Ask { ballot: ballot(round, from), commit, sent, deaths: Deaths::default() };
        self.member.on_ask(&mut self.ctx, id(from), ask);
        self.said().into_iter().find_map(|(_, msg)| match msg {
            ClusterMsg::Promise(promise) => Some(promise.bound),
            _ => None,
        })
    }

    /// It is the node's turn: for which ballot does it ask?
    fn candidacy(&mut self) -> Ballot {
        self.member.check_takeover(&mut self.ctx);
        self.wait(self.ctx.config.step);
        self.member.check_takeover(&mut self.ctx);
        let asked = self.said().into_iter().find_map(|(_, msg)| match msg {
            ClusterMsg::Ask(ask) => Some(ask.ballot),
            _ => None,
        });
        asked.expect("it asks for promises")
    }

    /// Only 1 and 2 are left, both in the core, and there is a witness.
    fn pair(me: u32, warrant: Option<Warrant>) -> Self {
        let mut scene = Self::new(me);
        scene.ctx.config.terms.witness = true;
        let state = &mut scene.member.acceptor.as_mut().expect("it keeps the log").state;
        state.terms.witness = true;
        state.core = [1, 2].map(id).into();
        state.warrant = warrant;
        scene.member.core.clone_from(&state.core);
        scene
    }

    /// What the witness is asked to record.
    fn claims(&mut self) -> Vec<Question> {
        let asked = self.ctx.out.drain(..).filter_map(|output| match output {
            Output::AskWitness(question) if question.claim.is_some() => Some(question),
            _ => None,
        });
        asked.collect()
    }

    /// The witness says what it has recorded for the core in force.
    fn recorded(&mut self, epoch: u64, half: &[u32]) {
        let record = (!half.is_empty()).then(|| half.iter().map(|n| id(*n)).collect());
        let (lineage, core) = (self.member.lineage, LogIndex::new(7));
        self.ctx.on_witness(Answer { lineage, core, epoch: Epoch::new(epoch), record });
        self.member.check_candidacy(&mut self.ctx);
    }

    /// A node whose data directory has this floor asks the coordinator to be admitted.
    fn asks_in(&mut self, info: NodeInfo, floor: Option<Floor>) {
        let id = info.id;
        let join = Join {
            info,
            lease: LEASE,
            highest: ViewId::NONE,
            floor,
            wishes: Vec::new(),
            observes: Vec::new(),
            level: 0,
            witness: false,
        };
        let Self { ctx, member } = self;
        let (office, acceptor) = (member.office.as_mut().expect("in office"), member.acceptor.as_ref());
        office.on_join(ctx, acceptor.expect("it keeps the log"), &member.deaths, id, join);
    }

    /// Node 2 takes over, with promises of 3 and 4. Which of the two should answer its first grant at once?
    fn take_over(&mut self, bound: bool) -> Vec<(NodeId, bool)> {
        let asked = self.candidacy();
        for from in [3, 4] {
            self.promise(asked, from, bound, None);
        }
        assert!(self.member.office.is_some(), "three of five");
        let grants = self.said().into_iter().filter_map(|(to, msg)| match (to, msg) {
            (Dest::Node(to, _), ClusterMsg::Grant(grant)) if to == id(3) || to == id(4) => {
                Some((to, grant.answer))
            }
            _ => None,
        });
        grants.collect()
    }
}

/// Node 2 hears everybody, and only node 3 hears it: each time that node 4 asks, it gives way and then asks again.
#[test]
fn an_heir_that_cannot_win_does_not_bind_the_core_for_ever() {
    let mut scene = Scene::new(3);
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    assert_eq!(scene.ask(2, 2), Some(true), "the heir asks");
    assert_eq!(scene.ask(3, 4), None, "nobody else can win as long as the heir may have won");
    scene.wait(LEASE / 2);
    assert_eq!(scene.ask(4, 2), Some(false), "the heir asks anew");
    assert_eq!(scene.ask(5, 4), None);
    scene.wait(LEASE * 6 / 10);
    assert_eq!(scene.ask(6, 4), Some(false), "a lease after the first time");
}

#[test]
fn a_winner_asks_those_for_an_answer_who_are_not_bound_to_it_yet() {
    let mut scene = Scene::new(2);
    scene.wait(LEASE * 2);
    assert_eq!(scene.take_over(false), [(id(3), true), (id(4), true)], "after a lease has lapsed");
    let mut scene = Scene::new(2);
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    assert_eq!(scene.take_over(true), [(id(3), false), (id(4), false)], "after a proof, with nothing to add");
}

/// Found by the simulator: the entry that it had adopted removed the winner itself, and in the moment in which that was committed
/// it had authority, and led once more.
#[test]
fn a_coordinator_that_has_just_committed_its_own_removal_takes_no_lease() {
    let mut scene = Scene::new(2);
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    let asked = scene.candidacy();
    let commands = vec![Command::Remove(id(2), Why::Silent)];
    let entry = Arc::new(Entry { commands, core: Some([3, 4, 5].map(id).into()), epoch: None });
    for from in [3, 4] {
        scene.promise(asked, from, true, Some((ballot(1, 1), entry.clone())));
    }
    assert_eq!(scene.member.settle(&mut scene.ctx), None);
    let index = scene.commit().next();
    let now = scene.ctx.now;
    for from in [3, 4] {
        let office = scene.member.office.as_mut().expect("three of five, and two of the next three");
        office.on_accepted(&scene.ctx, id(from), asked, index, now);
    }
    // It goes once the others know.
    assert_eq!(scene.member.settle(&mut scene.ctx), None);
    assert_eq!(scene.commit(), index, "it is decided");
    assert!(!scene.ctx.out.iter().any(|output| matches!(output, Output::Lease(_) | Output::Unblocked)));
    scene.wait(LEASE);
    assert!(
        matches!(scene.member.settle(&mut scene.ctx), Some(End::Removed { .. })),
        "or when it has waited long enough"
    );
}

/// It waits a lease for that, otherwise: its successor is faster than its last words.
#[test]
fn a_coordinator_that_is_out_hears_who_knows_also_from_those_who_follow_the_next_one() {
    let mut scene = Scene::new(2);
    let entry = Entry {
        commands: vec![Command::Remove(id(1), Why::Left)],
        core: Some([2, 3, 4, 5].map(id).into()),
        epoch: None,
    };
    let acceptor = scene.member.acceptor.as_mut().expect("it keeps the log");
    acceptor.commit(&mut scene.ctx, Arc::new(entry));
    let index = scene.commit();
    assert!(scene.member.follow(&mut scene.ctx, ballot(2, 3)));
    let answers = |scene: &mut Scene, index| {
        scene.member.on_commit(&mut scene.ctx, id(1), ballot(1, 1), index);
        let said = scene.said().into_iter();
        said.filter_map(|(to, msg)| match (to, msg) {
            (Dest::Node(to, _), ClusterMsg::Heartbeat(beat)) => Some((to, beat.commit)),
            _ => None,
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(answers(&mut scene, index), [(id(1), Some(index))]);
    assert_eq!(answers(&mut scene, index.next()), [], "of that it knows nothing");
}

/// Found by the simulator: the lineage that was founded on the pledge began with ids that a coordinator elsewhere then gave, too.
#[test]
fn who_has_pledged_itself_sets_no_ids_aside_for_another_lineage() {
    let me = NodeInfo { slot: Some(3), keeps_floor: true, ..info(3) };
    let config = Config::new(me, Bootstrap::Expect(5), LEASE).expect("valid");
    let mut ctx = Ctx::new(config, Instant::from_nanos(1 << 40), Rng::seeded(1), ViewId::NONE);
    ctx.durable = Some(Durable::new(None));
    let mut seeking = Seeking::new(&ctx);
    let (ours, other) = (Lineage::new(2, 2), Lineage::new(1, 1));
    let asked = |seeking: &mut Seeking, ctx: &mut Ctx, view| {
        let msg = ClusterMsg::SetAside { ballot: ballot(1, 1), view: ViewId::new(view), given: ViewId::NONE };
        assert!(seeking.on_cluster_msg(ctx, id(1), other, msg).is_none());
        ctx.out.drain(..).any(|output| matches!(output, Output::SetAside(_)))
    };
    assert!(asked(&mut seeking, &mut ctx, 100), "as long as nobody relies on what it said");
    let terms = ctx.config.terms.clone();
    seeking.on_ask_pledge(&mut ctx, id(2), ours, &terms);
    // What is on its way to the disk will be there: the other one may give all of that.
    let above = |output: Output| match output {
        Output::Send(_, Msg::Pledge { highest, .. }) => Some(highest),
        _ => None,
    };
    assert!(ctx.out.drain(..).find_map(above).expect("it pledges itself") > ViewId::new(100));
    assert!(!asked(&mut seeking, &mut ctx, 1 << 40));
    // The lineage that it is pledged to begins above that, and gets an answer.
    let (highest, ballot) = (ctx.foreign_floor(ours), ballot(1, 2));
    for given in [ViewId::new(highest.get() - 1), highest] {
        let msg = ClusterMsg::SetAside { ballot, view: ViewId::new(highest.get() + 1), given };
        assert!(seeking.on_cluster_msg(&mut ctx, id(2), ours, msg).is_none());
        let (mut floors, mut beats) = (Vec::new(), Vec::new());
        for output in ctx.out.drain(..) {
            match output {
                Output::SetAside(floor) => floors.push(floor),
                Output::Send(_, Msg::In(_, ClusterMsg::Heartbeat(beat))) => {
                    beats.push((beat.floor, beat.foreign))
                }
                _ => {}
            }
        }
        let above = given == highest;
        assert_eq!(
            beats,
            [(ViewId::NONE, if above { ViewId::NONE } else { highest })],
            "nothing is on the disk yet"
        );
        assert_eq!(floors.len(), usize::from(above), "below, ids are the other lineage's");
        for floor in floors {
            ctx.is_set_aside(floor);
            assert_eq!((ctx.floor_in(ours), ctx.floor_in(other)), (floor.view, ViewId::NONE));
        }
    }
}

/// A directory of another lineage sets nothing aside here before ids are above what it has for that.
#[test]
fn ids_are_raised_above_what_a_member_s_directory_has_for_another_lineage_and_once() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    let foreign = ViewId::new(1 << 41);
    let raises = |scene: &Scene| {
        let office = scene.member.office.as_ref().expect("in office");
        office.commands().filter(|command| **command == Command::Raise(foreign)).count()
    };
    assert_eq!(raises(&scene), 0);
    scene.brings(4, foreign);
    scene.brings(4, foreign);
    assert_eq!(raises(&scene), 1);
    scene.decide_all();
    let last = scene.member.acceptor.as_ref().expect("it keeps the log").state.last_view;
    assert!(last >= foreign, "{last}");
    scene.brings(4, foreign);
    assert_eq!(raises(&scene), 0, "they are above");
}

/// Found by the simulator (GM11, LV1, LV7): nobody knew an address in the lineage that theirs was dissolved into, so all founded anew
/// at once, and were dissolved again.
#[test]
fn who_goes_over_looks_for_three_leases_before_it_founds() {
    for goes_over in [false, true] {
        let config = Config::new(info(3), Bootstrap::AloneAfter(LEASE / 2), LEASE).expect("valid");
        let begun = Instant::from_nanos(1 << 40);
        let mut cluster = Cluster::new(config, begun, Rng::seeded(1), ViewId::NONE);
        if goes_over {
            cluster.goes_over();
        }
        cluster.handle(begun, Input::Rendezvous { addresses: Vec::new(), complete: true });
        let mut now = begun;
        while cluster.lineage().is_none() {
            now = now.after(LEASE / 10);
            assert!(now - begun < LEASE * 5, "not for ever");
            cluster.handle_timeout(now);
        }
        assert_eq!(now - begun >= LEASE * 3, goes_over, "after {:?}", now - begun);
    }
}

#[test]
fn who_is_without_a_lease_goes_to_an_active_lineage_however_often_views_come() {
    let mut scene = Scene::new(3);
    let active = Standing::Member {
        lineage: Lineage::new(2, 2),
        active: true,
        coordinator: None,
        last_view: ViewId::new(500),
        supersedes: Vec::new(),
    };
    let begun = scene.ctx.now;
    let end = loop {
        scene.wait(LEASE / 2);
        scene.member.blocked_since = scene.ctx.now; // A view was installed.
        let probe = Probe { info: info(9), standing: active.clone(), answer: false };
        scene.member.on_probe(&mut scene.ctx, probe);
        if let Some(end) = scene.member.check_give_up(&mut scene.ctx) {
            break end;
        }
        assert!(scene.ctx.now - begun < scene.ctx.config.give_up * 2, "it stays for ever");
    };
    assert_eq!(end, End::Dissolved { into: Lineage::new(2, 2) });
    assert!(scene.ctx.now - begun >= scene.ctx.config.give_up, "and not too early");
}

/// Two members that took each other for the coordinator told each other of a third lineage for ever, as fast as the network was.
#[test]
fn what_a_member_is_told_of_another_lineage_it_passes_on_to_nobody() {
    let mut scene = Scene::new(3);
    let told = |scene: &mut Scene| -> Vec<Dest> {
        let said = scene.said().into_iter();
        said.filter(|(_, msg)| matches!(msg, ClusterMsg::Met { .. })).map(|(to, _)| to).collect()
    };
    let (lineage, last_view) = (Lineage::new(2, 2), ViewId::new(500));
    let standing =
        Standing::Member { lineage, active: true, coordinator: None, last_view, supersedes: Vec::new() };
    scene.member.on_probe(&mut scene.ctx, Probe { info: info(9), standing, answer: false });
    assert_eq!(told(&mut scene), [Dest::Node(id(1), Some(info(1).addr))], "what it heard itself");
    scene.member.met(&mut scene.ctx, lineage, info(9), last_view, Vec::new());
    assert_eq!(told(&mut scene), []);
}

#[test]
fn nobody_forces_a_lineage_while_others_have_leases_from_its_own_office() {
    let mut scene = Scene::new(2);
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    let asked = scene.candidacy();
    // What it adopts removes the node itself: it takes no lease, and goes on giving them until that is decided.
    let commands = vec![Command::Remove(id(2), Why::Silent)];
    let entry = Arc::new(Entry { commands, ..Entry::default() });
    for from in [3, 4] {
        scene.promise(asked, from, true, Some((ballot(1, 1), entry.clone())));
    }
    for _ in 0..30 {
        scene.wait(LEASE / 10);
        for from in [3, 4, 5] {
            scene.beat(from, 0);
        }
        assert_eq!(scene.member.settle(&mut scene.ctx), None);
    }
    assert!(!scene.member.holds_lease(scene.ctx.now), "it is blocked for long");
    let refused = scene.member.force_new(&mut scene.ctx).expect_err("others have leases");
    assert!(refused.contains("leases from it"), "{refused}");
    scene.wait(LEASE * 2);
    assert!(scene.member.force_new(&mut scene.ctx).is_ok(), "when nobody has answered for two leases");
    scene.ctx.config.me.eligible = false;
    let refused = scene.member.force_new(&mut scene.ctx).expect_err("its core would have no member");
    assert!(refused.contains("--core yes"), "{refused}");
}

#[test]
fn a_seeker_asks_an_active_lineage_and_not_a_blocked_one_for_as_long_as_it_may_be_admitted_there() {
    let config = Config::new(info(9), Bootstrap::Join, LEASE).expect("valid");
    let mut ctx = Ctx::new(config, Instant::from_nanos(1 << 40), Rng::seeded(1), ViewId::NONE);
    let mut seeking = Seeking::new(&ctx);
    let hear = |seeking: &mut Seeking, ctx: &mut Ctx, from: u32, active, answer| {
        let lineage = Lineage::new(from.into(), 1);
        let (coordinator, supersedes) = (Some(info(from)), Vec::new());
        let standing = Standing::Member { lineage, active, coordinator, last_view: ViewId::NONE, supersedes };
        assert!(seeking.on_probe(ctx, Probe { info: info(from), standing, answer }).is_none());
    };
    let asks = |seeking: &mut Seeking, ctx: &mut Ctx| -> Vec<NodeId> {
        ctx.out.clear();
        seeking.ask_to_join(ctx);
        let asked = ctx.out.drain(..).filter_map(|output| match output {
            Output::Send(Dest::Node(to, _), Msg::Join(_)) => Some(to),
            _ => None,
        });
        asked.collect()
    };
    hear(&mut seeking, &mut ctx, 1, false, false);
    assert_eq!(asks(&mut seeking, &mut ctx), [id(1)], "there is nobody else");
    hear(&mut seeking, &mut ctx, 2, true, true);
    assert_eq!(asks(&mut seeking, &mut ctx), [id(1), id(2)], "the active one may not hear us");
    hear(&mut seeking, &mut ctx, 2, true, false);
    assert_eq!(asks(&mut seeking, &mut ctx), [id(2)]);
    ctx.now = ctx.now.after(ctx.config.give_up);
    hear(&mut seeking, &mut ctx, 1, false, false);
    hear(&mut seeking, &mut ctx, 2, true, false);
    assert_eq!(asks(&mut seeking, &mut ctx), [id(1), id(2)], "it was not admitted");
}

/// Node 3 has founder slot 3; a newer process at its address has it too, with another data directory.
#[test]
fn what_a_replaced_holder_says_late_counts_for_its_slot_no_more() {
    let mut scene = Scene::new(2);
    let with_slot = |n| NodeInfo { slot: Some(3), keeps_floor: true, ..info(n) };
    {
        let state = &mut scene.member.acceptor.as_mut().expect("it keeps the log").state;
        (state.terms.slots, state.terms.durable) = (5, true);
        let node = state.view.members.iter_mut().find(|node| node.id == id(3)).expect("a member");
        *node = with_slot(3);
    }
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    assert_eq!(scene.take_over(true).len(), 2);
    let floor = |scene: &Scene| {
        let office = scene.member.office.as_ref().expect("in office");
        office.floor_of_slot(3).map(ViewId::get)
    };
    scene.beat(3, 500);
    assert_eq!(floor(&scene), Some(500));
    let newer = NodeInfo { id: NodeId::new(3, 99), ..with_slot(3) };
    scene.asks_in(newer, None);
    assert_eq!(floor(&scene), Some(0), "of the new directory nothing is known");
    scene.beat(3, 500);
    assert_eq!(floor(&scene), Some(0), "and the old one is not the slot's any more");
}

/// An entry waits for view ids to be set aside, and who asks to be admitted could do that, too.
#[test]
fn a_guest_is_asked_to_set_ids_aside_where_that_counts() {
    let (ours, other) = (Lineage::new(1, 1), Lineage::new(2, 2));
    for (floor, counts) in [
        (None, true),
        (Some((ours, 7)), true),
        (Some((ours, 1 << 50)), false), // It has.
        (Some((other, 7)), false),
        (Some((other, 1 << 50)), false),
    ] {
        let mut scene = Scene::new(2);
        let state = &mut scene.member.acceptor.as_mut().expect("it keeps the log").state;
        (state.terms.slots, state.terms.durable) = (5, true);
        scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
        scene.take_over(true);
        assert_eq!(scene.decide_all(), [0; 0], "no directory has set anything aside");
        let floor =
            floor.map(|(lineage, view)| Floor { view: ViewId::new(view), lineage, ballot: ballot(1, 1) });
        scene.asks_in(NodeInfo { slot: Some(4), keeps_floor: true, ..info(9) }, floor);
        let asked = |(to, msg): &(Dest, ClusterMsg)| matches!((to, msg), (Dest::Node(to, _), ClusterMsg::SetAside { .. }) if *to == id(9));
        assert_eq!(scene.said().iter().any(asked), counts, "{floor:?}");
    }
}

/// A write may still be on its way when an incarnation ends: the next one asks for no lower floor, which would take its place.
#[test]
fn a_new_incarnation_knows_what_the_one_before_asked_its_disk_for() {
    let me = NodeInfo { keeps_floor: true, ..info(3) };
    let begun = Instant::from_nanos(1 << 40);
    let new = || {
        let config = Config::new(me.clone(), Bootstrap::Join, LEASE).expect("valid");
        Cluster::new(config, begun, Rng::seeded(1), ViewId::NONE)
    };
    let asked = |cluster: &mut Cluster, view| {
        let msg = ClusterMsg::SetAside { ballot: ballot(1, 1), view: ViewId::new(view), given: ViewId::NONE };
        let msg = Msg::In(Lineage::new(1, 1), msg);
        cluster.handle(begun, Input::Message { from: id(1), msg });
        core::iter::from_fn(|| cluster.poll_output()).find_map(|output| match output {
            Output::SetAside(floor) => Some(floor.view),
            _ => None,
        })
    };
    let mut first = new().with_floor(None);
    let floor = asked(&mut first, 1 << 30).expect("far above what there was");
    let mut next = new().with_floor_of(&first);
    assert_eq!(asked(&mut next, 5), None, "as good as set aside");
    assert!(asked(&mut next, floor.get()) > Some(floor));
}

/// The junior of two asks the witness, late enough, and goes on if it is the one that was recorded.
#[test]
fn half_of_the_core_goes_on_by_the_record_of_the_witness_and_by_nothing_else() {
    let warrant = Warrant { core: LogIndex::new(7), epoch: Epoch::new(3) };
    let alone = |warrant: Option<Warrant>| {
        let mut scene = Scene::pair(2, warrant);
        scene.wait(LEASE * 2);
        scene.candidacy();
        assert!(scene.claims().is_empty(), "the coordinator may ask first");
        for _ in 0..5 {
            scene.wait(LEASE / 10);
            scene.member.check_takeover(&mut scene.ctx);
        }
        assert!(scene.member.office.is_none());
        scene
    };
    let mut scene = alone(Some(warrant));
    let asked = scene.claims();
    let claim = Some((warrant.epoch, [id(2)].into()));
    assert!(
        !asked.is_empty() && asked.iter().all(|q| (q.core, &q.claim) == (warrant.core, &claim)),
        "{asked:?}"
    );
    scene.recorded(3, &[]);
    assert!(scene.member.office.is_none(), "nothing is recorded");
    scene.recorded(4, &[2]);
    assert!(scene.member.office.is_none(), "of another memory");
    scene.recorded(3, &[2]);
    assert!(scene.member.office.is_some());

    let mut scene = alone(Some(warrant));
    scene.recorded(3, &[1]);
    scene.claims();
    scene.wait(LEASE * 5);
    scene.member.check_takeover(&mut scene.ctx);
    assert!(scene.member.office.is_none() && scene.claims().is_empty(), "the other one was faster");

    assert!(alone(None).claims().is_empty(), "a core without an epoch");
    // The senior is nothing special where there is a witness.
    let mut scene = Scene::pair(1, Some(warrant));
    let ballot = ballot(2, 2);
    scene.member.follow(&mut scene.ctx, ballot);
    scene.wait(LEASE * 3);
    scene.candidacy();
    scene.wait(LEASE);
    scene.member.check_takeover(&mut scene.ctx);
    assert!(scene.member.office.is_none() && !scene.claims().is_empty());
}

/// A core of five has no halves, but the one that the other candidate found undecided may: it has time to ask the witness.
/// (Two such candidates once took turns for ever.)
#[test]
fn a_candidate_that_another_one_ended_gives_it_time_to_ask_the_witness() {
    let mut scene = Scene::new(2);
    scene.ctx.config.terms.witness = true;
    scene.wait(LEASE * 2);
    let mut round = scene.candidacy().round;
    for _ in 0..3 {
        round += 1;
        assert!(scene.ask(round, 3).is_some(), "it promises");
        scene.wait(scene.ctx.config.heartbeat * 4);
        scene.member.check_takeover(&mut scene.ctx);
        assert!(!scene.member.takeover.is_candidate(), "3 is on its way");
        scene.wait(LEASE);
        round = scene.candidacy().round;
    }
}

/// The core came into force before anybody knew of the witness, so no half of it can be recorded; nobody comes or goes.
#[test]
fn a_core_that_all_are_in_is_put_in_force_anew_once_the_witness_answers() {
    let mut scene = Scene::pair(1, None);
    scene.member.follow(&mut scene.ctx, ballot(2, 2));
    scene.wait(LEASE * 3);
    let asked = scene.candidacy();
    scene.promise(asked, 2, false, None);
    assert!(scene.member.office.is_some(), "both promised");
    // All entries that name a core, while the other one stores whatever is proposed.
    let cores = |scene: &mut Scene| {
        let mut cores = Vec::new();
        for _ in 0..5 {
            scene.beat(2, 0);
            assert_eq!(scene.member.settle(&mut scene.ctx), None);
            for (to, msg) in scene.said() {
                if let (Dest::Node(to, _), ClusterMsg::Append { ballot, index, entry, sent }) = (to, msg) {
                    cores.extend(entry.core.clone().map(|core| (index, core, entry.epoch)));
                    let office = scene.member.office.as_mut().expect("in office");
                    office.on_accepted(&scene.ctx, to, ballot, index, sent);
                }
            }
            scene.wait(LEASE / 10);
        }
        cores
    };
    assert_eq!(cores(&mut scene), [], "the witness has not answered yet");
    scene.recorded(3, &[]);
    let named = cores(&mut scene);
    let [(index, core, epoch)] = &named[..] else { panic!("once, and not {named:?}") };
    assert_eq!((&core[..], *epoch), (&[id(1), id(2)][..], Some(Epoch::new(3))));
    assert_eq!(scene.state().warrant, Some(Warrant { core: *index, epoch: Epoch::new(3) }));
}

/// The most that one message may have, with some room: far below what the transport takes.
const MESSAGE: usize = 3 << 20;

fn group(n: u64) -> GroupName {
    GroupName::new(&alloc::format!("g{n}")).expect("valid")
}

/// A wish to serve at an address of a thousand letters.
fn long_wish(n: u64) -> GroupWish {
    GroupWish::Join { group: group(n), endpoint: Some("e".repeat(1000).into()), kind: Kind::Plain }
}

impl Scene {
    /// Node 2, in office.
    fn in_office() -> Self {
        let mut scene = Self::new(2);
        scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
        scene.take_over(true);
        scene
    }

    /// Nodes 3 and 4 store whatever is proposed, until nothing is. Gives the weights of the entries.
    fn decide_all(&mut self) -> Vec<usize> {
        let mut weights = Vec::new();
        let mut quiet = 0;
        while quiet < 3 {
            assert_eq!(self.member.settle(&mut self.ctx), None);
            let appended = self.said().into_iter().filter_map(|(to, msg)| match (to, msg) {
                (Dest::Node(to, _), ClusterMsg::Append { ballot, index, entry, sent }) => {
                    Some((to, ballot, index, entry, sent))
                }
                _ => None,
            });
            let appended: Vec<_> = appended.collect();
            quiet = if appended.is_empty() { quiet + 1 } else { 0 };
            for (to, ballot, index, entry, sent) in appended {
                if to == id(3) {
                    weights.push(entry.weight());
                }
                let office = self.member.office.as_mut().expect("in office");
                office.on_accepted(&self.ctx, to, ballot, index, sent);
            }
            for from in [3, 4, 5] {
                self.beat(from, 0);
            }
            self.wait(LEASE / 20);
        }
        weights
    }

    fn state(&self) -> &State {
        &self.member.acceptor.as_ref().expect("it keeps the log").state
    }
}

#[test]
fn an_entry_is_never_larger_than_a_message_however_much_waits() {
    let mut scene = Scene::in_office();
    let wishes: Vec<_> = (1..=5000).map(|n| (n, long_wish(n))).collect();
    {
        let Scene { member, .. } = &mut scene;
        let (office, acceptor) = (member.office.as_mut().expect("in office"), member.acceptor.as_ref());
        office.on_wishes(acceptor.expect("it keeps the log"), id(3), wishes);
    }
    let weights = scene.decide_all();
    assert!(weights.iter().all(|weight| *weight < MESSAGE), "{weights:?}");
    assert_eq!((scene.state().groups().count(), scene.state().last_op(id(3))), (5000, 5000));
}

#[test]
fn a_node_says_as_many_wishes_at_once_as_fit_into_a_message_and_the_others_later() {
    let mut ctx = Scene::new(3).ctx;
    (1..=5000).for_each(|n| ctx.wishes.push(long_wish(n)));
    let mut next = 1;
    while next <= 5000 {
        let first = ctx.wishes.first();
        assert_eq!(first.first().map(|(op, _)| *op), Some(next), "in order");
        assert!(first.iter().map(|(_, wish)| wish.weight() + 16).sum::<usize>() < MESSAGE);
        next += first.len() as u64;
        ctx.wishes.done(next - 1);
    }
}

/// A later wish of the same node would count for the one that was left out.
#[test]
fn a_coordinator_forgets_none_of_its_own_wishes_whatever_waits() {
    let mut scene = Scene::in_office();
    let join = |n| GroupWish::Join { group: group(n), endpoint: None, kind: Kind::Plain };
    let others: Vec<_> = (1..=100_000).map(|n| (n, join(1))).collect();
    {
        let Scene { ctx, member } = &mut scene;
        let (office, acceptor) = (member.office.as_mut().expect("in office"), member.acceptor.as_ref());
        office.on_wishes(acceptor.expect("it keeps the log"), id(3), others);
        office.own_wish(ctx, 1, join(2));
    }
    scene.decide_all();
    assert!(scene.state().group(&group(2)).is_some());
    assert_eq!((scene.state().last_op(id(3)), scene.state().last_op(id(2))), (100_000, 1));
}

/// Node 3 is in so many groups that they do not fit into a message, and knows none of them.
#[test]
fn who_must_be_told_much_is_told_in_parts_and_all_of_it() {
    for from_nothing in [false, true] {
        let (mut scene, mut third) = (Scene::in_office(), Scene::new(3));
        let commands = (1..=5000).map(|op| Command::Group { node: id(3), op, wish: long_wish(op) });
        let entry = Arc::new(Entry { commands: commands.collect(), ..Entry::default() });
        let acceptor = scene.member.acceptor.as_mut().expect("it keeps the log");
        acceptor.commit(&mut scene.ctx, entry);
        third.member.acceptor = None;
        let index = scene.commit();
        if from_nothing {
            third.member.view = Member::new(&third.ctx, third.member.lineage, ballot(1, 1)).view;
        }
        (1..=5001).for_each(|n| third.ctx.wishes.push(long_wish(n)));
        let mut parts = 0;
        while third.member.seen() < index {
            assert_eq!(third.ctx.wishes.pending.len(), 5001, "not before all is told");
            third.member.send_heartbeat(&mut third.ctx);
            let mut told = Vec::new();
            for (_, msg) in third.said() {
                if let ClusterMsg::Heartbeat(beat) = msg {
                    let Scene { ctx, member } = &mut scene;
                    let office = member.office.as_mut().expect("in office");
                    let acceptor = member.acceptor.as_mut().expect("it keeps the log");
                    let beat = Heartbeat { ballot: office.ballot, ..*beat };
                    assert_eq!(office.on_heartbeat(ctx, acceptor, &member.deaths, id(3), beat), Ok(()));
                    told = scene.said();
                }
            }
            for (_, msg) in told {
                match msg {
                    ClusterMsg::Update(update) => {
                        assert!(update.groups.iter().map(|view| view.weight()).sum::<usize>() < MESSAGE);
                        parts += 1;
                        assert_eq!(third.member.on_update(&mut third.ctx, *update), None);
                    }
                    ClusterMsg::Grant(grant) => third.member.on_grant(&mut third.ctx, grant),
                    _ => {}
                }
            }
            third.wait(LEASE / 10);
            scene.wait(LEASE / 10);
            assert!(parts < 20, "it does not end");
        }
        assert!(parts > 1);
        assert_eq!(third.member.hello(&third.ctx).groups.len(), 5000);
        assert_eq!(third.ctx.wishes.pending.len(), 1);
    }
}
