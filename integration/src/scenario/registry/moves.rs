//! From one machine to another through a registry.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::daemon::{CERTIFICATE, Door, End, PASSWORD, Registry, line};
use super::store::{held, leaves_nothing, same, wipe};
use super::{FILES, SLEEP, publish, terminal, tree};
use crate::event::Reporter;
use crate::scenario::capsulectl::{capsulectl, done, json, refused};
use crate::scenario::ctr::{OURS, Output, ctr, run as program};
use crate::scenario::world::{World, path};

/// A layer that takes a moment.
const LARGE: usize = 24 << 20;

/// Runs the room.
pub fn run(reporter: &mut Reporter, world: &mut World) -> Result<()> {
    let mut open = Registry::start(5000, Door::Open)?;
    let closed = Registry::start(5002, Door::Closed)?;
    let digest = reporter.must("versions are pushed", || pushed(&open))?;
    reporter
        .check("another machine pulls them: the same digest, unpacked, attached", || pulled(&open, &digest));
    reporter.check("a tag of the registry comes with its version", || tagged(&open));
    reporter.check("--as names what says nothing of itself, or another", || named(&open));
    reporter.check("a version that is here with another digest is refused", || differs(&open));
    reporter.check("a version that the registry has with another digest is not pushed", || {
        republished(&open, &digest)
    });
    reporter.check("altered bytes are refused, and nothing is left", || altered(&open, &digest));
    reporter.check("what is not there, or nobody who answers, is told in one line", || missing(&open));
    reporter.check("a registry that wants a password", || passwords(&closed));
    reporter.check("hosts of containerd are used: a mirror", || mirrored(&open));
    reporter.check("hosts of containerd are used: a certificate", encrypted);
    reporter.check("a registry that stops in the middle leaves nothing", || broken(&open));
    terminal::run(reporter, &open);
    reporter.check("a full disk leaves nothing", || full(&open));
    reporter.check("a caller who goes away leaves nothing", || abandoned(&open));
    reporter.check("a capsuled that is killed in the middle leaves nothing", || killed(&open, world));
    open.stop();
    Ok(())
}

fn pushed(open: &Registry) -> Result<(String, String)> {
    publish("tz@2026.1", &["--tag", "stable"])?;
    let large = tree("large@1", "1")?;
    // Not compressible, and always the same.
    let mut seed = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    })
    .take(LARGE)
    .collect();
    fs::write(large.join("noise"), noise).context("write a large file")?;
    publish("large@1", &[])?;
    let said = done(&["push", "tz@stable", &open.at("team/zones")])?;
    ensure!(said.contains(&format!("pushed to {}", open.at("team/zones:2026.1"))), "{said}");
    done(&["push", "tz@stable", &open.at("team/zones:stable")])?;
    done(&["push", "large", &open.at("team/large")])?;
    let all = json(&["inspect", "tz@2026.1"])?;
    Ok((all["version"]["digest"].as_str().context("a digest")?.to_owned(), said.trim().to_owned()))
}

fn pulled(open: &Registry, digest: &str) -> Result<String> {
    wipe()?;
    refused(&["inspect", "tz"], &["tz is not known"])?;
    let output = capsulectl(&["pull", &open.at("team/zones:2026.1")])?;
    // containerd tells of layers every so often, and of none that was quicker.
    ensure!(output.err.contains("unpacking tz@2026.1"), "{}", output.err);
    let said = output.success("pull")?;
    ensure!(said.contains(digest) && said.contains("(new, from 127.0.0.1:5000/team/zones:2026.1)"), "{said}");
    let version = json(&["inspect", "tz@2026.1"])?["version"].clone();
    ensure!(version["digest"] == digest && version["complete"] == true, "{version}");
    ensure!(version["image"] == "localhost/capsules/tz:2026.1", "{version}");
    let before = held()?;
    let again = json(&["pull", &open.at("team/zones:2026.1")])?;
    ensure!(again["existed"] == true && again["version"]["digest"] == digest, "{again}");
    same(&before)?;
    let bench = OURS.start("pulled", &[], &SLEEP)?;
    done(&["attach", "pulled", "tz"])?;
    let file = format!("/proc/{}/root/opt/tz/version", bench.pid()?);
    let content = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    ensure!(content == "2026.1", "{content}");
    done(&["detach", "pulled", "tz"])?;
    bench.remove()?;
    Ok(said.trim().to_owned())
}

fn tagged(open: &Registry) -> Result<String> {
    let arrived = json(&["pull", &open.at("team/zones:stable")])?;
    ensure!(arrived["existed"] == true && arrived["version"]["version"] == "2026.1", "{arrived}");
    ensure!(arrived["version"]["tags"] == serde_json::json!(["stable"]), "{arrived}");
    Ok(String::new())
}

fn named(open: &Registry) -> Result<String> {
    let digest = json(&["inspect", "tz"])?["version"]["digest"].clone();
    let pinned = format!("{}@{}", open.at("team/zones"), digest.as_str().context("a digest")?);
    done(&["pull", &pinned, "--as", "zones@7"])?;
    ensure!(json(&["inspect", "zones@7"])?["version"]["digest"] == digest);
    // An image of others: its reference says what it is, and where that says too little it must be named.
    OURS.import()?;
    let image = "localhost/busybox:latest";
    let other = open.at("others/busybox:1.36");
    ctr(&["image", "tag", image, &other])?.success("ctr image tag")?;
    ctr(&["image", "push", "--plain-http", &other])?.success("ctr image push")?;
    let said = done(&["pull", &other])?;
    ensure!(said.starts_with("busybox@1.36 "), "{said}");
    let image = ctr(&["image", "ls", &format!("name=={other}")])?.success("ctr image ls")?;
    let digest = image.split_whitespace().find(|word| word.starts_with("sha256:")).context("a digest")?;
    let pinned = format!("{}@{digest}", open.at("others/busybox"));
    leaves_nothing(|| refused(&["-o", "json", "pull", &pinned], &["--as NAME@VERSION"]))
}

fn differs(open: &Registry) -> Result<String> {
    wipe()?;
    let tree = tree("other-tz", "another content")?;
    let tree = tree.to_str().context("a path")?;
    done(&["build", tree, "--name", "tz", "--version", "2026.1", "--target", "/opt/tz"])?;
    let line = leaves_nothing(|| {
        refused(
            &["-o", "json", "pull", &open.at("team/zones:2026.1")],
            &["tz@2026.1 is here already as sha256:", "--as"],
        )
    })?;
    done(&["build", tree, "--name", "zones", "--version", "1", "--tag", "2026.1"])?;
    leaves_nothing(|| {
        refused(
            &["-o", "json", "pull", &open.at("team/zones:2026.1"), "--as", "zones"],
            &["is a tag of zones@1"],
        )
    })?;
    Ok(line)
}

/// As by another machine, which built something else under the same name.
fn republished(open: &Registry, digest: &str) -> Result<String> {
    wipe()?;
    let tree = tree("their-tz", "of another machine")?;
    let tree = tree.to_str().context("a path")?;
    done(&["build", tree, "--name", "tz", "--version", "2026.1", "--target", "/opt/tz", "--tag", "moving"])?;
    let reference = open.at("team/zones:2026.1");
    let line = leaves_nothing(|| {
        let words = ["cannot push tz@2026.1", digest, "a version never changes"];
        refused(&["-o", "json", "push", "tz@2026.1", &open.at("team/zones")], &words)?;
        refused(&["-o", "json", "push", "tz@moving", &reference], &words)
    })?;
    // A tag may move there.
    done(&["push", "tz@moving", &open.at("team/zones:moving")])?;
    wipe()?;
    done(&["pull", &reference])?;
    ensure!(json(&["inspect", "tz@2026.1"])?["version"]["digest"] == digest);
    done(&["push", "tz@2026.1", &open.at("team/zones:moving")])?;
    // What is there already is pushed again without a word.
    done(&["push", "tz@2026.1", &reference])?;
    Ok(line)
}

fn altered(open: &Registry, digest: &str) -> Result<String> {
    wipe()?;
    let reference = open.at("team/zones:2026.1");
    let manifest = fs::read_to_string(open.blob(digest)?).context("read the manifest")?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest).context("a manifest")?;
    let layer = manifest["layers"][0]["digest"].as_str().context("a layer")?.to_owned();
    let config = manifest["config"]["digest"].as_str().context("a configuration")?.to_owned();
    let flip = |bytes: &mut Vec<u8>| {
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
    };
    let mut told = Vec::new();
    for blob in [&layer, &config] {
        told.push(open.altered(blob, flip, || {
            leaves_nothing(|| {
                refused(&["-o", "json", "pull", &reference], &["cannot pull", "not what its digest says"])
            })
        })?);
    }
    // Cut short, and the manifest itself.
    open.altered(
        &layer,
        |bytes| bytes.truncate(bytes.len() / 2),
        || leaves_nothing(|| refused(&["-o", "json", "pull", &reference], &["cannot pull"])),
    )?;
    told.push(open.altered(digest, flip, || {
        leaves_nothing(|| refused(&["-o", "json", "pull", &reference], &["cannot pull"]))
    })?);
    done(&["pull", &reference])?;
    Ok(told.join(" | "))
}

fn missing(open: &Registry) -> Result<String> {
    let mut told = Vec::new();
    for (reference, word) in [
        (open.at("team/zones:9"), "there is no such image"),
        (open.at("nobody/nothing:1"), "there is no such image"),
        ("127.0.0.1:5999/team/zones:1".to_owned(), "does not answer"),
        ("zones".to_owned(), "HOST[:PORT]/REPOSITORY"),
    ] {
        told.push(leaves_nothing(|| refused(&["-o", "json", "pull", &reference], &[word, &reference]))?);
    }
    refused(&["-o", "json", "push", "tz", "127.0.0.1:5999/team/zones"], &["cannot push", "does not answer"])?;
    refused(&["-o", "json", "push", "lost", &open.at("a/b")], &["lost is not known"])?;
    Ok(told.join(" | "))
}

/// capsulectl with a password on its standard input.
fn with_password(args: &[&str], password: &str) -> Result<Output> {
    program("capsulectl", args, format!("{password}\n").as_bytes())
}

fn passwords(closed: &Registry) -> Result<String> {
    let reference = closed.at("team/zones:2026.1");
    publish("tz@2026.1", &[])?;
    let line = refused(&["-o", "json", "push", "tz@2026.1", &reference], &["--user NAME"])?;
    let push = ["push", "tz@2026.1", &reference, "--user", "ci"];
    let wrong = with_password(&push, "wrong")?;
    ensure!(wrong.code == 1 && wrong.err.lines().last().is_some_and(|l| l.contains("--user")), "{wrong:?}");
    ensure!(!wrong.err.contains("wrong"), "the password is told: {wrong:?}");
    with_password(&push, PASSWORD)?.success("push")?;
    wipe()?;
    leaves_nothing(|| refused(&["-o", "json", "pull", &reference], &["--user NAME"]))?;
    with_password(&["pull", &reference, "--user", "ci"], PASSWORD)?.success("pull")?;
    // As `docker login` leaves it: `ci:open sesame`.
    let folder = format!("{FILES}/docker");
    fs::create_dir_all(&folder).context("create a folder")?;
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"Y2k6b3BlbiBzZXNhbWU="}}}}}}"#, closed.host);
    fs::write(format!("{folder}/config.json"), text).context("write Docker's configuration")?;
    let config = format!("DOCKER_CONFIG={folder}");
    program("env", &[&config, "capsulectl", "pull", &reference], b"")?.success("pull")?;
    Ok(line)
}

/// A host that nobody is, with a mirror that there is.
fn mirrored(open: &Registry) -> Result<String> {
    wipe()?;
    let folder = "/etc/containerd/certs.d/registry.example";
    fs::create_dir_all(folder).context("create a host's folder")?;
    let text = format!("[host.\"http://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", open.host);
    fs::write(format!("{folder}/hosts.toml"), text).context("write hosts.toml")?;
    let said = done(&["pull", "registry.example/team/zones:2026.1"])?;
    ensure!(said.contains("from registry.example/team/zones:2026.1"), "{said}");
    Ok(said.trim().to_owned())
}

/// TLS by a certificate that only the host's folder makes known.
fn encrypted() -> Result<String> {
    let tls = Registry::start(5007, Door::Tls)?;
    let reference = tls.at("team/zones:2026.1");
    let push = ["-o", "json", "push", "tz@2026.1", &reference, "--user", "ci"];
    let folder = format!("/etc/containerd/certs.d/{}", tls.host);
    fs::create_dir_all(&folder).context("create a host's folder")?;
    let hosts = |more: &str| {
        let text = format!("server = \"https://{0}\"\n[host.\"https://{0}\"]\n{more}", tls.host);
        fs::write(format!("{folder}/hosts.toml"), text).context("write hosts.toml")
    };
    // Without hosts.toml containerd trusts whoever is on the loopback device.
    hosts("")?;
    let unknown = with_password(&push, PASSWORD)?;
    ensure!(unknown.code == 1 && unknown.err.contains("x509"), "{unknown:?}");
    fs::write(format!("{folder}/ca.crt"), CERTIFICATE).context("write a certificate")?;
    hosts("  ca = \"ca.crt\"\n")?;
    with_password(&push, PASSWORD)?.success("push")?;
    wipe()?;
    let pull = ["-o", "json", "pull", &reference];
    leaves_nothing(|| refused(&pull, &["--user NAME"]))?;
    with_password(&[&pull[..], &["--user", "ci"]].concat(), PASSWORD)?.success("pull")?;
    ensure!(json(&["inspect", "tz@2026.1"])?["version"]["complete"] == true);
    Ok(unknown.err.trim().to_owned())
}

fn broken(open: &Registry) -> Result<String> {
    let host = line(5003, &open.host, 6 << 20, End::Breaks)?;
    let told = leaves_nothing(|| refused_at_last(&["pull", &format!("{host}/team/large:1")], "cannot pull"))?;
    done(&["pull", &open.at("team/large:1")])?;
    Ok(told)
}

/// Like [`refused`], for a call that has told of its progress before.
fn refused_at_last(args: &[&str], word: &str) -> Result<String> {
    let output = capsulectl(args)?;
    let last = output.err.trim().lines().last().unwrap_or_default().to_owned();
    ensure!(output.code == 1 && output.out.is_empty(), "{output:?}");
    ensure!(last.starts_with("capsulectl: ") && last.contains(word), "does not name {word:?}: {last}");
    Ok(last)
}

fn full(open: &Registry) -> Result<String> {
    wipe()?;
    const CONTENT: &str = "/var/lib/containerd/io.containerd.content.v1.content";
    let mount = ["-t", "tmpfs", "-o", "size=4m", "tmpfs", CONTENT];
    program("mount", &mount, b"")?.success("mount a small file system")?;
    for folder in ["ingest", "blobs/sha256"] {
        fs::create_dir_all(format!("{CONTENT}/{folder}")).context("create a folder")?;
    }
    let told = leaves_nothing(|| refused_at_last(&["pull", &open.at("team/large:1")], "the disk is full"));
    program("umount", &[CONTENT], b"")?.success("umount it")?;
    let told = told?;
    done(&["pull", &open.at("team/large:1")])?;
    Ok(told)
}

/// A pull that hangs in the middle.
fn hanging(host: &str) -> Result<std::process::Child> {
    let reference = format!("{host}/team/large:1");
    let pull = std::process::Command::new("capsulectl")
        .args(["pull", &reference])
        .env("PATH", path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .context("start capsulectl")?;
    let begun = || -> Result<bool> {
        let active = ctr(&["-n", "capsules", "content", "active"])?.success("ctr content active")?;
        Ok(active.contains("layer-sha256:"))
    };
    super::tags::wait_for(begun)?;
    Ok(pull)
}

fn abandoned(open: &Registry) -> Result<String> {
    wipe()?;
    let before = held()?;
    let mut pull = hanging(&line(5004, &open.host, 6 << 20, End::Hangs)?)?;
    pull.kill().context("kill capsulectl")?;
    pull.wait().context("wait for capsulectl")?;
    same(&before)?;
    Ok(String::new())
}

fn killed(open: &Registry, world: &mut World) -> Result<String> {
    let before = held()?;
    let mut pull = hanging(&line(5005, &open.host, 6 << 20, End::Hangs)?)?;
    world.kill_capsuled()?;
    pull.wait().context("wait for capsulectl")?;
    world.restart_capsuled()?;
    done(&["ls"])?;
    ctr(&["-n", "capsules", "image", "ls"])?.success("ctr image ls")?;
    let lease = ["-n", "capsules", "leases", "create", "--id", "to-collect"];
    // containerd collects when a lease is deleted; capsuled has deleted its own.
    ctr(&lease)?.success("ctr leases create")?;
    ctr(&["-n", "capsules", "leases", "rm", "--sync", "to-collect"])?.success("ctr leases rm")?;
    same(&before)?;
    done(&["pull", &open.at("team/large:1")])?;
    Ok(String::new())
}
