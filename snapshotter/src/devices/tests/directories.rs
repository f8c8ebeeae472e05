//! Directories of specs, as they change.

use std::{
    fs::{self, File, FileTimes},
    os::unix::fs::symlink,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::*;

/// Two directories of specs, the second with precedence.
struct Directories {
    root: tempfile::TempDir,
    registry: Registry,
}

impl Directories {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let paths = ["etc", "run"].map(|directory| root.path().join(directory));
        paths.iter().for_each(|path| fs::create_dir(path).unwrap());
        Self { registry: Registry::new(paths.to_vec()), root }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.path().join(file)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
    }

    /// The environment that a device asks for, or why it cannot be had.
    fn env(&self, device: &str) -> Result<String, String> {
        self.registry.resolve(&[device]).map(|edits| edits.env.join(" ")).map_err(|error| error.to_string())
    }

    fn problems(&self) -> Vec<(String, String)> {
        let listing = self.registry.listing();
        let problem = |problem: &Problem| {
            (
                problem.path.strip_prefix(self.root.path()).unwrap().display().to_string(),
                problem.reason.clone(),
            )
        };
        listing.problems().iter().map(problem).collect()
    }
}

#[test]
fn a_later_directory_wins_and_one_bad_file_takes_no_other_away() {
    let dirs = Directories::new();
    dirs.write("etc/a.yaml", &plain("v/c", "one", "FROM=etc"));
    dirs.write("etc/b.json", r#"{"cdiVersion": "0.6.0", "kind": "v/c", "devices": [{"name": "two", "containerEdits": {"env": ["FROM=json"]}}]}"#);
    dirs.write("run/a.yaml", &plain("v/c", "one", "FROM=run"));
    dirs.write("etc/broken.yaml", "cdiVersion: [\n");
    dirs.write("etc/broken.json", "{\n\"cdiVersion\": \"0.6.0\",\n\"kind\": 7}");
    dirs.write("etc/README.txt", "no spec");
    fs::create_dir(dirs.path("etc/folder.yaml")).unwrap();
    symlink("none", dirs.path("etc/dangling.yaml")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dirs.path("run/fifo.json"), rustix::fs::Mode::RUSR).unwrap();
    assert_eq!(dirs.env("v/c=one").unwrap(), "FROM=run");
    assert_eq!(dirs.env("v/c=two").unwrap(), "FROM=json");
    let mut problems = dirs.problems();
    problems.sort();
    let files: Vec<_> = problems.iter().map(|(file, _)| file.as_str()).collect();
    assert_eq!(files, ["etc/broken.json", "etc/broken.yaml", "etc/dangling.yaml", "run/fifo.json"]);
    assert!(problems[0].1.contains("line 3") && problems[3].1.contains("no file"), "{problems:?}");
    assert!(problems.iter().all(|(_, reason)| !reason.contains('\n')));

    let unknown = dirs.env("v/c=three").unwrap_err();
    assert_eq!(
        unknown,
        "v/c=three: this node has v/c=one, v/c=two; some specs could not be used: see `capsulectl devices`"
    );
    assert!(dirs.env("w/c=one").unwrap_err().contains("this node has no devices of w/c"));
    assert!(dirs.env("/dev/null").unwrap_err().contains("write VENDOR/CLASS=NAME"));
}

#[test]
fn two_specs_of_one_directory_with_one_device_take_it_away_and_nothing_else() {
    let dirs = Directories::new();
    let both = |name: &str| {
        plain("v/c", "one", &format!("{name}=0"))
            + &format!("- name: of{name}\n  containerEdits: {{env: [{name}=1]}}\n")
    };
    dirs.write("etc/a.yaml", &both("A"));
    dirs.write("etc/b.yaml", &both("B"));
    assert_eq!((dirs.env("v/c=ofA").unwrap(), dirs.env("v/c=ofB").unwrap()), ("A=1".into(), "B=1".into()));
    assert!(dirs.env("v/c=one").unwrap_err().contains("two specs of one directory"));
    let problems = dirs.problems();
    assert_eq!(problems.len(), 2);
    assert_eq!(problems[0].0, "etc/a.yaml");
    assert!(
        problems[0].1.contains("device v/c=one is also in") && problems[0].1.contains("etc/b.yaml"),
        "{problems:?}"
    );
    // One of a later directory is no party to it; two of a later one hide what is below.
    dirs.write("run/c.yaml", &plain("v/c", "one", "C=1"));
    assert_eq!(dirs.env("v/c=one").unwrap(), "C=1");
    fs::remove_file(dirs.path("etc/b.yaml")).unwrap();
    dirs.write("run/d.yaml", &plain("v/c", "one", "D=1"));
    assert!(dirs.env("v/c=one").unwrap_err().contains("two specs"));
    fs::remove_file(dirs.path("run/c.yaml")).unwrap();
    assert_eq!(dirs.env("v/c=one").unwrap(), "D=1");
}

#[test]
fn every_change_is_seen_and_nothing_is_read_twice_without_one() {
    let dirs = Directories::new();
    dirs.write("etc/a.yaml", &plain("v/c", "one", "N=1"));
    assert_eq!(dirs.env("v/c=one").unwrap(), "N=1");
    // The same size, at once and with the old time.
    let before = fs::metadata(dirs.path("etc/a.yaml")).unwrap().modified().unwrap();
    dirs.write("etc/a.yaml", &plain("v/c", "one", "N=2"));
    File::options()
        .write(true)
        .open(dirs.path("etc/a.yaml"))
        .unwrap()
        .set_times(FileTimes::new().set_modified(before))
        .unwrap();
    assert_eq!(dirs.env("v/c=one").unwrap(), "N=2");
    // By a rename, a new file, a directory that was not there, and a removal.
    dirs.write("etc/new", &plain("v/c", "one", "N=3"));
    fs::rename(dirs.path("etc/new"), dirs.path("etc/a.yaml")).unwrap();
    assert_eq!(dirs.env("v/c=one").unwrap(), "N=3");
    fs::remove_dir(dirs.path("run")).unwrap();
    assert_eq!((dirs.env("v/c=one").unwrap(), dirs.problems()), ("N=3".into(), Vec::new()));
    fs::create_dir(dirs.path("run")).unwrap();
    dirs.write("run/b.yaml", &plain("v/c", "one", "N=4"));
    assert_eq!(dirs.env("v/c=one").unwrap(), "N=4");
    fs::remove_file(dirs.path("run/b.yaml")).unwrap();
    assert_eq!(dirs.env("v/c=one").unwrap(), "N=3");

    std::thread::sleep(Duration::from_millis(150));
    let (first, second) = (dirs.registry.listing(), dirs.registry.listing());
    assert!(Arc::ptr_eq(&first, &second), "read again without a change");
    dirs.write("etc/a.yaml", &plain("v/c", "one", "N=5"));
    assert!(!Arc::ptr_eq(&second, &dirs.registry.listing()));
}

#[test]
fn what_all_devices_share_is_asked_for_once() {
    let dirs = Directories::new();
    dirs.write("etc/nvidia.yaml", NVIDIA);
    dirs.write("etc/other.yaml", &plain("v/c", "one", "A=1"));
    let edits = dirs
        .registry
        .resolve(&["nvidia.com/gpu=0", "v/c=one", "nvidia.com/gpu=0", "nvidia.com/gpu=all"])
        .unwrap();
    let paths: Vec<_> = edits.nodes.iter().map(|node| node.path.as_str()).collect();
    assert_eq!(paths, ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia0", "/dev/nvidia1"]);
    assert_eq!((edits.mounts.len(), edits.hooks.len(), edits.env.len()), (2, 2, 3));
    assert_eq!(edits.intel_rdt.unwrap().clos_id.as_deref(), Some("gpu"));
    assert_eq!(dirs.registry.resolve(&[]).unwrap(), Edits::default());
    let listed: Vec<_> = dirs.registry.listing().devices().map(|device| device.name.to_string()).collect();
    assert_eq!(listed, ["nvidia.com/gpu=0", "nvidia.com/gpu=all", "v/c=one"]);
    // A device whose node the host lacks is named with its file.
    dirs.write("etc/gone.yaml", "cdiVersion: 0.6.0\nkind: v/c\ndevices:\n- name: gone\n  containerEdits: {deviceNodes: [{path: /dev/none}]}\n");
    let gone = dirs.registry.resolve(&["v/c=gone"]).unwrap_err();
    let gone = format!("{gone}: {}", std::error::Error::source(&gone).unwrap());
    assert!(
        gone.starts_with("device v/c=gone of /")
            && gone.contains("etc/gone.yaml cannot be had: cannot look at /dev/none"),
        "{gone}"
    );
}
