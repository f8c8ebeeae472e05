//! Devices that somebody else denies, or that cannot be taken back at once.

use std::{os::unix::fs::symlink, sync::Mutex};

use overlayfs_utils::DeviceCgroup;

use super::devices::{Confined, hook, kmsg, listed, path};
use super::*;
use crate::{
    devices::tests::kernel::{attach_program_of_runc, new_cgroup},
    hotplug::{
        Runtime,
        edits::{Edits, Node},
        notices::Kind,
    },
    oci::RuntimeError,
    seccomp::{Denied, RecordError},
};

/// `/dev/mem`, for reading.
fn mem() -> Edits {
    Edits { nodes: vec![Node { minor: 1, ..kmsg("/dev/vendor/mem") }], ..Edits::default() }
}

fn ctl() -> Edits {
    Edits { nodes: vec![kmsg("/dev/vendor/ctl")], ..Edits::default() }
}

#[test]
fn privileged_devices_that_a_group_above_denies_are_told_once_and_can_be_taken_one_by_one() {
    on_host(|dir| {
        let above = new_cgroup("denied-above");
        let group = above.join("c");
        fs::create_dir(&group).unwrap();
        {
            let confined = Confined::start_in(dir, group);
            let (engine, before) = (confined.engine(), confined.all());
            engine.attach_devices("c", &id("ctl"), ctl(), None).unwrap();
            engine.attach_devices("c", &id("mem"), mem(), None).unwrap();
            assert!(listed(&engine).iter().all(|given| given.there));
            drop(attach_program_of_runc(&DeviceCgroup::open(&above).unwrap()));
            for _ in 0..2 {
                assert!(listed(&engine).iter().all(|given| !given.there));
            }
            let told = engine.notices().take_after(Some("c"), 0);
            let of: Vec<&str> = told.iter().map(|notice| notice.attachment.as_str()).collect();
            assert_eq!(of, ["ctl", "mem"], "once each: {told:?}");
            assert!(told.iter().all(|notice| notice.kind == Kind::Denied));
            assert!(told[0].text.contains("of a control group above the container's"), "{told:?}");
            // Nothing can be given, and everything taken.
            let more =
                Edits { nodes: vec![Node { minor: 4, ..kmsg("/dev/vendor/port") }], ..Edits::default() };
            engine.attach_devices("c", &id("port"), more, None).unwrap_err();
            assert_eq!(engine.detach("c", &id("ctl"), false).unwrap(), gone());
            assert_eq!(engine.detach("c", &id("mem"), false).unwrap(), gone());
            assert_eq!(confined.all(), before);
        }
        fs::remove_dir(&above).unwrap();
    });
}

/// A control group that cannot be found for a while stands for whatever keeps a program from being replaced.
#[test]
fn privileged_what_cannot_be_taken_back_is_not_forgotten() {
    on_host(|dir| {
        let confined = Confined::start(dir, "kept");
        let link = dir.join("cgroup");
        symlink(&confined.cgroup, &link).unwrap();
        let live = LiveTask { cgroup: Some(link.clone()), ..confined.container.live() };
        let engine = Engine::new(Arc::new(One(live)), Kernel::known(LayersBy::Descriptor));
        let before = confined.all();
        let gone_while_it_fails = hook(&format!("rm {}; exit 1", link.display()), None);
        let edits = Edits { hooks: vec![gone_while_it_fails], ..ctl() };
        engine.attach_devices("c", &id("d"), edits.clone(), None).unwrap_err();
        assert_ne!(confined.all(), before, "the program allows it still");
        // It is not taken for one that is there.
        engine.attach_devices("c", &id("d"), edits, None).unwrap_err();
        symlink(&confined.cgroup, &link).unwrap();
        assert_eq!(listed(&engine), []);
        assert_eq!(confined.all(), before);
        engine.attach_devices("c", &id("d"), ctl(), None).unwrap();
        confined.opens("<", path("/dev/vendor/ctl").as_str()).unwrap();
        assert_eq!(engine.detach("c", &id("d"), false).unwrap(), gone());
    });
}

/// What a runtime was told.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl Runtime for Told {
    fn update(&self, resources: &[u8]) -> Result<(), RuntimeError> {
        self.0.lock().unwrap().push(String::from_utf8(resources.to_vec()).unwrap());
        Ok(())
    }

    fn check_denials(&self, _: &Denied) -> Result<(), RecordError> {
        Ok(())
    }
}

#[test]
fn privileged_an_update_says_nothing_of_devices_while_some_are_attached() {
    on_host(|dir| {
        let confined = Confined::start(dir, "update");
        let told = Arc::new(Told::default());
        let (cgroup, runtime) = (Some(confined.cgroup.clone()), told.clone());
        let live = LiveTask { cgroup, runtime, ..confined.container.live() };
        let engine = Engine::new(Arc::new(One(live)), Kernel::known(LayersBy::Descriptor));
        // As the kubelet's: the whole of `linux.resources`.
        let request = r#"{"devices":[{"allow":false,"access":"rwm"}],"memory":{"limit":1048576}}"#;
        let update = || engine.update("c", request.as_bytes(), told.as_ref()).unwrap();
        update();
        engine.attach_devices("c", &id("d"), ctl(), None).unwrap();
        update();
        assert_eq!(*told.0.lock().unwrap(), [request, r#"{"memory":{"limit":1048576}}"#]);
        confined.opens("<", "/dev/vendor/ctl").unwrap();
    });
}
