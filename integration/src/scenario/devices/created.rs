//! Devices of containers that are created: those that annotations name, and those of capsules that are there from the start. On control
//! groups of either version.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{FILES, HOOK, SLEEP, attached, denied, opens, prepare};
use crate::event::Reporter;
use crate::images::Image;
use crate::scenario::capsulectl::{done, refused};
use crate::scenario::ctr::{Container, OURS, ctr};
use crate::scenario::runtime::capsules::bare_root;
use crate::scenario::world::{World, with_logs};

const GPU: &str = "resourcecapsules.io/devices=example.com/gpu=0";
const CUDA: &str = "resourcecapsules.io/attach=cuda";
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/default";

/// What only a creation can give: hooks of other points, a file system of its own.
const ONLY: &str = r#"{"cdiVersion": "0.7.0", "kind": "example.com/only", "devices": [{"name": "created", "containerEdits": {
"env": ["ONLY=1"], "additionalGids": [4711],
"mounts": [{"hostPath": "tmpfs", "containerPath": "/run/only", "type": "tmpfs", "options": ["size=64k", "nosuid"]}],
"hooks": [
  {"hookName": "createRuntime", "path": "/usr/local/bin/note", "args": ["note", "createRuntime"]},
  {"hookName": "poststart", "path": "/usr/local/bin/note", "args": ["note", "poststart"]},
  {"hookName": "poststop", "path": "/usr/local/bin/note", "args": ["note", "poststop"]}
]}}]}"#;
/// A device that has the same path on the node.
const SAME: &str = r#"{"cdiVersion": "0.6.0", "kind": "example.com/same", "devices": [{"name": "fuse", "containerEdits": {
"env": ["SAME=1"], "deviceNodes": [{"path": "/dev/fuse", "fileMode": 438}]}}]}"#;
/// It reads its input: crun is killed by the signal of a pipe that nobody reads.
const NOTE: &str = "#!/bin/sh\ncat > /dev/null\necho \"$1\" >> /tmp/devices/points\n";

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    reporter.must("an image, capsules and specs are there", || {
        OURS.import()?;
        prepare()?;
        fs::write("/etc/cdi/only.json", ONLY).context("a spec")?;
        fs::write("/etc/cdi/same.json", SAME).context("a spec")?;
        fs::write("/usr/local/bin/note", NOTE).context("a hook")?;
        fs::set_permissions("/usr/local/bin/note", fs::metadata(HOOK).context("a hook")?.permissions())
            .context("a hook")?;
        for (capsule, device) in [
            ("cuda", "example.com/gpu=0"),
            ("only", "example.com/only=created"),
            ("same", "example.com/same=fuse"),
        ] {
            capsule_with(capsule, device)?;
        }
        Ok(((), String::new()))
    })?;
    for binary in ["runc", "crun"] {
        reporter
            .check(&format!("{binary}: the first process has the devices that an annotation names"), || {
                annotated(binary)
            });
        reporter.check(&format!("{binary}: all that only a creation can give"), || only(binary));
        reporter
            .check(&format!("{binary}: a capsule's devices are there for the first process, once"), || {
                brought(binary, unified)
            });
    }
    reporter.check("what containerd has put into the spec is not put there twice", twice);
    reporter.check("a capsule whose devices the container has by itself takes none of them away", own);
    reporter.check("in a user namespace of its own, too", mapped);
    if unified {
        reporter.check("the next task's first process has what was attached", again);
    }
    reporter.check("mistakes are refused in one line, and nothing is left", mistakes);
    reporter.check("without capsuled a container that asks for devices is not created", || away(&mut world));
    world.stop()
}

fn capsule_with(name: &str, device: &str) -> Result<()> {
    let tree = format!("{FILES}/tree-{name}");
    fs::create_dir_all(&tree).context("a tree")?;
    let toml = format!("name = '{name}'\nversion = '1'\ntarget = '/opt/{name}'\ndevices = ['{device}']\n");
    fs::write(format!("{tree}/capsule.toml"), toml).context("a declaration")?;
    fs::write(format!("{tree}/file"), name).context("a file")?;
    done(&["build", &tree]).map(drop)
}

/// Options of `ctr run` for a runtime, and annotations.
fn with(binary: &str, annotations: &[&str]) -> Result<Vec<String>> {
    let toml = format!("{FILES}/{binary}.toml");
    fs::write(&toml, format!("BinaryName = {binary:?}\n")).context("options")?;
    let mut options = vec!["--runtime-config-path".to_owned(), toml];
    options.extend(annotations.iter().flat_map(|text| ["--annotation".to_owned(), (*text).to_owned()]));
    Ok(options)
}

fn start(id: &str, binary: &str, annotations: &[&str]) -> Result<Container> {
    let options = with(binary, annotations)?;
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    OURS.start(id, &options, &SLEEP)
}

/// Runs a script as a container's first process; its output.
fn first(binary: &str, annotations: &[&str], script: &str) -> Result<String> {
    let options = with(binary, annotations)?;
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    OURS.run_image_once(Image::Busybox, &options, &["/bin/sh", "-c", script])
}

const LOOK: &str = "( : <>/dev/example0 ) 2>&1 && ( : <>/dev/examplectl ) 2>&1 && stat -c '%a %u:%g %t:%T' /dev/example0; \
    cat /usr/lib/example/libexample.so /usr/lib/firmware/example/blob /etc/ld.so.cache; \
    echo \"$EXAMPLE_VISIBLE_DEVICES\"; ( echo > /usr/lib/example/libexample.so.1 ) 2>&1 | grep -c Read-only";
const SEEN: &str = "640 0:44 a:e5\nlibraryfirmware/usr/lib/example\nvoid\n1\n";

fn annotated(binary: &str) -> Result<String> {
    let bare =
        first(binary, &[], "mknod /dev/own c 10 229; ( : <>/dev/own ) 2>&1; ls /dev/example0 2>&1 || true")?;
    ensure!(bare.contains("not permitted") && bare.contains("o such file"), "{bare}");
    let seen = first(binary, &[GPU], LOOK)?;
    ensure!(seen == SEEN, "{seen:?} instead of {SEEN:?}");
    // Later processes have what the first one has, but for what they say themselves.
    let container = start("annotated", binary, &[GPU])?;
    let said = container
        .sh("env", "echo $EXAMPLE_VISIBLE_DEVICES; tr '\\0' '\\n' < /proc/1/environ | grep EXAMPLE")?;
    ensure!(said == "void\nEXAMPLE_VISIBLE_DEVICES=void\n", "{said:?}");
    ensure!(attached("annotated")?.is_empty(), "an attachment: {:?}", attached("annotated")?);
    container.remove()?;
    Ok(seen.lines().next().unwrap_or_default().to_owned())
}

fn points() -> Vec<String> {
    let text = fs::read_to_string(format!("{FILES}/points")).unwrap_or_default();
    let _ = fs::remove_file(format!("{FILES}/points"));
    text.lines().map(str::to_owned).collect()
}

fn only(binary: &str) -> Result<String> {
    let _ = points();
    let look = "echo \"$ONLY\"; id -G; grep ' /run/only ' /proc/mounts; ls /opt 2>/dev/null || true";
    let (spec, capsule) =
        ("resourcecapsules.io/devices=example.com/only=created", "resourcecapsules.io/attach=only");
    let mut told = String::new();
    for annotation in [spec, capsule] {
        let seen = first(binary, &[annotation], look)?;
        let lines: Vec<&str> = seen.lines().collect();
        let [only, groups, mount, ..] = lines[..] else { anyhow::bail!("{annotation}: {seen:?}") };
        ensure!(only == "1" && groups.split(' ').any(|gid| gid == "4711"), "{annotation}: {seen}");
        ensure!(
            mount.starts_with("tmpfs /run/only tmpfs") && mount.contains("size=64k"),
            "{annotation}: {seen}"
        );
        ensure!(lines.contains(&"only") == (annotation == capsule), "{annotation}: {seen}");
        told = points().join(", ");
        ensure!(told == "createRuntime, poststart, poststop", "{annotation}: {told}");
    }
    // To a live container the same is refused.
    let container = start("only", binary, &[])?;
    refused(&["attach", "only", "only"], &["example.com/only=created", "create the container"])?;
    container.remove()?;
    let _ = points();
    Ok(told)
}

fn brought(binary: &str, unified: bool) -> Result<String> {
    let seen = first(binary, &[CUDA], &format!("cat /opt/cuda/file; {LOOK}"))?;
    ensure!(seen == format!("cuda{SEEN}"), "{seen:?} instead of {SEEN:?}");
    let container = start("brought", binary, &[CUDA])?;
    container.sh("own", "mknod /dev/own c 10 229")?;
    opens(&container, "open", "<>", "/dev/own")?;
    let nodes = config("brought")?["linux"]["devices"].to_string();
    ensure!(nodes.contains("/dev/example0") != unified, "attachable, and in the spec: {nodes}");
    ensure!(attached("brought")?.len() == 1, "{:?}", attached("brought")?);
    done(&["detach", "brought", "cuda"])?;
    container.sh("gone", "! ls /opt/cuda/file")?;
    if unified {
        denied(&container, "denied", "<>", "/dev/own", super::DENIED)?;
        denied(&container, "no-node", "<", "/dev/example0", "o such file")?;
        ensure!(container.sh("env", "echo $EXAMPLE_VISIBLE_DEVICES")? == "\n", "a variable stays");
    } else {
        // They were given to the container, and stay with it.
        opens(&container, "still", "<>", "/dev/example0")?;
    }
    container.remove()?;
    Ok(if unified { "attached" } else { "in its spec" }.to_owned())
}

/// The spec that the runtime has read.
pub(super) fn config(id: &str) -> Result<Value> {
    let text = fs::read(format!("{BUNDLES}/{id}/config.json")).context("config.json")?;
    serde_json::from_slice(&text).context("config.json")
}

/// What a spec has of the GPU: nodes, rules, mounts, variables, hooks.
fn parts(config: &Value) -> Vec<Vec<Value>> {
    let of = |value: &Value, word: &str| -> Vec<Value> {
        let all = value.as_array().cloned().unwrap_or_default();
        let mut found: Vec<Value> = all.into_iter().filter(|one| one.to_string().contains(word)).collect();
        found.sort_by_key(Value::to_string);
        found
    };
    vec![
        of(&config["linux"]["devices"], "/dev/example"),
        of(&config["linux"]["resources"]["devices"], "\"minor\":229"),
        of(&config["linux"]["resources"]["devices"], "\"minor\":237"),
        of(&config["mounts"], "example"),
        of(&config["process"]["env"], "EXAMPLE"),
        of(&config["hooks"]["createContainer"], "example"),
    ]
}

fn twice() -> Result<String> {
    let device = ["--device", "example.com/gpu=0"];
    let containerd = OURS.start("theirs", &device, &SLEEP)?;
    let theirs = parts(&config("theirs")?);
    containerd.remove()?;
    let both = ["--annotation", "cdi.k8s.io/example=example.com/gpu=0", "--annotation", GPU];
    let container = OURS.start("both", &[&device[..], &both].concat(), &SLEEP)?;
    let ours = parts(&config("both")?);
    ensure!(ours == theirs, "with both:\n{}\nand by containerd alone:\n{}", json!(ours), json!(theirs));
    let counts: Vec<usize> = ours.iter().map(Vec::len).collect();
    ensure!(counts == [2, 1, 1, 2, 1, 3], "{counts:?}: {}", json!(ours));
    opens(&container, "open", "<>", "/dev/example0")?;
    container.remove()?;
    // By ours alone it is the same, but for the words.
    let container = start("ours", "runc", &[GPU])?;
    let alone: Vec<usize> = parts(&config("ours")?).iter().map(Vec::len).collect();
    ensure!(alone == counts, "{alone:?}");
    container.remove()?;
    Ok(format!("{counts:?}"))
}

fn own() -> Result<String> {
    let container = start("own", "runc", &[GPU, CUDA])?;
    opens(&container, "open", "<>", "/dev/example0")?;
    let mounts = container.mounts()?;
    for exec in ["one", "two"] {
        done(&["detach", "own", "cuda"])?;
        opens(&container, &format!("after-{exec}"), "<>", "/dev/example0")?;
        container.sh(&format!("lib-{exec}"), "cat /usr/lib/example/libexample.so.1")?;
        // To the container that runs, too: it has the devices, of whatever version its control groups are.
        done(&["attach", "own", "cuda"])?;
    }
    ensure!(container.mounts()?.len() == mounts.len(), "{:?} instead of {mounts:?}", container.mounts()?);
    container.remove().map(|_| String::new())
}

/// There a runtime binds the node's own device: it has the same path on the node.
fn mapped() -> Result<String> {
    let map = "0:100000:65536";
    let look = "( : <>/dev/fuse ) 2>&1 && echo \"$SAME\"; ls /opt 2>/dev/null || true";
    for (annotation, want) in [
        ("resourcecapsules.io/devices=example.com/same=fuse", "1\n"),
        ("resourcecapsules.io/attach=same", "1\nsame\n"),
    ] {
        let options = ["--uidmap", map, "--gidmap", map, "--remap-labels", "--annotation", annotation];
        let seen = OURS.run_image_once(Image::Busybox, &options, &["/bin/sh", "-c", look])?;
        ensure!(seen == want, "{annotation}: {seen:?} instead of {want:?}");
    }
    Ok(String::new())
}

fn again() -> Result<String> {
    let container = OURS.start(
        "again",
        &[],
        &["/bin/sh", "-c", "echo \"$EXAMPLE_VISIBLE_DEVICES\" > /told; exec sleep 100000"],
    )?;
    ensure!(container.sh("before", "cat /told")? == "\n", "a variable of nothing");
    done(&["attach", "again", "--device", "example.com/gpu=0"])?;
    container.kill("SIGKILL")?;
    container.wait_for("STOPPED")?;
    ctr(&["task", "rm", "again"])?.success("ctr task rm")?;
    ctr(&["task", "start", "-d", "--null-io", "again"])?.success("ctr task start")?;
    container.wait_for("RUNNING")?;
    opens(&container, "next", "<>", "/dev/example0")?;
    let told = container.sh("after", "cat /told")?;
    ensure!(told == "void\n", "{told:?}");
    done(&["detach", "again", "--device", "example.com/gpu=0"])?;
    container.remove().map(|_| told.trim().to_owned())
}

fn mistakes() -> Result<String> {
    let mut last = String::new();
    for (annotation, words) in [
        (
            "resourcecapsules.io/devices=example.com=0",
            &["resourcecapsules.io/devices", "names no CDI device", "VENDOR/CLASS=NAME"][..],
        ),
        (
            "resourcecapsules.io/devices=example.com/gpu=7",
            &["resourcecapsules.io/devices", "example.com/gpu=7", "example.com/gpu=0"],
        ),
        (
            "cdi.k8s.io/x=example.com/bad=gone",
            &["cdi.k8s.io/x", "example.com/bad=gone", "/dev/no-such-device"],
        ),
        ("resourcecapsules.io/attach=no-such", &["resourcecapsules.io/attach", "no-such"]),
    ] {
        let error = start("wrong", "runc", &[GPU, annotation])
            .err()
            .with_context(|| format!("{annotation} is taken"))?;
        last = error.to_string();
        ensure!(last.trim().lines().count() == 1, "not one line: {last:?}");
        for word in words {
            ensure!(last.contains(word), "does not name {word:?}: {last}");
        }
        nothing_left("wrong")?;
    }
    Ok(last.trim().to_owned())
}

/// A container that was not created has left nothing but its record in containerd, which goes.
fn nothing_left(id: &str) -> Result<()> {
    let tasks = ctr(&["task", "ls"])?.success("ctr task ls")?;
    ensure!(!tasks.contains(id), "{tasks}");
    ensure!(!Path::new(BUNDLES).join(id).exists(), "its bundle is left");
    let mounts = fs::read_to_string("/proc/mounts").context("mounts")?;
    ensure!(!mounts.contains(&format!("/{id}/")), "{mounts}");
    let runtime = fs::read_dir("/run/containerd/runc/default").into_iter().flatten().flatten();
    ensure!(runtime.into_iter().all(|entry| entry.file_name() != id), "the runtime has it");
    ctr(&["container", "rm", id])?.success("ctr container rm").map(drop)
}

fn away(world: &mut World) -> Result<String> {
    let root = bare_root("devices-root")?;
    world.kill_capsuled()?;
    let mut told = String::new();
    for annotation in [GPU, CUDA] {
        let args = [
            &["run", "-d", "--null-io"],
            &OURS.words()[..],
            &["--annotation", annotation, "--rootfs", &root, "late"],
            &SLEEP,
        ];
        let output = ctr(&args.concat())?;
        told = output.err.trim().to_owned();
        ensure!(
            output.code != 0 && told.contains("capsuled does not answer"),
            "{annotation}: {} {told}",
            output.out
        );
        nothing_left("late")?;
    }
    // Others need none.
    let args =
        [&["run", "--rm"], &OURS.words()[..], &["--rootfs", &root, "plain", "/bin/echo", "plain"]].concat();
    ctr(&args)?.success("a container that asks for nothing")?;
    world.restart_capsuled()?;
    Ok(told)
}
