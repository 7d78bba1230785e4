//! Clients that pass to another process with their connections, between two of their requests.

use std::{net::TcpStream, sync::mpsc::Sender};

use super::{ClientStream, Worker, stream::Origin};

/// Most bytes of a request that has come in part which go over with its client; while there are more it is waited for the rest.
pub(crate) const MOST_INPUT: usize = 16 * 1024;

/// A client that is between two requests, and all that is known of it.
pub(crate) struct Guest {
    /// The service that it came for, and what it speaks.
    pub service: Box<str>,
    pub protocol: Box<str>,
    pub origin: Origin,
    /// What the protocol keeps of it.
    pub session: Vec<u8>,
    /// The begin of its next request.
    pub input: Vec<u8>,
    pub stream: TcpStream,
}

/// Whoever takes guests over.
pub(crate) type Heir = Sender<Guest>;

impl Worker {
    /// Whether another process takes the clients over, as soon as each is between two requests.
    pub fn gives_way(&self) -> bool {
        self.gives_way.get()
    }

    /// Whether this client has to go once it is answered: the router goes down, and nobody takes it over.
    pub fn sends_away(&self, client: &ClientStream) -> bool {
        self.is_draining() && !self.may_bequeath(client)
    }

    /// Whether another process takes this client over. What TLS knows of it cannot be handed on.
    pub fn may_bequeath(&self, client: &ClientStream) -> bool {
        self.gives_way() && !client.is_tls()
    }

    /// Passes a client on. The caller drops its own end of the connection, which lives on.
    pub fn bequeath(
        &self,
        (service, protocol): (&str, &str),
        client: &ClientStream,
        session: Vec<u8>,
        input: &[u8],
    ) {
        let stream = match client.duplicate() {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a client cannot be handed over, and is closed");
                return;
            }
        };
        let (service, protocol) = (service.into(), protocol.into());
        let origin = client.origin();
        let guest = Guest { service, protocol, origin, session, input: input.into(), stream };
        if let Some(heir) = &*self.heir.borrow() {
            let _gone = heir.send(guest); // whoever was to take it has ended: so does the connection
        }
    }
}
