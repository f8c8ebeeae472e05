//! The shim's process: what `start` does and answers, which process serves which container, what it has and how it ends,
//! and that containerd finds it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio as Pipe};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerd_shim::api::Options;
use prost::Message as _;

use super::Case;
use super::Need::{Cgroups, Containerd2};
use super::asked::{runc_options, toml_options};
use super::bed::{Bed, FILES, SLEEP, eventually};
use super::events::{Log, lines};
use super::task::Stdio;
use crate::scenario::ctr::{Container, OURS, ctr};
use crate::scenario::world::{CONTAINERD_SOCKET, path};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("start answers what containerd takes, and twice the same", started_twice),
    Case::new("start puts the shim where the options say, and raises its OOM score", |bed| {
        confined(bed, with_cgroup)
    })
    .needs(&[Cgroups])
    .in_vm(),
    Case::new("start refuses a cgroup that is not there", no_cgroup),
    Case::new("-info tells name and features", info).needs(&[Containerd2]),
    Case::new("-v tells the version", version),
    Case::new("containers of a group have one shim, those of none their own", grouped),
    Case::new("a containerd that is started anew has its tasks, and knows what has ended", adopted)
        .needs(&[Cgroups])
        .in_vm(),
    Case::new("execs that end while containerd is down are told of when it is back, in order", told_late)
        .needs(&[Cgroups])
        .forgiven(
            "its publisher changes the order of events that it tries again, and gives them up",
            &["instead of [\"exit one\"", "no further event came"],
        ),
];

/// The cases of what only ours does.
pub const OWN_CASES: &[Case] = &[
    Case::new("start puts the shim where options in TOML say", |bed| {
        confined(bed, |cgroup| Ok(toml_options("", &format!("ShimCgroup = {cgroup:?}\n")).encode_to_vec()))
    })
    .needs(&[Cgroups]),
    Case::new("an option that is not known is named", unknown_option),
    Case::new("a shim serves both versions of the Task API", both_versions).needs(&[Containerd2]),
];

const SIGTERM: u32 = 15;

/// A bundle that no containerd knows, for a shim that is started by hand.
pub(super) struct ByHand {
    /// The container's.
    pub(super) id: String,
    program: String,
    pub(super) bundle: PathBuf,
    /// The socket of the containerd that starts it.
    pub(super) containerd: String,
    /// containerd's end of the log: containerd's own shim waits for it, deaf to signals.
    _log: fs::File,
}

impl ByHand {
    /// Makes a bundle.
    pub(super) fn new(bed: &Bed, hint: &str) -> Result<Self> {
        let id = bed.id(hint);
        let bundle = Path::new(FILES).join(&id);
        fs::create_dir_all(&bundle).context("make a bundle")?;
        fs::write(bundle.join("config.json"), r#"{"ociVersion":"1.0.2"}"#).context("write a spec")?;
        let made = Command::new("mkfifo").arg(bundle.join("log")).status().context("mkfifo")?;
        ensure!(made.success(), "mkfifo: {made}");
        let log =
            fs::File::options().read(true).write(true).open(bundle.join("log")).context("open the log")?;
        let mut words = bed.stack.runtime.rsplit('.');
        let (version, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (program, containerd) =
            (format!("containerd-shim-{name}-{version}"), CONTAINERD_SOCKET.to_owned());
        Ok(Self { id, program, bundle, containerd, _log: log })
    }

    /// Runs the program as containerd does, with runtime options.
    fn run(&self, args: &[&str], options: &[u8]) -> Result<Output> {
        let input = self.bundle.join("options");
        fs::write(&input, options).context("write options")?;
        Command::new(&self.program)
            .args(["-namespace", "by-hand", "-address", &self.containerd, "-publish-binary", "containerd"])
            .args(["-id", &self.id])
            .args(args)
            .env("PATH", path())
            .env("TTRPC_ADDRESS", format!("{CONTAINERD_SOCKET}.ttrpc"))
            .env("GRPC_ADDRESS", CONTAINERD_SOCKET)
            .env("MAX_SHIM_VERSION", "2")
            .stdin(Pipe::from(fs::File::open(&input).context("open options")?))
            .current_dir(&self.bundle)
            .output()
            .with_context(|| format!("run {}", self.program))
    }

    /// The action `start`; what it answers.
    pub(super) fn start(&self, options: &[u8]) -> Result<String> {
        let output = self.run(&["start"], options)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "start: {}: {said}", output.status);
        String::from_utf8(output.stdout).context("the answer is no text")
    }

    /// The servers that were started for it.
    pub(super) fn servers(&self) -> Result<Vec<u32>> {
        servers_of(&self.id)
    }

    /// Ends the server as a person does, and asserts that it leaves nothing. containerd's own takes no notice of a signal
    /// that comes while it starts, or is ended by it and leaves its socket.
    pub(super) fn end(self, bed: &Bed, socket: &Path) -> Result<()> {
        for pid in self.servers()? {
            eventually("the shim to be up", || {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read its status")?;
                let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default();
                let caught = u64::from_str_radix(caught.trim(), 16).context("no mask of signals")?;
                ensure!(caught & (1 << (SIGTERM - 1)) != 0, "SIGTERM is not handled");
                Ok(())
            })?;
        }
        eventually("the shim to end", || {
            let left = self.servers()?;
            for pid in &left {
                let _ = signal(*pid, "-TERM");
            }
            let socket_left = socket.exists() && !bed.is_reference();
            ensure!(left.is_empty() && !socket_left, "{left:?} {}", socket.display());
            Ok(())
        })?;
        let _ = fs::remove_file(socket);
        fs::remove_dir_all(&self.bundle).context("remove the bundle")
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        for pid in self.servers().unwrap_or_default() {
            let _ = signal(pid, "-KILL");
        }
        let _ = fs::remove_dir_all(&self.bundle);
    }
}

/// Sends a signal by its name, `-TERM`.
pub(super) fn signal(pid: u32, signal: &str) -> Result<()> {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().context("kill")?;
    ensure!(sent.success(), "kill {signal} {pid}: {sent}");
    Ok(())
}

/// The shims that were started for this container.
fn servers_of(id: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let is_shim = words.first().is_some_and(|program| program.contains("containerd-shim-"));
        let serves = words.windows(2).any(|pair| pair[0] == "-id" && pair[1] == id);
        if is_shim && serves && !words.iter().any(|word| word == "start" || word == "delete") {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Runc's options with a cgroup for the shim.
fn with_cgroup(cgroup: &str) -> Result<Vec<u8>> {
    let options = Options { shim_cgroup: cgroup.to_owned(), ..Default::default() };
    Ok(runc_options(&options)?.encode_to_vec())
}

/// The path of the socket in an answer to `start`.
pub(super) fn socket_in(answer: &str) -> Result<PathBuf> {
    let (_, address) = answer.split_once("unix://").with_context(|| format!("no address: {answer:?}"))?;
    Ok(PathBuf::from(address.split('"').next().unwrap_or_default().trim()))
}

fn started_twice(bed: &Bed) -> Result<String> {
    let shim = ByHand::new(bed, "start")?;
    let first = shim.start(b"")?;
    let socket = socket_in(&first)?;
    let json = first.contains(r#""version":3"#) && first.contains(r#""protocol":"ttrpc""#);
    ensure!(json == bed.facts().containerd_2, "not for this containerd: {first:?}");
    std::os::unix::net::UnixStream::connect(&socket).context("connect to the shim")?;
    ensure!(shim.start(b"")? == first, "another answer the second time");
    let servers = shim.servers()?;
    ensure!(servers.len() == 1, "servers: {servers:?}");
    shim.end(bed, &socket)?;
    Ok(first)
}

fn confined(bed: &Bed, options: fn(&str) -> Result<Vec<u8>>) -> Result<String> {
    let name = format!("capsule-{}", bed.id("cgroup"));
    let cgroups = Path::new("/sys/fs/cgroup");
    let hierarchies = if bed.facts().unified {
        vec![cgroups.to_owned()]
    } else {
        ["pids", "memory"].map(|controller| cgroups.join(controller)).into()
    };
    let made: Vec<_> = hierarchies.iter().map(|hierarchy| hierarchy.join(&name)).collect();
    for cgroup in &made {
        fs::create_dir(cgroup).with_context(|| format!("create {}", cgroup.display()))?;
    }
    let outcome = (|| {
        let shim = ByHand::new(bed, "confined")?;
        let socket = socket_in(&shim.start(&options(&format!("/{name}"))?)?)?;
        let pid = *shim.servers()?.first().context("no server")?;
        for cgroup in &made {
            let members = fs::read_to_string(cgroup.join("cgroup.procs")).context("read a cgroup")?;
            ensure!(members.lines().any(|line| line == pid.to_string()), "{pid} not among {members:?}");
        }
        let score = |process: &str| -> Result<i32> {
            let text =
                fs::read_to_string(format!("/proc/{process}/oom_score_adj")).context("read a score")?;
            text.trim().parse().context("no score")
        };
        let (starter, shims) = (score("self")?, score(&pid.to_string())?);
        ensure!(shims == (starter + 1).min(1000), "score {shims} of the shim, {starter} of who started it");
        shim.end(bed, &socket)?;
        Ok(format!("{} hierarchies, score {shims}", made.len()))
    })();
    for cgroup in &made {
        eventually("the cgroup to be empty", || fs::remove_dir(cgroup).context("remove a cgroup"))?;
    }
    outcome
}

fn no_cgroup(bed: &Bed) -> Result<String> {
    let shim = ByHand::new(bed, "nowhere")?;
    let output = shim.run(&["start"], &with_cgroup("/no-such-cgroup")?)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("/no-such-cgroup"), "{}: {said}", output.status);
    eventually("no server to be there", || {
        let servers = shim.servers()?;
        ensure!(servers.is_empty(), "{servers:?}");
        Ok(())
    })?;
    Ok(said)
}

fn info(bed: &Bed) -> Result<String> {
    let shim = ByHand::new(bed, "info")?;
    let output = shim.run(&["-info"], b"")?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in [bed.stack.runtime, "runtime-spec/1/features/Features", "ociVersionMin", "mountOptions"] {
        ensure!(output.status.success() && told.contains(word), "no {word:?}: {told:?}");
    }
    Ok(format!("{} bytes", told.len()))
}

fn version(bed: &Bed) -> Result<String> {
    let shim = ByHand::new(bed, "version")?;
    let output = shim.run(&["-v"], b"")?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success() && told.starts_with(&format!("{}:\n  Version:", shim.program)),
        "{told:?}"
    );
    Ok(told.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}

fn grouped(bed: &Bed) -> Result<String> {
    for label in ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"] {
        let first = bed.start_container("first", &SLEEP)?;
        let annotation = format!("{label}={}", first.id);
        let member = |hint| bed.stack.start(&bed.id(hint), &["--annotation", &annotation], &SLEEP);
        // The first one's own group is its id: with the label the others come to its shim.
        let (second, third) = (member("second")?, member("third")?);
        let alone = bed.start_container("alone", &SLEEP)?;
        let counts = |containers: &[&Container]| -> Result<Vec<usize>> {
            containers.iter().map(|container| Ok(servers_of(&container.id)?.len())).collect()
        };
        let seen = counts(&[&first, &second, &third, &alone])?;
        ensure!(seen == [1, 0, 0, 1], "{label}: shims {seen:?}");
        let first_id = first.id.clone();
        first.remove()?;
        ensure!(second.sh("x", "echo here")? == "here\n", "{label}: the second is not served");
        second.remove()?;
        ensure!(servers_of(&first_id)?.len() == 1, "{label}: the shim ended before the group did");
        third.remove()?;
        eventually("the group's shim to end", || {
            let left = servers_of(&first_id)?;
            ensure!(left.is_empty(), "{label}: {left:?}");
            Ok(())
        })?;
        alone.remove()?;
    }
    Ok(String::new())
}

fn adopted(bed: &Bed) -> Result<String> {
    let container = bed.start_container("adopted", &SLEEP)?;
    let other = bed.start_container("ended", &SLEEP)?;
    let (pid, gone) = (container.pid()?, other.pid()?);
    bed.world().restart_containerd_after(|| signal(gone, "-KILL"))?;
    container.wait_for("RUNNING")?;
    ensure!(container.pid()? == pid, "another process");
    // Whatever shim it is, containerd deletes a task in which it finds no process when it starts.
    eventually("the ended task to be known as such", || {
        let left = other.task()?;
        ensure!(left.as_ref().is_none_or(|(_, status)| status == "STOPPED"), "{left:?}");
        Ok(())
    })?;
    ensure!(container.sh("x", "echo here")? == "here\n", "no exec");
    bed.world().restart_containerd_after(|| Ok(()))?;
    ensure!(container.sh("y", "echo here")? == "here\n", "no exec after the second time");
    other.remove()?;
    let code = container.remove()?;
    ensure!(code == 137, "exit status {code}");
    Ok(String::new())
}

/// Longer than one try of a shim, shorter than it takes containerd's own to give an event up.
const DOWN: Duration = Duration::from_secs(2);

fn told_late(bed: &Bed) -> Result<String> {
    let (task, log) = Log::started(bed, "late", &[], &SLEEP)?;
    let execs = ["one", "two", "three"];
    let mut pids = Vec::new();
    for exec in execs {
        pids.push(task.run_exec(exec, &Stdio::default(), &SLEEP)?);
        log.until("exec-started")?;
    }
    let (down, is_down) = mpsc::channel();
    let (client, id) = (bed.client(), task.id.clone());
    let told = std::thread::scope(|scope| {
        let listener = scope.spawn(move || -> Result<Vec<_>> {
            is_down.recv().context("containerd did not go down")?;
            // As soon as it can be asked: what the shim has waits for nobody else.
            let log = eventually("containerd to tell events", || Log::of(client, &id))?;
            (0..3).map(|_| log.next()).collect()
        });
        bed.world().restart_containerd_after(|| {
            for pid in &pids {
                signal(*pid, "-KILL")?;
                std::thread::sleep(DOWN / 4);
            }
            std::thread::sleep(DOWN / 4);
            down.send(()).context("nobody listens")
        })?;
        listener.join().map_err(|_| anyhow::anyhow!("the listener panicked"))?
    })?;
    let expected = execs.map(|exec| format!("exit {exec}"));
    let seen = lines(&told);
    ensure!(seen == expected, "{seen:?} instead of {expected:?}");
    ensure!(told.iter().all(|event| event.status == 137), "{told:?}");
    task.remove()?;
    Ok(seen.join(", "))
}

fn unknown_option(bed: &Bed) -> Result<String> {
    let options = format!("{FILES}/unknown.toml");
    fs::write(&options, "BinaryName = \"runc\"\nColour = \"red\"\n").context("write options")?;
    let refused = bed.stack.start(&bed.id("unknown"), &["--runtime-config-path", &options], &SLEEP);
    let error = refused.err().context("it was taken")?.to_string();
    ensure!(error.contains("Colour") && error.contains("line 2") && error.contains(&options), "{error}");
    bed.clean();
    Ok(error)
}

/// A containerd that was upgraded from 1.7 takes the shims that it finds for version 2, by the file `address`.
fn both_versions(bed: &Bed) -> Result<String> {
    ensure!(bed.stack == OURS, "containerd's own serves one version");
    let container = bed.start_container("older", &SLEEP)?;
    let noted =
        format!("/run/containerd/io.containerd.runtime.v2.task/default/{}/bootstrap.json", container.id);
    bed.world().restart_containerd_after(|| fs::remove_file(&noted).context("forget the shim's version"))?;
    let taken = fs::read_to_string(&noted).context("read what containerd made of it")?;
    ensure!(taken.contains(r#""version":2"#), "{taken}");
    ensure!(container.sh("x", "echo here")? == "here\n", "no exec");
    container.remove()?;
    ensure!(ctr(&["task", "ls", "-q"])?.success("ctr task ls")?.trim().is_empty(), "a task is left");
    Ok(taken)
}
