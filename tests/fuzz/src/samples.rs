//! Well-made bytes for each target: what real machines say to each other, and oddities that were found.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use membership_multicast::{Ack, Class, Cut, Data, Frame, Order, Run, Said, Standing, Sync, Transfer};
use membership_proto::{
    Bootstrap, Cluster, Config, Dest, Domains, GroupWish, Input, Kind, Msg, NodeInfo, Output,
};
use membership_types::{
    GroupName, Instant, Machine, NodeId, Rng, ViewId,
    trace::{Record, Source},
};

/// What a target's corpus begins with.
pub fn samples(target: &str) -> Vec<Vec<u8>> {
    let text = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    match target {
        "multicast_frame" => frames().iter().map(encoded).collect(),
        "bulk_units" => membership::fuzz::units(&frames()),
        "wire_frame" => membership::fuzz::wire_frames(&messages()),
        "wire_stream" => membership::fuzz::wire_streams(&messages()[..4]),
        "greeting" => membership::fuzz::greetings(),
        "notice" => membership::fuzz::notices(),
        "trace" => traces(),
        "names" => text(&NAMES),
        "router_config" => text(&CONFIGS),
        "sealed_greeting" => membership::fuzz::sealed_greetings(),
        "records" => membership::fuzz::meddlings(),
        "secret_file" => text(&SECRETS),
        "file_entry" => text(&ENTRIES),
        "registry" => text(&QUESTIONS),
        "registry_answer" => cut(&ANSWERS, &[0]),
        "proof" => membership::fuzz::proofs(),
        "witness" => text(&WITNESS),
        "admin" => text(&ADMIN),
        "http_requests" => cut(&REQUESTS, &[0, 6]),
        "http_responses" => cut(&RESPONSES, &[0, 6, 64]),
        "shared_answers" => cut(&SHARED, &[0, 6, 64, 128]),
        "chunked_body" => cut(&CHUNKED, &[0, 6]),
        "resp_transactions" => cut(&TRANSACTIONS, &[0, 1, 128, 129]),
        "proxy_header" => proxied(),
        "tls_hello" => hellos(),
        "query_key" => text(&QUERIES),
        "path_key" => text(&PATHS),
        "token_key" => cut(&TOKENS, &[0, 1, 2, 3]),
        "content_type" => text(&TYPES),
        "resp_commands" => cut(&COMMANDS, &[0, 6]),
        "resp_replies" => cut(&REPLIES, &[0, 6]),
        "json_key" => cut(&DOCUMENTS, &[0, 1, 2, 3]),
        "form_key" => cut(&FORMS, &[0, 6]),
        "multipart_key" => cut(&PARTS, &[0, 6]),
        "session_cookie" => text(&SESSIONS),
        "request_ids" => text(&IDS),
        "deadline_field" => text(&DEADLINES),
        "memcached_commands" => cut(&TEXT_COMMANDS, &[0, 6]),
        "memcached_replies" => text(&TEXT_REPLIES),
        "frame_requests" => cut_bytes(&FRAMES, &[0, 6]),
        "frame_responses" => cut_bytes(&ANSWERED, &[0, 6]),
        "card" => membership::fuzz::cards(),
        "floor_file" => membership::fuzz::floor_files(),
        "kept_state" => membership::fuzz::kept_states(),
        "inventory" => text(&SNAPSHOTS),
        "inventory_command" => text(&WRITES),
        other => unreachable!("no target is called {other}"),
    }
}

/// Each text after each of these bytes, which say how it is cut, or the like.
fn cut(texts: &[&str], cuts: &[u8]) -> Vec<Vec<u8>> {
    texts.iter().flat_map(|text| cuts.iter().map(|cut| [&[*cut], text.as_bytes()].concat())).collect()
}

/// What clients of memcached send.
const TEXT_COMMANDS: [&str; 5] = [
    "get a\r\ngets  a b c a\r\ngat 0 a\ngats -1 a b\r\nset k 1 0 5 noreply\r\nhel\nlo\r\ncas k 0 0 1 7\r\nx\r\nappend k 0 0 0\r\n\r\n",
    "delete k noreply\r\ndelete k 0\r\nincr k 5\r\ndecr k 5 noreply\r\ntouch k 1\r\nflush_all 1 noreply\r\nversion\r\nverbosity 1\r\nstats\r\nquit\r\n",
    "mg k v q t\r\nmg YQ== b k\r\nmg k T0 O1\r\nms k 2 T5 q O7\r\nxy\r\nmd k q\r\nma k N0 J5 v\r\nme k\r\nmn\r\n",
    "set k x 0 4\r\nquit\r\nset k 0 0 99\r\n0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\r\nmn\r\n",
    "shutdown\r\nslabs reassign 1 2\r\nnosuch\r\n\r\nset k 0 0 1\r\nabc\r\n",
];

/// What its servers answer, each after what says to which kind of command, and how it is cut.
const TEXT_REPLIES: [&str; 7] = [
    "\x00VALUE a 0 3\r\nEND\r\nVALUE d 7 0\r\n\r\nVALUE a 0 1 99\r\nx\r\nEND\r\nVALUE b 0 2\r\nxy\r\nEND\r\nEND\r\n",
    "\x3cEND\r\nSERVER_ERROR out of memory\r\nEND\r\nEND\r\nEND\r\nVALUE c 0 0\r\n\r\nEND\r\n",
    "\x02STORED\r\nNOT_STORED\r\nEXISTS\r\nNOT_FOUND\r\nSERVER_ERROR object too large for cache\r\nCLIENT_ERROR bad data chunk\r\n",
    "\x0517\r\n9 \r\nNOT_FOUND\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
    "\x07VA 3 t5 O1\r\nEN\r\r\nHD\r\nEN\r\nCLIENT_ERROR invalid flag\r\n",
    "\x0aVA 1\r\n5\r\nHD c7\r\nNF\r\nNS\r\nEX\r\nERROR\r\n",
    "\x0bME k exp=-1 la=0\r\nEN\r\n",
];

/// The same for what is no text: messages, which get their lengths here.
fn cut_bytes(streams: &[&[&[u8]]], cuts: &[u8]) -> Vec<Vec<u8>> {
    let framed = |message: &&[u8]| {
        let len = u32::try_from(message.len()).expect("it is short").to_be_bytes();
        [&len[..], message].concat()
    };
    let stream = |messages: &&[&[u8]]| messages.iter().map(framed).collect::<Vec<_>>().concat();
    streams
        .iter()
        .flat_map(|messages| cuts.iter().map(|cut| [&[*cut][..], &stream(messages)].concat()))
        .collect()
}

const FRAMES: [&[&[u8]]; 4] = [
    &[b"\x94\x00\x01\xa3get\x91\xa3abc", b"\x94\x00\xce\x01\x02\x03\x04\xa3put\x92\x81\xa4user\x2a\x93\x01\x02\xd9\x03key"],
    &[
        b"\x95\x00\x07\xa3add\x91\x82\xa1x\x90\xa4user\xc4\x02\x00\xff\x81\xabdeadline_ms\xcd\x01\x00",
        b"\x94\x00\xcd\xff\xff\xda\x00\x01p\x90",
    ],
    &[b"\x94\x00\x01\xa3get\x92\xd3\x80\x00\x00\x00\x00\x00\x00\x00\x93\xc0\xc3\xcb\x00\x00\x00\x00\x00\x00\x00\x00"],
    &[b"\x94\x00\x01\xa3get\x91\x82\xa4user\x01\xa4user\x02", b"\x93\x02\xa3get\x90"],
];

const ANSWERED: [&[&[u8]]; 3] = [
    &[b"\x94\x01\x01\xc0\xa2ok", b"\x94\x01\xce\x01\x02\x03\x04\xa5wrong\xc0"],
    &[
        b"\x94\x01\x02\x82\xa7phalanx\xaanot-leader\xa6leader\xab127.0.0.1:1\xc0",
        b"\x94\x01\x03\xc0\x93\x01\xc4\x01\x00\xd4\x01\x02",
    ],
    &[b"\x94\x01\x01\xc0\xdd\xff\xff\xff\xff"],
];

const SECRETS: [&str; 5] = [
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n",
    "# new\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n  # old\n\tcorrect horse battery staple, and more \r\n",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "-_-_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA\n000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n\
     000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e20\n\
     000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e21\n",
    "swordfish",
];

const ENTRIES: [&str; 4] = [
    r#"{"id":"1.2","name":"tower","addr":"10.0.0.1:7000"}"#,
    r#"{"id":"1.2","name":"\u001b[2J\u00e9","addr":"[fe80::1%3]:1"}"#,
    r#"{"id":"","name":"","addr":"0.0.0.0:0"}"#,
    r#"{"id":"1.2","name":"x","addr":"224.0.0.1:1","more":[[[[1]]]]}"#,
];

const QUESTIONS: [&str; 3] = [
    "5 PUT /c/slots/0 - *\n{\"key\":\"a\",\"id\":\"1.1\",\"name\":\"a\",\"addr\":\"10.0.0.1:7000\"}\n\n\
     1 PUT /c/slots/0 = -\n{\"key\":\"b\",\"id\":\"1.2\",\"name\":\"b\",\"addr\":\"10.0.0.2:7000\"}\n\n\
     11 PUT /c/slots/0 = -\n{\"key\":\"b\",\"id\":\"1.2\",\"name\":\"b\",\"addr\":\"10.0.0.2:7000\"}\n\n\
     0 DELETE /c/slots/0 =",
    "0 PUT /c/slots/7 - *\n{\"key\":\"a\",\"id\":\"1.1\",\"name\":\"a\",\"addr\":\"10.0.0.1:7000\",\"held\":true}\n\n\
     0 PUT /c/slots/7 - *\n{\"key\":\"b\",\"id\":\"1.2\",\"name\":\"b\",\"addr\":\"10.0.0.1:7000\",\"held\":true}\n\n\
     0 PUT /c/slots/7 = -\n{\"key\":\"b\",\"id\":\"1.2\",\"name\":\"b\",\"addr\":\"10.0.0.1:7000\"}\n\n0 GET /c - =",
    "0 PUT /c/nodes/a\n{\"key\":\"a\",\"id\":\"1.1\",\"name\":\"a\",\"addr\":\"[::1]:7000\"}\n\n0 GET /c/nodes/a\n\n\
     9 PUT /c/nodes/a =\n{\"key\":\"a\",\"id\":\"1.1\",\"name\":\"a\",\"addr\":\"[::1]:7000\"}\n\n2 GET /c\n\n20 GET /c\n\n\
     0 DELETE /c/nodes/a",
];

const ANSWERS: [&str; 3] = [
    r#"{"nodes":["10.0.0.1:7000","0.0.0.0:1"],"slots":{"0":{"entry":{"key":"a","id":"1.1","name":"\u0007a","addr":"10.0.0.1:7000"},"stale":true}}}"#,
    r#"{"entry":{"key":"a","id":"1.1","name":"a","addr":"10.0.0.1:7000","held":true},"stale":false}"#,
    r#"{"error":"the registry has just begun\n"}"#,
];

const WITNESS: [&str; 4] = [
    "GET 5-0000000000000def/3\n",
    "PUT 5-0000000000000def/3\n{\"epoch\":\"00000000000000ff\",\"half\":[\"1.7\",\"b.7\"]}",
    "GET 5-0000000000000def/3\n{\"epoch\":\"00000000000000ff\",\"half\":null}",
    "phalanx witness 1\nhalf 1.7 b.7\nsum 00000000000000000000000000000000\n",
];

const ADMIN: [&str; 9] = [
    "GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/groups/a%2Fb HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /metrics HTTP/1.0\r\n\r\n",
    "HEAD /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "POST /x/%y?q=1 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "PUT /v1/rendezvous/c/nodes/a HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: *\r\nContent-Length: 56\r\n\r\n\
     {\"key\":\"a\",\"id\":\"1.1\",\"name\":\"a\",\"addr\":\"10.0.0.1:7000\"}GET /v1/rendezvous/c HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "DELETE /v1/rendezvous/c/slots/0 HTTP/1.1\r\nHost: localhost\r\nIf-Match: \"1-1\"\r\n\r\n",
    "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v1/groups?limit=7&after=a%2Fb HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v1/status HTTP/1.1\r\nHost: evil.example\r\n\r\nGET / HTTP/1.1\r\nHost: [::1]:70\r\n\r\n",
];

const REQUESTS: [&str; 5] = [
    "\r\nPOST /items/a%20b/c?q HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
     Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n10;x=\"y\"\r\n0123456789abcdef\r\n00\r\nX-Sum: 1\r\n\r\n\
     GET / HTTP/1.0\r\n\r\n",
    "PUT http://h:80/items/7 HTTP/1.1\r\nhost: h:80\r\nExpect: 100-continue\r\nContent-Length: 3\r\nX-Key: k\r\n\r\n\
     abcOPTIONS * HTTP/1.1\r\nHost: [::1]\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "GET /items/%2e%2E/x HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nKeep-Alive: timeout=5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET /x?a=b&q=c%2Bd;e HTTP/1.1\r\nHost: EU.example:80\r\nCookie: a=b; c=d\r\n\
     Authorization: Bearer e30.eyJzdWIiOiJhIn0.c2ln\r\n\r\nGET /?q=a+b HTTP/1.1\r\nHost: h\r\n\r\n",
];

const RESPONSES: [&str; 4] = [
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nServer: s\r\nX-Phalanx-Epoch: 1\r\nContent-Length: 5\r\n\r\nhello\
     HTTP/1.0 204 No Content\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nKeep-Alive: timeout=9, max=3\r\n\r\n",
    "HTTP/1.1 200 OK\r\n\r\nuntil it closes",
];

/// Answers of a server, one behind the other.
const SHARED: [&str; 3] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
     HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\nX: y\r\n\r\nHTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 408 Late\r\n\r\n",
];

const DEADLINES: [&str; 5] = ["1500", "99999999S", "0m", "20u", "12345678901"];

const DOCUMENTS: [&str; 4] = [
    r#"{"user":{"name":"\u00e9\ud83d\ude00","id":42,"x":null},"id":"a\"b","a":[1,{"b":true},[-0.5e+3]],"0":{"~/":"k"}}"#,
    r#" [ {"~/" : "first"} , {"id":1,"id":2}, "\\\/\b\f\n\r\t", false , [ ] , { } ] "#,
    r#"{"id":"","\u0069d":"twice","user":{"id":{}},"user":[]}"#,
    r#"{"pad":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\ud800","a":[0,{"b":"\udc00"}],"id":00}"#,
];

const FORMS: [&str; 4] = ["a=b&id=x+y%2Bz&c", "i%64=%c3%a9&id&&=&x=%zz", "a;id=1&id=2", "id=&id=%4"];

const PARTS: [&str; 3] = [
    "--x-y\r\nContent-Disposition: form-data; name=\"f\"; filename=\"C:\\a\"\r\nContent-Type: text/plain\r\n\r\n\r\n--x-\r\n\n\r\n\
     --x-y\r\ncontent-disposition: form-data; name=id\r\nContent-Transfer-Encoding: 8bit\r\n\r\na\r\r\nb\r\n--x-y--\r\n",
    "--x-y\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\n1\r\n\
     --x-y\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\n2\r\n--x-y--",
    "--x-y--\r\n",
];

/// Fields that name a request, as they stand in a head.
const IDS: [&str; 4] = [
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\nX-Request-Id: 7f-3/a\r\n",
    "traceparent: cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff-more\r\n",
    "x-request-id: a\r\nx-request-id: b\r\n",
    "traceparent: 00-00000000000000000000000000000000-b7ad6b7169203331-00\r\nX-Request-Id: \r\n",
];

const SESSIONS: [&str; 3] = [
    "0123456789abcdef",
    "0123456789abcdef.fedcba9876543210.0000000000000000",
    "0123456789ABCDEF.0123456789abcde",
];

const COMMANDS: [&str; 4] = [
    "*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$0\r\n\r\n$12\r\n*1\r\n$4\r\nQUIT\r\n*0\r\nPING a  b\r\n*-1\r\n\
     *2\r\n$3\r\nget\r\n$10\r\n0123456789\r\n",
    "*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2\r\n*4\r\n$4\r\nMGET\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n\
     *3\r\n$3\r\nDEL\r\n$1\r\na\r\n$1\r\nb\r\n",
    "*4\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$7\r\nSETNAME\r\n$1\r\nx\r\n*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$4\r\nsave\r\n\
     *2\r\n$6\r\nclient\r\n$4\r\nlist\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n1\r\n*2\r\n$4\r\necho\r\n$2\r\nhi\r\n",
    "*1\r\n$99999999999\r\n",
];

const REPLIES: [&str; 4] = [
    "+OK\r\n-ERR x\r\n:12\r\n$-1\r\n$0\r\n\r\n$4\r\n\r\n\r\n\r\n*-1\r\n*0\r\n*3\r\n:1\r\n*2\r\n$1\r\na\r\n*0\r\n+x\r\n",
    "%1\r\n+k\r\n~2\r\n#t\r\n_\r\n|1\r\n+a\r\n:1\r\n,1.5\r\n(123\r\n=7\r\ntxt:abc\r\n!3\r\nERR\r\n",
    "*2\r\n$1\r\na\r\n$-1\r\n*2\r\n$1\r\nb\r\n-ERR y\r\n",
    ":1\r\n:2\r\n:9999999999\r\n",
];

const CHUNKED: [&str; 3] = [
    "5\r\nhello\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "0\r\nX-Sum: 1\r\nY: a\tb\r\n\r\n0\r\n\r\n",
    "000000000000002;\r\n\r\n\r\n1\r\n0\r\n0;a=b;c\r\n\r\n",
];

const TRANSACTIONS: [&str; 3] = [
    "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n*2\r\n$3\r\nGET\r\n$3\r\nabc\r\n*1\r\n$4\r\nPING\r\n",
    "*2\r\n$4\r\nINCR\r\n$1\r\na\r\n*2\r\n$4\r\nINCR\r\n$2\r\nab\r\n",
    "*1\r\n$4\r\nEXEC\r\n",
];

/// Headers as HAProxy writes them (plain, and with a checksum and what TLS was), one over IPv6, and one of who speaks for itself.
fn proxied() -> Vec<Vec<u8>> {
    let headers: [&[u8]; 6] = [
        b"!\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\xa8rpE",
        b"!\x11\x00%\x7f\x00\x00\x01\x7f\x00\x00\x01\x8dvpG\
          \x03\x00\x04C\x88$\xd8 \x00\x0f\x01\x00\x00\x00\x00!\x00\x07TLSv1.3GET / HTTP/1.1",
        b"!!\x00$\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\
          \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01\xe2\xbapE",
        b" \x00\x00\x00\x16\x03\x01",
        b"!1\x00\xdc",
        b"!\x00\x00\x07\x04\x00\x01x\x30\x00\x00",
    ];
    headers.iter().map(|header| [b"\r\n\r\n\0\r\nQUIT\n", *header].concat()).collect()
}

/// Hellos in one record and in several, with a name and without.
fn hellos() -> Vec<Vec<u8>> {
    let prefixed = |width: usize, data: &[u8]| [&data.len().to_be_bytes()[8 - width..], data].concat();
    let extension = |kind: u8, data: &[u8]| [&[0, kind][..], &prefixed(2, data)].concat();
    let name = |name: &[u8]| extension(0, &prefixed(2, &[&[0][..], &prefixed(2, name)].concat()));
    let message = |extensions: &[Vec<u8>]| {
        let parts = [
            vec![3, 3],
            vec![7; 32],
            prefixed(1, &[9; 32]),
            prefixed(2, &[0x13, 1, 0x13, 2, 0xc0, 0x2f]),
            prefixed(1, &[0]),
            if extensions.is_empty() { Vec::new() } else { prefixed(2, &extensions.concat()) },
        ];
        [&[1][..], &prefixed(3, &parts.concat())].concat()
    };
    let records = |message: &[u8], fragment: usize| -> Vec<u8> {
        message.chunks(fragment).flat_map(|part| [&[22, 3, 1][..], &prefixed(2, part)].concat()).collect()
    };
    // Without these no server goes on: versions, and how signatures may be made.
    let (versions, schemes) = (extension(43, &[4, 3, 4, 3, 3]), extension(13, &[0, 4, 4, 3, 8, 4]));
    let named =
        |text: &[u8]| message(&[versions.clone(), name(text), schemes.clone(), extension(21, &[0; 40])]);
    let whole = [
        records(&named(b"A.Example"), 5000),
        records(&named(b"a_b.xn--4ca.example"), 30),
        records(&named(b"192.0.2.7"), 5000),
        records(&message(&[versions.clone(), schemes.clone()]), 7),
        records(&message(&[]), 5000),
        records(&message(&[name(b"a"), name(b"b")]), 5000),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    whole.iter().flat_map(|hello| [0, 6].map(|cut| [&[cut][..], hello].concat())).collect()
}

const QUERIES: [&str; 4] =
    ["a=b&id=x%2By&c", "i%64=%c3%a9&id2=1&&=&x=%zz;y", "a;id=1&id=2&id=", "id=a+b?id=1"];

const PATHS: [&str; 4] = ["items/a%2Fb/c/d?id=1", "v1/x/k+1", "items/k/%2e%2E/x", "other/k"];

const TOKENS: [&str; 4] = [
    "e30.eyJpZCI6NywidXNlciI6eyJpZCI6IngifX0.c2ln",
    "h.eyJhIjpbMCx7ImIiOiJcdTAwZTkifV0sIjAiOnsifi8iOnRydWV9fQ.",
    " .eyJpZCI6MSwiaWQiOjJ9.s ",
    "opaque",
];

const TYPES: [&str; 6] = [
    "application/json; charset=utf-8",
    "application/x-www-form-urlencoded;charset=\"UTF-8\"",
    "multipart/form-data; a=\"boundary=x;\"; Boundary=\"a b:c\"",
    "multipart/form-data;boundary=----WebKit0",
    "application/problem+json",
    "multipart/form-data",
];

const SNAPSHOTS: [&str; 3] = [
    "{\"items\":{\"k\":{\"value\":\"1\",\"version\":2}},\"requests\":{\"a\":1,\"b\":2},\"order\":[\"b\",\"a\"]}\n\
     {\"key\":\"k\",\"value\":\"2\",\"request\":\"a\"}\n{\"key\":\"j\",\"value\":\"\",\"request\":null}",
    "{\"items\":{},\"requests\":{},\"order\":[]}\n{\"key\":\"k\",\"value\":\"\\u0000\",\"request\":\"\"}",
    "{\"items\":{\"k\":{\"value\":\"\",\"version\":18446744073709551615}},\"requests\":{},\"order\":[]}\n\
     {\"key\":\"k\",\"value\":\"2\",\"request\":null}",
];

const WRITES: [&str; 3] = [
    r#"{"key":"k","value":"1","request":"a"}"#,
    "{\"key\":\"k\",\"value\":\"1\",\"request\":\"a\"}\n{\"key\":\"k\",\"value\":\"2\"}\n{\"key\":\"k\",\"value\":\"2\",\"request\":\"a\"}",
    "[\"k\",\"v\",null]",
];

const NAMES: [&str; 17] = [
    "air-traffic/control.1:a_b",
    "3.1f",
    "h",
    "p:0.1",
    "r:r-g0",
    "c:1",
    "static:10.0.0.1:7000,[::1]:7001,host:1",
    "file:/run/towers",
    "dns:towers.example.org:7000?server=10.0.0.53:53",
    "dns:_phalanx._tcp.example.org",
    "multicast:239.1.2.3:7000?interface=10.0.0.1",
    "broadcast:7000?interface=10.0.0.1",
    "http://10.0.0.1:8080/v1/rendezvous",
    "http://[::1]:8080",
    "https://x:1",
    "static:]:[,:",
    "1f-00000000000009f2",
];

const CONFIGS: [&str; 4] = [
    "cluster = \"c\"\n[[service]]\nname = \"inventory\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
     key = [\"header:x-key\", \"path:/items/{key}/*\", \"query:id\", \"cookie:sid\"]\nno_key = \"reject\"\n\
     reads = \"least-loaded\"\nupdates = \"leader\"\n[service.pmap]\nstyle = \"slots\"\npartitions = 64\n\
     [[service.racs]]\nname = \"a\"\nservers = [\"127.0.0.1:9001\", \"127.0.0.1:9002\"]\n",
    "[[service]]\nname = \"kv\"\nlisten = \"[::1]:6379\"\nprotocol = \"redis\"\n[service.pmap]\nstyle = \"ranges\"\n\
     ranges = [{ from = \"\", racs = \"a\" }, { from = \"B\", racs = \"b\" }]\n[[service.racs]]\nname = \"a\"\n\
     group = \"a\"\n[[service.racs]]\nname = \"b\"\nservers = [\"10.0.0.1:1\"]\n",
    "[[service]]\nname = \"x\"\nlisten = \"localhost:1\"\n",
    "a = [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// One frame of every kind.
fn frames() -> Vec<Frame> {
    let (view, last, prev) = (ViewId::new(9), ViewId::new(8), ViewId::new(7));
    let nodes = || vec![NodeId::new(1, 2), NodeId::new(3, 4)];
    let payload = || Bytes::from_static(b"payload");
    let data = |class, last| Frame::Data(Data { view, rank: 1, number: 2, class, last, payload: payload() });
    let transfers = [
        Transfer::Ask { id: 1, base: view, from: 2 },
        Transfer::Label { id: 1, view, taken: vec![1, 2] },
        Transfer::Chunk { id: 1, number: 2, last: true, payload: payload() },
        Transfer::Got { id: 1, number: 2 },
        Transfer::Refuse { id: 1 },
        Transfer::Have { view },
        Transfer::Lost { view },
        Transfer::Pledge { view },
        Transfer::Making { id: 1 },
        Transfer::Waiting { view },
    ];
    let runs = vec![Run { rank: 1, count: 2 }, Run { rank: 0, count: 1 }];
    let (held, standing) = (vec![1, 2], Standing::Whole);
    let word = || Sync { view, last, prev, standing, held: vec![1, 2], seq: 4, sent: 5, trans: nodes() };
    let words = nodes().into_iter().map(|member| (member, word())).collect();
    let others = [
        Frame::Said(Box::new(Said { view, direct: nodes(), words })),
        data(Class::Fifo, false),
        data(Class::Ordered, true),
        data(Class::Safe, true),
        Frame::Order(Order { view, first: 3, runs }),
        Frame::Ack(Ack { view, held: held.clone(), seq: 3, again: true }),
        Frame::Sync(word().into()),
        Frame::Cut(Box::new(Cut {
            view,
            members: nodes(),
            last,
            held: held.clone(),
            seq: 4,
            trans: nodes(),
            sent: held,
            holders: nodes(),
        })),
    ];
    others.into_iter().chain(transfers.map(Frame::Transfer)).collect()
}

/// What three machines say to each other until they are in a group, one loses its place, and another one leaves: one
/// message of every kind.
fn messages() -> Vec<Msg> {
    const NODES: u8 = 3;
    let address = |n: u8| ([10, 0, 0, n], 7000).into();
    let mut now = Instant::from_nanos(1_000_000);
    let mut nodes: Vec<Cluster> = (0..NODES)
        .map(|n| {
            let info = NodeInfo {
                id: NodeId::new(n.into(), 100 + u64::from(n)),
                name: format!("n{n}").into(),
                addr: address(n),
                eligible: true,
                slot: Some(n.into()),
                keeps_floor: false,
                domains: Domains { zone: Some("z".into()), ..Domains::default() },
                load_weight: None,
            };
            let config = Config::new(info, Bootstrap::Expect(NODES.into()), Duration::from_secs(1));
            Cluster::new(config.expect("within the ranges"), now, Rng::seeded(n.into()), ViewId::NONE)
        })
        .collect();
    let mut kinds: BTreeMap<String, Msg> = BTreeMap::new();
    let group = GroupName::new("g").expect("a name");
    for node in &mut nodes {
        let addresses = (0..NODES).map(address).collect();
        node.handle(now, Input::Rendezvous { addresses, complete: true });
        let (group, endpoint) = (group.clone(), Some("10.1.0.1:80".into()));
        let join = GroupWish::Join { group, endpoint, kind: Kind::Multicast };
        node.handle(now, Input::Wish(join));
    }
    for step in 0..4000 {
        if step == 2000 {
            nodes[1].handle(now, Input::Wish(GroupWish::StepDown { group: group.clone() }));
            nodes[2].handle(now, Input::LeaveCluster);
        }
        // The coordinator is cut off for a while.
        let cut = (2500..3500).contains(&step);
        let mut sent = VecDeque::new();
        for (from, node) in nodes.iter_mut().enumerate() {
            node.handle_timeout(now);
            while let Some(output) = node.poll_output() {
                if let Output::Send(dest, msg) = output {
                    let to = match dest {
                        Dest::Node(id, _) => id.node() as usize,
                        Dest::Addr(addr) => (0..NODES).position(|n| address(n) == addr).unwrap_or(0),
                    };
                    sent.push_back((from, to, msg));
                }
            }
        }
        for (from, to, msg) in sent {
            kinds.entry(kind_of(&msg)).or_insert_with(|| msg.clone());
            let id = NodeId::new(from as u32, 100 + from as u64);
            if let Some(node) = nodes.get_mut(to).filter(|_| !cut || from * to > 0) {
                node.handle(now, Input::Message { from: id, msg });
            }
        }
        now = now.after(Duration::from_millis(2));
    }
    kinds.into_values().collect()
}

/// The names at the beginning of what it is written like.
fn kind_of(msg: &Msg) -> String {
    let text = format!("{msg:?}");
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let names = words.filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()));
    names.take(3).collect::<Vec<_>>().join(" ")
}

/// The beginnings of two runs of the simulator, and one record of every kind of each.
fn traces() -> Vec<Vec<u8>> {
    let oddities = [
        &b"{\"v\":1,\"src\":\"h\",\"seq\":1,\"t\":0,\"ev\":\"Cfg\",\"lease\":18446744073709551615,\"rho\":1e308}\n"[..],
        b"\n\n{\"v\":1,\"src\":\"h\"",
    ];
    let mut traces: Vec<Vec<u8>> = oddities.map(<[u8]>::to_vec).into();
    for seed in [1, 2] {
        let written = Written::default();
        sim::run(seed, &sim::Options::default(), Some(Box::new(written.clone())));
        let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        traces.push(lines.iter().take(24).copied().flatten().copied().collect());
        traces.push(one_of_each(&lines));
    }
    traces
}

/// The first record of each kind, numbered so that the checker goes on to judge them.
fn one_of_each(lines: &[&[u8]]) -> Vec<u8> {
    let mut kinds = BTreeSet::new();
    let mut numbers: BTreeMap<Source, u64> = BTreeMap::new();
    let mut told = Vec::new();
    for line in lines {
        let mut record: Record = serde_json::from_slice(line).expect("the simulator's own record");
        let text = format!("{:?}", record.event);
        let kind = text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_owned();
        if kind != "End" && kinds.insert(kind) {
            let number = numbers.entry(record.src.clone()).or_default();
            *number += 1;
            record.seq = *number;
            told.extend(serde_json::to_vec(&record).expect("records have string keys only"));
            told.push(b'\n');
        }
    }
    told
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
