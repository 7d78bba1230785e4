//! Where a command's keys are when that takes more than counting arguments.
//!
//! The arguments are read as the server reads them, left to right: who only looks for the word `STREAMS` takes a
//! consumer of that name for it, and sends the command to the wrong server. What the server would refuse is
//! refused here, in its words.

use super::Args;

/// How to find the keys of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// From argument `first` to `last` (counted from the end if negative), every `step`.
    Range {
        /// Position of the first key.
        first: usize,
        /// Position of the last key, or from the end, where -1 is the last argument.
        last: isize,
        /// From one key to the next.
        step: usize,
    },
    /// Argument `at` says how many follow it.
    Count {
        /// Position of the number.
        at: usize,
        /// Whether argument 1 is a key, too: the destination.
        to: bool,
        /// Whether there may be none (scripts), and what is said if there are too many.
        script: bool,
    },
    /// `XREAD`, `XREADGROUP`: the first half of what follows `STREAMS`.
    Streams {
        /// Whether `GROUP` and `NOACK` are known.
        group: bool,
    },
    /// `COPY`: arguments 1 and 2, in the one database that there is.
    Copy,
    /// `SORT`: argument 1, what follows `STORE`, and patterns.
    Sort {
        /// Whether `STORE` is known.
        store: bool,
    },
    /// `GEORADIUS`: argument 1, and what follows `STORE` or `STOREDIST` among the options from `options` on.
    Geo {
        /// Position of the first option.
        options: usize,
    },
}

/// Something that names keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The argument at this position is a key.
    Key(usize),
    /// The argument at this position is a pattern that keys are made from.
    Pattern(usize),
}

/// Arguments from which the keys do not follow: what a server says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

const SYNTAX: Malformed = Malformed("ERR syntax error");
const NOT_A_NUMBER: Malformed = Malformed("ERR value is not an integer or out of range");

impl Find {
    /// Calls `visit` for everything that names keys.
    ///
    /// # Errors
    /// See [`Malformed`]; then `visit` may have been called for some.
    pub fn each(self, command: &[u8], args: &Args, visit: &mut dyn FnMut(Found)) -> Result<(), Malformed> {
        let is = |at: usize, word: &str| args.get(command, at).eq_ignore_ascii_case(word.as_bytes());
        let len = args.len();
        match self {
            Self::Range { first, last, step } => {
                let last = if last < 0 { len.saturating_add_signed(last) } else { last.unsigned_abs() };
                if step > 1 && !(last + 1 - first).is_multiple_of(step) {
                    return Err(Malformed("ERR wrong number of arguments for 'msetnx' command"));
                }
                (first..=last).step_by(step).for_each(|at| visit(Found::Key(at)));
            }
            Self::Count { at, to, script } => {
                let count = match count(args.get(command, at), script) {
                    Ok(count) => count,
                    Err(malformed) => return Err(few(command, args, at).unwrap_or(malformed)),
                };
                if count > len - at - 1 {
                    return Err(if script || is(0, "sintercard") {
                        Malformed("ERR Number of keys can't be greater than number of args")
                    } else {
                        SYNTAX
                    });
                }
                if to {
                    visit(Found::Key(1));
                }
                (at + 1..=at + count).for_each(|at| visit(Found::Key(at)));
            }
            Self::Streams { group } => {
                let (streams, _) = streams(command, args, group)?;
                let rest = len - streams;
                if rest == 0 || !rest.is_multiple_of(2) {
                    return Err(Malformed(
                        "ERR Unbalanced list of streams: for each stream key an ID, '$' or '>' must be specified.",
                    ));
                }
                (streams..streams + rest / 2).for_each(|at| visit(Found::Key(at)));
            }
            Self::Copy => {
                if (3..len.saturating_sub(1)).any(|at| is(at, "db") && args.get(command, at + 1) != b"0") {
                    return Err(Malformed("ERR phalanx: a partitioned service has database 0 alone"));
                }
                [1, 2].into_iter().for_each(|at| visit(Found::Key(at)));
            }
            Self::Sort { store } => {
                visit(Found::Key(1));
                let mut at = 2;
                while at < len {
                    if is(at, "asc") || is(at, "desc") || is(at, "alpha") {
                        at += 1;
                    } else if is(at, "limit") && at + 2 < len {
                        at += 3;
                    } else if store && is(at, "store") && at + 1 < len {
                        visit(Found::Key(at + 1));
                        at += 2;
                    } else if (is(at, "by") || is(at, "get")) && at + 1 < len {
                        // Without a star nothing is looked up: `BY nosort`, `GET #`.
                        if memchr::memchr(b'*', args.get(command, at + 1)).is_some() {
                            visit(Found::Pattern(at + 1));
                        }
                        at += 2;
                    } else {
                        return Err(SYNTAX);
                    }
                }
            }
            Self::Geo { options } => {
                visit(Found::Key(1));
                let mut at = options;
                while at < len {
                    if ["withdist", "withhash", "withcoord", "any", "asc", "desc"]
                        .iter()
                        .any(|word| is(at, word))
                    {
                        at += 1;
                    } else if is(at, "count") && at + 1 < len {
                        at += 2;
                    } else if (is(at, "store") || is(at, "storedist")) && at + 1 < len {
                        visit(Found::Key(at + 1));
                        at += 2;
                    } else {
                        return Err(SYNTAX);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What decides where the keys that `SORT` makes of a pattern live, if that can be known: a tag before the star.
/// (One behind it may lose to a tag in what takes the star's place.)
pub fn pattern_tag(pattern: &[u8]) -> Option<&[u8]> {
    let prefix = &pattern[..memchr::memchr(b'*', pattern)?];
    Some(crate::key::tagged(prefix)).filter(|tag| tag.len() < prefix.len())
}

/// Where the keys of `XREAD` or `XREADGROUP` start, and the argument of `BLOCK` if it is there.
pub(super) fn streams(command: &[u8], args: &Args, group: bool) -> Result<(usize, Option<usize>), Malformed> {
    let is = |at: usize, word: &str| args.get(command, at).eq_ignore_ascii_case(word.as_bytes());
    let (mut at, mut block) = (1, None);
    while at < args.len() {
        let more = args.len() - at - 1;
        if is(at, "streams") && more >= 1 {
            return Ok((at + 1, block));
        } else if is(at, "block") && more >= 1 {
            block = Some(at + 1);
            at += 2;
        } else if is(at, "count") && more >= 1 {
            at += 2;
        } else if group && is(at, "group") && more >= 2 {
            at += 3;
        } else if group && is(at, "noack") {
            at += 1;
        } else {
            return Err(SYNTAX);
        }
    }
    Err(SYNTAX)
}

/// What some commands say in words of their own of a number of keys that is too small, or no number.
fn few(command: &[u8], args: &Args, at: usize) -> Option<Malformed> {
    const SAYS: [(&str, &str); 7] = [
        ("zunion", "ERR at least 1 input key is needed for 'zunion' command"),
        ("zunionstore", "ERR at least 1 input key is needed for 'zunionstore' command"),
        ("zinter", "ERR at least 1 input key is needed for 'zinter' command"),
        ("zinterstore", "ERR at least 1 input key is needed for 'zinterstore' command"),
        ("zintercard", "ERR at least 1 input key is needed for 'zintercard' command"),
        ("zdiff", "ERR at least 1 input key is needed for 'zdiff' command"),
        ("zdiffstore", "ERR at least 1 input key is needed for 'zdiffstore' command"),
    ];
    let name = args.get(command, 0);
    let malformed = count(args.get(command, at), true).err();
    if [&b"fcall"[..], b"fcall_ro"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
        return malformed
            .map(|why| if why == NOT_A_NUMBER { Malformed("ERR Bad number of keys provided") } else { why });
    }
    let (_, says) = SAYS.iter().find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))?;
    Some(malformed.filter(|why| *why == NOT_A_NUMBER).unwrap_or(Malformed(says)))
}

/// How many keys there are to follow. A script may have none, and says so in other words.
fn count(text: &[u8], script: bool) -> Result<usize, Malformed> {
    let (sign, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let canonical = digits == b"0" && !sign || !digits.is_empty() && digits[0] != b'0';
    if !canonical || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(if script { NOT_A_NUMBER } else { Malformed("ERR numkeys should be greater than 0") });
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    match (sign, script) {
        (true, true) => Err(Malformed("ERR Number of keys can't be negative")),
        (true, false) => Err(Malformed("ERR numkeys should be greater than 0")),
        (false, false) if number == 0 => Err(Malformed("ERR numkeys should be greater than 0")),
        (false, _) => Ok(number),
    }
}
