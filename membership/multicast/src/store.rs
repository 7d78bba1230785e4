//! The messages of one view at one member: who holds what, and what may be delivered.

use alloc::{collections::VecDeque, vec, vec::Vec};

use bytes::{Bytes, BytesMut};
use membership_types::ViewId;

use crate::{
    frame::{Ack, Class, Data, Run},
    order::Sequence,
    plant::Plant,
};

/// A fragment.
#[derive(Clone, Debug, Hash)]
struct Item {
    class: Class,
    last: bool,
    payload: Bytes,
}

/// What is held of one sender.
#[derive(Clone, Debug, Default, Hash)]
struct Sender {
    /// Fragments after `dropped`, without a gap.
    items: VecDeque<Item>,
    /// All members hold the fragments up to this one, and they were delivered here: they are gone.
    dropped: u64,
    /// The last fragment of the last delivered message.
    delivered: u64,
    /// The last fragment of the last message that is held whole.
    whole: u64,
    /// How many sequenced messages are held whole, in all.
    ordered: u64,
    /// How many of them have a place among those that are held up to there.
    placed: u64,
    /// The leader has given so many of them a place.
    sequenced: u64,
    /// How many messages were delivered.
    taken: u64,
}

impl Sender {
    fn held(&self) -> u64 {
        self.dropped + self.items.len() as u64
    }

    fn item(&self, number: u64) -> Option<&Item> {
        let index = number.checked_sub(self.dropped + 1)?;
        self.items.get(usize::try_from(index).ok()?)
    }

    /// The class of the next message to be delivered, if it is held whole.
    fn next(&self) -> Option<Class> {
        if self.delivered < self.whole { self.item(self.delivered + 1).map(|i| i.class) } else { None }
    }

    /// Takes the next message: its number among the messages of the sender, its class, and its bytes.
    fn take(&mut self) -> Option<(u64, Class, Bytes)> {
        self.next()?;
        let first = self.delivered + 1;
        let mut end = first;
        while !self.item(end)?.last {
            end += 1;
        }
        let class = self.item(end)?.class;
        let payload = if end == first {
            self.item(end)?.payload.clone()
        } else {
            let mut joined = BytesMut::new();
            for number in first..=end {
                joined.extend_from_slice(&self.item(number)?.payload);
            }
            joined.freeze()
        };
        self.delivered = end;
        self.taken += 1;
        Some((self.taken, class, payload))
    }
}

/// A message that may be delivered now.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) rank: u16,
    /// Its number among the sender's messages in this view, from 1.
    pub(crate) count: u64,
    pub(crate) class: Class,
    /// Its place in the sequence; `None` for class fifo, and for what was closed without one.
    pub(crate) place: Option<u64>,
    pub(crate) payload: Bytes,
}

/// What somebody is known to hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Holds {
    pub(crate) held: Vec<u64>,
    pub(crate) seq: u64,
}

/// All messages of one view that are not yet delivered here and held by everybody.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Store {
    view: ViewId,
    me: usize,
    senders: Vec<Sender>,
    sequence: Sequence,
    /// All messages up to this place are held, and their places known.
    seq: u64,
    /// All up to this place are delivered.
    delivered: u64,
    /// What each member said that it holds; not our own.
    acks: Vec<Holds>,
    /// Bytes of our own fragments that not everybody holds, as far as we know.
    unstable: u64,
    /// Everybody holds our own fragments up to this one.
    stable: u64,
    /// Safe messages that are held whole and not delivered.
    safe: u64,
    /// Bytes held since the last acknowledgement.
    fresh: u64,
    /// At the closing: the sequence has come to a message that nobody holds.
    broken: bool,
    /// What we last told the others.
    told: Holds,
    /// We were the last to hold a safe message and have delivered it: the others wait to hear that.
    awaited: bool,
    #[cfg(feature = "plant")]
    plant: Option<Plant>,
}

impl Store {
    pub(crate) fn new(view: ViewId, members: usize, me: usize) -> Self {
        Self {
            view,
            me,
            senders: vec![Sender::default(); members],
            sequence: Sequence::default(),
            seq: 0,
            delivered: 0,
            acks: vec![Holds { held: vec![0; members], seq: 0 }; members],
            unstable: 0,
            stable: 0,
            safe: 0,
            fresh: 0,
            broken: false,
            told: Holds { held: vec![0; members], seq: 0 },
            awaited: false,
            #[cfg(feature = "plant")]
            plant: None,
        }
    }

    /// What we hold.
    pub(crate) fn holds(&self) -> Holds {
        Holds { held: self.senders.iter().map(Sender::held).collect(), seq: self.seq }
    }

    /// What we hold of a rank: all fragments up to this one.
    pub(crate) fn held(&self, rank: usize) -> u64 {
        self.senders[rank].held()
    }

    /// Our own last fragment.
    pub(crate) fn own(&self) -> u64 {
        self.held(self.me)
    }

    /// Everybody holds our own fragments up to this one.
    pub(crate) fn stable(&self) -> u64 {
        self.stable
    }

    /// How many messages of each rank were delivered.
    pub(crate) fn taken(&self) -> Vec<u64> {
        self.senders.iter().map(|s| s.taken).collect()
    }

    /// All messages up to this place are held, and their places known.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// All up to this place are delivered.
    pub(crate) fn delivered_place(&self) -> u64 {
        self.delivered
    }

    /// How far the sequence is known.
    pub(crate) fn known(&self) -> u64 {
        self.sequence.known()
    }

    /// The sequence itself.
    pub(crate) fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Bytes of our own that are under way.
    pub(crate) fn unstable(&self) -> u64 {
        self.unstable
    }

    /// Bytes that came since the last acknowledgement.
    pub(crate) fn fresh(&self) -> u64 {
        self.fresh
    }

    /// Do others, or we, wait for a safe message?
    pub(crate) fn has_safe(&self) -> bool {
        self.safe > 0 || self.awaited
    }

    /// Adds our own next fragment.
    pub(crate) fn send(&mut self, class: Class, last: bool, payload: Bytes) -> Data {
        let number = self.senders[self.me].held() + 1;
        self.unstable += cost(&payload);
        let data =
            Data { view: self.view, rank: self.me as u16, number, class, last, payload: payload.clone() };
        self.append(self.me, Item { class, last, payload });
        data
    }

    /// Takes a fragment. False if it is not the next one of its sender: known already, or beyond a gap.
    pub(crate) fn insert(&mut self, data: &Data) -> bool {
        let rank = usize::from(data.rank);
        let Some(sender) = self.senders.get(rank) else { return false };
        if data.number != sender.held() + 1 || rank == self.me {
            return false;
        }
        // All fragments of a message are of one class.
        let class = match sender.items.back() {
            Some(before) if sender.whole < sender.held() => before.class,
            _ => data.class,
        };
        self.fresh += cost(&data.payload);
        self.append(rank, Item { class, last: data.last, payload: data.payload.clone() });
        true
    }

    fn append(&mut self, rank: usize, item: Item) {
        let sender = &mut self.senders[rank];
        let (class, last) = (item.class, item.last);
        sender.items.push_back(item);
        if last {
            sender.whole = sender.held();
            if class.is_sequenced() {
                sender.ordered += 1;
            }
            if class == Class::Safe {
                self.safe += 1;
            }
        }
        self.advance();
    }

    /// Takes places from the leader. False if there is a gap, or a run is of nobody.
    pub(crate) fn order(&mut self, first: u64, runs: &[Run]) -> bool {
        if runs.iter().any(|run| usize::from(run.rank) >= self.senders.len()) {
            return false;
        }
        let taken = self.sequence.extend(first, runs);
        self.advance();
        taken
    }

    /// As the leader: gives places to all whole messages that have none. Returns the first place and the runs.
    pub(crate) fn give_places(&mut self) -> Option<(u64, Vec<Run>)> {
        let runs: Vec<Run> = self
            .senders
            .iter_mut()
            .enumerate()
            .filter_map(|(rank, sender)| {
                let count = u32::try_from(sender.ordered - sender.sequenced).unwrap_or(u32::MAX);
                sender.sequenced += u64::from(count);
                (count > 0).then_some(Run { rank: rank as u16, count })
            })
            .collect();
        if runs.is_empty() {
            return None;
        }
        let first = self.sequence.known() + 1;
        self.sequence.extend(first, &runs);
        self.advance();
        Some((first, runs))
    }

    /// Moves the place up to which everything is held.
    fn advance(&mut self) {
        while let Some((rank, left)) = self.sequence.at(self.seq + 1) {
            let sender = &mut self.senders[usize::from(rank)];
            let step = left.min(sender.ordered - sender.placed);
            sender.placed += step;
            self.seq += step;
            if step < left {
                break;
            }
        }
    }

    /// Notes what another member holds. True if that says something new.
    pub(crate) fn acknowledge(&mut self, rank: usize, ack: &Ack) -> bool {
        let members = self.senders.len();
        if rank >= members || rank == self.me || ack.held.len() != members {
            return false;
        }
        let known = &mut self.acks[rank];
        let mut news = ack.seq > known.seq;
        known.seq = known.seq.max(ack.seq);
        for (known, held) in known.held.iter_mut().zip(&ack.held) {
            news |= *held > *known;
            *known = (*known).max(*held);
        }
        if news {
            self.settle();
        }
        news
    }

    /// What another member is known to hold.
    pub(crate) fn known_of(&self, rank: usize) -> &Holds {
        &self.acks[rank]
    }

    /// An acknowledgement goes out: with this.
    pub(crate) fn acknowledged(&mut self) -> Holds {
        self.fresh = 0;
        self.awaited = false;
        self.told = self.holds();
        self.told.clone()
    }

    /// Do we hold the places of more messages than the others know?
    pub(crate) fn has_places(&self) -> bool {
        self.seq > self.told.seq
    }

    /// Do we hold anything of others that they don't know of?
    pub(crate) fn has_news(&self) -> bool {
        self.fresh > 0 || self.has_places()
    }

    #[cfg(feature = "plant")]
    pub(crate) fn plant(&mut self, plant: Option<Plant>) {
        self.plant = plant;
    }

    #[cfg(feature = "plant")]
    fn planted(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    #[cfg(not(feature = "plant"))]
    #[allow(clippy::unused_self, reason = "the same call in both builds")]
    fn planted(&self, _plant: Plant) -> bool {
        false
    }

    /// Forgets what is delivered here and held by everybody.
    pub(crate) fn settle(&mut self) {
        let own = held_by_others(&self.acks, self.me, self.me).min(self.senders[self.me].held());
        while self.stable < own {
            self.stable += 1;
            if let Some(item) = self.senders[self.me].item(self.stable) {
                self.unstable = self.unstable.saturating_sub(cost(&item.payload));
            }
        }
        let forget = self.planted(Plant::ForgetUnstable);
        for (rank, sender) in self.senders.iter_mut().enumerate() {
            if sender.items.is_empty() {
                continue;
            }
            let everywhere = || held_by_others(&self.acks, self.me, rank);
            let end = if forget { sender.delivered } else { everywhere().min(sender.delivered) };
            while sender.dropped < end {
                sender.items.pop_front();
                sender.dropped += 1;
            }
        }
        let through = self.everywhere().min(self.delivered);
        self.sequence.forget(through);
    }

    /// The place up to which all members hold everything.
    pub(crate) fn everywhere(&self) -> u64 {
        let others = self.acks.iter().enumerate().filter(|(rank, _)| *rank != self.me);
        others.map(|(_, a)| a.seq).min().unwrap_or(u64::MAX).min(self.seq)
    }

    /// The next message that may be delivered inside the view.
    ///
    /// Each sender's messages come in its order, whatever their classes; a safe one once everybody holds it, and not if
    /// `hold`.
    pub(crate) fn deliverable(&mut self, hold: bool) -> Option<Ready> {
        let fifo = self.senders.iter().position(|s| s.next() == Some(Class::Fifo));
        if let Some(rank) = fifo {
            return self.take(rank, None);
        }
        let place = self.delivered + 1;
        if place > self.seq {
            return None;
        }
        let rank = usize::from(self.sequence.at(place)?.0);
        match self.senders[rank].next()? {
            Class::Safe if hold || !self.is_safe(rank, place) => None,
            class => {
                self.awaited |= class == Class::Safe && place > self.told.seq;
                self.delivered = place;
                self.take(rank, Some(place))
            }
        }
    }

    /// Do all members hold the next message of this rank, and its place?
    fn is_safe(&self, rank: usize, place: u64) -> bool {
        if self.planted(Plant::SafeIsOrdered) {
            return true;
        }
        if self.planted(Plant::SafeWithoutPlace) {
            let next = self.senders[rank].delivered + 1;
            return self.acks.iter().enumerate().all(|(q, a)| q == self.me || a.held[rank] >= next);
        }
        self.everywhere() >= place
    }

    fn take(&mut self, rank: usize, place: Option<u64>) -> Option<Ready> {
        let (count, class, payload) = self.senders[rank].take()?;
        if class == Class::Safe {
            self.safe -= 1;
        }
        Some(Ready { rank: rank as u16, count, class, place, payload })
    }

    /// Nothing beyond the cut counts.
    pub(crate) fn truncate(&mut self, cut: &Holds) {
        for (rank, sender) in self.senders.iter_mut().enumerate() {
            let end = cut.held.get(rank).copied().unwrap_or(0);
            while sender.held() > end.max(sender.dropped) {
                let gone = sender.items.pop_back().expect("not empty");
                if gone.last {
                    if gone.class.is_sequenced() {
                        sender.ordered -= 1;
                    }
                    if gone.class == Class::Safe {
                        self.safe -= 1;
                    }
                }
            }
            sender.whole = sender.held();
            while sender.whole > sender.dropped && sender.item(sender.whole).is_some_and(|i| !i.last) {
                sender.whole -= 1;
            }
        }
        self.sequence.truncate(cut.seq);
        self.seq = 0;
        self.senders.iter_mut().for_each(|s| s.placed = 0);
    }

    /// Is everything here up to the cut?
    pub(crate) fn reaches(&self, cut: &Holds) -> bool {
        let held = self.senders.iter().zip(&cut.held).all(|(s, end)| s.held() >= *end);
        held && self.sequence.known() >= cut.seq
    }

    /// After [`truncate`](Store::truncate): the next message that is delivered at the closing of the view. First the
    /// sequence up to the first message that nobody holds, then everything else by sender.
    pub(crate) fn closing(&mut self) -> Option<Ready> {
        let fifo = self.senders.iter().position(|s| s.next() == Some(Class::Fifo));
        if let Some(rank) = fifo {
            return self.take(rank, None);
        }
        if !self.broken
            && let Some((rank, _)) = self.sequence.at(self.delivered + 1)
        {
            let rank = usize::from(rank);
            if self.senders[rank].next().is_some() {
                self.delivered += 1;
                return self.take(rank, Some(self.delivered));
            }
            self.broken = true;
        }
        let mine = self.senders[self.me].next().is_some() && self.planted(Plant::CloseOwnFirst);
        let first = || self.senders.iter().position(|s| s.next().is_some());
        let rank = if mine { self.me } else { first()? };
        self.take(rank, None)
    }

    /// The fragments of a rank that somebody lacks who holds those up to `after`.
    pub(crate) fn fragments(&self, rank: usize, after: u64, through: u64) -> impl Iterator<Item = Data> {
        let sender = &self.senders[rank];
        let from = after.max(sender.dropped) + 1;
        (from..=through.min(sender.held())).filter_map(move |number| {
            let item = sender.item(number)?;
            Some(Data {
                view: self.view,
                rank: rank as u16,
                number,
                class: item.class,
                last: item.last,
                payload: item.payload.clone(),
            })
        })
    }
}

/// Of a rank, the last fragment that all others but `me` are known to hold.
fn held_by_others(acks: &[Holds], me: usize, rank: usize) -> u64 {
    let others = acks.iter().enumerate().filter(|(q, _)| *q != me);
    others.map(|(_, ack)| ack.held[rank]).min().unwrap_or(u64::MAX)
}

/// What a fragment costs of the window: the bytes and something for itself, so that empty ones are bounded too.
pub(crate) fn cost(payload: &Bytes) -> u64 {
    payload.len() as u64 + 64
}
