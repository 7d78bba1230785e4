//! One reply out of the replies of all servers to the same command.

use alloc::vec::Vec;

use super::{
    Spread, push_header,
    split::{Elements, integer, push_failure, push_first_error},
};

/// Appends the one reply; if one of them is an error or does not fit, an error. `update` says that the command
/// changes data.
pub(super) fn write(how: Spread, random: u64, update: bool, replies: &[&[u8]], out: &mut Vec<u8>) {
    if push_first_error(update, replies, out) {
        return;
    }
    let written = match how {
        Spread::Sum => numbers(replies, u64::checked_add, out),
        Spread::Most => numbers(replies, |a, b| Some(a.max(b)), out),
        Spread::Concat => concat(replies, false, out),
        Spread::Channels => concat(replies, true, out),
        Spread::SumByName => sum_by_name(replies, out),
        Spread::Every => every(replies, out),
        Spread::Same => replies.first().map(|first| out.extend_from_slice(first)),
        Spread::One => {
            let some = || replies.iter().filter(|reply| !matches!(**reply, b"$-1\r\n" | b"_\r\n"));
            let chosen = some().nth((random % some().count().max(1) as u64) as usize);
            chosen.or(replies.first()).map(|chosen| out.extend_from_slice(chosen))
        }
    };
    if written.is_none() {
        push_failure(b"", "command", out);
    }
}

fn numbers(replies: &[&[u8]], join: impl Fn(u64, u64) -> Option<u64>, out: &mut Vec<u8>) -> Option<()> {
    let mut joined = 0;
    for reply in replies {
        joined = join(joined, integer(reply)?)?;
    }
    push_header(out, b':', joined);
    Some(())
}

fn concat(replies: &[&[u8]], once: bool, out: &mut Vec<u8>) -> Option<()> {
    let mut elements = Vec::new();
    for reply in replies {
        elements.extend(Elements::of(reply)?);
    }
    if once {
        elements.sort_unstable();
        elements.dedup();
    }
    push_header(out, b'*', elements.len() as u64);
    elements.iter().for_each(|element| out.extend_from_slice(element));
    Some(())
}

/// Arrays of names and numbers, the same names in the same order.
fn sum_by_name(replies: &[&[u8]], out: &mut Vec<u8>) -> Option<()> {
    let mut lists = replies.iter().map(|reply| Elements::of(reply)).collect::<Option<Vec<_>>>()?;
    let count = lists.first()?.count;
    if !count.is_multiple_of(2) || lists.iter().any(|list| list.count != count) {
        return None;
    }
    let start = out.len();
    push_header(out, b'*', count);
    let mut line = || {
        for _ in 0..count / 2 {
            let (mut name, mut sum) = (None, 0u64);
            for list in &mut lists {
                name = Some(list.next()?);
                sum = sum.checked_add(integer(list.next()?)?)?;
            }
            out.extend_from_slice(name?);
            push_header(out, b':', sum);
        }
        Some(())
    };
    let done = line();
    if done.is_none() {
        out.truncate(start);
    }
    done
}

/// Arrays of 0 and 1, all as long.
fn every(replies: &[&[u8]], out: &mut Vec<u8>) -> Option<()> {
    let mut all: Option<Vec<bool>> = None;
    for reply in replies {
        let these = Elements::of(reply)?.map(|element| Some(integer(element)? != 0));
        let these = these.collect::<Option<Vec<bool>>>()?;
        all = Some(match all {
            None => these,
            Some(all) if all.len() == these.len() => {
                all.iter().zip(these).map(|(&all, this)| all && this).collect()
            }
            Some(_) => return None,
        });
    }
    let all = all?;
    push_header(out, b'*', all.len() as u64);
    all.iter().for_each(|&one| push_header(out, b':', one.into()));
    Some(())
}
