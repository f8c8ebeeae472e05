//! Debian's `docker-registry`, and a bad line to it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::FILES;
use crate::scenario::world::{Daemon, path};

/// `ci`, with the password [`PASSWORD`]: bcrypt, the only kind that the registry takes.
const HTPASSWD: &str = "ci:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";
/// Of the user `ci`.
pub const PASSWORD: &str = "open sesame";

/// A certificate of 127.0.0.1 by nobody but itself, and its key, made for this and of no use elsewhere.
pub const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBVDCB+6ADAgECAgEBMAoGCCqGSM49BAMCMCAxHjAcBgNVBAMMFWNhcHN1bGUg
dGVzdCByZWdpc3RyeTAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFow
IDEeMBwGA1UEAwwVY2Fwc3VsZSB0ZXN0IHJlZ2lzdHJ5MFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAE8riSRGWh8oAY0UHMRFXaywLE5HFx+4QfiQIa6Q8x67qcrQzO
SimbGl/2WYsYHw/ELQPMfozPK2ZpEao5tg2BxaMkMCIwDwYDVR0RBAgwBocEfwAA
ATAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQDRkO3uXvw7XrF8
2B1wF7EdqnT/d3SxwSr/GlAWIhgdTwIgcLIU/PC+kMyadacVGc4tgkoWgZPlA48R
VIy6XM42xN8=
-----END CERTIFICATE-----
";
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgBQgSzLTlZJQfWvBJ
5ABOtg2NXpAhsVk97U9p1/bprtKhRANCAATyuJJEZaHygBjRQcxEVdrLAsTkcXH7
hB+JAhrpDzHrupytDM5KKZsaX/ZZixgfD8QtA8x+jM8rZmkRqjm2DYHF
-----END PRIVATE KEY-----
";

/// What a registry asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Nothing: plain HTTP.
    Open,
    /// A name and a password, over plain HTTP.
    Closed,
    /// The same, over TLS with [`CERTIFICATE`].
    Tls,
}

/// A registry on the loopback device.
pub struct Registry {
    /// `HOST:PORT`.
    pub host: String,
    store: PathBuf,
    config: PathBuf,
    daemon: Option<Daemon>,
}

impl Registry {
    /// Starts one.
    pub fn start(port: u16, door: Door) -> Result<Self> {
        let folder = Path::new(FILES).join(format!("registry-{port}"));
        let store = folder.join("store");
        fs::create_dir_all(&store).context("create the registry's folder")?;
        let passwords = folder.join("htpasswd");
        fs::write(&passwords, HTPASSWD).context("write the passwords")?;
        let mut tls = String::new();
        if door == Door::Tls {
            let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
            fs::write(&certificate, CERTIFICATE).context("write a certificate")?;
            fs::write(&key, KEY).context("write a key")?;
            tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
        }
        let auth = if door != Door::Open {
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", passwords.display())
        } else {
            String::new()
        };
        let host = format!("127.0.0.1:{port}");
        // Nothing is kept in memory: what is changed on disk is what is served.
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n{tls}{auth}",
            store.display()
        );
        let config = folder.join("config.yml");
        fs::write(&config, text).context("write the registry's configuration")?;
        let mut registry = Self { host, store, config, daemon: None };
        registry.resume()?;
        Ok(registry)
    }

    /// Starts it again.
    pub fn resume(&mut self) -> Result<()> {
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&self.config).env("PATH", path()).env("OTEL_TRACES_EXPORTER", "none");
        let mut daemon = Daemon::start("docker-registry", &mut command)?;
        daemon.wait_until(|| TcpStream::connect(&self.host).is_ok())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// `HOST/PATH`.
    pub fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.host)
    }

    /// Where the registry keeps a blob.
    pub fn blob(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest.strip_prefix("sha256:").context("a digest")?;
        let path = self.store.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        ensure!(path.exists(), "the registry has no {digest}");
        Ok(path)
    }

    /// Lets `change` change the bytes of a blob, runs `then`, and puts them back.
    pub fn altered<T>(
        &self,
        digest: &str,
        change: impl FnOnce(&mut Vec<u8>),
        then: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let path = self.blob(digest)?;
        let right = fs::read(&path).context("read a blob")?;
        let mut wrong = right.clone();
        change(&mut wrong);
        fs::write(&path, &wrong).context("change a blob")?;
        let done = then();
        fs::write(&path, &right).context("put a blob back")?;
        done
    }
}

/// What a line does when it has carried its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It breaks, and nobody answers any more.
    Breaks,
    /// It stays, and nothing comes.
    Hangs,
}

/// A line to a registry that carries so many bytes of answers. It ends with the process.
pub fn line(port: u16, to: &str, bytes: u64, end: End) -> Result<String> {
    let host = format!("127.0.0.1:{port}");
    let listener = TcpListener::bind(&host).with_context(|| format!("listen on {host}"))?;
    listener.set_nonblocking(true).context("listen")?;
    let (to, left) = (to.to_owned(), Arc::new(AtomicU64::new(bytes)));
    thread::spawn(move || {
        loop {
            if end == End::Breaks && left.load(Ordering::Relaxed) == 0 {
                return; // nobody listens any more
            }
            match listener.accept() {
                Ok((client, _)) => {
                    let (to, left) = (to.clone(), left.clone());
                    thread::spawn(move || carry(client, &to, &left, end));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(5))
                }
                Err(_) => return,
            }
        }
    });
    Ok(host)
}

fn carry(client: TcpStream, to: &str, left: &AtomicU64, end: End) {
    let Ok(server) = TcpStream::connect(to) else { return };
    let (Ok(mut asks), Ok(mut asked)) = (client.try_clone(), server.try_clone()) else { return };
    let _ = client.set_nonblocking(false);
    thread::spawn(move || {
        let _ = std::io::copy(&mut asks, &mut asked);
        let _ = asked.shutdown(Shutdown::Write);
    });
    let (mut server, mut client) = (server, client);
    let mut piece = [0; 16 << 10];
    while let Ok(read @ 1..) = server.read(&mut piece) {
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(read as u64))
        });
        if before.is_ok_and(|before| before < read as u64) {
            match end {
                End::Breaks => break,
                End::Hangs => loop {
                    thread::park();
                },
            }
        }
        if client.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}
