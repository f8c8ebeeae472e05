//! The main job, in a pod that a kubelet made.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::everyday::SLEEP;
use super::kubectl::{Manifest, NAMESPACE};
use super::{OURS, REFERENCE};
use crate::scenario::capsulectl::{done, json as json_of, publish, refused, tzdata};
use crate::scenario::readers::{Readers, SHARED, expect_seamless};

const RELEASE: &str = "/usr/share/zoneinfo/tzdata.zi";
const SWAPS: u32 = 20;
/// What readers share with the scenario, and compare with: here and in a pod.
pub const FOLDER: &str = SHARED;
const FOLDERS: [(&str, &str, &str); 2] =
    [("shared", SHARED, SHARED), ("trees", "/payload/capsules", "/reference")];

fn mounts(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/mountinfo");
    fs::read_to_string(&path).with_context(|| format!("read {path}"))
}

/// Gives a pod's first container what its readers need.
pub fn shares(spec: &mut Value) {
    spec["volumes"] =
        FOLDERS.map(|(name, path, _)| json!({ "name": name, "hostPath": { "path": path } })).into();
    spec["containers"][0]["volumeMounts"] =
        FOLDERS.map(|(name, _, at)| json!({ "name": name, "mountPath": at })).into();
}

/// Attach, upgrade and roll back under readers, detach.
pub fn main_job() -> Result<String> {
    let [old, new] = publish()?;
    fs::create_dir_all(SHARED).with_context(|| format!("create {SHARED}"))?;
    let pod = Manifest::new("web", OURS, &[("app", SLEEP)]).with(shares).ready()?;
    let app = pod.member("app")?;
    let (name, pid) = (app.reference(), app.pid()?);
    let before = mounts(pid)?;
    let said = done(&["attach", &name, &format!("tzdata@{old}")])?;
    ensure!(said.starts_with(&format!("{name}: tzdata@{old} attached")), "{said}");
    let allowed = [&old, &new].map(|version| format!("/reference/tzdata-{version}/tzdata.zi"));
    let readers = Readers::start(&app, 4, RELEASE, &allowed)?;
    for _ in 0..SWAPS {
        done(&["upgrade", &name, &format!("tzdata@{new}")])?;
        done(&["rollback", &name, "tzdata"])?;
    }
    let seamless = expect_seamless(&readers.stop()?)?;
    done(&["upgrade", &name, "tzdata"])?;
    let list = json_of(&["ps", &name])?;
    let row = &list["attachments"][0];
    ensure!(row["container"] == app.id.as_str() && row["pod"] == format!("{NAMESPACE}/web"), "{row}");
    ensure!(row["version"] == new.as_str() && row["previous_version"] == old.as_str(), "{row}");
    // What is mounted inside is seen by `kubectl exec`, too.
    let release = fs::read_to_string(tzdata()?[1].1.join("tzdata.zi")).context("read a release")?;
    let seen = app.exec(&["/bin/cat", RELEASE], b"")?.success("read the release in the pod")?;
    ensure!(seen == release, "`kubectl exec` reads other files");
    // The pod has one container: it need not be named.
    done(&["detach", &format!("pod/{NAMESPACE}/web"), "tzdata"])?;
    ensure!(mounts(pid)? == before, "the mount table is another one");
    let last = pod.member("app")?;
    ensure!(last.restarts == 0 && last.pid()? == pid, "it was restarted");
    pod.delete()?;
    Ok(seamless)
}

/// The message says what the pod is missing.
pub fn refused_elsewhere() -> Result<String> {
    let pod = Manifest::new("theirs", REFERENCE, &[("app", SLEEP)]).ready()?;
    let name = pod.member("app")?.reference();
    let said = refused(&["attach", &name, "lib"], &["cannot hot-plug", "runtimeClassName"])?;
    pod.delete()?;
    Ok(said)
}
