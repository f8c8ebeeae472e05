//! What is done by hand to a container that Kubernetes has made, by the name that Kubernetes gives it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::cri::v1::Mount;

use super::capsules::expect;
use super::kubelet::{Kubelet, Member, SLEEP};
use super::{OURS, REFERENCE};
use crate::scenario::capsulectl::{done, json, publish, refused};
use crate::scenario::readers::{Readers, SHARED, expect_seamless};
use crate::scenario::sets::publish_with;

const RELEASE: &str = "/usr/share/zoneinfo/tzdata.zi";
const SWAPS: u32 = 20;

/// Attach, upgrade and roll back under readers, detach.
pub fn main_job(kubelet: &Kubelet) -> Result<String> {
    let [old, new] = publish()?;
    fs::create_dir_all(SHARED).with_context(|| format!("create {SHARED}"))?;
    let pod = kubelet.pod(OURS, "web", &[])?;
    let app = pod.start_with("app", SLEEP, |config| {
        config.mounts = [(SHARED, SHARED, false), ("/payload/capsules", "/reference", true)]
            .map(|(host, inside, readonly)| Mount {
                host_path: host.to_owned(),
                container_path: inside.to_owned(),
                readonly,
                ..Default::default()
            })
            .to_vec();
    })?;
    let (name, pid, mounts) = (app.reference(), app.pid()?, app.mounts()?);
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
    let list = json(&["ps", &name])?;
    let row = &list["attachments"][0];
    ensure!(row["container"] == app.id.as_str() && row["namespace"] == "k8s.io", "{row}");
    ensure!(row["pod"] == "shop/web" && row["pod_container"] == "app", "{row}");
    ensure!(row["version"] == new.as_str() && row["previous_version"] == old.as_str(), "{row}");
    let table = done(&["ps"])?;
    ensure!(table.contains(&name) && !table.contains(&app.id), "{table}");
    let top = json(&["top"])?;
    ensure!(top["containers"][0]["pod"] == "shop/web", "{top}");
    done(&["detach", &name, "tzdata"])?;
    let told = done(&["events", "--all", "--no-follow", "--container", &name])?;
    let detached = format!("tzdata {new} in {name} at ");
    ensure!(told.lines().any(|line| line.contains("detached") && line.contains(&detached)), "{told}");
    ensure!(!told.contains(&app.id), "{told}");
    ensure!(app.mounts()? == mounts, "the mount table is another one");
    ensure!(app.pid()? == pid, "it was restarted");
    pod.remove()?;
    Ok(seamless)
}

/// What a capsule denies, as an exec of the kubelet's (a probe, `kubectl exec`) sees it.
pub fn denied(app: &Member<'_>) -> Result<String> {
    publish_with("denies@1", &["--deny", "mkdir"])?;
    let mkdir = |path: &str| app.exec(&["/bin/mkdir", path], 60);
    ensure!(mkdir("/own-1")?.code == 0, "mkdir fails, with nothing attached");
    done(&["attach", &app.reference(), "denies"])?;
    let refused = mkdir("/own-2")?;
    ensure!(refused.code == 1 && refused.err.contains("Operation not permitted"), "{refused:?}");
    done(&["detach", &app.reference(), "denies"])?;
    ensure!(mkdir("/own-3")?.code == 0, "mkdir fails, with nothing attached any more");
    Ok(refused.err.trim().to_owned())
}

/// Each way to name a container, and what is said of those that name none.
pub fn names(kubelet: &Kubelet) -> Result<String> {
    let web = kubelet.pod(OURS, "web", &[])?;
    let app = web.start("app", SLEEP)?;
    for name in
        [app.id.as_str(), &app.id[..16], &format!("k8s.io/{}", app.id), "pod/shop/web", "pod/shop/web/app"]
    {
        done(&["attach", name, "lib@1"])?;
        expect(&app.id, &["lib@1 attached"])?;
        done(&["detach", name, "lib"])?;
    }
    let log = web.start("log", SLEEP)?;
    let which = refused(&["attach", "pod/shop/web", "lib"], &["containers app, log", "pod/shop/web/app"])?;
    refused(&["attach", "pod/shop/web/lag", "lib"], &["pod/shop/web/lag", "app, log"])?;
    refused(&["attach", "pod/shop/lost", "lib"], &["pod/shop/lost", "crictl ps"])?;
    // Of one that ended and its successor, the one that runs.
    log.stop()?;
    let next = web.start("log", SLEEP)?;
    done(&["attach", "pod/shop/web/log", "lib@1"])?;
    expect(&next.id, &["lib@1 attached"])?;
    let theirs = kubelet.pod(REFERENCE, "theirs", &[])?;
    theirs.start("app", SLEEP)?;
    refused(&["attach", "pod/shop/theirs", "lib"], &["pod/shop/theirs/app runs on", "runtimeClassName"])?;
    theirs.remove()?;
    web.remove()?;
    Ok(which)
}
