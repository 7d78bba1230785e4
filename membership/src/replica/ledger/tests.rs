//! Groups that share directories, with late disks, crashes, partitions and power failures; and rules one by one.

use membership_types::Rng;

use super::*;

/// What a disk has: the commands, and how they are held.
#[derive(Clone, Debug, Default)]
struct Disk {
    held: Option<Held>,
    promised: u64,
    commands: Vec<u64>,
}

enum Order {
    Append(Entry, Mark),
    Save(Held, Mark, Vec<u64>),
}

enum Letter {
    Say(Say),
    Piece(u64, Bytes),
    Command(u64),
}

struct Member {
    ledger: Ledger,
    /// What its application has applied.
    commands: Vec<u64>,
    orders: VecDeque<Order>,
    /// Its own commands that are not acknowledged, each with its position.
    waiting: VecDeque<(u64, u64)>,
    group: usize,
    refused: Option<String>,
}

/// Its members, and what is on its way.
type Group = (Vec<(usize, NodeId)>, VecDeque<(usize, Letter)>);

/// Members are delivered the same in the same order; disks may be late; whoever is down has what its disk has.
struct World {
    rng: Rng,
    disks: Vec<Disk>,
    members: Vec<Option<Member>>,
    incarnations: u64,
    views: u64,
    groups: Vec<Group>,
    next: u64,
    acknowledged: Vec<u64>,
    accept: bool,
    /// An operator is to blame.
    lenient: bool,
    expected: u64,
    wholes: u64,
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn bytes(numbers: &[u64]) -> Bytes {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>().into()
}

impl World {
    fn new(seed: u64, size: usize, expected: u64) -> Self {
        Self {
            rng: Rng::seeded(seed),
            disks: vec![Disk::default(); size],
            members: (0..size).map(|_| None).collect(),
            incarnations: 0,
            views: 0,
            groups: (0..2).map(|_| Default::default()).collect(),
            next: 0,
            acknowledged: Vec::new(),
            accept: false,
            lenient: false,
            expected,
            wholes: 0,
        }
    }

    fn start(&mut self, n: usize, group: usize) {
        let disk = &self.disks[n];
        let mut rng = self.rng.split();
        let wishes = (self.expected, self.accept);
        let ledger =
            Ledger::new(n as u64 + 1000, disk.held.clone(), disk.promised, wishes, move || rng.next_u64());
        let commands = disk.commands.clone();
        let (orders, waiting) = Default::default();
        self.members[n] = Some(Member { ledger, commands, orders, waiting, group, refused: None });
        self.enter(n, group);
    }

    /// It comes to a group: as its first member, or it gets the state of another one.
    fn enter(&mut self, n: usize, group: usize) {
        self.incarnations += 1;
        let node = NodeId::new(n as u32, self.incarnations);
        self.groups[group].0.push((n, node));
        self.views += 1;
        let giver = self.groups[group].0.iter().map(|(m, _)| *m).find(|m| *m != n);
        self.install(group, Some(n));
        let Some(member) = &mut self.members[n] else { return };
        member.group = group;
        if let Some(giver) = giver {
            let giver = self.members[giver].as_ref().expect("it is up");
            let (meta, state) = (giver.ledger.meta(), giver.commands.clone());
            let member = self.members[n].as_mut().expect("it is up");
            match member.ledger.on_meta(meta) {
                Verdict::Take => member.commands = state,
                Verdict::Leave => {}
                Verdict::Refuse(why) => member.refused = Some(why),
            }
        }
        self.view_of(n, group);
        self.carry_out(n);
    }

    fn view_of(&mut self, n: usize, group: usize) {
        let members = self.groups[group].0.iter().map(|(_, node)| *node).collect();
        let view = self.views;
        if let Some(member) = &mut self.members[n] {
            member.ledger.on_view(view, members, Bytes::new);
        }
    }

    fn install(&mut self, group: usize, but: Option<usize>) {
        let all: Vec<usize> =
            self.groups[group].0.iter().map(|(m, _)| *m).filter(|m| Some(*m) != but).collect();
        for n in all {
            self.view_of(n, group);
            self.carry_out(n);
        }
    }

    /// Out of its group, whatever becomes of it.
    fn out(&mut self, n: usize) {
        let Some(group) = self.members[n].as_ref().map(|m| m.group) else { return };
        self.groups[group].0.retain(|(m, _)| *m != n);
        self.views += 1;
        self.install(group, None);
    }

    fn crash(&mut self, n: usize) {
        self.members[n] = None;
        for (members, _) in &mut self.groups {
            members.retain(|(m, _)| *m != n);
        }
    }

    fn power_loss(&mut self) {
        (0..self.members.len()).for_each(|n| self.crash(n));
        self.groups.iter_mut().for_each(|(_, letters)| letters.clear());
    }

    fn carry_out(&mut self, n: usize) {
        let Some(member) = &mut self.members[n] else { return };
        while let Some(output) = member.ledger.poll() {
            match output {
                Output::Say(say) => self.groups[member.group].1.push_back((n, Letter::Say(say))),
                Output::Write(entry, mark) => member.orders.push_back(Order::Append(entry, mark)),
                Output::Stream => {
                    let state = bytes(&member.commands);
                    self.groups[member.group].1.push_back((n, Letter::Piece(self.views, state)));
                }
                Output::Restore(pieces) => member.commands = pieces.concat().chunks(8).map(number).collect(),
                Output::Save(held, mark) => {
                    member.orders.push_back(Order::Save(held, mark, member.commands.clone()));
                }
                Output::Whole => {
                    member.ledger.begin_view(Bytes::new());
                    self.wholes += 1;
                    if !self.lenient {
                        let missing = self.acknowledged.iter().find(|c| !member.commands.contains(c));
                        assert_eq!(missing, None, "it was acknowledged, and {n} goes on without it");
                    }
                }
                Output::Unsure => member.waiting.clear(),
                Output::Committed(place) => {
                    while member.waiting.front().is_some_and(|(at, _)| *at <= place) {
                        self.acknowledged.extend(member.waiting.pop_front().map(|(_, command)| command));
                    }
                }
                Output::Refuse(why) => member.refused = Some(why),
            }
        }
        if self.members[n].as_ref().is_some_and(|m| m.refused.is_some()) {
            self.leave(n);
        }
    }

    /// It says that the others go on with another history: two that began at once, and lost power before they came to much.
    fn leave(&mut self, n: usize) {
        let Some(member) = &self.members[n] else { return };
        let group = member.group;
        self.crash(n);
        self.views += 1;
        self.install(group, None);
    }

    /// Hands the next message of a group to its members: if the power fails meanwhile, not to all.
    fn deliver(&mut self, group: usize, fails: bool) {
        let Some((from, letter)) = self.groups[group].1.pop_front() else { return };
        let Some((_, node)) = self.groups[group].0.iter().find(|(m, _)| *m == from).copied() else {
            return;
        };
        let all: Vec<usize> = self.groups[group].0.iter().map(|(m, _)| *m).collect();
        for n in all {
            if fails && self.rng.chance(300) {
                break;
            }
            let Some(member) = &mut self.members[n] else { continue };
            match &letter {
                Letter::Say(say) => member.ledger.on_say(node, say.clone()),
                Letter::Piece(view, state) => member.ledger.on_piece(node, *view, true, state.clone()),
                Letter::Command(command) => {
                    if member.ledger.on_command(node, bytes(&[*command])) {
                        member.commands.push(*command);
                        if n == from {
                            let at = member.ledger.held().expect("it is whole").place.pos;
                            member.waiting.push_back((at, *command));
                        }
                    }
                }
            }
            self.carry_out(n);
        }
        if fails {
            self.power_loss();
        }
    }

    /// A disk does some of what it was told.
    fn sync(&mut self, n: usize) {
        let Some(member) = &mut self.members[n] else { return };
        let count = self.rng.between(1, 4);
        let mut last = None;
        for order in (0..count).map_while(|_| member.orders.pop_front()) {
            let disk = &mut self.disks[n];
            last = Some(match order {
                Order::Save(held, mark, commands) => {
                    *disk = Disk { held: Some(held), promised: mark.promised, commands };
                    mark
                }
                Order::Append(entry, mark) => {
                    match (&mut disk.held, &entry) {
                        (_, Entry::Promise(term)) => disk.promised = *term,
                        (Some(held), entry) => assert!(held.follow(entry)),
                        (None, entry) => panic!("{entry:?} before there is anything"),
                    }
                    if let Entry::Command { command, .. } = &entry {
                        disk.commands.push(number(command));
                    }
                    assert_eq!(disk.held.as_ref().map_or(Place::default(), |h| h.place), mark.place);
                    mark
                }
            });
        }
        if let Some(mark) = last {
            member.ledger.on_disk(mark);
            self.carry_out(n);
        }
    }

    fn step(&mut self) {
        let n = self.rng.below(self.members.len() as u64) as usize;
        let group = usize::from(self.rng.chance(250));
        match (self.rng.below(1000), &mut self.members[n]) {
            (0..450, _) => self.deliver(group, false),
            (450..650, Some(_)) => self.sync(n),
            (650..850, Some(member)) if member.ledger.is_whole() => {
                self.next += 1;
                self.groups[member.group].1.push_back((n, Letter::Command(self.next)));
            }
            (850..858, Some(_)) => {
                self.out(n);
                self.crash(n);
            }
            (858..864, Some(member)) => {
                // Its cluster dissolved, or it was removed: it goes to the other one.
                member.waiting.clear();
                member.ledger.begin();
                self.out(n);
                self.enter(n, group);
            }
            (864..960, None) => self.start(n, group),
            (998.., _) => self.deliver(group, true),
            (997, _) => self.power_loss(),
            _ => {}
        }
        self.agree();
    }

    /// Members of a group that are whole have the same state.
    fn agree(&self) {
        for (members, _) in &self.groups {
            let whole =
                members.iter().filter_map(|(n, _)| self.members[*n].as_ref()).filter(|m| m.ledger.is_whole());
            let states: BTreeSet<_> =
                whole.map(|m| (m.ledger.held().map(|h| h.place), &m.commands)).collect();
            assert!(states.len() <= 1, "{states:?}");
        }
    }

    /// Everything goes well for a while.
    fn calm(&mut self) {
        for _ in 0..400 {
            for group in 0..2 {
                for _ in 0..20 {
                    self.deliver(group, false);
                }
            }
            (0..self.members.len()).for_each(|n| self.sync(n));
        }
    }

    fn whole(&self) -> usize {
        self.members.iter().flatten().filter(|m| m.ledger.is_whole()).count()
    }
}

#[test]
fn what_was_acknowledged_is_never_lost_and_everybody_gets_it_in_the_end() {
    let (mut acknowledged, mut wholes) = (0, 0);
    for seed in 0..1500 {
        let size = 3 + (seed % 3) as usize;
        let founders = size as u64;
        // Some groups get members with new directories later, who take the places of others that are away.
        let size = size + 2 * (seed as usize / 3 % 2);
        let mut world = World::new(seed, size, founders);
        if size as u64 > founders {
            (0..founders as usize).for_each(|n| world.start(n, 0));
            world.calm();
            world.expected = 99;
        }
        for _ in 0..1200 {
            world.step();
        }
        world.power_loss();
        (0..size).for_each(|n| world.start(n, 0));
        world.calm();
        assert_eq!(world.whole(), size, "seed {seed}: {:?}", world.waits());
        let all = &world.members[0].as_ref().expect("it is up").commands;
        for command in &world.acknowledged {
            assert!(all.contains(command), "seed {seed}");
        }
        acknowledged += world.acknowledged.len();
        wholes += world.wholes;
        // And it goes on.
        let before = world.acknowledged.len();
        world.next += 1;
        world.groups[0].1.push_back((1, Letter::Command(world.next)));
        world.calm();
        assert_eq!(world.acknowledged.len(), before + 1, "seed {seed}");
    }
    assert!(acknowledged > 20_000 && wholes > 10_000, "too little happened: {acknowledged}, {wholes}");
}

impl World {
    fn waits(&self) -> Vec<&str> {
        self.members.iter().flatten().map(|m| m.ledger.waits_for()).collect()
    }

    fn propose(&mut self, n: usize) -> u64 {
        self.next += 1;
        let group = self.members[n].as_ref().expect("it is up").group;
        self.groups[group].1.push_back((n, Letter::Command(self.next)));
        self.calm();
        self.next
    }
}

/// Three that were up; the third one died before the last command.
fn two_go_on() -> (World, u64) {
    let mut world = World::new(1, 3, 3);
    (0..3).for_each(|n| world.start(n, 0));
    world.calm();
    world.propose(0);
    world.out(2);
    world.crash(2);
    world.calm();
    let last = world.propose(1);
    assert_eq!(world.acknowledged, [1, 2]);
    world.power_loss();
    (world, last)
}

#[test]
fn a_minority_waits_and_an_older_state_gives_way_in_whatever_order_they_come() {
    for order in [[2, 0, 1], [2, 1, 0], [0, 2, 1], [1, 2, 0], [0, 1, 2]] {
        let (mut world, last) = two_go_on();
        world.start(order[0], 0);
        world.calm();
        assert_eq!(world.whole(), 0);
        let ledger = &world.members[order[0]].as_ref().expect("it is up").ledger;
        assert!(
            ledger.is_stuck() && ledger.waits_for().contains("--accept-stale-state"),
            "{}",
            ledger.waits_for()
        );
        for n in &order[1..] {
            world.start(*n, 0);
            world.calm();
        }
        assert_eq!(world.whole(), 3);
        for member in world.members.iter().flatten() {
            assert_eq!(member.commands.last(), Some(&last));
        }
    }
}

#[test]
fn a_minority_goes_on_by_order_only_and_the_others_are_refused_then() {
    let (mut world, _) = two_go_on();
    (world.accept, world.lenient) = (true, true);
    world.start(2, 0);
    world.calm();
    assert_eq!((world.whole(), world.acknowledged.len()), (1, 2));
    let stale = world.propose(2);
    assert_eq!(world.acknowledged.last(), Some(&stale), "its own directory is all that counts");
    world.start(0, 0);
    world.calm();
    assert!(world.members[0].is_none(), "it left, with what it has");
    assert!(world.disks[0].commands.contains(&2));
    world.power_loss();
    world.accept = false;
    // Two of the three that held it before: they do not know of the order.
    world.start(0, 1);
    world.start(1, 1);
    world.calm();
    assert_eq!(world.whole(), 2);
}

#[test]
fn who_comes_with_an_empty_directory_does_not_begin_where_others_have_a_state() {
    for expected in [1, 3] {
        let (mut world, last) = two_go_on();
        (world.expected, world.lenient) = (expected, true);
        world.disks[2] = Disk::default();
        world.start(2, 0);
        world.calm();
        // Alone it may begin if it was told so; nothing is acknowledged before somebody uses it.
        assert_eq!(world.whole(), usize::from(expected == 1));
        world.start(0, 0);
        world.calm();
        assert_eq!(world.whole(), 0, "one of three is not enough");
        world.start(1, 0);
        world.calm();
        assert_eq!(world.whole(), 3, "{:?}", world.waits());
        for member in world.members.iter().flatten() {
            assert_eq!(member.commands.last(), Some(&last));
        }
    }
}

#[test]
fn a_new_directory_takes_the_place_of_one_that_is_gone() {
    let mut world = World::new(5, 5, 3);
    (0..3).for_each(|n| world.start(n, 0));
    world.calm();
    world.propose(0);
    world.out(2);
    world.crash(2);
    world.start(3, 0);
    world.calm();
    let holders = |world: &World| {
        let held = world.members[0].as_ref().and_then(|m| m.ledger.held()).expect("it is whole");
        (held.holders.now.clone(), held.holders.before.clone())
    };
    let (mut now, before) = holders(&world);
    now.sort_unstable();
    assert_eq!((now, before), (vec![1000, 1001, 1003], None));
    world.start(2, 0);
    world.calm();
    assert_eq!(holders(&world).0.len(), 4, "all who are here count");
    let ledger = &world.members[1].as_ref().expect("it is up").ledger;
    assert!(ledger.is_enough() && ledger.here() == (4, 4));
    for n in [3, 2] {
        world.out(n);
        world.crash(n);
    }
    world.calm();
    assert!(!world.members[1].as_ref().expect("it is up").ledger.is_enough(), "two of four are no majority");
    let before = world.acknowledged.len();
    world.propose(1);
    assert_eq!(world.acknowledged.len(), before);
    world.start(3, 0);
    world.calm();
    assert_eq!(world.acknowledged.len(), before + 1);
}

#[test]
fn a_majority_is_one_of_both_while_a_change_is_not_settled() {
    let holders = Holders { now: vec![2, 3, 4], before: Some(vec![1, 2, 3]) };
    let of = |dirs: &'static [u64]| holders.majority(|dir| dirs.contains(&dir));
    assert!(of(&[2, 3]) && of(&[1, 2, 4]) && !of(&[1, 2]) && !of(&[2, 4]) && !of(&[]));
    let at = |dir: u64| [0, 9, 7, 5, 6][dir as usize];
    assert_eq!(holders.reached(at), 6);
    assert_eq!(Holders { now: vec![1, 2], before: None }.reached(at), 7);
    assert_eq!(Holders { now: vec![1], before: None }.reached(at), 9);
}

/// A directory in which a history stands at this position of its first term, without a command.
fn stands(history: u64, holders: &[DirId], pos: u64, commands: u64) -> Held {
    let holders = Holders { now: holders.into(), before: None };
    Held { history, place: Place { term: 1, pos }, holders, commands }
}

fn said_synced(ledger: &mut Ledger) -> Vec<(Place, Option<u64>)> {
    let said = std::iter::from_fn(|| ledger.poll()).filter_map(|output| match output {
        Output::Say(Say::Synced { place, history, .. }) => Some((place, history)),
        _ => None,
    });
    said.collect()
}

/// It was alone for a hundred views, in which nobody proposed anything; then it comes to a group that began elsewhere.
#[test]
fn what_a_directory_has_of_another_history_is_not_said_of_the_one_that_it_takes_over() {
    let (mine, theirs) = (stands(7, &[1000], 100, 0), stands(8, &[2000, 2001, 2002], 5, 3));
    let mut ledger = Ledger::new(1000, Some(mine), 1, (1, false), || 1);
    let nodes: Vec<NodeId> = (1..=2).map(|n| NodeId::new(n, 1)).collect();
    let meta = Meta {
        view: 20,
        whole: Some(theirs),
        holds: Vec::new(),
        dirs: vec![(nodes[0], 2000)],
        synced: vec![(2000, 5)],
    };
    assert_eq!(ledger.on_meta(meta), Verdict::Take);
    let saved = ledger.mark();
    assert_eq!(said_synced(&mut ledger), []);
    ledger.on_view(21, nodes, Bytes::new);
    assert_eq!(said_synced(&mut ledger), [], "of this history nothing is on disk yet");
    // What it had ordered before comes to the disk first.
    ledger.on_disk(Mark { history: 7, place: Place { term: 1, pos: 101 }, promised: 1 });
    assert_eq!(said_synced(&mut ledger), []);
    ledger.on_disk(saved);
    assert_eq!(said_synced(&mut ledger), [(Place { term: 1, pos: 5 }, Some(8))]);
}

/// It was said in another group, and sent in this one.
#[test]
fn a_late_word_about_another_history_acknowledges_nothing() {
    let whole = stands(8, &[2000, 2001, 2002], 5, 3);
    let mut ledger = Ledger::new(2000, None, 0, (1, false), || 1);
    let nodes: Vec<NodeId> = (1..=3).map(|n| NodeId::new(n, 1)).collect();
    let meta = Meta { view: 20, whole: Some(whole), holds: Vec::new(), dirs: Vec::new(), synced: Vec::new() };
    assert_eq!(ledger.on_meta(meta), Verdict::Take);
    let mut committed = |dir: DirId, pos, history| {
        let place = Place { term: 1, pos };
        ledger.on_say(nodes[dir as usize - 2000], Say::Synced { dir, place, promised: 1, history });
        std::iter::from_fn(|| ledger.poll()).any(|output| matches!(output, Output::Committed(_)))
    };
    assert!(!committed(2000, 5, Some(8)));
    assert!(!committed(2001, 100, Some(7)));
    assert!(committed(2002, 5, None), "a build from before says no history");
}
