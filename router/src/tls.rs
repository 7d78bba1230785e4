//! TLS towards clients: certificates chosen by the name that a client asks for, read again on demand.
//!
//! TLS 1.2 and 1.3, no early data (it could be replayed), sessions resumed by tickets, whose keys live and
//! change in memory. Whoever replaces the files may do so at any time: they are read at the start and when
//! [`Terminator::reload`] is called, and a mistake in them leaves what was read before in force.

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    CertificateError as Invalid, Error, InconsistentKeys, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ProducesTickets, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use crate::config::{Config, Protocol, TlsFiles};

/// The longest file of certificates or keys that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The most certificates in one chain.
const MAX_CHAIN: usize = 16;
/// How long before a certificate expires this is said.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// A certificate, or its key, that cannot be shown to clients. What was in force before still is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateError {
    service: String,
    file: PathBuf,
    message: String,
}

impl CertificateError {
    /// The service whose clients would see the certificate.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The file that is at fault.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {:?}: {}: {}", self.service, self.file.display(), self.message)
    }
}

impl std::error::Error for CertificateError {}

/// One service's side of TLS, shared by its workers.
pub(crate) struct Terminator {
    service: Box<str>,
    files: Box<[TlsFiles]>,
    /// The application protocols that clients are offered, if the service's protocol has names for them.
    alpn: &'static [&'static [u8]],
    /// The same for as long as the service lives, so that sessions outlive new certificates.
    tickets: Arc<dyn ProducesTickets>,
    /// Locked for one copy per connection.
    current: Mutex<Arc<ServerConfig>>,
}

impl Terminator {
    /// Reads the files, of which there is at least one pair.
    pub fn load(
        service: &str,
        files: &[TlsFiles],
        alpn: &'static [&'static [u8]],
    ) -> Result<Self, CertificateError> {
        let tickets = ring::Ticketer::new().map_err(|error| CertificateError {
            service: service.into(),
            file: files[0].key.clone(),
            message: format!("no random numbers for tickets: {error}"),
        })?;
        let current = Mutex::new(configure(service, files, alpn, &tickets)?);
        Ok(Self { service: service.into(), files: files.into(), alpn, tickets, current })
    }

    /// Reads the files again. Connections that exist go on with what they were made with.
    pub fn reload(&self) -> Result<(), CertificateError> {
        let fresh = configure(&self.service, &self.files, self.alpn, &self.tickets)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// What the next connection is made with.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All services' sides of TLS, of those that have one.
#[derive(Clone, Default)]
pub(crate) struct Terminators(Vec<Arc<Terminator>>);

impl Terminators {
    /// Those that a configuration asks for. What it leaves as it is in `old` is not read again, and goes on.
    pub fn of(config: &Config, old: &Self) -> Result<Self, CertificateError> {
        let mut all = Vec::new();
        for service in config.services.iter().filter(|service| !service.tls.is_empty()) {
            let alpn: &[&[u8]] = match service.protocol {
                Protocol::Http { .. } => &[b"http/1.1"],
                _ => &[],
            };
            let same = old.get(&service.name).filter(|old| *old.files == *service.tls && old.alpn == alpn);
            all.push(match same {
                Some(same) => same,
                None => Arc::new(Terminator::load(&service.name, &service.tls, alpn)?),
            });
        }
        Ok(Self(all))
    }

    /// That of one service.
    pub fn get(&self, service: &str) -> Option<Arc<Terminator>> {
        self.0.iter().find(|terminator| *terminator.service == *service).cloned()
    }

    /// Reads all files again. Tells of those that cannot be used.
    pub fn reload(&self) -> Vec<CertificateError> {
        self.0.iter().filter_map(|terminator| terminator.reload().err()).collect()
    }
}

fn configure(
    service: &str,
    files: &[TlsFiles],
    alpn: &[&[u8]],
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, CertificateError> {
    let provider = Arc::new(ring::default_provider());
    let certificates = Certificates::read(service, files, &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("the provider has suites for both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.ticketer = Arc::clone(tickets);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A service's certificates by the names in them.
#[derive(Debug)]
struct Certificates {
    all: Vec<Arc<CertifiedKey>>,
    /// By name, in lower case. For `*.example.com` the name is `.example.com`. Several certificates of one name
    /// have keys of different kinds, say; the client's abilities decide.
    by_name: HashMap<Box<str>, Vec<usize>>,
}

impl Certificates {
    fn read(service: &str, files: &[TlsFiles], provider: &CryptoProvider) -> Result<Self, CertificateError> {
        let wrong = |file: &Path, message: String| CertificateError {
            service: service.into(),
            file: file.into(),
            message,
        };
        let mut certificates = Self { all: Vec::new(), by_name: HashMap::new() };
        for TlsFiles { cert, key } in files {
            let chain = chain(cert).map_err(|message| wrong(cert, message))?;
            let private = private_key(key).map_err(|message| wrong(key, message))?;
            let certified =
                CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
                    Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                        wrong(key, format!("the key is not that of the certificate in {}", cert.display()))
                    }
                    Error::InvalidCertificate(_) => wrong(cert, error.to_string()),
                    error => wrong(key, format!("not a key that is supported: {error}")),
                })?;
            judge_times(&certified, service, cert);
            let at = certificates.all.len();
            let names = names(&certified).map_err(|message| wrong(cert, message))?;
            if names.is_empty() && at > 0 {
                let message =
                    "the certificate names no host, so no client would ever see it: only the first \
                               certificate of a service need not"
                        .into();
                return Err(wrong(cert, message));
            }
            for name in names {
                let name = name.strip_prefix('*').unwrap_or(&name).to_ascii_lowercase();
                certificates.by_name.entry(name.into()).or_default().push(at);
            }
            certificates.all.push(Arc::new(certified));
        }
        Ok(certificates)
    }

    /// Those for this name: of exactly this name, else of a wildcard that stands for it.
    fn named(&self, name: &str) -> Option<&[usize]> {
        let name = name.to_ascii_lowercase();
        let exact = self.by_name.get(&*name);
        // A wildcard stands for one label.
        let wildcard = || name.find('.').and_then(|dot| self.by_name.get(&name[dot..]));
        exact.or_else(wildcard).map(Vec::as_slice)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let candidates = hello.server_name().and_then(|name| self.named(name)).unwrap_or(&[0]);
        let usable = candidates.iter().find(|&&at| {
            let schemes = hello.signature_schemes();
            self.all[at].key.choose_scheme(schemes).is_some()
        });
        // If the client can use none of them the handshake says so.
        usable.or(candidates.first()).map(|&at| Arc::clone(&self.all[at]))
    }
}

/// What a file holds; whatever else a path may lead to (a pipe, a device) is not read.
fn contents(file: &Path) -> Result<Vec<u8>, String> {
    let read = || -> io::Result<Result<Vec<u8>, String>> {
        let meta = std::fs::metadata(file)?;
        if !meta.is_file() {
            return Ok(Err("it is not a file".into()));
        }
        if meta.len() > MAX_FILE {
            return Ok(Err(format!("it is longer than {MAX_FILE} bytes")));
        }
        std::fs::read(file).map(Ok)
    };
    read().unwrap_or_else(|error| Err(format!("cannot be read: {error}")))
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = contents(file)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).take(MAX_CHAIN + 1).collect();
    match chain {
        Ok(chain) if chain.is_empty() => {
            Err("there is no certificate in PEM in it (BEGIN CERTIFICATE)".into())
        }
        Ok(chain) if chain.len() > MAX_CHAIN => {
            Err(format!("there are more than {MAX_CHAIN} certificates in it: give one chain"))
        }
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("malformed PEM: {error:?}")),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = contents(file)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            let encrypted = text.windows(9).any(|window| window == b"ENCRYPTED");
            if encrypted {
                "the key is encrypted, and there is nobody to ask for the passphrase: decrypt it".into()
            } else {
                "there is no private key in PEM in it (BEGIN PRIVATE KEY)".into()
            }
        }
        error => format!("malformed PEM: {error:?}"),
    })
}

/// The names of hosts in a certificate.
fn names(certified: &CertifiedKey) -> Result<Vec<String>, String> {
    let end_entity = webpki::EndEntityCert::try_from(&certified.cert[0])
        .map_err(|error| format!("the certificate is malformed: {error:?}"))?;
    Ok(end_entity.valid_dns_names().map(Into::into).collect())
}

/// Says so if a certificate is out of date: it is shown all the same, and clients judge.
fn judge_times(certified: &CertifiedKey, service: &str, file: &Path) {
    let now = UnixTime::now();
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + SOON);
    let file = file.display();
    for (at, certificate) in certified.cert.iter().enumerate() {
        match (validity(certificate, now), validity(certificate, soon)) {
            (Some(Invalid::NotValidYet | Invalid::NotValidYetContext { .. }), _) => {
                tracing::warn!(service, %file, at, "the certificate is not valid yet: compare the clocks");
            }
            (Some(_), _) => {
                tracing::warn!(service, %file, at, "the certificate has expired: clients will refuse it");
            }
            (None, Some(_)) => {
                tracing::warn!(service, %file, at, "the certificate expires within 14 days");
            }
            (None, None) => {}
        }
    }
}

/// What is wrong with a certificate's times at this instant.
///
/// Its times are looked at before whoever signed it, so that nobody need be trusted to ask.
fn validity(certificate: &CertificateDer<'_>, at: UnixTime) -> Option<Invalid> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    let verified = rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        at,
        algorithms,
    );
    match verified {
        Err(Error::InvalidCertificate(
            invalid @ (Invalid::Expired
            | Invalid::ExpiredContext { .. }
            | Invalid::NotValidYet
            | Invalid::NotValidYetContext { .. }),
        )) => Some(invalid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn signed(names: &[&str], adjust: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        adjust(&mut params);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("router-tls-{}-{number}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn files(&self, at: usize, (cert, key): (&str, &str)) -> TlsFiles {
            let files =
                TlsFiles { cert: self.0.join(format!("{at}.pem")), key: self.0.join(format!("{at}.key")) };
            std::fs::write(&files.cert, cert).unwrap();
            std::fs::write(&files.key, key).unwrap();
            files
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn read(files: &[TlsFiles]) -> Result<Certificates, CertificateError> {
        Certificates::read("s", files, &ring::default_provider())
    }

    #[test]
    fn names_are_found_exactly_then_by_wildcard() {
        let directory = Directory::new();
        let texts = [
            signed(&["first.example"], |_| {}),
            signed(&["*.example.com", "example.com"], |_| {}),
            signed(&["a.Example.com"], |_| {}),
        ];
        let files: Vec<TlsFiles> =
            texts.iter().enumerate().map(|(at, (cert, key))| directory.files(at, (cert, key))).collect();
        let certificates = read(&files).unwrap();
        for (name, found) in [
            ("first.example", Some(0)),
            ("FIRST.example", Some(0)),
            ("example.com", Some(1)),
            ("b.example.com", Some(1)),
            ("a.example.com", Some(2)),
            ("a.b.example.com", None), // a wildcard stands for one label
            (".example.com", Some(1)), // no client can ask this: it is no name
            ("com", None),
            ("example", None),
        ] {
            assert_eq!(certificates.named(name).map(|all| all[0]), found, "{name}");
        }
    }

    #[test]
    fn whatever_is_wrong_is_said_with_its_file() {
        let directory = Directory::new();
        let (cert, key) = signed(&["a.example"], |_| {});
        let (other_cert, other_key) = signed(&[], |_| {});
        let good = directory.files(0, (&cert, &key));
        read(std::slice::from_ref(&good)).unwrap();
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (texts, file, says) in [
            ((&*cert, &*other_key), "9.key", "not that of the certificate in"),
            ((&key, &key), "9.pem", "no certificate in PEM"),
            ((&cert, &cert), "9.key", "no private key in PEM"),
            ((&cert, ""), "9.key", "no private key in PEM"),
            ((&cert, encrypted), "9.key", "encrypted"),
            ((garbage, &key), "9.pem", ""),
            ((&cert.repeat(17), &key), "9.pem", "more than 16"),
            ((&cert[..cert.len() - 10], &key), "9.pem", "malformed PEM"),
            ((&other_cert, &other_key), "9.pem", "names no host"),
        ] {
            let error = read(&[good.clone(), directory.files(9, texts)]).unwrap_err();
            assert!(error.file().ends_with(file), "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
        let missing = TlsFiles { cert: directory.0.join("none"), key: good.key.clone() };
        assert!(read(&[missing]).unwrap_err().to_string().contains("none: cannot be read: "));
        let device = TlsFiles { cert: "/dev/zero".into(), key: good.key.clone() };
        assert!(read(&[device]).unwrap_err().to_string().contains("not a file"));
        read(&[directory.files(9, (&other_cert, &other_key))]).expect("the default need not name anybody");
    }

    #[test]
    fn times_are_seen_whoever_signed() {
        let year = |cert: &str| {
            let certificate = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
            validity(&certificate, UnixTime::now())
        };
        let (good, _) = signed(&["a.example"], |_| {});
        assert_eq!(year(&good), None);
        let (old, _) = signed(&["a.example"], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        assert!(matches!(year(&old), Some(Invalid::Expired | Invalid::ExpiredContext { .. })));
        let (new, _) = signed(&["a.example"], |params| params.not_before = rcgen::date_time_ymd(4000, 1, 1));
        assert!(matches!(year(&new), Some(Invalid::NotValidYet | Invalid::NotValidYetContext { .. })));
    }

    #[test]
    fn a_bad_file_leaves_the_old_one_in_force() {
        let directory = Directory::new();
        let (cert, key) = signed(&["a.example"], |_| {});
        let files = directory.files(0, (&cert, &key));
        let terminator = Terminator::load("s", std::slice::from_ref(&files), &[]).unwrap();
        let before = terminator.current();
        std::fs::write(&files.key, "nothing").unwrap();
        assert!(terminator.reload().unwrap_err().to_string().contains("0.key: there is no private key"));
        assert!(Arc::ptr_eq(&before, &terminator.current()));
        std::fs::write(&files.key, &key).unwrap();
        terminator.reload().unwrap();
        assert!(!Arc::ptr_eq(&before, &terminator.current()));
    }
}
