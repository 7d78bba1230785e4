//! What nodes show each other, in files: a secret, or certificates of an authority of the round's own.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::Context;
use membership_types::Rng;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::plan::{Keys, Plan};

/// Makes the files for all places of a round.
pub fn make(plan: &Plan, dir: &Path) -> anyhow::Result<()> {
    match plan.keys {
        Keys::None => Ok(()),
        Keys::Secret => {
            let mut keys = Rng::seeded(plan.seed ^ 0x5ea1);
            let key: String = (0..4).map(|_| format!("{:016x}", keys.next_u64())).collect();
            private(&dir.join("secret"), &key)
        }
        Keys::Certificates => {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate()?;
            fs::write(dir.join("ca.pem"), params.self_signed(&key)?.pem())?;
            let authority = Issuer::new(params, key);
            for place in 0..plan.roles.len() {
                let key = KeyPair::generate()?;
                let certificate = CertificateParams::new([name(place)])?.signed_by(&key, &authority)?;
                fs::write(dir.join(format!("{}.pem", name(place))), certificate.pem())?;
                private(&dir.join(format!("{}.key.pem", name(place))), &key.serialize_pem())?;
            }
            Ok(())
        }
    }
}

/// A place's name: the checker knows a node, and its founder slot, by the number that follows from it.
pub fn name(place: usize) -> String {
    format!("n{place}")
}

/// The flags with which a place shows them.
pub fn give(plan: &Plan, dir: &Path, place: usize, command: &mut Command) {
    match plan.keys {
        Keys::None => command.arg("--insecure"),
        Keys::Secret => command.arg("--secret-file").arg(dir.join("secret")),
        Keys::Certificates => command
            .arg("--tls-ca")
            .arg(dir.join("ca.pem"))
            .arg("--tls-cert")
            .arg(dir.join(format!("{}.pem", name(place))))
            .arg("--tls-key")
            .arg(dir.join(format!("{}.key.pem", name(place)))),
    };
}

/// A file for its owner alone.
fn private(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o600))?)
}
