//! In a large view the first member passes on what the others say about its closing. Here a view of two is large.

use std::time::Duration;

use membership_multicast::{Class, Input};

use super::room::{Room, Seen, id, told, view};

/// Everybody in it hears of a view.
fn hear_of(room: &mut Room, number: u64, members: &[u32]) {
    for n in members {
        room.feed(*n, Input::View(view(number, members)));
    }
}

#[test]
fn only_the_first_member_is_spoken_to() {
    let mut room = Room::relayed(&[1, 2, 3, 4]);
    room.links.clear();
    room.kill(4);
    hear_of(&mut room, 11, &[1, 2, 3]);
    room.run();
    for n in [1, 2, 3] {
        assert_eq!(room.seen(n), [Seen::View(11, vec![1, 2, 3])], "at {n}");
    }
    let used: Vec<(u32, u32)> = room.links.keys().copied().collect();
    assert_eq!(used, [(1, 2), (1, 3), (2, 1), (3, 1)], "two and three say nothing to each other");
}

#[test]
fn what_was_passed_on_and_lost_with_a_connection_is_passed_on_again() {
    lose_words(Room::relayed(&[1, 2]));
}

/// In the simulator who waits in vain is removed before long.
#[cfg(feature = "plant")]
#[test]
#[should_panic = "at three"]
fn the_planted_bug_of_one_who_passes_nothing_on_again_is_found() {
    let mut room = Room::relayed(&[1, 2]);
    room.plant(1, membership_multicast::Plant::ForgetWords);
    lose_words(room);
}

fn lose_words(mut room: Room) {
    // Who is new is not brought along: it needs the words.
    room.add(3, false);
    room.hold_up(1, 3);
    hear_of(&mut room, 11, &[1, 2, 3]);
    room.run();
    assert_eq!((room.seen(2), room.seen(3)), (&[Seen::View(11, vec![1, 2])][..], &[][..]));
    room.links.clear();
    room.feed(1, Input::Linked(id(3)));
    room.feed(3, Input::Linked(id(1)));
    room.let_go();
    assert_eq!(room.seen(3), [Seen::View(11, vec![])], "at three");
}

#[test]
fn words_that_come_before_the_messages_that_they_count_wait_for_those() {
    let mut room = Room::relayed(&[1, 2, 3]);
    room.hold_up(2, 3);
    room.say(2, Class::Fifo, "on its way");
    room.run();
    hear_of(&mut room, 11, &[1, 2, 3]);
    room.run();
    assert_eq!(room.seen(3), [], "it knows of the message, and has not got it");
    assert_eq!(room.seen(1), [told("on its way")], "nobody installs before three has it, too");
    room.let_go();
    for n in [1, 2, 3] {
        assert_eq!(room.seen(n), [told("on its way"), Seen::View(11, vec![1, 2, 3])], "at {n}");
    }
}

#[test]
fn who_is_new_and_first_passes_on_what_it_hears_before_it_knows_the_view() {
    let mut room = Room::relayed(&[1, 2]);
    room.add(5, false);
    for n in [1, 2] {
        room.feed(n, Input::View(view(11, &[5, 1, 2])));
        room.wait(n, Duration::from_millis(600));
    }
    assert!(room.members[&1].is_blocked() && room.members[&2].is_blocked());
    room.feed(5, Input::View(view(11, &[5, 1, 2])));
    room.run();
    for (n, with) in [(5, vec![]), (1, vec![1, 2]), (2, vec![1, 2])] {
        assert_eq!(room.seen(n), [Seen::View(11, with)], "at {n}");
    }
}

#[test]
fn who_was_overtaken_is_brought_along_by_one_member() {
    let mut room = Room::relayed(&[1, 2, 3, 4]);
    room.hold_up(1, 4);
    hear_of(&mut room, 11, &[1, 2, 3, 4]);
    room.run();
    assert_eq!(room.seen(4), [], "the others have installed it");
    // The first one of the next view is new: it knows of none before.
    room.add(5, false);
    room.links.clear();
    room.held_up.clear();
    hear_of(&mut room, 12, &[5, 1, 2, 3, 4]);
    room.run();
    for n in [1, 2, 3, 4] {
        let seen = [Seen::View(11, vec![1, 2, 3, 4]), Seen::View(12, vec![1, 2, 3, 4])];
        assert_eq!(room.seen(n), seen, "at {n}");
    }
    assert_eq!(room.seen(5), [Seen::View(12, vec![])]);
    assert_eq!(room.cuts, 1, "one tells it how the view was closed");
}

/// A process that comes while a view closes does not keep that from being closed.
#[test]
fn words_about_a_view_are_passed_on_while_the_next_one_is_on_its_way() {
    let mut room = Room::relayed(&[1, 2, 3]);
    room.hold_up(2, 1);
    hear_of(&mut room, 11, &[1, 2, 3]);
    room.run();
    for n in [1, 2, 3] {
        room.feed(n, Input::View(view(12, &[1, 2, 3, 4])));
    }
    room.let_go();
    for n in [1, 2, 3] {
        assert_eq!(room.seen(n), [Seen::View(11, vec![1, 2, 3])], "at {n}");
        assert!(!room.members[&n].is_blocked(), "{n} goes on until four is there");
    }
}

#[test]
fn older_builds_are_told_by_everybody() {
    for old in [1, 3] {
        let mut room = Room::relayed(&[1, 2]);
        room.relay_above = usize::MAX;
        room.add(3, false);
        if old == 1 {
            room = Room::relayed(&[2, 3]);
            room.relay_above = usize::MAX;
            room.add(1, false);
        }
        hear_of(&mut room, 11, &[1, 2, 3]);
        room.run();
        // Its connections say what it is: the first member's do, and where it is first itself, those of all.
        let who = if old == 1 { vec![2, 3] } else { vec![1] };
        for n in who {
            room.feed(n, Input::Plain(id(old)));
        }
        room.run();
        for n in [1, 2, 3] {
            let with = if n == old { vec![] } else { [1, 2, 3].into_iter().filter(|m| *m != old).collect() };
            assert_eq!(room.seen(n), [Seen::View(11, with)], "at {n}, where {old} is old");
        }
    }
}

#[test]
fn the_first_member_names_who_says_nothing_and_is_named_if_it_does_not() {
    let mut room = Room::relayed(&[1, 2, 3, 4]);
    room.hold_up(4, 1);
    hear_of(&mut room, 11, &[1, 2, 3, 4]);
    room.run();
    room.wait_all(7);
    assert_eq!(room.behind, [(1, 4); 3], "after five seconds, and again each second: once is not enough");
    room.behind.clear();
    room.wait_all(20);
    room.behind.sort_unstable();
    room.behind.dedup();
    assert_eq!(room.behind, [(1, 4), (2, 1), (3, 1)], "later");
    // The first one says nothing at all to two.
    let mut room = Room::relayed(&[1, 2, 3]);
    room.hold_up(1, 2);
    hear_of(&mut room, 11, &[1, 2, 3]);
    room.run();
    room.wait_all(7);
    assert_eq!(room.behind, [(2, 1)], "the first one says nothing itself");
}
