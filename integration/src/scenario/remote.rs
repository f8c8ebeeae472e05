//! The remote API: the main job by clients elsewhere, on this machine's loopback device; who may not, and what is written down.

mod second;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::capsulectl::{capsulectl, done, refused, tzdata};
use super::ctr::{OURS, Output, run as program};
use super::follow::Follower;
use super::readers::{Readers, SHARED, VOLUMES, expect_seamless};
use super::world::{Daemon, World, log_of, path, resident, until, with_logs, within};
use crate::event::Reporter;

const ADDRESS: &str = "127.0.0.1:7443";
/// Where the clients' files are.
const FILES: &str = "/tmp/remote";
const CONFIG: &str = "/etc/capsule/config.toml";
const CERTIFICATES: &str = "/etc/capsule/remote";
const TARGET: &str = "/usr/share/zoneinfo";
/// For what takes a restart.
const LONG: Duration = Duration::from_secs(60);

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    OURS.import()?;
    for folder in [FILES, SHARED] {
        fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?;
    }
    reporter.check("it is off unless it is configured, and says so", off);
    reporter.must("certificates are made", || Ok(((), certificates()?)))?;
    reporter.check("a key that others can read is refused", exposed);
    let mut server =
        reporter.must("capsule-remote serves, as its unit has it: with no capability", || {
            let server = start()?;
            let detail = format!("{} KiB of memory", resident(server.pid())?);
            Ok((server, detail))
        })?;
    reporter.check("publish, attach, upgrade under readers, roll back, detach: all from elsewhere", main_job);
    reporter.check("a version goes to a file there and back", streams);
    reporter.check("who has no certificate hears nothing", strangers);
    reporter.check("roles are kept to, and capsuled is not asked", roles);
    reporter.check("client files that cannot be used are refused with what to do", client_files);
    reporter.check("two nodes in one client file: each call goes to the one that is named", second::both);
    reporter.check("what looks at the machine itself is refused", local_only);
    reporter.check("capsuled is killed and comes again under clients", || capsuled_killed(&mut world));
    reporter.check("certificates are renewed under clients", renewed);
    reporter
        .check("capsule-remote is killed and comes again; containers notice nothing", || killed(&mut server));
    reporter.check("all of it is in the audit log", audited);
    server.kill()?;
    reporter.check("the audit log as JSON", audited_as_json);
    world.stop()
}

/// As client `name`.
fn by<'a>(name: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let file = match name {
        "ada" => "/tmp/remote/ada.yml",
        "ci" => "/tmp/remote/ci.yml",
        "grace" => "/tmp/remote/grace.yml",
        other => other,
    };
    ["--config", file].iter().chain(args).copied().collect()
}

fn remote(args: &[&str]) -> Result<Output> {
    program("capsule-remote", args, b"")
}

fn off() -> Result<String> {
    let output = remote(&[])?.ended_with(2)?;
    ensure!(output.err.contains("the remote API is off"), "{}", output.err);
    ensure!(TcpStream::connect(ADDRESS).is_err(), "somebody listens on {ADDRESS}");
    Ok(output.err.trim().to_owned())
}

fn certificates() -> Result<String> {
    let text = fs::read_to_string(CONFIG).context("read the configuration")?;
    let text = text.replace("address = \"none\"", &format!("address = \"{ADDRESS}\""));
    fs::write(CONFIG, text).context("write the configuration")?;
    done(&["certs", "init", "--host", "127.0.0.1"])?;
    refused(&["certs", "init", "--host", "127.0.0.1"], &["ca.pem is there already"])?;
    let to = format!("node1={ADDRESS}");
    for (name, role) in [("ada", "admin"), ("ci", "operator"), ("grace", "viewer")] {
        let file = format!("{FILES}/{name}.yml");
        done(&["certs", "issue", name, "--role", role, "--to", &to, "--file", &file, "--valid", "30days"])?;
    }
    remote(&["--check-config"])?.success("the check")?;
    done(&["certs", "show", &format!("{FILES}/ci.yml")])
}

fn exposed() -> Result<String> {
    let key = format!("{CERTIFICATES}/server.key");
    let mode = |mode| program("chmod", &[mode, &key], b"")?.success("chmod");
    mode("0640")?;
    let output = remote(&[])?.ended_with(1)?;
    mode("0600")?;
    ensure!(output.err.contains("server.key (mode 0640)"), "{}", output.err);
    Ok(output.err.trim().to_owned())
}

/// Without a capability, as the unit has it, and as root's user.
fn without_capabilities() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "capsule-remote"]);
    command
}

fn start() -> Result<Daemon> {
    let mut command = without_capabilities();
    let mut server = Daemon::start("capsule-remote", command.env("PATH", path()))?;
    server.wait_until(|| TcpStream::connect(ADDRESS).is_ok())?;
    Ok(server)
}

fn main_job() -> Result<String> {
    let releases = tzdata()?;
    for (version, tree) in &releases {
        let tree = tree.to_str().context("a path that is no text")?;
        done(&by("ada", &["build", tree, "--name", "tzdata", "--version", version, "--target", TARGET]))?;
    }
    let [old, new] = releases.map(|(version, _)| format!("tzdata@{version}"));
    let shop = OURS.start("shop", &VOLUMES, &["/bin/sleep", "100000"])?;
    let events = Follower::start("capsulectl", &by("grace", &["events", "-o", "json"]))?;
    done(&by("ci", &["attach", "shop", &old]))?;
    let allowed = [&old, &new].map(|label| format!("/reference/{}/tzdata.zi", label.replace('@', "-")));
    let readers = Readers::start(&shop, 2, &format!("{TARGET}/tzdata.zi"), &allowed)?;
    for _ in 0..10 {
        done(&by("ci", &["upgrade", "shop", &new]))?;
        done(&by("ci", &["rollback", "shop", "tzdata"]))?;
    }
    let seen = expect_seamless(&readers.stop()?)?;
    let listed = done(&by("grace", &["ps"]))?;
    ensure!(listed.contains("shop") && listed.contains("tzdata"), "{listed}");
    done(&by("ci", &["detach", "shop", "tzdata"]))?;
    let first = events.kinds(2)?;
    ensure!(first[0].starts_with("attached tzdata") && first[1].starts_with("upgraded tzdata"), "{first:?}");
    shop.remove()?;
    Ok(seen)
}

fn streams() -> Result<String> {
    let [(version, _), _] = tzdata()?;
    let label = format!("tzdata@{version}");
    let file = format!("{FILES}/tzdata.tar");
    let here = done(&["inspect", &label, "-o", "json"])?;
    done(&by("ci", &["save", &label, "--file", &file]))?;
    done(&by("ada", &["rm", &label]))?;
    refused(&["inspect", &label], &["tzdata"])?;
    let loaded = done(&by("ada", &["load", "--file", &file]))?;
    let digest = |json: &str| -> Result<String> {
        let value: serde_json::Value = serde_json::from_str(json).context("JSON")?;
        Ok(value["version"]["digest"].to_string())
    };
    let again = done(&["inspect", &label, "-o", "json"])?;
    ensure!(digest(&here)? == digest(&again)?, "{here} {again}");
    Ok(loaded.trim().to_owned())
}

fn strangers() -> Result<String> {
    let mut plain = TcpStream::connect(ADDRESS).context("connect")?;
    plain.set_read_timeout(Some(LONG)).context("set a timeout")?;
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").context("write")?;
    let mut heard = Vec::new();
    let _ = plain.read_to_end(&mut heard); // it may be reset
    ensure!(heard.len() <= 7, "more than an alert of TLS: {heard:?}");
    // The same node's own clients of another authority, and one that others have made.
    done(&["certs", "init", "--dir", &format!("{FILES}/other"), "--host", "127.0.0.1"])?;
    let (to, file, dir) =
        (format!("node1={ADDRESS}"), format!("{FILES}/stranger.yml"), format!("{FILES}/other"));
    done(&["certs", "issue", "eve", "--role", "admin", "--to", &to, "--file", &file, "--dir", &dir])?;
    let server = refused(&by(&file, &["ps"]), &["node1", "another authority"])?;
    // With the right authority for the server, it is the server that refuses.
    let own = |pem: &str| fs::read_to_string(pem).with_context(|| format!("read {pem}"));
    let text = own(&file)?;
    let indent = |pem: String| pem.lines().map(|line| format!("      {line}\n")).collect::<String>();
    let (theirs, ours) =
        (indent(own(&format!("{dir}/ca.pem"))?), indent(own(&format!("{CERTIFICATES}/ca.pem"))?));
    ensure!(text.contains(&theirs), "the file is written otherwise: {text}");
    fs::write(&file, text.replacen(&theirs, &ours, 1)).context("write the file")?;
    let client = refused(&by(&file, &["ps"]), &["eve", "ask for a new client file"])?;
    logged(&["refused", "UnknownIssuer"])?;
    logged(&["refused", "peer=127.0.0.1:", "corrupt message"])?;
    Ok(format!("{server} / {client}"))
}

fn roles() -> Result<String> {
    let [(version, tree), _] = tzdata()?;
    let label = format!("tzdata@{version}");
    let tree = tree.to_str().context("a path that is no text")?;
    let list = || done(&["ls", "-o", "json"]); // its times do not grow older
    let before = list()?;
    for (name, needs, args) in [
        ("grace", "operator", &["attach", "shop", &label][..]),
        ("grace", "operator", &["save", &label, "--file", "/tmp/remote/no.tar"]),
        ("grace", "admin", &["rm", &label]),
        ("ci", "admin", &["build", tree, "--name", "mine", "--version", "1"]),
        ("ci", "admin", &["tag", &label, "stable"]),
        ("ci", "admin", &["pull", "registry.example/tz:1"]),
        ("ci", "admin", &["prune"]),
        ("ci", "admin", &["attach", "shop", &label, "--device", "vendor.com/gpu=0"]),
        ("ci", "admin", &["upgrade", "shop", &label, "--wait-healthy", "/bin/true"]),
    ] {
        refused(&by(name, args), &[&format!("this call needs {needs}")])?;
    }
    let after = list()?;
    ensure!(after == before, "something has changed: {before} {after}");
    ensure!(!Path::new("/tmp/remote/no.tar").exists(), "a refused save has left a file");
    done(&by("grace", &["ls"]))
}

fn client_files() -> Result<String> {
    let to = format!("node1={ADDRESS}");
    let short = format!("{FILES}/short.yml");
    done(&["certs", "issue", "short", "--role", "viewer", "--to", &to, "--file", &short, "--valid", "1s"])?;
    let ended = Command::new("sleep").arg("2").status().context("sleep")?;
    ensure!(ended.success(), "{ended}");
    let line =
        refused(&by(&short, &["ps"]), &["your certificate for node `node1`", "has ended", "certs issue"])?;
    program("chmod", &["0644", &short], b"")?.success("chmod")?;
    refused(&by(&short, &["ps"]), &["mode 0644", "chmod 600"])?;
    refused(&by("/tmp/remote/none.yml", &["ps"]), &["cannot read the client file"])?;
    refused(
        &["--config", "/tmp/remote/ci.yml", "--node", "node2", "ps"],
        &["no node `node2`: it has node1"],
    )?;
    let other = format!("{FILES}/elsewhere.yml");
    done(&["certs", "issue", "a", "--role", "viewer", "--to", "node3=127.0.0.1:7444", "--file", &other])?;
    refused(&by(&other, &["ps"]), &["cannot reach node `node3` at 127.0.0.1:7444"])?;
    let wrong = format!("{FILES}/localhost.yml");
    done(&["certs", "issue", "a", "--role", "viewer", "--to", "node1=localhost:7443", "--file", &wrong])?;
    refused(&by(&wrong, &["ps"]), &["is not for localhost", "certs server --host localhost"])?;
    // A day is soon: it is said, and done.
    done(&["certs", "issue", "soon", "--role", "viewer", "--to", &to, "--file", &wrong, "--valid", "1day"])?;
    let output = capsulectl(&by(&wrong, &["ps"]))?;
    ensure!(output.code == 0 && output.err.contains("ends at"), "{} {}", output.code, output.err);
    Ok(line)
}

fn local_only() -> Result<String> {
    for command in ["doctor", "setup"] {
        let output = capsulectl(&by("ada", &[command]))?.ended_with(2)?;
        ensure!(output.err.contains("looks at the machine it runs on"), "{}", output.err);
    }
    Ok(String::new())
}

fn capsuled_killed(world: &mut World) -> Result<String> {
    let events = Follower::start("capsulectl", &by("grace", &["events", "-o", "json"]))?;
    let [(version, _), _] = tzdata()?;
    let label = format!("tzdata@{version}");
    let shop = OURS.start("shop", &[], &["/bin/sleep", "100000"])?;
    done(&by("ci", &["attach", "shop", &label]))?;
    ensure!(events.kinds(1)?[0].starts_with("attached"), "what is attached is followed");
    world.kill_capsuled()?;
    let line = refused(&by("ci", &["ps"]), &["capsuled does not answer on its node"])?;
    world.restart_capsuled()?;
    within(LONG, "capsuled answered clients elsewhere", || Ok(capsulectl(&by("ci", &["ps"]))?.code == 0))?;
    within(LONG, "detached", || Ok(capsulectl(&by("ci", &["detach", "shop", "tzdata"]))?.code == 0))?;
    // Who followed before goes on following.
    let told = events.kinds(1)?;
    ensure!(told[0].starts_with("detached"), "{told:?}");
    shop.remove()?;
    Ok(line)
}

fn renewed() -> Result<String> {
    let serial = || -> Result<String> {
        done(&["certs", "show", &format!("{CERTIFICATES}/server.pem"), "-o", "json"])
    };
    let events = Follower::start("capsulectl", &by("grace", &["events", "--all", "-o", "json"]))?;
    events.next()?;
    let before = serial()?;
    done(&["certs", "server", "--host", "127.0.0.1", "--host", "localhost"])?;
    ensure!(serial()? != before, "the same certificate");
    // It is for more names now: who was refused before is not any more.
    let by_name = format!("{FILES}/by-name.yml");
    done(&["certs", "issue", "b", "--role", "viewer", "--to", "n=localhost:7443", "--file", &by_name])?;
    within(LONG, "the new certificate used", || Ok(capsulectl(&by(&by_name, &["ps"]))?.code == 0))?;
    done(&by("ci", &["ps"]))?;
    // Other authorities: nobody from before is let in, and connections end.
    let ca = format!("{CERTIFICATES}/ca.pem");
    let own = fs::read_to_string(&ca).context("read the authority")?;
    fs::copy(format!("{FILES}/other/ca.pem"), &ca).context("copy an authority")?;
    within(LONG, "clients of the old authority refused", || Ok(capsulectl(&by("ci", &["ps"]))?.code == 1))?;
    logged(&["disconnected", "client=\"grace\""])?;
    fs::write(&ca, own).context("write the authority")?;
    within(LONG, "they are let in again", || Ok(capsulectl(&by("ci", &["ps"]))?.code == 0))?;
    Ok(String::new())
}

fn killed(server: &mut Daemon) -> Result<String> {
    let [(version, _), _] = tzdata()?;
    let shop = OURS.start("shop", &[], &["/bin/sleep", "100000"])?;
    done(&by("ci", &["attach", "shop", &format!("tzdata@{version}")]))?;
    server.kill()?;
    let line = refused(&by("ci", &["ps"]), &["cannot reach node `node1`"])?;
    let seen = shop.sh("look", &format!("test -e {TARGET}/tzdata.zi && echo there"))?;
    ensure!(seen.trim() == "there", "{seen}");
    *server = start()?;
    done(&by("ci", &["detach", "shop", "tzdata"]))?;
    shop.remove()?;
    Ok(line)
}

fn audited() -> Result<String> {
    for words in [
        &["connected", "client=\"ci\"", "role=\"operator\"", "serial="][..],
        &["call", "client=\"ada\"", "Capsules/Build", "object=\"tzdata@", "outcome=\"begun\""],
        &["call", "client=\"ada\"", "Capsules/Build", "object=\"tzdata@", "outcome=\"OK\""],
        &[
            "call",
            "client=\"ci\"",
            "peer=127.0.0.1:",
            "Attachments/Attach",
            "object=\"shop tzdata@",
            "outcome=\"OK\"",
        ],
        &["call", "client=\"ci\"", "Attachments/Detach", "object=\"shop tzdata\"", "outcome=\"OK\""],
        &[
            "call",
            "client=\"grace\"",
            "Attachments/Attach",
            "object=\"shop tzdata@",
            "outcome=\"PermissionDenied\"",
        ],
        &["call", "client=\"ci\"", "Transfers/Pull", "registry.example/tz:1", "outcome=\"PermissionDenied\""],
        &["call", "client=\"grace\"", "Events/Watch", "outcome=\"begun\""],
        &["call", "client=\"ci\"", "outcome=\"Unavailable\""],
    ] {
        logged(words)?;
    }
    let log = fs::read_to_string(log_of("capsule-remote")).context("read the log")?;
    Ok(format!("{} lines", log.lines().filter(|line| line.contains(" audit: ")).count()))
}

fn audited_as_json() -> Result<String> {
    let text = fs::read_to_string(CONFIG).context("read the configuration")?;
    let json = text.replace("format = \"text\"", "format = \"json\"");
    ensure!(json != text, "the configuration has no format of the log");
    fs::write(CONFIG, json).context("write the configuration")?;
    let mut server = start()?;
    done(&by("ci", &["ps"]))?;
    server.kill()?;
    let log = fs::read_to_string(log_of("capsule-remote")).context("read the log")?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let line = lines.into_iter().find(|line| line["client"] == "ci" && line["target"] == "audit");
    let line = line.with_context(|| format!("no such line: {log}"))?;
    ensure!(line["timestamp"].is_string() && line["role"] == "operator", "{line}");
    fs::write(CONFIG, text).context("write the configuration")?;
    Ok(line.to_string())
}

/// Waits for a line of the audit log that has all words.
fn logged(words: &[&str]) -> Result<()> {
    let log = log_of("capsule-remote");
    let has = || -> Result<bool> {
        let text = fs::read_to_string(&log).context("read the log")?;
        let mut lines = text.lines().filter(|line| line.contains(" audit: "));
        Ok(lines.any(|line| words.iter().all(|word| line.contains(word))))
    };
    if until("written down", has).is_err() {
        bail!("no line of the audit log has {words:?}");
    }
    Ok(())
}
