//! The router's own answers: short JSON bodies that say what is wrong, where, and whether to try again.

use std::io::Write;

use router_proto::http::Refusal;

/// For a client that is not served at all.
pub(crate) const TOO_MANY_CLIENTS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
    Content-Type: application/json\r\nContent-Length: 73\r\nConnection: close\r\n\r\n\
    {\"error\":\"too many clients\",\"service\":null,\"partition\":null,\"retry\":true}";

/// An answer of the router itself.
pub(super) struct Answer<'a> {
    pub kind: Kind,
    pub service: &'a str,
    /// The partition's name, if the request came so far.
    pub partition: Option<&'a str>,
    /// What the request is called, where requests have ids. Needs no escapes.
    pub request_id: Option<&'a str>,
    /// Lines that tell where the request was routed.
    pub labels: &'a [u8],
    pub close: bool,
    /// Whether the request was HEAD, whose response has no body.
    pub head_only: bool,
}

pub(super) enum Kind {
    Refused(Refusal),
    NoKey,
    /// The client did not finish its request in time.
    Timeout(&'static str),
    /// Nobody may answer now, and nothing was done.
    Unavailable(&'static str),
    /// The client's time is over, and nothing was changed.
    Late,
    /// An update may have been carried out, or not.
    Unknown,
    /// A read failed in a way that another attempt by the router could not mend.
    BadGateway(&'static str),
}

impl Answer<'_> {
    /// Appends the whole response. Returns what it says is wrong.
    pub fn write(&self, out: &mut Vec<u8>) -> String {
        let (status, reason, error, retry) = match &self.kind {
            Kind::Refused(refusal) => {
                let reason = match refusal.status() {
                    413 => "Content Too Large",
                    415 => "Unsupported Media Type",
                    417 => "Expectation Failed",
                    431 => "Request Header Fields Too Large",
                    501 => "Not Implemented",
                    _ => "Bad Request",
                };
                (refusal.status(), reason, refusal.to_string(), false)
            }
            Kind::NoKey => (400, "Bad Request", "the request has no key".into(), false),
            Kind::Timeout(what) => (408, "Request Timeout", (*what).into(), true),
            Kind::Unavailable(why) => (503, "Service Unavailable", (*why).into(), true),
            Kind::Late => {
                (504, "Gateway Timeout", "the deadline has passed, and nothing was changed".into(), true)
            }
            Kind::Unknown => (
                502,
                "Bad Gateway",
                "outcome unknown: the server failed with this update under way".into(),
                false,
            ),
            Kind::BadGateway(why) => (502, "Bad Gateway", (*why).into(), true),
        };
        let escaped = error.replace('\\', "\\\\").replace('"', "\\\"");
        let partition = self.partition.map_or("null".into(), |name| format!("\"{name}\""));
        let id = self.request_id.map(|id| format!(",\"request_id\":\"{id}\"")).unwrap_or_default();
        let body = format!(
            "{{\"error\":\"{escaped}\",\"service\":\"{}\",\"partition\":{partition},\"retry\":{retry}{id}}}",
            self.service
        );
        let mut line = |text: std::fmt::Arguments<'_>| write!(out, "{text}\r\n").expect("writing to memory");
        line(format_args!("HTTP/1.1 {status} {reason}"));
        if status == 503 {
            line(format_args!("Retry-After: 1"));
        }
        line(format_args!("Content-Type: application/json"));
        line(format_args!("Content-Length: {}", body.len()));
        if let Some(id) = self.request_id {
            line(format_args!("X-Request-Id: {id}"));
        }
        if self.close {
            line(format_args!("Connection: close"));
        }
        out.extend_from_slice(self.labels);
        out.extend_from_slice(b"\r\n");
        if !self.head_only {
            out.extend_from_slice(body.as_bytes());
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use router_proto::http::{Body, HeadScan, Method, ResponseHead};

    #[test]
    fn answers_are_well_formed_and_their_bodies_are_json() {
        let kinds = [
            Kind::Refused(Refusal::TransferEncoding), // its text has quotation marks
            Kind::NoKey,
            Kind::Timeout("x"),
            Kind::Unavailable("no leader"),
            Kind::Late,
            Kind::Unknown,
            Kind::BadGateway("x"),
        ];
        let mut all: Vec<Vec<u8>> = kinds
            .into_iter()
            .map(|kind| {
                let labels = b"x-phalanx-partition: 7\r\n";
                let answer = Answer {
                    kind,
                    service: "s",
                    partition: Some("7"),
                    request_id: Some("7f/3"),
                    labels,
                    close: false,
                    head_only: false,
                };
                let mut out = vec![];
                answer.write(&mut out);
                out
            })
            .collect();
        all.push(TOO_MANY_CLIENTS.to_vec());
        for out in all {
            let end = HeadScan::default().response(&out).unwrap().unwrap();
            let head = ResponseHead::parse(&out[..end], Method::Get).unwrap();
            let body: serde_json::Value = serde_json::from_slice(&out[end..]).unwrap();
            assert_eq!(head.body(), Body::Length((out.len() - end) as u64));
            if let Some(id) = head.fields().values(&out, b"x-request-id").next() {
                assert_eq!(body["request_id"].as_str().map(str::as_bytes), Some(id));
            }
            assert!(body["error"].is_string() && body["retry"].is_boolean());
            assert_eq!(head.fields().values(&out, b"retry-after").count(), usize::from(head.status() == 503));
        }
    }
}
