//! What is imported, changed, refused, broken and not allowed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::super::capsulectl::{capsulectl, done, refused};
use super::super::ctr::run as run_program;
use super::super::world::{CAPSULED_SOCKET, path, until};
use super::node::{CONFIG, Node, OWN_CONFIG, finding, findings, states};
use super::{CLEAN, expect, place};
use crate::workspace::output_of;

const DROPPED: &str = "/etc/containerd/conf.d/mine.toml";
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// A drop-in file with tables of its own, which count instead of the main file's (1.7) or beside them (2.x).
pub(super) fn imports(node: &mut Node) -> Result<String> {
    let (version, cri) =
        if node.is_1_7 { (2, "io.containerd.grpc.v1.cri") } else { (3, "io.containerd.cri.v1.runtime") };
    let main = format!("version = {version}\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n");
    let dropped = format!(
        "version = {version}\n[plugins.\"{TRANSFER}\"]\n  max_concurrent_downloads = 7\n  [[plugins.\"{TRANSFER}\".unpack_config]]\n    \
         platform = \"linux\"\n    snapshotter = \"native\"\n[plugins.\"{cri}\"]\n  max_container_log_line_size = 4242\n"
    );
    fs::create_dir_all("/etc/containerd/conf.d").context("make the folder")?;
    fs::write(DROPPED, &dropped).with_context(|| format!("write {DROPPED}"))?;
    place(Some(&main))?;
    done(&["setup", "--yes"])?;
    node.restart_containerd()?;
    expect(&CLEAN)?;
    super::main_job()?;
    let dump = output_of(Command::new("containerd").args(["config", "dump"]).env("PATH", path()))?;
    for kept in ["max_concurrent_downloads = 7", "max_container_log_line_size = 4242"] {
        ensure!(dump.contains(kept), "{kept} is lost: {dump}");
    }
    for snapshotter in ["native", "capsule"] {
        let has = dump
            .lines()
            .any(|line| line.trim().replace('\'', "\"") == format!("snapshotter = \"{snapshotter}\""));
        ensure!(has, "{snapshotter} is lost: {dump}");
    }
    done(&["setup", "--undo", "--yes"])?;
    ensure!(fs::read_to_string(CONFIG)? == main && fs::read_to_string(DROPPED)? == dropped, "not as it was");
    fs::remove_dir_all("/etc/containerd/conf.d").context("remove the folder")?;
    Ok(String::new())
}

/// The rest goes, and what stays still is configuration.
pub(super) fn changed_since(node: &mut Node) -> Result<String> {
    place(Some("version = 2\n"))?;
    done(&["setup", "--yes"])?;
    let text = fs::read_to_string(CONFIG)?;
    let theirs = text.replace("/run/capsule/capsuled.sock", "/run/theirs.sock");
    ensure!(theirs != text, "{text}");
    fs::write(CONFIG, format!("{theirs}\n[debug]\n  level = \"info\"\n"))?;
    node.restart_containerd()?;
    let (state, said) = finding("snapshotter")?;
    ensure!(state == "error" && said.contains("/run/theirs.sock"), "{state}: {said}");
    let output = capsulectl(&["setup", "--undo", "--yes"])?.ended_with(1)?;
    ensure!(
        output.err.contains("[proxy_plugins.capsule]") && output.err.lines().count() == 1,
        "{}",
        output.err
    );
    let left = fs::read_to_string(CONFIG)?;
    ensure!(
        left.contains("/run/theirs.sock") && left.contains("[debug]") && !left.contains(TRANSFER),
        "{left}"
    );
    node.restart_containerd()?;
    // Put right by hand, it goes too.
    fs::write(CONFIG, left.replace("/run/theirs.sock", "/run/capsule/capsuled.sock"))?;
    done(&["setup", "--undo", "--yes"])?;
    let left = fs::read_to_string(CONFIG)?;
    ensure!(left == "version = 2\n\n[debug]\n  level = \"info\"\n", "{left:?}");
    Ok(output.err.trim().to_owned())
}

pub(super) fn refusals() -> Result<String> {
    let mut said = Vec::new();
    for (config, words) in [
        ("version = \n", &["is no TOML", CONFIG][..]),
        ("disabled_plugins = [\"cri\"]\n", &["names no version", "config migrate"]),
        ("version = 9\n", &["of version 9"]),
        ("version = 2\nproxy_plugins = {}\n", &["by hand", "proxy_plugins.capsule"]),
        ("version = 2\nimports = [\"*\"]\n", &["before-capsule", "*.toml"]),
        ("version = 2\nimports = [\"/no/such.toml\"]\n", &["/no/such.toml"]),
    ] {
        place(Some(config))?;
        said.push(refused(&["setup", "--yes"], words).with_context(|| config.to_owned())?);
        ensure!(fs::read_to_string(CONFIG)? == config, "changed: {config}");
        ensure!(fs::read_dir("/etc/containerd")?.count() == 1, "left something behind: {config}");
    }
    place(Some("version = 2\n"))?;
    refused(&["setup", "--yes", "--containerd-version", "1.6"], &["1.6", "1.7 and 2.x"])?;
    Ok(said.swap_remove(1))
}

pub(super) fn asked() -> Result<String> {
    place(Some("version = 2\n"))?;
    let said = refused(&["setup"], &["no terminal", "--yes", "--dry-run"])?;
    ensure!(fs::read_to_string(CONFIG)? == "version = 2\n", "it was written");
    // With a terminal it asks: script(1) gives it one.
    for (answer, written) in [("n\n", false), ("\n", false), ("y\n", true)] {
        let words = ["-qec", "capsulectl setup", "/dev/null"];
        let output = run_program("script", &words, answer.as_bytes())?;
        ensure!(output.out.contains("Write this? [y/N]"), "not asked: {} {}", output.out, output.err);
        ensure!(
            output.code == i32::from(!written),
            "{answer:?}: exit status {}: {}",
            output.code,
            output.out
        );
        let has = fs::read_to_string(CONFIG)?.contains("[proxy_plugins.capsule]");
        ensure!(has == written, "{answer:?}: written: {has}");
    }
    done(&["setup", "--undo", "--yes"])?;
    let nothing = done(&["setup", "--undo", "--yes"])?;
    ensure!(nothing.contains("nothing to take back"), "{nothing}");
    Ok(said)
}

/// Each thing by itself, on a node that is set up.
pub(super) fn broken(node: &mut Node) -> Result<String> {
    let own = fs::read_to_string(OWN_CONFIG).ok();
    place(Some("version = 2\n"))?;
    done(&["setup", "--yes"])?;
    node.restart_containerd_on("/usr/sbin:/usr/bin:/sbin:/bin")?;
    has("shim", "error", &["containerd-shim-capsule-v1", "containerd's PATH"])?;
    node.restart_containerd()?;
    expect(&CLEAN)?;
    fs::set_permissions(CAPSULED_SOCKET, fs::Permissions::from_mode(0o666))?;
    has("capsuled", "warning", &["0666"])?;
    fs::set_permissions(CAPSULED_SOCKET, fs::Permissions::from_mode(0o600))?;
    fs::create_dir_all("/etc/cdi")?;
    fs::write("/etc/cdi/broken.json", "{")?;
    has("devices", "warning", &["/etc/cdi/broken.json", "capsulectl devices"])?;
    fs::remove_file("/etc/cdi/broken.json")?;
    fs::write(OWN_CONFIG, "rooot = 7\n[snapshots]\nremap_ids = 7\n")?;
    has("capsuled-config", "error", &["/etc/capsule/config.toml:1", "1 more"])?;
    match &own {
        Some(text) => fs::write(OWN_CONFIG, text)?,
        None => fs::remove_file(OWN_CONFIG)?,
    }
    node.kill_capsuled()?;
    until("capsuled gone", || Ok(std::os::unix::net::UnixStream::connect(CAPSULED_SOCKET).is_err()))?;
    has("capsuled", "error", &["nobody answers at /run/capsule/capsuled.sock"])?;
    has("shim-capsuled", "error", &["/run/capsule/node.sock"])?;
    has("devices", "skipped", &[])?;
    node.kill_containerd()?;
    has("containerd", "error", &["nobody answers at /run/containerd/containerd.sock"])?;
    // What is in the file is still known.
    has("snapshotter", "ok", &[])?;
    fs::write(CONFIG, "version = ")?;
    has("snapshotter", "skipped", &[])?;
    let (state, said) = finding("configuration")?;
    ensure!(state == "skipped", "{state}: {said}");
    fs::write(CONFIG, "version = 2\n")?;
    node.start_capsuled()?;
    node.restart_containerd()?;
    expect(&super::MISSING)?;
    done(&["setup", "--undo", "--yes"])?;
    Ok(said)
}

fn has(check: &str, state: &str, words: &[&str]) -> Result<()> {
    let (found, said) = finding(check)?;
    ensure!(found == state, "{check} is {found}: {said}");
    ensure!(words.iter().all(|word| said.contains(word)), "{check}: {said}");
    Ok(())
}

pub(super) fn without_root(node: &mut Node) -> Result<String> {
    place(Some("version = 2\n"))?;
    done(&["setup", "--yes"])?;
    node.restart_containerd()?;
    let words = ["--reuid=65534", "--regid=65534", "--clear-groups", "capsulectl"];
    let output = run_program("setpriv", &[&words[..], &["doctor"]].concat(), b"")?.ended_with(0)?;
    let skipped: Vec<&str> = output.out.lines().filter(|line| line.starts_with("skipped")).collect();
    let checks: Vec<&str> = skipped.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
    let expected = ["kernel", "capsuled", "containerd", "shim-capsuled", "devices"];
    ensure!(checks == expected, "{}", output.out);
    ensure!(skipped[..4].iter().all(|line| line.contains("needs root")), "{}", output.out);
    let before = fs::read_to_string(CONFIG)?;
    for arguments in
        [&["setup", "--undo", "--yes"][..], &["setup", "--yes", "--cri=true", "--systemd-cgroup=true"]]
    {
        let output = run_program("setpriv", &[&words[..], arguments].concat(), b"")?.ended_with(1)?;
        ensure!(output.err.contains("run it as root") && output.err.lines().count() == 1, "{}", output.err);
        ensure!(fs::read_to_string(CONFIG)? == before, "it was written");
    }
    let as_root = states(&findings()?);
    ensure!(!as_root.iter().any(|(_, state)| state == "skipped"), "{as_root:?}");
    done(&["setup", "--undo", "--yes"])?;
    Ok(skipped.join("\n"))
}
