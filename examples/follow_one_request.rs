//! One request's way through the router, step by step: its key, its partition, the servers that could answer, the one that was
//! chosen and why, its ids, and what is left of it in the access log.
//!
//! `cargo run --example follow_one_request`. Router and servers are in one process here; in life each is one of its own.

use std::{
    error::Error,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use phalanx::router::{self, Config, Options, RouterHandle, Surroundings};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What was received: by whom, and the head.
type Seen = Arc<Mutex<Vec<(&'static str, String)>>>;

/// Holds updates back until it is opened.
type Gate = Arc<(Mutex<bool>, Condvar)>;

/// A little server: it answers with its name, reads at once and updates when the gate is open.
fn server(name: &'static str, seen: &Seen, gate: &Gate) -> Outcome<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let (seen, gate) = (Arc::clone(seen), Arc::clone(gate));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (seen, gate) = (Arc::clone(&seen), Arc::clone(&gate));
            thread::spawn(move || {
                let Ok(mut answers) = stream.try_clone() else { return };
                let mut requests = BufReader::new(stream);
                while let Ok(head) = head(&mut requests) {
                    let is_read = head.starts_with("GET");
                    seen.lock().expect("no thread panics").push((name, head));
                    if !is_read {
                        let opened =
                            gate.1.wait_while(gate.0.lock().expect("no thread panics"), |open| !*open);
                        drop(opened);
                    }
                    let (len, text) = (name.len(), name);
                    let _gone = answers.write_all(
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{text}").as_bytes(),
                    );
                }
            });
        }
    });
    Ok(addr)
}

/// Lines up to the empty one.
fn head(from: &mut impl BufRead) -> Outcome<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head)? == 0 {
            return Err("the connection ended".into());
        }
    }
    Ok(head)
}

/// What a field says.
fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

fn shown(head: &str) {
    head.lines().filter(|line| !line.is_empty()).for_each(|line| println!("      {line}"));
}

/// Asks again until there is something.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Outcome<T> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match look() {
            Some(found) => return Ok(found),
            None if Instant::now() > until => return Err(format!("{what} did not come").into()),
            None => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn follow(log: &str, runtime: &tokio::runtime::Runtime) -> Outcome<()> {
    let (seen, gate) = (Seen::default(), Gate::default());
    let of = |name| server(name, &seen, &gate);
    let (north_1, north_2, south_1) = (of("north-1")?, of("north-2")?, of("south-1")?);
    let config = format!(
        r#"
[[service]]
name = "shop"
listen = "127.0.0.1:0"
protocol = "http"
key = "header:x-customer"
expose = true # answers say where they come from
trace = "100%"
access_log = {log:?}
hot_keys = "shown"
pmap = {{ style = "table", table = [{{ key = "ann", racs = "north", name = "ann" }}], default = "south" }}
racs = [{{ name = "north", servers = ["{north_1}", "{north_2}"] }}, {{ name = "south", servers = ["{south_1}"] }}]
"#
    );
    let config = Config::parse(&config, "example.toml".as_ref(), Surroundings::default())?;
    let router = router::start(&config, Options::new().workers(1))?;
    let addr = router.serving()[0].listen;
    println!("A router serves `shop` at {addr}. Two arrays of clones (RACS) are behind it:");
    println!("      north: {north_1} (the first leads), {north_2}");
    println!("      south: {south_1}");

    println!(
        "\n0. Two sales for ann are under way, and take their time. Updates go to the leader of their array, here north-1."
    );
    let mut sales = Vec::new();
    for _ in 0..2 {
        let mut sale = TcpStream::connect(addr)?;
        sale.write_all(
            b"POST /sales HTTP/1.1\r\nHost: shop\r\nX-Customer: ann\r\nContent-Length: 0\r\n\r\n",
        )?;
        sales.push(sale);
    }
    wait_for("a sale", || (seen.lock().expect("no thread panics").len() == 2).then_some(()))?;

    println!("\n1. A client asks:");
    let request =
        "GET /orders/7?page=2 HTTP/1.1\r\nHost: shop\r\nX-Customer: ann\r\nX-Request-Id: follow-me\r\n\r\n";
    shown(request);
    let mut client = TcpStream::connect(addr)?;
    let began = Instant::now();
    client.write_all(request.as_bytes())?;
    let mut answers = BufReader::new(client);
    let answer = head(&mut answers)?;
    let mut body = vec![0; field(&answer, "content-length").parse()?];
    answers.read_exact(&mut body)?;
    let took = began.elapsed();

    let partition = field(&answer, "x-phalanx-partition");
    println!("\n2. Its key is `ann`: the configuration says that the field x-customer has it.");
    println!("3. The partition map puts that key into partition `{partition}`.");
    let view = router.services().remove(0);
    let at = view.partitions.iter().find(|(name, _)| name == partition).ok_or("a partition")?.1;
    let racs = &view.racs[at];
    println!("4. The RACS `{}` holds this partition; its clones, in rank order:", racs.name);
    let measured = runtime.block_on(router.measured());
    for (rank, clone) in racs.clones.iter().enumerate() {
        let server = measured.servers.iter().find(|server| server.addr == clone.addr);
        let (in_flight, leads) = (
            server.map_or(0, |server| server.in_flight),
            if racs.leader == Some(rank) { " (leads)" } else { "" },
        );
        println!("      {}{leads}: {in_flight} requests in flight", clone.addr);
    }
    let chosen: SocketAddr = field(&answer, "x-phalanx-server").parse()?;
    println!(
        "5. A GET changes nothing, so any clone may answer it. Of two drawn at random the one with less in flight was chosen:"
    );
    println!("      {chosen}");
    assert_eq!(chosen, north_2, "the other one has two requests more");

    let (name, head) = seen.lock().expect("no thread panics").last().cloned().ok_or("a request")?;
    println!(
        "6. {name} got the request as it came, with a new trace (traceparent) and with the id that the client gave it:"
    );
    shown(&head);
    assert_eq!((name, field(&head, "x-request-id")), ("north-2", "follow-me"));

    println!(
        "7. The answer goes back, and says where it comes from (expose = true; the epoch is the number of the view of the array):"
    );
    shown(&answer);
    println!("      {}", String::from_utf8(body)?);
    println!("   It took {} us, measured by the client.", took.as_micros());

    let line = wait_for("the line", || {
        let text = std::fs::read_to_string(log).ok()?;
        text.lines().find(|line| line.contains("follow-me")).map(str::to_owned)
    })?;
    println!("8. The access log has a line for it, without the query and without the key:");
    println!("      {line}");
    let trace = &field(&head, "traceparent")[3..35];
    assert!(line.contains(trace) && !line.contains("page"), "{line}");

    let stats = runtime.block_on(router.measured()).services.remove(0);
    let hot = stats.hot.top(1)[0];
    println!(
        "9. The router has counted it: {} requests, of which {} asked for its hottest key.",
        stats.requests, hot.count
    );
    finish(&gate, sales, &router)
}

/// Lets the sales end, then the router.
fn finish(gate: &Gate, sales: Vec<TcpStream>, router: &RouterHandle) -> Outcome<()> {
    *gate.0.lock().expect("no thread panics") = true;
    gate.1.notify_all();
    for sale in sales {
        let answer = head(&mut BufReader::new(sale))?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    router.shutdown(Duration::from_secs(1));
    println!("\nThe sales are done, too. That is all.");
    Ok(())
}

fn main() -> Outcome<()> {
    let log = std::env::temp_dir().join(format!("phalanx-follow-{}.log", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let outcome = follow(log.to_str().ok_or("a path that is text")?, &runtime);
    let _never_made = std::fs::remove_file(log);
    outcome
}
