//! Who asked: a client, a task of this process, or either for several servers at once.

use std::{
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
};

use router_proto::frames::{self, Complaint};

use super::{client::Client, local::Local};
use crate::worker::{Copies, Placements};

/// Who asked.
pub(super) enum Caller {
    /// A client's connection: the client's own id, and bytes of the request.
    Client { client: Rc<Client>, msgid: u32, len: usize },
    /// A task of this process.
    Local(Local),
    /// Either, of a read that several servers were asked for.
    Shared(Rc<Copies<Caller>>),
}

impl Caller {
    /// Notes that the request is under way.
    pub fn begin(&self) {
        if let Self::Client { client, len, .. } = self {
            client.asked(*len);
        }
    }

    /// Which client it is, unless it is a task of this process, or was answered by another copy.
    pub fn client(&self) -> Option<Rc<Client>> {
        match self {
            Self::Client { client, .. } => Some(Rc::clone(client)),
            Self::Local(_) => None,
            Self::Shared(copies) => copies.owner(Self::client).flatten(),
        }
    }

    /// Where it comes from; what is of this process has one source, however many tasks ask.
    pub fn source(&self) -> IpAddr {
        match self {
            Self::Client { client, .. } => client.source(),
            // Nobody asks about those.
            Self::Local(_) | Self::Shared(_) => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// The clones that it stays with, where clients do; all tasks of this process stay with the same. Who does asks one
    /// server alone.
    pub fn placements(&self) -> Option<&Placements> {
        match self {
            Self::Client { client, .. } => Some(&client.placements),
            Self::Local(local) => Some(&local.placements),
            Self::Shared(_) => None,
        }
    }

    /// Whether another copy is answered.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Shared(copies) if copies.is_over())
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Client { client, .. } => client.is_gone(),
            Self::Local(local) => local.is_gone(),
            Self::Shared(copies) => copies.owner(Self::is_gone).unwrap_or(true),
        }
    }

    /// A server's answer: error and result.
    pub fn answer(self, body: &[u8]) {
        match self {
            Self::Client { client, msgid, len } => client.put_answer(len, msgid, body),
            Self::Local(local) => local.answer(body),
            Self::Shared(copies) => copies.take().into_iter().for_each(|caller| caller.answer(body)),
        }
    }

    pub fn complain(self, complaint: &Complaint<'_>) {
        match self {
            Self::Client { client, msgid, len } => {
                let mut answer = Vec::new();
                frames::push_complaint(&mut answer, msgid, complaint);
                client.put_bytes(len, &answer);
            }
            Self::Local(local) => local.complain(complaint),
            Self::Shared(copies) => copies.take().into_iter().for_each(|caller| caller.complain(complaint)),
        }
    }
}
