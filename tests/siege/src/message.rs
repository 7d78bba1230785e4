//! As much of MessagePack-RPC as an echo needs, and lines.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt, BufReader},
    net::TcpStream,
};

/// A request or an answer.
#[derive(Debug)]
pub struct Frame {
    /// Which it is, or is for.
    pub id: u64,
    /// Of a request what it asks for.
    pub method: String,
    /// Of a request its first parameter, of an answer its result; of an error all of it, with what is around it.
    pub text: String,
    /// Whether it is an error.
    pub failed: bool,
}

impl Frame {
    /// Reads one.
    ///
    /// # Errors
    /// There is none, or something that nobody here says.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut bytes = vec![0; stream.read_u32().await? as usize];
        stream.read_exact(&mut bytes).await?;
        Self::parse(&bytes).ok_or_else(|| io::Error::other(String::from_utf8_lossy(&bytes)))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.get(1..)?;
        let kind = take_number(&mut rest)?;
        let id = take_number(&mut rest)?;
        let mut method = String::new();
        if kind == 0 {
            method = String::from_utf8(take_text(&mut rest)?.to_vec()).ok()?;
            rest = rest.strip_prefix(&[0x91])?;
        } else if let Some(result) = rest.strip_prefix(&[0xc0]) {
            rest = result;
        } else {
            return Some(Self {
                id,
                method,
                text: String::from_utf8_lossy(bytes).into_owned(),
                failed: true,
            });
        }
        let text = String::from_utf8(take_text(&mut rest)?.to_vec()).ok()?;
        Some(Self { id, method, text, failed: false })
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let len = match take(rest, 1)?[0] {
        small @ 0..=0x7f => return Some(small.into()),
        0xcc => 1,
        0xcd => 2,
        0xce => 4,
        _ => return None,
    };
    Some(take(rest, len)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = match take(rest, 1)?[0] {
        short @ 0xa0..=0xbf => usize::from(short & 0x1f),
        0xd9 => take(rest, 1)?[0].into(),
        _ => return None,
    };
    take(rest, len)
}

fn framed(body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    [&u32::try_from(body.len()).expect("short").to_be_bytes(), &body[..]].concat()
}

fn text(text: &str) -> Vec<u8> {
    let len = u8::try_from(text.len()).expect("short");
    [&[0xd9, len], text.as_bytes()].concat()
}

/// A request with one parameter.
pub fn request(id: u32, method: &str, param: &str) -> Vec<u8> {
    framed(&[&[0x94, 0, 0xce], &id.to_be_bytes(), &text(method), &[0x91], &text(param)])
}

/// An answer.
pub fn answer(id: u64, result: &str) -> Vec<u8> {
    let id = u32::try_from(id).expect("as it was asked");
    framed(&[&[0x94, 1, 0xce], &id.to_be_bytes(), &[0xc0], &text(result)])
}

/// A line without its end.
///
/// # Errors
/// The connection ends before the line does.
pub async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}
