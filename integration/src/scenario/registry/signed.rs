//! Signatures, and a node that wants them.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::daemon::{Door, Registry};
use super::store::{leaves_nothing, wipe};
use super::{FILES, SLEEP, publish};
use crate::event::Reporter;
use crate::scenario::capsulectl::{done, json, refused};
use crate::scenario::ctr::{OURS, ctr};
use crate::scenario::world::{World, until};

const CONFIG: &str = "/etc/capsule/config.toml";
const ARCHIVE: &str = "/tmp/registry/signed.tar";

/// Runs the room.
pub fn run(reporter: &mut Reporter, world: &mut World) -> Result<()> {
    let registry = Registry::start(5006, Door::Open)?;
    reporter.must("versions are signed, pushed and saved with their signatures", || {
        Ok(((), signed(&registry)?))
    })?;
    let shipped = fs::read_to_string(CONFIG).context("read the configuration")?;
    reporter.check("a policy without a key, or with none that is one, is refused", || mistakes(&shipped));
    demand(world, &shipped, "[\"app\"]")?;
    reporter
        .check("where the policy wants a signature, what has none is refused by name", || wanted(&registry));
    reporter.check("signatures come with what is pulled and loaded", || travelled(&registry));
    reporter.check("one who signs later is believed then, and another key is not", later);
    reporter.check("what waits for a container's next start is asked too", || restored(world, &shipped));
    reporter.check("signatures that a killed removal has left go, and others stay", || left(world));
    fs::write(CONFIG, &shipped).context("put the configuration back")?;
    restart(world)?;
    // The last: it takes all away that the others are about.
    reporter.check("signatures that a registry has stay when another machine pushes its own", || {
        signed_elsewhere(&registry)
    });
    Ok(())
}

fn restart(world: &mut World) -> Result<()> {
    world.kill_capsuled()?;
    world.restart_capsuled()
}

/// A capsuled that wants signatures by our key, for these capsules.
fn demand(world: &mut World, shipped: &str, require: &str) -> Result<()> {
    let ours = format!("keys = [\"{FILES}/ours.pub\"]");
    let text =
        shipped.replace("keys = []", &ours).replace("require = \"none\"", &format!("require = {require}"));
    ensure!(text.contains(&ours) && text.contains(require), "nothing to change in {shipped}");
    fs::write(CONFIG, text).context("write the configuration")?;
    restart(world)
}

fn key(name: &str) -> String {
    format!("{FILES}/{name}")
}

fn signed(registry: &Registry) -> Result<String> {
    wipe()?;
    for pair in ["ours", "theirs"] {
        done(&["keygen", &key(pair)])?;
    }
    for label in ["app@1", "app@2", "app@3", "free@1"] {
        publish(label, &[])?;
    }
    let said = done(&["sign", "app@1", "--key", &key("ours.key")])?;
    done(&["sign", "app@1", "--key", &key("theirs.key")])?;
    let twice = json(&["sign", "app@1", "--key", &key("ours.key")])?;
    ensure!(twice["signatures"] == 2, "the same signature counts twice: {twice}");
    done(&["verify", "app@1", "--key", &key("theirs.pub")])?;
    done(&["sign", "app@3", "--key", &key("theirs.key")])?;
    refused(&["verify", "app@2", "--key", &key("ours.pub")], &["app@2", "of 0"])?;
    refused(&["verify", "app@1"], &["of this node's policy"])?;
    for label in ["app@1", "app@2", "app@3", "free@1"] {
        let (name, _) = label.split_once('@').context("NAME@VERSION")?;
        done(&["push", label, &registry.at(name)])?;
    }
    done(&["save", "app@1", "free", "-f", ARCHIVE])?;
    done(&["save", "app@2", "-f", "/tmp/registry/unsigned.tar"])?;
    Ok(said.trim().to_owned())
}

/// Two machines sign the same version, and neither has the other's signature when it pushes.
fn signed_elsewhere(registry: &Registry) -> Result<String> {
    wipe()?;
    for pair in ["ours", "theirs"] {
        publish("both@1", &[])?;
        done(&["sign", "both@1", "--key", &key(&format!("{pair}.key"))])?;
        done(&["push", "both@1", &registry.at("both")])?;
        wipe()?;
    }
    done(&["pull", &registry.at("both:1")])?;
    done(&["verify", "both@1", "--key", &key("ours.pub")])?;
    done(&["verify", "both@1", "--key", &key("theirs.pub")])
}

fn mistakes(shipped: &str) -> Result<String> {
    let check = |from: &str, to: &str| -> Result<String> {
        let path = format!("{FILES}/config.toml");
        fs::write(&path, shipped.replace(from, to)).context("write a configuration")?;
        let output = crate::scenario::ctr::run("capsuled", &["--config", &path, "--check-config"], b"")?;
        ensure!(output.code != 0, "{output:?}");
        Ok(output.err.trim().to_owned())
    };
    let line = check("require = \"none\"", "require = \"all\"")?;
    ensure!(line.contains("no version could be used"), "{line}");
    Ok(line)
}

fn wanted(registry: &Registry) -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    let mut told = Vec::new();
    for (label, word) in [("app@2", "is not signed"), ("app@3", "no signature that this node trusts")] {
        told.push(refused(&["attach", "shop", label], &[label, word])?);
    }
    done(&["attach", "shop", "app@1"])?;
    told.push(refused(&["upgrade", "shop", "app@2"], &["app@2 is not signed"])?);
    done(&["attach", "shop", "free"])?;
    let list = json(&["ps", "shop"])?["attachments"].to_string();
    ensure!(list.contains(r#""version":"1""#) && !list.contains(r#""version":"2""#), "{list}");
    done(&["detach", "shop", "app"])?;
    done(&["detach", "shop", "free"])?;
    shop.remove()?;
    wipe()?;
    for (label, word) in [("app:2", "app@2 is not signed"), ("app:3", "app@3 has no signature")] {
        let reference = registry.at(label);
        told.push(leaves_nothing(|| refused(&["-o", "json", "pull", &reference], &[word]))?);
    }
    // Under the name of one that was signed, and one that was signed under another name.
    let reference = registry.at("app:1");
    told.push(leaves_nothing(|| {
        refused(&["-o", "json", "pull", &reference, "--as", "app@7"], &["app@7", "signed as app@1"])
    })?);
    leaves_nothing(|| refused(&["load", "-f", "/tmp/registry/unsigned.tar"], &["app@2 is not signed"]))?;
    Ok(told.join(" | "))
}

fn travelled(registry: &Registry) -> Result<String> {
    let arrived = json(&["pull", &registry.at("app:1")])?;
    ensure!(arrived["existed"] == false, "{arrived}");
    let said = done(&["verify", "app@1"])?;
    ensure!(said.contains("(good signatures: 1 of 2)"), "{said}");
    done(&["pull", &registry.at("free:1")])?;
    wipe()?;
    done(&["load", "-f", ARCHIVE])?;
    done(&["verify", "app@1"])?;
    // Nothing that altered bytes are wins: not the signature's either.
    let image = json(&["inspect", "app@1"])?["version"]["digest"].as_str().context("a digest")?.to_owned();
    let beside = format!("localhost/capsules/app:{}.sig", image.replace(':', "-"));
    let list =
        ctr(&["-n", "capsules", "image", "ls", &format!("name=={beside}")])?.success("ctr image ls")?;
    let manifest =
        list.split_whitespace().find(|word| word.starts_with("sha256:")).context("a digest")?.to_owned();
    wipe()?;
    let reference = registry.at("app:1");
    let flip = |bytes: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(bytes).replacen("MEU", "MEV", 1).replacen("MEQ", "MER", 1);
        *bytes = text.into_bytes();
    };
    let line = registry.altered(&manifest, flip, || {
        leaves_nothing(|| refused(&["-o", "json", "pull", &reference], &["app@1 is not signed"]))
    })?;
    done(&["pull", &reference])?;
    Ok(line)
}

fn later() -> Result<String> {
    wipe()?;
    publish("app@4", &[])?;
    let shop = OURS.start("late", &[], &SLEEP)?;
    refused(&["attach", "late", "app@4"], &["app@4 is not signed"])?;
    done(&["sign", "app@4", "--key", &key("theirs.key")])?;
    let line = refused(&["attach", "late", "app@4"], &["no signature that this node trusts"])?;
    done(&["sign", "app@4", "--key", &key("ours.key")])?;
    done(&["attach", "late", "app@4"])?;
    done(&["detach", "late", "app"])?;
    // Gone is gone, also from memory.
    let digest = json(&["inspect", "app@4"])?["version"]["digest"].as_str().context("a digest")?.to_owned();
    let beside = format!("localhost/capsules/app:{}.sig", digest.replace(':', "-"));
    ctr(&["-n", "capsules", "image", "rm", &beside])?.success("ctr image rm")?;
    super::tags::wait_for(|| Ok(refused(&["attach", "late", "app@4"], &["is not signed"]).is_ok()))?;
    shop.remove()?;
    Ok(line)
}

/// As after a removal that was killed when all but the signatures was gone.
fn left(world: &mut World) -> Result<String> {
    wipe()?;
    publish("app@5", &[])?;
    publish("app@6", &[])?;
    let mut beside = Vec::new();
    for label in ["app@5", "app@6"] {
        done(&["sign", label, "--key", &key("ours.key")])?;
        let digest = json(&["inspect", label])?["version"]["digest"].as_str().context("a digest")?.to_owned();
        beside.push(format!("localhost/capsules/app:{}.sig", digest.replace(':', "-")));
        let image = format!("localhost/capsules/app:{}", &label[4..]);
        ctr(&["-n", "capsules", "image", "rm", &image])?.success("ctr image rm")?;
    }
    ctr(&["-n", "capsules", "image", "label", &beside[0], "resourcecapsules.io/leaving=yes"])?
        .success("ctr image label")?;
    restart(world)?;
    let images = || ctr(&["-n", "capsules", "image", "ls", "-q"])?.success("ctr image ls");
    until("removed", || Ok(!images()?.contains(&beside[0])))?;
    // Those of a version that is yet to come are somebody's.
    let images = images()?;
    ensure!(images.contains(&beside[1]), "{images}");
    ctr(&["-n", "capsules", "image", "rm", &beside[1]])?.success("ctr image rm")?;
    Ok(String::new())
}

fn restored(world: &mut World, shipped: &str) -> Result<String> {
    let shop = OURS.start("again", &[], &SLEEP)?;
    publish("free@1", &[])?;
    done(&["attach", "again", "free"])?;
    demand(world, shipped, "\"all\"")?;
    // What is attached stays.
    let list = json(&["ps", "again"])?["attachments"].to_string();
    ensure!(list.contains(r#""state":"attached""#), "{list}");
    shop.kill("SIGKILL")?;
    shop.wait_for("STOPPED")?;
    ctr(&["task", "rm", "again"])?;
    let start = ctr(&["task", "start", "-d", "again"])?;
    ensure!(start.code != 0 && start.err.contains("free@1 is not signed"), "{start:?}");
    // ctr leaves the task that did not start.
    ctr(&["task", "rm", "--force", "again"])?;
    done(&["sign", "free@1", "--key", &key("ours.key")])?;
    ctr(&["task", "start", "-d", "again"])?.success("ctr task start")?;
    let list = json(&["ps", "again"])?["attachments"].to_string();
    ensure!(list.contains(r#""state":"attached""#), "{list}");
    shop.remove()?;
    Ok(start.err.trim().to_owned())
}
