//! Runtime options: each has an effect that can be seen, in whatever message and from whatever client it comes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::containerd::services::containers::v1::Container as Record;
use capsule_proto::containerd::services::containers::v1::container::Runtime;
use capsule_proto::containerd::services::introspection::v1::PluginInfoRequest;
use capsule_proto::containerd::types::{RuntimeInfo, RuntimeRequest};
use containerd_shim::api::Options;
use prost::Message as _;
use prost_types::Any;

use super::asked::{Asked, runc_options, toml_options};
use super::bed::{Bed, FILES, SLEEP, eventually};
use super::client::request;
use super::faulty::Faulty;
use super::kills::{kill, shim_of, wait_until_gone};
use super::origins::without_network_lock;
use super::task::{Stdio, Task, read_all, text_of};
use super::{Case, Need};
use crate::scenario::ctr::{Container, OURS, REFERENCE, ctr};

/// The cases.
pub const CASES: &[Case] =
    &[
        Case::new("without options", defaults),
        Case::new("options with the task", |bed| all(bed, By::Task)),
        Case::new("options with the container", |bed| all(bed, By::Container)).in_vm(),
        Case::new("IoUid and IoGid: a process in a user namespace opens its streams", streams_owner)
            .needs(&[Need::Root]),
        Case::new("Root: what a killed shim has there goes too", root_of_killed),
        Case::new("CriuImagePath and CriuWorkPath: what a task is restored from, and where", restored)
            .needs(&[Need::Native, Need::Containerd2, Need::Root]),
    ];

/// The cases of what only ours does.
pub const OWN_CASES: &[Case] = &[
    Case::new("options as TOML, as CRI sends them", |bed| all(bed, By::Body)),
    Case::new("options in a TOML file", |bed| all(bed, By::Path)),
    Case::new("under the name of containerd's own runtime, by the path of the program", by_path)
        .needs(&[Need::Root]),
];

/// How options come to the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// `containerd.runc.v1.Options` with the task: what containerd's clients do.
    Task,
    /// The same with the container: what CRI does for containerd's own runtime, and `ctr`.
    Container,
    /// `runtimeoptions.v1.Options` with TOML, which CRI sends all other runtimes.
    Body,
    /// The same with the name of a file: CRI with `ConfigPath`, and `ctr`.
    Path,
}

const UID: u32 = 1234;
const GID: u32 = 4321;
/// The root of a user namespace.
const MAPPED: u32 = 100_000;

/// A folder for what a case names in options.
fn folder(bed: &Bed, hint: &str) -> Result<String> {
    let folder = format!("{FILES}/{}", bed.id(hint));
    fs::create_dir_all(&folder).with_context(|| format!("create {folder}"))?;
    Ok(folder)
}

/// A container with these options in TOML, and what is asked of its task. Of runc's message it is the same.
fn container<'a>(bed: &'a Bed, by: By, toml: &str, runc: &Options) -> Result<(Task<'a>, Asked)> {
    let options = match by {
        By::Task => {
            return Ok((Task::container(bed, "options", &[], &SLEEP)?, Asked::with(runc)?));
        }
        By::Container => runc_options(runc)?,
        By::Body => toml_options("", toml),
        By::Path => {
            let file = format!("{}/options.toml", folder(bed, "toml")?);
            fs::write(&file, toml).with_context(|| format!("write {file}"))?;
            toml_options(&file, "")
        }
    };
    let with_options = |container: &mut Record| {
        container.runtime.get_or_insert_default().options = Some(options);
    };
    Ok((Task::container_as(bed, "options", &SLEEP, with_options)?, Asked::default()))
}

/// Whether the runtime has made a session keyring for a container.
fn has_keyring(task: &Task<'_>) -> Result<bool> {
    let keys = fs::read_to_string("/proc/keys").context("read the kernel's keys")?;
    Ok(keys.contains(&format!("_ses.{}", task.id)))
}

/// Has the owner of the streams that an init and an exec got of the shim. (runc gives them to the user of the process.)
fn expect_owner(faulty: &Faulty, owner: (u32, u32)) -> Result<()> {
    let owner = format!("{}:{}", owner.0, owner.1);
    for step in ["create", "exec"] {
        let call = faulty.call(step)?;
        ensure!(call.owner == owner, "the output of {step} is {}'s, not {owner}'s", call.owner);
    }
    Ok(())
}

/// Where the runtime has a container's state.
fn state(root: &str, id: &str) -> String {
    format!("{root}/default/{id}")
}

const ROOT: &str = "/run/containerd/runc";

/// Only what program it is: all else is as it is without options.
fn defaults(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "options", &[], &SLEEP)?;
    let faulty = Faulty::new(&task.id, "runc")?;
    task.create_as(&Stdio::fifos(bed, &[])?, faulty.asked()?)?;
    task.start("")?;
    task.run_exec("e", &Stdio::fifos(bed, &[])?, &SLEEP)?;
    expect_owner(&faulty, (0, 0))?;
    ensure!(has_keyring(&task)?, "no session keyring");
    let state = state(ROOT, &task.id);
    ensure!(Path::new(&state).join("state.json").exists(), "runc has nothing in {state}");
    let create = faulty.call("create")?;
    for switch in ["--no-pivot", "--no-new-keyring", "--systemd-cgroup"] {
        ensure!(create.args.iter().all(|arg| arg != switch), "{switch} in {:?}", create.args);
    }
    task.remove()?;
    ensure!(!Path::new(&state).exists(), "{state} is left");
    Ok(create.args.join(" "))
}

/// All options that a machine without systemd and criu has an effect of.
fn all(bed: &Bed, by: By) -> Result<String> {
    let (root, criu) = (folder(bed, "root")?, folder(bed, "criu")?);
    let faulty = Faulty::new(&bed.id("options"), "runc")?;
    let program = faulty.program();
    let toml = format!(
        "BinaryName = {program:?}\nRoot = {root:?}\nIoUid = {UID}\nIoGid = {GID}\nNoPivotRoot = true\n\
         NoNewKeyring = true\nCriuPath = \"{criu}/criu\"\n\
         # For containerd and for nobody: no shim does anything about them.\n\
         TaskApiAddress = \"ttrpc+unix:///nowhere\"\nTaskApiVersion = 3\n"
    );
    let mut runc = Options {
        binary_name: program,
        root: root.clone(),
        io_uid: UID,
        io_gid: GID,
        no_pivot_root: true,
        no_new_keyring: true,
        task_api_address: "ttrpc+unix:///nowhere".to_owned(),
        task_api_version: 3,
        ..Default::default()
    };
    // Older clients send it still.
    runc.special_fields.mut_unknown_fields().add_length_delimited(8, format!("{criu}/criu").into_bytes());
    let (task, asked) = container(bed, by, &toml, &runc)?;
    task.create_as(&Stdio::fifos(bed, &[])?, asked).context("create the task")?;
    task.start("").context("start the task")?;
    task.run_exec("e", &Stdio::fifos(bed, &[])?, &SLEEP)?;
    expect_owner(&faulty, (UID, GID))?;
    ensure!(!has_keyring(&task)?, "a session keyring");
    let state = state(&root, &task.id);
    ensure!(Path::new(&state).join("state.json").exists(), "runc has nothing in {state}");
    ensure!(!Path::new(&self::state(ROOT, &task.id)).exists(), "runc has something in {ROOT}");
    let create = faulty.call("create")?;
    for switch in ["--no-pivot", "--no-new-keyring"] {
        ensure!(create.args.iter().any(|arg| arg == switch), "no {switch} in {:?}", create.args);
    }
    // containerd's own shim takes no notice of it any more.
    ensure!(bed.is_reference() || create.path.first() == Some(&criu), "{:?}", create.path);
    task.remove()?;
    ensure!(!Path::new(&state).exists(), "{state} is left");
    Ok(create.args.join(" "))
}

/// Puts a container into a user namespace, as [`MAPPED`] is its root.
fn in_user_namespace(task: &Task<'_>) -> Result<()> {
    let map = serde_json::json!([{ "containerID": 0, "hostID": MAPPED, "size": 65536 }]);
    task.change_spec(|spec| {
        let linux = &mut spec["linux"];
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
        if let Some(namespaces) = linux["namespaces"].as_array_mut() {
            namespaces.push(serde_json::json!({ "type": "user" }));
        }
    })
}

/// What they are for: `/dev/stdout` is a pipe, which only its owner opens. In a user namespace no runtime can make the node's root's
/// its own.
fn streams_owner(bed: &Bed) -> Result<String> {
    let mut said = Vec::new();
    for owner in [0, MAPPED] {
        let script = "echo opened > /dev/stdout || echo refused; exec sleep 100000";
        let task = Task::container(bed, "user", &[], &["/bin/sh", "-c", script])?;
        in_user_namespace(&task)?;
        let options = Options { io_uid: owner, io_gid: owner, ..Default::default() };
        let stdio = Stdio::fifos(bed, &["stdout"])?;
        let out = read_all(&stdio.stdout);
        task.create_as(&stdio, Asked::with(&options)?)?;
        task.start("")?;
        eventually("the script to be done", || {
            let name = fs::read_to_string(format!("/proc/{}/comm", task.get("")?.pid))?;
            ensure!(name == "sleep\n", "{name}");
            Ok(())
        })?;
        task.remove()?;
        said.push(text_of(out)?);
    }
    ensure!(said == ["refused\n", "opened\n"], "{said:?}");
    Ok(String::new())
}

fn root_of_killed(bed: &Bed) -> Result<String> {
    let root = folder(bed, "root")?;
    let options = Options { root: root.clone(), ..Default::default() };
    let task = Task::container(bed, "killed", &[], &SLEEP)?;
    task.create_as(&Stdio::default(), Asked::with(&options)?)?;
    task.start("")?;
    ensure!(Path::new(&state(&root, &task.id)).exists(), "runc has nothing in {root}");
    kill(shim_of(&task.id)?)?;
    wait_until_gone(&task.id)?;
    eventually("the runtime's state to go", || {
        ensure!(!Path::new(&state(&root, &task.id)).exists(), "it is in {root}");
        Ok(())
    })?;
    task.forget().map(|()| String::new())
}

/// Counts in its memory, and says how far it is.
const COUNTS: [&str; 3] =
    ["/bin/sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done"];

fn count(task: &Task<'_>, least: u64) -> Result<u64> {
    let path = format!("/proc/{}/root/count", task.get("")?.pid);
    eventually("a count", || {
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let count = text.trim().parse().with_context(|| format!("{text:?} is no number"))?;
        ensure!(count > least, "it is at {count}, not beyond {least}");
        Ok(count)
    })
}

/// Ours also takes criu from where `CriuPath` says.
fn restored(bed: &Bed) -> Result<String> {
    without_network_lock()?;
    let [images, work, programs] = ["images", "work", "programs"].map(|hint| folder(bed, hint));
    let (images, work, programs) = (images?, work?, programs?);
    let (program, log) = (format!("{programs}/criu"), format!("{programs}/log"));
    let script = format!("#!/bin/sh\necho \"$@\" >> {log}\nexec /payload/bin/criu \"$@\"\n");
    fs::write(&program, script).with_context(|| format!("write {program}"))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("make it a program")?;

    let task = Task::started(bed, "written", &Stdio::default(), &COUNTS)?;
    let before = count(&task, 10)?;
    ctr(&["task", "checkpoint", "--exit", "--image-path", &images, &task.id])?.success("checkpoint")?;
    task.wait("")?;
    task.remove()?;
    let mut options = Options { criu_image_path: images, criu_work_path: work.clone(), ..Default::default() };
    options.special_fields.mut_unknown_fields().add_length_delimited(8, program.into_bytes());
    let task = Task::container(bed, "restored", &[], &COUNTS)?;
    task.create_as(&Stdio::default(), Asked::with(&options)?).context("create a task from a checkpoint")?;
    task.start("").context("restore it")?;
    // One that began anew would begin with 1.
    let first = count(&task, 0)?;
    ensure!(first >= before, "it was at {before}, and began again at {first}");
    ensure!(Path::new(&work).join("restore.log").exists(), "no log in {work}");
    let calls = fs::read_to_string(&log).unwrap_or_default();
    ensure!(bed.is_reference() || calls.contains("swrk"), "criu was not run: {calls:?}");
    task.remove().map(|()| format!("at {before}, restored at {first}"))
}

/// What CRI does for `runtime_type = "io.containerd.runc.v2"` with a `runtime_path`: the record has the name and runc's options,
/// and only the task's request has the program.
fn by_path(bed: &Bed) -> Result<String> {
    let program = "/payload/bin/containerd-shim-capsule-v1".to_owned();
    let options = runc_options(&Options { binary_name: "crun".to_owned(), ..Default::default() })?;
    let task = Task::container_as(bed, "path", &SLEEP, |container| {
        let options = Some(options.clone());
        container.runtime = Some(Runtime { name: REFERENCE.runtime.to_owned(), options });
    })?;
    in_user_namespace(&task)?;
    let asked = || Asked { program: program.clone(), ..Asked::default() };
    let pid = task.create_as(&Stdio::default(), asked()).context("create the task")?;
    task.start("").context("start the task")?;
    let shim = shim_of(&task.id)?;
    let runs = fs::read_link(format!("/proc/{shim}/exe")).context("look at the shim")?;
    ensure!(runs == Path::new(&program), "the shim is {}", runs.display());
    ensure!(Path::new(&state(ROOT, &task.id)).join("status").exists(), "not by crun");
    let mapped = fs::read_to_string(format!("/proc/{pid}/uid_map")).context("read its mapping")?;
    ensure!(mapped.split_ascii_whitespace().eq(["0", "100000", "65536"]), "{mapped:?}");
    // Older ones ask for no features, and refuse the pod.
    if bed.facts().containerd_2 {
        features(bed, &program, options)?;
    }
    bed.world().restart_containerd()?;
    let container = std::mem::ManuallyDrop::new(Container { id: task.id.clone() });
    container.wait_for("RUNNING")?;
    ensure!(container.sh("x", "echo here")? == "here\n", "no exec after a restart of containerd");
    kill(shim)?;
    wait_until_gone(&task.id)?;
    // The next task has the program from its own request alone.
    eventually("the id to be free", || {
        task.create_as(&Stdio::default(), asked()).context("create the task again")
    })?;
    task.remove().map(|()| format!("{} as {}", OURS.runtime, REFERENCE.runtime))
}

/// Whether CRI gives a runtime containers in user namespaces (`hostUsers: false`): it asks so for containerd's own name alone.
fn features(bed: &Bed, program: &str, options: Any) -> Result<()> {
    let asked = RuntimeRequest { runtime_path: program.to_owned(), options: Some(options) };
    let type_url = "containerd.types.RuntimeRequest".to_owned();
    let info = PluginInfoRequest {
        r#type: "io.containerd.runtime.v2".to_owned(),
        id: "task".to_owned(),
        options: Some(Any { type_url, value: asked.encode_to_vec() }),
    };
    let answer = bed.client().call(bed.client().introspection().plugin_info(request(info)))?;
    let extra = answer.extra.context("nothing is known of the runtime")?;
    let info = RuntimeInfo::decode(extra.value.as_slice()).context("decode what is known")?;
    let features = info.features.context("no features")?;
    let features: serde_json::Value = serde_json::from_slice(&features.value).context("parse features")?;
    let linux = &features["linux"];
    let users = linux["namespaces"].as_array().is_some_and(|all| all.iter().any(|one| one == "user"));
    ensure!(users && linux["mountExtensions"]["idmap"]["enabled"] == true, "{features}");
    // crun's, not runc's.
    ensure!(features["annotations"]["run.oci.crun.version"].is_string(), "{}", features["annotations"]);
    Ok(())
}
