//! Device programs on the real kernel, in a control group of each test's own.

#![allow(clippy::unwrap_used)] // tests

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use overlayfs_utils::{BpfStep, DeviceCgroup, DeviceProgram, Instruction, MountTable, Sharing};
use rustix::io::Errno;

/// `r0 = answer; exit`.
fn constant(answer: i32) -> [Instruction; 2] {
    [Instruction::new(0xb7, 0, 0, 0, answer), Instruction::new(0x95, 0, 0, 0, 0)]
}

fn load(answer: i32) -> DeviceProgram {
    DeviceProgram::load("test", &constant(answer)).unwrap()
}

/// A control group, removed with all that is in it when the test ends.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Self {
        let table = MountTable::parse(&fs::read("/proc/self/mountinfo").unwrap()).unwrap();
        let unified = table.entries().iter().find(|mount| mount.filesystem == "cgroup2");
        let root = unified.unwrap().mount_point.clone();
        let path = Path::new(&root).join(format!("test-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn open(&self) -> DeviceCgroup {
        DeviceCgroup::open(&self.0).unwrap()
    }

    /// How a process in it fares that opens /dev/zero.
    fn opens_zero(&self) -> bool {
        let mut child = Command::new("sh")
            .args(["-c", "read go; head -c 1 /dev/zero"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        fs::write(self.0.join("cgroup.procs"), child.id().to_string()).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let mut read = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(child.wait().unwrap().success(), !read.is_empty());
        !read.is_empty()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn privileged_all_programs_must_allow_and_a_replaced_one_has_no_say() {
    let group = Group::new("all");
    let cgroup = group.open();
    assert_eq!(cgroup.attached().unwrap().programs, []);
    assert!(group.opens_zero());
    let (allow, deny) = (load(1), load(0));
    cgroup.attach(&allow).unwrap();
    assert!(group.opens_zero());
    cgroup.attach(&deny).unwrap();
    assert!(!group.opens_zero());
    let (allow_id, deny_id) = (allow.info().unwrap().id, deny.info().unwrap().id);
    let attached = cgroup.attached().unwrap();
    assert_eq!((attached.programs, attached.sharing), (vec![allow_id, deny_id], Sharing::Shared));

    let other = load(1);
    cgroup.replace(&deny, &other).unwrap();
    assert!(group.opens_zero());
    assert_eq!(cgroup.attached().unwrap().programs, [allow_id, other.info().unwrap().id]);
    assert_eq!(cgroup.effective().unwrap().len(), 2);
    cgroup.detach(&allow).unwrap();
    cgroup.detach(&other).unwrap();
    assert_eq!(cgroup.attached().unwrap().programs, []);
}

#[test]
fn privileged_what_has_gone_is_said_to_have_gone() {
    let group = Group::new("gone");
    let cgroup = group.open();
    let (first, second, third) = (load(1), load(0), load(1));
    cgroup.attach(&first).unwrap();
    cgroup.replace(&first, &second).unwrap();
    for error in [cgroup.replace(&first, &third).unwrap_err(), cgroup.detach(&first).unwrap_err()] {
        assert!(error.is_gone(), "{error:?}");
        assert!(error.to_string().contains(&group.0.display().to_string()), "{error}");
    }
    // The same program twice is refused, and nothing has changed by any of it.
    let twice = cgroup.attach(&second).unwrap_err();
    assert_eq!((twice.step, twice.errno()), (BpfStep::Attach, Errno::INVAL));
    assert_eq!(cgroup.attached().unwrap().programs, [second.info().unwrap().id]);
    cgroup.detach(&second).unwrap();
    // An id of a program that is not loaded any more.
    let id = third.info().unwrap().id;
    assert_eq!(DeviceProgram::open(id).unwrap().info().unwrap(), third.info().unwrap());
    drop(third);
    assert!((0..100).any(|_| {
        // The kernel frees it a moment later.
        std::thread::sleep(std::time::Duration::from_millis(10));
        DeviceProgram::open(id).is_err_and(|error| error.is_gone())
    }));
    fs::remove_dir(&group.0).unwrap();
    assert!(cgroup.attached().unwrap_err().is_gone());
    assert!(cgroup.attach(&first).unwrap_err().is_gone());
}

#[test]
fn privileged_a_program_is_read_back_as_it_was_loaded() {
    let program = DeviceProgram::load("a.name_15_bytes", &constant(1)).unwrap();
    let info = program.info().unwrap();
    assert_eq!(info.instructions.as_deref(), Some(&constant(1)[..]));
    assert_eq!((info.name.as_str(), info.map_count), ("a.name_15_bytes", 0));
    assert_eq!(info.tag, load(1).info().unwrap().tag);
    assert_ne!(info.tag, load(0).info().unwrap().tag);
    assert!(!info.loaded_at.is_zero());
}

#[test]
fn privileged_the_verifier_says_why() {
    let error = DeviceProgram::load("test", &constant(1)[1..]).unwrap_err();
    assert_eq!((error.step, error.errno()), (BpfStep::Load, Errno::ACCESS));
    assert!(error.to_string().contains("R0 !read_ok"), "{error}");
    for name in ["a-b", "sixteen_bytes_16", "a\0b\0c"] {
        assert_eq!(DeviceProgram::load(name, &constant(1)).unwrap_err().errno(), Errno::INVAL, "{name}");
    }
    assert!(DeviceProgram::load("test", &[]).is_err());
}

#[test]
fn privileged_only_version_2_has_device_programs() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = DeviceCgroup::open(directory.path()).unwrap();
    assert_eq!(elsewhere.attached().unwrap_err().errno(), Errno::BADF);
    assert_eq!(elsewhere.attach(&load(1)).unwrap_err().errno(), Errno::BADF);
    assert!(DeviceCgroup::open(&directory.path().join("none")).unwrap_err().is_gone());
    File::create(directory.path().join("file")).unwrap();
    let error = DeviceCgroup::open(&directory.path().join("file")).unwrap_err();
    assert_eq!((error.step, error.errno()), (BpfStep::OpenCgroup, Errno::NOTDIR));
}

#[test]
fn privileged_sixty_four_programs_are_all() {
    let group = Group::new("full");
    let cgroup = group.open();
    let programs: Vec<_> = (0..64).map(|_| load(1)).collect();
    for program in &programs {
        cgroup.attach(program).unwrap();
    }
    let more = load(1);
    assert_eq!(cgroup.attach(&more).unwrap_err().errno(), Errno::TOOBIG);
    // Nor can one be replaced then, though none would be added.
    assert_eq!(cgroup.replace(&programs[3], &more).unwrap_err().errno(), Errno::TOOBIG);
    assert_eq!(cgroup.attached().unwrap().programs.len(), 64);
}
