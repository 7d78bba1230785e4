//! Keys in heads, and the table that knows them: what was written is found again, and nothing else is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use router_proto::{
    Epoch, Pmap, RacsId,
    extract::{BodySearch, Extract, Search},
    http::{Refusal, RequestHead},
    pmap::{Table, TableEntry},
};
use serde_json::{Map, Value};

fn key_of(spec: &str, target: &str, fields: &str) -> Result<Option<Vec<u8>>, Refusal> {
    let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let request = RequestHead::parse(head.as_bytes()).unwrap();
    let extract = Extract::compile([spec]).unwrap();
    match extract.search(&request, head.as_bytes(), &mut vec![], &mut BodySearch::new(0))? {
        Search::Key(key) => Ok(Some(key.to_vec())),
        Search::NoKey => Ok(None),
        Search::InBody => unreachable!("nobody looks there"),
    }
}

/// What must be found where these are the values of the name: the only one, unless it is empty.
fn only<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Result<Option<Vec<u8>>, Refusal> {
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Refusal::RepeatedKey),
        (value, None) => Ok(value.filter(|value| !value.is_empty()).map(<[u8]>::to_vec)),
    }
}

/// Percent-encodes what must be, and where `more` says so what need not be.
fn encode(bytes: &[u8], more: bool) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() && !more;
    bytes
        .iter()
        .map(|&byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}

fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    bytes
        .chunks(3)
        .flat_map(|three| {
            let bits =
                three.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - three.len()));
            (0..=three.len()).map(move |at| char::from(ALPHABET[(bits >> (18 - 6 * at) & 63) as usize]))
        })
        .collect()
}

proptest! {
    #[test]
    fn queries_give_back_what_was_written(
        pairs in vec((prop::sample::select(vec!["id", "i", "idx", "x", ""]), vec(any::<u8>(), 0..6), any::<bool>()), 0..6),
    ) {
        let text: Vec<String> = pairs
            .iter()
            .map(|(name, value, more)| format!("{}={}", encode(name.as_bytes(), *more), encode(value, *more)))
            .collect();
        let values = pairs.iter().filter(|(name, ..)| *name == "id").map(|(_, value, _)| value.as_slice());
        prop_assert_eq!(key_of("query:id", &format!("/x?{}", text.join("&")), ""), only(values));
    }

    #[test]
    fn any_query_is_read_or_refused(query in "[id=&;%+0-9a]{0,20}") {
        // Where nothing is doubtful, a plain reader finds the same.
        if let Ok(found) = key_of("query:id", &format!("/x?{query}"), "") {
            let named = |pair: &&str| pair.split('=').next() == Some("id");
            let plain = query.split('&').find(named).and_then(|pair| pair.split_once('=')).map(|(_, value)| value);
            let expected = plain.filter(|value| !value.is_empty());
            if !query.contains('%') {
                prop_assert_eq!(found, expected.map(|value| value.as_bytes().to_vec()));
            }
        }
    }

    #[test]
    fn cookies_give_back_what_was_written(
        pairs in vec((prop::sample::select(vec!["sid", "s", "SID", "x"]), "[!-:<-~]{0,8}"), 0..6),
        space in "[ \t]{0,2}",
    ) {
        let text: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let field = format!("Cookie: {}\r\n", text.join(&format!(";{space}")));
        let values = pairs.iter().filter(|(name, _)| *name == "sid").map(|(_, value)| value.as_bytes());
        prop_assert_eq!(key_of("cookie:sid", "/", &field), only(values));
    }

    #[test]
    fn claims_give_back_what_was_signed(
        claims in prop::collection::btree_map("(sub|iss|su)", "[ -~\u{e9}\u{1f600}]{0,12}", 0..4),
        signature in "[A-Za-z0-9_-]{0,9}",
    ) {
        let object: Map<String, Value> =
            claims.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        let token = base64url(Value::from(object).to_string().as_bytes());
        let field = format!("Authorization: Bearer e30.{token}.{signature}\r\n");
        let value = claims.get("sub").map(|value| value.as_bytes());
        prop_assert_eq!(key_of("jwt:sub", "/", &field), only(value.into_iter()));
    }

    #[test]
    fn any_token_is_read_or_refused(token in "[ -~]{0,60}", claims in vec(any::<u8>(), 0..40)) {
        let _ = key_of("jwt:sub", "/", &format!("Authorization: Bearer {token}\r\n"));
        let _ = key_of("jwt:sub", "/", &format!("Authorization: Bearer x.{}.y\r\n", base64url(&claims)));
    }

    #[test]
    fn a_table_is_a_map_with_a_default(
        keys in vec(vec(any::<u8>(), 0..4), 0..200),
        asked in vec(vec(any::<u8>(), 0..4), 0..50),
    ) {
        let map: BTreeMap<&[u8], u32> = keys.iter().enumerate().map(|(at, key)| (&key[..], at as u32 % 3)).collect();
        let entries = map.iter().map(|(key, racs)| TableEntry {
            key: key.to_vec(),
            racs: RacsId::new(*racs),
            name: format!("{key:?}"),
        });
        let pmap = Pmap::table(Epoch::FIRST, Table::new(entries.collect(), RacsId::new(3), 4).unwrap());
        prop_assert_eq!(pmap.len().get() as usize, map.len() + 1);
        for key in keys.iter().chain(&asked) {
            let partition = pmap.locate(key);
            prop_assert_eq!(pmap.racs(partition).get(), map.get(&key[..]).copied().unwrap_or(3));
            prop_assert_eq!(pmap.by_name(&pmap.name(partition).to_string()), Some(partition));
        }
    }
}
