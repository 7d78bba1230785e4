//! Rules of the coordinator and its members, each in a scene that shows what it is for: the simulator rarely comes by where
//! their absence does harm.

use super::*;
use crate::msg::{Grant, Update};

impl Scene {
    /// What a core member would say that promises just now.
    fn a_promise(&self, ballot: Ballot) -> Promise {
        Promise {
            ballot,
            echo: self.ctx.now,
            sent: Instant::from_nanos(7),
            commit: self.commit(),
            tail: None,
            accepted: None,
            left: Duration::ZERO,
            bound: false,
            slot: false,
            confirmed: false,
            seen: self.commit(),
            hello: Some(Hello { groups: Vec::new(), observes: Vec::new() }),
            floor: ViewId::NONE,
            deaths: Deaths::default(),
        }
    }

    /// A core member promises the ballot for which the node asks just now. It may have accepted an entry before.
    pub(super) fn promise(
        &mut self,
        ballot: Ballot,
        from: u32,
        bound: bool,
        accepted: Option<(Ballot, Arc<Entry>)>,
    ) {
        let promise = Promise { bound, accepted, ..self.a_promise(ballot) };
        self.member.on_promise(&mut self.ctx, id(from), promise);
    }

    /// What a member would say that answers the grant given just now.
    fn a_beat(&self) -> Heartbeat {
        let commit = self.commit();
        Heartbeat {
            ballot: self.member.office.as_ref().expect("in office").ballot,
            sent: self.ctx.now,
            echo: Some(self.ctx.now),
            rooted: true,
            seen: commit,
            commit: Some(commit),
            slot: false,
            floor: ViewId::NONE,
            foreign: ViewId::NONE,
            hello: None,
            level: 0,
            confirmed: false,
        }
    }

    fn hear(&mut self, from: u32, beat: Heartbeat) {
        let Self { ctx, member } = self;
        let (office, acceptor) = (member.office.as_mut().expect("in office"), member.acceptor.as_mut());
        let acceptor = acceptor.expect("it keeps the log");
        assert_eq!(office.on_heartbeat(ctx, acceptor, &member.deaths, id(from), beat), Ok(()));
    }

    /// A member answers the grant that the node has given just now.
    pub(super) fn beat(&mut self, from: u32, floor: u64) {
        let beat = Heartbeat { floor: ViewId::new(floor), ..self.a_beat() };
        self.hear(from, beat);
    }

    /// The same, with a directory that has ids up to this one for another lineage.
    pub(super) fn brings(&mut self, from: u32, foreign: ViewId) {
        let beat = Heartbeat { foreign, ..self.a_beat() };
        self.hear(from, beat);
    }

    fn leaves(&mut self, from: NodeId) {
        let Self { ctx, member } = self;
        let (office, acceptor) = (member.office.as_mut().expect("in office"), member.acceptor.as_ref());
        office.on_leave(ctx, acceptor.expect("it keeps the log"), &member.deaths, from);
    }

    fn is_accused(&self, node: u32) -> bool {
        self.member.office.as_ref().expect("in office").is_removing(id(node))
    }

    fn authority(&self) -> Instant {
        let acceptor = self.member.acceptor.as_ref().expect("it keeps the log");
        self.member.office.as_ref().expect("in office").authority(&self.ctx, acceptor, &self.member.deaths)
    }

    /// Time passes, and what follows from that alone.
    fn settles(&mut self) {
        assert_eq!(self.member.settle(&mut self.ctx), None);
    }

    /// The entries that it proposes now.
    fn entries(&mut self) -> Vec<Arc<Entry>> {
        self.settles();
        let entries = self.said().into_iter().filter_map(|(_, msg)| match msg {
            ClusterMsg::Append { entry, .. } => Some(entry),
            _ => None,
        });
        let mut entries: Vec<_> = entries.collect();
        entries.dedup();
        entries
    }

    /// 3 and 4 have stored what it proposes now.
    fn are_stored(&mut self) {
        let (index, now) = (self.commit().next(), self.ctx.now);
        let office = self.member.office.as_mut().expect("in office");
        let ballot = office.ballot;
        [3, 4].iter().for_each(|n| office.on_accepted(&self.ctx, id(*n), ballot, index, now));
    }

    /// The cores that they name.
    fn cores(&mut self) -> Vec<Vec<NodeId>> {
        self.entries().iter().filter_map(|entry| entry.core.clone()).collect()
    }

    /// The last lease that it has given to this node.
    fn lease_of(&mut self, node: u32) -> Option<Duration> {
        let leases = self.said().into_iter().filter_map(|(to, msg)| match (to, msg) {
            (Dest::Node(to, _), ClusterMsg::Grant(grant)) if to == id(node) => Some(grant.lease),
            _ => None,
        });
        leases.last()
    }

    /// Does it ask for promises now?
    fn asks(&mut self) -> bool {
        self.member.check_takeover(&mut self.ctx);
        self.said().iter().any(|(_, msg)| matches!(msg, ClusterMsg::Ask(_)))
    }

    /// 5 has promised to another one: the node, in office, asks for a higher ballot of its own.
    fn asks_anew(&mut self) -> Ballot {
        let before = self.member.office.as_ref().expect("in office").ballot;
        self.member.on_refuse(&mut self.ctx, id(5), before, ballot(9, 5), Duration::ZERO);
        let asked = self.said().into_iter().find_map(|(_, msg)| match msg {
            ClusterMsg::Ask(ask) => Some(ask.ballot),
            _ => None,
        });
        asked.expect("5 follows no lower ballot any more")
    }

    fn with_core(me: u32, core: &[u32]) -> Self {
        let mut scene = Self::new(me);
        let state = &mut scene.member.acceptor.as_mut().expect("it keeps the log").state;
        state.core = core.iter().map(|n| id(*n)).collect();
        state.terms.core_size = core.len() as u16;
        scene.member.core.clone_from(&state.core);
        scene
    }

    /// Node 2 in office, with a core of 2, 3 and 4; 1 and 5 are outside of it. All have answered just now.
    fn small_core() -> Self {
        let mut scene = Self::with_core(2, &[2, 3, 4]);
        scene.wait(LEASE * 2);
        let asked = scene.candidacy();
        scene.promise(asked, 3, false, None);
        assert!(scene.member.office.is_some(), "two of three");
        (1..=5).filter(|n| *n != 2).for_each(|n| scene.beat(n, 0));
        scene
    }

    fn begins_to_lead(&mut self) -> bool {
        self.ctx.out.drain(..).any(|output| matches!(output, Output::Leading { .. }))
    }

    /// A coordinator gives the node a lease.
    fn renew(&mut self, ballot: Ballot) {
        let until = self.ctx.now.after(LEASE * 2);
        self.member.extend_lease(&mut self.ctx, until, ballot);
    }

    /// One more is in the group, says this coordinator. Does the node begin to lead it?
    fn joins(&mut self, node: u32, ballot: Ballot) -> bool {
        let wish = GroupWish::Join { group: group(1), endpoint: None, kind: Kind::Plain };
        let entry =
            Entry { commands: vec![Command::Group { node: id(node), op: 1, wish }], ..Entry::default() };
        let acceptor = self.member.acceptor.as_mut().expect("it keeps the log");
        let change = acceptor.commit(&mut self.ctx, Arc::new(entry));
        let update = Update {
            ballot,
            prev: self.member.seen(),
            index: change.index,
            full: None,
            deltas: Vec::new(),
            core: None,
            groups: change.groups.iter().map(|(view, _)| view.clone()).collect(),
            wishes_done: 0,
            dissolved: None,
        };
        assert_eq!(self.member.on_update(&mut self.ctx, update), None);
        self.begins_to_lead()
    }
}

// ---- who coordinates ------------------------------------------------------------------------------------------------

/// It was removed behind its back: in office it would wait for heartbeats of those who forgot it.
#[test]
fn a_coordinator_that_nobody_answers_asks_for_promises_anew() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    let asked = (0..40).any(|_| {
        scene.wait(LEASE / 10);
        scene.settles();
        scene.said().iter().any(|(_, msg)| matches!(msg, ClusterMsg::Ask(_)))
    });
    assert!(asked);
}

#[test]
fn a_coordinator_that_speaks_and_has_not_heard_us_for_a_lease_is_lost() {
    let mut scene = Scene::new(3);
    let heard = scene.ctx.now;
    let lost = (0..25).any(|_| {
        scene.wait(LEASE / 10);
        let grant = Grant {
            ballot: ballot(1, 1),
            sent: scene.ctx.now,
            echo: Some(heard),
            lease: Duration::ZERO,
            index: Some(LogIndex::ZERO),
            wishes_done: 0,
            answer: false,
            slot: false,
        };
        scene.member.on_grant(&mut scene.ctx, grant);
        scene.asks()
    });
    assert!(lost);
}

#[test]
fn a_core_member_that_was_stopped_listens_before_it_takes_its_coordinator_for_lost() {
    let mut scene = Scene::new(2);
    scene.wait(LEASE * 3 / 2);
    scene.member.stall_end = Some(scene.ctx.now);
    assert!(!scene.asks(), "what was said meanwhile waits to be read");
    scene.wait(LEASE * 4 / 10);
    assert!(scene.asks());
}

/// Node 5 may have got a lease from somebody who never saw the entry.
#[test]
fn a_removal_that_is_found_undecided_waits_for_leases_given_since() {
    let mut scene = Scene::new(2);
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    let asked = scene.candidacy();
    let commands = vec![Command::Remove(id(5), Why::Silent)];
    let entry = Arc::new(Entry { commands, ..Entry::default() });
    for from in [3, 4] {
        let accepted = Some((ballot(1, 1), entry.clone()));
        let promise = Promise { bound: true, accepted, left: LEASE / 2, ..scene.a_promise(asked) };
        scene.member.on_promise(&mut scene.ctx, id(from), promise);
    }
    assert!(scene.entries().is_empty(), "5 may act for half a lease");
    scene.wait(LEASE * 6 / 10);
    assert_eq!(scene.entries(), [entry]);
}

// ---- quorums ----------------------------------------------------------------------------------------------------------

/// Whose binding ends early takes over early, and would hear from this core only.
#[test]
fn a_new_core_is_proposed_once_it_is_bound_for_as_long_as_the_leases_given() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    for _ in 0..6 {
        scene.wait(LEASE / 10);
        [3, 4].iter().for_each(|n| scene.beat(*n, 0));
        scene.settles();
    }
    [3, 4].iter().for_each(|n| scene.leaves(id(*n)));
    assert!(scene.cores().is_empty(), "5 is bound for a part of a lease only");
    scene.wait(LEASE / 10);
    scene.beat(5, 0);
    assert_eq!(scene.cores(), [vec![id(2), id(5)]]);
}

/// Otherwise who leaves waits for others to bind themselves anew, and its groups are without a leader for as long.
#[test]
fn leases_leave_room_for_whoever_of_the_core_leaves() {
    for leaves in [2, 3] {
        let mut scene = Scene::small_core();
        let state = &mut scene.member.acceptor.as_mut().expect("it keeps the log").state;
        for node in state.view.members.iter_mut().filter(|node| [1, 5].contains(&node.id.node())) {
            node.eligible = false;
        }
        for node in [3, 4] {
            scene.wait(LEASE / 20);
            scene.beat(node, 0);
            scene.settles();
        }
        scene.leaves(id(leaves));
        let rest: Vec<NodeId> = [2, 3, 4].map(id).into_iter().filter(|node| *node != id(leaves)).collect();
        assert_eq!(scene.cores(), [rest], "{leaves} leaves");
    }
}

/// Who answers late makes the support of the core without the coordinator count again, which may be less than was given before.
#[test]
fn a_coordinator_promises_to_nobody_before_the_leases_that_it_gave_have_lapsed() {
    let mut scene = Scene::small_core();
    for _ in 0..9 {
        scene.wait(LEASE / 10);
        scene.beat(3, 0);
        scene.settles();
    }
    let given = scene.authority();
    let late = Heartbeat { echo: Some(scene.ctx.now.before(LEASE * 15 / 100)), ..scene.a_beat() };
    scene.hear(4, late);
    let authority = scene.authority();
    assert!(authority < given, "4 is bound for less than 3");
    scene.wait(authority - scene.ctx.now + LEASE / 20);
    assert_eq!(scene.ask(9, 4), None, "a lease from us may last still");
    scene.wait(given - scene.ctx.now);
    assert_eq!(scene.ask(9, 4), Some(false));
}

#[test]
fn leases_are_not_cut_short_for_one_of_the_core_that_is_silent() {
    let mut scene = Scene::small_core();
    for _ in 0..9 {
        scene.wait(LEASE / 10);
        scene.beat(3, 0);
        scene.settles();
        assert!(scene.authority() - scene.ctx.now >= LEASE * 7 / 10, "two of three answer");
    }
}

/// Node 3 may have died since, and the proof of that may have let the other half go on.
#[test]
fn half_of_the_core_is_alone_only_with_answers_from_after_the_leases_of_the_others() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    for node in [4, 5] {
        let Scene { ctx, member } = &mut scene;
        member.office.as_mut().expect("in office").remove(ctx, &member.deaths, id(node), Why::Silent);
    }
    scene.wait(LEASE * 8 / 10);
    scene.beat(3, 0);
    scene.wait(LEASE * 3 / 10);
    assert!(scene.authority() <= scene.ctx.now, "3 answered before the leases of 4 and 5 lapsed");
    scene.beat(3, 0);
    assert!(scene.authority() > scene.ctx.now);
}

#[test]
fn who_was_in_the_other_half_gets_no_lease_before_it_knows_what_was_decided() {
    let mut scene = Scene::with_core(2, &[1, 2, 3, 5]);
    scene.renew(ballot(1, 1));
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    let asked = scene.candidacy();
    scene.promise(asked, 3, true, None);
    assert!(scene.member.office.is_some(), "half of the core, and a proof");
    scene.settles();
    let (before, now) = (scene.commit(), scene.ctx.now);
    let office = scene.member.office.as_mut().expect("in office");
    office.on_accepted(&scene.ctx, id(3), asked, before.next(), now);
    scene.settles();
    assert_eq!(scene.commit(), before.next());
    scene.said();
    let behind = Heartbeat { commit: Some(before), ..scene.a_beat() };
    scene.hear(5, behind);
    assert_eq!(scene.lease_of(5), Some(Duration::ZERO));
    scene.beat(5, 0);
    assert!(scene.lease_of(5) > Some(Duration::ZERO));
}

/// Nodes 1 and 2 may have decided alone what 3 and 4 lack. With a lease 3 could take a proof of 2's death, and go on with 4
/// without it: found by reading, in no run of the simulator.
#[test]
fn who_takes_over_gives_no_lease_to_core_members_that_lack_what_half_may_have_decided() {
    let mut scene = Scene::with_core(2, &[1, 2, 3, 4]);
    let before = scene.commit();
    let commands = vec![Command::Raise(ViewId::new(5000))];
    let acceptor = scene.member.acceptor.as_mut().expect("it keeps the log");
    acceptor.commit(&mut scene.ctx, Arc::new(Entry { commands, ..Entry::default() }));
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    let asked = scene.candidacy();
    for from in [3, 4] {
        let promise = Promise { bound: true, commit: before, seen: before, ..scene.a_promise(asked) };
        scene.member.on_promise(&mut scene.ctx, id(from), promise);
    }
    assert!(scene.member.office.is_some());
    let lease = scene.lease_of(3).unwrap_or_default();
    assert!(lease.is_zero(), "3 has not stored it, and gets a lease of {lease:?}");
    scene.beat(3, 0);
    scene.beat(4, 0);
    assert!(scene.lease_of(3) > Some(Duration::ZERO));
}

/// The same for what it has accepted only: 1 may have decided it with that.
#[test]
fn who_takes_over_an_even_core_gives_no_lease_to_who_lacks_what_it_found_undecided() {
    let mut scene = Scene::with_core(2, &[1, 2, 3, 4]);
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    let asked = scene.candidacy();
    let commands = vec![Command::Raise(ViewId::new(5000))];
    let entry = Arc::new(Entry { commands, ..Entry::default() });
    scene.promise(asked, 3, true, Some((ballot(1, 1), entry)));
    scene.promise(asked, 4, true, None);
    assert!(scene.member.office.is_some());
    assert!(scene.lease_of(4).unwrap_or_default().is_zero(), "4 does not have it");
}

/// What half of a core decided took one of the others out: three are left, or one of them was replaced. 4 does not know, and with 3
/// it was half of the core that it knows.
#[test]
fn who_takes_over_gives_no_lease_to_members_of_a_core_that_was_even() {
    for core in [[1, 2, 4], [1, 2, 5]] {
        let mut scene = Scene::with_core(2, &[1, 2, 3, 4]);
        let before = scene.commit();
        let commands = vec![Command::Remove(id(3), Why::Silent)];
        let entry = Entry { commands, core: Some(core.map(id).to_vec()), ..Entry::default() };
        let acceptor = scene.member.acceptor.as_mut().expect("it keeps the log");
        acceptor.commit(&mut scene.ctx, Arc::new(entry));
        scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
        let asked = scene.candidacy();
        let other = core[2];
        let promise = Promise { bound: true, commit: before, seen: before, ..scene.a_promise(asked) };
        scene.member.on_promise(&mut scene.ctx, id(other), promise);
        assert!(scene.member.office.is_some());
        scene.said();
        let behind = Heartbeat { commit: Some(before), ..scene.a_beat() };
        if other != 4 {
            scene.beat(other, 0);
        }
        scene.hear(4, behind);
        assert_eq!(scene.lease_of(4), Some(Duration::ZERO), "4 has not stored it, the core is {core:?}");
        scene.wait(LEASE / 10);
        scene.settles();
        let fed =
            |(to, msg)| matches!((to, msg), (Dest::Node(to, _), ClusterMsg::CatchUp { .. }) if to == id(4));
        assert!(scene.said().into_iter().any(fed), "it is told what it lacks");
        scene.beat(4, 0);
        assert!(scene.lease_of(4) > Some(Duration::ZERO));
    }
}

// ---- who acts ---------------------------------------------------------------------------------------------------------

#[test]
fn who_is_told_to_stop_leads_under_no_later_view_or_lease() {
    let mut scene = Scene::new(3);
    scene.renew(ballot(1, 1));
    assert!(scene.joins(3, ballot(1, 1)));
    scene.member.on_stop(&mut scene.ctx, id(1));
    assert!(scene.ctx.out.drain(..).any(|output| matches!(output, Output::NotLeading { .. })));
    assert!(!scene.joins(4, ballot(1, 1)), "of an entry that was under way");
    scene.wait(LEASE / 2);
    scene.renew(ballot(2, 2));
    assert!(!scene.begins_to_lead(), "the next coordinator knows nothing of it");
}

/// Those that act for it end with its lease, so it does not leave; and it acts for nothing any more, whoever grants it a lease.
#[test]
fn a_node_for_which_others_act_leads_no_more_once_it_is_told_to_stop() {
    let mut scene = Scene::new(3);
    scene.ctx.config.acts_elsewhere = true;
    scene.renew(ballot(1, 1));
    assert!(scene.joins(3, ballot(1, 1)));
    scene.member.on_stop(&mut scene.ctx, id(1));
    scene.ctx.out.clear();
    assert!(!scene.joins(4, ballot(1, 1)), "of an entry that was under way");
    scene.wait(LEASE / 2);
    scene.renew(ballot(2, 2));
    assert!(!scene.begins_to_lead(), "the next coordinator knows nothing of it");
}

/// What acts for it ends with its lease, and somewhat after it was told to: who leads next must not begin before that.
#[test]
fn a_node_for_which_others_act_does_not_say_that_they_have_stopped() {
    for elsewhere in [false, true] {
        let mut scene = Scene::new(3);
        scene.ctx.config.acts_elsewhere = elsewhere;
        scene.renew(ballot(1, 1));
        assert!(scene.joins(3, ballot(1, 1)));
        scene.said();
        scene.member.on_stop(&mut scene.ctx, id(1));
        for _ in 0..10 {
            scene.wait(LEASE / 20);
            scene.settles();
        }
        let lets_go =
            scene.said().into_iter().any(|(_, msg)| matches!(msg, ClusterMsg::Stopped | ClusterMsg::Leave));
        assert_eq!(lets_go, !elsewhere);
    }
    for elsewhere in [false, true] {
        let mut scene = Scene::in_office();
        scene.ctx.config.acts_elsewhere = elsewhere;
        scene.decide_all();
        scene.beat(3, 0);
        scene.beat(4, 0);
        scene.settles();
        assert!(scene.member.lease_deadline().is_some_and(|until| until > scene.ctx.now));
        scene.member.make_room(&mut scene.ctx);
        let goes = !scene.entries().is_empty();
        assert_eq!(goes, !elsewhere, "it goes before its lease ends, if nobody acts under that");
    }
}

#[test]
fn a_leader_acts_once_the_coordinator_that_made_its_view_has_given_a_lease() {
    let mut scene = Scene::new(3);
    scene.renew(ballot(1, 1));
    assert!(!scene.joins(3, ballot(2, 2)));
    scene.renew(ballot(2, 2));
    assert!(scene.begins_to_lead());
}

// ---- who is accused ---------------------------------------------------------------------------------------------------

/// The others' answers came first, so most are not silent.
#[test]
fn a_coordinator_that_was_stopped_accuses_nobody_of_silence_until_a_lease_later() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    scene.wait(LEASE * 12 / 10);
    let now = scene.ctx.now;
    scene.member.office.as_mut().expect("in office").stalled(now);
    for tenths in 0..=11 {
        [3, 4].iter().for_each(|n| scene.beat(*n, 0));
        scene.settles();
        assert_eq!(scene.is_accused(5), tenths > 10, "{tenths}");
        scene.wait(LEASE / 10);
    }
}

#[test]
fn a_coordinator_for_which_most_fall_silent_at_once_waits_for_a_lease_more() {
    let mut scene = Scene::small_core();
    for tenths in 1..=25 {
        scene.wait(LEASE / 10);
        scene.beat(3, 0);
        scene.settles();
        assert_eq!([1, 4, 5].map(|n| scene.is_accused(n)), [tenths > 20; 3], "{tenths}");
    }
}

/// Nodes 3 and 4 may hear this one, and store an entry with which nobody can go on without it.
#[test]
fn who_hears_no_quorum_of_the_core_proposes_no_other_core() {
    let mut scene = Scene::small_core();
    for _ in 0..15 {
        scene.wait(LEASE / 10);
        [1, 5].iter().for_each(|n| scene.beat(*n, 0));
        assert!(scene.cores().is_empty());
    }
    assert!(scene.is_accused(3) && scene.is_accused(4));
}

#[test]
fn who_comes_and_goes_too_often_is_kept_waiting() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    let comes = |scene: &mut Scene, inc| {
        let info = NodeInfo { id: NodeId::new(9, inc), ..info(9) };
        let id = info.id;
        scene.asks_in(info, None);
        scene.decide_all();
        scene.state().view.contains(id)
    };
    for inc in 1..=5 {
        assert!(comes(&mut scene, inc), "{inc}");
        scene.leaves(NodeId::new(9, inc));
        scene.decide_all();
    }
    assert!(!comes(&mut scene, 6));
    for _ in 0..8 {
        scene.decide_all();
    }
    assert!(comes(&mut scene, 6), "not for ever");
}

/// It gives leases while it asks for a higher ballot: those of its first office end later than what it knew of when it asked.
#[test]
fn who_wins_anew_waits_for_the_leases_that_it_gave_while_it_asked() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    let asked = scene.asks_anew();
    scene.wait(LEASE / 5);
    scene.beat(4, 0);
    scene.beat(3, 0);
    let lease = scene.lease_of(3).expect("the question has not come there");
    let acts_until = scene.ctx.now.after(lease);
    [4, 5].iter().for_each(|n| scene.promise(asked, *n, false, None));
    assert!(scene.member.office.as_ref().is_some_and(|office| office.ballot == asked), "with three of four");
    // A newer process has the address of 3, which is told to stop and does not hear it.
    scene.asks_in(NodeInfo { id: NodeId::new(3, 99), ..info(3) }, None);
    let removes = |command: &Command| matches!(command, Command::Remove(node, _) if *node == id(3));
    for _ in 0..80 {
        [4, 5].iter().for_each(|n| scene.beat(*n, 0));
        scene.settles();
        for (to, msg) in scene.said() {
            if let (Dest::Node(to, _), ClusterMsg::Append { ballot, index, entry, sent }) = (to, msg) {
                if entry.commands.iter().any(removes) {
                    assert!(scene.ctx.now >= acts_until, "{:?} too early", acts_until - scene.ctx.now);
                    return;
                }
                if to != id(3) {
                    let office = scene.member.office.as_mut().expect("in office");
                    office.on_accepted(&scene.ctx, to, ballot, index, sent);
                }
            }
        }
        scene.wait(LEASE / 40);
    }
    panic!("it is removed in the end");
}

/// Found by the simulator (LD2): in its new office it was bound to nothing, promised a higher ballot at once, and acted on by the lease
/// from its first office, while the winner knew nothing of that.
#[test]
fn who_wins_anew_promises_to_nobody_while_it_may_act_by_the_lease_of_its_first_office() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    [3, 4, 5].iter().for_each(|n| scene.beat(*n, 0));
    scene.settles();
    let asked = scene.asks_anew();
    [4, 5].iter().for_each(|n| scene.promise(asked, *n, false, None));
    let office = scene.member.office.as_ref().expect("in office");
    assert_eq!(office.ballot, asked);
    assert!(
        scene.member.holds_lease(scene.ctx.now) && scene.authority() <= scene.ctx.now,
        "nobody is bound to the new one yet"
    );
    let refused = |scene: &mut Scene| {
        let ask = Ask {
            ballot: ballot(20, 3),
            commit: scene.commit(),
            sent: scene.ctx.now,
            deaths: Deaths::default(),
        };
        scene.member.on_ask(&mut scene.ctx, id(3), ask);
        scene.said().iter().any(|(_, msg)| matches!(msg, ClusterMsg::Refuse { .. }))
    };
    while scene.member.holds_lease(scene.ctx.now) {
        assert!(refused(&mut scene), "while it may act");
        scene.wait(LEASE / 20);
    }
    scene.wait(LEASE / 20);
    assert!(!refused(&mut scene));
}

/// Found by the simulator (LV5): an entry with the first of two wishes waited for ids, and was lost with the office. The second wish,
/// which had waited behind it, came into the log alone; then the first one was taken for applied.
#[test]
fn who_wins_anew_applies_no_wish_before_those_that_came_earlier() {
    let say = |scene: &mut Scene, ops: &[u64]| {
        let Scene { member, .. } = scene;
        let wishes = ops.iter().map(|op| (*op, long_wish(*op))).collect();
        let acceptor = member.acceptor.as_ref().expect("it keeps the log");
        member.office.as_mut().expect("in office").on_wishes(acceptor, id(4), wishes);
    };
    let directories = |scene: &mut Scene, slots| {
        let terms = &mut scene.member.acceptor.as_mut().expect("it keeps the log").state.terms;
        (terms.slots, terms.durable) = (slots, slots > 0);
    };
    let mut scene = Scene::in_office();
    scene.decide_all();
    directories(&mut scene, 3);
    say(&mut scene, &[1]);
    assert_eq!(scene.decide_all(), [], "no directory has set the ids aside");
    say(&mut scene, &[1, 2]);
    let asked = scene.asks_anew();
    [3, 4].iter().for_each(|n| scene.promise(asked, *n, false, None));
    assert!(scene.member.office.as_ref().is_some_and(|office| office.ballot == asked));
    directories(&mut scene, 0);
    scene.decide_all();
    say(&mut scene, &[1, 2]);
    scene.decide_all();
    assert!((1..=2).all(|n| scene.state().group(&group(n)).is_some()), "both were applied");
}

/// Found by the simulator (LV1): two of four founders had turned to another lineage, which came to nothing. The entry that would have
/// raised ids above what they had for that waited for them to set ids aside, and they for the raise.
#[test]
fn ids_are_raised_first_where_members_set_none_aside_before() {
    for has_group in [false, true] {
        let mut scene = Scene::in_office();
        if has_group {
            scene.joins(3, ballot(1, 1));
        }
        scene.decide_all();
        let state = &mut scene.member.acceptor.as_mut().expect("it keeps the log").state;
        (state.terms.slots, state.terms.durable) = (4, true);
        for (slot, node) in (0..).zip(&mut state.view.members) {
            (node.slot, node.keeps_floor) = (Some(slot), true);
        }
        scene.asks_in(info(9), None);
        assert_eq!(scene.entries(), [], "of four slots two must have set the ids aside");
        let foreign = ViewId::new(1 << 41);
        scene.brings(4, foreign);
        let entries = scene.entries();
        if has_group {
            assert_eq!(entries, [], "a raise makes views of groups");
            continue;
        }
        let [raise] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!(raise.commands, [Command::Raise(foreign)]);
        scene.are_stored();
        scene.settles();
        assert_eq!(scene.state().last_view, foreign);
        // The others may come together with more.
        scene.wait(LEASE / 5);
        scene.settles();
        let given = scene.said().into_iter().filter_map(|(to, msg)| match (to, msg) {
            (Dest::Node(to, _), ClusterMsg::SetAside { given, .. }) if to == id(4) => Some(given),
            _ => None,
        });
        assert_eq!(given.last(), Some(foreign), "now it may");
        [3, 4].iter().for_each(|n| scene.beat(*n, 1 << 42));
        let entries = scene.entries();
        let [admission] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!(admission.commands, [Command::Admit(info(9))], "and once, whatever the entry was before");
    }
}

// ---- all leave at once ------------------------------------------------------------------------------------------------

/// No core can do without the last of its members, so it lets the others go, and is then let go by nobody.
#[test]
fn a_coordinator_that_leaves_with_all_others_lets_them_go_first_and_goes_at_once() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    assert_eq!(scene.member.leave(&mut scene.ctx), None);
    [3, 4, 5].iter().for_each(|n| scene.leaves(id(*n)));
    let entries = scene.entries();
    let [entry] = &entries[..] else { panic!("{entries:?}") };
    let gone: Vec<Command> = [3, 4, 5].map(|n| Command::Remove(id(n), Why::Left)).into();
    assert_eq!((&entry.commands, &entry.core), (&gone, &Some(vec![id(2)])));
    let (index, now) = (scene.commit().next(), scene.ctx.now);
    let office = scene.member.office.as_mut().expect("in office");
    let ballot = office.ballot;
    [3, 4].iter().for_each(|n| office.on_accepted(&scene.ctx, id(*n), ballot, index, now));
    assert_eq!(scene.member.settle(&mut scene.ctx), Some(End::Left));
    let told = |msg: &ClusterMsg| matches!(msg, ClusterMsg::Removed { why: Why::Left, .. });
    assert_eq!(
        scene.said().iter().filter(|(_, msg)| told(msg)).count(),
        3,
        "everybody hears that it is let go"
    );
}

#[test]
fn who_stays_takes_over_before_those_who_leave_and_they_do_in_turn() {
    let left = |me: u32, leaves: bool, leavers: &[u32]| {
        let mut scene = Scene::new(me);
        let commands = vec![Command::Remove(id(1), Why::Left)];
        let entry = Entry { commands, core: Some([2, 3, 4, 5].map(id).into()), epoch: None };
        if leaves {
            assert_eq!(scene.member.leave(&mut scene.ctx), None);
            let told: Vec<Dest> = scene.said().into_iter().map(|(to, _)| to).collect();
            assert_eq!(told.len(), 4, "the coordinator, and who may come after it: {told:?}");
        }
        let acceptor = scene.member.acceptor.as_mut().expect("it keeps the log");
        acceptor.commit(&mut scene.ctx, Arc::new(entry));
        assert!(!scene.asks() || leavers.is_empty() && me == 2, "nobody is known to leave");
        leavers.iter().for_each(|n| scene.member.hear_of_leave(&scene.ctx, id(*n)));
        scene
    };
    assert!(left(2, true, &[3, 4, 5]).asks(), "the senior of those who leave, where all do");
    assert!(!left(3, true, &[2, 4, 5]).asks(), "one step later");
    assert!(!left(2, true, &[3, 4]).asks(), "5 stays");
    assert!(left(3, false, &[2, 4]).asks(), "2 leaves, and 3 stays");
    let mut third = left(4, true, &[2, 3, 5]);
    assert!(!third.asks());
    for _ in 0..2 {
        // It is said again and again, and no news.
        [2, 3, 5].iter().for_each(|n| third.member.hear_of_leave(&third.ctx, id(*n)));
        third.wait(third.ctx.config.step);
    }
    assert!(third.asks(), "two steps, for two seniors");
}

/// What was said to its predecessor went with that.
#[test]
fn who_takes_over_lets_those_go_who_said_before_that_they_leave() {
    let mut scene = Scene::new(2);
    scene.member.hear_of_leave(&scene.ctx, id(5));
    scene.member.on_death(&mut scene.ctx, id(1), "seen", None);
    scene.take_over(true);
    let entries = scene.entries();
    let [entry] = &entries[..] else { panic!("{entries:?}") };
    let gone = vec![Command::Remove(id(1), Why::Dead), Command::Remove(id(5), Why::Left)];
    assert_eq!((&entry.commands, &entry.core), (&gone, &Some([2, 3, 4].map(id).into())));
}

/// It may be the last itself, and gone with what it is told next.
#[test]
fn who_is_told_that_its_coordinator_is_out_answers_at_once() {
    let mut scene = Scene::new(2);
    let commands = vec![Command::Remove(id(1), Why::Left)];
    let entry = Entry { commands, core: Some([2, 3, 4, 5].map(id).into()), epoch: None };
    let acceptor = scene.member.acceptor.as_mut().expect("it keeps the log");
    acceptor.commit(&mut scene.ctx, Arc::new(entry));
    let index = scene.commit();
    let update = Update {
        ballot: ballot(1, 1),
        prev: LogIndex::ZERO,
        index,
        full: None,
        deltas: Vec::new(),
        core: None,
        groups: Vec::new(),
        wishes_done: 0,
        dissolved: None,
    };
    assert_eq!(scene.member.on_update(&mut scene.ctx, update), None);
    let answered = scene.said().into_iter().any(|(to, msg)| {
        matches!((to, msg), (Dest::Node(to, _), ClusterMsg::Heartbeat(beat)) if to == id(1) && beat.commit == Some(index))
    });
    assert!(answered);
}

/// With others it might be let go; a coordinator that waits for some is not the last.
#[test]
fn who_leaves_is_the_last_once_nobody_is_left_who_could_sit_in_the_core() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    assert!(!scene.member.is_last_to_leave(&scene.ctx), "it stays");
    assert_eq!(scene.member.leave(&mut scene.ctx), None, "there are others");
    scene.member.view.members.retain(|node| [2, 3].contains(&node.id.node()));
    assert!(!scene.member.is_last_to_leave(&scene.ctx));
    scene.member.view.members.last_mut().expect("two").eligible = false;
    assert!(scene.member.is_last_to_leave(&scene.ctx));
}

#[test]
fn who_leaves_a_blocked_cluster_has_left_it_and_does_not_begin_anew() {
    let mut scene = Scene::new(3);
    scene.ctx.config.bootstrap = Bootstrap::AloneAfter(LEASE);
    assert_eq!(scene.member.leave(&mut scene.ctx), None);
    scene.wait(LEASE);
    assert_eq!(scene.member.check_give_up(&mut scene.ctx), Some(End::Left));
}

#[test]
fn who_makes_others_wait_must_step_out_and_of_two_who_blame_each_other_the_junior() {
    let mut scene = Scene::in_office();
    for from in [3, 4, 5] {
        let wish = GroupWish::Join { group: group(1), endpoint: None, kind: Kind::Multicast };
        let (office, acceptor) = (scene.member.office.as_mut(), scene.member.acceptor.as_ref());
        let acceptor = acceptor.expect("it keeps the log");
        office.expect("in office").on_wishes(acceptor, id(from), vec![(1, wish)]);
    }
    scene.decide_all();
    let mut blames = |from, node| {
        let Scene { ctx, member } = &mut scene;
        let (office, acceptor) = (member.office.as_mut().expect("in office"), member.acceptor.as_ref());
        let acceptor = acceptor.expect("it keeps the log");
        office.judge_behind(ctx, acceptor, id(from), &group(1), id(node))
    };
    assert_eq!(blames(3, 5), None, "5 may blame 3, too");
    assert_eq!(blames(3, 5), Some(id(5)));
    assert_eq!(blames(4, 3), None);
    assert_eq!(blames(3, 4), Some(id(4)));
}
