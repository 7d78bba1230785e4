//! Servers that answer each request at once with its key.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    thread,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime,
};

use super::speech::Speech;

/// Starts so many servers, spread over so many threads, and says where they are. They end with the process.
pub(super) fn start(
    speech: &'static dyn Speech,
    count: usize,
    threads: usize,
) -> io::Result<Vec<SocketAddr>> {
    let mut shares: Vec<Vec<TcpListener>> = (0..threads.min(count)).map(|_| Vec::new()).collect();
    let mut at = Vec::new();
    for number in 0..count {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        at.push(listener.local_addr()?);
        shares[number % threads.min(count)].push(listener);
    }
    for share in shares {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("servers".into()).spawn(move || {
            runtime.block_on(async {
                for listener in share {
                    tokio::spawn(accept(listener, speech));
                }
                std::future::pending::<()>().await;
            });
        })?;
    }
    Ok(at)
}

async fn accept(listener: TcpListener, speech: &'static dyn Speech) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Whose request makes no sense is hung up on, and its client counts that.
        tokio::spawn(serve(stream, speech));
    }
}

async fn serve(mut stream: TcpStream, speech: &dyn Speech) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut heard, mut answers) = (Vec::new(), Vec::new());
    loop {
        heard.reserve(super::ROOM);
        if stream.read_buf(&mut heard).await? == 0 {
            return Ok(());
        }
        let mut done = 0;
        while let Some(length) = speech.answer(&heard[done..], &mut answers)? {
            done += length;
        }
        heard.drain(..done);
        stream.write_all(&answers).await?;
        answers.clear();
    }
}
