//! The dashboard of `configs/grafana`: each of its questions is asked of a Prometheus that has asked capsuled.
//!
//! How Grafana draws it is not looked at: none of the registries that the test bed reaches has Grafana.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::capsulectl::{capsulectl, done};
use super::ctr::OURS;
use super::http::{get, quoted};
use super::sets::publish;
use super::world::{Daemon, World, path, with_logs, within};
use crate::event::Reporter;

const FILE: &str = "/payload/configs/grafana/resource-capsules.json";
const DOCUMENTED: &str = include_str!("../../../docs/metrics.md");
const SERVER: &str = "127.0.0.1:9470";
/// Where Prometheus answers.
pub(super) const PROMETHEUS: &str = "127.0.0.1:9090";
const PATIENCE: Duration = Duration::from_secs(60);
/// What a container has on control groups of version 1 is not measured ([`docs/metrics.md`](../../../docs/metrics.md)).
const UNMEASURED: &str = "capsule_container_";

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let world = World::start(true)?;
    OURS.import()?;
    for label in ["lib@1", "lib@2"] {
        publish(label, &[])?;
    }
    let web = OURS.start("web", &[], &["/bin/sleep", "100000"])?;
    let _daemons = reporter.must("Prometheus asks `capsulectl metrics` every second", || {
        let daemons = start()?;
        Ok((daemons, used()?))
    })?;
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(FILE).context(FILE)?).context(FILE)?;
    reporter.check("each panel has a place of its own, and asks the data source that is chosen", || {
        placed(&dashboard)
    });
    reporter.check("what is asked for is documented", || documented(&dashboard));
    reporter.check("what is served is documented, and the other way round", served);
    reporter.check("each question has an answer", || answered(&dashboard));
    reporter.check("each variable has values", || chosen(&dashboard));
    drop(web);
    world.stop()
}

fn start() -> Result<[Daemon; 2]> {
    let mut server = Command::new("capsulectl");
    let server =
        Daemon::start("capsulectl", server.args(["metrics", "--listen", SERVER]).env("PATH", path()))?;
    let prometheus = prometheus(SERVER)?;
    Ok([server, prometheus])
}

/// Prometheus, which asks whoever is at `target` every second, as the job `node`.
pub(super) fn prometheus(target: &str) -> Result<Daemon> {
    let config = format!(
        "scrape_configs:\n- job_name: node\n  scrape_interval: 1s\n  static_configs:\n  - targets: [\"{target}\"]\n"
    );
    fs::write("/etc/prometheus.yml", config).context("write Prometheus' configuration")?;
    let mut command = Command::new("/peers/prometheus");
    command
        .args(["--config.file=/etc/prometheus.yml", "--storage.tsdb.path=/var/lib/prometheus"])
        .arg(format!("--web.listen-address={PROMETHEUS}"));
    let mut prometheus = Daemon::start("prometheus", &mut command)?;
    prometheus.wait_within(PATIENCE, || get(PROMETHEUS, "/-/ready").is_ok())?;
    Ok(prometheus)
}

/// Changes of every kind for some seconds, and a refusal each time, so that there are rates.
fn used() -> Result<String> {
    let (began, mut rounds) = (Instant::now(), 0);
    done(&["attach", "web", "lib@1"])?;
    while began.elapsed() < Duration::from_secs(8) {
        done(&["upgrade", "web", "lib"])?;
        done(&["rollback", "web", "lib"])?;
        done(&["save", "lib@1", "--file", "/var/lib/lib.tar"])?;
        ensure!(
            capsulectl(&["attach", "web", "lib@3"])?.code == 1,
            "a version that is not there is attached"
        );
        rounds += 1;
    }
    done(&["detach", "web", "lib"])?;
    done(&["attach", "web", "lib@1"])?;
    within(PATIENCE, "ten answers in Prometheus", || {
        let counted = ask("count_over_time(up[1m])")?;
        Ok(counted[0]["value"][1].as_str().and_then(|count| count.parse::<u32>().ok()) >= Some(10))
    })?;
    Ok(format!("{rounds} rounds"))
}

/// The answer to a question in Prometheus' language.
fn ask(question: &str) -> Result<Value> {
    let text = get(PROMETHEUS, &format!("/api/v1/query?query={}", quoted(question)))
        .with_context(|| question.to_owned())?;
    let mut answer: Value = serde_json::from_str(&text).context("no JSON")?;
    ensure!(answer["status"] == "success", "{question}: {answer}");
    Ok(answer["data"]["result"].take())
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().into_iter().flatten()
}

/// The questions, as Grafana asks them where all is chosen.
fn questions(dashboard: &Value) -> Vec<String> {
    let targets = panels(dashboard).flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.filter_map(|target| target["expr"].as_str()).map(plain).collect()
}

fn plain(question: &str) -> String {
    let names = ["$node", "$namespace", "$pod", "$container"];
    let chosen = names.iter().fold(question.to_owned(), |text, name| text.replace(name, ".*"));
    chosen.replace("$__rate_interval", "30s")
}

fn placed(dashboard: &Value) -> Result<String> {
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels(dashboard) {
        ensure!(ids.insert(panel["id"].as_u64()), "two panels are {}", panel["id"]);
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap_or(u64::MAX));
        ensure!(x.saturating_add(w) <= 24 && h < 100, "{} is out of the grid", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            ensure!(taken.insert(cell), "{} is over another panel", panel["title"]);
        }
        let is_row = panel["type"] == "row";
        ensure!(
            is_row || panel["datasource"]["uid"] == "${datasource}",
            "{} has its own data source",
            panel["title"]
        );
        ensure!(
            is_row || panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{} has no unit",
            panel["title"]
        );
    }
    ensure!(ids.len() > 20, "{} panels", ids.len());
    Ok(format!("{} panels", ids.len()))
}

/// Names of metrics, without what a histogram adds to them.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let words = words.filter(|word| word.starts_with("capsuled_") || word.starts_with("capsule_container_"));
    let plain = |word: &str| {
        let ends = ["_bucket", "_sum", "_count"];
        ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
    };
    words.map(plain).collect()
}

/// And nothing that is documented is left out, but for how many attachments a container has, which its variables are of.
fn documented(dashboard: &Value) -> Result<String> {
    let asked = metrics(&questions(dashboard).join(" "));
    let known = metrics(DOCUMENTED);
    let unknown: Vec<_> = asked.difference(&known).collect();
    ensure!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
    let unasked: Vec<_> = known.difference(&asked).map(String::as_str).collect();
    ensure!(unasked == ["capsule_container_attachments", "capsuled_last_event"], "in no panel: {unasked:?}");
    Ok(format!("{} metrics", asked.len()))
}

/// Families are described also where they have no samples; samples have ends that the names of families lack.
fn served() -> Result<String> {
    let family = |name: &String| {
        let ends = ["_total", "_info"];
        ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let families = |names: BTreeSet<String>| names.iter().map(family).collect::<BTreeSet<_>>();
    let (served, known) = (families(metrics(&get(SERVER, "/metrics")?)), families(metrics(DOCUMENTED)));
    ensure!(served == known, "different: {:?}", served.symmetric_difference(&known));
    Ok(format!("{} metrics", known.len()))
}

fn answered(dashboard: &Value) -> Result<String> {
    let (mut series, mut silent) = (0, 0);
    let is_old = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    for question in questions(dashboard) {
        let answers = ask(&question)?.as_array().map_or(0, Vec::len);
        ensure!(answers > 0 || (is_old && question.contains(UNMEASURED)), "no answer: {question}");
        series += answers;
        silent += usize::from(answers == 0);
    }
    Ok(format!("{series} series; {silent} of what is not measured here"))
}

fn chosen(dashboard: &Value) -> Result<String> {
    let variables = dashboard["templating"]["list"].as_array().context("no variables")?;
    let mut said = Vec::new();
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let definition = variable["definition"].as_str().unwrap_or_default();
        let inner = definition.strip_prefix("label_values(").and_then(|text| text.strip_suffix(')'));
        let (selector, label) =
            inner.and_then(|text| text.rsplit_once(", ")).context(definition.to_owned())?;
        let answers = ask(&plain(selector))?;
        let values = answers.as_array().into_iter().flatten().filter_map(|one| one["metric"][label].as_str());
        let values: BTreeSet<&str> = values.collect();
        // A container that is in no pod has an empty label, which Prometheus has none of.
        ensure!(!values.is_empty() || label == "pod", "{definition} has no values: {answers}");
        said.push(format!("{label}: {values:?}"));
    }
    Ok(said.join(", "))
}
