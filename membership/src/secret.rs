//! What nodes of a cluster have in common and strangers do not: keys, where they come from, and how they are replaced.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Read},
    net::SocketAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
};

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use ring::{hkdf, hmac};

use crate::{
    node::lock,
    tls::{Tls, TlsFiles},
};

/// Fewer bytes than this can be guessed.
const LEAST: usize = 32;
/// A key with fewer different bytes was made by nobody who meant it.
const DIFFERENT: usize = 8;
/// The old and the new one, and one more on each side of a rotation that was cut short.
const KEYS: usize = 4;
/// A file with keys is not longer.
const FILE: u64 = 64 * 1024;

/// The keys of a cluster: whoever holds one of them may join.
///
/// A text of one to four lines; empty ones, and those that begin with `#`, do not count. Each is a key of 32 bytes or more,
/// as hexadecimal digits, in base64, or as it stands. Connections that this node makes use the first key; from others each
/// of them is accepted. So a key is replaced without a pause: append the new one at all nodes, then move it to the front
/// at all, then drop the old one.
///
/// What a key says is as safe as it is random, for who sees a connection begin can try guesses at leisure: use
/// [`Secret::generate`] (`phalanx secret`), no words.
///
/// # Examples
/// ```
/// let secret: membership::Secret = membership::Secret::generate()?.parse()?;
/// let node = membership::Node::builder().secret(secret);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[Key]>);

/// One key: what is told of it, and what is not.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    id: KeyId,
    bytes: [u8; 32],
    /// For what registries are asked and answer; it tells nothing of the other.
    registries: [u8; 32],
}

/// Names a key without telling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeyId(pub(crate) [u8; 8]);

impl KeyId {
    /// Of no key.
    pub(crate) const NONE: Self = Self([0; 8]);
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl Key {
    fn new(material: &[u8]) -> Self {
        let main = hkdf::Salt::new(hkdf::HKDF_SHA256, b"phalanx, links between nodes, 1").extract(material);
        let derived = |what: &'static [u8]| {
            let mut bytes = [0; 32];
            let what = [what];
            let derived = main.expand(&what, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut bytes));
            derived.expect("so many bytes are one block");
            bytes
        };
        let id = *derived(b"id").first_chunk().expect("32 bytes have 8");
        Self { id: KeyId(id), bytes: derived(b"key"), registries: derived(b"registries") }
    }

    pub(crate) fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) fn of_registries(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.registries)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }
}

/// A secret cannot be used. No variant says what is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// There is no line with a key.
    #[error("there is no key in it: `phalanx secret` prints one")]
    Empty,
    /// The number of keys is too high.
    #[error("there are more than {KEYS} keys in it: remove those that no node uses any more")]
    TooMany,
    /// A key can be guessed.
    #[error(
        "line {line} is no key: it has {bytes} bytes, and needs {LEAST} random ones: `phalanx secret` prints such a key"
    )]
    Short {
        /// The line, from 1 on.
        line: usize,
        /// How many bytes it comes to.
        bytes: usize,
    },
    /// A key is made of few different bytes.
    #[error("line {0} is no key: hardly two of its bytes differ; `phalanx secret` prints a random one")]
    Simple(usize),
    /// The same key is there twice.
    #[error("line {0} repeats a key: remove it")]
    Twice(usize),
    /// Not a text.
    #[error("it is no text: write keys as hexadecimal digits or in base64, one a line")]
    NoText,
    /// It is no plain file.
    #[error("it is no regular file: give one, for it is read again whenever keys are replaced")]
    NoFile,
    /// It is longer than any list of keys.
    #[error("it is longer than {FILE} bytes")]
    TooLong,
    /// Everybody on this machine could read or replace it.
    #[error("everybody on this machine can {} it (mode {mode:04o}): chmod 600", if mode & 0o002 == 0 { "read" } else { "write" })]
    Public {
        /// Its permission bits.
        mode: u32,
    },
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The node does not use a file with keys.
    #[error("this node was not started with a file of keys")]
    NotUsed,
    /// Certificate or key cannot be used.
    #[error("{0}")]
    Tls(String),
}

impl Secret {
    /// A fresh key as a text: 32 random bytes as hexadecimal digits.
    ///
    /// # Errors
    /// The operating system has no random numbers.
    pub fn generate() -> io::Result<String> {
        let mut bytes = [0; LEAST];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(HEXLOWER.encode(&bytes))
    }

    /// The keys in a file, which others than its owner and group must not be able to read.
    ///
    /// # Errors
    /// [`SecretError`] says what is wrong with it, and what would be right.
    pub fn read(file: impl AsRef<Path>) -> Result<Self, SecretError> {
        read_private(file.as_ref())?.parse()
    }

    /// The key that connections made by this node use.
    pub(crate) fn first(&self) -> &Key {
        &self.0[0]
    }

    pub(crate) fn find(&self, id: KeyId) -> Option<&Key> {
        self.0.iter().find(|key| key.id == id)
    }

    /// The names of its keys, which may be told.
    pub(crate) fn ids(&self) -> String {
        let ids: Vec<String> = self.0.iter().map(|key| key.id.to_string()).collect();
        ids.join(", ")
    }
}

impl std::str::FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let mut keys: Vec<Key> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let at = at + 1;
            let material = material(line);
            if material.len() < LEAST {
                return Err(SecretError::Short { line: at, bytes: material.len() });
            }
            let mut different = material.clone();
            different.sort_unstable();
            different.dedup();
            if different.len() < DIFFERENT {
                return Err(SecretError::Simple(at));
            }
            let key = Key::new(&material);
            if keys.contains(&key) {
                return Err(SecretError::Twice(at));
            }
            keys.push(key);
        }
        match keys.len() {
            0 => Err(SecretError::Empty),
            1..=KEYS => Ok(Self(keys.into())),
            _ => Err(SecretError::TooMany),
        }
    }
}

/// The bytes that a line stands for: hexadecimal digits, base64, or itself, whichever comes first and gives enough.
fn material(line: &str) -> Vec<u8> {
    let unpadded = line.trim_end_matches('=').as_bytes();
    let readings = [
        HEXLOWER_PERMISSIVE.decode(line.as_bytes()),
        BASE64_NOPAD.decode(unpadded),
        BASE64URL_NOPAD.decode(unpadded),
    ];
    let long = readings.into_iter().flatten().find(|bytes| bytes.len() >= LEAST);
    long.unwrap_or_else(|| line.as_bytes().to_vec())
}

/// The text of a file that is nobody else's business.
pub(crate) fn read_private(file: &Path) -> Result<String, SecretError> {
    read(file, true)
}

/// The text of a file that everybody may read.
pub(crate) fn read_public(file: &Path) -> Result<String, SecretError> {
    read(file, false)
}

fn read(file: &Path, private: bool) -> Result<String, SecretError> {
    // Opening a pipe would wait for its writer.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    // Of what was opened, so that nobody can exchange it in between.
    let metadata = opened.metadata()?;
    if !metadata.is_file() {
        return Err(SecretError::NoFile);
    }
    let mode = metadata.mode() & 0o7777;
    let others = if private { 0o006 } else { 0o002 };
    if mode & others != 0 {
        return Err(SecretError::Public { mode });
    }
    let mut bytes = Vec::new();
    opened.take(FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE {
        return Err(SecretError::TooLong);
    }
    String::from_utf8(bytes).map_err(|_| SecretError::NoText)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.ids())
    }
}

/// How nodes prove to each other that they belong together.
#[derive(Clone, Default)]
pub(crate) enum Credentials {
    /// They do not.
    #[default]
    None,
    /// Both hold a key.
    Secret(Secret),
    /// Each has a certificate of its own.
    Tls(Arc<Tls>),
}

impl Credentials {
    fn check_owner(&self, (name, addr): &(String, SocketAddr)) -> Result<(), SecretError> {
        if let Self::Tls(tls) = self { tls.check_own(name, *addr) } else { Ok(()) }
    }

    /// By what links are sealed, for people.
    pub(crate) fn means(&self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Secret(_) => Some("secret"),
            Self::Tls(_) => Some("certificates"),
        }
    }
}

/// Where credentials came from, so that they can be read again.
#[derive(Clone, Debug, Default)]
pub(crate) enum Source {
    #[default]
    None,
    Given(Secret),
    File(PathBuf),
    Tls(TlsFiles),
}

impl Source {
    pub(crate) fn load(&self) -> Result<Credentials, SecretError> {
        Ok(match self {
            Self::None => Credentials::None,
            Self::Given(secret) => Credentials::Secret(secret.clone()),
            Self::File(file) => Credentials::Secret(Secret::read(file)?),
            Self::Tls(files) => Credentials::Tls(Arc::new(Tls::read(files)?)),
        })
    }

    /// Where it was given, for people.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::None | Self::Given(_) => "secret".to_owned(),
            Self::File(file) => format!("--secret-file {}", file.display()),
            Self::Tls(_) => "certificates".to_owned(),
        }
    }

    pub(crate) fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }
}

/// The credentials that new connections use. A cheap handle.
#[derive(Clone, Default)]
pub(crate) struct Wallet(Arc<WalletInner>);

#[derive(Default)]
struct WalletInner {
    source: Source,
    now: Mutex<Credentials>,
    /// The name and the address of the node that they are for, once it is known.
    owner: OnceLock<(String, SocketAddr)>,
}

impl Wallet {
    pub(crate) fn open(source: Source) -> Result<Self, SecretError> {
        let now = Mutex::new(source.load()?);
        Ok(Self(Arc::new(WalletInner { source, now, owner: OnceLock::new() })))
    }

    /// Says whose credentials these are, and checks that they are.
    pub(crate) fn belongs_to(&self, name: &str, addr: SocketAddr) -> Result<(), SecretError> {
        let owner = self.0.owner.get_or_init(|| (name.to_owned(), addr));
        self.get().check_owner(owner)
    }

    pub(crate) fn get(&self) -> Credentials {
        lock(&self.0.now).clone()
    }

    /// Reads them again. If that fails, those that there are stay.
    pub(crate) fn reload(&self) -> Result<(), SecretError> {
        if matches!(self.0.source, Source::None | Source::Given(_)) {
            return Err(SecretError::NotUsed);
        }
        let fresh = self.0.source.load()?;
        if let Some(owner) = self.0.owner.get() {
            fresh.check_owner(owner)?;
        }
        if matches!(fresh, Credentials::Tls(_)) {
            tracing::info!("the certificates were read again");
        }
        if let Credentials::Secret(secret) = &fresh {
            tracing::info!(keys = secret.ids(), "the secret was read again");
        }
        *lock(&self.0.now) = fresh;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn parse(text: &str) -> Result<Secret, String> {
        text.parse().map_err(|error: SecretError| error.to_string())
    }

    #[test]
    fn a_key_is_the_same_however_it_is_written() {
        let hex = parse(KEY).expect("hexadecimal");
        assert_eq!(hex, parse(&KEY.to_uppercase()).expect("capitals"));
        assert_eq!(hex, parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("base64"));
        assert_eq!(hex, parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8").expect("without padding"));
        assert_eq!(hex, parse(&format!("# old\n\n  {KEY}\r\n")).expect("comments and spaces"));
        let raw = parse("correct horse battery staple, and more").expect("as it stands");
        assert_ne!(raw, hex);
        assert_eq!(hex.first().id().to_string().len(), 16);
        assert_ne!(hex.first().bytes()[..8], hex.first().id().0, "the name tells nothing of the key");
    }

    #[test]
    fn several_keys_are_accepted_and_the_first_is_used() {
        let other = Secret::generate().expect("random");
        let both = parse(&format!("{KEY}\n{other}\n")).expect("two");
        let (one, two) = (parse(KEY).expect("one"), parse(&other).expect("the other"));
        assert_eq!(both.first().id(), one.first().id());
        for alone in [one, two] {
            assert!(both.find(alone.first().id()).is_some_and(|key| key.bytes() == alone.first().bytes()));
        }
        assert!(both.find(KeyId([0; 8])).is_none());
    }

    #[test]
    fn what_can_be_guessed_is_refused_and_no_error_tells_the_text() {
        let wrong = [
            ("", "phalanx secret"),
            ("# nothing\n", "no key"),
            ("swordfish", "line 1"),
            (&format!("{KEY}\nswordfish"), "line 2"),
            (&"0".repeat(64), "differ"),
            (&format!("{KEY}\n{}", KEY.to_uppercase()), "repeats"),
        ];
        for (text, why) in wrong {
            let error = parse(text).expect_err(text);
            assert!(error.contains(why) && !error.contains("swordfish"), "{text}: {error}");
        }
        let five: String = (0..5).map(|_| Secret::generate().expect("random") + "\n").collect();
        assert!(parse(&five).expect_err("five").contains("more than 4"));
        let shown = format!("{:?}", parse(KEY).expect("a key"));
        assert!(!shown.contains("0001020304"), "{shown}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = std::env::temp_dir().join(format!("phalanx-secret-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let file = dir.join("secret");
        fs::write(&file, KEY).expect("written");
        for (mode, fits) in [(0o600, true), (0o640, true), (0o644, false), (0o602, false), (0o666, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("set");
            match Secret::read(&file) {
                Ok(secret) => assert!(fits && secret == parse(KEY).expect("a key"), "{mode:o}"),
                Err(error) => assert!(!fits && error.to_string().contains("chmod 600"), "{mode:o}: {error}"),
            }
        }
        assert!(matches!(Secret::read(&dir), Err(SecretError::NoFile)));
        assert!(matches!(Secret::read(dir.join("absent")), Err(SecretError::Io(_))));
        fs::remove_dir_all(&dir).expect("removed");
    }
}
