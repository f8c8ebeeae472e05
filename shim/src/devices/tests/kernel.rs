//! Real devices, opened by a process in a real control group.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use overlayfs_utils::{DeviceCgroup, DeviceProgram, MountTable};
use serde_json::json;

use super::{
    super::{
        Access, Aim, Applied, Device, DeviceError, DeviceKind, Expected, Grant, Policy, Wish,
        ledger::Grants,
        plan::Refusal,
        program::{NAME, encode_decisions, encode_grants},
        rules::Rule,
        runtime::{Runtime, decisions_of_crun, decisions_of_runc},
    },
    programs::{access, device, rules},
};

const OPERATION_NOT_PERMITTED: &str = "Operation not permitted";

fn apply(
    cgroup: &DeviceCgroup,
    expected: &Expected,
    wanted: &Grants,
    policy: Policy,
) -> Result<Applied, DeviceError> {
    super::super::apply(cgroup, expected, Wish { wanted, policy, aim: Aim::Give })
}

/// A control group with a shell in it that opens what it is told.
struct Container {
    path: PathBuf,
    shell: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Container {
    fn new(name: &str) -> Self {
        let path = new_cgroup(name);
        // Opens for reading, or for both, in a subshell: a redirection that fails ends a shell.
        let script = r#"while read -r mode path; do
            case $mode in r) (: <"$path") ;; rw) (: <>"$path") ;; esac 2>&1 && echo ok
        done"#;
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        fs::write(path.join("cgroup.procs"), shell.id().to_string()).unwrap();
        let (orders, answers) = (shell.stdin.take(), BufReader::new(shell.stdout.take().unwrap()));
        Self { path, shell, orders, answers }
    }

    fn cgroup(&self) -> DeviceCgroup {
        DeviceCgroup::open(&self.path).unwrap()
    }

    /// Whether a process in there can open a device node; every other failure than a denial is one of the test.
    fn opens(&mut self, mode: &str, path: &str) -> bool {
        writeln!(self.orders.as_ref().unwrap(), "{mode} {path}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(line == "ok\n" || line.contains(OPERATION_NOT_PERMITTED), "{path}: {line}");
        line == "ok\n"
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.shell.wait();
        let _ = fs::remove_dir(&self.path);
    }
}

fn node(path: &str) -> Option<Device> {
    let found = fs::metadata(path).ok()?;
    let number = found.rdev();
    Some(Device {
        kind: DeviceKind::Char,
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    })
}

fn grants(devices: impl IntoIterator<Item = (Device, &'static str)>) -> Grants {
    devices.into_iter().map(|(device, text)| Grant { device, access: access(text) }).collect()
}

/// Rules that allow nothing that is there, so many.
fn useless_rules(count: u32) -> Vec<Rule> {
    let rule = |minor| Rule {
        allow: true,
        kind: Some(DeviceKind::Char),
        major: Some(240),
        minor: Some(minor),
        access: if minor % 3 == 0 { access("r") } else { Access::ALL },
    };
    (0..count).map(rule).collect()
}

/// A control group of the tests in the unified hierarchy, wherever that is mounted.
pub fn new_cgroup(name: &str) -> PathBuf {
    let table = MountTable::parse(&fs::read("/proc/self/mountinfo").unwrap()).unwrap();
    let unified = table.entries().iter().find(|mount| mount.filesystem == "cgroup2").unwrap();
    let path = unified.mount_point.join(format!("test-devices-{}-{name}", std::process::id()));
    fs::create_dir(&path).unwrap();
    path
}

/// Gives a control group the program of runc's for a container without rules of its own.
pub fn attach_program_of_runc(cgroup: &DeviceCgroup) -> DeviceProgram {
    let code = encode_decisions(&decisions_of_runc(&[], &[]).unwrap(), Runtime::Runc);
    let program = DeviceProgram::load("", &code).unwrap();
    cgroup.attach(&program).unwrap();
    program
}

/// Puts a runtime's program there as the runtime does it.
fn start(container: &Container, list: &[Rule], runtime: Runtime) -> DeviceProgram {
    let decisions = match runtime {
        Runtime::Runc => decisions_of_runc(list, &[]).unwrap(),
        Runtime::Crun => decisions_of_crun(list),
    };
    let program = DeviceProgram::load("", &encode_decisions(&decisions, runtime)).unwrap();
    container.cgroup().attach(&program).unwrap();
    program
}

#[test]
fn privileged_devices_open_after_they_are_given_and_not_before_or_afterwards() {
    for runtime in [Runtime::Runc, Runtime::Crun] {
        for count in [1, 64, 512] {
            let mut container = Container::new(&format!("{runtime:?}-{count}"));
            let list = useless_rules(count);
            let theirs = start(&container, &list, runtime).info().unwrap();
            let (cgroup, expected) = (container.cgroup(), Expected::new(&list, &[]));
            let fuse = node("/dev/fuse");
            // Neither runtime's defaults have these; kmsg is 1:11 on every Linux.
            let wanted: Vec<_> = ["/dev/kmsg", "/dev/fuse", "/dev/loop-control", "/dev/kvm"]
                .into_iter()
                .filter_map(|path| Some((path, node(path)?)))
                .collect();
            assert!(!wanted.is_empty() && wanted[0].1 == device('c', 1, 11));
            for (path, _) in &wanted {
                assert!(!container.opens("r", path), "{path} before");
            }
            assert!(container.opens("rw", "/dev/null") && container.opens("r", "/dev/zero"));

            // As many hot-plugged devices as there are rules, the real ones the last.
            let more = (0..count).map(|minor| (device('c', 241, minor), "rw"));
            let all = grants(more.chain(wanted.iter().map(|(_, device)| (*device, "r"))));
            let applied = apply(&cgroup, &expected, &all, Policy::Refuse).unwrap();
            assert_eq!((applied.loaded.len(), applied.adopted.len()), (1, 0));
            for (path, _) in &wanted {
                assert!(container.opens("r", path), "{path} with {count} rules");
            }
            if fuse.is_some() {
                assert!(!container.opens("rw", "/dev/fuse"), "given for reading only");
            }
            assert!(container.opens("rw", "/dev/null") && container.opens("r", "/dev/full"));
            let again = apply(&cgroup, &expected, &all, Policy::Refuse).unwrap();
            assert_eq!(again, Applied::default(), "nothing left to do");

            let back = apply(&cgroup, &expected, &Grants::default(), Policy::Refuse).unwrap();
            let program = DeviceProgram::open(back.loaded[0]).unwrap().info().unwrap();
            assert_eq!((program.tag, program.instructions), (theirs.tag, theirs.instructions.clone()));
            for (path, _) in &wanted {
                assert!(!container.opens("r", path), "{path} afterwards");
            }
            assert!(container.opens("rw", "/dev/null"));
        }
    }
}

#[test]
fn privileged_a_program_that_came_in_between_keeps_its_say() {
    let mut container = Container::new("foreign");
    drop(start(&container, &[], Runtime::Runc));
    let (cgroup, expected) = (container.cgroup(), Expected::new(&[], &[]));
    let kmsg = grants([(device('c', 1, 11), "r")]);
    apply(&cgroup, &expected, &kmsg, Policy::Refuse).unwrap();

    // Somebody's program that allows /dev/full alone, beside ours.
    let list = rules(
        &json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rwm"}]),
    );
    let mut decisions = decisions_of_crun(&list);
    decisions.conditions.drain(..13);
    let strict = DeviceProgram::load("strict", &encode_decisions(&decisions, Runtime::Runc)).unwrap();
    cgroup.attach(&strict).unwrap();
    assert!(
        !container.opens("r", "/dev/kmsg")
            && !container.opens("r", "/dev/zero")
            && container.opens("r", "/dev/full")
    );

    let before = cgroup.attached().unwrap().programs;
    let refused = apply(&cgroup, &expected, &kmsg, Policy::Refuse).unwrap_err();
    assert!(
        matches!(&refused, DeviceError::Refused(Refusal::Foreign { name, .. }) if name == "strict"),
        "{refused}"
    );
    assert_eq!(cgroup.attached().unwrap().programs, before);

    let merged = apply(&cgroup, &expected, &kmsg, Policy::Merge).unwrap();
    assert_eq!(merged.adopted.iter().map(|one| one.id).collect::<Vec<_>>(), [strict.info().unwrap().id]);
    assert!(container.opens("r", "/dev/kmsg") && container.opens("r", "/dev/full"));
    assert!(!container.opens("r", "/dev/zero"), "what they deny is denied");

    // The runtime's update, as runc does it with two programs: its own, and every other detached.
    let updated = start(&container, &[], Runtime::Runc);
    for id in cgroup.attached().unwrap().programs {
        if id != updated.info().unwrap().id {
            cgroup.detach(&DeviceProgram::open(id).unwrap()).unwrap();
        }
    }
    assert!(!container.opens("r", "/dev/kmsg"));
    let repaired = apply(&cgroup, &expected, &kmsg, Policy::Refuse).unwrap();
    assert_eq!((repaired.loaded.len(), repaired.adopted.len()), (1, 0));
    assert!(container.opens("r", "/dev/kmsg"));
}

/// As systemd does it at each reload: it knows nothing of what took its program's place.
#[test]
fn privileged_a_program_that_is_put_there_again_and_again_is_there_once() {
    let mut container = Container::new("again");
    let theirs = start(&container, &[], Runtime::Runc).info().unwrap();
    let (cgroup, expected) = (container.cgroup(), Expected::new(&[], &[]));
    let open =
        DeviceProgram::load("theirs", &encode_decisions(&decisions_of_crun(&[]), Runtime::Crun)).unwrap();
    cgroup.attach(&open).unwrap();
    let kmsg = grants([(device('c', 1, 11), "r")]);
    apply(&cgroup, &expected, &kmsg, Policy::Merge).unwrap();
    for _ in 0..70 {
        drop(start(&container, &[], Runtime::Runc));
        assert!(!container.opens("r", "/dev/kmsg"));
        apply(&cgroup, &expected, &kmsg, Policy::Merge).unwrap();
        assert!(container.opens("r", "/dev/kmsg") && container.opens("r", "/dev/zero"));
        assert_eq!(cgroup.attached().unwrap().programs.len(), 2);
    }
    apply(&cgroup, &expected, &Grants::default(), Policy::Merge).unwrap();
    let tags: Vec<_> = cgroup
        .attached()
        .unwrap()
        .programs
        .into_iter()
        .map(|id| DeviceProgram::open(id).unwrap().info().unwrap().tag)
        .collect();
    assert_eq!(tags.len(), 2);
    assert!(tags.contains(&theirs.tag) && tags.contains(&open.info().unwrap().tag));
    // Equal programs of others are theirs.
    for name in ["one", "two"] {
        let code = encode_decisions(&decisions_of_crun(&[]), Runtime::Crun);
        cgroup.attach(&DeviceProgram::load(name, &code).unwrap()).unwrap();
    }
    let before = cgroup.attached().unwrap().programs.len();
    apply(&cgroup, &expected, &Grants::default(), Policy::Merge).unwrap();
    assert!(before - cgroup.attached().unwrap().programs.len() <= 1);
}

#[test]
fn privileged_a_control_group_above_has_its_say() {
    let mut container = Container::new("above");
    drop(start(&container, &[], Runtime::Runc));
    // The container is one further down, with a program of its own.
    let inner = container.path.join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("cgroup.procs"), container.shell.id().to_string()).unwrap();
    let cgroup = DeviceCgroup::open(&inner).unwrap();
    let decisions = decisions_of_crun(&rules(&json!([{"allow": true, "access": "rwm"}])));
    let open = DeviceProgram::load("", &encode_decisions(&decisions, Runtime::Crun)).unwrap();
    cgroup.attach(&open).unwrap();
    let refused = apply(&cgroup, &Expected::default(), &grants([(device('c', 1, 11), "r")]), Policy::Merge)
        .unwrap_err();
    assert!(matches!(refused, DeviceError::Refused(Refusal::Above { .. })), "{refused}");
    assert_eq!(cgroup.attached().unwrap().programs, [open.info().unwrap().id]);
    assert!(!container.opens("r", "/dev/kmsg") && container.opens("r", "/dev/zero"));
    drop(container.orders.take());
    container.shell.wait().unwrap();
    fs::remove_dir(&inner).unwrap();
}

#[test]
fn privileged_a_failure_in_the_middle_leaves_what_was_there() {
    let container = Container::new("undo");
    drop(start(&container, &[], Runtime::Runc));
    let cgroup = container.cgroup();
    // 64 programs, of which none can be replaced.
    let allow = [
        overlayfs_utils::Instruction::new(0xb7, 0, 0, 0, 1),
        overlayfs_utils::Instruction::new(0x95, 0, 0, 0, 0),
    ];
    let programs: Vec<_> = (0..63).map(|_| DeviceProgram::load("more", &allow).unwrap()).collect();
    programs.iter().for_each(|program| cgroup.attach(program).unwrap());
    let before = cgroup.attached().unwrap();
    let kmsg = grants([(device('c', 1, 11), "r")]);
    let error = apply(&cgroup, &Expected::new(&[], &[]), &kmsg, Policy::Merge).unwrap_err();
    assert!(
        matches!(&error, DeviceError::Kernel(cause) if cause.errno() == rustix::io::Errno::TOOBIG),
        "{error:?}"
    );
    assert_eq!(cgroup.attached().unwrap(), before);
    // A control group that has gone is no matter of looking again.
    programs.iter().for_each(|program| cgroup.detach(program).unwrap());
    drop(container);
    let error = apply(&cgroup, &Expected::new(&[], &[]), &kmsg, Policy::Merge).unwrap_err();
    assert!(matches!(&error, DeviceError::Kernel(cause) if cause.is_gone()), "{error:?}");
}

/// Somebody replaces the program as fast as they can while devices come and go: no call leaves another state than its own, and
/// what they allow is allowed at each instant.
#[test]
fn privileged_two_that_change_programs_at_once_both_get_their_way() {
    let mut container = Container::new("race");
    drop(start(&container, &[], Runtime::Runc));
    let (cgroup, expected) = (container.cgroup(), Expected::new(&[], &[]));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let kmsg = grants([(device('c', 1, 11), "r")]);
    let nothing = Grants::default();
    let (outcomes, updates) = std::thread::scope(|scope| {
        let runtime = scope.spawn(|| {
            let cgroup = container.cgroup();
            let base = encode_decisions(&decisions_of_runc(&[], &[]).unwrap(), Runtime::Runc);
            let mut updates = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let [id] = cgroup.attached().unwrap().programs[..] else { return -1 };
                let Ok(old) = DeviceProgram::open(id) else { continue };
                let new = DeviceProgram::load("", &base).unwrap();
                updates += i32::from(cgroup.replace(&old, &new).is_ok());
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            updates
        });
        let turns = (0..300).flat_map(|_| [&kmsg, &nothing]);
        let outcomes: Vec<_> =
            turns.map(|wanted| apply(&cgroup, &expected, wanted, Policy::Refuse)).collect();
        // Before anything is asserted: the other thread waits for it.
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (outcomes, runtime.join().unwrap())
    });
    let (applied, failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    let failed: Vec<_> = failed.into_iter().filter_map(Result::err).collect();
    assert!(failed.iter().all(|error| matches!(error, DeviceError::Restless)), "{failed:?}");
    assert!(applied.len() > 300 && updates > 20, "{} applied, {updates} updates, {failed:?}", applied.len());
    apply(&cgroup, &expected, &kmsg, Policy::Refuse).unwrap();
    assert!(container.opens("r", "/dev/kmsg"));
}

#[test]
fn privileged_the_kernel_takes_thousands_of_devices() {
    let base = encode_decisions(&decisions_of_runc(&useless_rules(4096), &[]).unwrap(), Runtime::Runc);
    let many = (0..4096).map(|minor| (device('b', 259, minor), "rw"));
    let program = encode_grants(&grants(many), &base);
    let loaded = DeviceProgram::load(NAME, &program).unwrap().info().unwrap();
    assert_eq!(loaded.instructions.as_deref(), Some(&program[..]));
}

#[test]
fn the_test_knows_the_nodes_that_it_opens() {
    assert_eq!(node("/dev/null"), Some(device('c', 1, 3)));
    assert!(!Path::new("/dev/none").exists() && node("/dev/none").is_none());
}
