//! Clients of frames: their requests, and answers to them in any order.

use std::{rc::Rc, task::Context, time::Duration};

use router_proto::frames::{
    self, Complaint, FrameError, MAX_FRAME, RequestScanner, Verdict, push_complaint, push_notice,
};

use super::{Caller, FramesService};
use crate::{
    access::{AccessLog, Tally},
    limits::Limits,
    worker::{self, ClientService, Clients, Dialogue, Share, Succession, Taken, UnderWay, Worker},
};

/// The protocol of frames.
pub(crate) struct Frames;

pub(super) type Client = worker::Client<Frames>;

/// For a client that is not served at all.
pub(crate) fn too_many_clients() -> Vec<u8> {
    let mut notice = Vec::new();
    push_notice(&mut notice, &complaint(Verdict::Busy, &"too many clients", None));
    notice
}

fn complaint<'a>(
    verdict: Verdict,
    error: &'a dyn std::fmt::Display,
    service: Option<&'a str>,
) -> Complaint<'a> {
    Complaint { verdict, error, service, partition: None, epoch: None, leader: None }
}

/// What is kept of a client's input between two reads.
#[derive(Default)]
pub(crate) struct Input {
    scanner: RequestScanner,
    share: Share,
}

/// How many requests are under way: each is answered as soon as it can be.
#[derive(Default)]
pub(crate) struct Unordered(usize);

impl UnderWay for Unordered {
    fn len(&self) -> usize {
        self.0
    }

    fn kept(&self) -> usize {
        0
    }
}

impl ClientService for FramesService {
    fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn log(&self) -> Option<&AccessLog> {
        self.log.as_ref()
    }

    fn succession(&self) -> &Succession<Self> {
        &self.succession
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn clients(&self) -> &Clients {
        &self.clients
    }
}

impl Dialogue for Frames {
    const PROTOCOL: &'static str = "frames";

    type Service = FramesService;
    type Session = ();
    type Input = Input;
    type UnderWay = Unordered;

    fn session(_service: &FramesService) {}

    /// Keys may be elsewhere now: what has come of the next request is looked at again.
    fn moved(_client: &Client, input: &mut Input) {
        input.scanner = RequestScanner::default();
    }

    fn has_room(
        service: &Rc<FramesService>,
        input: &mut Input,
        begun: &mut Vec<u8>,
        cx: &Context<'_>,
    ) -> bool {
        let Some(len) = RequestScanner::expected(begun) else { return true };
        // One that is too long is refused, for which no room is needed.
        len > MAX_FRAME + 4 || input.share.suffices(&service.room, len, begun, cx)
    }

    fn take(service: &Rc<FramesService>, client: &Rc<Client>, input: &mut Input, bytes: &[u8]) -> Taken {
        match input.scanner.scan(bytes, MAX_FRAME, Some(&service.paths)) {
            Ok(None) => Taken::Incomplete,
            Ok(Some(request)) => {
                Tally::add(&client.tally.commands);
                let caller =
                    Caller::Client { client: Rc::clone(client), msgid: request.msgid, len: request.len };
                service.dispatch(caller, &bytes[..request.len], &request, input.share.take());
                Taken::Bytes(request.len)
            }
            Err(error) => {
                service.refuse(client, input.scanner.msgid(), error);
                Taken::Refused
            }
        }
    }
}

impl FramesService {
    /// Tells a client that what it said is no request; whose id that would have, if it has come so far.
    fn refuse(&self, client: &Client, msgid: Option<u32>, error: FrameError) {
        self.counters.refused.add(1);
        Tally::add(&client.tally.refused);
        self.note(client, b"", None, None, 0, Some(&error.to_string()), Duration::ZERO);
        let complaint = complaint(Verdict::Refused, &error, Some(&self.name));
        let mut text = Vec::new();
        match msgid {
            Some(msgid) => push_complaint(&mut text, msgid, &complaint),
            None => push_notice(&mut text, &complaint),
        }
        client.asked(0);
        client.put_bytes(0, &text);
    }
}

impl Client {
    /// A request of so many bytes comes in.
    pub fn asked(&self, len: usize) {
        self.owe(len);
        self.begin(|under_way| under_way.0 += 1);
    }

    /// The answer to a request of so many bytes.
    pub fn put_bytes(&self, request_len: usize, answer: &[u8]) {
        self.append(request_len, |out| out.extend_from_slice(answer));
    }

    /// The same: error and result of a server.
    pub fn put_answer(&self, request_len: usize, msgid: u32, body: &[u8]) {
        self.append(request_len, |out| frames::push_response(out, msgid, body));
    }

    fn append(&self, request_len: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.pay(request_len);
        let most_unread = self.service().limits.unread;
        self.put(most_unread, |under_way, out| {
            under_way.0 -= 1;
            let before = out.len();
            write(out);
            out.len() - before
        });
    }
}
