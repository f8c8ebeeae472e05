//! What nerdctl does every day: on containerd's own snapshotter and runtime first, and then on ours.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::client::{Container, done, nerdctl, nerdctl_with};
use super::{FILES, SLEEP};
use super::{node, until};
use crate::images::Image;
use crate::scenario::ctr::{OURS, Stack, run};

/// Each start says how many there were before, and a signal ends it at once.
const COUNTS: &str = "echo started $(wc -l < /data/starts); echo . >> /data/starts; echo of errors >&2; \
                      trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

/// A device of nothing, with a variable and a folder of the node.
const SPEC: &str = r#"{"cdiVersion": "0.6.0", "kind": "example.com/nothing", "devices": [{"name": "0", "containerEdits": {
"env": ["NOTHING=void"], "deviceNodes": [{"path": "/dev/nothing", "hostPath": "/dev/null"}],
"mounts": [{"hostPath": "/srv/nerdctl", "containerPath": "/usr/lib/nothing", "options": ["ro", "nosuid", "nodev", "bind"]}]}}]}"#;

/// What the cases need.
pub fn prepare() -> Result<()> {
    for (folder, file, text) in [(FILES, "of-the-node", "of the node\n"), ("/etc/cdi", "nothing.json", SPEC)]
    {
        fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?;
        fs::write(Path::new(folder).join(file), text).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

/// Output, execs, volumes, restart, stop and start.
pub fn lives(stack: Stack) -> Result<String> {
    let before = node()?;
    let bound = format!("{FILES}:/bound:ro");
    let volumes = ["-v", "data:/data", "-v", &bound, "--label", "team=shop"];
    done(&["volume", "create", "data"])?;
    let mounted = done(&["volume", "inspect", "--format", "{{.Mountpoint}}", "data"])?;
    fs::write(format!("{mounted}/starts"), "").context("write to the volume")?;
    let web = Container::run(stack, "web", &volumes, &["/bin/sh", "-c", COUNTS])?;
    let log = web.logs_until("its first start", |log| log.contains("started 0"))?;
    ensure!(log.lines().count() == 1, "errors are among the output: {log:?}");
    let all = nerdctl(&["logs", "web"])?;
    ensure!(all.err.contains("of errors"), "no errors in {all:?}");
    ensure!(web.status()?.starts_with("Up"), "{}", web.status()?);
    ensure!(web.inspect("{{.Config.Labels.team}}")? == "shop", "its label");
    ensure!(web.sh("cat /bound/of-the-node")? == "of the node", "what is bound");
    ensure!(web.exec(&["touch", "/bound/new"])?.code != 0, "it writes to what is read-only");
    // nerdctl 2.2 itself exits with 1 whatever the command's status is, and says that.
    let exec = web.exec(&["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])?.ended_with(1)?;
    ensure!(
        exec.out == "out\n" && exec.err.starts_with("err\n") && exec.err.contains("exit code 7"),
        "{exec:?}"
    );
    let pid = web.pid()?;
    done(&["restart", "web"])?;
    ensure!(web.pid()? != pid, "the same process");
    web.logs_until("its second start", |log| log.contains("started 1"))?;
    done(&["stop", "web"])?;
    ensure!(web.status()?.starts_with("Exited (0)"), "{}", web.status()?);
    done(&["start", "web"])?;
    let log = web.logs_until("its third start", |log| log.contains("started 2"))?;
    ensure!(log.lines().count() == 3, "{log:?}");
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
pub fn ends(stack: Stack) -> Result<String> {
    let before = node()?;
    let run_once = |options: &[&str], command: &[&str], input: &[u8]| {
        let fixed = ["run", "--rm", "--network", "none"];
        nerdctl_with(
            &[&fixed, &stack.words()[..], options, &[Image::Busybox.name()], command].concat(),
            input,
        )
    };
    let output = run_once(&[], &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], b"")?.ended_with(3)?;
    ensure!((output.out.as_str(), output.err.contains("err")) == ("out\n", true), "{output:?}");
    let input = "line\n".repeat(20_000);
    let cat = || run_once(&["-i", "--name", "cat"], &["/bin/cat"], input.as_bytes());
    let mut output = cat()?;
    // nerdctl and containerd's own shim were seen to wait for ever for the end of the input, once, on a busy machine.
    if output.code != 0 && stack.runtime != OURS.runtime {
        // It may be gone already, or will be missed below.
        _ = nerdctl(&["rm", "-f", "cat"])?;
        output = cat()?;
    }
    let echoed = output.success("cat")?;
    ensure!(echoed == input, "{} of {} bytes come back", echoed.len(), input.len());
    // What cannot be started says so, and goes as well.
    let output = run_once(&[], &["/bin/no-such-program"], b"")?;
    ensure!(output.code != 0 && output.err.contains("no-such-program"), "{output:?}");
    before.is_the_same()?;
    Ok(output.err.lines().last().unwrap_or_default().to_owned())
}

/// containerd's monitor starts what nerdctl has told it to.
pub fn policy(stack: Stack) -> Result<String> {
    // With "always", nerdctl's stop does not keep containerd from starting it again.
    let web = Container::run(stack, "web", &["--restart", "unless-stopped"], &SLEEP)?;
    let first = web.pid()?;
    web.kill_and_wait()?;
    done(&["stop", "-t", "0", "web"])?;
    ensure!(web.status()?.starts_with("Exited"), "{}", web.status()?);
    done(&["start", "web"])?;
    let last = web.pid()?;
    web.kill_and_wait()?;
    let now = web.pid()?;
    web.remove()?;
    Ok(format!("processes {first}, {last}, {now}"))
}

/// nerdctl's own network: a bridge, with an address and a port of the node.
pub fn network(stack: Stack) -> Result<String> {
    let before = node()?;
    let serve = ["/bin/sh", "-c", "mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www"];
    let web = Container::run_in(stack, "web", &["-p", "8080:80"], &serve)?;
    let address = web.inspect("{{.NetworkSettings.IPAddress}}")?;
    let gateway = web.sh("ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")?;
    for url in [format!("http://{address}/"), format!("http://{gateway}:8080/")] {
        let fetch = || run("busybox", &["wget", "-q", "-O", "-", &url], b"");
        until("served", || Ok(fetch()?.out == "served\n"))
            .with_context(|| format!("{url}: {:?}", fetch()))?;
    }
    done(&["restart", "-t", "0", "web"])?;
    let url = format!("http://{gateway}:8080/");
    until("served after a restart", || {
        Ok(run("busybox", &["wget", "-q", "-O", "-", &url], b"")?.out == "served\n")
    })?;
    web.remove()?;
    before.is_the_same()?;
    Ok(format!("{address} and {gateway}:8080"))
}

/// nerdctl looks up devices of CDI itself.
pub fn device(stack: Stack) -> Result<String> {
    let web = Container::run(stack, "web", &["--device", "example.com/nothing=0"], &SLEEP)?;
    for round in ["first", "second"] {
        let seen =
            web.sh("test -c /dev/nothing && echo x > /dev/nothing && cat /usr/lib/nothing/of-the-node")?;
        ensure!(seen == "of the node", "in its {round} task: {seen:?}");
        ensure!(web.sh("echo $NOTHING")? == "void", "in its {round} task: the variable");
        done(&["restart", "-t", "0", "web"])?;
    }
    web.remove()?;
    let args = ["run", "--rm", "--network", "none", "--device", "example.com/nothing=7"];
    let output = nerdctl(&[&args, &stack.words()[..], &[Image::Busybox.name(), "/bin/true"]].concat())?;
    ensure!(output.code != 0 && output.err.contains("example.com/nothing=7"), "{output:?}");
    Ok(output.err.trim().to_owned())
}
