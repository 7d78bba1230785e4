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
mod tests {
    use super::*;
    use crate::metrics::Counts;

    fn hello(cluster: &str, inc: u64) -> Hello {
        Hello { cluster: cluster.into(), node: NodeId::new(1, inc), ..Hello::sample(1) }
    }

    type Outcome = Result<Met, Refusal>;

    async fn meet(a: (&Hello, &Credentials), b: (&Hello, &Credentials)) -> (Outcome, Outcome) {
        let (mut left, mut right) = tokio::io::duplex(64);
        let mut new = |_: &[u8]| true;
        tokio::join!(initiate(&mut left, a.0, a.1), respond(&mut right, b.0, b.1, &mut new))
    }

    async fn in_the_open(a: &Hello, b: &Hello) -> (Outcome, Outcome) {
        meet((a, &Credentials::None), (b, &Credentials::None)).await
    }

    /// Lets a node answer these bytes, after which nothing comes. Gives what it answered, and what it made of them.
    async fn answer(bytes: &[u8], with: &Credentials, seen: &mut Seen) -> (Vec<u8>, Refusal) {
        let (mut left, mut right) = tokio::io::duplex(1 << 16);
        left.write_all(bytes).await.expect("room");
        left.shutdown().await.expect("open");
        let outcome = respond(&mut right, &hello("c", 1), with, &mut |first| seen.note(first)).await;
        drop(right);
        let mut answer = Vec::new();
        left.read_to_end(&mut answer).await.expect("it is closed");
        (answer, why(outcome))
    }

    fn why(outcome: Outcome) -> Refusal {
        match outcome {
            Ok(met) => panic!("met {:?}", met.hello),
            Err(refusal) => refusal,
        }
    }

    fn keys(texts: &[u8]) -> Credentials {
        let line = |byte: &u8| (0..32_u8).map(|n| format!("{:02x}", n ^ byte)).collect::<String>() + "\n";
        Credentials::Secret(texts.iter().map(line).collect::<String>().parse().expect("keys"))
    }

    #[tokio::test]
    async fn two_nodes_of_a_cluster_learn_who_the_other_is() {
        let (a, b) = (hello("c", 1), hello("c", 2));
        for with in [Credentials::None, keys(&[1])] {
            let (one, two) = meet((&a, &with), (&b, &with)).await;
            let (one, two) = (one.expect("met"), two.expect("met"));
            assert_eq!((&one.hello, &two.hello), (&b, &a));
            assert_eq!(one.session.is_open(), matches!(with, Credentials::None));
            assert_eq!(one.session.is_open(), two.session.is_open());
        }
    }

    #[tokio::test]
    async fn another_cluster_is_refused_and_both_sides_know_why() {
        for with in [Credentials::None, keys(&[1])] {
            let (one, two) = meet((&hello("mine", 1), &with), (&hello("yours", 2), &with)).await;
            let (one, two) = (why(one), why(two));
            assert!(one.is_reject() && two.is_reject());
            let (one, two) = (one.to_string(), two.to_string());
            assert!(one.contains("yours") && one.contains("mine"), "{one}");
            assert!(two.contains("mine"), "{two}");
        }
    }

    #[tokio::test]
    async fn a_node_that_meets_itself_notices() {
        let (one, two) = in_the_open(&hello("c", 1), &hello("c", 1)).await;
        assert!(matches!(why(two), Refusal::Myself) && matches!(why(one), Refusal::Rejected(_)));
    }

    #[tokio::test]
    async fn who_lacks_the_key_is_refused_and_both_sides_know_why() {
        let (a, b) = (hello("c", 1), hello("c", 2));
        let cases = [
            (Credentials::None, keys(&[1]), "it requires a secret", "the other side has no secret"),
            (keys(&[1]), Credentials::None, "it has no secret", "this node has none"),
            (keys(&[1]), keys(&[2]), "does not have the key", "give both the same"),
            // Whoever connects uses its first key.
            (keys(&[1, 2]), keys(&[2]), "does not have the key", "give both the same"),
        ];
        for (with_a, with_b, why_a, why_b) in cases {
            let counts = Counts::default();
            let (one, two) = meet((&a, &with_a), (&b, &with_b)).await;
            for (outcome, expected) in [(one, why_a), (two, why_b)] {
                let refusal = why(outcome);
                refusal.count(&counts);
                assert!(refusal.is_reject() && refusal.to_string().contains(expected), "{refusal}");
            }
            assert_eq!(counts.unauthenticated.get(), 2);
        }
        // While a key is replaced, both old and new nodes are met.
        for (with_a, with_b) in [(keys(&[1]), keys(&[1, 2])), (keys(&[2, 1]), keys(&[1, 2]))] {
            let (one, two) = meet((&a, &with_a), (&b, &with_b)).await;
            assert!(one.is_ok() && two.is_ok());
        }
    }

    #[tokio::test]
    async fn a_recorded_introduction_gets_nobody_in() {
        // All that a node sent to another one is said again by somebody who does not hold the key.
        let with = keys(&[1]);
        let Credentials::Secret(secret) = &with else { panic!("just made") };
        let key = secret.first();
        let (_, first) = Agreeing::begin(key, &bound(key), &greeting(&Greeting::Hello(hello("c", 2))));
        let recorded = message(Manner::Sealed, key.id(), &first);
        let mut seen = Seen::default();
        let (reply, refusal) = answer(&[&recorded[..], &[0, 16], &[7; 16]].concat(), &with, &mut seen).await;
        assert!(matches!(refusal, Refusal::Unproved(_)), "{refusal}");
        assert!(reply.starts_with(b"PHALANX\x02\x01"), "it is answered once, and cannot read the answer");
        let (reply, refusal) = answer(&recorded, &with, &mut seen).await;
        assert!(matches!(refusal, Refusal::Replayed) && reply.is_empty(), "{refusal}");
        let counts = Counts::default();
        refusal.count(&counts);
        assert_eq!(counts.replays.get(), 1);
    }

    #[tokio::test]
    async fn whatever_is_cut_short_or_changed_gets_nobody_in() {
        let with = keys(&[1]);
        let Credentials::Secret(secret) = &with else { panic!("just made") };
        let key = secret.first();
        let (_, first) = Agreeing::begin(key, &bound(key), &greeting(&Greeting::Hello(hello("c", 2))));
        let right = message(Manner::Sealed, key.id(), &first);
        let mut seen = Seen::default();
        for size in 0..right.len() {
            let (reply, refusal) = answer(&right[..size], &with, &mut seen).await;
            assert!(matches!(refusal, Refusal::Closed) && reply.is_empty(), "{size}: {refusal}");
        }
        for at in 0..right.len() {
            let mut changed = right.clone();
            changed[at] ^= 1;
            let (reply, _refused) = answer(&changed, &with, &mut seen).await;
            assert!(reply.len() <= HEAD, "nothing but a reason: {reply:?}");
        }
        assert!(seen.order.is_empty(), "strangers are not remembered");
    }

    #[tokio::test]
    async fn two_builds_use_the_highest_version_that_both_speak() {
        let speaks = |node, min, max| Hello { speaks: Versions { min, max }, ..hello("c", node) };
        for with in [Credentials::None, keys(&[1])] {
            for (a, b, common) in [((2, 3), (3, 7), 3), ((2, 9), (1, 4), 4), ((5, 5), (2, 9), 5)] {
                let (a, b) = (speaks(1, a.0, a.1), speaks(2, b.0, b.1));
                let (one, two) = meet((&a, &with), (&b, &with)).await;
                let (one, two) = (one.expect("met"), two.expect("met"));
                assert_eq!(
                    (a.speaks.common(one.hello.speaks), b.speaks.common(two.hello.speaks)),
                    (Some(common), Some(common))
                );
            }
        }
    }

    #[tokio::test]
    async fn builds_without_a_common_version_part_and_both_say_which_is_too_old() {
        let (ours, beyond) = (Versions::OURS, Versions::OURS.max + 1);
        let theirs = Versions { min: beyond, max: beyond + 2 };
        let (old, new) = (hello("c", 1), Hello { speaks: theirs, ..hello("c", 2) });
        for with in [Credentials::None, keys(&[1])] {
            for (a, b) in [(&old, &new), (&new, &old)] {
                let (one, two) = meet((a, &with), (b, &with)).await;
                for (outcome, me) in [(one, a), (two, b)] {
                    let refusal = why(outcome);
                    let older = if me.node == old.node { "start this node" } else { "start the other side" };
                    let text = refusal.to_string();
                    assert!(refusal.is_reject() && text.contains(older), "{text}");
                    let both = [ours, theirs].map(|versions| versions.to_string());
                    assert!(both.iter().all(|versions| text.contains(versions)), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_greeting_from_before_ranges_is_one_of_version_two() {
        // As the builds before wrote it; what is new in ours they skip, as we skip what is new in others'.
        #[derive(Serialize)]
        struct Before {
            cluster: String,
            node: NodeId,
            name: String,
            addr: SocketAddr,
            lineage: Option<Lineage>,
            near: Option<String>,
            of_tomorrow: [u8; 3],
        }
        let Hello { cluster, node, name, addr, lineage, near, .. } = hello("c", 2);
        let before = Before { cluster, node, name, addr, lineage, near, of_tomorrow: [1, 2, 3] };
        let bytes = rmp_serde::to_vec_named(&before).expect("encodes");
        let read: Hello = wire::decode(&bytes).expect("decodes");
        assert_eq!((read.speaks, read.speaks.common(Versions::OURS)), (Versions::before(), Some(2)));
    }

    #[tokio::test]
    async fn another_version_and_other_protocols_are_told_apart() {
        let mut seen = Seen::default();
        let (reply, refusal) = answer(b"PHALANX\x09", &Credentials::None, &mut seen).await;
        assert!(refusal.to_string().contains("version 9"), "{refusal}");
        assert!(reply.starts_with(b"PHALANX\x02") && reply.len() == HEAD, "it learns which one: {reply:?}");
        let (reply, refusal) = answer(b"GET / HTTP/1.1\r\n", &Credentials::None, &mut seen).await;
        assert!(refusal.to_string().contains("does not speak") && reply.is_empty(), "{refusal}");
    }

    #[tokio::test]
    async fn a_greeting_beyond_the_limit_of_strangers_is_refused() {
        let mut bytes = b"PHALANX\x02\x00........".to_vec();
        bytes.extend_from_slice(&(MAX_GREETING as u16 + 1).to_be_bytes());
        for with in [Credentials::None, keys(&[1])] {
            let (_, refusal) = answer(&bytes, &with, &mut Seen::default()).await;
            assert_eq!(refusal.kind(), "garbage", "{refusal}");
        }
    }

    #[test]
    fn beginnings_are_remembered_for_a_while_and_in_little_memory() {
        let mut seen = Seen::default();
        let begin = |n: usize| [&n.to_be_bytes()[..], &[0; 56]].concat();
        for n in 0..=REMEMBERED {
            assert!(seen.note(&begin(n)));
        }
        assert!(!seen.note(&begin(REMEMBERED)) && !seen.note(&begin(1)) && seen.note(&begin(0)));
        assert_eq!((seen.order.len(), seen.known.len()), (REMEMBERED, REMEMBERED));
    }
}
