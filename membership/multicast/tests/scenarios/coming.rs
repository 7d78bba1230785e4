//! Somebody new comes to those who are busy.

use std::time::Duration;

use membership_multicast::{Class, Input};

use super::room::{Room, Seen, told, view};

/// One and two are busy in view 10, and are told of view 11, in which three is new.
fn busy() -> Room {
    let mut room = Room::new(&[1, 2]);
    for n in [1, 2] {
        room.feed(n, Input::View(view(11, &[1, 2, 3])));
    }
    room
}

#[test]
fn members_go_on_until_who_is_new_is_there() {
    let mut room = busy();
    room.say(2, Class::Ordered, "meanwhile");
    room.run();
    for n in [1, 2] {
        assert_eq!(room.seen(n), [told("meanwhile")], "at {n}");
    }
    room.add(3, false);
    room.feed(3, Input::View(view(11, &[1, 2, 3])));
    room.run();
    room.say(2, Class::Ordered, "together");
    room.run();
    for n in [1, 2] {
        assert_eq!(room.seen(n), [told("meanwhile"), Seen::View(11, vec![1, 2]), told("together")], "at {n}");
    }
    assert_eq!(room.seen(3), [Seen::View(11, vec![]), told("together")]);
}

#[test]
fn who_is_new_and_does_not_come_is_not_waited_for_for_ever() {
    let mut room = busy();
    assert!(!room.members[&1].is_blocked(), "one goes on");
    room.wait(1, Duration::from_millis(600));
    assert!(room.members[&1].is_blocked(), "one closes");
    // Another newcomer does not begin that time anew.
    let mut room = busy();
    room.wait(1, Duration::from_millis(300));
    room.feed(1, Input::View(view(12, &[1, 2, 3, 4])));
    assert!(!room.members[&1].is_blocked());
    room.wait(1, Duration::from_millis(300));
    assert!(room.members[&1].is_blocked());
}

#[test]
fn nobody_goes_on_once_another_one_closes() {
    let mut room = busy();
    assert!(!room.members[&2].is_blocked());
    room.wait(1, Duration::from_millis(600));
    assert!(room.members[&2].is_blocked(), "one closes");
}

#[test]
fn nobody_waits_for_who_is_new_when_another_one_goes() {
    let mut room = Room::new(&[1, 2, 4]);
    room.kill(4);
    for n in [1, 2] {
        room.feed(n, Input::View(view(11, &[1, 2, 3])));
        assert!(room.members[&n].is_blocked());
    }
    // The same, of somebody who was to come.
    let mut room = busy();
    for n in [1, 2] {
        room.feed(n, Input::View(view(12, &[1, 2])));
    }
    room.run();
    for n in [1, 2] {
        assert_eq!(room.seen(n), [Seen::View(12, vec![1, 2])], "at {n}");
    }
}
