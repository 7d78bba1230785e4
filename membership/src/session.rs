//! What travels on a connection between two nodes that know each other: bytes as they are, or sealed in records.
//!
//! A record is a length of two bytes, most significant first, then so many bytes: what was sealed, and a tag of 16 bytes.
//! Each side numbers its records and uses each number once, in order; so a record that is changed, repeated, left out or moved
//! does not open. Nothing here waits or reads a clock.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use membership_types::Instant;
use snow::{Builder, HandshakeState, TransportState};

use crate::{metrics::Counts, secret::Key, tls::Certified};

/// Both prove that they hold the key (`psk0`: from the first byte on, before any costly step), and agree on fresh ones, so
/// that old recordings stay closed if the key becomes known. AES-GCM because processors have it: here it seals large records
/// five times as fast as ChaChaPoly.
const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
/// Bytes of a record's length, of its tag, and of the longest record.
const LENGTH: usize = 2;
const TAG: usize = 16;
/// Bytes of a record without content.
pub(crate) const PROOF: usize = LENGTH + TAG;
const LONGEST: usize = 65535;
/// After so many records (4 GiB at most) a key is replaced by one that follows from it: AES-GCM must not see too much.
pub(crate) const REKEY: u64 = 1 << 16;
/// So many corrupt records close the connection. Fewer may be somebody's who cannot do more than add to a stream.
pub(crate) const CORRUPT: u8 = 3;
/// Bytes that do not become a good record within this time close the connection.
pub(crate) const STALLED: Duration = Duration::from_secs(3);
/// How many tags are remembered, so that a repeated record is counted as such.
const TAGS: usize = 16;

/// A connection is closed because of what came in on it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Corrupt {
    #[error("{CORRUPT} records of it did not open: somebody between the two nodes changes or repeats them")]
    Records,
    #[error("what came in made no good record for {STALLED:?}")]
    Stalled,
    #[error("what came in is no good record: {0}")]
    Tls(String),
}

/// How bytes travel on one connection.
pub(crate) enum Session {
    Open,
    Sealed(Box<Sealed>),
    Certified(Box<Certified>),
}

pub(crate) struct Sealed {
    noise: TransportState,
    sent: u64,
    received: u64,
    tags: [[u8; TAG]; TAGS],
    corrupt: u8,
    /// Since when what came in is no good record.
    since: Option<Instant>,
}

/// Room beyond this is given back.
const KEPT: usize = 512 * 1024;

/// Bytes that are about to be written; the room is used again and again.
#[derive(Default)]
pub(crate) struct Scratch {
    buffer: Vec<u8>,
    end: usize,
}

impl Scratch {
    fn room(&mut self, size: usize) -> &mut [u8] {
        if self.buffer.len() < self.end + size {
            self.buffer.resize(self.end + size, 0);
        }
        &mut self.buffer[self.end..self.end + size]
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.end]
    }

    pub(crate) fn clear(&mut self) {
        self.end = 0;
        if self.buffer.len() > KEPT {
            self.buffer = Vec::new();
        }
    }
}

impl Session {
    fn sealed(noise: TransportState) -> Self {
        Self::Sealed(Box::new(Sealed {
            noise,
            sent: 0,
            received: 0,
            tags: [[0; TAG]; TAGS],
            corrupt: 0,
            since: None,
        }))
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// Adds the records that carry these bytes.
    pub(crate) fn seal(&mut self, plain: &[u8], out: &mut Scratch) {
        match self {
            Self::Open => out.extend(plain),
            Self::Certified(certified) => certified.seal(plain, out),
            Self::Sealed(sealed) => {
                for part in plain.chunks(LONGEST - TAG) {
                    sealed.seal(part, out);
                }
            }
        }
    }

    /// Adds a record without content: it proves that this side holds the keys of this very session.
    pub(crate) fn seal_proof(&mut self, out: &mut Scratch) {
        if let Self::Sealed(sealed) = self {
            sealed.seal(&[], out);
        }
    }

    /// Opens whole records, and adds what was in them to `plain`.
    pub(crate) fn open(
        &mut self,
        now: Instant,
        came: &mut BytesMut,
        plain: &mut BytesMut,
        counts: &Counts,
    ) -> Result<(), Corrupt> {
        match self {
            Self::Open if came.is_empty() => {}
            Self::Open if plain.is_empty() => std::mem::swap(came, plain),
            Self::Open => {
                plain.extend_from_slice(came);
                came.clear();
            }
            Self::Sealed(sealed) => sealed.open(now, came, plain, counts)?,
            Self::Certified(certified) => {
                let opened = certified.open(now, came, plain);
                if matches!(opened, Err(Corrupt::Tls(_))) {
                    counts.corrupt.inc();
                }
                opened?;
            }
        }
        Ok(())
    }

    /// Is this the record of [`Session::seal_proof`] of the other side?
    pub(crate) fn hear_proof(&mut self, record: &[u8]) -> bool {
        let Self::Sealed(sealed) = self else { return false };
        let Some((length, record)) = record.split_first_chunk::<LENGTH>() else { return false };
        let fits = *length == [0, 16] && sealed.noise.read_message(record, &mut [0; TAG]) == Ok(0);
        sealed.received += u64::from(fits);
        fits
    }

    /// Records sent so far, for those who meddle with them.
    #[cfg(feature = "fuzz")]
    pub(crate) fn sent(&self) -> u64 {
        if let Self::Sealed(sealed) = self { sealed.sent } else { 0 }
    }

    /// Expects this record next, as if nothing had come in, for the same. The keys are those of now.
    #[cfg(feature = "fuzz")]
    pub(crate) fn expect(&mut self, next: u64) {
        if let Self::Sealed(sealed) = self {
            sealed.noise.set_receiving_nonce(next);
            (sealed.received, sealed.corrupt, sealed.since) = (next, 0, None);
            sealed.tags = [[0; TAG]; TAGS];
        }
    }

    /// Forgets what was corrupt, for the same.
    #[cfg(feature = "fuzz")]
    pub(crate) fn forgive(&mut self) {
        if let Self::Sealed(sealed) = self {
            (sealed.corrupt, sealed.since) = (0, None);
        }
    }

    /// How long to wait for more bytes, if not for ever.
    pub(crate) fn patience(&self, now: Instant) -> Option<Duration> {
        match self {
            Self::Open => None,
            Self::Sealed(sealed) => sealed.since.map(|since| since.after(STALLED) - now),
            Self::Certified(certified) => certified.since().map(|since| since.after(STALLED) - now),
        }
    }
}

impl Sealed {
    fn seal(&mut self, part: &[u8], out: &mut Scratch) {
        let size = part.len() + TAG;
        let room = out.room(LENGTH + size);
        let (length, record) = room.split_at_mut(LENGTH);
        length.copy_from_slice(&u16::try_from(size).expect("parts are short enough").to_be_bytes());
        let written = self.noise.write_message(part, record);
        assert_eq!(written.ok(), Some(size), "fewer than 2^64 records, each of a fitting size");
        out.end += LENGTH + size;
        self.sent += 1;
        if self.sent.is_multiple_of(REKEY) {
            self.noise.rekey_outgoing();
        }
    }

    fn open(
        &mut self,
        now: Instant,
        came: &mut BytesMut,
        plain: &mut BytesMut,
        counts: &Counts,
    ) -> Result<(), Corrupt> {
        // Once for all: records that come together would make it grow again and again.
        plain.reserve(came.len());
        while let Some(length) = came.first_chunk::<LENGTH>() {
            let size = usize::from(u16::from_be_bytes(*length));
            let Some(record) = came.get(LENGTH..LENGTH + size) else { break };
            let at = plain.len();
            plain.resize(at + size, 0);
            match self.noise.read_message(record, &mut plain[at..]) {
                Ok(opened) => {
                    plain.truncate(at + opened);
                    let slot = usize::try_from(self.received).unwrap_or(0) % TAGS;
                    self.tags[slot] = *record.last_chunk().expect("it opened, so it has a tag");
                    self.received += 1;
                    self.since = None;
                    if self.received.is_multiple_of(REKEY) {
                        self.noise.rekey_incoming();
                    }
                }
                Err(_) => {
                    plain.truncate(at);
                    // The number that is expected does not change: the right record still opens, if it is yet to come.
                    let repeated = record.last_chunk().is_some_and(|tag| self.tags.contains(tag));
                    if repeated {
                        counts.replays.inc()
                    } else {
                        counts.corrupt.inc()
                    };
                    self.since.get_or_insert(now);
                    self.corrupt += 1;
                    if self.corrupt == CORRUPT {
                        return Err(Corrupt::Records);
                    }
                }
            }
            came.advance(LENGTH + size);
        }
        if !came.is_empty() {
            self.since.get_or_insert(now);
        } else if self.corrupt == 0 {
            self.since = None;
        }
        match self.since {
            Some(since) if now - since >= STALLED => Err(Corrupt::Stalled),
            _ => Ok(()),
        }
    }
}

/// A session that is being agreed on.
pub(crate) struct Agreeing(HandshakeState);

/// What came in was not made with the key.
#[derive(Debug)]
pub(crate) struct Unproved;

impl Agreeing {
    /// Begins as the side that connected. Gives the first message too, which carries `payload`. Both messages, and every record
    /// after them, only open for who saw the same `head`.
    pub(crate) fn begin(key: &Key, head: &[u8], payload: &[u8]) -> (Self, Vec<u8>) {
        let state = builder(key, head).build_initiator().expect("the pattern needs nothing but the key");
        let mut this = Self(state);
        let message = this.say(payload);
        (this, message)
    }

    /// Begins as the other side, with the first message. Gives what it carries; anybody may have recorded and repeated it, so it
    /// is not to be acted on before the session has proved itself. Costs no curve operation.
    pub(crate) fn answer(key: &Key, head: &[u8], message: &[u8]) -> Result<(Self, Vec<u8>), Unproved> {
        let state = builder(key, head).build_responder().expect("the pattern needs nothing but the key");
        let mut this = Self(state);
        let payload = this.hear(message)?;
        Ok((this, payload))
    }

    /// The next message, with what it carries.
    pub(crate) fn say(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut message = vec![0; payload.len() + 64];
        let size =
            self.0.write_message(payload, &mut message).expect("it is our turn, and payloads are short");
        message.truncate(size);
        message
    }

    pub(crate) fn hear(&mut self, message: &[u8]) -> Result<Vec<u8>, Unproved> {
        let mut payload = vec![0; message.len()];
        let size = self.0.read_message(message, &mut payload).map_err(|_| Unproved)?;
        payload.truncate(size);
        Ok(payload)
    }

    /// After both messages.
    pub(crate) fn agreed(self) -> Session {
        Session::sealed(self.0.into_transport_mode().expect("both messages were exchanged"))
    }
}

fn builder<'a>(key: &'a Key, head: &'a [u8]) -> Builder<'a> {
    let pattern = PATTERN.parse().expect("it is a known pattern");
    let builder = Builder::new(pattern).psk(0, key.bytes()).and_then(|builder| builder.prologue(head));
    builder.expect("each is given once")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, secret::Secret};

    fn key(byte: u8) -> Secret {
        let text: String = (0..32_u8).map(|n| format!("{:02x}", n ^ byte)).collect();
        text.parse().expect("a key")
    }

    /// Both sides of a session.
    fn pair() -> (Session, Session) {
        let key = key(0);
        let (mut one, message) = Agreeing::begin(key.first(), b"head", b"hello");
        let (mut two, payload) = Agreeing::answer(key.first(), b"head", &message).expect("the same key");
        assert_eq!(payload, b"hello");
        let message = two.say(b"welcome");
        assert_eq!(one.hear(&message).expect("the same key"), b"welcome");
        (one.agreed(), two.agreed())
    }

    fn sealed(session: &mut Session, plain: &[u8]) -> Vec<u8> {
        let mut out = Scratch::default();
        session.seal(plain, &mut out);
        out.bytes().to_vec()
    }

    /// What comes out of these bytes, which may be cut.
    fn opened(session: &mut Session, bytes: &[u8], counts: &Counts) -> Result<Vec<u8>, Corrupt> {
        let (mut came, mut plain) = (BytesMut::from(bytes), BytesMut::new());
        session.open(clock::now(), &mut came, &mut plain, counts).map(|()| plain.to_vec())
    }

    #[test]
    fn what_is_sealed_opens_at_the_other_side_however_it_is_cut() {
        let counts = Counts::default();
        let (mut one, mut two) = pair();
        let long: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let bytes = [sealed(&mut one, b"short"), sealed(&mut one, &long)].concat();
        let (mut came, mut plain) = (BytesMut::new(), BytesMut::new());
        for part in bytes.chunks(7001) {
            came.extend_from_slice(part);
            two.open(clock::now(), &mut came, &mut plain, &counts).expect("right");
        }
        assert_eq!(plain, [b"short", &long[..]].concat());
        assert_eq!(two.patience(clock::now()), None);
        assert_eq!(opened(&mut one, &sealed(&mut two, b"and back"), &counts).expect("right"), b"and back");
    }

    #[test]
    fn no_bit_of_a_record_can_be_changed() {
        let (mut one, mut two) = pair();
        let counts = Counts::default();
        let record = sealed(&mut one, b"a heartbeat");
        for bit in 8 * LENGTH..8 * record.len() {
            let mut changed = record.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let Session::Sealed(inner) = &mut two else { panic!("sealed") };
            inner.corrupt = 0;
            assert_eq!(opened(&mut two, &changed, &counts).expect("the first one"), b"", "bit {bit}");
        }
        assert_eq!(counts.corrupt.get(), 8 * (record.len() - LENGTH) as u64);
        assert_eq!(opened(&mut two, &record, &counts).expect("it has not come yet"), b"a heartbeat");
    }

    #[test]
    fn repeated_and_foreign_records_change_nothing_and_the_third_ends_it() {
        let (mut one, mut two) = pair();
        let (mut stranger, _) = pair();
        let counts = Counts::default();
        let (first, second) = (sealed(&mut one, b"1"), sealed(&mut one, b"2"));
        assert_eq!(opened(&mut two, &first, &counts).expect("right"), b"1");
        assert_eq!(opened(&mut two, &first, &counts).expect("counted"), b"");
        assert_eq!(opened(&mut two, &sealed(&mut stranger, b"2"), &counts).expect("counted"), b"");
        assert_eq!(opened(&mut two, &second, &counts).expect("still right"), b"2");
        // What one side sent is nothing that it could have got.
        assert_eq!(opened(&mut two, &first, &counts), Err(Corrupt::Records));
        assert_eq!((counts.replays.get(), counts.corrupt.get()), (2, 1));
        let mirrored = sealed(&mut one, b"3");
        assert_eq!(opened(&mut one, &mirrored, &counts).expect("counted"), b"");
    }

    #[test]
    fn records_out_of_order_or_left_out_do_not_open() {
        let (mut one, mut two) = pair();
        let counts = Counts::default();
        let (_lost, second) = (sealed(&mut one, b"1"), sealed(&mut one, b"2"));
        for _ in 1..CORRUPT {
            assert_eq!(opened(&mut two, &second, &counts).expect("counted"), b"");
        }
        assert_eq!(opened(&mut two, &second, &counts), Err(Corrupt::Records));
    }

    #[test]
    fn a_record_that_does_not_end_is_not_waited_for_for_ever() {
        // A length that somebody made longer must not silence a connection.
        let (mut one, mut two) = pair();
        let counts = Counts::default();
        let mut record = sealed(&mut one, b"x");
        record[0] = 0xff;
        let (mut came, mut plain) = (BytesMut::from(&record[..]), BytesMut::new());
        let begin = clock::now();
        assert_eq!(two.open(begin, &mut came, &mut plain, &counts), Ok(()));
        assert_eq!(two.patience(begin), Some(STALLED));
        let later = begin.after(STALLED);
        assert_eq!(two.open(later, &mut came, &mut plain, &counts), Err(Corrupt::Stalled));
    }

    #[test]
    fn keys_are_replaced_as_records_go_by() {
        let (mut one, mut two) = pair();
        let counts = Counts::default();
        for n in 0..2 * REKEY + 2 {
            let record = sealed(&mut one, &n.to_be_bytes());
            assert_eq!(opened(&mut two, &record, &counts).expect("right"), n.to_be_bytes());
        }
    }

    #[test]
    fn another_key_or_another_beginning_proves_nothing() {
        let (right, wrong) = (key(0), key(1));
        let (_, message) = Agreeing::begin(wrong.first(), b"head", b"hello");
        assert!(Agreeing::answer(right.first(), b"head", &message).is_err());
        let (mut one, message) = Agreeing::begin(right.first(), b"head", b"hello");
        assert!(Agreeing::answer(right.first(), b"tail", &message).is_err());
        for bit in 0..8 * message.len() {
            let mut changed = message.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Agreeing::answer(right.first(), b"head", &changed).is_err(), "bit {bit}");
        }
        // Who answers must hold the key too.
        let (_, own) = Agreeing::begin(wrong.first(), b"head", b"hello");
        let (mut two, _) = Agreeing::answer(wrong.first(), b"head", &own).expect("its own key");
        assert!(one.hear(&two.say(b"welcome")).is_err());
    }

    #[test]
    fn a_hundred_thousand_forgeries_open_nothing_and_cost_little() {
        let (_, mut two) = pair();
        let (counts, right) = (Counts::default(), key(0));
        let mut rng = membership_types::Rng::seeded(7);
        let begin = std::time::Instant::now();
        for n in 0..100_000_u32 {
            let mut bytes: Vec<u8> = (0..rng.below(120)).map(|_| rng.next_u64() as u8).collect();
            if n % 2 == 0 {
                assert!(Agreeing::answer(right.first(), b"head", &bytes).is_err());
                continue;
            }
            let size = u16::try_from(bytes.len()).expect("short").to_be_bytes();
            bytes.splice(0..0, size);
            let Session::Sealed(inner) = &mut two else { panic!("sealed") };
            (inner.corrupt, inner.since) = (0, None);
            assert_eq!(opened(&mut two, &bytes, &counts).expect("counted"), b"");
        }
        assert_eq!(counts.corrupt.get(), 50_000);
        // A second or so; the limit allows for a debug build on a busy machine.
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    }
}
