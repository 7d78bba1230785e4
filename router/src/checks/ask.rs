//! One question to one server, and whether the answer is that of a server that is well.

use std::{net::SocketAddr, process::Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use super::Target;
use crate::config::Check;

/// Most bytes that are read of an answer, which is decided by its first line.
const MOST: usize = 1024;

/// Asks once. Whoever calls bounds the time, and may drop this at any point.
pub(super) async fn ask(check: &Check, target: &Target) -> Result<(), String> {
    let addr = target.addr;
    match check {
        Check::Tcp => connect(addr).await.map(drop),
        Check::Http(path) => {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {addr}\r\nUser-Agent: phalanx-check\r\nConnection: close\r\n\r\n"
            );
            http(&line(addr, request.as_bytes()).await?)
        }
        Check::Redis => redis(&line(addr, b"*1\r\n$4\r\nPING\r\n").await?),
        Check::Memcached => {
            let line = line(addr, b"version\r\n").await?;
            if line.starts_with("VERSION ") { Ok(()) } else { Err(format!("version: {line:?}")) }
        }
        Check::Command(words) => command(words, target).await,
    }
}

async fn connect(addr: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(addr).await.map_err(|error| format!("cannot connect: {error}"))
}

/// The first line of the answer to a question.
async fn line(addr: SocketAddr, question: &[u8]) -> Result<String, String> {
    let mut stream = connect(addr).await?;
    let broken = |error: std::io::Error| format!("the connection broke: {error}");
    stream.write_all(question).await.map_err(broken)?;
    let mut answer = Vec::new();
    loop {
        if let Some(end) = answer.iter().position(|&byte| byte == b'\n') {
            return Ok(String::from_utf8_lossy(&answer[..end]).trim_end().into());
        }
        if answer.len() >= MOST {
            return Err(format!("the first line of the answer has more than {MOST} bytes"));
        }
        let mut part = [0; MOST];
        match stream.read(&mut part).await.map_err(broken)? {
            0 => return Err("the connection ended before a whole line had come".into()),
            len => answer.extend_from_slice(&part[..len]),
        }
    }
}

fn http(line: &str) -> Result<(), String> {
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    match status.and_then(|status| status.parse::<u16>().ok()) {
        Some(200..400) => Ok(()),
        Some(status) => Err(format!("status {status}")),
        None => Err(format!("not HTTP: {line:?}")),
    }
}

/// A server that wants a password first is alive; one that loads its data is not ready.
fn redis(line: &str) -> Result<(), String> {
    if line == "+PONG" || line.starts_with("-NOAUTH") { Ok(()) } else { Err(format!("PING: {line:?}")) }
}

/// Runs a command with the server's address in its environment. It is well if that ends with 0.
async fn command(words: &[Box<str>], target: &Target) -> Result<(), String> {
    let (program, args) = words.split_first().ok_or("the command is empty")?;
    let addr = target.addr;
    let mut child = Command::new(&**program)
        .args(args.iter().map(|arg| &**arg))
        .env("PHALANX_SERVICE", &*target.service)
        .env("PHALANX_SERVER", addr.to_string())
        .env("PHALANX_SERVER_HOST", addr.ip().to_string())
        .env("PHALANX_SERVER_PORT", addr.port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let started = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut group = Group(started);
    let status = child.wait().await.map_err(|error| format!("{program}: {error}"))?;
    // From here on its number may be that of another process.
    group.0 = None;
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}")) }
}

/// A command that runs, with all that it started: it ends with this, unless it has ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL); // it may just have ended
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_answer_is_one() {
        for good in ["HTTP/1.1 200 OK", "HTTP/1.0 204", "HTTP/1.1 399 x"] {
            assert_eq!(http(good), Ok(()), "{good}");
        }
        for bad in
            ["HTTP/1.1 500 no", "HTTP/1.1 404", "HTTP/1.1 20", "HTTP/2 200", "", "+PONG", "HTTP/1.1 199"]
        {
            assert!(http(bad).is_err(), "{bad}");
        }
        assert!(redis("+PONG").is_ok() && redis("-NOAUTH Authentication required.").is_ok());
        assert!(redis("-LOADING Redis is loading the dataset in memory").is_err() && redis("+OK").is_err());
    }
}
