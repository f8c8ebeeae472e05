//! A second node: a capsuled and a capsule-remote of its own, with an authority of its own, in one client file with the first.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{ADDRESS, FILES, by, without_capabilities};
use crate::scenario::capsulectl::{done, refused, tzdata};
use crate::scenario::world::{Daemon, path, until};

const SECOND: &str = "127.0.0.1:7445";

/// Each call goes to the node that is named, and without a name to the one that came first.
pub fn both() -> Result<String> {
    let folder = format!("{FILES}/second");
    fs::create_dir_all(&folder).with_context(|| format!("create {folder}"))?;
    let ca = format!("{folder}/ca");
    done(&["certs", "init", "--dir", &ca, "--host", "127.0.0.1"])?;
    let file = format!("{FILES}/both.yml");
    let client = ["certs", "issue", "ada", "--role", "admin", "--valid", "30days", "--file", &file, "--to"];
    done(&[&client[..], &[&format!("node1={ADDRESS}")]].concat())?;
    done(&[&client[..], &[&format!("node2={SECOND}"), "--dir", &ca]].concat())?;
    let mut daemons = start(&folder)?;
    let [(version, _), _] = tzdata()?;
    for (named, has) in [(&["--node", "node1"][..], true), (&["--node", "node2"], false), (&[], true)] {
        let listed = done(&by(&file, &[named, &["ls", "-o", "json"]].concat()))?;
        ensure!(listed.contains(&version) == has, "{named:?}: {listed}");
    }
    // One that is away takes nothing from the other.
    daemons.iter_mut().try_for_each(Daemon::kill)?;
    let away = refused(&by(&file, &["--node", "node2", "ls"]), &["cannot reach node `node2`"])?;
    done(&by(&file, &["--node", "node1", "ls"]))?;
    Ok(away)
}

/// Its versions are in a namespace of containerd's in which there are none.
fn start(folder: &str) -> Result<[Daemon; 2]> {
    let config = format!("{folder}/config.toml");
    let text = format!(
        "root = '{folder}/lib'\nrun = '{folder}/run'\nsocket = '{folder}/capsuled.sock'\n\
         [containerd]\nnamespace = 'second'\n\
         [remote]\naddress = '{SECOND}'\nclient_ca = '{folder}/ca/ca.pem'\n\
         certificate = '{folder}/ca/server.pem'\nkey = '{folder}/ca/server.key'\n"
    );
    fs::write(&config, text).with_context(|| format!("write {config}"))?;
    let mut capsuled = Command::new("capsuled");
    let capsuled = Daemon::start("capsuled-2", capsuled.args(["--config", &config]).env("PATH", path()))?;
    let mut remote = without_capabilities();
    let mut remote =
        Daemon::start("capsule-remote-2", remote.args(["--config", &config]).env("PATH", path()))?;
    remote.wait_until(|| TcpStream::connect(SECOND).is_ok())?;
    until("served by its capsuled", || Ok(fs::exists(format!("{folder}/capsuled.sock"))?))?;
    Ok([remote, capsuled])
}
