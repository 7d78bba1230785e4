//! After everybody was down: out of what all members hold, what they go on from, and what nobody can have acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use super::{DirId, Held, Hold, Holders, MOST, Place};

pub(super) fn another_history() -> String {
    "the group's state goes on from another beginning than what this directory holds: it began anew, or an operator had it \
     go on without this directory. Nothing here was changed. If what the others have is right, move this directory away; if \
     what is here is right, stop the others, move theirs away, and start those first that hold it"
        .into()
}

/// May this directory's history be dropped for another one? Those who may still hold it, and have commands of it, are too few for
/// one to have been acknowledged among them: the others hold `another`.
pub(super) fn may_drop(mine: &Held, me: DirId, another: impl Fn(DirId) -> bool) -> bool {
    let may_have = |dir| dir > MOST as DirId && (dir != me || mine.commands > 0);
    !mine.holders.majority(|dir| may_have(dir) && !another(dir))
}

/// What the members go on from.
pub(super) struct Found {
    pub(super) source: DirId,
    /// As somebody holds it; `None` if the group begins with nothing.
    pub(super) from: Option<Held>,
    /// The same, with the holders that count.
    pub(super) held: Held,
}

/// Out of what all members of a view hold, in rank order. The error says what is waited for.
pub(super) fn choose(holds: &[&Hold]) -> Result<Found, String> {
    let mut histories: BTreeMap<u64, Vec<(&Hold, &Held)>> = BTreeMap::new();
    for hold in holds {
        if let Some(held) = &hold.held {
            histories.entry(held.history).or_default().push((hold, held));
        }
    }
    // Of each history the newest, of those that are as new the first in rank.
    let (mut known, mut dead) = (Vec::new(), Vec::new());
    let absent = |dir: DirId| dir > MOST as DirId && !holds.iter().any(|hold| hold.dir == dir);
    for (history, of) in &histories {
        let place = of.iter().map(|(_, held)| held.place).max();
        let Some((first, newest)) = of.iter().find(|(_, held)| Some(held.place) == place) else { continue };
        let here = |dir: DirId| of.iter().any(|(hold, _)| hold.dir == dir);
        let enough = newest.holders.majority(here);
        let missing = newest.holders.now.iter().filter(|dir| !here(**dir)).count();
        let accepts = of.iter().any(|(hold, _)| hold.accept);
        if !newest.holders.majority(|dir| here(dir) || absent(dir)) {
            // It was begun and not carried through: so few can have it that nothing of it was acknowledged.
            dead.push((*first, *newest));
            continue;
        }
        known.push((*history, *first, (*newest).clone(), enough, missing, accepts));
    }
    let full = known.iter().any(|(_, _, newest, ..)| newest.commands > 0);
    known.retain(|(_, _, newest, ..)| newest.commands > 0 || !full);
    if let Some((_, first, newest, ..)) = known.iter().find(|(.., enough, _, _)| *enough) {
        return Ok(Found { source: first.dir, held: newest.clone(), from: Some(newest.clone()) });
    }
    if let Some((history, first, newest, ..)) = known.iter().find(|(.., accepts)| *accepts) {
        let now = all(histories[history].iter().map(|(hold, _)| hold.dir));
        let holders = Holders { now, before: None };
        let held = Held { history: first.nonce, holders, ..newest.clone() };
        return Ok(Found { source: first.dir, held, from: Some(newest.clone()) });
    }
    if let Some((_, _, newest, _, missing, _)) = known.first() {
        let of = newest.holders.now.len();
        return Err(format!(
            "{missing} of the {of} directories that hold the group's state are not here, and the others may lack what only \
             they have: start more of the members that had them ({} must be here). If they are lost for good, start one \
             member with --accept-stale-state: what only the missing ones hold is then given up",
            of / 2 + 1
        ));
    }
    let expected = holds.iter().map(|h| h.expected).max().unwrap_or(1);
    let now = all(holds.iter().map(|h| h.dir));
    let Some(first) = holds.first() else { return Err("there is nobody".into()) };
    if (now.len() as u64) <= expected / 2 && !holds.iter().any(|h| h.accept) {
        let need = expected / 2 + 1;
        return Err(format!(
            "the directories here are empty, and so few may not begin with an empty state: {need} of {expected} must be here"
        ));
    }
    // Who comes later takes a vacant place. So a majority is one of all with which the group begins, and those who begin elsewhere
    // with nothing have not got it.
    let vacant = (1..).take((expected as usize).min(MOST).saturating_sub(now.len()));
    let holders = Holders { now: now.into_iter().chain(vacant).collect(), before: None };
    // What came to nothing is as good as nothing.
    let from = dead.first().map(|(hold, held)| (hold.dir, (*held).clone()));
    let (source, from) = from.map_or((first.dir, None), |(dir, held)| (dir, Some(held)));
    let (place, commands) = from.as_ref().map_or((Place::default(), 0), |held| (held.place, held.commands));
    Ok(Found { source, held: Held { history: first.nonce, place, holders, commands }, from })
}

/// Each once, and not too many.
fn all(dirs: impl Iterator<Item = DirId>) -> Vec<DirId> {
    dirs.collect::<BTreeSet<_>>().into_iter().take(MOST).collect()
}
