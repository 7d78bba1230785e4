//! Certificates: every node has one of its own, which an authority signed that all nodes trust.
//!
//! TLS 1.3 and nothing else; no resumption, so that every connection proves everything. That a certificate is signed is checked
//! within the handshake, to whom it belongs afterwards: a node connects to an address before it knows who is there.

use std::{
    fmt,
    io::{self, Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf, BytesMut};
use membership_types::Instant;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    Error, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier},
    version::TLS13,
};

use crate::{
    secret::{SecretError, read_private, read_public},
    session::{Corrupt, STALLED, Scratch},
};

/// Bytes of a record's head, and of the longest record that may come.
const HEAD: usize = 5;
const LONGEST: usize = HEAD + (1 << 14) + 256;
/// Authorities and certificates in one file.
const CERTIFICATES: usize = 64;

/// The files that certificates come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// What a node shows of itself, and whom it believes.
pub(crate) struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    own: CertificateDer<'static>,
    file: PathBuf,
}

impl Tls {
    pub(crate) fn read(files: &TlsFiles) -> Result<Self, SecretError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in certificates("tls-ca", &files.ca)? {
            roots.add(authority).map_err(|error| wrong("tls-ca", &files.ca, explain(&error)))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates("tls-cert", &files.cert)?;
        let text = read_private(&files.key).map_err(|error| wrong("tls-key", &files.key, error))?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| wrong("tls-key", &files.key, "there is no private key in PEM in it"))?;
        let (own, others) = chain.split_first().expect("there is one at least");
        let bad = |error: &Error| wrong("tls-cert", &files.cert, explain(error));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let verifier = verifier.build().map_err(|error| wrong("tls-ca", &files.ca, error))?;
        let signed = Arc::new(Signed { roots, provider: Arc::clone(&provider) });
        // What others would find wrong with it is better said here.
        let now = UnixTime::now();
        signed.check(own, others, now).map_err(|error| bad(&error))?;
        verifier.verify_client_cert(own, others, now).map_err(|error| bad(&error))?;
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .and_then(|config| {
                config.with_client_cert_verifier(verifier).with_single_cert(chain.clone(), key.clone_key())
            });
        let mut server = server.map_err(|error| bad(&error))?;
        server.send_tls13_tickets = 0;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|config| {
                let config = config.dangerous().with_custom_certificate_verifier(signed);
                config.with_client_auth_cert(chain.clone(), key)
            });
        let mut client = client.map_err(|error| bad(&error))?;
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let (server, client) = (Arc::new(server), Arc::new(client));
        Ok(Self { server, client, own: own.clone(), file: files.cert.clone() })
    }

    /// Does the certificate belong to a node of this name, at this address?
    pub(crate) fn check_own(&self, name: &str, addr: SocketAddr) -> Result<(), SecretError> {
        if vouches(&self.own, name, addr) {
            return Ok(());
        }
        let what = format!(
            "it names neither this node ({name:?}) nor its address ({}): put one of them into its subject alternative names, or \
             give the --name or --advertise that is there",
            addr.ip()
        );
        Err(wrong("tls-cert", &self.file, what))
    }

    /// The side that connected.
    pub(crate) fn connect(&self) -> Certified {
        // The name is neither sent nor checked: to whom the certificate belongs is judged when the other side has said its name.
        let nobody = ServerName::try_from("node.phalanx.invalid").expect("it is a name");
        let conn =
            ClientConnection::new(Arc::clone(&self.client), nobody).expect("the configuration is whole");
        Certified::new(conn.into())
    }

    /// The other side.
    pub(crate) fn accept(&self) -> Certified {
        let conn = ServerConnection::new(Arc::clone(&self.server)).expect("the configuration is whole");
        Certified::new(conn.into())
    }
}

fn wrong(flag: &str, file: &Path, what: impl fmt::Display) -> SecretError {
    SecretError::Tls(format!("--{flag} {}: {what}", file.display()))
}

fn certificates(flag: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, SecretError> {
    let text = read_public(file).map_err(|error| wrong(flag, file, error))?;
    let read: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(text.as_bytes()).take(CERTIFICATES).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        _ => Err(wrong(flag, file, "there is no certificate in PEM in it")),
    }
}

/// Is this certificate that of a node of this name, or at this address?
fn vouches(cert: &CertificateDer<'_>, name: &str, addr: SocketAddr) -> bool {
    let Ok(cert) = ParsedCertificate::try_from(cert) else { return false };
    let by_name = ServerName::try_from(name).is_ok_and(|name| verify_server_name(&cert, &name).is_ok());
    by_name || verify_server_name(&cert, &ServerName::IpAddress(addr.ip().into())).is_ok()
}

/// What is wrong with a certificate, and what would be right.
pub(crate) fn explain(error: &Error) -> String {
    let Error::InvalidCertificate(error) = error else { return error.to_string() };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired: have a new one signed, and send HUP".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet: compare the clocks, or wait".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "none of the authorities in --tls-ca signed it: give all nodes certificates of one authority, and its own as --tls-ca"
                .to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage must have both serverAuth and clientAuth, or be absent: nodes are both".to_owned()
        }
        other => other.to_string(),
    }
}

/// What the other side means by ending a handshake.
pub(crate) fn explain_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => {
            "to it, the certificate of this node has expired, or is not valid yet: have a new one signed, and send HUP".to_owned()
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "none of the authorities in its --tls-ca signed the certificate of this node".to_owned()
        }
        other => format!("it ends the handshake with {other:?}"),
    }
}

/// Checks of who answers that an authority signed for it.
#[derive(Debug)]
struct Signed {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Signed {
    fn check(
        &self,
        cert: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let cert = ParsedCertificate::try_from(cert)?;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, others, now, algorithms)
    }
}

impl ServerCertVerifier for Signed {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _nobody: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(cert, others, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection under TLS.
pub(crate) struct Certified {
    conn: Connection,
    /// What came with the greeting, and follows it.
    early: BytesMut,
    /// Since when what came in is no whole record.
    since: Option<Instant>,
}

impl Certified {
    fn new(mut conn: Connection) -> Self {
        // Callers bound what they hand in.
        conn.set_buffer_limit(None);
        Self { conn, early: BytesMut::new(), since: None }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.conn.is_handshaking()
    }

    /// Did the authority sign for a node of this name, or at this address?
    pub(crate) fn vouches(&self, name: &str, addr: SocketAddr) -> bool {
        let certs = self.conn.peer_certificates().unwrap_or_default();
        certs.first().is_some_and(|cert| vouches(cert, name, addr))
    }

    /// Adds the records that carry these bytes, and whatever else is to be said.
    pub(crate) fn seal(&mut self, plain: &[u8], out: &mut Scratch) {
        self.conn.writer().write_all(plain).expect("there is no limit");
        while self.conn.wants_write() {
            self.conn.write_tls(out).expect("memory takes everything");
        }
    }

    /// Takes whole records, and adds what was in them to `plain`.
    fn take(&mut self, came: &mut BytesMut, plain: &mut BytesMut) -> Result<(), Error> {
        while let Some(head) = came.first_chunk::<HEAD>() {
            let size = HEAD + usize::from(u16::from_be_bytes([head[3], head[4]]));
            if size <= LONGEST && came.len() < size {
                break;
            }
            // One that is too long is refused by its head.
            let mut record = &came[..size.min(came.len())];
            while !record.is_empty() {
                self.conn.read_tls(&mut record).map_err(|error| Error::General(error.to_string()))?;
                let waits = self.conn.process_new_packets()?.plaintext_bytes_to_read();
                let at = plain.len();
                plain.resize(at + waits, 0);
                self.conn
                    .reader()
                    .read_exact(&mut plain[at..])
                    .map_err(|error| Error::General(error.to_string()))?;
            }
            came.advance(size.min(came.len()));
        }
        Ok(())
    }

    /// During the introduction: takes what came. Whatever is for us waits in here.
    pub(crate) fn hear(&mut self, came: &mut BytesMut) -> Result<(), Error> {
        let mut early = std::mem::take(&mut self.early);
        let outcome = self.take(came, &mut early);
        self.early = early;
        outcome
    }

    /// What came for us and was not taken yet.
    pub(crate) fn early(&mut self) -> &mut BytesMut {
        &mut self.early
    }

    pub(crate) fn open(
        &mut self,
        now: Instant,
        came: &mut BytesMut,
        plain: &mut BytesMut,
    ) -> Result<(), Corrupt> {
        plain.extend_from_slice(&self.early);
        self.early = BytesMut::new();
        let before = came.len();
        self.take(came, plain).map_err(|error| Corrupt::Tls(error.to_string()))?;
        if came.is_empty() {
            self.since = None;
        } else if came.len() < before {
            self.since = Some(now);
        } else {
            self.since.get_or_insert(now);
        }
        match self.since {
            Some(since) if now - since >= STALLED => Err(Corrupt::Stalled),
            _ => Ok(()),
        }
    }

    /// Since when bytes came that make no whole record.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }
}

impl Write for Scratch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "../tests/node/authority.rs"]
mod authority;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use membership_types::NodeId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{
        authority::{Authority, Files},
        *,
    };
    use crate::{
        clock,
        handshake::{Hello, Met, Refusal, initiate, respond},
        metrics::Counts,
        secret::Credentials,
        start::name_hash,
    };

    fn hello(name: &str, inc: u64) -> Hello {
        let addr = SocketAddr::from(([10, 0, 0, 7], 1));
        Hello { name: name.into(), node: NodeId::new(name_hash(name), inc), addr, ..Hello::sample(1) }
    }

    fn credentials(authority: &Authority, names: &[&str]) -> Credentials {
        let files =
            Files::new(&std::env::temp_dir(), &format!("phalanx-{}-{}", std::process::id(), names.join("-")));
        files.write(&[authority], &authority.sign(names));
        let of = TlsFiles { ca: files.ca.clone(), cert: files.cert.clone(), key: files.key.clone() };
        let read = Tls::read(&of).expect("right");
        files.remove();
        Credentials::Tls(Arc::new(read))
    }

    type Outcome = Result<Met, Refusal>;

    async fn meet(a: (&Hello, &Credentials), b: (&Hello, &Credentials)) -> (Outcome, Outcome) {
        let (mut left, mut right) = tokio::io::duplex(700);
        let mut new = |_: &[u8]| true;
        tokio::join!(initiate(&mut left, a.0, a.1), respond(&mut right, b.0, b.1, &mut new))
    }

    fn why(outcome: Outcome) -> String {
        let Err(refusal) = outcome else { panic!("they met") };
        assert!(refusal.is_reject(), "{refusal}");
        refusal.to_string()
    }

    #[tokio::test]
    async fn two_nodes_of_one_authority_meet_and_what_they_say_comes_through_however_it_is_cut() {
        let authority = Authority::new();
        let (a, b) = (credentials(&authority, &["a"]), credentials(&authority, &["10.0.0.7"]));
        let (one, two) = meet((&hello("a", 1), &a), (&hello("b", 2), &b)).await;
        let (mut one, mut two) = (one.expect("met"), two.expect("met"));
        assert_eq!((&*one.hello.name, &*two.hello.name), ("b", "a"));
        assert!(one.rest.is_empty() && !one.session.is_open() && !two.session.is_open());
        let long: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let counts = Counts::default();
        for back in [false, true] {
            let (from, to) = if back { (&mut two, &mut one) } else { (&mut one, &mut two) };
            let (from, to) = (&mut from.session, &mut to.session);
            let mut out = Scratch::default();
            from.seal(b"short", &mut out);
            from.seal(&long, &mut out);
            let (mut came, mut plain) = (BytesMut::new(), BytesMut::new());
            for part in out.bytes().chunks(7001) {
                came.extend_from_slice(part);
                to.open(clock::now(), &mut came, &mut plain, &counts).expect("right");
            }
            assert_eq!(plain, [b"short", &long[..]].concat());
            assert_eq!(to.patience(clock::now()), None);
        }
    }

    #[tokio::test]
    async fn a_record_that_is_changed_or_does_not_end_closes_the_connection() {
        let authority = Authority::new();
        let both = credentials(&authority, &["a", "b"]);
        let counts = Counts::default();
        let met = meet((&hello("a", 1), &both), (&hello("b", 2), &both)).await;
        let (mut one, mut two) = (met.0.expect("met").session, met.1.expect("met").session);
        let mut out = Scratch::default();
        one.seal(b"a heartbeat", &mut out);
        let mut stretched = BytesMut::from(out.bytes());
        stretched[4] += 1;
        let (now, mut plain) = (clock::now(), BytesMut::new());
        assert_eq!(two.open(now, &mut stretched, &mut plain, &counts), Ok(()));
        assert!(two.patience(now).is_some_and(|patience| patience <= STALLED));
        assert_eq!(two.open(now.after(STALLED), &mut stretched, &mut plain, &counts), Err(Corrupt::Stalled));
        let mut changed = BytesMut::from(out.bytes());
        changed[9] ^= 1;
        let mut fresh = BytesMut::new();
        let refused = two.open(now, &mut changed, &mut fresh, &counts);
        assert!(
            matches!(refused, Err(Corrupt::Tls(_))) && plain.is_empty() && fresh.is_empty(),
            "{refused:?}"
        );
        assert_eq!(counts.corrupt.get(), 1);
    }

    #[tokio::test]
    async fn who_names_itself_otherwise_than_its_certificate_is_refused_and_told_so() {
        let authority = Authority::new();
        let (a, b) = (credentials(&authority, &["a"]), credentials(&authority, &["b"]));
        // As the one who connects, and as the one who answers.
        let (one, two) = meet((&hello("c", 1), &a), (&hello("b", 2), &b)).await;
        let (one, two) = (why(one), why(two));
        assert!(
            two.contains("\"c\"") && two.contains("10.0.0.7") && two.contains("subject alternative"),
            "{two}"
        );
        assert!(one.contains("\"c\"") && one.contains("this node"), "{one}");
        let (one, _) = meet((&hello("a", 1), &a), (&hello("c", 2), &b)).await;
        assert!(why(one).contains("subject alternative"));
        // The right name, and the id of somebody else.
        let stolen = Hello { node: hello("b", 7).node, ..hello("a", 1) };
        let (_, two) = meet((&stolen, &a), (&hello("b", 2), &b)).await;
        assert!(why(two).contains("the id of another node"));
    }

    #[tokio::test]
    async fn another_authority_and_other_ways_to_authenticate_are_refused_and_both_sides_know_why() {
        let (ours, theirs) = (credentials(&Authority::new(), &["a"]), credentials(&Authority::new(), &["b"]));
        let (one, two) = meet((&hello("a", 1), &ours), (&hello("b", 2), &theirs)).await;
        let (one, two) = (why(one), why(two));
        assert!(one.contains("--tls-ca") && two.contains("--tls-ca"), "{one}; {two}");
        let key = crate::secret::Secret::generate().expect("random").parse().expect("a key");
        for other in [Credentials::None, Credentials::Secret(key)] {
            for (a, b) in [(&ours, &other), (&other, &ours)] {
                let (one, two) = meet((&hello("a", 1), a), (&hello("b", 2), b)).await;
                let (one, two) = (why(one), why(two));
                assert!(one.contains("--tls-cert") && two.contains("--secret-file"), "{one}; {two}");
            }
        }
    }

    #[tokio::test]
    async fn strangers_get_nobody_in_whatever_they_say_after_the_head() {
        let with = credentials(&Authority::new(), &["a"]);
        let head = [b"PHALANX\x02\x03", &[0; 10][..]].concat();
        let mut rng = membership_types::Rng::seeded(1);
        for n in 0..300 {
            let mut bytes: Vec<u8> = (0..rng.below(400)).map(|_| rng.next_u64() as u8).collect();
            if n % 2 == 0 && bytes.len() > 9 {
                // A record of the handshake, with something in it.
                let size = bytes.len() - HEAD;
                bytes[..HEAD].copy_from_slice(&[22, 3, 1, (size >> 8) as u8, size as u8]);
                bytes[HEAD] = 1;
            }
            let (mut left, mut right) = tokio::io::duplex(1 << 16);
            left.write_all(&[&head[..], &bytes].concat()).await.expect("room");
            left.shutdown().await.expect("open");
            let met = respond(&mut right, &hello("a", 1), &with, &mut |_| true).await;
            assert!(met.is_err());
            drop(right);
            let mut answer = Vec::new();
            left.read_to_end(&mut answer).await.expect("it is closed");
            assert!(answer.len() <= 19 + 7, "a head and an alert at most: {answer:?}");
        }
    }
}
