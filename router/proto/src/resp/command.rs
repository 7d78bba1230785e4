//! What the router knows of a command: how many arguments it takes, where its keys are, whether it changes
//! data, and which way it goes.

use core::time::Duration;

use super::{
    Args,
    find::{Find, Malformed},
    table::{COMMANDS, LONG},
};
use crate::racs::Access;

/// A command that the router knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its name in lower case, as error messages write it.
    pub name: &'static str,
    /// How many arguments it takes, the name included; the fewest of them if negative. As Redis counts.
    pub arity: i8,
    /// Where its keys are, and so which way it goes.
    pub keys: Keys,
}

/// Where a command's keys are, and which way it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// One key, at argument `at`: the command goes on untouched.
    One {
        /// Position of the key; the command's name is argument 0.
        at: usize,
        /// Whether it changes data.
        access: Access,
    },
    /// Many keys, from argument 1 on; split by server unless one server has them all.
    Many(Family),
    /// Keys that must all be in one partition.
    Together(Find, Access),
    /// The same, and the server may answer much later: the command gets a connection of its own.
    Blocking(Find, Access, Patience),
    /// The whole service: every RACS gets it, and the replies become one.
    All(Spread),
    /// Nothing in particular: any server can answer.
    Any(Access),
    /// `SCAN`: one RACS after the other.
    Scan,
    /// The word after the name decides.
    Sub(&'static [Command]),
    /// A transaction begins, ends, or watches keys.
    Transaction(Step),
    /// Subscribes or unsubscribes.
    Subscribe(Channels, bool),
    /// No key: the router answers itself.
    None(Local),
    /// Not through a router, for this reason.
    Refused(&'static str),
}

/// A command over many keys: what it does, and how its replies combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `MGET`: an array with one element per key.
    Mget,
    /// `MSET`: keys and values alternate; one `OK`, or the first error.
    Mset,
    /// `DEL`, `UNLINK`: how many keys there were, summed; changes data.
    CountUpdate,
    /// `EXISTS`, `TOUCH`: how many keys there are, summed.
    CountRead,
}

impl Family {
    /// Whether the command changes data.
    pub const fn access(self) -> Access {
        match self {
            Self::Mget | Self::CountRead => Access::Read,
            Self::Mset | Self::CountUpdate => Access::Update,
        }
    }

    /// How many arguments belong to one key, the key included.
    pub const fn step(self) -> usize {
        if matches!(self, Self::Mset) { 2 } else { 1 }
    }

    /// How many keys a command with these arguments has, or `None` if they do not come out even.
    pub fn keys(self, args: &Args) -> Option<usize> {
        let (rest, step) = (args.len() - 1, self.step());
        (rest > 0 && rest.is_multiple_of(step)).then_some(rest / step)
    }
}

/// A command to every RACS: how its replies combine, and thereby what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// `DBSIZE`: the sum of numbers.
    Sum,
    /// `PUBSUB NUMPAT`: the largest number. Patterns are subscribed everywhere.
    Most,
    /// `KEYS`: all elements of all arrays.
    Concat,
    /// `PUBSUB CHANNELS`: the same, each once, of those that channels live on.
    Channels,
    /// `PUBSUB NUMSUB`: names and numbers alternate; the numbers are summed.
    SumByName,
    /// `RANDOMKEY`: one that is not nil, if any.
    One,
    /// `FLUSHALL`, `SCRIPT LOAD`: the first reply, or the first error; changes data.
    Same,
    /// `SCRIPT EXISTS`: 1 where every server says so. Asks those that scripts are loaded on.
    Every,
}

impl Spread {
    /// Whether the command changes data, or asks about what only leaders are told.
    pub const fn access(self) -> Access {
        match self {
            Self::Sum | Self::Concat | Self::One => Access::Read,
            Self::Most | Self::Channels | Self::SumByName | Self::Same | Self::Every => Access::Update,
        }
    }
}

/// Where a blocking command says how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// In seconds, at argument 1.
    First,
    /// In seconds, as the last argument.
    Last,
    /// In milliseconds after `BLOCK`; without, the command does not block.
    Option,
}

impl Patience {
    /// How long the command may take; `None` if it does not wait. Zero is for ever, and so is what no server takes
    /// for a time.
    pub fn of(self, command: &[u8], args: &Args) -> Option<Duration> {
        let seconds = |at: usize| {
            let text = core::str::from_utf8(args.get(command, at)).ok()?;
            Duration::try_from_secs_f64(text.parse().ok()?).ok()
        };
        match self {
            Self::First => Some(seconds(1).unwrap_or_default()),
            Self::Last => Some(seconds(args.len() - 1).unwrap_or_default()),
            Self::Option => {
                // To whom `GROUP` means nothing, the word is refused before this is asked.
                let (_, block) = super::find::streams(command, args, true).ok()?;
                let text = core::str::from_utf8(args.get(command, block?)).ok()?;
                Some(text.parse().map(Duration::from_millis).unwrap_or_default())
            }
        }
    }
}

/// A step of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named as the commands are")]
pub enum Step {
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
}

/// The three kinds of channels that Redis keeps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// `SUBSCRIBE`: by name.
    Plain,
    /// `PSUBSCRIBE`: by pattern.
    Pattern,
    /// `SSUBSCRIBE`: by name, apart from the others.
    Shard,
}

/// A command that the router answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named as the commands are")]
pub enum Local {
    Acl,
    Auth,
    Client,
    Config,
    Echo,
    Hello,
    Info,
    Ping,
    Quit,
    Reset,
    Select,
}

impl Command {
    /// Whether it takes so many arguments, the name included.
    pub const fn fits(&self, args: usize) -> bool {
        let arity = self.arity as isize;
        if arity >= 0 { args as isize == arity } else { args as isize >= -arity }
    }

    /// Fewest arguments, the name included.
    pub const fn min_args(&self) -> usize {
        self.arity.unsigned_abs() as usize
    }

    /// Calls `visit` with the position of each key among the arguments, of which there are as many as the
    /// command takes. Nothing for commands without keys.
    ///
    /// # Errors
    /// The server's own words about arguments from which the keys do not follow.
    pub fn each_key(
        &self,
        command: &[u8],
        args: &Args,
        visit: &mut dyn FnMut(usize),
    ) -> Result<(), Malformed> {
        match self.keys {
            Keys::One { at, .. } => visit(at),
            Keys::Many(family) => (1..args.len()).step_by(family.step()).for_each(visit),
            Keys::Together(find, _) | Keys::Blocking(find, ..) => {
                find.each(command, args, &mut |found| {
                    if let super::find::Found::Key(at) = found {
                        visit(at);
                    }
                })?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The longest command name that is looked for, in bytes.
pub const MAX_NAME: usize = 24;
/// Longer names are few, and compared one by one.
const MAX_PACKED: usize = 16;

/// The command of this name, in any case; `None` if there is none.
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    let Some(packed) = pack(name) else {
        return LONG.iter().find(|command| command.name.as_bytes().eq_ignore_ascii_case(name));
    };
    let mut at = home(packed);
    loop {
        let entry = INDEX[at];
        if entry == EMPTY {
            return None;
        }
        let command = &COMMANDS[entry as usize];
        if PACKED[entry as usize] == packed {
            return Some(command);
        }
        at = (at + 1) % INDEX.len();
    }
}

/// Every command there is.
pub fn commands() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().chain(LONG)
}

/// A name in lower case as one number, so that comparing names is comparing numbers.
const fn pack(name: &[u8]) -> Option<u128> {
    // A leading zero byte would vanish in the number.
    if name.is_empty() || name.len() > MAX_PACKED || name[0] == 0 {
        return None;
    }
    let mut packed = 0;
    let mut at = 0;
    while at < name.len() {
        packed = packed << 8 | name[at].to_ascii_lowercase() as u128;
        at += 1;
    }
    Some(packed)
}

const PLACES: usize = 1024;
const EMPTY: u16 = u16::MAX;
const PACKED: [u128; COMMANDS.len()] = pack_all();
const INDEX: [u16; PLACES] = index();

/// Where the search for a name starts: the top bits of a multiplicative hash.
const fn home(packed: u128) -> usize {
    let folded = (packed as u64) ^ ((packed >> 64) as u64).rotate_left(23);
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize
}

const fn pack_all() -> [u128; COMMANDS.len()] {
    let mut all = [0; COMMANDS.len()];
    let mut at = 0;
    while at < all.len() {
        match pack(COMMANDS[at].name.as_bytes()) {
            Some(packed) => all[at] = packed,
            None => panic!("a command's name is empty or too long: put it among the long ones"),
        }
        at += 1;
    }
    all
}

const fn index() -> [u16; PLACES] {
    let mut table = [EMPTY; PLACES];
    let mut command = 0;
    while command < COMMANDS.len() {
        let mut at = home(PACKED[command]);
        while table[at] != EMPTY {
            at = (at + 1) % table.len();
        }
        table[at] = command as u16;
        command += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_in_any_case_and_only_under_its_name() {
        for command in commands() {
            assert_eq!(lookup(command.name.as_bytes()), Some(command));
            assert_eq!(lookup(command.name.to_ascii_uppercase().as_bytes()), Some(command));
            assert_ne!(lookup(&command.name.as_bytes()[1..]), Some(command));
            assert!(command.name.len() <= MAX_NAME && command.arity != 0);
        }
        for unknown in ["", "g", "gett", "json.get", "a-very-long-command-name-indeed"] {
            assert_eq!(lookup(unknown.as_bytes()), None, "{unknown}");
        }
        assert_eq!(lookup(b"\0get"), None, "leading zero bytes are not lost in packing");
    }

    #[test]
    fn searches_are_short() {
        // A crowded index would make every command slow without failing any test.
        let distance = |at: usize| (at + INDEX.len() - home(PACKED[INDEX[at] as usize])) % INDEX.len();
        let occupied = (0..INDEX.len()).filter(|&at| INDEX[at] != EMPTY);
        assert!(occupied.map(distance).max() <= Some(4));
    }

    #[test]
    fn no_command_is_listed_twice() {
        for (at, command) in COMMANDS.iter().enumerate() {
            assert!(COMMANDS[..at].iter().all(|other| other.name != command.name), "{}", command.name);
        }
    }
}
