//! Mistakes about services' connections are reported as all others are.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use router::{Config, ConfigError, Surroundings};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "router.toml".as_ref(), Surroundings::default())
}

#[test]
fn only_http_can_tell_servers_in_fields_where_requests_came_from() {
    let text = "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"redis\"\nforwarded = true\n\
                pmap = { style = \"slots\", partitions = 4 }\nracs = [{ name = \"a\", servers = [\"127.0.0.1:1\"] }]\n";
    let error = parse(text).unwrap_err();
    assert_eq!(error.line(), Some(5));
    assert!(error.message().contains("`forwarded` does not apply to redis"), "{error}");
    parse(&text.replace("true", "false")).unwrap();
    parse(&text.replace("\"redis\"", "\"http\"\nkey = \"header:x\"")).unwrap();
}

#[test]
fn tcp_services_are_placed_by_what_can_be_seen_of_a_connection() {
    let good = r#"[[service]]
name = "t"
listen = "127.0.0.1:8080"
protocol = "tcp"
key = "sni"
no_key = "partition:0"
updates = "any"
accept_proxy = true
pmap = { style = "slots", partitions = 4 }
racs = [{ name = "a", servers = ["127.0.0.1:1"], send_proxy = true }]
"#;
    parse(good).unwrap();
    parse(&good.replace("\"sni\"", "\"bytes:0+4096\"")).unwrap();
    parse(&good.replace("\"sni\"", "\"source\"").replace("no_key = \"partition:0\"\n", "")).unwrap();
    for (from, to, line, says) in [
        ("key = \"sni\"\n", "", 1, "`key` is missing: tcp needs source, sni or bytes:OFFSET+LEN"),
        ("\"sni\"", "[\"sni\", \"source\"]", 5, "tcp has one key"),
        ("\"sni\"", "\"header:x\"", 5, "unknown key \"header:x\" of tcp"),
        ("\"sni\"", "\"bytes:4\"", 5, "write it as bytes:4+8"),
        ("\"sni\"", "\"bytes:4+0\"", 5, "write it as bytes:4+8"),
        ("\"sni\"", "\"bytes:+1+1\"", 5, "write it as bytes:4+8"),
        ("\"sni\"", "\"bytes:4000+97\"", 5, "no place in the first 4096 bytes"),
        ("\"sni\"", "\"bytes:18446744073709551615+1\"", 5, "no place in the first 4096 bytes"),
        ("\"sni\"", "\"source\"", 6, "every client has an address"),
        ("partition:0", "scatter", 6, "use reject, source or partition:NAME"),
        ("updates = \"any\"", "reads = \"leader\"", 7, "`reads` does not apply to tcp"),
        ("updates = \"any\"", "hot_keys = \"shown\"", 7, "`hot_keys` does not apply to tcp"),
        ("updates = \"any\"", "access_log = { file = \"-\", every = 2 }", 7, "do not apply to tcp"),
        ("updates = \"any\"", "expose = true", 1, "`expose` does not apply to tcp"),
    ] {
        assert_eq!(good.matches(from).count(), 1, "{from}");
        let error = parse(&good.replace(from, to)).expect_err(to);
        assert_eq!(error.line(), Some(line), "{to}: {error}");
        assert!(error.message().contains(says), "{to}: {error}");
    }
}
