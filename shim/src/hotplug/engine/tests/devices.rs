//! Devices in a container whose control group has a real device program.

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use overlayfs_utils::{BindOptions, DeviceCgroup, DeviceProgram, ProgramTag};

use super::*;
use crate::{
    devices::{
        Access,
        tests::kernel::{attach_program_of_runc, new_cgroup},
    },
    edits::NodeKind,
    hotplug::{
        edits::{Bind, Edits, Hook, Node},
        error::DevicesError,
    },
};

/// A container in a control group of its own.
pub(super) struct Confined {
    pub(super) container: Container,
    pub(super) cgroup: PathBuf,
}

impl Confined {
    pub(super) fn start(dir: &Path, name: &str) -> Self {
        Self::start_in(dir, new_cgroup(&format!("hotplug-{name}")))
    }

    pub(super) fn start_in(dir: &Path, cgroup: PathBuf) -> Self {
        let container = Container::start(dir, "");
        fs::write(cgroup.join("cgroup.procs"), container.pid().to_string()).unwrap();
        drop(attach_program_of_runc(&DeviceCgroup::open(&cgroup).unwrap()));
        let config = r#"{"ociVersion":"1.2.0","process":{"user":{"uid":7,"gid":8}},"root":{"path":"rootfs"},"linux":{}}"#;
        fs::write(container.bundle.join("config.json"), config).unwrap();
        Self { container, cgroup }
    }

    pub(super) fn engine(&self) -> Engine {
        let live = LiveTask { cgroup: Some(self.cgroup.clone()), ..self.container.live() };
        Engine::new(Arc::new(One(live)), Kernel::known(LayersBy::Descriptor))
    }

    /// A command of a process that is in the container in every way.
    fn command(&self, script: &str) -> Command {
        let pid = self.container.pid().to_string();
        let enter = format!("echo $$ > {}/cgroup.procs && exec nsenter \"$@\"", self.cgroup.display());
        let mut command = Command::new("sh");
        command.args(["-c", &enter, "sh", "--target", &pid, "--mount", "--root", "--wd", "/bin/sh", "-c"]);
        command.arg(script).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Whether a process in it can open a file, or why not.
    pub(super) fn opens(&self, mode: &str, path: &str) -> Result<(), String> {
        let output = self.command(&format!(": {mode}{path}")).output().unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn programs(&self) -> Vec<ProgramTag> {
        let all = DeviceCgroup::open(&self.cgroup).unwrap().attached().unwrap().programs;
        all.into_iter().map(tag).collect()
    }

    /// Everything that a call could change.
    pub(super) fn all(&self) -> (Vec<String>, Vec<PathBuf>, Vec<ProgramTag>) {
        (self.container.mounts(), self.container.tree(), self.programs())
    }

    fn in_container(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.container.pid()).into()
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let _ = self.container.init.kill();
        let _ = self.container.init.wait();
        for _ in 0..200 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub(super) fn path(path: &str) -> ContainerPath {
    ContainerPath::parse(path).unwrap()
}

/// `/dev/kmsg` (1:11 on every Linux, in neither runtime's defaults), for reading.
pub(super) fn kmsg(at: &str) -> Node {
    Node {
        path: path(at),
        kind: NodeKind::Char,
        major: 1,
        minor: 11,
        mode: Some(0o640),
        uid: None,
        gid: Some(44),
        access: Access::parse("r").unwrap(),
    }
}

fn bind(source: &Path, target: &str) -> Bind {
    let options = BindOptions { read_only: true, no_suid: true, no_dev: true, ..BindOptions::default() };
    Bind { source: source.into(), target: path(target), options }
}

pub(super) fn hook(script: &str, timeout: Option<u32>) -> Hook {
    let args = ["sh", "-c", script].map(str::to_owned).to_vec();
    let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    Hook { path: "/bin/sh".into(), args, env, timeout }
}

pub(super) fn listed(engine: &Engine) -> Vec<Given> {
    let all = engine.list_devices(None).unwrap();
    assert_eq!(engine.list_devices(Some("c")).unwrap(), all);
    all.into_iter().map(|(_, given)| given).collect()
}

/// A library of the host, and what devices of its vendor ask for.
fn vendor(dir: &Path) -> Edits {
    let library = dir.join("libvendor.so.1");
    fs::write(&library, "library").unwrap();
    let tree = dir.join("firmware");
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("blob"), "firmware").unwrap();
    Edits {
        nodes: vec![kmsg("/dev/vendor/ctl")],
        mounts: vec![bind(&library, "/lib/vendor/libvendor.so.1"), bind(&tree, "/opt/firmware")],
        ..Edits::default()
    }
}

const DENIED: &str = "Operation not permitted";

#[test]
fn privileged_devices_are_there_after_attach_and_gone_after_detach() {
    on_host(|dir| {
        let confined = Confined::start(dir, "life");
        let engine = confined.engine();
        // A node that the container has for itself opens nothing.
        fs::create_dir_all(confined.in_container("/dev")).unwrap();
        let own = confined.in_container("/dev/own");
        let number = rustix::fs::makedev(1, 11);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, &own, kind, 0o666.into(), number).unwrap();
        let before = confined.all();
        assert!(confined.opens("<", "/dev/own").unwrap_err().contains(DENIED));
        assert!(confined.opens("<", "/dev/vendor/ctl").unwrap_err().to_lowercase().contains("no"));

        let script = "read -r state; case $state in *'\"id\":\"c\"'*) ln -s libvendor.so.1 rootfs/lib/vendor/libvendor.so;; esac";
        let edits = Edits { hooks: vec![hook(script, None)], ..vendor(dir) };
        assert_eq!(engine.attach_devices("c", &id("d"), edits.clone(), None).unwrap(), None);
        confined.opens("<", "/dev/vendor/ctl").unwrap();
        confined.opens("<", "/dev/own").unwrap();
        assert!(confined.opens(">", "/dev/own").unwrap_err().contains(DENIED), "given for reading only");
        let node = confined.in_container("/dev/vendor/ctl").symlink_metadata().unwrap();
        assert!(node.file_type().is_char_device());
        let (mode, owner) = (node.permissions().mode() & 0o7777, (node.uid(), node.gid()));
        assert_eq!((mode, owner), (0o640, (7, 44)), "the container's user, the spec's group");
        // Through the link that the hook has made.
        assert_eq!(confined.container.read("/usr/lib/vendor/libvendor.so").as_deref(), Some("library"));
        assert_eq!(confined.container.read("/opt/firmware/blob").as_deref(), Some("firmware"));
        assert!(confined.opens(">>", "/lib/vendor/libvendor.so.1").unwrap_err().contains("Read-only"));
        assert_eq!(listed(&engine), [Given { id: id("d"), there: true }]);
        // Again: the same is a success, anything else a conflict.
        assert_eq!(engine.attach_devices("c", &id("d"), edits, None).unwrap(), None);
        let other = engine.attach_devices("c", &id("d"), vendor(dir), None).unwrap_err();
        assert!(matches!(other, EngineError::Conflict(_)));

        fs::remove_file(confined.in_container("/usr/lib/vendor/libvendor.so")).unwrap();
        assert_eq!(engine.detach("c", &id("d"), false).unwrap(), gone());
        assert!(confined.opens("<", "/dev/own").unwrap_err().contains(DENIED));
        assert_eq!(confined.all(), before);
        assert_eq!(listed(&engine), []);
    });
}

#[test]
fn privileged_what_cannot_be_given_changes_nothing() {
    on_host(|dir| {
        let confined = Confined::start(dir, "refused");
        let engine = confined.engine();
        fs::create_dir_all(confined.in_container("/lib/vendor")).unwrap();
        std::os::unix::fs::symlink("/etc", confined.in_container("/lib/vendor/link")).unwrap();
        let before = confined.all();
        let base = || vendor(dir);
        let with = |more: &dyn Fn(&mut Edits)| {
            let mut edits = base();
            more(&mut edits);
            edits
        };
        let missing = dir.join("missing");
        for (edits, words) in [
            (with(&|e| e.nodes.push(kmsg("/bin/sh"))), &["/bin/sh exists in the container already"][..]),
            (with(&|e| e.nodes.push(kmsg("/proc/x"))), &["/proc", "procfs"]),
            (with(&|e| e.nodes.push(kmsg("/lib/vendor/link"))), &["/usr/lib/vendor/link exists"]),
            (with(&|e| e.mounts.push(bind(&missing, "/x"))), &["the node has no", "missing"]),
            (with(&|e| e.mounts.push(bind(dir, "/bin/sh"))), &["/bin/sh", "link"]),
            (
                with(&|e| e.mounts.push(bind(dir, "/usr/share/keep/file"))),
                &["/usr/share/keep/file", "not a directory"],
            ),
            (with(&|e| e.mounts.push(bind(dir, "/data"))), &["/data is occupied by"]),
            (
                with(&|e| e.hooks.push(hook("echo no luck >&2; exit 2", None))),
                &["hook /bin/sh failed", "status 2", "no luck"],
            ),
            (
                with(&|e| e.hooks.push(hook("sleep 60", Some(1)))),
                &["hook /bin/sh failed", "not done after 1 s"],
            ),
        ] {
            let began = Instant::now();
            let error = engine.attach_devices("c", &id("d"), edits, None).unwrap_err();
            let line = crate::engine::chain(&error).to_string();
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
            assert_eq!(confined.all(), before, "{line}");
            assert!(began.elapsed() < Duration::from_secs(10), "{line}");
            assert_eq!(listed(&engine), []);
        }
        let legacy = confined.container.engine();
        let error = legacy.attach_devices("c", &id("d"), base(), None).unwrap_err();
        assert!(matches!(error, EngineError::Devices(DevicesError::NotUnified)), "{error}");
    });
}

#[test]
fn privileged_what_is_in_use_stays_unless_it_is_taken_lazily() {
    on_host(|dir| {
        let confined = Confined::start(dir, "used");
        let engine = confined.engine();
        engine.attach_devices("c", &id("d"), vendor(dir), None).unwrap();
        for file in ["/dev/vendor/ctl", "/lib/vendor/libvendor.so.1"] {
            let (all, mut held) =
                (confined.all(), confined.command(&format!("exec 9<{file}; exec sleep 60")).spawn().unwrap());
            wait_for(|| fs::read(format!("/proc/{}/comm", held.id())).is_ok_and(|name| name == b"sleep\n"));
            let Detached { detached, users } = engine.detach("c", &id("d"), false).unwrap();
            assert!(!detached);
            assert_eq!(
                (users.len(), users[0].command.as_str(), users[0].how.to_string().as_str()),
                (1, "sleep", "fd 9")
            );
            // Nobody is denied it for a moment, either.
            let mut opener = confined.command("while : </dev/vendor/ctl; do :; done").spawn().unwrap();
            for _ in 0..20 {
                assert!(!engine.detach("c", &id("d"), false).unwrap().detached);
            }
            opener.kill().unwrap();
            let said = String::from_utf8(opener.wait_with_output().unwrap().stderr).unwrap();
            assert_eq!(said, "");
            confined.opens("<", "/dev/vendor/ctl").unwrap();
            assert_eq!(confined.all().1, all.1);
            assert_eq!(listed(&engine), [Given { id: id("d"), there: true }]);
            let Detached { detached, users } = engine.detach("c", &id("d"), true).unwrap();
            assert!(detached && users.len() == 1 && !confined.container.has(file), "{users:?}");
            held.kill().unwrap();
            held.wait().unwrap();
            engine.attach_devices("c", &id("d"), vendor(dir), None).unwrap();
        }
    });
}

/// A process that is to hold something takes its time to begin.
fn wait_for(is: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < until, "it did not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn privileged_what_two_devices_share_goes_with_the_last() {
    on_host(|dir| {
        let confined = Confined::start(dir, "shared");
        let engine = confined.engine();
        let before = confined.all();
        let shared = vendor(dir);
        let own = |at: &str| Edits { nodes: vec![kmsg(at), kmsg("/dev/vendor/ctl")], ..shared.clone() };
        engine.attach_devices("c", &id("a"), own("/dev/vendor/0"), None).unwrap();
        let one = confined.container.mounts();
        engine.attach_devices("c", &id("b"), own("/dev/vendor/1"), None).unwrap();
        assert_eq!(confined.container.mounts(), one);
        assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
        assert!(!confined.container.has("/dev/vendor/0"));
        confined.opens("<", "/dev/vendor/1").unwrap();
        confined.opens("<", "/dev/vendor/ctl").unwrap();
        assert_eq!(confined.container.mounts(), one);
        assert_eq!(listed(&engine), [Given { id: id("b"), there: true }]);
        // Another file at the same place is none that is shared.
        let mut other = shared.clone();
        other.mounts[0].source = dir.join("firmware/blob");
        let error = engine.attach_devices("c", &id("c"), other, None).unwrap_err();
        assert!(error.to_string().contains("occupied by a file of attached devices"), "{error}");
        assert_eq!(engine.detach("c", &id("b"), false).unwrap(), gone());
        assert_eq!(confined.all(), before);
    });
}

#[test]
fn privileged_a_capsule_and_its_devices_come_and_go_together() {
    on_host(|dir| {
        let confined = Confined::start(dir, "capsule");
        let engine = confined.engine();
        let before = confined.all();
        let capsule = |target: &str| spec("d", content(dir, "1", &["UTC"]), target, Mode::Ro);
        let occupied = engine.attach_devices("c", &id("d"), vendor(dir), Some(capsule("/data"))).unwrap_err();
        assert!(matches!(occupied, EngineError::Occupied { .. }), "{occupied}");
        assert_eq!(confined.all(), before);
        let attached =
            engine.attach_devices("c", &id("d"), vendor(dir), Some(capsule("/opt/zones"))).unwrap();
        assert!(attached.unwrap().mounted && confined.container.has("/dev/vendor/ctl"));
        assert_eq!(listed(&engine), [], "it is the capsule's");
        // The capsule is in use: its devices are given back.
        let held = confined.container.spawn("exec 9</opt/zones/UTC; echo ready; exec sleep 60");
        let busy = engine.detach("c", &id("d"), false).unwrap();
        assert!(!busy.detached && busy.users.len() == 1, "{busy:?}");
        confined.opens("<", "/dev/vendor/ctl").unwrap();
        assert!(engine.list(Some("c")).unwrap().0[0].mounted);
        drop(held);
        assert_eq!(engine.detach("c", &id("d"), false).unwrap(), gone());
        assert_eq!(confined.all(), before);
    });
}

#[test]
fn privileged_a_program_that_somebody_replaced_is_put_right_and_calls_cut_off_are_undone() {
    on_host(|dir| {
        let confined = Confined::start(dir, "repair");
        let engine = confined.engine();
        let before = confined.all();
        engine.attach_devices("c", &id("d"), vendor(dir), None).unwrap();
        let cgroup = DeviceCgroup::open(&confined.cgroup).unwrap();
        let [ours] = cgroup.attached().unwrap().programs[..] else { panic!() };
        // As a runtime's update: its own program, and ours detached.
        drop(attach_program_of_runc(&cgroup));
        cgroup.detach(&DeviceProgram::open(ours).unwrap()).unwrap();
        assert!(confined.opens("<", "/dev/vendor/ctl").unwrap_err().contains(DENIED));
        assert_eq!(engine.apply_devices("c").unwrap().loaded.len(), 1);
        confined.opens("<", "/dev/vendor/ctl").unwrap();
        assert_eq!(engine.apply_devices("c").unwrap(), Default::default());
        // A shim that died in the middle of an attach or detach.
        for state in [State::Attaching, State::Detaching] {
            let journal = confined.container.bundle.join("capsule-hotplug.json");
            let text = fs::read_to_string(&journal).unwrap();
            let half = text.replace("\"attached\"", &format!("\"{}\"", format!("{state:?}").to_lowercase()));
            assert_ne!(half, text);
            fs::write(&journal, half).unwrap();
            assert_eq!(listed(&engine), []);
            assert_eq!(confined.all(), before);
            engine.attach_devices("c", &id("d"), vendor(dir), None).unwrap();
        }
    });
}

#[test]
fn privileged_a_scope_around_the_containers_own_control_group_is_its_own_too() {
    on_host(|dir| {
        let scope = new_cgroup("hotplug-crun.scope");
        let outer = DeviceCgroup::open(&scope).unwrap();
        drop(attach_program_of_runc(&outer));
        let tags = || outer.attached().unwrap().programs.iter().map(|id| tag(*id)).collect::<Vec<_>>();
        let inner = scope.join("container");
        fs::create_dir(&inner).unwrap();
        {
            let confined = Confined::start_in(dir, inner);
            let (engine, before) = (confined.engine(), (confined.all(), tags()));
            engine.attach_devices("c", &id("d"), vendor(dir), None).unwrap();
            confined.opens("<", "/dev/vendor/ctl").unwrap();
            assert_ne!(tags(), before.1);
            assert_eq!(engine.detach("c", &id("d"), false).unwrap(), gone());
            assert_eq!((confined.all(), tags()), before);
            let failing = Edits { nodes: vec![kmsg("/bin/sh")], ..Edits::default() };
            engine.attach_devices("c", &id("d"), failing, None).unwrap_err();
            assert_eq!((confined.all(), tags()), before);
        }
        fs::remove_dir(&scope).unwrap();
    });
}

fn tag(id: overlayfs_utils::ProgramId) -> ProgramTag {
    DeviceProgram::open(id).unwrap().info().unwrap().tag
}
