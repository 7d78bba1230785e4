//! Messages as they go on, and what a router or a server says in its own name.

use alloc::vec::Vec;
use core::{fmt, str};

use super::{
    scan::{FrameError, NIL, skip},
    value::{Head, Kind},
};

/// The fifth element of a request: what a client, or a router, lets the server know. A map; what is not known of it is passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp<'a> {
    /// `deadline_ms`: how long the answer is waited for, from now on. A server that cannot make it should not begin.
    pub deadline_ms: Option<u32>,
    /// `epoch`: the view of the partition's RACS by which the request was routed.
    pub epoch: Option<u64>,
    /// `partition`: the partition of its key.
    pub partition: Option<&'a str>,
    /// `update`: whether it was routed as one that may change data.
    pub update: Option<bool>,
}

impl<'a> Stamp<'a> {
    /// Reads a fifth element; nothing is known if there is none.
    ///
    /// # Errors
    /// [`FrameError::Stamp`] if it is not such a map, or has one of these twice.
    pub fn read(input: &'a [u8]) -> Result<Self, FrameError> {
        let mut stamp = Self::default();
        if input.is_empty() {
            return Ok(stamp);
        }
        let end = entries(input, |name, kind, text| {
            match (name, kind) {
                (b"deadline_ms", Kind::Uint(ms)) if stamp.deadline_ms.is_none() => {
                    stamp.deadline_ms = Some(u32::try_from(ms).unwrap_or(u32::MAX));
                }
                (b"epoch", Kind::Uint(epoch)) if stamp.epoch.is_none() => stamp.epoch = Some(epoch),
                (b"partition", Kind::Str) if stamp.partition.is_none() => {
                    stamp.partition = Some(str::from_utf8(text).ok()?);
                }
                (b"update", Kind::Bool(update)) if stamp.update.is_none() => stamp.update = Some(update),
                (b"deadline_ms" | b"epoch" | b"partition" | b"update", _) => return None,
                _ => {}
            }
            Some(())
        });
        if end == Some(input.len()) { Ok(stamp) } else { Err(FrameError::Stamp) }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let at = out.len();
        out.push(0x80);
        let entry = |out: &mut Vec<u8>, name: &str| {
            out[at] += 1;
            push_str(out, name);
        };
        if let Some(ms) = self.deadline_ms {
            entry(out, "deadline_ms");
            push_uint(out, ms.into());
        }
        if let Some(epoch) = self.epoch {
            entry(out, "epoch");
            push_uint(out, epoch);
        }
        if let Some(partition) = self.partition {
            entry(out, "partition");
            push_str(out, partition);
        }
        if let Some(update) = self.update {
            entry(out, "update");
            out.push(0xc2 + u8::from(update));
        }
    }
}

/// Walks over a map whose keys are texts. `each` is given the key, what the value is, and its bytes if it is text, and ends the
/// walk with `None`. Returns where the map ends.
fn entries<'a>(
    input: &'a [u8],
    mut each: impl FnMut(&'a [u8], Kind, &'a [u8]) -> Option<()>,
) -> Option<usize> {
    let mut at = 0;
    let mut next = |whole: bool| {
        let head = Head::read(input.get(at..)?).ok()??;
        let payload = at + head.size;
        at = if whole { skip(input, at)? } else { payload };
        Some((head.kind, input.get(payload..at)?))
    };
    let (Kind::Map(pairs), _) = next(false)? else { return None };
    for _ in 0..pairs {
        let (Kind::Str, name) = next(true)? else { return None };
        let (kind, value) = next(true)?;
        each(name, kind, value)?;
    }
    Some(at)
}

/// What a router or a server says about a request that has no result: the word under `phalanx` in the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request cannot be routed as it is: it is malformed, or has no key. Nothing was done.
    Refused,
    /// Nobody may answer it now. Nothing was done.
    Unavailable,
    /// An update's server failed, or was too slow: it may have been carried out, or not.
    Unknown,
    /// The time was over before an answer came, and nothing was changed: it was a read, or was never sent.
    Late,
    /// A server that does not lead was asked for an update. Nothing was done.
    NotLeader,
    /// A server has as much to do as it takes. Nothing was done.
    Busy,
    /// A server is about to end. Nothing was done.
    Stopping,
}

impl Verdict {
    const ALL: [Self; 7] = [
        Self::Refused,
        Self::Unavailable,
        Self::Unknown,
        Self::Late,
        Self::NotLeader,
        Self::Busy,
        Self::Stopping,
    ];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
            Self::Late => "late",
            Self::NotLeader => "not-leader",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
        }
    }

    /// Whether the same request may be sent again as it is.
    pub const fn retry(self) -> bool {
        !matches!(self, Self::Refused | Self::Unknown)
    }
}

/// An error in the name of a router or a server: `{phalanx, error, service, partition, retry}`, and what a server knows of who
/// leads: `epoch` and `leader`.
#[derive(Clone, Copy)]
pub struct Complaint<'a> {
    /// What it amounts to.
    pub verdict: Verdict,
    /// What is wrong, and what would be right.
    pub error: &'a dyn fmt::Display,
    /// The service.
    pub service: Option<&'a str>,
    /// The partition, if the request came so far.
    pub partition: Option<&'a dyn fmt::Display>,
    /// The view that the server goes by.
    pub epoch: Option<u64>,
    /// Where it thinks the leader listens.
    pub leader: Option<&'a dyn fmt::Display>,
}

impl Complaint<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(0x85 + u8::from(self.epoch.is_some()) + u8::from(self.leader.is_some()));
        push_str(out, "phalanx");
        push_str(out, self.verdict.word());
        push_str(out, "error");
        push_text(out, self.error);
        push_str(out, "service");
        match self.service {
            Some(service) => push_str(out, service),
            None => out.push(NIL),
        }
        push_str(out, "partition");
        match self.partition {
            Some(partition) => push_text(out, partition),
            None => out.push(NIL),
        }
        push_str(out, "retry");
        out.push(0xc2 + u8::from(self.verdict.retry()));
        if let Some(epoch) = self.epoch {
            push_str(out, "epoch");
            push_uint(out, epoch);
        }
        if let Some(leader) = self.leader {
            push_str(out, "leader");
            push_text(out, leader);
        }
    }
}

/// A [`Complaint`], as its reader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// What it amounts to.
    pub verdict: Verdict,
    /// What is wrong.
    pub error: &'a str,
    /// The view that the server goes by.
    pub epoch: Option<u64>,
    /// Where it thinks the leader listens.
    pub leader: Option<&'a str>,
}

impl<'a> Refusal<'a> {
    /// Reads an error; `None` if it is the application's own, which has another form.
    pub fn read(error: &'a [u8]) -> Option<Self> {
        let mut first = true;
        let (mut verdict, mut text, mut epoch, mut leader) = (None, "", None, None);
        let end = entries(error, |name, kind, value| {
            let read = |value: &'a [u8]| str::from_utf8(value).ok();
            match (name, kind) {
                (b"phalanx", Kind::Str) if first => {
                    verdict = Some(Verdict::ALL.into_iter().find(|known| known.word().as_bytes() == value)?);
                }
                _ if first => return None,
                (b"error", Kind::Str) => text = read(value)?,
                (b"epoch", Kind::Uint(number)) => epoch = Some(number),
                (b"leader", Kind::Str) => leader = Some(read(value)?),
                _ => {}
            }
            first = false;
            Some(())
        })?;
        (end == error.len()).then_some(Self { verdict: verdict?, error: text, epoch, leader })
    }
}

/// Appends a frame whose message `write` appends.
fn frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let len = u32::try_from(out.len() - at - 4).expect("messages are limited far below 4 GiB");
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends a request with this id; `body` is a method and parameters.
pub fn push_request(out: &mut Vec<u8>, msgid: u32, body: &[u8], stamp: Option<&Stamp<'_>>) {
    frame(out, |out| {
        out.extend_from_slice(&[0x94 + u8::from(stamp.is_some()), 0x00]);
        push_id(out, msgid);
        out.extend_from_slice(body);
        if let Some(stamp) = stamp {
            stamp.write(out);
        }
    });
}

/// Appends a response to the request of this id; `body` is error and result.
pub fn push_response(out: &mut Vec<u8>, msgid: u32, body: &[u8]) {
    frame(out, |out| {
        out.extend_from_slice(&[0x94, 0x01]);
        push_id(out, msgid);
        out.extend_from_slice(body);
    });
}

/// Appends a response without result.
pub fn push_complaint(out: &mut Vec<u8>, msgid: u32, complaint: &Complaint<'_>) {
    frame(out, |out| {
        out.extend_from_slice(&[0x94, 0x01]);
        push_id(out, msgid);
        complaint.write(out);
        out.push(NIL);
    });
}

/// Appends a notification, `[2, "phalanx.error", [error]]`: what there is to say where no request is answered.
pub fn push_notice(out: &mut Vec<u8>, complaint: &Complaint<'_>) {
    frame(out, |out| {
        out.extend_from_slice(&[0x93, 0x02]);
        push_str(out, "phalanx.error");
        out.push(0x91);
        complaint.write(out);
    });
}

fn push_id(out: &mut Vec<u8>, msgid: u32) {
    out.push(0xce);
    out.extend_from_slice(&msgid.to_be_bytes());
}

fn push_uint(out: &mut Vec<u8>, number: u64) {
    match number {
        0..=0x7f => out.push(number as u8),
        0x80..=0xffff_ffff => push_id(out, number as u32),
        _ => {
            out.push(0xcf);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

fn push_str(out: &mut Vec<u8>, text: &str) {
    push_text(out, &text);
}

/// Appends a text in its shortest form. One beyond 65535 bytes is cut.
fn push_text(out: &mut Vec<u8>, text: &dyn fmt::Display) {
    struct Text<'a>(&'a mut Vec<u8>);
    impl fmt::Write for Text<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    let at = out.len();
    // Writing to a vector cannot fail, and a value that cannot print itself leaves a shorter text.
    let _ = fmt::write(&mut Text(out), format_args!("{text}"));
    while out.len() - at > usize::from(u16::MAX) {
        out.truncate(at + usize::from(u16::MAX));
        while str::from_utf8(&out[at..]).is_err() {
            out.pop();
        }
    }
    let len = (out.len() - at) as u16;
    let [high, low] = len.to_be_bytes();
    match len {
        0..=31 => drop(out.splice(at..at, [0xa0 | low])),
        32..=255 => drop(out.splice(at..at, [0xd9, low])),
        _ => drop(out.splice(at..at, [0xda, high, low])),
    }
}
