//! Attachments that are written to.

use std::{fs::File, process::Command};

use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::hotplug::model::UpperPlace;

fn writable(spec: Spec, upper: UpperPlace) -> Spec {
    Spec { upper: Some(upper), ..spec }
}

fn directory(dir: &Path) -> UpperPlace {
    let path = dir.join("written");
    fs::create_dir_all(&path).unwrap();
    UpperPlace::Directory(path)
}

fn image(dir: &Path) -> UpperPlace {
    let path = dir.join("image.ext4");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    assert!(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path).status().unwrap().success());
    UpperPlace::Image(path)
}

/// Whether anything was mounted or unmounted since the table was opened (proc_pid_mountinfo(5)): a shim that is killed at
/// any instant leaves what is mounted then.
fn changed(table: &File) -> bool {
    let mut tables = [PollFd::new(table, PollFlags::PRI)];
    poll(&mut tables, Some(&rustix::time::Timespec::default())).unwrap();
    tables[0].revents().contains(PollFlags::PRI)
}

#[test]
fn privileged_what_is_written_is_there_the_next_time() {
    type Place = fn(&Path) -> UpperPlace;
    let places = [directory as Place, image as Place];
    let ways = places.iter().flat_map(|place| LayersBy::ALL.map(|by| (*place, by)));
    for (place, by) in ways {
        on_host(|dir| {
            let container = Container::start(dir, "");
            let engine = container.engine_by(by);
            let (mounts, tree) = (container.mounts(), container.tree());
            let host = File::open("/proc/thread-self/mountinfo").unwrap();
            let content = content(dir, "1", &["UTC", "old"]);
            let place = place(dir);
            let spec = |id, mode| writable(spec(id, content.clone(), "/usr/share/keep", mode), place.clone());
            engine.attach("c", spec("a", Mode::Ro)).unwrap();
            assert!(!changed(&host), "nothing of it was ever mounted on the host: {by:?}");
            container.run("echo mine >/usr/share/keep/UTC && echo new >/usr/share/keep/new && busybox rm /usr/share/keep/old");
            let other = super::content(dir, "2", &["UTC"]);
            let refused = engine.replace("c", &id("a"), other).unwrap_err();
            assert!(matches!(refused, EngineError::Writable(_)), "{refused}");
            assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
            assert_eq!((container.mounts(), container.tree()), (mounts, tree));
            // The other mode has the same place for what is written.
            engine.attach("c", spec("b", Mode::Union)).unwrap();
            for (file, text) in
                [("UTC", Some("mine\n")), ("new", Some("new\n")), ("old", None), ("file", Some("image"))]
            {
                let found = container.read(&format!("/usr/share/keep/{file}"));
                assert_eq!(found.as_deref(), text, "{file} {by:?}");
            }
            engine.detach("c", &id("b"), false).unwrap();
        });
    }
}

#[test]
fn privileged_what_drains_is_not_written_to_by_two() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let spec = writable(spec("a", content(dir, "1", &["UTC"]), "/opt", Mode::Ro), directory(dir));
        engine.attach("c", spec.clone()).unwrap();
        let user = container.spawn("exec 7>/opt/log; echo ready; exec sleep 600");
        assert_eq!(engine.detach("c", &id("a"), true).unwrap().users.len(), 1);
        let refused = engine.attach("c", spec.clone()).unwrap_err();
        assert!(matches!(refused, EngineError::StillWritten(_)), "{refused}");
        drop(user);
        engine.attach("c", spec).unwrap();
        assert!(container.has("/opt/log"));
    });
}

#[test]
fn privileged_each_hierarchy_is_written_to_in_its_own_place() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let tools = content(dir, "1", &["usr/bin/strace", "opt/x"]);
        engine.attach("c", writable(spec("a", tools, "/", Mode::Union), directory(dir))).unwrap();
        container.run("echo 1 >/opt/made && echo 2 >/usr/bin/made && echo 3 >/usr/lib/made");
        let written = |path: &str| fs::read_to_string(dir.join("written/upper").join(path)).ok();
        assert_eq!(written("opt/made").as_deref(), Some("1\n"));
        assert_eq!(written("usr/bin/made").as_deref(), Some("2\n"));
        // A union covers the whole of a hierarchy: what is written beside the capsule's files is the attachment's too.
        assert_eq!(written("usr/lib/made").as_deref(), Some("3\n"));
    });
}

#[test]
fn privileged_the_owners_of_what_is_written_are_the_containers() {
    on_host(|dir| {
        use std::os::unix::fs::MetadataExt;
        let container = Container::start_in_user_namespace(dir);
        let content = content(dir, "1", &["UTC"]);
        let wanted = writable(spec("a", content, "/opt/zones", Mode::Ro), directory(dir));
        for by in [LayersBy::Path, LayersBy::Joined] {
            let refused = container.engine_by(by).attach("c", wanted.clone()).unwrap_err();
            assert!(matches!(refused, EngineError::Owners), "{refused}");
        }
        container.engine().attach("c", wanted).unwrap();
        container.run("echo mine >/opt/zones/UTC && echo new >/opt/zones/new");
        for file in ["UTC", "new"] {
            assert_eq!(fs::metadata(dir.join("written/upper").join(file)).unwrap().uid(), 0, "{file}");
        }
    });
}

#[test]
fn privileged_a_place_that_is_not_there_changes_nothing() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let (mounts, tree) = (container.mounts(), container.tree());
        let content = content(dir, "1", &["UTC"]);
        for place in [UpperPlace::Directory(dir.join("missing")), UpperPlace::Image(dir.join("missing"))] {
            let wanted = writable(spec("a", content.clone(), "/opt/zones", Mode::Ro), place);
            engine.attach("c", wanted).unwrap_err();
        }
        assert_eq!((container.mounts(), container.tree()), (mounts, tree));
        assert_eq!(engine.list(None).unwrap(), (vec![], vec![]));
    });
}
