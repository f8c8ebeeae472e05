//! A `Capsule` that names keys: what none of them has signed is fetched, told and not used.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::asked::{of_cluster, of_node, ready, wanted};
use super::kubectl::{administer, apply, done as kubectl, get, kubectl_with};
use super::until;
use super::wanted::{all_have, of_shelf};
use crate::scenario::capsulectl::done;
use crate::scenario::registry::daemon::{Door, Registry};
use crate::scenario::sets::publish;

const PORT: u16 = 5001;
const KEYS: &str = "/tmp/keys-of-the-cluster";

fn sealed(image: &str, key: &str) -> Value {
    let spec = json!({ "image": image, "versions": ["1", "2"], "signatures": { "keys": [key] } });
    of_cluster("Capsule", "sealed", spec)
}

fn said(what: &str) -> Result<String> {
    let condition =
        || Ok::<_, anyhow::Error>(get(&["capsule", "sealed"])?["status"]["conditions"][0].to_string());
    until(&format!("sealed: {what}"), || Ok(condition()?.contains(what)))
        .map_err(|error| error.context(format!("{:?}", condition())))?;
    condition()
}

fn public(pair: &str) -> Result<String> {
    fs::read_to_string(format!("{KEYS}/{pair}.pub")).context("read a public key")
}

/// From a registry to pods, for as long as somebody has signed it who should.
pub fn run() -> Result<String> {
    fs::create_dir_all(KEYS).context("create the folder of keys")?;
    let mut registry = Registry::start(PORT, Door::Open)?;
    let image = registry.at("team/sealed");
    for pair in ["ours", "theirs"] {
        done(&["keygen", &format!("{KEYS}/{pair}")])?;
    }
    let ours = format!("{KEYS}/ours.key");
    for version in ["1", "2"] {
        publish(&format!("sealed@{version}"), &[])?;
    }
    done(&["sign", "sealed@1", "--key", &ours])?;
    done(&["sign", "sealed@2", "--key", &format!("{KEYS}/theirs.key")])?;
    for label in ["sealed@1", "sealed@2"] {
        done(&["push", label, &image])?;
        done(&["rm", label])?;
    }
    let refused = kubectl_with(&["apply", "-f", "-"], sealed(&image, "none").to_string().as_bytes())?;
    ensure!(
        refused.ended_with(1)?.err.contains("they begin with -----BEGIN PUBLIC KEY"),
        "a key is any text"
    );
    apply(&sealed(&image, &public("ours")?))?;
    let why = said("sealed@2 is not used: no key of the Capsule sealed made its signature")?;
    ensure!(why.contains("\"Failed\""), "{why}");
    apply(&wanted("sealed", of_shelf("sealed", "1")))?;
    ready("sealed", "True", "4 containers")?;
    all_have(&["lib@1 attached", "sealed@1 attached"])?;
    apply(&wanted("sealed", of_shelf("sealed", "2")))?;
    ready("sealed", "False", "sealed@2 is not used")?;
    all_have(&["lib@1 attached", "sealed@1 attached"])?;
    // One who signs later is believed then, and pods have what they asked for.
    done(&["sign", "sealed@2", "--key", &ours])?;
    ready("sealed", "True", "4 containers")?;
    all_have(&["lib@1 attached", "sealed@2 attached"])?;
    said("\"Present\"")?;
    // Another key: what is attached stays, and is told.
    apply(&sealed(&image, &public("theirs")?))?;
    said("sealed@1 is not used")?;
    apply(&wanted("sealed", of_shelf("sealed", "1")))?;
    ready("sealed", "False", "sealed@1 is not used")?;
    all_have(&["lib@1 attached", "sealed@2 attached"])?;
    kubectl(&["delete", "capsuleattachment", "sealed", "--timeout=120s"])?;
    all_have(&["lib@1 attached"])?;
    administer("kubectl", &["delete", "capsule", "sealed"])?;
    // Until then it may be fetched again.
    registry.stop();
    let says = || of_node("{.spec.capsules} {.status.capsules}");
    until("nothing of it said", || Ok(!says()?.contains("sealed")))?;
    for label in ["sealed@1", "sealed@2"] {
        done(&["rm", label])?;
    }
    fs::remove_dir_all(KEYS).context("remove the keys")?;
    Ok(why)
}
