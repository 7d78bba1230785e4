//! `CONFIGURATION.md` has a row for each key that the parser knows, and for no other.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use router::{Config, Surroundings};

const REFERENCE: &str = include_str!("../CONFIGURATION.md");

/// The keys that may stand where this text has `?`, as the parser lists them when it refuses another one.
fn known(text: &str) -> Vec<String> {
    let text = text.replace('?', "no_such_key = 1");
    let error = Config::parse(&text, "router.toml".as_ref(), Surroundings::default()).unwrap_err();
    let (_, list) = error.message().split_once("`no_such_key`, expected ").expect("it is refused by name");
    let mut keys: Vec<String> = list.split('`').skip(1).step_by(2).map(Into::into).collect();
    keys.sort_unstable();
    keys
}

/// The keys of a section's table: the first column, below the line of dashes.
fn told(section: &str) -> Vec<String> {
    let (_, rest) = REFERENCE.split_once(&format!("\n## `{section}`\n")).expect(section);
    let rows = rest.lines().skip_while(|line| !line.starts_with("| --- ")).skip(1);
    let rows = rows.take_while(|line| line.starts_with("| "));
    let mut keys: Vec<String> =
        rows.map(|row| row.split('`').nth(1).expect("a row begins with a key").into()).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn each_key_has_its_row() {
    for (section, place) in [
        ("[[service]]", "[[service]]\n?"),
        ("access_log = { … }", "[[service]]\naccess_log = { ? }"),
        ("[service.auth]", "[[service]]\n[service.auth]\n?"),
        ("[service.health]", "[[service]]\n[service.health]\n?"),
        ("[service.limits]", "[[service]]\n[service.limits]\n?"),
        ("[service.pmap]", "[[service]]\n[service.pmap]\n?"),
        ("[[service.racs]]", "[[service]]\n[[service.racs]]\n?"),
    ] {
        assert_eq!(told(section), known(place), "{section}");
    }
}

#[test]
fn its_example_can_be_served() {
    let example = REFERENCE.split("```").nth(1).unwrap().strip_prefix("toml").unwrap();
    let config = Config::parse(example, "router.toml".as_ref(), Surroundings::default()).unwrap();
    assert_eq!(config.services().collect::<Vec<_>>(), ["inventory"]);
}
