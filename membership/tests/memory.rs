//! What a group costs in memory at a node that is in very many. In a process of its own, so that nothing else counts.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use membership::{Bootstrap, Membership, Node, Rendezvous};

/// What the process has allocated and not given back.
static BYTES: AtomicUsize = AtomicUsize::new(0);

struct Counting;

/// What the usual allocator adds to each piece, and to what it rounds.
fn piece(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: everything is left to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(piece(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `alloc`, which are the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        BYTES.fetch_sub(piece(layout.size()), Ordering::Relaxed);
        // SAFETY: `memory` came from `System` with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const GROUPS: usize = 10_000;
/// No group may cost a node more than this, on the average over the nodes of a group.
const LIMIT: usize = 1024;

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left_behind = std::fs::remove_dir_all(&self.0);
    }
}

async fn start(name: &str, scratch: &Scratch) -> Node {
    let builder = Node::builder().name(name).lease(Duration::from_secs(3)).panic_hook(false);
    let builder = builder.rendezvous(Rendezvous::File(scratch.0.clone()));
    let builder = builder.bootstrap(Bootstrap::AloneAfter(Duration::from_millis(200)));
    let node = builder.start().await.expect("starts");
    node.joined().await.expect("joins");
    node
}

/// Joins all groups, and waits until this node is in views of so many members of all of them.
async fn join_all(node: &Node, members: usize) -> Vec<Membership> {
    let mut all = Vec::with_capacity(GROUPS);
    for n in 0..GROUPS {
        all.push(node.join(&format!("group-{n:05}"), None).await.expect("runs"));
    }
    for member in &all {
        while member.view().is_none_or(|view| view.members.len() < members) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    all
}

/// The least of what is in use over a while: whatever is only on its way is not counted.
async fn in_use() -> usize {
    let mut least = usize::MAX;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        least = least.min(BYTES.load(Ordering::Relaxed));
    }
    least
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_costs_a_node_little() {
    let dir = std::env::temp_dir().join(format!("phalanx-memory-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a scratch directory");
    let scratch = Scratch(dir);
    let none = in_use().await;
    let one = start("n0", &scratch).await;
    let before = in_use().await;
    let first = join_all(&one, 1).await;
    let alone = in_use().await;
    // It keeps the log, too, with all groups in it.
    let other = start("n1", &scratch).await;
    let second = join_all(&other, 2).await;
    let both = in_use().await;
    let leader = (alone - before) / GROUPS;
    let nodes = 2 * (before - none);
    let each = (both - none - nodes) / GROUPS / 2;
    println!("a group of one costs its leader {leader} bytes; one of two costs each of them {each}");
    assert!(leader < LIMIT, "a group costs a leader that is alone {leader} bytes");
    assert!(each < LIMIT, "a group costs each of two nodes {each} bytes");
    drop((first, second));
}
