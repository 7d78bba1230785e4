//! Certificates made on the spot, and clients that believe in them.
#![allow(dead_code, reason = "every test uses a part")]

use std::{
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};

use super::common::{PATIENCE, Response, read_response};

/// An authority of this test, and a directory for what it signs.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("router-{}-{number}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, directory }
    }

    /// Signs a certificate for these names; returns what the configuration says of its files.
    pub fn sign(&self, file: &str, names: &[&str]) -> String {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        let (cert_file, key_file) = self.files(file);
        std::fs::write(&cert_file, certificate.pem() + &self.issuer.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        format!("{{ cert = \"{}\", key = \"{}\" }}", cert_file.display(), key_file.display())
    }

    /// Where a certificate and its key are.
    pub fn files(&self, file: &str) -> (PathBuf, PathBuf) {
        (self.directory.join(format!("{file}.pem")), self.directory.join(format!("{file}.key")))
    }

    /// The authority's own certificate, in a file.
    pub fn file(&self) -> PathBuf {
        let file = self.directory.join("ca.pem");
        std::fs::write(&file, self.issuer.pem()).unwrap();
        file
    }

    /// What clients of this authority's servers connect with.
    pub fn client_config(&self, tls12: bool) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let versions = if tls12 { [&TLS12] } else { [&TLS13] };
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    pub fn connect(&self, addr: SocketAddr, name: &str) -> TlsClient {
        TlsClient::connect(addr, name, &Arc::new(self.client_config(false))).unwrap()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub type Session = StreamOwned<ClientConnection, TcpStream>;

/// A client under TLS.
pub struct TlsClient {
    pub reader: BufReader<Session>,
}

impl TlsClient {
    /// Connects, and ends the handshake.
    pub fn connect(addr: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        Self::over(TcpStream::connect(addr)?, name, config)
    }

    pub fn over(stream: TcpStream, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let session = ClientConnection::new(Arc::clone(config), name).unwrap();
        let mut stream = StreamOwned::new(session, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { reader: BufReader::new(stream) })
    }

    pub fn session(&mut self) -> &mut Session {
        self.reader.get_mut()
    }

    pub fn send(&mut self, text: impl AsRef<[u8]>) {
        self.session().write_all(text.as_ref()).unwrap();
    }

    pub fn get(&mut self, key: &str) -> Response {
        self.send(format!("GET /x HTTP/1.1\r\nHost: h\r\nX-Key: {key}\r\n\r\n"));
        read_response(&mut self.reader, "GET").unwrap()
    }

    /// The certificate that the server showed.
    pub fn shown(&mut self) -> CertificateDer<'static> {
        self.session().conn.peer_certificates().unwrap()[0].clone().into_owned()
    }

    pub fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).map(|_| rest)
    }
}

/// The first certificate in a file.
pub fn first_in(file: &Path) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(&std::fs::read(file).unwrap()).unwrap()
}
