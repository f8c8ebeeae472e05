//! A node that has nothing of ours, and gets it from the cluster: by `configs/kustomize`, and by the chart in `configs/helm`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::cluster::{self, Cluster};
use super::everyday::SLEEP;
use super::kubectl::{Manifest, Pod, administer, done as kubectl, id_in, pid_of, status_of};
use super::{OURS, compared, files, guarded, job, left, storage, until};
use crate::event::Reporter;
use crate::image::{ARCHIVE, FOLDER};
use crate::kubernetes;
use crate::scenario::capsulectl::{self, done};
use crate::scenario::cri;
use crate::scenario::ctr::ctr;
use crate::scenario::readers::Readers;
use crate::scenario::runtime::bed::processes_named;
use crate::scenario::world::{PRIVATE, World, resident, with_logs};

/// The namespace of `configs/kustomize`.
pub const SYSTEM: &str = "capsule-system";
/// What a user adds to `configs/kustomize`: here, because containerd is configured by another file and there is no systemd.
const OVERLAY: &str = "/etc/kubernetes/node";
const CONFIG: &str = "# Other than before.\n[collect]\nkeep_last = 7\n";
/// What restarts containerd: it fails the first time, and then only says so, for nothing here restarts it but the scenario.
const RESTART: [&str; 2] =
    ["/etc/kubernetes/restart", "#!/bin/sh\n[ -e /run/tried ] || { touch /run/tried; exit 1; }\n"];
/// Programs that node-install puts where containerd looks for the shim.
const PROGRAMS: [&str; 2] = ["/usr/local/bin/capsulectl", "/usr/local/bin/containerd-shim-capsule-v1"];

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    reporter.must("Kubernetes is there", || {
        kubernetes::install()?;
        files::write()?;
        Ok(((), format!("{}, Helm {}", kubernetes::VERSION, kubernetes::HELM)))
    })?;
    let mut world = World::start_bare(&bare())?;
    reporter.must("images are there", || images().map(|said| ((), said)))?;
    let cluster = reporter.must("the node is ready, with nothing of ours", || {
        let cluster = Cluster::start()?;
        let said = cluster::node_is_ready()?;
        ensure!(PROGRAMS.iter().all(|program| !Path::new(program).exists()), "it has our programs");
        Ok((cluster, said))
    })?;
    reporter.must("kubectl apply -k: the node is made ready", || apply(&mut world).map(|said| ((), said)))?;
    reporter.check("a pod of the RuntimeClass runs by what was installed", runs);
    reporter.check("by hand: the main job, under readers", job::main_job);
    reporter
        .check("a CapsuleAttachment and a CapsuleRollout, by the accounts that were made", guarded::served);
    reporter.check("an agent writes of no node but its own", guarded::own_node);
    reporter.check("a namespace has the capsules that it may have", guarded::allowed);
    reporter.check("who may edit a namespace may do so with its capsules", guarded::people);
    reporter.check(
        "the driver of the DaemonSet: volumes inline and by claims, and another version",
        storage::shipped,
    );
    reporter.check("what a pod has written is kept and published, through a loop device", written);
    reporter.check("what the daemon takes, beside its limits", memory);
    reporter.check("another configuration is rolled out under readers", rolled_out);
    reporter.check("a capsuled that is killed is started again", killed);
    reporter.check("the chart is the same as the Kustomize files", compared::chart);
    reporter.check("kubectl delete -k: what runs goes on", deleted);
    reporter.check("helm install, upgrade, uninstall", || charted(&mut world));
    reporter.check("nothing is left of pods", || left::no_pod().map(|()| String::new()));
    reporter.check("capsulectl setup --undo: containerd's configuration is as before", undone);
    drop(cluster);
    world.stop()
}

/// containerd's configuration as this machine needs it, without ours.
fn bare() -> String {
    let cri = "plugins.'io.containerd.cri.v1";
    format!(
        "version = 3\n[{cri}.runtime']\n  restrict_oom_score_adj = true\n[{cri}.images'.pinned_images]\n  sandbox = \"{}\"\n",
        cri::pause::NAME
    )
}

fn images() -> Result<String> {
    cri::import()?;
    let archive = format!("/payload/{FOLDER}/{ARCHIVE}");
    let said = ctr(&["-n", cri::K8S, "image", "import", "--local", "--no-unpack", &archive])?
        .success("import the image")?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

/// Writes the overlay, with this configuration of capsuled if any.
fn overlay(config: Option<&str>) -> Result<()> {
    fs::create_dir_all(OVERLAY).with_context(|| format!("create {OVERLAY}"))?;
    let env = "/spec/template/spec/initContainers/0/env";
    let mut text = format!(
        "resources: [../../../payload/configs/kustomize]\npatches:\n- target: {{kind: DaemonSet}}\n  patch: |-\n\
         \x20   - {{op: replace, path: {env}/2/value, value: --config={PRIVATE}}}\n\
         \x20   - {{op: replace, path: {env}/3/value, value: {}}}\n",
        RESTART[0]
    );
    if let Some(config) = config {
        text += "configMapGenerator:\n- {name: capsuled, namespace: capsule-system, behavior: replace, files: [config.toml]}\n";
        fs::write(format!("{OVERLAY}/config.toml"), config).context("write a configuration")?;
    }
    fs::write(format!("{OVERLAY}/kustomization.yaml"), text).context("write the overlay")
}

/// The DaemonSet's pod.
pub fn daemon() -> Result<Value> {
    let ours = "app.kubernetes.io/component=node";
    let text = administer("kubectl", &["-n", SYSTEM, "get", "pods", "-l", ours, "-o", "json"])?;
    let pods: Value = serde_json::from_str(&text).context("no JSON")?;
    let living: Vec<&Value> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .collect();
    ensure!(living.len() == 1, "{} pods instead of one", living.len());
    Ok(living[0].clone())
}

fn rollout() -> Result<String> {
    let status =
        |what: &str| administer("kubectl", &["-n", SYSTEM, "rollout", "status", what, "--timeout=180s"]);
    status("deployment/capsule-controller")?;
    status("daemonset/capsuled")
}

fn installs(what: &str) -> Result<()> {
    let log = || {
        let pod = daemon()?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        administer("kubectl", &["-n", SYSTEM, "logs", &name, "-c", "node-install"])
    };
    until(&format!("said by node-install: {what}"), || Ok(log().is_ok_and(|log| log.contains(what))))
        .with_context(|| format!("{:?}", log()))
}

fn apply(world: &mut World) -> Result<String> {
    overlay(None)?;
    fs::write(RESTART[0], RESTART[1]).context("write what restarts containerd")?;
    fs::set_permissions(RESTART[0], fs::Permissions::from_mode(0o755)).context("its mode")?;
    administer("kubectl", &["apply", "-k", OVERLAY])?;
    installs("containerd was restarted")?;
    ensure!(Path::new("/run/tried").exists(), "it did not fail first");
    world.restart_containerd()?;
    rollout()?;
    for program in PROGRAMS {
        ensure!(Path::new(program).exists(), "there is no {program}");
    }
    world.wait_for_snapshotter()?;
    let doctor = capsulectl::capsulectl(&["doctor"])?;
    let wrong: Vec<&str> = doctor.out.lines().filter(|line| line.contains("error")).collect();
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(format!("doctor: {} lines", doctor.out.lines().count()))
}

fn runs() -> Result<String> {
    for label in ["lib@1", "lib@2", "tool@1"] {
        crate::scenario::sets::publish(label, &[])?;
    }
    let pod = attached("first")?;
    let app = pod.member("app")?;
    ensure!(app.sh("cat /opt/lib/version")? == "1", "other files");
    let shims = processes_named("containerd-shim-ca")?;
    ensure!(!shims.is_empty(), "there is no shim");
    for shim in &shims {
        let pid = shim.split_ascii_whitespace().next().unwrap_or_default();
        let program = fs::read_link(format!("/proc/{pid}/exe")).context("the shim's program")?;
        ensure!(program == Path::new(PROGRAMS[1]), "the shim is {}", program.display());
    }
    pod.delete()?;
    Ok(shims.join(", "))
}

fn written() -> Result<String> {
    let pod = attached("writes")?;
    let app = pod.member("app")?;
    let name = app.reference();
    done(&["attach", &name, "tool", "--persist", "notes", "--size", "16MiB"])?;
    app.sh("echo kept > /opt/tool/note")?;
    done(&["commit", &name, "tool", "--version", "2-notes"])?;
    done(&["detach", &name, "tool"])?;
    done(&["attach", &name, "tool@2-notes"])?;
    ensure!(app.sh("cat /opt/tool/note")? == "kept", "other files");
    pod.delete()?;
    until("ended", || Ok(capsulectl::ps()?.is_empty()))?;
    done(&["uppers", "rm", "notes"])
}

fn attached(name: &str) -> Result<Pod> {
    Manifest::new(name, OURS, &[("app", SLEEP)]).annotated(&[("resourcecapsules.io/attach", "lib@1")]).ready()
}

fn pid(name: &str) -> Result<u32> {
    let status = status_of(&daemon()?, name);
    pid_of(id_in(&status).with_context(|| format!("{name}: {status}"))?)
}

/// A quarter of the limits is enough for a node on which little is attached.
fn memory() -> Result<String> {
    let spec = daemon()?["spec"]["containers"].clone();
    let mut said = Vec::new();
    for container in spec.as_array().context("no containers")? {
        let name = container["name"].as_str().unwrap_or_default();
        let limit = container["resources"]["limits"]["memory"].as_str().unwrap_or_default();
        let limit: u64 =
            limit.trim_end_matches("Mi").parse().with_context(|| format!("{name}: {limit:?}"))?;
        let resident = resident(pid(name)?)?;
        ensure!(resident * 4 < limit << 10, "{name} takes {resident} of {} KiB", limit << 10);
        said.push(format!("{name} {resident} KiB of {limit} MiB"));
    }
    Ok(said.join(", "))
}

/// What runs is neither restarted nor without its capsule for an instant, and takes another version afterwards.
fn rolled_out() -> Result<String> {
    let pod = Manifest::new("stays", OURS, &[("app", SLEEP)])
        .annotated(&[("resourcecapsules.io/attach", "lib@1")])
        .with(job::shares)
        .ready()?;
    let app = pod.member("app")?;
    let (pid, before) = (app.pid()?, daemon()?["metadata"]["name"].clone());
    fs::write(format!("{}/one", job::FOLDER), "1").context("write what is expected")?;
    let readers = Readers::start(&app, 2, "/opt/lib/version", &[format!("{}/one", job::FOLDER)])?;
    overlay(Some(CONFIG))?;
    administer("kubectl", &["apply", "-k", OVERLAY])?;
    rollout()?;
    ensure!(daemon()?["metadata"]["name"] != before, "it is the same pod");
    let seamless = crate::scenario::readers::expect_seamless(&readers.stop()?)?;
    let there = fs::read_to_string("/etc/capsule/config.toml").context("read the configuration")?;
    ensure!(there == CONFIG, "the node has another configuration: {there:?}");
    installs("containerd's configuration is as it should be")?;
    done(&["upgrade", &app.reference(), "lib"])?;
    ensure!(app.sh("cat /opt/lib/version")? == "2", "other files");
    ensure!(pod.member("app")?.restarts == 0 && app.pid()? == pid, "it was restarted");
    pod.delete()?;
    Ok(seamless)
}

fn killed() -> Result<String> {
    let pod = attached("outlives")?;
    let app = pod.member("app")?;
    let restarts = |pod: &Value| status_of(pod, "capsuled")["restartCount"].as_u64().unwrap_or_default();
    let before = restarts(&daemon()?);
    crate::scenario::reboot::kill(pid("capsuled")?)?;
    until("started again", || {
        let pod = daemon()?;
        Ok(restarts(&pod) > before && status_of(&pod, "capsuled")["ready"] == true)
    })?;
    until("answering", || Ok(capsulectl::capsulectl(&["ps"])?.code == 0))?;
    app.expect(&["lib@1 attached"])?;
    rollout()?;
    pod.delete()?;
    Ok(format!("after {} restarts", before + 1))
}

/// Only the RuntimeClass and the daemon go: a pod keeps its process and its files.
fn deleted() -> Result<String> {
    let pod = attached("kept")?;
    let app = pod.member("app")?;
    let pid = app.pid()?;
    administer("kubectl", &["delete", "-k", OVERLAY, "--timeout=110s"])?;
    until("gone: the daemon", || Ok(processes_named("capsuled")?.is_empty()))?;
    ensure!(app.sh("cat /opt/lib/version")? == "1" && app.pid()? == pid, "it does not go on");
    std::mem::forget(pod);
    Ok(String::new())
}

fn charted(world: &mut World) -> Result<String> {
    let chart = "/payload/configs/helm/resource-capsules";
    let values = format!("node.setupArgs=--config={PRIVATE},node.restart=");
    let values = ["--set", values.as_str()];
    let fixed = ["-n", SYSTEM, "--wait", "--timeout=180s"];
    let helm = |words: &[&str]| administer("helm", &[words, &fixed].concat());
    helm(&[&["install", "capsules", chart, "--create-namespace"], &values[..]].concat())?;
    world.wait_for_snapshotter()?;
    // The one from before is found again, and ends.
    kubectl(&["delete", "pod", "kept", "--timeout=110s"])?;
    let pod = attached("charted")?;
    let pid = pod.member("app")?.pid()?;
    fs::write("/etc/kubernetes/other.toml", CONFIG).context("write a configuration")?;
    let more = ["--set-file", "config=/etc/kubernetes/other.toml"];
    let before = daemon()?["metadata"]["name"].clone();
    helm(&[&["upgrade", "capsules", chart], &values[..], &more].concat())?;
    rollout()?;
    ensure!(daemon()?["metadata"]["name"] != before, "another configuration is not rolled out");
    let app = pod.member("app")?;
    app.expect(&["lib@1 attached"])?;
    ensure!(app.restarts == 0 && app.pid()? == pid, "it was restarted");
    pod.delete()?;
    until("ended", || Ok(capsulectl::ps()?.is_empty()))?;
    let said = administer("helm", &["-n", SYSTEM, "list"])?;
    helm(&["uninstall", "capsules"])?;
    Ok(said.lines().last().unwrap_or_default().to_owned())
}

fn undone() -> Result<String> {
    done(&["setup", "--undo", "--yes", "--config", PRIVATE])?;
    let text = fs::read_to_string(PRIVATE).with_context(|| format!("read {PRIVATE}"))?;
    ensure!(text == bare(), "{text}");
    let left: Vec<PathBuf> = PROGRAMS.iter().map(PathBuf::from).filter(|program| program.exists()).collect();
    // It says so in docs/kubernetes.md.
    ensure!(left.len() == PROGRAMS.len(), "{left:?}");
    Ok(String::new())
}
