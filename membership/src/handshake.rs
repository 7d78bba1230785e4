//! Introductions: who is at the other end of a connection, and whether the two belong together.
//!
//! Each side sends eight bytes (a magic word and the version of the protocol), then one frame: its [`Hello`], or why the
//! other is refused. The one who connected begins.

use std::{io, net::SocketAddr, time::Duration};

use membership_types::{Lineage, NodeId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::wire::{self, Frames, Garbage, MAX_FRAME, MAX_GREETING};

const MAGIC: [u8; 7] = *b"PHALANX";
/// Nodes of different versions do not understand each other.
const VERSION: u8 = 1;
/// How long a refused connection is kept, so that the other side can read why.
const LINGER: Duration = Duration::from_millis(300);

/// How a node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The cluster's name.
    pub(crate) cluster: String,
    /// The incarnation.
    pub(crate) node: NodeId,
    /// Its name, for people.
    pub(crate) name: String,
    /// Where others reach it.
    pub(crate) addr: SocketAddr,
    /// The lineage that it is in. Nodes of two lineages talk: that is how one of them dissolves.
    pub(crate) lineage: Option<Lineage>,
    /// The name of the local socket at which its process can be met, by processes on its host.
    pub(crate) near: Option<String>,
    /// Is the connection for what groups say, rather than for the protocol of membership?
    #[serde(default)]
    pub(crate) bulk: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum Greeting {
    Hello(Hello),
    Reject(String),
}

/// The two do not belong together, or one of them is no node at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the other side closed the connection without a word")]
    Closed,
    #[error("the other side does not speak this protocol")]
    NotPhalanx,
    #[error("the other side speaks version {0} of the protocol, this node speaks version {VERSION}")]
    Version(u8),
    #[error("{0}")]
    Garbage(#[from] Garbage),
    #[error("the other side belongs to the cluster {0:?}")]
    Cluster(String),
    #[error("the other side is this very node")]
    Myself,
    #[error("refused by the other side: {0}")]
    Rejected(String),
}

impl Refusal {
    /// Is it about bytes that make no sense, rather than about two nodes that do not belong together?
    pub(crate) fn is_garbage(&self) -> bool {
        matches!(self, Self::Garbage(_) | Self::NotPhalanx)
    }

    /// Did one of two nodes refuse the other? Trying again soon would not help.
    pub(crate) fn is_reject(&self) -> bool {
        matches!(self, Self::Version(_) | Self::Cluster(_) | Self::Myself | Self::Rejected(_))
    }
}

/// Introduces us on a connection that we made. Gives who answers, and what else came in.
pub(crate) async fn initiate<S>(stream: &mut S, me: &Hello) -> Result<(Hello, Frames), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&greeting(&Greeting::Hello(me.clone()))).await?;
    let mut frames = Frames::new(MAX_GREETING);
    let version = read_preamble(stream, &mut frames).await?;
    if version != VERSION {
        return Err(Refusal::Version(version));
    }
    let hello = read_greeting(stream, &mut frames).await?;
    check(me, &hello)?;
    frames.set_max(MAX_FRAME);
    Ok((hello, frames))
}

/// Answers an introduction on a connection that was made to us. Gives who made it, and what else came in.
pub(crate) async fn respond<S>(stream: &mut S, me: &Hello) -> Result<(Hello, Frames), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut frames = Frames::new(MAX_GREETING);
    let version = read_preamble(stream, &mut frames).await?;
    if version != VERSION {
        reject(stream, format!("this node speaks version {VERSION} of the protocol, and not {version}"))
            .await;
        return Err(Refusal::Version(version));
    }
    let hello = read_greeting(stream, &mut frames).await?;
    if let Err(refusal) = check(me, &hello) {
        let why = match &refusal {
            Refusal::Myself => "this is the very node that connects".to_owned(),
            _ => format!("this node belongs to the cluster {:?}, and not to {:?}", me.cluster, hello.cluster),
        };
        reject(stream, why).await;
        return Err(refusal);
    }
    stream.write_all(&greeting(&Greeting::Hello(me.clone()))).await?;
    frames.set_max(MAX_FRAME);
    Ok((hello, frames))
}

fn check(me: &Hello, hello: &Hello) -> Result<(), Refusal> {
    if hello.cluster != me.cluster {
        return Err(Refusal::Cluster(hello.cluster.chars().take(64).collect()));
    }
    if hello.node == me.node {
        return Err(Refusal::Myself);
    }
    Ok(())
}

fn greeting(greeting: &Greeting) -> Vec<u8> {
    let mut out = [&MAGIC[..], &[VERSION]].concat();
    let frame = wire::encode(greeting, MAX_GREETING).expect("names are bounded where they come in");
    out.extend_from_slice(&frame);
    out
}

async fn read_preamble<S: AsyncRead + Unpin>(stream: &mut S, frames: &mut Frames) -> Result<u8, Refusal> {
    loop {
        if let Some(preamble) = frames.take::<8>() {
            let [magic @ .., version] = preamble;
            return if magic == MAGIC { Ok(version) } else { Err(Refusal::NotPhalanx) };
        }
        if !frames.fill(stream).await? {
            return Err(Refusal::Closed);
        }
    }
}

async fn read_greeting<S: AsyncRead + Unpin>(stream: &mut S, frames: &mut Frames) -> Result<Hello, Refusal> {
    loop {
        if let Some(payload) = frames.next()? {
            return match wire::decode(&payload)? {
                Greeting::Hello(hello) => Ok(hello),
                Greeting::Reject(why) => Err(Refusal::Rejected(why.chars().take(256).collect())),
            };
        }
        if !frames.fill(stream).await? {
            return Err(Refusal::Closed);
        }
    }
}

/// Says why, and waits a moment for the other side to read it: closing with unread bytes would destroy it.
async fn reject<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, why: String) {
    let told = async {
        stream.write_all(&greeting(&Greeting::Reject(why))).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    // Whether it arrives is up to the other side.
    let _told = tokio::time::timeout(LINGER, told).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(cluster: &str, inc: u64) -> Hello {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        Hello {
            cluster: cluster.into(),
            node: NodeId::new(1, inc),
            name: "n".into(),
            addr,
            lineage: None,
            near: None,
            bulk: false,
        }
    }

    async fn meet(a: &Hello, b: &Hello) -> (Result<Hello, Refusal>, Result<Hello, Refusal>) {
        let (mut left, mut right) = tokio::io::duplex(64);
        let (one, two) = tokio::join!(initiate(&mut left, a), respond(&mut right, b));
        (one.map(|(hello, _)| hello), two.map(|(hello, _)| hello))
    }

    #[tokio::test]
    async fn two_nodes_of_a_cluster_learn_who_the_other_is() {
        let (a, b) = (hello("c", 1), hello("c", 2));
        let (one, two) = meet(&a, &b).await;
        assert_eq!((one.expect("met"), two.expect("met")), (b, a));
    }

    #[tokio::test]
    async fn another_cluster_is_refused_and_both_sides_know_why() {
        let (one, two) = meet(&hello("mine", 1), &hello("yours", 2)).await;
        let (one, two) = (one.expect_err("refused").to_string(), two.expect_err("refused").to_string());
        assert!(one.contains("yours") && one.contains("mine"), "{one}");
        assert!(two.contains("mine"), "{two}");
    }

    #[tokio::test]
    async fn a_node_that_meets_itself_notices() {
        let (one, two) = meet(&hello("c", 1), &hello("c", 1)).await;
        assert!(matches!(two, Err(Refusal::Myself)) && matches!(one, Err(Refusal::Rejected(_))));
    }

    #[tokio::test]
    async fn another_version_and_other_protocols_are_told_apart() {
        for (bytes, expected) in
            [(&b"PHALANX\x09"[..], "version 9"), (b"GET / HTTP/1.1\r\n", "does not speak")]
        {
            let (mut left, mut right) = tokio::io::duplex(1024);
            left.write_all(bytes).await.expect("room");
            let refusal = respond(&mut right, &hello("c", 1)).await.expect_err("refused").to_string();
            assert!(refusal.contains(expected), "{refusal}");
        }
    }

    #[tokio::test]
    async fn a_greeting_beyond_the_limit_of_strangers_is_refused() {
        let (mut left, mut right) = tokio::io::duplex(1024);
        let mut bytes = b"PHALANX\x01".to_vec();
        bytes.extend_from_slice(&(MAX_GREETING as u32 + 1).to_be_bytes());
        left.write_all(&bytes).await.expect("room");
        let refusal = respond(&mut right, &hello("c", 1)).await.expect_err("refused");
        assert!(refusal.is_garbage(), "{refusal}");
    }
}
