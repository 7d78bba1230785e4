//! The demo's server: an inventory in memory, over HTTP. `GET /items/K` reads, `PUT /items/K` writes.

use std::{cell::RefCell, collections::HashMap, convert::Infallible, net::SocketAddr, rc::Rc};

use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::Outcome;

/// A small server to be cloned.
#[derive(Args)]
pub(crate) struct Inventory {
    /// Where to serve.
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Which array of clones it belongs to; every answer says so.
    #[arg(long, value_name = "NAME", default_value = "inventory")]
    array: String,
}

/// The longest value.
const LONGEST: usize = 64 << 10;
/// How many items there may be.
const MOST: usize = 100_000;

type Items = Rc<RefCell<HashMap<String, Bytes>>>;

impl Inventory {
    pub(crate) async fn run(self) -> Outcome {
        let listener = TcpListener::bind(self.listen).await?;
        let items: Items = Items::default();
        let array: Rc<str> = self.array.into();
        let local = tokio::task::LocalSet::new();
        let serve = async {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let (items, array) = (items.clone(), array.clone());
                tokio::task::spawn_local(async move {
                    let service = service_fn(|request| answer(request, items.clone(), array.clone()));
                    // A client that goes away is its own business.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        };
        local.run_until(serve).await
    }
}

async fn answer(
    request: Request<Incoming>,
    items: Items,
    array: Rc<str>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let key = request.uri().path().strip_prefix("/items/").map(str::to_owned);
    let (status, value) = match (request.method().clone(), key) {
        (_, None) => (StatusCode::NOT_FOUND, json!({"error": "there is only /items/KEY"})),
        (Method::GET, Some(key)) => {
            let value = items.borrow().get(&key).map(|v| String::from_utf8_lossy(v).into_owned());
            (StatusCode::OK, json!({"key": key, "value": value, "array": &*array}))
        }
        (Method::PUT, Some(key)) => match Limited::new(request.into_body(), LONGEST).collect().await {
            Ok(body) if items.borrow().len() < MOST => {
                items.borrow_mut().insert(key.clone(), body.to_bytes());
                (StatusCode::OK, json!({"key": key, "array": &*array}))
            }
            Ok(_) => (StatusCode::INSUFFICIENT_STORAGE, json!({"error": "full"})),
            Err(_) => (StatusCode::PAYLOAD_TOO_LARGE, json!({"error": "64 KiB at most"})),
        },
        _ => (StatusCode::METHOD_NOT_ALLOWED, json!({"error": "GET or PUT"})),
    };
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    Ok(response)
}
