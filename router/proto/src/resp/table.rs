//! Every command of Redis 7.0 and 7.2, and those on hash fields since.

use super::{
    command::{Channels, Command, Family, Keys, Local, Patience, Spread, Step},
    find::Find,
};
use crate::racs::Access::{self, Read, Update};

const fn new(name: &'static str, arity: i8, keys: Keys) -> Command {
    Command { name, arity, keys }
}

const fn read(name: &'static str, arity: i8) -> Command {
    new(name, arity, Keys::One { at: 1, access: Read })
}

const fn update(name: &'static str, arity: i8) -> Command {
    new(name, arity, Keys::One { at: 1, access: Update })
}

/// A key after the word that decides what to do.
const fn sub(name: &'static str, arity: i8, access: Access) -> Command {
    new(name, arity, Keys::One { at: 2, access })
}

const fn many(name: &'static str, arity: i8, family: Family) -> Command {
    new(name, arity, Keys::Many(family))
}

const fn together(name: &'static str, arity: i8, find: Find, access: Access) -> Command {
    new(name, arity, Keys::Together(find, access))
}

const fn blocking(name: &'static str, arity: i8, find: Find, access: Access, patience: Patience) -> Command {
    new(name, arity, Keys::Blocking(find, access, patience))
}

const fn counted(at: usize) -> Find {
    Find::Count { at, to: false, script: false }
}

/// Keys with a destination before them.
const COUNTED_TO: Find = Find::Count { at: 2, to: true, script: false };
const SCRIPT: Find = Find::Count { at: 2, to: false, script: true };
/// All arguments but the last.
const ALL_BUT_LAST: Find = Find::Range { first: 1, last: -2, step: 1 };
const ONE_AND_TWO: Find = Find::Range { first: 1, last: 2, step: 1 };

const fn all(name: &'static str, arity: i8, spread: Spread) -> Command {
    new(name, arity, Keys::All(spread))
}

const fn any(name: &'static str, arity: i8) -> Command {
    new(name, arity, Keys::Any(Read))
}

const fn step(name: &'static str, arity: i8, step: Step) -> Command {
    new(name, arity, Keys::Transaction(step))
}

const fn subscribe(name: &'static str, arity: i8, channels: Channels, on: bool) -> Command {
    new(name, arity, Keys::Subscribe(channels, on))
}

const fn local(name: &'static str, arity: i8, local: Local) -> Command {
    new(name, arity, Keys::None(local))
}

const fn refused(name: &'static str, why: &'static str) -> Command {
    new(name, -1, Keys::Refused(why))
}

const SERVERS_OWN: &str = "it concerns one server: ask that server";
const MANAGED: &str = "who leads and who follows is decided elsewhere: ask that server";
const ONE_DATABASE: &str = "a partitioned service has database 0 alone";
/// Redis' own words.
pub(super) const NO_CLUSTER: &str = "This instance has cluster support disabled";

/// In what stands for one connection of many clients a command gives exactly one reply, at once; the others have
/// ways of their own (see [`Keys`]).
///
/// Positions in a collection that is walked in pieces are one server's own, and so are channels: these commands
/// change nothing, but go where updates go.
pub(super) const COMMANDS: &[Command] = &[
    // One key.
    update("append", 3),
    read("bitcount", -2),
    update("bitfield", -2),
    read("bitfield_ro", -2),
    read("bitpos", -3),
    update("decr", 2),
    update("decrby", 3),
    read("dump", 2),
    update("expire", -3),
    update("expireat", -3),
    read("expiretime", 2),
    update("geoadd", -5),
    read("geodist", -4),
    read("geohash", -2),
    read("geopos", -2),
    read("georadius_ro", -6),
    read("geosearch", -7),
    read("get", 2),
    read("getbit", 3),
    update("getdel", 2),
    update("getex", -2),
    read("getrange", 4),
    update("getset", 3),
    update("hdel", -3),
    read("hexists", 3),
    update("hexpire", -6),
    update("hexpireat", -6),
    read("hexpiretime", -5),
    read("hget", 3),
    read("hgetall", 2),
    update("hgetdel", -5),
    update("hgetex", -5),
    update("hincrby", 4),
    update("hincrbyfloat", 4),
    read("hkeys", 2),
    read("hlen", 2),
    read("hmget", -3),
    update("hmset", -4),
    update("hpersist", -5),
    update("hpexpire", -6),
    update("hpexpireat", -6),
    read("hpexpiretime", -5),
    read("hpttl", -5),
    read("hrandfield", -2),
    update("hset", -4),
    update("hsetex", -6),
    update("hsetnx", 4),
    read("hstrlen", 3),
    read("httl", -5),
    read("hvals", 2),
    update("incr", 2),
    update("incrby", 3),
    update("incrbyfloat", 3),
    read("lindex", 3),
    update("linsert", 5),
    read("llen", 2),
    update("lpop", -2),
    read("lpos", -3),
    update("lpush", -3),
    update("lpushx", -3),
    read("lrange", 4),
    update("lrem", 4),
    update("lset", 4),
    update("ltrim", 4),
    update("persist", 2),
    update("pexpire", -3),
    update("pexpireat", -3),
    read("pexpiretime", 2),
    update("pfadd", -2),
    update("psetex", 4),
    read("pttl", 2),
    update("restore", -4),
    update("rpop", -2),
    update("rpush", -3),
    update("rpushx", -3),
    update("sadd", -3),
    read("scard", 2),
    update("set", -3),
    update("setbit", 4),
    update("setex", 4),
    update("setnx", 3),
    update("setrange", 4),
    read("sismember", 3),
    read("smembers", 2),
    read("smismember", -3),
    update("spop", -2),
    read("srandmember", -2),
    update("srem", -3),
    read("strlen", 2),
    read("substr", 4),
    read("ttl", 2),
    read("type", 2),
    update("xack", -4),
    update("xadd", -5),
    update("xautoclaim", -6),
    update("xclaim", -6),
    update("xdel", -3),
    read("xlen", 2),
    read("xpending", -3),
    read("xrange", -4),
    read("xrevrange", -4),
    update("xsetid", -3),
    update("xtrim", -4),
    update("zadd", -4),
    read("zcard", 2),
    read("zcount", 4),
    update("zincrby", 4),
    read("zlexcount", 4),
    read("zmscore", -3),
    update("zpopmax", -2),
    update("zpopmin", -2),
    read("zrandmember", -2),
    read("zrange", -4),
    read("zrangebylex", -4),
    read("zrangebyscore", -4),
    read("zrank", -3),
    update("zrem", -3),
    update("zremrangebylex", 4),
    update("zremrangebyrank", 4),
    update("zremrangebyscore", 4),
    read("zrevrange", -4),
    read("zrevrangebylex", -4),
    read("zrevrangebyscore", -4),
    read("zrevrank", -3),
    read("zscore", 3),
    update("hscan", -3),
    update("publish", 3),
    update("spublish", 3),
    update("sscan", -3),
    update("zscan", -3),
    // Keys that are split by server.
    many("del", -2, Family::CountUpdate),
    many("exists", -2, Family::CountRead),
    many("mget", -2, Family::Mget),
    many("mset", -3, Family::Mset),
    many("touch", -2, Family::CountRead),
    many("unlink", -2, Family::CountUpdate),
    // Keys that must be in one partition.
    together("bitop", -4, Find::Range { first: 2, last: -1, step: 1 }, Update),
    together("copy", -3, Find::Copy, Update),
    together("geosearchstore", -8, Find::Range { first: 1, last: 2, step: 1 }, Update),
    together("lcs", -3, Find::Range { first: 1, last: 2, step: 1 }, Read),
    together("lmove", 5, Find::Range { first: 1, last: 2, step: 1 }, Update),
    together("msetnx", -3, Find::Range { first: 1, last: -1, step: 2 }, Update),
    together("pfcount", -2, Find::Range { first: 1, last: -1, step: 1 }, Read),
    together("pfmerge", -2, Find::Range { first: 1, last: -1, step: 1 }, Update),
    together("rename", 3, Find::Range { first: 1, last: 2, step: 1 }, Update),
    together("renamenx", 3, Find::Range { first: 1, last: 2, step: 1 }, Update),
    together("rpoplpush", 3, Find::Range { first: 1, last: 2, step: 1 }, Update),
    together("sdiff", -2, Find::Range { first: 1, last: -1, step: 1 }, Read),
    together("sdiffstore", -3, Find::Range { first: 1, last: -1, step: 1 }, Update),
    together("sinter", -2, Find::Range { first: 1, last: -1, step: 1 }, Read),
    together("sinterstore", -3, Find::Range { first: 1, last: -1, step: 1 }, Update),
    together("smove", 4, Find::Range { first: 1, last: 2, step: 1 }, Update),
    together("sunion", -2, Find::Range { first: 1, last: -1, step: 1 }, Read),
    together("sunionstore", -3, Find::Range { first: 1, last: -1, step: 1 }, Update),
    together("zrangestore", -5, Find::Range { first: 1, last: 2, step: 1 }, Update),
    together("eval", -3, SCRIPT, Update),
    together("eval_ro", -3, SCRIPT, Read),
    together("evalsha", -3, SCRIPT, Update),
    together("evalsha_ro", -3, SCRIPT, Read),
    together("fcall", -3, SCRIPT, Update),
    together("fcall_ro", -3, SCRIPT, Read),
    together("georadius", -6, Find::Geo { options: 6 }, Update),
    together("lmpop", -4, counted(1), Update),
    together("sintercard", -3, counted(1), Read),
    together("sort", -2, Find::Sort { store: true }, Update),
    together("sort_ro", -2, Find::Sort { store: false }, Read),
    together("zdiff", -3, counted(1), Read),
    together("zdiffstore", -4, COUNTED_TO, Update),
    together("zinter", -3, counted(1), Read),
    together("zintercard", -3, counted(1), Read),
    together("zinterstore", -4, COUNTED_TO, Update),
    together("zmpop", -4, counted(1), Update),
    together("zunion", -3, counted(1), Read),
    together("zunionstore", -4, COUNTED_TO, Update),
    // Those that may wait.
    blocking("blmove", 6, ONE_AND_TWO, Update, Patience::Last),
    blocking("blmpop", -5, counted(2), Update, Patience::First),
    blocking("blpop", -3, ALL_BUT_LAST, Update, Patience::Last),
    blocking("brpop", -3, ALL_BUT_LAST, Update, Patience::Last),
    blocking("brpoplpush", 4, ONE_AND_TWO, Update, Patience::Last),
    blocking("bzmpop", -5, counted(2), Update, Patience::First),
    blocking("bzpopmax", -3, ALL_BUT_LAST, Update, Patience::Last),
    blocking("bzpopmin", -3, ALL_BUT_LAST, Update, Patience::Last),
    blocking("xread", -4, Find::Streams { group: false }, Read, Patience::Option),
    blocking("xreadgroup", -7, Find::Streams { group: true }, Update, Patience::Option),
    // A word after the name decides.
    new("function", -2, Keys::Sub(FUNCTION)),
    new("memory", -2, Keys::Sub(MEMORY)),
    new("object", -2, Keys::Sub(OBJECT)),
    new("pubsub", -2, Keys::Sub(PUBSUB)),
    new("script", -2, Keys::Sub(SCRIPTS)),
    new("xgroup", -2, Keys::Sub(XGROUP)),
    new("xinfo", -2, Keys::Sub(XINFO)),
    // The whole service, or any part of it.
    any("command", -1),
    all("dbsize", 1, Spread::Sum),
    all("flushall", -1, Spread::Same),
    all("flushdb", -1, Spread::Same),
    all("keys", 2, Spread::Concat),
    any("lolwut", -1),
    all("randomkey", 1, Spread::One),
    new("scan", -2, Keys::Scan),
    any("time", 1),
    // Transactions and channels.
    step("discard", 1, Step::Discard),
    step("exec", 1, Step::Exec),
    step("multi", 1, Step::Multi),
    step("unwatch", 1, Step::Unwatch),
    step("watch", -2, Step::Watch),
    subscribe("psubscribe", -2, Channels::Pattern, true),
    subscribe("punsubscribe", -1, Channels::Pattern, false),
    subscribe("ssubscribe", -2, Channels::Shard, true),
    subscribe("subscribe", -2, Channels::Plain, true),
    subscribe("sunsubscribe", -1, Channels::Shard, false),
    subscribe("unsubscribe", -1, Channels::Plain, false),
    // The router's own.
    local("acl", -2, Local::Acl),
    local("auth", -2, Local::Auth),
    local("client", -2, Local::Client),
    local("config", -2, Local::Config),
    local("echo", 2, Local::Echo),
    local("hello", -1, Local::Hello),
    local("info", -1, Local::Info),
    local("ping", -1, Local::Ping),
    local("quit", -1, Local::Quit),
    local("reset", 1, Local::Reset),
    local("select", 2, Local::Select),
    // Not through a router.
    refused("asking", NO_CLUSTER),
    refused("bgrewriteaof", SERVERS_OWN),
    refused("bgsave", SERVERS_OWN),
    refused("cluster", NO_CLUSTER),
    refused("debug", SERVERS_OWN),
    refused("failover", MANAGED),
    refused("lastsave", SERVERS_OWN),
    refused("latency", SERVERS_OWN),
    refused("migrate", "keys live where the partition map says"),
    refused("module", SERVERS_OWN),
    refused("monitor", "it would show one server's commands, those of all clients: ask that server"),
    refused("move", ONE_DATABASE),
    refused("pfdebug", SERVERS_OWN),
    refused("pfselftest", SERVERS_OWN),
    refused("psync", MANAGED),
    refused("readonly", NO_CLUSTER),
    refused("readwrite", NO_CLUSTER),
    refused("replconf", MANAGED),
    refused("replicaof", MANAGED),
    refused("restore-asking", "keys live where the partition map says"),
    refused("role", MANAGED),
    refused("save", SERVERS_OWN),
    refused("shutdown", SERVERS_OWN),
    refused("slaveof", MANAGED),
    refused("slowlog", SERVERS_OWN),
    refused("swapdb", ONE_DATABASE),
    refused("sync", MANAGED),
    refused("wait", "servers cannot tell the updates of clients that share a connection apart"),
    refused("waitaof", "servers cannot tell the updates of clients that share a connection apart"),
];

/// Those whose names are long.
pub(super) const LONG: &[Command] =
    &[together("georadiusbymember", -5, Find::Geo { options: 5 }, Update), read("georadiusbymember_ro", -5)];

const FUNCTION: &[Command] = &[
    all("delete", 3, Spread::Same),
    any("dump", 2),
    all("flush", -2, Spread::Same),
    any("help", 2),
    refused("kill", SERVERS_OWN),
    any("list", -2),
    all("load", -3, Spread::Same),
    all("restore", -3, Spread::Same),
    refused("stats", SERVERS_OWN),
];

const MEMORY: &[Command] = &[
    refused("doctor", SERVERS_OWN),
    any("help", 2),
    refused("malloc-stats", SERVERS_OWN),
    refused("purge", SERVERS_OWN),
    refused("stats", SERVERS_OWN),
    sub("usage", -3, Read),
];

const OBJECT: &[Command] = &[
    sub("encoding", 3, Read),
    sub("freq", 3, Read),
    any("help", 2),
    sub("idletime", 3, Read),
    sub("refcount", 3, Read),
];

const PUBSUB: &[Command] = &[
    all("channels", -2, Spread::Channels),
    any("help", 2),
    all("numpat", 2, Spread::Most),
    all("numsub", -2, Spread::SumByName),
    all("shardchannels", -2, Spread::Channels),
    all("shardnumsub", -2, Spread::SumByName),
];

const SCRIPTS: &[Command] = &[
    refused("debug", SERVERS_OWN),
    all("exists", -3, Spread::Every),
    all("flush", -2, Spread::Same),
    any("help", 2),
    refused("kill", SERVERS_OWN),
    all("load", 3, Spread::Same),
];

const XGROUP: &[Command] = &[
    sub("create", -5, Update),
    sub("createconsumer", 5, Update),
    sub("delconsumer", 5, Update),
    sub("destroy", 4, Update),
    any("help", 2),
    sub("setid", -5, Update),
];

const XINFO: &[Command] =
    &[sub("consumers", 4, Read), sub("groups", 3, Read), any("help", 2), sub("stream", -3, Read)];
