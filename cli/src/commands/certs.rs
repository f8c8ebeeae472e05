//! `certs`: the certificates of the remote API, made and shown. No node is asked.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use capsule_certificates::{Authority, CertificateError, Facts, Host, Issued, Period, Role};
use serde::Serialize;

use super::Target;
use crate::args::{CertsCommand, InitArgs, IssueArgs, ServerArgs};
use crate::error::Error;
use crate::remote::{ClientFile, Entry, RemoteError, replace};
use crate::text::{Text, escape_control};

/// Why no certificate was made or shown.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), hint(path, source))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// An authority is there.
    #[error("{} is there already: whoever has a certificate by it would be refused; remove it, or name another --dir", .0.display())]
    Exists(PathBuf),
    /// What is asked for cannot be made of the files.
    #[error("{}: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CertificateError,
    },
}

fn hint(path: &Path, error: &io::Error) -> &'static str {
    let of_authority = path.file_name().is_some_and(|name| name == CA || name == CA_KEY);
    match error.kind() {
        io::ErrorKind::NotFound if of_authority => "; make an authority with `capsulectl certs init`",
        _ => "",
    }
}

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const SERVER: &str = "server.pem";
const SERVER_KEY: &str = "server.key";

/// One certificate.
#[derive(Debug, Serialize)]
struct Shown {
    /// `authority`, `server` or `client`.
    kind: &'static str,
    /// Whom it is for: a client's name, a server's hosts, or what an authority calls itself.
    name: String,
    /// A client's.
    role: Option<String>,
    /// The node of a client file.
    node: Option<String>,
    serial: String,
    /// RFC 3339.
    not_before: String,
    not_after: String,
    /// `valid`, `ended` or `not-yet`.
    state: &'static str,
    /// Where it is.
    file: PathBuf,
}

/// Result of every command of `certs`.
#[derive(Debug, Serialize)]
struct Certificates {
    certificates: Vec<Shown>,
}

impl Text for Certificates {
    fn text(&self, _: SystemTime) -> String {
        let mut text = String::new();
        for Shown { kind, name, role, node, not_before, not_after, state, file, .. } in &self.certificates {
            let role = role.as_ref().map(|role| format!(" ({role})")).unwrap_or_default();
            let node = node.as_ref().map(|node| format!(", node {node}")).unwrap_or_default();
            let when = match *state {
                "ended" => format!("ended at {not_after}"),
                "not-yet" => format!("from {not_before}"),
                _ => format!("until {not_after}"),
            };
            let line = format!("{}: {kind} {name}{role}{node}, {when}", file.display());
            let _ = writeln!(text, "{}", escape_control(&line)); // writing to a String does not fail
        }
        text
    }
}

impl Shown {
    fn new(facts: &Facts, file: &Path, node: Option<&str>) -> Self {
        let now = SystemTime::now();
        let client = facts.client().ok();
        let hosts = facts.hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(", ");
        let (kind, name) = match &client {
            Some(client) => ("client", client.name.clone()),
            None if facts.authority => ("authority", facts.name.clone()),
            None => ("server", hosts),
        };
        Self {
            kind,
            name,
            role: client.map(|client| client.role.to_string()),
            node: node.map(str::to_owned),
            serial: facts.serial.clone(),
            not_before: humantime::format_rfc3339_seconds(facts.not_before).to_string(),
            not_after: humantime::format_rfc3339_seconds(facts.not_after).to_string(),
            state: if facts.not_before > now {
                "not-yet"
            } else if facts.not_after < now {
                "ended"
            } else {
                "valid"
            },
            file: file.to_owned(),
        }
    }
}

/// Carries out one of the commands.
///
/// # Errors
/// [`CertsError`], and [`RemoteError`] of a client file.
pub fn certs(to: Target<'_>, command: CertsCommand) -> Result<(), Error> {
    let certificates = match command {
        CertsCommand::Init(args) => init(&args)?,
        CertsCommand::Server(args) => server(&args)?,
        CertsCommand::Issue(args) => issue(args)?,
        CertsCommand::Show { file } => show(&file)?,
    };
    let certificates = Certificates { certificates };
    to.print(&certificates, &certificates)
}

fn init(args: &InitArgs) -> Result<Vec<Shown>, Error> {
    let InitArgs { dir, hosts, valid, ca_valid } = args;
    let made = |source| CertsError::Certificate { path: dir.join(SERVER), source };
    for name in [CA, CA_KEY] {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_ok() {
            return Err(CertsError::Exists(path).into());
        }
    }
    let authority = Authority::new(Period::lasting(*ca_valid)).map_err(made)?;
    let own = authority.to_pem().map_err(made)?;
    let server = authority.server(hosts, Period::lasting(*valid)).map_err(made)?;
    make(dir)?;
    let mut shown = write(dir, CA, CA_KEY, &own)?;
    shown.extend(write(dir, SERVER, SERVER_KEY, &server)?);
    Ok(shown)
}

fn server(args: &ServerArgs) -> Result<Vec<Shown>, Error> {
    let ServerArgs { dir, hosts, valid, out } = args;
    let (authority, ca) = authority(dir)?;
    let made = |source| CertsError::Certificate { path: dir.join(CA), source };
    let server = authority.server(hosts, Period::lasting(*valid)).map_err(made)?;
    let Some(out) = out.as_ref().filter(|out| *out != dir) else {
        return Ok(write(dir, SERVER, SERVER_KEY, &server)?);
    };
    make(out)?;
    let path = out.join(CA);
    replace(&path, ca.as_bytes(), 0o644).map_err(|source| CertsError::Write { path, source })?;
    Ok(write(out, SERVER, SERVER_KEY, &server)?)
}

fn issue(args: IssueArgs) -> Result<Vec<Shown>, Error> {
    let IssueArgs { name, role, nodes, file: path, valid, dir } = args;
    let (authority, ca) = authority(&dir)?;
    let issued = client(&authority, &name, role, Period::lasting(valid), &dir)?;
    let mut file = ClientFile::read_or_new(&path)?;
    for node in &nodes {
        let Issued { certificate, key } = issued.clone();
        let entry = Entry { address: node.address.clone(), ca: ca.clone(), certificate, key };
        file.nodes.insert(node.name.clone(), entry);
    }
    file.current = file.current.or_else(|| nodes.first().map(|node| node.name.clone()));
    file.write(&path)?;
    let facts = facts(&path, &issued.certificate)?;
    Ok(nodes
        .iter()
        .flat_map(|node| facts.iter().map(|one| Shown::new(one, &path, Some(&node.name))))
        .collect())
}

fn client(
    authority: &Authority,
    name: &str,
    role: Role,
    period: Period,
    dir: &Path,
) -> Result<Issued, Error> {
    authority.client(name, role, period).map_err(|source| match source {
        CertificateError::Nameless => {
            Error::Usage(format!("`{name}` cannot be a client's name: {}", capsule_certificates::NAME_RULE))
        }
        source => CertsError::Certificate { path: dir.join(CA), source }.into(),
    })
}

fn show(path: &Path) -> Result<Vec<Shown>, Error> {
    let text = read(path)?;
    if text.contains("nodes:") {
        let file = ClientFile::read(path)?;
        let mut shown = Vec::new();
        for (name, entry) in &file.nodes {
            let wrong =
                |source| RemoteError::Certificate { path: path.to_owned(), node: name.clone(), source };
            let facts = Facts::of_pem(&entry.certificate).map_err(wrong)?;
            shown.extend(facts.iter().map(|one| Shown::new(one, path, Some(name))));
        }
        return Ok(shown);
    }
    Ok(facts(path, &text)?.iter().map(|one| Shown::new(one, path, None)).collect())
}

fn facts(path: &Path, pem: &str) -> Result<Vec<Facts>, CertsError> {
    Facts::of_pem(pem).map_err(|source| CertsError::Certificate { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<String, CertsError> {
    fs::read_to_string(path).map_err(|source| CertsError::Read { path: path.to_owned(), source })
}

/// The authority in a folder, and its certificate.
fn authority(dir: &Path) -> Result<(Authority, String), CertsError> {
    let (ca, key) = (read(&dir.join(CA))?, read(&dir.join(CA_KEY))?);
    match Authority::from_pem(&ca, &key) {
        Ok(authority) => Ok((authority, ca)),
        Err(source) => Err(CertsError::Certificate { path: dir.join(CA_KEY), source }),
    }
}

fn make(dir: &Path) -> Result<(), CertsError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| CertsError::Write { path: dir.to_owned(), source })
}

/// The key first: a server that reads both again in between finds that they are not a pair, and waits for the other.
fn write(dir: &Path, certificate: &str, key: &str, issued: &Issued) -> Result<Vec<Shown>, CertsError> {
    for (name, text, mode) in [(key, &issued.key, 0o600), (certificate, &issued.certificate, 0o644)] {
        let path = dir.join(name);
        replace(&path, text.as_bytes(), mode).map_err(|source| CertsError::Write { path, source })?;
    }
    let path = dir.join(certificate);
    Ok(facts(&path, &issued.certificate)?.iter().map(|one| Shown::new(one, &path, None)).collect())
}
