//! What a line says.

use std::{fmt, io::Write as _, net::SocketAddr, time::Duration};

use router_proto::trace::Ids;

/// No path, and no other text of a client's, is longer in a line, in bytes.
pub(crate) const PATH: usize = 1024;
pub(crate) const TEXT: usize = 256;

/// What is known of a request, a command or a connection at its end.
pub(crate) struct Line<'a> {
    pub client: SocketAddr,
    pub what: What<'a>,
    pub partition: Option<&'a dyn fmt::Display>,
    /// The server of the last attempt.
    pub server: Option<SocketAddr>,
    pub attempts: u32,
    /// Why the router answered in its own name.
    pub error: Option<&'a str>,
    pub took: Duration,
}

/// What a line is about.
pub(crate) enum What<'a> {
    /// A request over HTTP.
    Request {
        /// Empty if what came was none.
        method: &'a [u8],
        /// Without its query.
        path: &'a [u8],
        ids: Option<&'a Ids>,
        /// None if the client got no answer.
        status: Option<u16>,
        received: u64,
        sent: u64,
    },
    /// A command, or a request in a frame.
    Command {
        /// Its name alone; empty if it is not known.
        name: &'a [u8],
        /// The RACS that it went to.
        racs: Option<&'a str>,
    },
    /// A connection that carried any number of these, or one that was not served.
    Connection { commands: u64, refused: u64, failed: u64, received: u64, sent: u64, end: &'static str },
}

/// Appends a line. Writing to memory cannot fail.
pub(super) fn write(out: &mut Vec<u8>, service: &str, now: Duration, line: &Line<'_>) {
    let _ =
        write!(out, "{{\"time\":\"{}\",\"service\":\"{service}\",\"client\":\"{}\"", Time(now), line.client);
    match &line.what {
        What::Request { method, path, .. } => {
            push_text(out, "method", method, TEXT);
            push_text(out, "path", path, PATH);
        }
        What::Command { name, racs } => {
            push_text(out, "command", name, TEXT);
            push_text(out, "racs", racs.unwrap_or_default().as_bytes(), TEXT);
        }
        What::Connection { .. } => {}
    }
    if let Some(partition) = line.partition {
        let _ = write!(out, ",\"partition\":\"{partition}\"");
    } else if !matches!(line.what, What::Command { .. }) {
        out.extend_from_slice(b",\"partition\":null");
    }
    let _ = match line.server {
        Some(server) => write!(out, ",\"server\":\"{server}\""),
        None => write!(out, ",\"server\":null"),
    };
    let _ = write!(out, ",\"attempts\":{}", line.attempts);
    let bytes = |out: &mut Vec<u8>, received: u64, sent: u64| {
        let _ = write!(out, ",\"bytes_in\":{received},\"bytes_out\":{sent}");
    };
    match line.what {
        What::Request { ids, status, received, sent, .. } => {
            let _ = match status {
                Some(status) => write!(out, ",\"status\":{status}"),
                None => write!(out, ",\"status\":null"),
            };
            if let Some(ids) = ids {
                let (trace, request) = (ids.parent().trace(), ids.request());
                let _ = write!(out, ",\"trace_id\":\"{trace:032x}\",\"request_id\":\"{request}\"");
            }
            bytes(out, received, sent);
        }
        What::Command { .. } => {}
        What::Connection { commands, refused, failed, received, sent, end } => {
            let _ = write!(
                out,
                ",\"commands\":{commands},\"refused\":{refused},\"failed\":{failed},\"end\":\"{end}\""
            );
            bytes(out, received, sent);
        }
    }
    if let Some(error) = line.error {
        push_text(out, "error", error.as_bytes(), TEXT);
    }
    let _ = writeln!(out, ",\"duration_us\":{}}}", line.took.as_micros());
}

/// A text of a client's; null if there is none.
fn push_text(out: &mut Vec<u8>, name: &str, text: &[u8], most: usize) {
    if text.is_empty() {
        let _ = write!(out, ",\"{name}\":null");
        return;
    }
    let _ = write!(out, ",\"{name}\":\"");
    push_escaped(out, &text[..text.len().min(most)]);
    out.push(b'"');
}

/// Text inside a JSON string; bytes that are no ASCII stand for themselves as Latin-1.
fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b' '..=b'~' => out.push(byte),
            _ => {
                let _ = write!(out, "\\u{byte:04x}");
            }
        }
    }
}

/// The first bytes of a name, kept in place until its line is written.
#[derive(Clone, Copy, Default)]
pub(crate) struct Word {
    text: [u8; 23],
    len: u8,
}

impl Word {
    pub fn of(name: &[u8]) -> Self {
        let mut word = Self::default();
        let len = name.len().min(word.text.len());
        word.text[..len].copy_from_slice(&name[..len]);
        word.len = len as u8;
        word
    }

    pub fn bytes(&self) -> &[u8] {
        &self.text[..self.len.into()]
    }
}

/// A time since 1970, as RFC 3339 has it, in UTC.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Howard Hinnant's civil_from_days, for days since 1970-01-01.
        let z = days + 719_468;
        let era = z / 146_097;
        let of_era = z % 146_097;
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let ms = self.0.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_799, "2000-02-29T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
            (1_795_372_800, "2026-11-22T18:40:00.007Z"),
        ] {
            assert_eq!(Time(Duration::new(seconds, 7_000_000)).to_string(), text);
        }
    }

    #[test]
    fn a_line_is_one_json_object_whatever_a_client_says() {
        let mut out = Vec::new();
        let line = Line {
            client: "127.0.0.1:9".parse().unwrap(),
            what: What::Request {
                method: b"GET",
                path: b"/a\"b\\c\x01\xff",
                ids: None,
                status: None,
                received: 1,
                sent: 2,
            },
            partition: Some(&7),
            server: None,
            attempts: 0,
            error: Some("a \"word\""),
            took: Duration::from_millis(3),
        };
        write(&mut out, "s", Duration::ZERO, &line);
        let text = std::str::from_utf8(&out).unwrap();
        assert!(text.ends_with('\n') && text.matches('\n').count() == 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            (&value["path"], &value["status"]),
            (&"/a\"b\\c\u{1}\u{ff}".into(), &serde_json::Value::Null)
        );
        assert_eq!(value["error"], "a \"word\"");
        assert_eq!((&value["partition"], &value["duration_us"]), (&"7".into(), &3_000.into()));
    }

    #[test]
    fn commands_and_connections_are_objects_too_and_what_is_not_known_is_null() {
        let read = |line: &Line<'_>| -> serde_json::Value {
            let mut out = Vec::new();
            write(&mut out, "s", Duration::ZERO, line);
            serde_json::from_slice(&out).unwrap()
        };
        let mut line = Line {
            client: "127.0.0.1:9".parse().unwrap(),
            what: What::Command { name: b"GET", racs: Some("a") },
            partition: None,
            server: "127.0.0.1:10".parse().ok(),
            attempts: 2,
            error: None,
            took: Duration::ZERO,
        };
        let value = read(&line);
        assert_eq!(
            (&value["command"], &value["racs"], &value["attempts"]),
            (&"GET".into(), &"a".into(), &2.into())
        );
        line.what = What::Command { name: &[b'x'; 5000], racs: None };
        assert_eq!(
            (read(&line)["command"].as_str().map(str::len), &read(&line)["racs"]),
            (Some(TEXT), &serde_json::Value::Null)
        );
        line.what =
            What::Connection { commands: 3, refused: 2, failed: 1, received: 5, sent: 6, end: "client" };
        let value = read(&line);
        assert_eq!(
            (&value["commands"], &value["bytes_out"], &value["end"]),
            (&3.into(), &6.into(), &"client".into())
        );
    }
}
