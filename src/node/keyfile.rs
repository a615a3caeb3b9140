//! Secret keys on disk: PKCS#8 (RFC 5958) in PEM (RFC 7468), as `openssl genpkey -algorithm ed25519` writes them.
//!
//! A key file is created once, readable by its owner alone, and never overwritten. Secret bytes are wiped when
//! dropped and appear in no message.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::{Zeroize, Zeroizing};

use crate::quic::Identity;

/// The most bytes that a key file may have. One key takes 119.
const MAX_KEY_FILE: u64 = 4096;

const LABEL: &str = "PRIVATE KEY";
/// Why a key cannot be read or saved. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no such file, or no such folder for a new one.
    #[error("{}: no such file or folder; `corecast keygen --out FILE` makes a key", .0.display())]
    Missing(PathBuf),
    /// This user may not read or create it.
    #[error("{}: this user may not use it; run as the key's owner", .0.display())]
    Forbidden(PathBuf),
    /// A folder, a pipe, a device.
    #[error("{}: not a regular file; a key file is needed", .0.display())]
    NotRegular(PathBuf),
    /// Others than the owner may read or write it.
    #[error(
        "{path}: mode {mode:04o} lets others use this secret key; only its owner may: `chmod 600 {path}`",
        path = path.display()
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// More bytes than a key file has.
    #[error("{}: more than {MAX_KEY_FILE} bytes; a file with one PEM key is needed", .0.display())]
    TooLarge(PathBuf),
    /// No PEM, or PEM of something else.
    #[error("{}: found {found}, exactly one `BEGIN {LABEL}` (unencrypted PKCS#8) is needed", path.display())]
    Sections {
        /// Which file.
        path: PathBuf,
        /// What stands there instead.
        found: String,
    },
    /// PEM that ends early or holds other characters.
    #[error("{}: the PEM text is damaged or cut off; restore the file from its backup", .0.display())]
    Damaged(PathBuf),
    /// PKCS#8, but of another kind of key.
    #[error("{}: not an Ed25519 key; `corecast keygen --out FILE` makes one", .0.display())]
    NotEd25519(PathBuf),
    /// A file of this name is there.
    #[error("{}: exists, and a key file is never overwritten; choose another name", .0.display())]
    Exists(PathBuf),
    /// The system failed.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// A key file.
#[derive(Debug, Clone)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// The key file at `path`, which is read when it is asked for.
    pub fn new(path: impl Into<PathBuf>) -> KeyFile {
        KeyFile { path: path.into() }
    }

    /// Reads the key.
    pub fn load(&self) -> Result<Identity, KeyFileError> {
        let path = &self.path;
        let text = read_secret(path)?;
        check_sections(path, &text)?;
        let mut der =
            PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| KeyFileError::Damaged(path.clone()))?;
        let identity = Identity::from_pkcs8(der.secret_pkcs8_der());
        der.zeroize();
        identity.map_err(|_| KeyFileError::NotEd25519(path.clone()))
    }

    /// Writes a new key file, readable by its owner alone, and syncs it. A file that is there is left alone.
    pub fn create(&self, identity: &Identity) -> Result<(), KeyFileError> {
        let path = &self.path;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| io_error(path, error))?;
        let pem = pem_of(identity);
        let written = file.write_all(pem.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(|error| {
            // It was created here a moment ago and holds half a key.
            fs::remove_file(path).ok();
            io_error(path, error)
        })
    }
}

fn pem_of(identity: &Identity) -> Zeroizing<String> {
    // Room for everything at once: a growing string would leave copies of the secret behind.
    let mut pem = Zeroizing::new(String::with_capacity(MAX_KEY_FILE as usize));
    pem.push_str(&format!("-----BEGIN {LABEL}-----\n"));
    encode_base64(identity.pkcs8(), &mut pem);
    pem.push_str(&format!("-----END {LABEL}-----\n"));
    pem
}

fn io_error(path: &Path, error: io::Error) -> KeyFileError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing(path),
        io::ErrorKind::PermissionDenied => KeyFileError::Forbidden(path),
        io::ErrorKind::AlreadyExists => KeyFileError::Exists(path),
        _ => KeyFileError::Io { path, error },
    }
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let failed = |error| io_error(path, error);
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotRegular(path.to_owned()));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    // Room for everything at once, as in `to_pem`.
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * MAX_KEY_FILE as usize));
    file.take(MAX_KEY_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_KEY_FILE {
        return Err(KeyFileError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

fn check_sections(path: &Path, text: &[u8]) -> Result<(), KeyFileError> {
    let labels: Vec<String> = text
        .split(|&byte| byte == b'\n' || byte == b'\r')
        .filter_map(|line| line.strip_prefix(b"-----BEGIN "))
        .map(|label| label.strip_suffix(b"-----").unwrap_or(label))
        .map(|label| String::from_utf8_lossy(&label[..label.len().min(40)]).escape_debug().to_string())
        .collect();
    let found = match labels.as_slice() {
        [label] if label == LABEL => return Ok(()),
        [] if text.is_empty() => "an empty file".to_owned(),
        [] => "no PEM section".to_owned(),
        [label] => format!("`BEGIN {label}`"),
        more => format!("{} PEM sections", more.len()),
    };
    Err(KeyFileError::Sections { path: path.to_owned(), found })
}

/// Base64 (RFC 4648) in lines of 64 characters.
fn encode_base64(bytes: &[u8], text: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for line in bytes.chunks(48) {
        for group in line.chunks(3) {
            let at = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
            let bits = at(0) << 16 | at(1) << 8 | at(2);
            for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
                let digit = char::from(ALPHABET[(bits >> shift) as usize & 63]);
                text.push(if place <= group.len() { digit } else { '=' });
            }
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of RFC 8410, section 10.3.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    /// The message for a key file with this content, without the folder.
    fn refusal(content: &str) -> String {
        let (folder, path) = file(content.as_bytes(), 0o600);
        let message = KeyFile::new(&path).load().unwrap_err().to_string();
        message.replace(folder.path().to_str().unwrap(), "")
    }

    #[test]
    fn a_created_key_loads_again_and_its_file_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let key = Identity::generate().unwrap();
        KeyFile::new(&path).create(&key).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(KeyFile::new(&path).load().unwrap().id(), key.id());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }

    #[test]
    fn a_key_made_elsewhere_loads() {
        let (_folder, path) = file(PEM.as_bytes(), 0o400);
        assert_eq!(KeyFile::new(&path).load().unwrap().id().to_string(), PUBLIC);
        assert_eq!(*pem_of(&KeyFile::new(&path).load().unwrap()), PEM);
    }

    #[test]
    fn a_file_that_is_there_is_left_alone() {
        let (_folder, path) = file(b"precious", 0o600);
        assert!(matches!(
            KeyFile::new(&path).create(&Identity::generate().unwrap()),
            Err(KeyFileError::Exists(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let (_folder, path) = file(PEM.as_bytes(), 0o640);
        assert!(matches!(KeyFile::new(&path).load(), Err(KeyFileError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn every_other_content_is_refused_with_its_reason() {
        assert!(refusal("").starts_with("/key.pem: found an empty file, exactly one `BEGIN PRIVATE KEY`"));
        assert!(refusal("hello").contains("found no PEM section"));
        assert!(refusal(&PEM.repeat(2)).contains("found 2 PEM sections"));
        assert!(refusal(&PEM.replace("PRIVATE", "PUBLIC")).contains("found `BEGIN PUBLIC KEY`"));
        assert!(refusal(&PEM.replace("PRIVATE", "ENCRYPTED PRIVATE")).contains("ENCRYPTED"));
        assert!(refusal(&PEM[..60]).contains("damaged or cut off"));
        assert!(refusal(&PEM.replace("MC4C", "MC!C")).contains("damaged or cut off"));
        assert!(refusal(&PEM.replace("K2Vw", "K2Vu")).contains("not an Ed25519 key"));
        assert!(refusal(&" ".repeat(5000)).contains("more than 4096 bytes"));
    }

    #[test]
    fn no_message_shows_the_secret() {
        let key = Identity::generate().unwrap();
        assert!(!format!("{key:?}").contains(&pem_of(&key)[28..60]));
        assert!(!refusal(&PEM.replace("END", "EMD")).contains("MC4C"));
    }

    #[test]
    fn base64_pads_and_breaks_lines() {
        let text = |bytes: &[u8]| {
            let mut text = String::new();
            encode_base64(bytes, &mut text);
            text
        };
        assert_eq!(text(b"f"), "Zg==\n");
        assert_eq!(text(b"foobar"), "Zm9vYmFy\n");
        assert_eq!(text(&[0; 49]), format!("{}\nAA==\n", "A".repeat(64)));
    }
}
