//! Whether a server does its work: asked again and again, and believed only after several equal answers.

use std::{net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use backplane::{ChildSpec, Fuse, Output, PortProbe};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{complain, run::spawn};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Does it accept connections?
    Tcp(String),
    /// Does it answer GET with 200 to 399?
    Http { at: String, path: String },
    /// Does it answer PING?
    Redis(String),
    /// Does this command, given to `sh -c`, exit with 0?
    Exec(String),
}

impl FromStr for Check {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no check: give tcp:HOST:PORT, http:HOST:PORT/PATH, redis:HOST:PORT or exec:COMMAND"
            )
        };
        let place = |at: &str| {
            let port = at.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            let port = port.and_then(|(_, port)| port.parse().ok()).filter(|port: &u16| *port > 0);
            let clean = !at.contains(|c: char| c.is_whitespace() || c.is_control());
            port.filter(|_| clean).map(|_| at.to_owned()).ok_or_else(wrong)
        };
        match text.split_once(':').ok_or_else(wrong)? {
            ("tcp", at) => Ok(Self::Tcp(place(at)?)),
            ("redis", at) => Ok(Self::Redis(place(at)?)),
            ("http", rest) => {
                let rest = rest.strip_prefix("//").unwrap_or(rest);
                let (at, path) = rest.split_once('/').unwrap_or((rest, ""));
                if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
                    return Err(wrong());
                }
                Ok(Self::Http { at: place(at)?, path: format!("/{path}") })
            }
            ("exec", command) if !command.trim().is_empty() => Ok(Self::Exec(command.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl Check {
    /// Asks once. An error says what is wrong.
    async fn ask(&self, fuse: &Fuse, limit: Duration) -> Result<(), String> {
        let asked = async {
            match self {
                Self::Tcp(at) => {
                    let probe = PortProbe::new(find(at).await?, limit);
                    probe.check().await.map_err(|error| error.to_string())
                }
                Self::Redis(at) => {
                    let answer = exchange(at, "PING\r\n").await?;
                    if answer.starts_with("+PONG") { Ok(()) } else { Err(format!("it answered {answer:?}")) }
                }
                Self::Http { at, path } => {
                    let request = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
                    let answer = exchange(at, &request).await?;
                    let code = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
                    match code.and_then(|code| code.parse().ok()) {
                        Some(200..=399) => Ok(()),
                        _ => Err(format!("it answered {answer:?}")),
                    }
                }
                Self::Exec(command) => {
                    let mut spec = ChildSpec::new(["sh", "-c", command]);
                    spec.output = Output::Null;
                    let mut task = spawn(fuse, spec).await.map_err(|failure| failure.to_string())?;
                    let end = task.wait().await.map_err(|error| error.to_string())?;
                    if end.status.success() { Ok(()) } else { Err(end.status.to_string()) }
                }
            }
        };
        timeout(limit, asked).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }
}

async fn find(at: &str) -> Result<SocketAddr, String> {
    let mut found = lookup_host(at).await.map_err(|error| error.to_string())?;
    found.next().ok_or_else(|| "no such host".to_owned())
}

/// Sends this, and gives the beginning of the answer's first line.
async fn exchange(at: &str, request: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect(at).await.map_err(|error| error.to_string())?;
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut line = Vec::new();
    // A line that is longer is no answer that we wait for.
    while line.len() < 128 && !line.contains(&b'\n') {
        let mut byte = [0; 64];
        match stream.read(&mut byte).await.map_err(|error| error.to_string())? {
            0 => break,
            read => line.extend(&byte[..read]),
        }
    }
    let text = String::from_utf8_lossy(&line);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// How often it is asked, and how many equal answers in a row count.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) every: Duration,
    pub(crate) limit: Duration,
    pub(crate) failures: usize,
    pub(crate) successes: usize,
}

/// Answers, and what follows from them.
struct Verdict {
    patience: Patience,
    healthy: bool,
    /// How many answers in a row spoke against it.
    against: usize,
}

impl Verdict {
    /// Whether the verdict changes with this answer.
    fn hear(&mut self, good: bool) -> bool {
        if good == self.healthy {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = if self.healthy { self.patience.failures } else { self.patience.successes };
        if self.against < needed {
            return false;
        }
        (self.healthy, self.against) = (good, 0);
        true
    }
}

/// Asks for ever, and tells when the verdict changes. It begins with "healthy".
pub(crate) async fn watch(check: Check, patience: Patience, fuse: Arc<Fuse>, tell: watch::Sender<bool>) {
    let mut verdict = Verdict { patience, healthy: true, against: 0 };
    loop {
        let next = Instant::now() + patience.every;
        let answer = check.ask(&fuse, patience.limit).await;
        if verdict.hear(answer.is_ok()) {
            match &answer {
                Ok(()) => complain("the server is healthy again: it comes back to its group"),
                Err(why) => complain(format_args!("the server is unhealthy ({why}): it leaves its group")),
            }
            // An error says that nobody wants to know any more.
            if tell.send(verdict.healthy).is_err() {
                return;
            }
        }
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_written_as_people_write_addresses() {
        let read = |text: &str| text.parse::<Check>();
        assert_eq!(read("tcp:127.0.0.1:80"), Ok(Check::Tcp("127.0.0.1:80".into())));
        assert_eq!(read("redis:[::1]:6379"), Ok(Check::Redis("[::1]:6379".into())));
        let http = |at: &str, path: &str| Ok(Check::Http { at: at.into(), path: path.into() });
        assert_eq!(read("http:h:80/a/b?c"), http("h:80", "/a/b?c"));
        assert_eq!(read("http://h:80"), http("h:80", "/"));
        assert_eq!(read("exec:test -f x"), Ok(Check::Exec("test -f x".into())));
        for wrong in [
            "",
            "tcp",
            "tcp:",
            "tcp:h",
            "tcp:h:0",
            "tcp::1",
            "http:h/p",
            "http:h:1/a b",
            "exec: ",
            "udp:h:1",
            "redis:h:x",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_answer_changes_nothing_and_several_in_a_row_do() {
        let second = Duration::from_secs(1);
        let patience = Patience { every: second, limit: second, failures: 3, successes: 2 };
        let mut verdict = Verdict { patience, healthy: true, against: 0 };
        let mut hear = |answers: &str| answers.chars().map(|c| verdict.hear(c == '+')).collect::<Vec<_>>();
        assert_eq!(hear("--+--+"), [false; 6]);
        assert_eq!(hear("---"), [false, false, true]);
        assert_eq!(hear("-+-++"), [false, false, false, false, true]);
        assert_eq!(hear("--"), [false; 2]);
    }
}
