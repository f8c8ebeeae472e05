//! Devices of pods: by our annotation, and by a device plugin through the kubelet.

use anyhow::{Result, ensure};
use serde_json::json;

use super::everyday::SLEEP;
use super::files::NODE;
use super::kubectl::{Manifest, get};
use super::plugin::Plugin;
use super::{Class, OURS, REFERENCE, until};

const KIND: &str = "example.com/gpu";
/// The name that is told is that of the spec, and the device opens.
const SEEN: &str = "exec 3<>/dev/example0 && echo \"$EXAMPLE_VISIBLE_DEVICES\"";

/// A device that the node lets pods name, for one container of two.
pub fn named() -> Result<String> {
    let named = [("resourcecapsules.io/devices.app", "example.com/gpu=0")];
    let pod = Manifest::new("device", OURS, &[("app", SLEEP), ("log", SLEEP)]).annotated(&named);
    of_the_first(pod).map(|()| String::new())
}

/// A pod asks for so many; a plugin gives the kubelet the name in CDI of that which it is to have, on either runtime.
pub fn by_plugin() -> Result<String> {
    let _plugin = Plugin::start(KIND)?;
    let count = || Ok::<_, anyhow::Error>(get(&["node", NODE])?["status"]["allocatable"][KIND].clone());
    until("told by the node: a device", || Ok(count()? == "1"))?;
    let asks = |class: Class, name: &str| {
        Manifest::new(name, class, &[("app", SLEEP), ("log", SLEEP)])
            .with(|spec| spec["containers"][0]["resources"] = json!({ "limits": { KIND: 1 } }))
    };
    of_the_first(asks(REFERENCE, "theirs"))?;
    of_the_first(asks(OURS, "ours"))?;
    // By both it is the same, once.
    let both = [("resourcecapsules.io/devices.app", "example.com/gpu=0")];
    of_the_first(asks(OURS, "both").annotated(&both))?;
    Ok(format!("{} {KIND}", count()?))
}

fn of_the_first(manifest: Manifest) -> Result<()> {
    let pod = manifest.ready()?;
    let has = pod.member("app")?.sh(SEEN)?;
    ensure!(has == "void", "{has:?}");
    let other = pod.member("log")?.exec(&["/bin/sh", "-c", "test -e /dev/example0"], b"")?;
    ensure!(other.code == 1, "the other container: {other:?}");
    pod.delete()
}
