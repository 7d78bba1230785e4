//! That what a registry is asked, and what it answers, comes from who holds the cluster's secret, and was not changed on the way.
//!
//! A request says which key it uses, a fresh nonce, and a tag (HMAC) over the nonce and all that counts of it; an answer says a
//! tag over that of the request and all that counts of the answer. So an answer is one to this very request, and no recording.
//! A recorded request may be said again: registries compare ETags, and a witness writes nothing twice, so that denies a slot
//! at most. Requests and answers are not hidden.
//!
//! The header may be missing on either side: builds without it, agents without the secret, people with curl. A client that
//! has a secret believes no answer without a proof any more once it has seen one with it, or from the start where the
//! address says so (`?proof=required`).

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use data_encoding::HEXLOWER;
use ring::hmac;

use crate::{
    rendezvous::Question,
    secret::{Credentials, KeyId, Secret, Wallet},
};

/// The header that carries it, in both directions.
pub(crate) const HEADER: &str = "x-phalanx-proof";
pub(crate) const NONCE: usize = 16;

/// What counts of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told<'a> {
    pub(crate) status: u16,
    pub(crate) etag: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

/// A request that has a proof, so its answer can have one.
pub(crate) struct Proved {
    key: hmac::Key,
    tag: [u8; 32],
}

impl Proved {
    /// Proves a request. Gives what goes into its header, too.
    pub(crate) fn ask(secret: &Secret, asked: Question<'_>) -> io::Result<(Self, String)> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        Ok(Self::with(nonce, secret, asked))
    }

    pub(crate) fn with(nonce: [u8; NONCE], secret: &Secret, asked: Question<'_>) -> (Self, String) {
        let key = secret.first();
        let (id, key) = (key.id(), key.of_registries());
        let tag = tag(&key, &of_request(&nonce, asked));
        let header = format!("{id}.{}.{}", HEXLOWER.encode(&nonce), HEXLOWER.encode(&tag));
        (Self { key, tag }, header)
    }

    /// What the header of a request proves: nothing where it names a key of others.
    pub(crate) fn read(
        secret: &Secret,
        header: &str,
        asked: Question<'_>,
    ) -> Result<Option<Self>, &'static str> {
        let bytes = |text: &str| HEXLOWER.decode(text.as_bytes()).ok();
        let mut parts = header.split('.').map(bytes);
        let (Some(Some(id)), Some(Some(nonce)), Some(Some(said)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("the proof of this request is no KEY.NONCE.TAG in hexadecimal digits");
        };
        let (Ok(id), Ok(nonce)) = (<[u8; 8]>::try_from(id), <[u8; NONCE]>::try_from(nonce)) else {
            return Err("the proof of this request names a key by 8 bytes, and has a nonce of 16");
        };
        let Some(key) = secret.find(KeyId(id)).map(|key| key.of_registries()) else { return Ok(None) };
        match (hmac::verify(&key, &of_request(&nonce, asked), &said), <[u8; 32]>::try_from(said)) {
            (Ok(()), Ok(tag)) => Ok(Some(Self { key, tag })),
            _ => Err("the proof of this request is wrong: it was changed on the way"),
        }
    }

    /// What goes into the header of the answer.
    pub(crate) fn answer(&self, told: Told<'_>) -> String {
        HEXLOWER.encode(&tag(&self.key, &self.of_answer(told)))
    }

    /// Is this the proof of that answer?
    pub(crate) fn is_proof(&self, header: &str, told: Told<'_>) -> bool {
        let said = HEXLOWER.decode(header.as_bytes());
        said.is_ok_and(|said| hmac::verify(&self.key, &self.of_answer(told), &said).is_ok())
    }

    fn of_answer(&self, Told { status, etag, body }: Told<'_>) -> Vec<u8> {
        let etag = etag.map(str::as_bytes);
        whole(&[Some(b"answer"), Some(&self.tag), Some(&status.to_be_bytes()), etag, Some(body)])
    }
}

fn of_request(nonce: &[u8; NONCE], asked: Question<'_>) -> Vec<u8> {
    let Question { method, path, if_match, if_none_match, body } = asked;
    let (method, path) = (Some(method.as_bytes()), Some(path.as_bytes()));
    let (one, other) = (if_match.map(str::as_bytes), if_none_match.map(str::as_bytes));
    whole(&[Some(b"request"), Some(nonce), method, path, one, other, Some(body)])
}

/// All parts, so that no two lists of parts come to the same bytes.
fn whole(parts: &[Option<&[u8]>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.push(u8::from(part.is_some()));
        let part = part.unwrap_or_default();
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

fn tag(key: &hmac::Key, message: &[u8]) -> [u8; 32] {
    *hmac::sign(key, message).as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

/// What a client expects of the registry that it uses.
pub(crate) struct Trust {
    wallet: Wallet,
    /// Answers had proofs before, or must have them from the start.
    required: AtomicBool,
}

impl Trust {
    pub(crate) fn new(wallet: &Wallet, required: bool) -> Self {
        Self { wallet: wallet.clone(), required: AtomicBool::new(required) }
    }

    /// Proves a request, if there is a secret.
    pub(crate) fn ask(&self, asked: Question<'_>) -> io::Result<Option<(Proved, String)>> {
        match self.wallet.get() {
            Credentials::Secret(secret) => Proved::ask(&secret, asked).map(Some),
            Credentials::None | Credentials::Tls(_) => Ok(None),
        }
    }

    /// May this answer be believed?
    pub(crate) fn believe(
        &self,
        request: Option<&Proved>,
        header: Option<&str>,
        told: Told<'_>,
    ) -> io::Result<()> {
        let proved = match (request, header) {
            (Some(request), Some(header)) if !request.is_proof(header, told) => {
                let why = "the proof of the registry's answer is wrong: somebody changed it on the way";
                return Err(io::Error::other(why));
            }
            (Some(_), Some(_)) => true,
            _ => false,
        };
        if proved {
            self.required.store(true, Ordering::Relaxed);
        } else if self.required.load(Ordering::Relaxed) {
            let why = "the registry's answer has no proof, though it must: start its agent with the --secret-file of this \
                       cluster; if it has that, somebody is on the way to it";
            return Err(io::Error::other(format!("{why} (status {})", told.status)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;
    use crate::secret::Source;

    fn secret(n: u8) -> Secret {
        (0..32).map(|i| format!("{:02x}", i ^ n)).collect::<String>().parse().expect("a key")
    }

    const ASKED: Question<'_> = Question {
        method: "PUT",
        path: "/v1/rendezvous/c/slots/0",
        if_match: Some("\"7-1\""),
        if_none_match: None,
        body: b"{}",
    };
    const TOLD: Told<'_> = Told { status: 200, etag: Some("\"7-2\""), body: b"{}" };

    #[test]
    fn a_proof_is_of_this_request_and_of_this_answer_to_it_and_of_no_other() {
        let (asked, header) = Proved::ask(&secret(1), ASKED).expect("random");
        let read = |asked| Proved::read(&secret(1), &header, asked);
        let there = read(ASKED).expect("well made").expect("our key");
        for other in [
            Question { method: "DELETE", ..ASKED },
            Question { path: "/v1/rendezvous/c/slots/1", ..ASKED },
            Question { if_match: None, ..ASKED },
            Question { if_match: None, if_none_match: ASKED.if_match, ..ASKED },
            Question { if_none_match: Some(""), ..ASKED },
            Question { body: b"{ }", ..ASKED },
        ] {
            assert!(read(other).is_err(), "{other:?}");
        }
        assert!(Proved::read(&secret(2), &header, ASKED).expect("well made").is_none(), "a key of others");
        let said = there.answer(TOLD);
        assert!(asked.is_proof(&said, TOLD));
        for other in [
            Told { status: 201, ..TOLD },
            Told { etag: None, ..TOLD },
            Told { etag: Some("\"7-1\""), ..TOLD },
            Told { body: b"", ..TOLD },
        ] {
            assert!(!asked.is_proof(&said, other), "{other:?}");
        }
        let (again, header) = Proved::ask(&secret(1), ASKED).expect("random");
        assert!(!again.is_proof(&said, TOLD), "the answer to another request");
        for at in 0..header.len() {
            let mut other = header.clone().into_bytes();
            other[at] ^= 1;
            let other = String::from_utf8(other).expect("text");
            assert!(!matches!(Proved::read(&secret(1), &other, ASKED), Ok(Some(_))), "a flipped bit at {at}");
        }
    }

    #[test]
    fn who_saw_a_proof_once_or_was_told_so_believes_nothing_without() {
        let wallet = |source| Wallet::open(source).expect("a key");
        let ours = wallet(Source::Given(secret(1)));
        let believe = |trust: &Trust, header: Option<&str>| {
            let (request, _) = trust.ask(ASKED).expect("random").expect("there is a secret");
            let header = header.map_or_else(|| request.answer(TOLD), str::to_owned);
            trust.believe(Some(&request), Some(header.as_str()).filter(|h| !h.is_empty()), TOLD)
        };
        let trust = Trust::new(&ours, false);
        believe(&trust, Some("")).expect("an agent without the secret");
        assert!(believe(&trust, Some("00")).is_err(), "a wrong one is worse than none");
        believe(&trust, None).expect("a proof");
        let why = believe(&trust, Some("")).expect_err("it had proofs before").to_string();
        assert!(why.contains("--secret-file") && why.contains("200"), "{why}");
        assert!(believe(&Trust::new(&ours, true), Some("")).is_err(), "it must have one from the start");
        // Without a secret nobody can tell.
        let trust = Trust::new(&wallet(Source::None), false);
        assert!(trust.ask(ASKED).expect("nothing to do").is_none());
        trust.believe(None, Some("00"), TOLD).expect("as it was");
    }

    proptest! {
        #[test]
        fn whatever_the_headers_say_nothing_breaks_and_nothing_is_proved(
            text in "([0-9a-f]{0,80}[.]?){0,4}|\\PC{0,40}",
            body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let asked = Question { body: &body, ..ASKED };
            prop_assert!(!matches!(Proved::read(&secret(1), &text, asked), Ok(Some(_))));
            let (request, _) = Proved::ask(&secret(1), asked).expect("random");
            prop_assert!(!request.is_proof(&text, TOLD));
        }
    }
}
