//! The demo: leaders die, and no read fails.

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use common::Proc;

#[test]
fn leaders_die_and_no_read_fails() {
    let mut demo = Proc::start(&["demo", "--for", "8s", "--kill-every", "2s"]);
    let ready = demo.until_event("ready");
    let router = ready["router"].as_str().expect("an address");
    let mut stream = TcpStream::connect(router).expect("the router listens");
    stream.write_all(b"GET /items/7 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for header in ["x-phalanx-partition:", "x-phalanx-server:", "x-phalanx-epoch:"] {
        assert!(answer.to_lowercase().contains(header), "{header} is missing: {answer}");
    }
    let admin = ready["admin"].as_str().expect("an admin API");
    for (command, key) in [("status", "id"), ("view", "members")] {
        let output = common::run(&[command, "--admin", admin, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", common::stderr(&output));
        assert!(common::stdout(&output).contains(key), "{}", common::stdout(&output));
    }
    demo.until_event("killed");
    let summary = demo.until_event("summary");
    assert_eq!(summary["failed_reads"], 0, "{summary}");
    assert_eq!(summary["wrong_partition"], 0, "{summary}");
    assert_eq!(summary["violations"], 0, "{summary}");
    assert!(summary["kills"].as_u64() >= Some(1), "{summary}");
    assert!(summary["reads"].as_u64() >= Some(100), "{summary}");
    assert_eq!(demo.end(), Some(0));
}
