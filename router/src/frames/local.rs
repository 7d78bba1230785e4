//! Requests of tasks of this process: they take the same way as those of clients, but for the socket.

use std::rc::Rc;

use router_proto::frames::{Complaint, MAX_FRAME, RequestScanner, Verdict};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{Caller, FramesService};
use crate::worker::Placements;

/// A request of this process: a whole frame, as a client would have sent it.
pub(crate) struct LocalCall {
    pub frame: Vec<u8>,
    pub answer: oneshot::Sender<LocalAnswer>,
    /// Its place among those that may be under way.
    pub place: OwnedSemaphorePermit,
}

/// Error and result of a server; or what the router says, and why.
pub(crate) type LocalAnswer = Result<Vec<u8>, (Verdict, String)>;

/// Who waits for an answer in this process.
pub(super) struct Local {
    answer: oneshot::Sender<LocalAnswer>,
    pub placements: Rc<Placements>,
    _place: OwnedSemaphorePermit,
}

impl Local {
    pub fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }

    pub fn answer(self, body: &[u8]) {
        let _ = self.answer.send(Ok(body.into())); // whoever asked may have gone
    }

    pub fn complain(self, complaint: &Complaint<'_>) {
        let _ = self.answer.send(Err((complaint.verdict, complaint.error.to_string())));
    }
}

/// Takes requests of this process until nobody can make any more.
pub(crate) async fn serve_locals(service: Rc<FramesService>, mut calls: mpsc::Receiver<LocalCall>) {
    let placements = Rc::new(Placements::default());
    while let Some(LocalCall { frame, answer, place }) = calls.recv().await {
        if answer.is_closed() {
            continue;
        }
        match RequestScanner::default().scan(&frame, MAX_FRAME, Some(&service.paths)) {
            Ok(Some(request)) if request.len == frame.len() => {
                let caller =
                    Caller::Local(Local { answer, placements: Rc::clone(&placements), _place: place });
                service.dispatch(caller, &frame, &request, None);
            }
            other => {
                let why = match other {
                    Err(error) => error.to_string(),
                    Ok(_) => "the params are not one value".into(),
                };
                let _ = answer.send(Err((Verdict::Refused, why)));
            }
        }
    }
}
