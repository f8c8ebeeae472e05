//! The client file: nodes by their names, each with its address and the certificates for it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use capsule_certificates::{Client, Facts, Host};
use serde::{Deserialize, Serialize};

use super::RemoteError;

/// A certificate that ends sooner is told of.
const SOON: u64 = 7 * 24 * 3600;

/// `HOST:PORT`; an address of version 6 is in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    /// What the server's certificate must be for.
    pub host: Host,
    /// Not 0.
    pub port: u16,
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write HOST:PORT, as node1.example:7443 or [::1]:7443";
        let (host, port) = text.rsplit_once(':').ok_or(WRONG)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host: Host = bracketed.unwrap_or(host).parse().map_err(|_| WRONG)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(WRONG)?;
        let is_six = matches!(host, Host::Address(std::net::IpAddr::V6(_)));
        if is_six == bracketed.is_some() { Ok(Self { host, port }) } else { Err(WRONG) }
    }
}

impl TryFrom<String> for Address {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(std::net::IpAddr::V6(six)) => write!(f, "[{six}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// What a client file says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The node that is meant unless another is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    pub nodes: BTreeMap<String, Entry>,
}

/// What it says of one node. PEM, all of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Where capsule-remote listens.
    pub address: Address,
    /// The authorities that its certificate may be of.
    pub ca: String,
    /// The client's certificate.
    pub certificate: String,
    /// Its key: a secret.
    pub key: String,
}

/// A node, chosen, with certificates that count now.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The file that it is from.
    pub file: PathBuf,
    /// What the file says.
    pub entry: Entry,
    /// Who the client is.
    pub client: Client,
}

impl ClientFile {
    /// Reads one. Only its owner may be able to.
    ///
    /// # Errors
    /// When it cannot be read, others can read it, or it is none.
    pub fn read(path: &Path) -> Result<Self, RemoteError> {
        let failed = |source| RemoteError::Read { path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(RemoteError::Exposed { path: path.to_owned(), mode });
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        yaml_serde::from_str(&text)
            .map_err(|error| RemoteError::Syntax { path: path.to_owned(), what: error.to_string() })
    }

    /// The same, or an empty one where there is none.
    ///
    /// # Errors
    /// As [`ClientFile::read`].
    pub fn read_or_new(path: &Path) -> Result<Self, RemoteError> {
        match Self::read(path) {
            Err(RemoteError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            read => read,
        }
    }

    /// Writes it, for its owner alone: the old one or the new one is there, whatever happens. Durable when it returns.
    ///
    /// # Errors
    /// [`RemoteError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), RemoteError> {
        let text = yaml_serde::to_string(self)
            .map_err(|error| RemoteError::Syntax { path: path.to_owned(), what: error.to_string() })?;
        replace(path, text.as_bytes(), 0o600)
            .map_err(|source| RemoteError::Write { path: path.to_owned(), source })
    }

    /// The node of that name, or the one that is meant.
    ///
    /// # Errors
    /// When there is none, or its certificates cannot be used now.
    pub fn node(mut self, path: &Path, name: Option<&str>) -> Result<Node, RemoteError> {
        let known = || self.nodes.keys().cloned().collect::<Vec<_>>().join(", ");
        let only = || self.nodes.keys().next().filter(|_| self.nodes.len() == 1).cloned();
        let name = name.map(str::to_owned).or_else(|| self.current.clone()).or_else(only);
        let file = path.to_owned();
        let Some(name) = name else { return Err(RemoteError::WhichNode { known: known(), path: file }) };
        if !self.nodes.contains_key(&name) {
            return Err(RemoteError::NoNode { known: known(), path: file, node: name });
        }
        let refused = |source| RemoteError::Certificate { path: file.clone(), node: name.clone(), source };
        let none = || refused(capsule_certificates::CertificateError::Unreadable);
        let entry = self.nodes.remove(&name).ok_or_else(none)?;
        Facts::of_pem(&entry.ca).map_err(refused)?;
        let facts =
            Facts::of_pem(&entry.certificate).map_err(refused)?.into_iter().next().ok_or_else(none)?;
        let client = facts.client().map_err(refused)?;
        if let Some(what) = untimely(&facts, SystemTime::now()) {
            return Err(RemoteError::Time { path: file, node: name, what });
        }
        Ok(Node { name, file, entry, client })
    }
}

/// Why a certificate does not count now.
fn untimely(facts: &Facts, now: SystemTime) -> Option<String> {
    let time = |time| humantime::format_rfc3339_seconds(time);
    if facts.not_before > now {
        return Some(format!(
            "does not count before {}: is this machine's clock right?",
            time(facts.not_before)
        ));
    }
    let ended = facts.not_after < now;
    ended.then(|| {
        format!(
            "has ended at {}: ask for a new one (`capsulectl certs issue`, where the authority is)",
            time(facts.not_after)
        )
    })
}

impl Node {
    /// A sentence for somebody whose certificate ends soon.
    pub fn warning(&self) -> Option<String> {
        let left = self.client.not_after.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
        (left < SOON).then(|| {
            let (name, file) = (&self.name, self.file.display());
            let end = humantime::format_rfc3339_seconds(self.client.not_after);
            format!("your certificate for node `{name}` in {file} ends at {end}: ask for a new one")
        })
    }
}

/// Replaces a file, or makes it. Durable when it returns.
///
/// # Errors
/// The kernel's.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&part); // the first error is the one to tell
    }
    written?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use capsule_certificates::{Authority, Period, Role};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn addresses() {
        for text in ["node1.example:7443", "10.0.0.5:7443", "[::1]:7443"] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "node", "node:", ":7443", "node:0", "node:70000", "::1:7443", "[node]:7443", "a b:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    fn entry(authority: &Authority, period: Period) -> Entry {
        let issued = authority.client("ci", Role::Operator, period).expect("a certificate");
        Entry {
            address: "node:7443".parse().expect("an address"),
            ca: authority.to_pem().expect("PEM").certificate,
            certificate: issued.certificate,
            key: issued.key,
        }
    }

    fn refusal(file: &ClientFile, node: Option<&str>) -> String {
        file.clone().node(Path::new("/f"), node).expect_err("a refusal").to_string()
    }

    #[test]
    fn what_is_written_is_read_and_only_by_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("client.yml");
        let authority = Authority::new(Period::lasting(DAY * 10)).expect("an authority");
        let mut file = ClientFile::read_or_new(&path).expect("none yet");
        file.nodes.insert("one".into(), entry(&authority, Period::lasting(DAY)));
        file.write(&path).expect("write");
        let read = ClientFile::read(&path).expect("read");
        let node = read.node(&path, None).expect("the only one");
        assert_eq!((node.name.as_str(), node.client.role), ("one", Role::Operator));
        assert!(node.warning().expect("a day is soon").contains("ends at"));
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = ClientFile::read(&path).expect_err("others read it").to_string();
        assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
        // It is not written over either.
        assert!(ClientFile::read_or_new(&path).is_err());
    }

    #[test]
    fn a_node_is_chosen_or_it_is_said_why_not() {
        let authority = Authority::new(Period::lasting(DAY * 10)).expect("an authority");
        let mut file = ClientFile::default();
        assert!(refusal(&file, None).contains("does not say which node"));
        for name in ["one", "two"] {
            file.nodes.insert(name.into(), entry(&authority, Period::lasting(DAY)));
        }
        assert!(refusal(&file, None).contains("--node: one, two"));
        assert!(refusal(&file, Some("three")).contains("no node `three`: it has one, two"));
        file.current = Some("two".into());
        assert_eq!(file.clone().node(Path::new("/f"), None).expect("two").name, "two");
        assert_eq!(file.clone().node(Path::new("/f"), Some("one")).expect("one").name, "one");
        let now = SystemTime::now();
        for (from, until, words) in [
            (now - DAY * 2, now - DAY, ["has ended at 20", "certs issue"]),
            (now + DAY, now + DAY * 2, ["does not count before 20", "clock"]),
        ] {
            file.nodes.insert("two".into(), entry(&authority, Period { from, until }));
            let told = refusal(&file, None);
            assert!(words.iter().all(|word| told.contains(word)), "{told}");
        }
        let mut broken = entry(&authority, Period::lasting(DAY));
        broken.certificate = broken.ca.clone();
        file.nodes.insert("two".into(), broken);
        assert!(refusal(&file, None).contains("has no role"));
    }

    #[test]
    fn what_is_no_client_file_is_said_with_its_place() {
        use std::os::unix::fs::OpenOptionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        for (number, (text, word)) in
            [("nodes: 1", "line 1"), ("node: {}", "unknown field"), ("nodes: {a: {address: x}}", "HOST:PORT")]
                .into_iter()
                .enumerate()
        {
            let path = folder.path().join(number.to_string());
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)
                .expect("file");
            file.write_all(text.as_bytes()).expect("write");
            let error = ClientFile::read(&path).expect_err("a mistake").to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
