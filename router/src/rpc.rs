//! Services that speak framed MessagePack-RPC, as a library: [`serve`] for a server, [`Client`] for a client that routes by
//! itself, without a router in between.
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use router::{
//!     Config, Options, Surroundings,
//!     rpc::{Client, Reply, Request, serve},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! static COUNT: AtomicU64 = AtomicU64::new(0);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let addr = listener.local_addr()?;
//! let server = serve(listener, async |request: Request| match request.method() {
//!     "add" => {
//!         let (_user, n): (String, u64) = request.params()?;
//!         Reply::of(&(COUNT.fetch_add(n, Ordering::SeqCst) + n))
//!     }
//!     "get" => Reply::of(&COUNT.load(Ordering::SeqCst)),
//!     _ => Err(request.no_such_method()),
//! })
//! .reads(["get"])
//! .start();
//!
//! let text = format!(
//!     r#"
//!     [[service]]
//!     name = "counter"
//!     listen = "127.0.0.1:7700" # where a router would serve it
//!     protocol = "frames"
//!     key = "msgpack:/params/0"
//!     read_methods = ["get"]
//!     pmap = {{ style = "slots", partitions = 16 }}
//!     racs = [{{ name = "a", servers = ["{addr}"] }}]
//! "#
//! );
//! let config = Config::parse(&text, "router.toml".as_ref(), Surroundings::default())?;
//! let client = Client::start(&config, "counter", Options::new())?;
//! assert_eq!(client.call::<u64>("add", &("ann", 3)).await?, 3);
//! assert_eq!(client.call::<u64>("get", &("ann",)).await?, 3);
//! server.shutdown(std::time::Duration::from_secs(1)).await;
//! # Ok(()) }
//! ```

mod client;
mod connection;
mod message;
mod server;

pub use client::{Call, CallError, Client, ClientError, ServerError};
pub use message::{Failure, Reply, Request};
pub use server::{Handler, LeaderHint, Office, Overload, Serve, Server, serve};
