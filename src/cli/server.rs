//! `server`: a server that knows nothing of membership, for tests and benchmarks of what wraps and watches servers.

use std::{convert::Infallible, net::SocketAddr};

use clap::Args;
use http_body_util::Full;
use hyper::{Response, body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::Outcome;

/// A server that answers every request over HTTP with "here".
#[derive(Args)]
pub(crate) struct Server {
    /// Where to serve.
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
}

impl Server {
    pub(crate) async fn run(self) -> Outcome {
        let listener = TcpListener::bind(self.listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let service = service_fn(async |_| {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"here\n"))))
            });
            let connection = hyper::server::conn::http1::Builder::new();
            tokio::spawn(async move {
                // A client that goes away is its own business.
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }
}
