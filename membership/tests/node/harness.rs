//! Nodes in this process that find each other in a scratch directory, and whose traces are judged at the end.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use checker::{Checker, Report};
use membership::{
    Bootstrap, Event, Events, Membership, Node, NodeBuilder, Rendezvous, Secret, View, Views, What,
};
use membership_types::trace::Record;

/// Longer than anything takes that will happen at all.
pub const PATIENCE: Duration = Duration::from_secs(60);

static SCRATCH: AtomicU64 = AtomicU64::new(0);

/// A directory that nobody else uses, removed when this is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        let number = SCRATCH.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("phalanx-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a scratch directory");
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.0);
    }
}

/// Where the nodes of one test meet.
pub struct Place {
    scratch: Scratch,
    traces: Mutex<Vec<PathBuf>>,
}

impl Place {
    pub fn new() -> Self {
        Self { scratch: Scratch::new(), traces: Mutex::default() }
    }

    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    pub fn rendezvous(&self) -> Rendezvous {
        Rendezvous::File(self.dir().join("meet"))
    }

    /// A node that finds the others, and writes a trace.
    pub fn builder(&self, name: &str) -> NodeBuilder {
        let trace = self.dir().join(format!("{name}-{}.jsonl", SCRATCH.fetch_add(1, Ordering::Relaxed)));
        self.traces.lock().expect("no panic while it is held").push(trace.clone());
        quiet(name)
            .rendezvous(self.rendezvous())
            .bootstrap(Bootstrap::AloneAfter(Duration::from_millis(500)))
            .trace(trace)
    }

    pub async fn node(&self, name: &str) -> Node {
        self.builder(name).start().await.expect("starts")
    }

    /// Nodes that are all members of a group, with the memberships in rank order.
    pub async fn members(&self, count: usize, group: &str) -> Vec<Membership> {
        let mut members = Vec::new();
        for number in 0..count {
            let builder = self.builder(&format!("n{number}"));
            // One cluster: of two that are founded one dissolves, and with it whoever leads in it.
            let builder = if number == 0 { builder } else { builder.bootstrap(Bootstrap::Join) };
            let node = builder.start().await.expect("starts");
            let member = node.join(group, None).await.expect("runs");
            within("a member joins", view(&mut member.views(), |v| v.members.len() == number + 1)).await;
            members.push(member);
        }
        members
    }

    /// Stops these nodes, and lets the checker judge what all nodes of this place have traced.
    pub async fn judge(&self, nodes: impl IntoIterator<Item = Node>) -> Report {
        for node in nodes {
            within("a node leaves", node.leave()).await;
        }
        judge(&self.traces.lock().expect("no panic while it is held"), Vec::new())
    }
}

/// A builder whose node does not mind when a test panics: other tests run in this process.
pub fn quiet(name: &str) -> NodeBuilder {
    let builder = Node::builder().name(name).lease(Duration::from_secs(3)).panic_hook(false);
    if crate::SEALED { builder.secret(secret(0)) } else { builder }
}

/// A key, another one for each number.
pub fn secret(number: u8) -> Secret {
    let key: String = (0..32_u8).map(|n| format!("{:02x}", n ^ number)).collect();
    key.parse().expect("a key")
}

/// Any free port.
pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Lets the checker judge traces, with what the harness knows besides.
pub fn judge(traces: &[PathBuf], harness: Vec<Record>) -> Report {
    let mut records = harness;
    for path in traces {
        let text = fs::read_to_string(path).expect("a trace");
        let parsed = text.lines().map(|line| serde_json::from_str::<Record>(line).expect("a whole record"));
        records.extend(parsed);
    }
    // Stable: records of one source stay in their order.
    records.sort_by_key(|record| record.t);
    let mut checker = Checker::new();
    for record in &records {
        checker.observe(record);
    }
    let report = checker.finish();
    let failures: Vec<String> = report.failures().map(|v| format!("{v:?}")).collect();
    assert!(report.invalid.is_none(), "{:?}", report.invalid);
    assert!(failures.is_empty(), "{failures:#?}");
    report
}

/// Bounds a wait.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// Takes views until one fits.
pub async fn view(views: &mut Views, fits: impl Fn(&View) -> bool) -> Arc<View> {
    loop {
        let view = views.next().await.expect("the node runs");
        if fits(&view) {
            return view;
        }
    }
}

/// Takes events until one fits.
pub async fn event(events: &mut Events, fits: impl Fn(&What) -> bool) -> Event {
    loop {
        let event = events.next().await.expect("the node runs");
        if fits(&event.what) {
            return event;
        }
    }
}

/// Reads one of a node's metrics.
pub fn metric(node: &Node, name: &str) -> u64 {
    let text = node.extensions().metrics_text();
    let values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let value = values.get(name).or_else(|| values.get(&*format!("{name}_total")));
    value.unwrap_or_else(|| panic!("no metric {name} in {text}")).parse().expect("a number")
}

/// Starts nodes as nearly at once as threads allow.
pub async fn together(count: usize, builder: impl Fn(usize) -> NodeBuilder) -> Vec<Node> {
    let starts: Vec<_> = (0..count).map(|number| tokio::spawn(builder(number).start())).collect();
    let mut nodes = Vec::new();
    for start in starts {
        nodes.push(start.await.expect("no panic").expect("starts"));
    }
    nodes
}

/// Waits until all are in one cluster view, and nobody else is: perhaps after lineages that were founded apart have met.
pub async fn one_view(nodes: &[Node]) {
    let view = |node: &Node| node.status().view.clone().filter(|view| view.members.len() == nodes.len());
    let whole = async {
        while view(&nodes[0]).is_none() || nodes.iter().any(|node| view(node) != view(&nodes[0])) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the whole cluster", whole).await;
}

/// Stops all of these.
pub async fn leave(nodes: impl IntoIterator<Item = Node>) {
    for node in nodes {
        within("a node leaves", node.leave()).await;
    }
}

/// Where this program is installed. If it is not, says so, or fails where servers are required.
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = dirs.map(|dir| dir.join(program)).find(|file| file.is_file());
    if found.is_none() {
        skipped(&format!("{program} is not installed"));
    }
    found
}

/// A test cannot run here: says so, or fails where everything must run.
pub fn skipped(why: &str) {
    let required = std::env::var_os("PHALANX_REQUIRE_SERVERS").is_some();
    assert!(!required, "{why}, and PHALANX_REQUIRE_SERVERS is set");
    println!("SKIPPED: {why}");
}

/// The names of a view's members, in rank order.
pub fn names(view: &View) -> Vec<&str> {
    view.members.iter().map(|m| &*m.name).collect()
}
