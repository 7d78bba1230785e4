//! Introductions: who is at the other end of a connection, and whether the two belong together.
//!
//! Each side sends one message with a [`Hello`], or why the other is refused. The one who connected begins. Before a message
//! comes its head, the only thing that is read of a stranger: a magic word, the version of the protocol, how the two prove
//! that they belong together, the name of the key, and how long the message is. With a key, both messages are sealed under it
//! (see `session.rs`), and a third one, empty, shows that the first was no recording.

mod refusal;
mod versions;

use std::{
    collections::{HashSet, VecDeque},
    io,
    net::SocketAddr,
    time::Duration,
};

use bytes::{Buf, BytesMut};
use membership_types::{Lineage, NodeId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use self::refusal::Told;
pub(crate) use self::{refusal::Refusal, versions::Versions};
use crate::{
    secret::{Credentials, Key, KeyId, Secret},
    session::{Agreeing, PROOF, Scratch, Session},
    start,
    tls::{Certified, Tls},
    wire::{self, Garbage, MAX_GREETING, shown},
};

const MAGIC: [u8; 7] = *b"PHALANX";
/// Of the head, and of how greetings are sealed. Whoever begins otherwise is not read any further; everything else is the
/// matter of the versions in the greetings.
const VERSION: u8 = 2;
/// Bytes of the magic word and the version; of the whole head.
const PREAMBLE: usize = 8;
const HEAD: usize = 19;
/// How long a refused connection is kept, so that the other side can read why.
const LINGER: Duration = Duration::from_millis(300);
/// Bytes of a handshake of TLS that are taken from a stranger.
const MAX_SHAKE: usize = 128 * 1024;
/// How many beginnings are remembered, so that they cannot be repeated at our cost.
const REMEMBERED: usize = 8192;

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
    /// The versions of the protocol that it speaks.
    #[serde(default = "Versions::before")]
    pub(crate) speaks: Versions,
}

#[cfg(test)]
impl Hello {
    /// What some node of cluster `c` says, in tests.
    pub(crate) fn sample(node: u32) -> Self {
        Self {
            cluster: "c".into(),
            node: NodeId::new(node, 1),
            name: "n".into(),
            addr: ([127, 0, 0, 1], 1).into(),
            lineage: None,
            near: None,
            bulk: false,
            speaks: Versions::OURS,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Greeting {
    Hello(Hello),
    Reject(String),
}

/// How the message after a head is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// As it is.
    Open = 0,
    /// Sealed with a key.
    Sealed = 1,
    /// There is none: the other side is refused, and the name of the key is a [`Told`].
    Refused = 2,
    /// Under TLS, which begins right after the head.
    Certified = 3,
}

impl Manner {
    const ALL: [Self; 4] = [Self::Open, Self::Sealed, Self::Refused, Self::Certified];
}

/// Whom we met on a connection.
pub(crate) struct Met {
    pub(crate) hello: Hello,
    /// How the rest of the connection is read and written.
    pub(crate) session: Session,
    /// What else came in.
    pub(crate) rest: BytesMut,
}

/// Beginnings of connections that were used already. Only who holds a key can add to it.
#[derive(Default)]
pub(crate) struct Seen {
    known: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

impl Seen {
    /// Is it new? The fresh key that it begins with makes each beginning different.
    pub(crate) fn note(&mut self, message: &[u8]) -> bool {
        let Some(fresh) = message.first_chunk::<32>() else { return false };
        if !self.known.insert(*fresh) {
            return false;
        }
        self.order.push_back(*fresh);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// Introduces us on a connection that we made.
pub(crate) async fn initiate<S>(stream: &mut S, me: &Hello, with: &Credentials) -> Result<Met, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = greeting(&Greeting::Hello(me.clone()));
    if let Credentials::Tls(tls) = with {
        return initiate_certified(stream, me, tls, &hello).await;
    }
    let Credentials::Secret(secret) = with else {
        stream.write_all(&message(Manner::Open, KeyId::NONE, &hello)).await?;
        let mut from = Reader { stream, came: BytesMut::new() };
        let size = from.answer(Manner::Open, KeyId::NONE, Refusal::SecretNeeded).await?;
        let hello = heard(me, &from.take(size).await?)?;
        return Ok(Met { hello, session: Session::Open, rest: from.came });
    };
    let key = secret.first();
    let (mut agreeing, first) = Agreeing::begin(key, &bound(key), &hello);
    stream.write_all(&message(Manner::Sealed, key.id(), &first)).await?;
    let mut from = Reader { stream, came: BytesMut::new() };
    let size = from.answer(Manner::Sealed, key.id(), Refusal::NoSecret).await?;
    let second = from.take(size).await?;
    let hello = heard(me, &agreeing.hear(&second).map_err(|_| Refusal::Unproved(key.id()))?)?;
    let mut session = agreeing.agreed();
    let mut proof = Scratch::default();
    session.seal_proof(&mut proof);
    from.stream.write_all(proof.bytes()).await?;
    Ok(Met { hello, session, rest: from.came })
}

async fn initiate_certified<S>(stream: &mut S, me: &Hello, tls: &Tls, hello: &[u8]) -> Result<Met, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut certified = tls.connect();
    let mut from = Reader { stream, came: BytesMut::new() };
    from.stream.write_all(&message(Manner::Certified, KeyId::NONE, &[])).await?;
    from.tell(&mut certified, &[]).await?;
    from.answer(Manner::Certified, KeyId::NONE, Refusal::Unlike).await?;
    from.shake(&mut certified).await?;
    from.tell(&mut certified, hello).await?;
    let hello = heard(me, &from.listen(&mut certified).await?)?;
    vouched(&certified, &hello)?;
    Ok(Met { hello, session: Session::Certified(certified.into()), rest: from.came })
}

/// Is the other side whom its certificate says?
fn vouched(certified: &Certified, hello: &Hello) -> Result<(), Refusal> {
    let name: String = hello.name.chars().take(128).collect();
    if !certified.vouches(&hello.name, hello.addr) {
        return Err(Refusal::NotItsOwn { name, addr: hello.addr.ip() });
    }
    // An id begins with its node's name, so nobody comes under the id of another name.
    if hello.node.node() == start::name_hash(&hello.name) { Ok(()) } else { Err(Refusal::NotItsId(name)) }
}

/// Answers an introduction on a connection that was made to us.
pub(crate) async fn respond<S>(
    stream: &mut S,
    me: &Hello,
    with: &Credentials,
    seen: &mut impl FnMut(&[u8]) -> bool,
) -> Result<Met, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut from = Reader { stream, came: BytesMut::new() };
    let outcome = from.respond(me, with, seen).await;
    if let Err(refusal) = &outcome
        && let Some(told) = refusal.told()
    {
        let mut code = KeyId::NONE;
        code.0[0] = told as u8;
        part(from.stream, &message(Manner::Refused, code, &[])).await;
    }
    let (hello, session) = outcome?;
    Ok(Met { hello, session, rest: from.came })
}

/// What comes in, and how far it was read.
struct Reader<'a, S> {
    stream: &'a mut S,
    came: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<'_, S> {
    async fn respond(
        &mut self,
        me: &Hello,
        with: &Credentials,
        seen: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<(Hello, Session), Refusal> {
        let (manner, id, size) = self.head().await?;
        match (manner, with) {
            (Manner::Open, Credentials::None) => {
                let hello = match heard(me, &self.take(size).await?) {
                    Ok(hello) => hello,
                    Err(refusal) => {
                        if let Some(why) = refusal.reason(me) {
                            let why = greeting(&Greeting::Reject(why));
                            part(self.stream, &message(Manner::Open, id, &why)).await;
                        }
                        return Err(refusal);
                    }
                };
                let own = greeting(&Greeting::Hello(me.clone()));
                self.stream.write_all(&message(Manner::Open, id, &own)).await?;
                Ok((hello, Session::Open))
            }
            (Manner::Sealed, Credentials::Secret(secret)) => {
                let first = self.take(size).await?;
                self.respond_sealed(me, secret, id, &first, seen).await
            }
            (Manner::Certified, Credentials::Tls(tls)) => self.respond_certified(me, tls).await,
            (Manner::Certified, _) | (Manner::Open | Manner::Sealed, Credentials::Tls(_)) => {
                Err(Refusal::Unlike)
            }
            (Manner::Open, Credentials::Secret(_)) => Err(Refusal::NoSecret),
            (Manner::Sealed, Credentials::None) => Err(Refusal::SecretNeeded),
            (Manner::Refused, _) => Err(Refusal::NotPhalanx),
        }
    }

    async fn respond_sealed(
        &mut self,
        me: &Hello,
        secret: &Secret,
        id: KeyId,
        first: &[u8],
        seen: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<(Hello, Session), Refusal> {
        let unknown = || Refusal::UnknownKey { theirs: id, ours: secret.ids() };
        let key = secret.find(id).ok_or_else(unknown)?;
        let (mut agreeing, payload) =
            Agreeing::answer(key, &bound(key), first).map_err(|_| Refusal::Unproved(id))?;
        if !seen(first) {
            return Err(Refusal::Replayed);
        }
        let hello = match heard(me, &payload) {
            Ok(hello) => hello,
            Err(refusal) => {
                if let Some(why) = refusal.reason(me) {
                    let second = agreeing.say(&greeting(&Greeting::Reject(why)));
                    part(self.stream, &message(Manner::Sealed, id, &second)).await;
                }
                return Err(refusal);
            }
        };
        let second = agreeing.say(&greeting(&Greeting::Hello(me.clone())));
        self.stream.write_all(&message(Manner::Sealed, id, &second)).await?;
        let mut session = agreeing.agreed();
        // A recording of the first message gets as far as this.
        if session.hear_proof(&self.take(PROOF).await?) {
            Ok((hello, session))
        } else {
            Err(Refusal::Unproved(id))
        }
    }

    async fn respond_certified(&mut self, me: &Hello, tls: &Tls) -> Result<(Hello, Session), Refusal> {
        self.stream.write_all(&message(Manner::Certified, KeyId::NONE, &[])).await?;
        let mut certified = tls.accept();
        self.shake(&mut certified).await?;
        let greeted = self.listen(&mut certified).await?;
        let judged = heard(me, &greeted).and_then(|hello| vouched(&certified, &hello).map(|()| hello));
        let hello = match judged {
            Ok(hello) => hello,
            Err(refusal) => {
                if let Some(why) = refusal.reason(me) {
                    let why = framed(&greeting(&Greeting::Reject(why)));
                    let mut out = Scratch::default();
                    certified.seal(&why, &mut out);
                    part(self.stream, out.bytes()).await;
                }
                return Err(refusal);
            }
        };
        self.tell(&mut certified, &greeting(&Greeting::Hello(me.clone()))).await?;
        Ok((hello, Session::Certified(certified.into())))
    }

    /// Carries the handshake of TLS out. If it fails, the other side is told as TLS does.
    async fn shake(&mut self, certified: &mut Certified) -> Result<(), Refusal> {
        let mut bytes = 0;
        while certified.is_handshaking() {
            let before = self.came.len();
            self.hear(certified).await?;
            self.tell(certified, &[]).await?;
            if !certified.is_handshaking() {
                break;
            }
            bytes += before;
            if bytes > MAX_SHAKE {
                return Err(Garbage::TooLarge { size: bytes, max: MAX_SHAKE }.into());
            }
            self.more().await?;
        }
        Ok(())
    }

    /// Takes in what came. What TLS has to say to that is its last word, if this fails.
    async fn hear(&mut self, certified: &mut Certified) -> Result<(), Refusal> {
        let Err(error) = certified.hear(&mut self.came) else { return Ok(()) };
        let mut out = Scratch::default();
        certified.seal(&[], &mut out);
        part(self.stream, out.bytes()).await;
        Err(error.into())
    }

    /// Writes what TLS has to say, and a greeting if there is one.
    async fn tell(&mut self, certified: &mut Certified, greeting: &[u8]) -> Result<(), Refusal> {
        let mut out = Scratch::default();
        let framed = if greeting.is_empty() { Vec::new() } else { framed(greeting) };
        certified.seal(&framed, &mut out);
        Ok(self.stream.write_all(out.bytes()).await?)
    }

    /// The greeting of the other side.
    async fn listen(&mut self, certified: &mut Certified) -> Result<BytesMut, Refusal> {
        loop {
            self.hear(certified).await?;
            let early = certified.early();
            if let Some(length) = early.first_chunk::<2>() {
                let size = usize::from(u16::from_be_bytes(*length));
                if size > MAX_GREETING {
                    return Err(Garbage::TooLarge { size, max: MAX_GREETING }.into());
                }
                if early.len() >= 2 + size {
                    early.advance(2);
                    return Ok(early.split_to(size));
                }
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), Refusal> {
        self.came.reserve(4096);
        if self.stream.read_buf(&mut self.came).await? == 0 { Err(Refusal::Closed) } else { Ok(()) }
    }

    /// Exactly so many bytes, which the caller has bounded.
    async fn take(&mut self, size: usize) -> Result<BytesMut, Refusal> {
        while self.came.len() < size {
            self.came.reserve(4096);
            if self.stream.read_buf(&mut self.came).await? == 0 {
                return Err(Refusal::Closed);
            }
        }
        Ok(self.came.split_to(size))
    }

    async fn head(&mut self) -> Result<(Manner, KeyId, usize), Refusal> {
        let preamble = self.take(PREAMBLE).await?;
        if preamble[..MAGIC.len()] != MAGIC {
            return Err(Refusal::NotPhalanx);
        }
        if preamble[MAGIC.len()] != VERSION {
            return Err(Refusal::Version(preamble[MAGIC.len()]));
        }
        let rest = self.take(HEAD - PREAMBLE).await?;
        let id = KeyId(*rest[1..].first_chunk().expect("a head is longer"));
        let size = usize::from(u16::from_be_bytes([rest[9], rest[10]]));
        let manner = Manner::ALL.into_iter().find(|m| *m as u8 == rest[0]);
        let manner = manner.ok_or(Refusal::NotPhalanx)?;
        if size > MAX_GREETING {
            return Err(Garbage::TooLarge { size, max: MAX_GREETING }.into());
        }
        Ok((manner, id, size))
    }

    /// The head of an answer in the same manner, or why there is none.
    async fn answer(&mut self, manner: Manner, id: KeyId, otherwise: Refusal) -> Result<usize, Refusal> {
        match self.head().await? {
            (Manner::Refused, KeyId([code, ..]), _) => {
                Err(Told::read(code).map_or(Refusal::NotPhalanx, Refusal::Told))
            }
            (theirs, as_id, size) if theirs == manner && as_id == id => Ok(size),
            _ => Err(otherwise),
        }
    }
}

/// What a greeting says, if the two belong together.
fn heard(me: &Hello, greeting: &[u8]) -> Result<Hello, Refusal> {
    let hello = match wire::decode(greeting)? {
        Greeting::Hello(hello) => hello,
        Greeting::Reject(why) => return Err(Refusal::Rejected(shown(&why))),
    };
    if hello.cluster != me.cluster {
        return Err(Refusal::Cluster(hello.cluster.chars().take(64).collect()));
    }
    if hello.node == me.node {
        return Err(Refusal::Myself);
    }
    if me.speaks.common(hello.speaks).is_none() {
        return Err(Refusal::Versions { theirs: hello.speaks, ours: me.speaks });
    }
    Ok(hello)
}

fn greeting(greeting: &Greeting) -> Vec<u8> {
    let bytes = rmp_serde::to_vec_named(greeting).expect("our own types encode");
    assert!(bytes.len() + 64 <= MAX_GREETING, "names are bounded where they come in");
    bytes
}

/// A greeting where TLS has no lengths.
fn framed(greeting: &[u8]) -> Vec<u8> {
    let size = u16::try_from(greeting.len()).expect("greetings are short");
    [&size.to_be_bytes(), greeting].concat()
}

/// A message after its head.
fn message(manner: Manner, id: KeyId, body: &[u8]) -> Vec<u8> {
    let size = u16::try_from(body.len()).expect("greetings are short");
    [&MAGIC[..], &[VERSION, manner as u8], &id.0, &size.to_be_bytes(), body].concat()
}

/// What is said in a handshake, for those who throw nonsense at it.
#[cfg(feature = "fuzz")]
pub(crate) mod said {
    use super::{AsyncRead, AsyncReadExt, Greeting, HEAD, Hello, Key, KeyId, Manner};

    pub(crate) fn hello(me: &Hello) -> Vec<u8> {
        super::greeting(&Greeting::Hello(me.clone()))
    }

    pub(crate) fn refusal(why: &str) -> Vec<u8> {
        super::greeting(&Greeting::Reject(why.into()))
    }

    /// A greeting with its head, as it is.
    pub(crate) fn open(greeting: &[u8]) -> Vec<u8> {
        super::message(Manner::Open, KeyId::NONE, greeting)
    }

    /// The head of a message that is sealed with this key, and the message.
    pub(crate) fn sealed(key: &Key, message: &[u8]) -> Vec<u8> {
        super::message(Manner::Sealed, key.id(), message)
    }

    /// A refusal without a message.
    pub(crate) fn refused(code: u8) -> Vec<u8> {
        super::message(Manner::Refused, KeyId([code, 0, 0, 0, 0, 0, 0, 0]), &[])
    }

    pub(crate) fn bound(key: &Key) -> Vec<u8> {
        super::bound(key)
    }

    /// The body of the next message; `None` if there is none.
    pub(crate) async fn next<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Vec<u8>> {
        let mut head = [0; HEAD];
        stream.read_exact(&mut head).await.ok()?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[HEAD - 2], head[HEAD - 1]]))];
        stream.read_exact(&mut body).await.ok()?;
        Some(body)
    }
}

/// What both sides must have seen alike for anything sealed to open.
fn bound(key: &Key) -> Vec<u8> {
    [&MAGIC[..], &[VERSION, Manner::Sealed as u8], &key.id().0].concat()
}

/// Says the last word, and waits a moment for the other side to read it: closing with unread bytes would destroy it.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, word: &[u8]) {
    let told = async {
        stream.write_all(word).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    // Whether it arrives is up to the other side.
    let _told = tokio::time::timeout(LINGER, told).await;
}

#[cfg(test)]
mod tests;
