//! How a container is named, what its annotations ask for, and where nothing can be attached.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::client::{Container, done as nerdctl_done, nerdctl};
use super::{SLEEP, node};
use crate::images::Image;
use crate::scenario::capsulectl::{done, json, refused};
use crate::scenario::ctr::{OURS, REFERENCE, SNAPSHOTTER, Stack};

const ATTACH: &str = "resourcecapsules.io/attach";

/// By its name, its id, the beginning of its id.
pub fn names() -> Result<String> {
    let web = Container::run(OURS, "web", &[], &SLEEP)?;
    let short = web.id[..12].to_owned();
    let called = [
        "web".to_owned(),
        "default/web".to_owned(),
        web.id.clone(),
        short.clone(),
        format!("default/{}", &web.id[..8]),
    ];
    for name in called {
        let said = done(&["attach", &name, "lib@1"])?;
        ensure!(said.contains("default/web: lib@1"), "{said}");
        let shown = json(&["ps", &name])?;
        let one = &shown["attachments"][0];
        ensure!(one["container"] == *web.id && one["container_name"] == "web", "{shown}");
        let said = done(&["upgrade", &name, "lib"])?;
        ensure!(said.contains("default/web: lib 1 -> 2"), "{said}");
        done(&["rollback", &name, "lib"])?;
        done(&["detach", &name, "lib"])?;
    }
    refused(&["attach", "we", "lib@1"], &["\"we\" is not known", "nerdctl ps"])?;
    nerdctl_done(&["rename", "web", "shop"])?;
    refused(&["attach", "web", "lib@1"], &["\"web\" is not known"])?;
    done(&["attach", "shop", "lib@1"])?;
    // A name that another's id begins with.
    let other = Container::run(OURS, &web.id[..4], &[], &SLEEP)?;
    done(&["attach", &web.id[..4], "tool"])?;
    other.expect(&["tool@1 attached"])?;
    web.expect(&["lib@1 attached"])?;
    let table = done(&["ps"])?;
    ensure!(table.contains("shop") && !table.contains(&web.id), "{table}");
    other.remove()?;
    nerdctl_done(&["rm", "-f", "shop"])?;
    Ok(short)
}

/// One after the other has the same name, and no event is waited for.
pub fn same_name() -> Result<String> {
    for round in 0..5 {
        let web = Container::run(OURS, "web", &[], &SLEEP)?;
        done(&["attach", "web", "lib@1"]).with_context(|| format!("round {round}"))?;
        web.expect(&["lib@1 attached"])?;
        web.remove()?;
    }
    Ok("5 containers".to_owned())
}

/// Names are of a namespace of containerd's.
pub fn namespaces() -> Result<String> {
    let archive = Image::Busybox.in_machine();
    let archive = archive.to_str().context("an archive's path is no text")?;
    let other = ["--namespace", "other", "--snapshotter", OURS.snapshotter];
    nerdctl_done(&[&other[..], &["load", "-i", archive]].concat())?;
    let web = Container::run(OURS, "web", &[], &SLEEP)?;
    let run = ["run", "-d", "--name", "web", "--network", "none", "--runtime", OURS.runtime];
    let id = nerdctl_done(&[&other[..], &run, &[Image::Busybox.name()], &SLEEP].concat())?;
    let both = [format!("default/{}", web.id), format!("other/{id}")];
    let said = refused(&["attach", "web", "lib@1"], &["ambiguous", &both[0], &both[1], "--namespace"])?;
    done(&["attach", "web", "lib@1", "--namespace", "other"])?;
    done(&["attach", "default/web", "lib@2"])?;
    web.expect(&["lib@2 attached"])?;
    ensure!(json(&["ps", "other/web"])?["attachments"][0]["version"] == "1", "the other's");
    nerdctl_done(&[&other[..], &["rm", "-f", "web"]].concat())?;
    web.remove()?;
    nerdctl_done(&[&other[..], &["rmi", "-f", Image::Busybox.name()]].concat())?;
    Ok(said)
}

/// Containers with and without capsules, side by side.
pub fn on_and_off() -> Result<String> {
    let before = node()?;
    let asks = format!("{ATTACH}=lib@1");
    let on = Container::run(OURS, "on", &["--annotation", &asks], &SLEEP)?;
    let plain = Container::run(OURS, "plain", &[], &SLEEP)?;
    let options = ["--annotation", &asks, "--annotation", "resourcecapsules.io/enabled=false"];
    let off = Container::run(OURS, "off", &options, &SLEEP)?;
    // On runc, an annotation is one that nobody reads.
    let runc = Container::run(SNAPSHOTTER, "runc", &["--annotation", &asks], &SLEEP)?;
    on.expect(&["lib@1 attached"])?;
    for none in [&plain, &off, &runc] {
        none.expect(&[])?;
        ensure!(none.exec(&["ls", "/opt/lib"])?.code != 0, "{} has it", none.name);
    }
    done(&["attach", "plain", "lib@2"])?;
    ensure!(plain.sh("cat /opt/lib/version")? == "2", "what is attached later");
    refused(&["attach", "off", "lib@1"], &["takes no capsules", "resourcecapsules.io/enabled"])?;
    let said = refused(
        &["attach", &runc.id, "lib@1"],
        &["default/runc runs on io.containerd.runc.v2", "io.containerd.capsule.v1"],
    )?;
    for container in [on, plain, off, runc] {
        container.remove()?;
    }
    before.is_the_same()?;
    Ok(said)
}

/// `nerdctl run` that cannot be; what nerdctl says.
fn cannot_run(stack: Stack, options: &[&str], command: &[&str]) -> Result<String> {
    let args = ["run", "-d", "--name", "wrong", "--network", "none"];
    let args = [&args, &stack.words()[..], options, &[Image::Busybox.name()], command].concat();
    let output = nerdctl(&args)?;
    ensure!(output.code != 0, "{options:?} {command:?} runs: {}", output.out);
    Ok(output.err.trim().to_owned())
}

/// Whether nerdctl has a container of this name, that never ran.
fn is_created() -> Result<bool> {
    let list = nerdctl_done(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"])?;
    Ok(list.lines().any(|line| line.starts_with("wrong Created")))
}

/// What cannot be attached keeps a container from being started: nerdctl says why, and nothing is left that is not left of any
/// other container that cannot be started.
pub fn mistakes() -> Result<String> {
    let before = node()?;
    cannot_run(REFERENCE, &[], &["/bin/no-such-program"])?;
    let kept = is_created()?;
    nerdctl_done(&["rm", "-f", "wrong"])?;
    before.is_the_same().context("the reference")?;
    for (annotation, words) in [
        ("resourcecapsules.io/devices=example.com/nothing=7", &["example.com/nothing=7"][..]),
        ("resourcecapsules.io/attach=lib@9", &["lib has no version 9", "it has 2, 1"]),
        ("resourcecapsules.io/attach=lib:relative", &["relative"]),
        ("resourcecapsules.io/attach=no-such", &[ATTACH, "no-such", "capsulectl ls"]),
    ] {
        let said = cannot_run(OURS, &["--annotation", annotation], &SLEEP)?;
        for word in words {
            ensure!(said.contains(word), "{annotation}: does not name {word:?}: {said}");
        }
        ensure!(is_created()? == kept, "{annotation}: it is {}there", if kept { "not " } else { "" });
        nerdctl_done(&["rm", "-f", "wrong"])?;
        before.is_the_same().context(annotation)?;
    }
    // All of them or none.
    let said = cannot_run(OURS, &["--annotation", &format!("{ATTACH}=lib,no-such")], &SLEEP)?;
    nerdctl_done(&["rm", "-f", "wrong"])?;
    before.is_the_same()?;
    ensure!(!Path::new("/opt/lib").exists(), "it is attached to the node");
    Ok(said)
}
