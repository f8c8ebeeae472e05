//! `CapsuleRollout`s over a Deployment of many pods, with a reader in each of them.

use std::fs;
use std::mem::ManuallyDrop;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::asked::{Parts, controller, definitions, object, ready, wanted};
use super::everyday::SLEEP;
use super::kubectl::{Manifest, Pod, apply, done as kubectl, get, kubectl_with};
use super::{OURS, begin, job, left, until};
use crate::event::Reporter;
use crate::scenario::capsulectl::{self, publish};
use crate::scenario::dashboard::{PROMETHEUS, prometheus};
use crate::scenario::http;
use crate::scenario::readers::{Readers, SHARED, expect_seamless, expect_unbroken};
use crate::scenario::world::{Daemon, path, with_logs};

/// The scenario's name.
pub const SCENARIO: &str = "kubernetes-rollouts";
const PODS: usize = 20;
const RELEASE: &str = "/usr/share/zoneinfo/tzdata.zi";
/// What Prometheus asks, and is asked about: it is there, or not.
const GATE: &str = "127.0.0.1:9470";
/// Where the controllers say how they are.
const LISTEN: [&str; 2] = ["127.0.0.1:9471", "127.0.0.1:9473"];

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let (world, cluster) = begin(reporter)?;
    let server = format!("http://{PROMETHEUS}");
    let more = |listen: usize| ["--prometheus", &server, "--listen", LISTEN[listen]].map(str::to_owned);
    let first = more(0);
    let mut parts = reporter.must("the controller and the agent start", || {
        definitions()?;
        Ok((Parts::start(&first.each_ref().map(String::as_str))?, String::new()))
    })?;
    let [old, new] = publish()?;
    let bed = reporter.must("20 pods have a capsule", || {
        let bed = Bed::start(&old, &new)?;
        Ok((bed, format!("{PODS} pods")))
    })?;
    reporter.check("what makes no sense is refused by the API server", refused);
    reporter.check("in steps, with an approval, under a reader in each pod", || bed.in_steps());
    reporter.check("a command fails in one pod: all have again what they had", || bed.vetoed());
    reporter.check("a pod is not ready with it: all have again what they had", || bed.unready());
    reporter.check("Prometheus has no answer any more: all have again what they had", || bed.asked());
    reporter
        .check("where one wants to look, it stops; deleted, all have again what they had", || bed.stopped());
    reporter.check("another version of the CapsuleAttachment counts", || bed.superseded());
    reporter.check("of two, one waits for the other", || bed.one_by_one());
    let second = more(1);
    reporter.check("the controller is killed meanwhile: another one takes over", || {
        bed.handed_over(&mut parts, &second.each_ref().map(String::as_str))
    });
    reporter.check("no pod was restarted in all this", || bed.untouched());
    reporter.check("nothing is left of pods", || bed.end());
    drop((parts, cluster));
    world.stop()
}

/// Twenty pods with a capsule.
struct Bed {
    old: String,
    new: String,
    pods: Vec<ManuallyDrop<Pod>>,
    pids: Vec<u32>,
}

fn refused() -> Result<String> {
    let mut told = Vec::new();
    for (spec, word) in [
        (json!({ "attachment": "zones" }), "spec.version"),
        (json!({ "attachment": "zones", "version": "1", "maxUnavailable": 0 }), "spec.maxUnavailable"),
        (json!({ "attachment": "zones", "version": "1", "maxUnavailable": "0%" }), "spec.maxUnavailable"),
        (
            json!({ "attachment": "zones", "version": "1", "maxUnavailable": 3_000_000_000_u64 }),
            "spec.maxUnavailable",
        ),
        (
            json!({ "attachment": "zones", "version": "1", "steps": [{ "pods": "200%" }] }),
            "spec.steps[0].pods",
        ),
        (
            json!({ "attachment": "zones", "version": "1", "health": { "exec": { "command": [] } } }),
            "command",
        ),
        (json!({ "attachment": "zones", "version": "1", "onFailure": "Pray" }), "spec.onFailure"),
    ] {
        let text = object("CapsuleRollout", "wrong", spec).to_string();
        let output = kubectl_with(&["apply", "-f", "-"], text.as_bytes())?.ended_with(1)?;
        ensure!(output.err.contains(word), "does not say {word:?}: {}", output.err);
        told.push(output.err.lines().last().unwrap_or_default().to_owned());
    }
    Ok(told.join(" | "))
}

fn roll(name: &str, version: &str, more: Value) -> Result<()> {
    let mut spec = json!({ "attachment": "zones", "version": version, "maxUnavailable": 3, "health": {} });
    let more = more.as_object().context("an object")?.clone();
    spec.as_object_mut().context("an object")?.extend(more);
    if spec["health"]["settleSeconds"].is_null() {
        spec["health"]["settleSeconds"] = json!(0);
    }
    apply(&object("CapsuleRollout", name, spec))
}

/// Waits until a rollout is in this phase and says this; its status.
fn phase(name: &str, phase: &str, what: &str) -> Result<Value> {
    let status = || Ok::<_, anyhow::Error>(get(&["capsulerollout", name])?["status"].clone());
    let is = || {
        let status = status()?;
        Ok(status["phase"] == phase && status["conditions"][0]["message"].to_string().contains(what))
    };
    until(&format!("{name} {phase} {what}"), is).with_context(|| format!("{:?}", status()))?;
    status()
}

fn message(status: &Value) -> String {
    status["conditions"][0]["message"].as_str().unwrap_or_default().to_owned()
}

impl Bed {
    fn start(old: &str, new: &str) -> Result<Self> {
        fs::create_dir_all(SHARED).with_context(|| format!("create {SHARED}"))?;
        let mut template = Manifest::new("many", OURS, &[("app", SLEEP)]).with(job::shares).0;
        template["metadata"]["labels"] = json!({ "app": "many" });
        template["spec"]["containers"][0]["readinessProbe"] = json!({ "exec": { "command": ["/bin/sh", "-c", "test ! -e /tmp/unready"] }, "periodSeconds": 2, "failureThreshold": 1 });
        apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "many" },
            "spec": {
                "replicas": PODS, "selector": { "matchLabels": { "app": "many" } },
                "template": { "metadata": template["metadata"], "spec": template["spec"] },
            },
        }))?;
        kubectl(&["rollout", "status", "deployment/many", "--timeout=170s"])?;
        attach(old)?;
        ready("zones", "True", &format!("{PODS} containers"))?;
        let all = get(&["pods", "-l", "app=many"])?;
        let names = all["items"].as_array().context("no pods")?.iter();
        let mut names: Vec<String> =
            names.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        let pods: Vec<_> = names.into_iter().map(|name| ManuallyDrop::new(Pod { name })).collect();
        ensure!(pods.len() == PODS, "{} pods", pods.len());
        let pids = pods.iter().map(|pod| pod.member("app")?.pid()).collect::<Result<_>>()?;
        Ok(Self { old: old.to_owned(), new: new.to_owned(), pods, pids })
    }

    /// How many pods have which version.
    fn counts(&self) -> Result<[usize; 2]> {
        let seen = capsulectl::ps()?;
        let of = |version: &String| {
            seen.iter()
                .filter(|row| row.capsule == "tzdata" && row.version == *version && row.state == "attached")
                .count()
        };
        Ok([of(&self.old), of(&self.new)])
    }

    fn expect(&self, old: usize, new: usize) -> Result<()> {
        let found = self.counts()?;
        ensure!(found == [old, new], "{found:?} instead of {:?}", [old, new]);
        Ok(())
    }

    fn readers(&self) -> Result<Readers> {
        let members = self.pods.iter().map(|pod| pod.member("app")).collect::<Result<Vec<_>>>()?;
        let allowed = [&self.old, &self.new].map(|version| format!("/reference/tzdata-{version}/tzdata.zi"));
        Readers::across(&members.iter().collect::<Vec<_>>(), RELEASE, &allowed)
    }

    fn in_steps(&self) -> Result<String> {
        let readers = self.readers()?;
        let steps = json!([
            { "pods": 1, "pauseSeconds": 1 }, { "pods": "25%", "pauseSeconds": 4 }, { "pods": "50%", "approval": true },
        ]);
        let began = Instant::now();
        roll("forward", &self.new, json!({ "steps": steps, "health": { "settleSeconds": 1 } }))?;
        phase("forward", "Paused", "spec.approved: 1")?;
        // Five steps of three pods that settle for a second, and two pauses: the second is one, too.
        ensure!(began.elapsed().as_secs() >= 9, "{:?} for the first three steps", began.elapsed());
        self.expect(10, 10)?;
        let change = json!({ "spec": { "version": "other" } }).to_string();
        let refused =
            kubectl_with(&["patch", "capsulerollout", "forward", "--type=merge", "-p", &change], b"")?;
        ensure!(refused.ended_with(1)?.err.contains("make another CapsuleRollout"), "its version can change");
        kubectl(&[
            "patch",
            "capsulerollout",
            "forward",
            "--type=merge",
            "-p",
            "{\"spec\":{\"approved\":1}}",
        ])?;
        let status = phase("forward", "Succeeded", "")?;
        self.expect(0, PODS)?;
        let attachment = get(&["capsuleattachment", "zones"])?;
        ensure!(attachment["spec"]["version"] == self.new.as_str(), "{attachment}");
        ready("zones", "True", &format!("{PODS} containers"))?;
        let seamless = expect_seamless(&readers.stop()?)?;
        let events = kubectl(&["events", "--for", "capsulerollout/forward"])?;
        ensure!(events.contains("Succeeded"), "{events}");
        let table = kubectl(&["get", "capsulerollouts"])?;
        Ok(format!("{seamless}; {}; {table}", message(&status)))
    }

    fn vetoed(&self) -> Result<String> {
        self.pods[7].member("app")?.sh("touch /tmp/veto")?;
        let readers = self.readers()?;
        let check = json!({ "command": ["/bin/sh", "-c", "test ! -e /tmp/veto"], "timeoutSeconds": 2 });
        roll("vetoed", &self.old, json!({ "health": { "exec": check } }))?;
        let status = phase("vetoed", "RolledBack", &self.pods[7].name)?;
        self.expect(0, PODS)?;
        let unbroken = expect_unbroken(&readers.stop()?)?;
        let attachment = get(&["capsuleattachment", "zones"])?;
        ensure!(attachment["spec"]["version"] == self.new.as_str(), "{attachment}");
        self.pods[7].member("app")?.sh("rm /tmp/veto")?;
        Ok(format!("{}; {unbroken}", message(&status)))
    }

    fn unready(&self) -> Result<String> {
        let steps = json!([{ "pods": "25%", "approval": true }]);
        roll("unready", &self.old, json!({ "steps": steps, "health": { "unreadySeconds": 3 } }))?;
        phase("unready", "Paused", "")?;
        self.expect(5, 15)?;
        self.pods[0].member("app")?.sh("touch /tmp/unready")?;
        let status = phase("unready", "RolledBack", "is not ready")?;
        ensure!(status["settledAt"].is_null(), "what is not so any more is still said: {status}");
        self.expect(0, PODS)?;
        self.pods[0].member("app")?.sh("rm /tmp/unready")?;
        self.pods[0].is_ready()?;
        Ok(message(&status))
    }

    fn asked(&self) -> Result<String> {
        let mut gate = gate()?;
        let _prometheus = prometheus(GATE)?;
        let query = json!({ "query": "up{job=\"node\"} == 1", "tolerated": 0 });
        let steps = json!([{ "pods": 2, "pauseSeconds": 600 }]);
        roll("asked", &self.old, json!({ "steps": steps, "health": { "prometheus": query } }))?;
        phase("asked", "Progressing", "the next step is in a while")?;
        self.expect(2, 18)?;
        gate.kill()?;
        let status = phase("asked", "RolledBack", "Prometheus has had no answer")?;
        self.expect(0, PODS)?;
        Ok(message(&status))
    }

    fn stopped(&self) -> Result<String> {
        self.pods[3].member("app")?.sh("touch /tmp/veto")?;
        let check = json!({ "command": ["/bin/sh", "-c", "echo tried >>/tmp/tried; test ! -e /tmp/veto"], "timeoutSeconds": 2 });
        roll(
            "stopped",
            &self.old,
            json!({ "health": { "exec": check }, "onFailure": "Stop", "maxUnavailable": 1 }),
        )?;
        let status = phase("stopped", "Stopped", &self.pods[3].name)?;
        // What was refused is not tried again. (One try runs the command until its time is over.)
        let member = self.pods[3].member("app")?;
        let tried = || Ok::<_, anyhow::Error>(member.sh("cat /tmp/tried")?.lines().count());
        let before = tried()?;
        std::thread::sleep(std::time::Duration::from_secs(12));
        ensure!(before > 0 && tried()? == before, "tried {} times instead of {before}", tried()?);
        self.expect(3, 17)?;
        kubectl(&["delete", "capsulerollout", "stopped"])?;
        until("all as before", || Ok(self.counts()? == [0, PODS]))?;
        self.pods[3].member("app")?.sh("rm /tmp/veto")?;
        Ok(message(&status))
    }

    fn superseded(&self) -> Result<String> {
        roll("superseded", &self.old, json!({ "steps": [{ "pods": 4, "approval": true }] }))?;
        phase("superseded", "Paused", "")?;
        apply(&wanted(
            "zones",
            json!({ "podSelector": { "matchLabels": { "app": "many" } }, "capsule": "tzdata", "version": "nightly" }),
        ))?;
        let status = phase("superseded", "Superseded", "nightly")?;
        attach(&self.new)?;
        ready("zones", "True", &format!("{PODS} containers"))?;
        self.expect(0, PODS)?;
        Ok(message(&status))
    }

    fn one_by_one(&self) -> Result<String> {
        let health = json!({ "unreadySeconds": 3 });
        roll("before", &self.old, json!({ "steps": [{ "pods": 2, "approval": true }], "health": health }))?;
        phase("before", "Paused", "")?;
        roll("behind", &self.old, json!({ "health": health }))?;
        let status = phase("behind", "Pending", "waits for the CapsuleRollout before")?;
        self.expect(2, 18)?;
        // The one that waits takes nothing over from the one that goes back.
        self.pods[0].member("app")?.sh("touch /tmp/unready")?;
        phase("before", "RolledBack", "is not ready")?;
        phase("behind", "RolledBack", "is not ready")?;
        self.expect(0, PODS)?;
        self.pods[0].member("app")?.sh("rm /tmp/unready")?;
        self.pods[0].is_ready()?;
        Ok(message(&status))
    }

    fn handed_over(&self, parts: &mut Parts, more: &[&str]) -> Result<String> {
        let second = controller("two", more)?;
        until("there: the second controller", || Ok(http::get(LISTEN[1], "/readyz").is_ok()))?;
        let leads = |which: usize| {
            Ok::<_, anyhow::Error>(
                http::get(LISTEN[which], "/metrics")?.contains("\ncapsule_controller_leading 1\n"),
            )
        };
        ensure!(leads(0)? && !leads(1)?, "the first one does not lead");
        roll(
            "handed-over",
            &self.old,
            json!({ "steps": [{ "pods": 5, "pauseSeconds": 5 }], "maxUnavailable": 1 }),
        )?;
        until("some pods have it", || Ok(self.counts()?[0] > 0))?;
        parts.controller.kill()?;
        let holder = "jsonpath={.spec.holderIdentity}";
        let lease = || kubectl(&["get", "lease", "capsule-controller", "-n", "default", "-o", holder]);
        until("held by the second: the lease", || Ok(lease()? == "two"))?;
        phase("handed-over", "Succeeded", "")?;
        self.expect(PODS, 0)?;
        parts.controller = second;
        Ok(String::new())
    }

    fn untouched(&self) -> Result<String> {
        for (pod, pid) in self.pods.iter().zip(&self.pids) {
            let now = pod.member("app")?;
            ensure!(now.restarts == 0 && now.pid()? == *pid, "{} was restarted", pod.name);
        }
        Ok(format!("{PODS} pods"))
    }

    fn end(&self) -> Result<String> {
        kubectl(&["delete", "capsulerollouts", "--all"])?;
        kubectl(&["delete", "capsuleattachment", "zones", "--timeout=120s"])?;
        kubectl(&["delete", "deployment", "many", "--cascade=foreground", "--timeout=110s"])?;
        until("ended", || Ok(capsulectl::ps()?.is_empty()))?;
        left::no_pod().map(|()| String::new())
    }
}

fn attach(version: &str) -> Result<()> {
    let spec = json!({ "podSelector": { "matchLabels": { "app": "many" } }, "capsule": "tzdata", "version": version });
    apply(&wanted("zones", spec))
}

fn gate() -> Result<Daemon> {
    let mut command = Command::new("capsulectl");
    let mut gate = Daemon::start("gate", command.args(["metrics", "--listen", GATE]).env("PATH", path()))?;
    gate.wait_within(super::PATIENCE, || http::get(GATE, "/livez").is_ok())?;
    Ok(gate)
}
