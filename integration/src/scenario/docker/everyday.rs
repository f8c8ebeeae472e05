//! What Docker does every day: on containerd's own snapshotter and runtime first, and then on ours.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::client::{Container, docker, docker_with, done};
use super::node;
use crate::images::Image;

/// A folder of the node's.
const FILES: &str = "/srv/docker";
/// Each start says how many there were before, and a signal ends it at once.
const COUNTS: &str = "echo started $(wc -l < /data/starts); echo . >> /data/starts; echo of errors >&2; \
                      trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

/// Output, execs, volumes, bind mounts, copies, restart, stop and start.
pub fn lives(runtime: &str) -> Result<String> {
    let before = node()?;
    fs::create_dir_all(FILES).with_context(|| format!("create {FILES}"))?;
    fs::write(Path::new(FILES).join("of-the-node"), "of the node\n").context("write a file to be bound")?;
    done(&["volume", "create", "data"])?;
    let mounted = done(&["volume", "inspect", "--format", "{{.Mountpoint}}", "data"])?;
    fs::write(format!("{mounted}/starts"), "").context("write to the volume")?;
    let bound = format!("{FILES}:/bound:ro");
    let options =
        ["-v", "data:/data", "-v", &bound, "--tmpfs", "/scratch", "--label", "team=shop", "-e", "A=b"];
    let web = Container::run(runtime, "web", &options, &["/bin/sh", "-c", COUNTS])?;
    let log = web.logs_until("its first start", |log| log.contains("started 0"))?;
    ensure!(log.lines().count() == 1, "errors are among the output: {log:?}");
    ensure!(docker(&["logs", "web"])?.err.contains("of errors"), "no errors in its log");
    ensure!(web.status()?.starts_with("web Up"), "{}", web.status()?);
    ensure!(done(&["ps", "-q", "--no-trunc", "--filter", "label=team=shop"])? == web.id, "its label");
    ensure!(web.sh("cat /bound/of-the-node; echo $A")? == "of the node\nb", "what is bound, and a variable");
    ensure!(web.exec(&["touch", "/bound/new"])?.code != 0, "it writes to what is read-only");
    web.sh("echo kept > /kept; echo gone > /scratch/gone")?;
    let exec = web.exec(&["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])?.ended_with(7)?;
    ensure!((exec.out.as_str(), exec.err.as_str()) == ("out\n", "err\n"), "{exec:?}");
    done(&["cp", "/srv/docker/of-the-node", "web:/copied"])?;
    ensure!(web.sh("cat /copied")? == "of the node", "what is copied");
    let pid = web.pid()?;
    done(&["restart", "web"])?;
    ensure!(web.pid()? != pid, "the same process");
    web.logs_until("its second start", |log| log.contains("started 1"))?;
    done(&["stop", "web"])?;
    ensure!(web.status()?.starts_with("web Exited (0)"), "{}", web.status()?);
    done(&["start", "web"])?;
    let log = web.logs_until("its third start", |log| log.contains("started 2"))?;
    ensure!(log.lines().count() == 3, "{log:?}");
    ensure!(web.sh("cat /kept /copied; ls /scratch")? == "kept\nof the node", "what it wrote");
    done(&["pause", "web"])?;
    ensure!(web.status()?.contains("Paused"), "{}", web.status()?);
    done(&["unpause", "web"])?;
    web.remove()?;
    ensure!(fs::read_to_string(format!("{mounted}/starts"))?.lines().count() == 3, "what the volume holds");
    done(&["volume", "rm", "data"])?;
    before.is_the_same()?;
    Ok(log.replace('\n', ", "))
}

/// Containers in the foreground, that are gone afterwards.
pub fn ends(runtime: &str) -> Result<String> {
    let before = node()?;
    let run_once = |options: &[&str], command: &[&str], input: &[u8]| {
        let fixed = ["run", "--rm", "--network", "none", "--runtime", runtime];
        docker_with(&[&fixed[..], options, &[Image::Busybox.name()], command].concat(), input)
    };
    let output = run_once(&[], &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], b"")?.ended_with(3)?;
    ensure!((output.out.as_str(), output.err.contains("err")) == ("out\n", true), "{output:?}");
    let input = "line\n".repeat(20_000);
    let echoed = run_once(&["-i"], &["/bin/cat"], input.as_bytes())?.success("cat")?;
    ensure!(echoed == input, "{} of {} bytes come back", echoed.len(), input.len());
    // What cannot be started says so, and goes as well.
    let output = run_once(&[], &["/bin/no-such-program"], b"")?.ended_with(127)?;
    ensure!(output.err.contains("no-such-program"), "{output:?}");
    before.is_the_same()?;
    Ok(output.err.lines().next().unwrap_or_default().to_owned())
}
