//! Traces: a call is followed from who makes it through capsulectl and capsuled into the shim; and the log as JSON.

mod collector;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::collector::{Collector, Span};
use super::capsulectl::done;
use super::ctr::{OURS, Output, run as run_program};
use super::sets::publish;
use super::world::{World, log_of, until, with_logs};
use crate::event::Reporter;

const SOCKET: &str = "/run/traces.sock";
const CONFIG: &str = "/etc/capsule/config.toml";
/// The span of who calls capsulectl.
const CALLER: &str = "00f067aa0ba902b7";
const HOTPLUG: &str = "containerd-shim-capsule-v1: capsule.hotplug.v1.Hotplug";

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    OURS.import()?;
    let collector = Collector::start(Path::new(SOCKET))?;
    for label in ["lib@1", "lib@2"] {
        publish(label, &[])?;
    }
    let text = fs::read_to_string(CONFIG).context("read the configuration")?;
    let with = |endpoint: &str, share: &str| {
        text.replace("endpoint = \"none\"", &format!("endpoint = \"{endpoint}\""))
            .replace("share = \"100%\"", &format!("share = \"{share}\""))
            .replace("format = \"text\"", "format = \"json\"")
    };
    restart_with(&mut world, &with(&format!("unix:{SOCKET}"), "0%"))?;
    let web = OURS.start("web", &[], &["/bin/sleep", "100000"])?;
    reporter.check("an attach is followed into the shim", || attached(&collector));
    reporter.check("so are an upgrade and a detach", || moved(&collector));
    reporter.check("a refusal is told as one", || refused(&collector));
    reporter.check("what the caller does not sample is not traced, nor what begins where nothing is", || {
        unsampled(&collector)
    });
    collector.end()?;
    reporter.check("a collector that is not there fails nothing, and is told", || unheard(&world));
    restart_with(&mut world, &with(&format!("unix:{SOCKET}"), "100%"))?;
    reporter.check("a collector that comes later is told what begins at capsuled", later);
    reporter.check("each line of the log is one JSON object", json_lines);
    restart_with(&mut world, &text)?;
    web.remove()?;
    world.stop()
}

fn restart_with(world: &mut World, config: &str) -> Result<()> {
    fs::write(CONFIG, config).context("write the configuration")?;
    // What the log has is in another form.
    fs::write(log_of("capsuled"), "").context("empty the log")?;
    world.kill_capsuled()?;
    world.restart_capsuled()
}

/// Runs capsulectl as a part of the caller's trace.
fn traced(trace: &str, sampled: bool, args: &[&str]) -> Result<Output> {
    let parent = format!("TRACEPARENT=00-{trace}-{CALLER}-0{}", u8::from(sampled));
    let to = format!("CAPSULE_TRACES=unix:{SOCKET}");
    let line: Vec<&str> = [&*parent, &*to, "capsulectl"].into_iter().chain(args.iter().copied()).collect();
    run_program("env", &line, b"")
}

/// Waits for these spans of a trace: each within the one before it, as is its parent.
fn chain(collector: &Collector, trace: &str, names: &[&str]) -> Result<Vec<Span>> {
    let is_there = || names.iter().all(|name| collector.of(trace).contains_key(*name));
    until(&format!("the spans {names:?}"), || Ok(is_there()))
        .with_context(|| format!("there are {:?}", collector.of(trace).keys().collect::<Vec<_>>()))?;
    let all = collector.of(trace);
    let found: Vec<Span> = names.iter().filter_map(|name| all.get(*name).cloned()).collect();
    let mut parent = CALLER.to_owned();
    for (n, span) in found.iter().enumerate() {
        ensure!(span.parent == parent, "{} is a part of {}, not of {parent}", span.name, span.parent);
        ensure!(span.time.0 <= span.time.1, "{span:?}");
        let around = n.checked_sub(1).map(|before| found[before].time);
        let within = around.is_none_or(|(began, ended)| began <= span.time.0 && span.time.1 <= ended);
        ensure!(within, "{} is not within its parent: {:?} {around:?}", span.name, span.time);
        parent.clone_from(&span.id);
    }
    Ok(found)
}

fn attached(collector: &Collector) -> Result<String> {
    let trace = "0af7651916cd43dd8448eb211c80319c";
    traced(trace, true, &["attach", "web", "lib@1"])?.success("capsulectl attach")?;
    let call = "capsuled: capsule.v1.Attachments/Attach";
    let shim = format!("{HOTPLUG}/Attach");
    let to_shim = ["capsulectl: capsulectl attach", call, "capsuled: shim", &shim];
    for part in ["look", "build", "mount"] {
        let part = format!("containerd-shim-capsule-v1: {part}");
        chain(collector, trace, &[&to_shim[..], &[&part]].concat())?;
    }
    for step in ["plan", "prepare", "intend", "keep", "record"] {
        chain(collector, trace, &[to_shim[0], call, &format!("capsuled: {step}")])?;
    }
    let all = collector.of(trace);
    ensure!(all.values().all(|span| span.failed.is_none()), "{all:?}");
    let took = |name: &str| all.get(name).map_or(0, |span| (span.time.1 - span.time.0) / 1000);
    Ok(format!("{} spans; call {} us, of which the shim {} us", all.len(), took(call), took(&shim)))
}

fn moved(collector: &Collector) -> Result<String> {
    let trace = "1af7651916cd43dd8448eb211c80319c";
    traced(trace, true, &["upgrade", "web", "lib"])?.success("capsulectl upgrade")?;
    let shim = format!("{HOTPLUG}/Replace");
    let names = [
        "capsulectl: capsulectl upgrade",
        "capsuled: capsule.v1.Attachments/Upgrade",
        "capsuled: shim",
        &shim,
    ];
    chain(collector, trace, &[&names[..], &["containerd-shim-capsule-v1: mount"]].concat())?;
    let trace = "2af7651916cd43dd8448eb211c80319c";
    traced(trace, true, &["detach", "web", "lib"])?.success("capsulectl detach")?;
    let call = ["capsulectl: capsulectl detach", "capsuled: capsule.v1.Attachments/Detach"];
    chain(collector, trace, &call)?;
    until("the shim's spans", || {
        Ok(collector.of(trace).contains_key("containerd-shim-capsule-v1: unmount"))
    })?;
    Ok(String::new())
}

fn refused(collector: &Collector) -> Result<String> {
    let trace = "3af7651916cd43dd8448eb211c80319c";
    let output = traced(trace, true, &["attach", "web", "lib@9"])?;
    ensure!(output.code == 1, "{output:?}");
    let found = chain(
        collector,
        trace,
        &["capsulectl: capsulectl attach", "capsuled: capsule.v1.Attachments/Attach"],
    )?;
    let line = found[0].failed.clone().context("the command's span does not say that it failed")?;
    ensure!(line.contains("lib@9"), "{line}");
    ensure!(found[1].failed.is_some(), "the call's span does not say that it failed");
    Ok(line)
}

/// A call that is sampled comes after them: what was before it has been told by then.
fn unsampled(collector: &Collector) -> Result<String> {
    let trace = "4af7651916cd43dd8448eb211c80319c";
    traced(trace, false, &["attach", "web", "lib@1"])?.success("capsulectl attach")?;
    // What others have told of is here when nothing comes any more.
    let last = std::cell::Cell::new(usize::MAX);
    until("nothing more is told", || {
        let same = last.replace(collector.count()) == collector.count();
        std::thread::sleep(Duration::from_secs(2));
        Ok(same && last.get() == collector.count())
    })?;
    let before = collector.count();
    done(&["detach", "web", "lib"])?;
    let after = "5af7651916cd43dd8448eb211c80319c";
    traced(after, true, &["ls"])?.success("capsulectl ls")?;
    chain(collector, after, &["capsulectl: capsulectl ls", "capsuled: capsule.v1.Capsules/ListCapsules"])?;
    let untold = collector.of(trace);
    ensure!(untold.is_empty(), "{untold:?}");
    ensure!(collector.count() == before + 2, "{} spans, and then {}", before, collector.count());
    Ok(String::new())
}

fn unheard(world: &World) -> Result<String> {
    ensure!(world.pid("capsuled").is_some(), "capsuled is not there");
    let trace = "6af7651916cd43dd8448eb211c80319c";
    traced(trace, true, &["attach", "web", "lib@1"])?.success("capsulectl attach")?;
    traced(trace, true, &["detach", "web", "lib"])?.success("capsulectl detach")?;
    let told = || Ok(fs::read_to_string(log_of("capsuled"))?.contains("spans are lost"));
    until("it is told in the log", told)?;
    Ok(String::new())
}

fn later() -> Result<String> {
    done(&["attach", "web", "lib@1"])?;
    let collector = Collector::start(Path::new(SOCKET))?;
    done(&["detach", "web", "lib"])?;
    until("a trace of its own", || Ok(collector.count() > 0))?;
    collector.end()?;
    Ok(String::new())
}

fn json_lines() -> Result<String> {
    let text = fs::read_to_string(log_of("capsuled")).context("read the log")?;
    for line in text.lines() {
        let object: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        for key in ["timestamp", "level", "message", "target"] {
            ensure!(object[key].is_string(), "no {key} in {line}");
        }
    }
    let lines = text.lines().count();
    ensure!(lines > 2, "{lines} lines");
    Ok(format!("{lines} lines"))
}
