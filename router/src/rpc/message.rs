//! What a handler is given, and what it answers.

use std::time::{Duration, Instant};

use router_proto::frames::Stamp;
use serde::{Deserialize, Serialize};

/// A request, as a handler sees it.
#[derive(Clone, Debug)]
pub struct Request {
    pub(super) method: String,
    pub(super) params: Vec<u8>,
    pub(super) deadline: Option<Instant>,
    pub(super) is_update: bool,
    pub(super) token: Option<u64>,
    pub(super) partition: Option<String>,
    pub(super) epoch: Option<u64>,
}

impl Request {
    pub(super) fn stamped(mut self, stamp: &Stamp<'_>, received: Instant) -> Self {
        self.deadline =
            stamp.deadline_ms.and_then(|ms| received.checked_add(Duration::from_millis(ms.into())));
        self.partition = stamp.partition.map(Into::into);
        self.epoch = stamp.epoch;
        self
    }

    /// The method's name.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The parameters, as a tuple or whatever else is written as an array.
    ///
    /// # Errors
    /// The parameters are of another form: a [`Failure`] that says so, ready to be returned.
    pub fn params<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        rmp_serde::from_slice(&self.params)
            .map_err(|error| Failure::refused(format!("the params of {}: {error}", self.method)))
    }

    /// The parameters as they came: a MessagePack array.
    pub fn raw_params(&self) -> &[u8] {
        &self.params
    }

    /// Until when the client waits, if it says so. Later answers reach nobody.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether it may change data: whether its method is none of [`Serve::reads`](super::Serve::reads).
    pub fn is_update(&self) -> bool {
        self.is_update
    }

    /// Of an update, the token under which this process led when the handler was called, if it knows: it goes with every effect
    /// outside of the process. Leadership may end before the effect.
    pub fn token(&self) -> Option<u64> {
        self.token
    }

    /// The partition by which the request was routed, if whoever routed it says so (`stamp = true`).
    pub fn partition(&self) -> Option<&str> {
        self.partition.as_deref()
    }

    /// The view of the RACS by which the request was routed, as [`partition`](Request::partition).
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// The failure for methods that are unknown.
    pub fn no_such_method(&self) -> Failure {
        Failure::refused(format!("there is no method {:?}", self.method))
    }
}

/// The result of a request: a MessagePack value.
#[derive(Clone, Debug)]
pub struct Reply(pub(super) Vec<u8>);

impl Reply {
    /// This value, maps with names.
    ///
    /// # Errors
    /// The value cannot be written, as a map whose length is unknown.
    pub fn of(value: &(impl Serialize + ?Sized)) -> Result<Self, Failure> {
        match rmp_serde::to_vec_named(value) {
            Ok(bytes) => Ok(Self(bytes)),
            Err(error) => Err(Failure::new(format!("the result cannot be written: {error}"))),
        }
    }
}

/// Why a request has no result.
#[derive(Clone, Debug)]
pub struct Failure(pub(super) Kind);

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The application's own: a MessagePack value.
    Own(Vec<u8>),
    Refused(String),
    NotLeader,
}

impl Failure {
    /// The application's own error, in words.
    pub fn new(error: impl Into<String>) -> Self {
        Self::of(&error.into())
    }

    /// The application's own error, of any form but nil, which means that there is none (and is replaced by a text). A map whose first
    /// key is `phalanx` is a router's way to say something: use another name.
    pub fn of(value: &(impl Serialize + ?Sized)) -> Self {
        match rmp_serde::to_vec_named(value) {
            Ok(bytes) if bytes != [0xc0] => Self(Kind::Own(bytes)),
            _ => Self::new("an error that cannot be written"),
        }
    }

    /// The request cannot be carried out as it is, and nothing was done: unknown methods, parameters of another form.
    pub fn refused(error: impl Into<String>) -> Self {
        Self(Kind::Refused(error.into()))
    }

    /// This process does not lead (any more), and has done nothing: the router or client sends the request to who does.
    ///
    /// Return it only if the request had no effect: it is sent again.
    pub fn not_leader() -> Self {
        Self(Kind::NotLeader)
    }
}
