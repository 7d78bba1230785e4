//! Configurations that cannot work are refused with the line, what is wrong, and what would be right.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use router::{Config, ConfigError, Surroundings};

const GOOD: &str = r#"[[service]]
name     = "inventory"
listen   = "127.0.0.1:8080"
protocol = "http"
key      = ["header:x-key", "path:/items/{key}/*"]
no_key   = "reject"
reads    = "least-loaded"
updates  = "leader"
[service.pmap]
style = "ranges"
ranges = [{ from = "", racs = "a" }, { from = "B", racs = "b", name = "B-C" }]
[[service.racs]]
name  = "a"
group = "inventory-a"
[[service.racs]]
name = "b"
servers = ["127.0.0.1:9001", "127.0.0.1:9002"]

[[service]]
name = "cache"
listen = "127.0.0.1:6380"
protocol = "redis"
pmap = { style = "slots", partitions = 64 }
racs = [{ name = "a", servers = ["[::1]:6379"] }]
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(
        text,
        "router.toml".as_ref(),
        Surroundings { follows_groups: true, others_keys: &["cluster"], numeric_only: false },
    )
}

#[test]
fn a_good_configuration_is_taken() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.services().collect::<Vec<_>>(), ["inventory", "cache"]);
    assert_eq!(config.groups(), ["inventory-a"]);
    parse(&format!("cluster = \"mine\"\n{GOOD}")).expect("keys of others are theirs");
    parse(&GOOD.replace("\"reject\"", "\"partition:B-C\"")).expect("a range is known by its name");
    parse(&GOOD.replace("\"redis\"", "\"memcached\"")).expect("memcached needs no more than redis does");
    for key in ["query:id", "cookie:sid", "host", "jwt:sub", "json:/user/id", "only-form:id", "multipart:id"]
    {
        parse(&GOOD.replace("header:x-key", key)).expect(key);
    }
    let hourly = "health = { check = \"tcp\", every = \"1h\" }\nreads ";
    parse(&GOOD.replace("reads ", hourly)).expect("a check may come once an hour");
    parse(&GOOD.replace("least-loaded", "sticky")).expect("sessions may stick");
    parse(&GOOD.replace("\"redis\"", "\"redis\"\nhedge = \"off\""))
        .expect("reads of redis may be hedged, or not");
    let limits = "max_in_flight = 1000\nmax_in_flight_per_server = 1\nmax_waiting = 0\n";
    parse(&GOOD.replace("reads ", &format!("{limits}reads "))).expect("or how many may be under way");
    for deadline in ["X-Request-Timeout", "grpc-timeout"] {
        parse(&GOOD.replace("reads ", &format!("deadline = \"header:{deadline}\"\nreads "))).expect(deadline);
    }
    for no_key in ["source", "scatter"] {
        parse(&GOOD.replace("\"reject\"", &format!("\"{no_key}\""))).expect(no_key);
    }
    parse(&GOOD.replace("\"reject\"", "\"partition:0\"")).expect("or by its number, if it has none");
    let more = "{ addr = \"127.0.0.1:9002\", weight = 1000, zone = \"eu1\" }";
    let text = GOOD.replace("\"127.0.0.1:9002\"", more);
    parse(&text.replace("reads ", "zone = \"eu1\"\nslow_start = \"10s\"\nreads "))
        .expect("servers may say more");
}

#[test]
fn mistakes_are_reported_with_their_line_and_the_remedy() {
    // What is replaced by what, the line, and what the message says.
    let rows: &[(&str, &str, usize, &[&str])] = &[
        ("name     =", "nome     =", 2, &["unknown field `nome`", "expected one of", "`name`"]),
        ("name     = \"inventory\"\n", "", 1, &["missing field `name`"]),
        ("\"inventory\"", "\"in ventory\"", 2, &["\"in ventory\" is no name", "1 to 128 characters"]),
        ("\"cache\"", "\"inventory\"", 20, &["two services are named \"inventory\"", "must differ"]),
        ("127.0.0.1:8080", "8080", 3, &["\"8080\" is no address", "host:port"]),
        (
            "127.0.0.1:6380",
            "127.0.0.1:8080",
            21,
            &["\"inventory\" listens on 127.0.0.1:8080 already", "a port of its own"],
        ),
        ("127.0.0.1:6380", "0.0.0.0:8080", 21, &["\"inventory\" listens on 127.0.0.1:8080 already"]),
        (
            "\"http\"",
            "\"https\"",
            4,
            &["unknown protocol \"https\"", "use http, redis, memcached, frames or tcp"],
        ),
        ("\"http\"", "\"memcached\"", 5, &["`key` does not apply to memcached"]),
        ("\"http\"", "\"frames\"", 5, &["\"header:x-key\" is no path to a key", "msgpack:/params/0/user"]),
        ("\"http\"", "\"tcp\"", 5, &["tcp has one key", "source, sni or bytes:OFFSET+LEN"]),
        (
            "key      = [\"header:x-key\", \"path:/items/{key}/*\"]\n",
            "",
            1,
            &["`key` is missing", "key = \"header:x-key\""],
        ),
        ("[\"header:x-key\", \"path:/items/{key}/*\"]", "[]", 5, &["no extractor"]),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nhedge = \"80%\"",
            23,
            &["hedge = \"80%\"", "1% to 50%, or off"],
        ),
        (
            "protocol = \"http\"\nkey      = [\"header:x-key\", \"path:/items/{key}/*\"]\nno_key   = \"reject\"\n\
             reads    = \"least-loaded\"",
            "protocol = \"tcp\"\nhedge = \"5%\"\nkey = \"sni\"",
            5,
            &["`hedge` does not apply to tcp"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nmax_in_flight = 0",
            23,
            &["0 requests", "1 to 10000000"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nmax_in_flight_per_server = -1",
            23,
            &["-1 requests", "1 to 10000000"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nmax_waiting = 10000001",
            23,
            &["10000001 requests", "0 to 10000000"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\ndeadline = \"header:x-t\"",
            23,
            &["`deadline` does not apply to redis"],
        ),
        (
            "protocol = \"http\"",
            "protocol = \"http\"\ndeadline = \"x-t\"",
            5,
            &["name a header", "header:X-Request-Timeout"],
        ),
        (
            "protocol = \"http\"",
            "protocol = \"http\"\ndeadline = \"header:Connection\"",
            5,
            &["name a header"],
        ),
        (
            "protocol = \"http\"",
            "protocol = \"http\"\ndeadline = \"header:Traceparent\"",
            5,
            &["for this alone"],
        ),
        ("protocol = \"http\"", "protocol = \"http\"\ndeadline = \"header:Host\"", 5, &["for this alone"]),
        ("protocol = \"http\"", "protocol = \"http\"\ndeadline = \"header:X_Key\"", 5, &["for this alone"]),
        ("\"header:x-key\"", "\"header:x-key\", \"header:X-Key\"", 5, &["\"header:X-Key\" is listed twice"]),
        ("127.0.0.1:8080", ":8080", 3, &["\":8080\" has no host", "0.0.0.0:8080 to listen everywhere"]),
        ("\"header:x-key\"", "\"query:a b\"", 5, &["\"query:a b\" has no name", "visible ASCII"]),
        ("\"header:x-key\"", "\"cookie:\"", 5, &["\"cookie:\" has no name", "letters"]),
        ("\"header:x-key\"", "\"json:id\"", 5, &["JSON pointer \"id\" must start with /", "/user/id"]),
        ("\"header:x-key\"", "\"json:/a~2\"", 5, &["neither ~0", "nor ~1"]),
        ("\"header:x-key\"", "\"jwt:\"", 5, &["jwt:sub"]),
        ("/items/{key}/*", "post /items/{key}", 5, &["in capitals", "POST /items/{key}"]),
        ("\"header:x-key\"", "\"x-key\"", 5, &["unknown extractor \"x-key\"", "header:NAME"]),
        ("/items/{key}/*", "/items/*", 5, &["has no {key}"]),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nkey = \"header:k\"",
            23,
            &["`key` does not apply to redis"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nno_key = \"reject\"",
            23,
            &["`no_key` does not apply to redis"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\naccess_log = { file = \"-\", every = -1 }",
            23,
            &["every = -1", "1000 for one in a thousand"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\naccess_log = { file = \"-\", slow = \"100\" }",
            23,
            &["\"100\" is no time"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\naccess_log = { path = \"-\" }",
            23,
            &["unknown field `path`"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\ntrace = \"1%\"",
            23,
            &["`trace` does not apply to redis"],
        ),
        (
            "protocol = \"http\"",
            "protocol = \"http\"\nhot_keys = \"yes\"",
            5,
            &["hot_keys = \"yes\"", "use hidden"],
        ),
        (
            "protocol = \"http\"",
            "protocol = \"http\"\ntrace = \"101%\"",
            5,
            &["trace = \"101%\"", "0% to 100%, or off"],
        ),
        ("protocol = \"http\"", "protocol = \"http\"\naccess_log = \"\"", 5, &["names no file"]),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nexpose = true",
            19,
            &["`expose` does not apply to redis"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"memcached\"\nno_key = \"reject\"",
            23,
            &["`no_key` does not apply to memcached"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"memcached\"\nexpose = true",
            19,
            &["`expose` does not apply to memcached"],
        ),
        ("\"reject\"", "\"drop\"", 6, &["unknown no_key \"drop\"", "source, scatter or partition:NAME"]),
        (
            "updates  = \"leader\"",
            "auth = { client_password_file = \"/etc/hostname\" }",
            8,
            &["`auth` applies to redis alone"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nauth = {}",
            23,
            &["nothing in it", "client_password_file"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nauth = { server_user = \"u\" }",
            23,
            &["`server_user` needs a `server_password_file`"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nauth = { client_password_file = \"/no/such\" }",
            23,
            &["password file /no/such: ", "No such file"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nauth = { server_password_file = \"/dev/null\" }",
            23,
            &["it is no file"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\nauth = { server_password_file = \"/etc/hostname\" }",
            23,
            &["everybody may read or change it", "chmod 600"],
        ),
        ("\"reject\"", "\"partition:7\"", 6, &["no partition \"7\"", "0 to B-C"]),
        ("\"least-loaded\"", "\"any\"", 7, &["unknown choice \"any\" for reads", "or sticky"]),
        ("updates  = \"leader\"", "updates = \"all\"", 8, &["unknown choice \"all\" for updates"]),
        ("\"ranges\"", "\"table\"", 11, &["`ranges` does not apply to style table", "give table"]),
        ("\"ranges\"", "\"ring\"", 10, &["unknown style \"ring\"", "slots, ranges or table"]),
        ("\"ranges\"", "\"slots\"", 11, &["`ranges` does not apply to style slots"]),
        (
            "ranges = [{ from = \"\", racs = \"a\" }, { from = \"B\", racs = \"b\", name = \"B-C\" }]\n",
            "",
            9,
            &["`ranges` is missing"],
        ),
        ("from = \"\"", "from = \"A\"", 11, &["keys below \"A\" belong to no range", "from = \"\""]),
        ("from = \"B\"", "from = \"\"", 11, &["ranges 0 and 1 both start at \"\"", "remove one"]),
        (
            "{ from = \"B\"",
            "{ from = \"C\", racs = \"a\" }, { from = \"B\"",
            11,
            &["range 2 starts at \"B\"", "overlap", "sort"],
        ),
        ("racs = \"b\"", "racs = \"c\"", 11, &["no RACS \"c\"", "a, b"]),
        ("from = \"B\"", "form = \"B\"", 11, &["unknown field `form`"]),
        ("name = \"B-C\"", "name = \"0\"", 11, &["two partitions are named \"0\""]),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\ntls = \"chain.pem\"",
            23,
            &["expected { cert = \"chain.pem\", key = \"key.pem\" }"],
        ),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\ntls = { cert = \"chain.pem\" }",
            23,
            &["expected { cert = \"chain.pem\", key = \"key.pem\" }"],
        ),
        ("protocol = \"redis\"", "protocol = \"redis\"\ntls = []", 23, &["`tls` has no certificate"]),
        (
            "protocol = \"redis\"",
            "protocol = \"redis\"\ntls = { cert = \"\", key = \"k\" }",
            23,
            &["`tls` has an empty file name"],
        ),
        ("[::1]:6379\"] }", "[::1]:6379\"], send_proxy = true }", 24, &["does not apply to redis", "share"]),
        ("partitions = 64", "partitions = 0", 23, &["0 partitions", "give 1 to 1048576"]),
        ("partitions = 64", "partitions = -1", 23, &["-1 partitions"]),
        ("partitions = 64", "partitions = 9999999", 23, &["9999999 partitions"]),
        (", partitions = 64", "", 23, &["`partitions` is missing"]),
        ("partitions = 64", "partitions = 64, ranges = []", 23, &["`ranges` does not apply to style slots"]),
        (
            "partitions = 64",
            "partitions = 64, default = \"a\"",
            23,
            &["`default` does not apply to style slots"],
        ),
        ("partitions = 64", "partitions = \"64\"", 23, &["invalid type"]),
        ("name = \"b\"\n", "name = \"a\"\n", 16, &["two RACS of this service are named \"a\""]),
        (
            "servers = [\"127.0.0.1:9001\", \"127.0.0.1:9002\"]\n",
            "",
            15,
            &["RACS \"b\" is empty", "servers = [\"host:port\"]"],
        ),
        ("[\"127.0.0.1:9001\", \"127.0.0.1:9002\"]", "[]", 17, &["RACS \"b\" is empty"]),
        ("127.0.0.1:9002", "127.0.0.1:9001", 17, &["listed twice in RACS \"b\""]),
        ("127.0.0.1:9002", "127.0.0.1", 17, &["is no address"]),
        ("127.0.0.1:9002", "127.0.0.1:0", 17, &["no port to connect to"]),
        (
            "\"127.0.0.1:9002\"",
            "{ addr = \"127.0.0.1:9002\", weight = 0 }",
            17,
            &["0 is no weight", "give 1 to 1000"],
        ),
        ("\"127.0.0.1:9002\"", "{ addr = \"127.0.0.1:9002\", zone = \"e u\" }", 17, &["\"e u\" is no name"]),
        (
            "\"127.0.0.1:9002\"",
            "{ addr = \"127.0.0.1:9002\", wait = 3 }",
            17,
            &["unknown field `wait`", "`weight`"],
        ),
        ("\"127.0.0.1:9002\"", "{ weight = 3 }", 17, &["missing field `addr`"]),
        ("\"127.0.0.1:9002\"", "9002", 17, &["expected an address", "weight = 3"]),
        ("updates  = \"leader\"", "slow_start = \"10\"", 8, &["\"10\" is no time", "500ms, 2s, 1m or 1h"]),
        ("updates  = \"leader\"", "slow_start = \"61m\"", 8, &["out of bounds", "0ms to 1h"]),
        ("updates  = \"leader\"", "zone = \"\"", 8, &["\"\" is no name"]),
        (
            "updates  = \"leader\"",
            "health = { check = \"ping\" }",
            8,
            &["unknown check \"ping\"", "tcp, http:/path, redis"],
        ),
        (
            "updates  = \"leader\"",
            "health = { check = \"http:health\" }",
            8,
            &["\"health\" is no path to ask for", "http:/path"],
        ),
        ("updates  = \"leader\"", "health = { check = \"http:/a b\" }", 8, &["no path to ask for"]),
        (
            "updates  = \"leader\"",
            "health = { check = \"tcp:1.2.3.4:5\" }",
            8,
            &["tcp takes nothing after it"],
        ),
        ("updates  = \"leader\"", "health = { check = \"command:\" }", 8, &["the command is empty"]),
        (
            "updates  = \"leader\"",
            "health = { check = \"command:a | b\" }",
            8,
            &["'|' in a command", "without a shell", "write a script"],
        ),
        (
            "updates  = \"leader\"",
            "health = { check = \"tcp\", every = \"1ms\" }",
            8,
            &["\"1ms\" is out of bounds", "100ms to 1h"],
        ),
        ("updates  = \"leader\"", "health = { check = \"tcp\", timeout = \"1\" }", 8, &["\"1\" is no time"]),
        ("updates  = \"leader\"", "health = { check = \"tcp\", fall = 0 }", 8, &["0 in a row", "1 to 100"]),
        ("updates  = \"leader\"", "health = { check = \"tcp\", rises = 1 }", 8, &["unknown field `rises`"]),
        ("updates  = \"leader\"", "health = { every = \"1s\" }", 8, &["missing field `check`"]),
        (
            "group = \"inventory-a\"",
            "group = \"inventory-a\"\nservers = [\"127.0.0.1:1\"]",
            14,
            &["both `group` and `servers`"],
        ),
        ("\"inventory-a\"", "\"inventory a\"", 14, &["group name has 1 to 128 characters"]),
        (
            "racs = [{ name = \"a\", servers = [\"[::1]:6379\"] }]",
            "racs = []",
            19,
            &["no RACS", "[[service.racs]]"],
        ),
        (
            "[[service]]\nname     =",
            "workers = 2\n[[service]]\nname     =",
            1,
            &["unknown key `workers`", "[[service]]"],
        ),
        ("\"inventory\"\n", "\"inventory\n", 2, &[]),
    ];
    for (from, to, line, says) in rows {
        assert_eq!(GOOD.matches(from).count(), 1, "the row's text must be there once: {from}");
        let error = parse(&GOOD.replace(from, to)).expect_err(to);
        assert_eq!(error.line(), Some(*line), "{to}: {error}");
        for part in *says {
            assert!(error.message().contains(part), "{to}: {error}");
        }
        assert!(error.to_string().starts_with(&format!("router.toml:{line}: ")), "{error}");
    }
}

#[test]
fn a_table_lists_keys_and_says_who_holds_all_others() {
    let with = |pmap: &str| parse(&GOOD.replace("{ style = \"slots\", partitions = 64 }", pmap));
    with(r#"{ style = "table", table = [{ key = "eu", racs = "a" }, { key = "é", racs = "a", name = "e2" }], default = "a" }"#)
        .expect("well-formed");
    with(r#"{ style = "table", table = [], default = "a" }"#).expect("a table may begin empty");
    let rows: &[(&str, &[&str])] = &[
        (r#"{ style = "table", default = "a" }"#, &["`table` is missing", "key = \"eu\""]),
        (r#"{ style = "table", table = [] }"#, &["`default` is missing", "every key has an owner"]),
        (r#"{ style = "table", table = [], default = "b" }"#, &["no RACS \"b\"", "there are a"]),
        (
            r#"{ style = "table", table = [{ key = "eu", racs = "x" }], default = "a" }"#,
            &["no RACS \"x\"", "there are a"],
        ),
        (
            r#"{ style = "table", table = [{ key = "eu", racs = "a" }, { key = "eu", racs = "a", name = "x" }], default = "a" }"#,
            &["the key \"eu\" is listed twice"],
        ),
        (
            r#"{ style = "table", table = [{ key = "default", racs = "a" }], default = "a" }"#,
            &["two partitions are named \"default\""],
        ),
        (
            r#"{ style = "table", table = [{ key = "e u", racs = "a" }], default = "a" }"#,
            &["key \"e u\" needs a name", "add name ="],
        ),
        (
            r#"{ style = "table", table = [], default = "a", partitions = 4 }"#,
            &["`partitions` does not apply"],
        ),
    ];
    for (pmap, says) in rows {
        let error = with(pmap).expect_err(pmap);
        assert_eq!(error.line(), Some(23), "{pmap}: {error}");
        for part in *says {
            assert!(error.message().contains(part), "{pmap}: {error}");
        }
    }
}

#[test]
fn groups_need_somebody_who_follows_them() {
    let error = Config::parse(GOOD, "f".as_ref(), Surroundings::default()).unwrap_err();
    assert_eq!(error.line(), Some(14));
    assert!(error.message().contains("rendezvous"), "{error}");
}

#[test]
fn an_empty_or_missing_file_is_refused() {
    assert!(parse("").unwrap_err().message().contains("at least one [[service]]"));
    let error = Config::load("/nonexistent/router.toml".as_ref(), Surroundings::default()).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/router.toml: cannot be read: "), "{error}");
}

const FRAMES: &str = r#"[[service]]
name = "counter"
listen = "127.0.0.1:0"
protocol = "frames"
key = ["msgpack:/params/0/user", "msgpack:/params/0"]
no_key = "partition:3"
read_methods = ["get", "list"]
stamp = true
pmap = { style = "slots", partitions = 4 }
racs = [{ name = "a", group = "counters" }]
"#;

#[test]
fn mistakes_about_frames_are_reported_too() {
    parse(FRAMES).unwrap();
    let key = "key = [\"msgpack:/params/0/user\", \"msgpack:/params/0\"]\n";
    let rows: &[(&str, &str, usize, &str)] = &[
        (key, "", 1, "`key` is missing: frames needs one, such as key = \"msgpack:/params/0\""),
        (key, "key = []\n", 5, "no path to the key"),
        ("msgpack:/params/0/user", "msgpack:/user", 5, "\"msgpack:/user\" is no path to a key"),
        ("msgpack:/params/0/user", "msgpack:/params/0/a~b", 5, "neither ~0 (for ~) nor ~1 (for /)"),
        ("partition:3", "partition:4", 6, "there is no partition \"4\""),
        ("\"list\"", "\"get\"", 7, "the method \"get\" is listed twice"),
        ("\"list\"", "\"\"", 7, "no name of a method: give 1 to 255 bytes"),
        ("true", "1", 8, "expected a boolean"),
        ("stamp = true", "expose = true", 1, "`expose` does not apply to frames"),
        ("\"frames\"", "\"redis\"", 7, "`read_methods` does not apply to redis"),
    ];
    for (from, to, line, says) in rows {
        assert_eq!(FRAMES.matches(from).count(), 1, "the row's text must be there once: {from}");
        let error = parse(&FRAMES.replace(from, to)).expect_err(to);
        assert_eq!((error.line(), error.message().contains(says)), (Some(*line), true), "{to}: {error}");
    }
    let stamp = FRAMES.replace("\"frames\"", "\"redis\"").replace("read_methods = [\"get\", \"list\"]\n", "");
    assert!(parse(&stamp).unwrap_err().message().contains("`stamp` does not apply to redis"));
}

#[test]
fn how_many_reads_may_share_a_connection_is_a_small_number_for_http_alone() {
    let with = |most: &str| {
        GOOD.replace("group = \"inventory-a\"", &format!("group = \"inventory-a\"\npipeline = {most}"))
    };
    for good in ["1", "32", "256"] {
        parse(&with(good)).expect(good);
    }
    for bad in ["0", "-1", "257", "99999999999"] {
        let error = parse(&with(bad)).unwrap_err();
        assert_eq!(error.line(), Some(15), "{error}");
        assert!(error.message().starts_with(&format!("pipeline = {bad}: give how many reads")), "{error}");
        assert!(error.message().contains("1 to 256, or leave it out"), "{error}");
    }
    let error = parse(&with("\"32\"")).unwrap_err();
    assert!(error.line() == Some(15) && error.message().contains("invalid type"), "{error}");
    for (protocol, why) in
        [("redis", "its clients share connections"), ("memcached", "its clients share connections")]
    {
        let text = GOOD
            .replace("[::1]:6379\"] }", "[::1]:6379\"], pipeline = 8 }")
            .replace("\"redis\"", &format!("{protocol:?}"));
        let error = parse(&text).unwrap_err();
        assert_eq!(error.line(), Some(24));
        assert!(
            error.message().contains(&format!("`pipeline` does not apply to {protocol}: {why}")),
            "{error}"
        );
    }
    let tcp = "[[service]]\nname = \"t\"\nlisten = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nkey = \"source\"\n\
               pmap = { style = \"slots\", partitions = 4 }\n[[service.racs]]\nname = \"a\"\nservers = [\"127.0.0.1:2\"]\n";
    parse(tcp).unwrap();
    let error = parse(&format!("{tcp}pipeline = 2\n")).unwrap_err();
    assert!(
        error.line() == Some(10) && error.message().contains("nobody can tell its requests apart"),
        "{error}"
    );
}
