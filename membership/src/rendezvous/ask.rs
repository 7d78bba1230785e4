//! How a registry is asked over HTTP: where it is, connections with it, proofs. `http.rs` asks for nodes and slots, and
//! `witness/asker.rs` for what a witness recorded.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request,
    client::conn::http1::{SendRequest, handshake},
    header::{CONTENT_TYPE, ETAG, HOST, HeaderName, IF_MATCH, IF_NONE_MATCH},
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use crate::{
    rendezvous::{
        Question,
        fixed::Lookup,
        proof::{self, Told, Trust},
    },
    secret::Wallet,
    wire::shown,
};

/// The path at which nodes keep registries.
pub(crate) const PATH: &str = "/v1/rendezvous";
/// How long all addresses of a registry together are tried, and each at the least: one that swallows what is sent to it must
/// not take the time of the others.
const CONNECTING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(250));

/// Where a registry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRegistry {
    /// Its host; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The path of the registry, without a slash at its end.
    pub path: String,
    /// Believe no answer that is not proved with the cluster's secret, not even the first one.
    pub proof: bool,
}

impl fmt::Display for HttpRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proof = if self.proof { "?proof=required" } else { "" };
        write!(f, "http://{}{}{proof}", self.authority(), self.path)
    }
}

impl HttpRegistry {
    /// Is it on this host, so that nobody is on the way to it?
    pub(crate) fn is_here(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// As it is written in URLs and in the header `Host`.
    pub(crate) fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

/// What a registry keeps for a cluster, as somebody who asks there uses it.
pub(crate) struct Far {
    at: HttpRegistry,
    trust: Trust,
    cluster: String,
    /// The largest answer, in bytes.
    largest: usize,
}

impl Far {
    pub(crate) fn new(at: &HttpRegistry, wallet: &Wallet, cluster: &str, largest: usize) -> Self {
        let trust = Trust::new(wallet, at.proof);
        Self { at: at.clone(), trust, cluster: cluster.to_owned(), largest }
    }

    /// A way to it, on which nothing is said yet.
    pub(crate) async fn reach(&self, lookup: &mut Lookup) -> io::Result<TcpStream> {
        connect(&lookup.run(&self.at.authority()).await?).await
    }

    pub(crate) async fn open(&self, stream: TcpStream) -> io::Result<Connection<'_>> {
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async {
            // What breaks is seen by who waits for an answer.
            let _broken = driver.await;
        });
        Ok(Connection { far: self, sender, _driver: tasks })
    }
}

/// An open connection.
pub(crate) struct Connection<'a> {
    far: &'a Far,
    sender: SendRequest<Full<Bytes>>,
    /// Ends with this.
    _driver: JoinSet<()>,
}

impl Connection<'_> {
    /// Asks, and believes the answer only as far as it is proved. The path is the one below what is kept for the cluster.
    pub(crate) async fn ask(&mut self, question: Question<'_>) -> io::Result<Answer> {
        let Far { at, trust, cluster, largest } = self.far;
        let path = format!("{}/{cluster}{}", at.path, question.path);
        let asked = Question { path: &path, ..question };
        let proved = trust.ask(asked)?;
        let mut request = Request::builder()
            .method(asked.method)
            .uri(&path)
            .header(HOST, at.authority())
            .header(CONTENT_TYPE, "application/json");
        let proof = proved.as_ref().map(|(_, proof)| proof.as_str());
        let named = HeaderName::from_static(proof::HEADER);
        let headers = [(IF_MATCH, asked.if_match), (IF_NONE_MATCH, asked.if_none_match), (named, proof)];
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request =
            request.body(Full::new(Bytes::copy_from_slice(asked.body))).map_err(io::Error::other)?;
        self.sender.ready().await.map_err(strange)?;
        let response = self.sender.send_request(request).await.map_err(strange)?;
        let status = response.status().as_u16();
        let header = |name: &HeaderName| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (etag, proof) = (header(&ETAG), header(&HeaderName::from_static(proof::HEADER)));
        let body = Limited::new(response.into_body(), *largest).collect().await.map_err(strange)?;
        let body = body.to_bytes();
        let told = Told { status, etag: etag.as_deref(), body: &body };
        trust.believe(proved.as_ref().map(|(proved, _)| proved), proof.as_deref(), told)?;
        Ok(Answer { status, etag, body })
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) etag: Option<String>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn read<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.body).map_err(strange)
    }

    pub(crate) fn etag(&self) -> io::Result<String> {
        self.etag.clone().ok_or_else(|| io::Error::other("the registry's answer has no ETag"))
    }

    /// What it says that went wrong.
    pub(crate) fn error(&self) -> io::Error {
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
        }
        let why = self.read::<Refusal>().map_or_else(|_| String::new(), |r| format!(": {}", r.error));
        let why = shown(&why);
        let hint = if self.status == 404 { "; nodes keep registries at /v1/rendezvous" } else { "" };
        io::Error::other(format!("the registry answered {}{why}{hint}", self.status))
    }
}

/// Whoever is there speaks no HTTP, or another one, or ends in the middle.
fn strange(what: impl fmt::Display) -> io::Error {
    let way_out = "is this the --admin address of an agent, with /v1/rendezvous after it?";
    io::Error::other(format!("no answer of a registry ({}): {way_out}", shown(&what.to_string())))
}

/// Connects with the first of these addresses that answers.
async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let share = CONNECTING.0 / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let each = share.max(CONNECTING.1);
    let mut problem = io::Error::other("its name has no address");
    for addr in addresses {
        match timeout(each, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => problem = error,
            Err(_) => problem = io::Error::other(format!("{addr} does not answer in {each:?}")),
        }
    }
    Err(problem)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::{Domain, SockAddr, Socket, Type};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::secret::Source;

    const PATIENCE: Duration = Duration::from_secs(3);

    /// An address that answers nothing, for as long as these live: its queue is full.
    async fn silent() -> (SocketAddr, Socket, Vec<TcpStream>) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&SockAddr::from(any)).and_then(|()| socket.listen(0)).expect("a free port");
        let addr = socket.local_addr().expect("bound").as_socket().expect("an IP address");
        let mut crowd = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(addr)).await {
            crowd.push(stream.expect("it listens"));
            assert!(crowd.len() < 16, "its queue does not fill");
        }
        (addr, socket, crowd)
    }

    #[tokio::test]
    async fn of_who_is_no_registry_is_said_what_would_be_one() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let at = HttpRegistry { host: "127.0.0.1".into(), port, path: PATH.into(), proof: false };
        let wallet = Wallet::open(Source::None).expect("nothing to be read");
        let far = Far::new(&at, &wallet, "c", 64);
        let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 65\r\n\r\n{:65}", "");
        for words in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-le", &long] {
            let answers = async {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut asked = [0; 1024];
                let _asked = stream.read(&mut asked).await.expect("a question");
                stream.write_all(words.as_bytes()).await.expect("it reads");
            };
            let asks = async {
                let stream = far.reach(&mut Lookup::default()).await.expect("it listens");
                let mut connection = far.open(stream).await.expect("nothing is said yet");
                connection.ask(Question { method: "GET", ..Question::default() }).await.err()
            };
            let (why, ()) = tokio::join!(asks, answers);
            let why = why.expect("that is no answer").to_string();
            assert!(why.contains("no answer of a registry") && why.contains("--admin"), "{why}");
        }
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_leaves_time_for_the_next_one() {
        let (silent, _socket, _crowd) = silent().await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let answers = listener.local_addr().expect("bound");
        let stream = timeout(PATIENCE, connect(&[silent, answers])).await.expect("in time");
        assert_eq!(stream.expect("connected").peer_addr().expect("connected"), answers);
        let why = timeout(PATIENCE, connect(&[silent])).await.expect("in time").expect_err("nobody answers");
        assert!(why.to_string().contains("does not answer"), "{why}");
    }
}
