//! The commands that are routed, where their keys are, and whether they change data.

use crate::racs::Access;

/// A command that the router knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its name in lower case, as error messages write it.
    pub name: &'static str,
    /// Fewest arguments, the name included, with which it can be routed.
    pub min_args: usize,
    /// Where its keys are.
    pub keys: Keys,
}

/// Where a command's keys are.
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
    /// No key: the router answers itself.
    None(Local),
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
}

/// A command that the router answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named as the commands are")]
pub enum Local {
    Ping,
    Echo,
    Quit,
    Select,
    Command,
    Client,
    Hello,
    Config,
}

/// The longest command name that is known, in bytes.
pub const MAX_NAME: usize = 16;

/// The command of this name, in any case; `None` if it is not routed.
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    let packed = pack(name)?;
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

/// A name in lower case as one number, so that comparing names is comparing numbers.
const fn pack(name: &[u8]) -> Option<u128> {
    // A leading zero byte would vanish in the number.
    if name.is_empty() || name.len() > MAX_NAME || name[0] == 0 {
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

const EMPTY: u8 = u8::MAX;
const PACKED: [u128; COMMANDS.len()] = pack_all();
const INDEX: [u8; 512] = index();

/// Where the search for a name starts: the top bits of a multiplicative hash.
const fn home(packed: u128) -> usize {
    let folded = (packed as u64) ^ ((packed >> 64) as u64).rotate_left(23);
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55) as usize
}

const fn pack_all() -> [u128; COMMANDS.len()] {
    let mut all = [0; COMMANDS.len()];
    let mut at = 0;
    while at < all.len() {
        match pack(COMMANDS[at].name.as_bytes()) {
            Some(packed) => all[at] = packed,
            None => panic!("a command's name is empty or longer than MAX_NAME"),
        }
        at += 1;
    }
    all
}

const fn index() -> [u8; 512] {
    assert!(COMMANDS.len() < EMPTY as usize, "positions must fit a byte");
    let mut table = [EMPTY; 512];
    let mut command = 0;
    while command < COMMANDS.len() {
        let mut at = home(PACKED[command]);
        while table[at] != EMPTY {
            at = (at + 1) % table.len();
        }
        table[at] = command as u8;
        command += 1;
    }
    table
}

const fn read(name: &'static str, min_args: usize) -> Command {
    Command { name, min_args, keys: Keys::One { at: 1, access: Access::Read } }
}

const fn update(name: &'static str, min_args: usize) -> Command {
    Command { name, min_args, keys: Keys::One { at: 1, access: Access::Update } }
}

const fn many(name: &'static str, min_args: usize, family: Family) -> Command {
    Command { name, min_args, keys: Keys::Many(family) }
}

const fn local(name: &'static str, local: Local) -> Command {
    Command { name, min_args: 1, keys: Keys::None(local) }
}

/// Every one of them gives exactly one reply, at once: that is what lets clients share a connection. Commands
/// that block, subscribe, open transactions or concern a whole server are therefore absent.
const COMMANDS: &[Command] = &[
    // Any type.
    read("dump", 2),
    update("expire", 3),
    update("expireat", 3),
    read("expiretime", 2),
    update("persist", 2),
    update("pexpire", 3),
    update("pexpireat", 3),
    read("pexpiretime", 2),
    read("pttl", 2),
    update("restore", 4),
    read("ttl", 2),
    read("type", 2),
    Command { name: "object", min_args: 3, keys: Keys::One { at: 2, access: Access::Read } },
    // Strings.
    update("append", 3),
    read("bitcount", 2),
    update("bitfield", 2),
    read("bitfield_ro", 2),
    read("bitpos", 3),
    update("decr", 2),
    update("decrby", 3),
    read("get", 2),
    read("getbit", 3),
    update("getdel", 2),
    update("getex", 2),
    read("getrange", 4),
    update("getset", 3),
    update("incr", 2),
    update("incrby", 3),
    update("incrbyfloat", 3),
    update("psetex", 4),
    update("set", 3),
    update("setbit", 4),
    update("setex", 4),
    update("setnx", 3),
    update("setrange", 4),
    read("strlen", 2),
    read("substr", 4),
    // Hashes.
    update("hdel", 3),
    read("hexists", 3),
    read("hget", 3),
    read("hgetall", 2),
    update("hincrby", 4),
    update("hincrbyfloat", 4),
    read("hkeys", 2),
    read("hlen", 2),
    read("hmget", 3),
    update("hmset", 4),
    read("hrandfield", 2),
    read("hscan", 3),
    update("hset", 4),
    update("hsetnx", 4),
    read("hstrlen", 3),
    read("hvals", 2),
    // Lists.
    read("lindex", 3),
    update("linsert", 5),
    read("llen", 2),
    update("lpop", 2),
    read("lpos", 3),
    update("lpush", 3),
    update("lpushx", 3),
    read("lrange", 4),
    update("lrem", 4),
    update("lset", 4),
    update("ltrim", 4),
    update("rpop", 2),
    update("rpush", 3),
    update("rpushx", 3),
    // Sets.
    update("sadd", 3),
    read("scard", 2),
    read("sismember", 3),
    read("smembers", 2),
    read("smismember", 3),
    update("spop", 2),
    read("srandmember", 2),
    update("srem", 3),
    read("sscan", 3),
    // Sorted sets.
    update("zadd", 4),
    read("zcard", 2),
    read("zcount", 4),
    update("zincrby", 4),
    read("zlexcount", 4),
    read("zmscore", 3),
    update("zpopmax", 2),
    update("zpopmin", 2),
    read("zrandmember", 2),
    read("zrange", 4),
    read("zrangebylex", 4),
    read("zrangebyscore", 4),
    read("zrank", 3),
    update("zrem", 3),
    update("zremrangebylex", 4),
    update("zremrangebyrank", 4),
    update("zremrangebyscore", 4),
    read("zrevrange", 4),
    read("zrevrangebylex", 4),
    read("zrevrangebyscore", 4),
    read("zrevrank", 3),
    read("zscan", 3),
    read("zscore", 3),
    // Geography, estimates, streams.
    update("geoadd", 5),
    read("geodist", 4),
    read("geohash", 2),
    read("geopos", 2),
    read("geosearch", 2),
    update("pfadd", 2),
    update("xack", 4),
    update("xadd", 5),
    update("xdel", 3),
    read("xlen", 2),
    read("xrange", 4),
    read("xrevrange", 4),
    update("xtrim", 4),
    // Many keys.
    many("del", 2, Family::CountUpdate),
    many("exists", 2, Family::CountRead),
    many("mget", 2, Family::Mget),
    many("mset", 3, Family::Mset),
    many("touch", 2, Family::CountRead),
    many("unlink", 2, Family::CountUpdate),
    // The router's own.
    local("client", Local::Client),
    local("command", Local::Command),
    local("config", Local::Config),
    local("echo", Local::Echo),
    local("hello", Local::Hello),
    local("ping", Local::Ping),
    local("quit", Local::Quit),
    local("select", Local::Select),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_in_any_case_and_only_under_its_name() {
        for command in COMMANDS {
            assert_eq!(lookup(command.name.as_bytes()), Some(command));
            assert_eq!(lookup(command.name.to_ascii_uppercase().as_bytes()), Some(command));
            assert_ne!(lookup(&command.name.as_bytes()[1..]), Some(command));
        }
        for unknown in
            ["", "g", "gett", "blpop", "subscribe", "multi", "eval", "rename", "a-very-long-command-name"]
        {
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
