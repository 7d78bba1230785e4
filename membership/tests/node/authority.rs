//! An authority that signs certificates, and the files that nodes read them from.
#![allow(dead_code, reason = "each user needs a part of it")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("random");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these names and addresses, and the key to it.
    pub fn sign(&self, names: &[&str]) -> [String; 2] {
        self.sign_until(names, SystemTime::now() + Duration::from_secs(3600))
    }

    pub fn sign_until(&self, names: &[&str], end: SystemTime) -> [String; 2] {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("good names");
        let end = end.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        params.not_after = date_time_ymd(1970, 1, 1) + end;
        let key = KeyPair::generate().expect("random");
        [params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem()]
    }
}

/// What a node reads.
#[derive(Clone)]
pub struct Files {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Files {
    pub fn new(dir: &Path, stem: &str) -> Self {
        let file = |what: &str| dir.join(format!("{stem}.{what}.pem"));
        Self { ca: file("ca"), cert: file("cert"), key: file("key") }
    }

    pub fn write(&self, authorities: &[&Authority], [cert, key]: &[String; 2]) {
        fs::write(&self.ca, authorities.iter().map(|a| a.pem.as_str()).collect::<String>()).expect("written");
        fs::write(&self.cert, cert).expect("written");
        fs::write(&self.key, key).expect("written");
        fs::set_permissions(&self.key, fs::Permissions::from_mode(0o600)).expect("set");
    }

    pub fn remove(&self) {
        for file in [&self.ca, &self.cert, &self.key] {
            fs::remove_file(file).expect("it is there");
        }
    }
}
