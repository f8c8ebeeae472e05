use super::*;

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|o| (*o).to_owned()).collect();
    Mount { kind: kind.into(), source: source.into(), options, ..Default::default() }
}

#[test]
fn binds_keep_their_flags_for_the_remount() {
    let expected =
        |recursive, flags, propagation| Plan::Bind { source: "/s".into(), recursive, flags, propagation };
    for (options, plan_) in [
        (&["rbind", "ro"][..], expected(true, MountFlags::RDONLY, None)),
        (&["bind", "rw"], expected(false, MountFlags::empty(), None)),
        (&["rbind", "rprivate", "nosuid"], {
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            expected(true, MountFlags::NOSUID, Some(private))
        }),
    ] {
        assert_eq!(plan(&mount("bind", "/s", options)), Ok(plan_));
    }
}

#[test]
fn a_short_overlay_is_one_call() {
    let plan = plan(&mount("overlay", "overlay", &["index=off", "ro", "lowerdir=/a:/b"])).unwrap();
    let expected = Plan::Options {
        kind: c"overlay".into(),
        source: Source::Named("overlay".into()),
        flags: MountFlags::RDONLY,
        data: c"index=off,lowerdir=/a:/b".into(),
        propagation: None,
        directory: None,
    };
    assert_eq!(plan, expected);
}

#[test]
fn a_file_is_mounted_by_a_loop_device() {
    for (options, direct, flags, data) in [
        (&["loop"][..], false, MountFlags::empty(), c""),
        (&["direct-io", "ro", "noload", "loop"], true, MountFlags::RDONLY, c"noload"),
    ] {
        let source = Source::File { path: "/img".into(), direct };
        let (kind, data, propagation, directory) = (c"ext4".into(), data.into(), None, None);
        let expected = Plan::Options { kind, source, flags, data, propagation, directory };
        assert_eq!(plan(&mount("ext4", "/img", options)), Ok(expected));
    }
    // Without a loop device it is the file system's own.
    let plain = plan(&mount("ext4", "/dev/x", &["direct-io"])).unwrap();
    assert!(matches!(plain, Plan::Options { data, .. } if data.as_c_str() == c"direct-io"));
}

#[test]
fn a_remount_changes_what_is_there() {
    for (kind, options, flags, data) in [
        ("bind", &["remount", "ro"][..], MountFlags::BIND | MountFlags::RDONLY, c""),
        (
            "none",
            &["ro", "nodev", "rbind", "remount"],
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV,
            c"",
        ),
        ("tmpfs", &["remount", "size=1m"], MountFlags::empty(), c"size=1m"),
    ] {
        let expected = Plan::Remount { flags, data: data.into(), propagation: None };
        assert_eq!(plan(&mount(kind, "", options)), Ok(expected));
    }
}

fn lower(layers: impl Iterator<Item = String>) -> String {
    format!("lowerdir={}", layers.collect::<Vec<_>>().join(":"))
}

#[test]
fn many_layers_are_relative_to_the_directory_that_they_are_in() {
    let lower = lower((0..140).map(|i| format!("/var/lib/containerd/snapshots/{i}/fs")));
    let planned = plan(&mount("overlay", "overlay", &["index=off", "upperdir=/u", &lower, "nosuid"]));
    let relative = lower.replace("/var/lib/containerd/snapshots/", "");
    let expected = Plan::Options {
        kind: c"overlay".into(),
        source: Source::Named("overlay".into()),
        flags: MountFlags::NOSUID,
        data: CString::new(format!("index=off,upperdir=/u,{relative}")).unwrap(),
        propagation: None,
        directory: Some("/var/lib/containerd/snapshots".into()),
    };
    assert_eq!(planned, Ok(expected));
}

#[test]
fn what_no_page_holds_goes_layer_by_layer() {
    for (prefix, directory) in [("/s", Some("/s")), ("", None)] {
        let lower = lower((0..450).map(|i| format!("{prefix}/{i:0>20}")));
        let options = ["volatile", "upperdir=/u", &format!("{lower}::{prefix}/data"), "nosuid"];
        let planned = plan(&mount("overlay", "overlay", &options));
        let relative = if directory.is_some() { "" } else { "/" };
        let mut parameters = vec![("volatile".into(), None), ("upperdir".into(), Some("/u".into()))];
        let layer = |i| ("lowerdir+".into(), Some(format!("{relative}{i:0>20}")));
        parameters.extend((0..450).map(layer));
        parameters.push(("datadir+".into(), Some(format!("{relative}data"))));
        let (flags, propagation) = (MountAttrFlags::MOUNT_ATTR_NOSUID, None);
        let directory = directory.map(PathBuf::from);
        assert_eq!(planned, Ok(Plan::Overlay { directory, parameters, flags, propagation }));
    }
}

#[test]
fn a_layer_that_fits_nowhere_is_named() {
    let long = "l".repeat(250);
    let lower = lower((0..20).map(|i| format!("/{i}/{long}/fs")));
    let error = plan(&mount("overlay", "overlay", &[&lower])).unwrap_err();
    assert_eq!(error, PlanError::Layer { length: lower.len(), value: format!("/0/{long}/fs") });
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let long = "x".repeat(PAGE);
    for (mount, error) in [
        (mount("", "", &[]), PlanError::NoType),
        (Mount { target: "/a\0b".into(), ..mount("bind", "/s", &[]) }, PlanError::Nul("/a\0b".into())),
        (mount("bind", "/s", &["loop"]), PlanError::Option("loop".into())),
        (
            mount("bind", "/s", &["remount", "uidmap=0:1:2", "gidmap=0:1:2"]),
            PlanError::Option("remount".into()),
        ),
        (
            mount("ext4", "/s", &["X-containerd.mkfs.fs=ext4"]),
            PlanError::Option("X-containerd.mkfs.fs=ext4".into()),
        ),
        (mount("overlay", "", &["uidmap=0:1:2"]), PlanError::HalfMapping),
        (mount("overlay", "", &["uidmap=0:1:2", "gidmap=0:1:2", "lowerdir=/a/fs:/b/fs"]), PlanError::Apart),
        (mount("overlay", "", &["uidmap=0:1:2", "gidmap=0:1:2"]), PlanError::Apart),
        (mount("tmpfs", "a\0b", &[]), PlanError::Nul("a\0b".into())),
        (mount("ext4", "/dev/x", &[&long]), PlanError::Long(PAGE)),
    ] {
        assert_eq!(plan(&mount), Err(error));
    }
}

#[test]
fn the_layers_of_a_mapped_overlay_are_relative_to_what_is_mapped() {
    let maps = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"];
    let mapping = || IdMapping::parse("0:100000:65536").unwrap();
    for (layers, common, relative) in [
        ("/s/7/fs", "/s/7", "fs"),
        ("/s/12/fs:/s/1/fs", "/s", "12/fs:1/fs"),
        (r"/s\:/1/f\\s:/s\:/2/fs", "/s:", r"1/f\\s:2/fs"),
    ] {
        let lower = format!("lowerdir={layers}");
        let planned = plan(&mount("overlay", "overlay", &[&maps[..], &[&lower, "upperdir=/u"]].concat()));
        let data = CString::new(format!("lowerdir={relative},upperdir=/u")).unwrap();
        let inner = Plan::Options {
            kind: c"overlay".into(),
            source: Source::Named("overlay".into()),
            flags: MountFlags::empty(),
            data,
            propagation: None,
            directory: None,
        };
        let (uids, gids, layers) = (mapping(), mapping(), Some(PathBuf::from(common)));
        assert_eq!(planned, Ok(Plan::Mapped { uids, gids, layers, inner: Box::new(inner) }));
    }
    let bind = plan(&mount("bind", "/s/1/fs", &[&maps[..], &["rbind", "ro"]].concat())).unwrap();
    let inner = plan(&mount("bind", "/s/1/fs", &["rbind", "ro"])).unwrap();
    let (uids, gids) = (mapping(), mapping());
    assert_eq!(bind, Plan::Mapped { uids, gids, layers: None, inner: Box::new(inner) });
}
