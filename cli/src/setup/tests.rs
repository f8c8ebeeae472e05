//! Texts in, texts out; and files on a disk.

mod backups;
mod disk;
mod undo;

use std::path::PathBuf;

use toml::{Table, Value};

use super::document::{Parsed, path, pruned};
use super::plan::{ConfigFile, plan};
use super::*;
use crate::host::Release;

const SHIPPED_1_7: &str = include_str!("../../../configs/containerd-1.7.toml");
const SHIPPED_2: &str = include_str!("../../../configs/containerd-2.toml");

/// As Debian ships it, with both releases.
const DEBIAN: &str = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      \
                      bin_dir = \"/usr/lib/cni\"\n  [plugins.\"io.containerd.internal.v1.opt\"]\n    path = \"/var/lib/containerd/opt\"\n";

fn release(text: &str) -> Release {
    text.parse().unwrap()
}

fn wanted(version: &str) -> Wanted {
    Wanted {
        release: release(version),
        snapshotter: "capsule".to_owned(),
        address: "/run/capsule/capsuled.sock".to_owned(),
        root: "/var/lib/capsule".to_owned(),
        remap_ids: true,
        cri: None,
        systemd: Systemd::Fits(true),
    }
}

fn file(name: &str, text: &str) -> ConfigFile {
    ConfigFile { path: PathBuf::from(name), text: Some(text.to_owned()) }
}

/// What becomes of a configuration of one file; its own text when nothing is to be changed. Whatever is changed: a second time
/// nothing is, every line of before is still there in its order, and each change can be taken back to the byte.
fn after(text: &str, wanted: &Wanted) -> String {
    let edited = plan(&[file("/c.toml", text)], wanted).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let Some(edited) = edited.first() else { return text.to_owned() };
    let after = edited.after.clone().unwrap();
    assert!(plan(&[file("/c.toml", &after)], wanted).unwrap().is_empty(), "not settled: {after}");
    let mut lines = after.lines();
    let replaced = |line: &str| {
        edited.changes.iter().any(|change| matches!(change, change::Change::Replaced { before, .. } if line.contains(before.lines().next().unwrap_or_default())))
    };
    for line in text.lines().filter(|line| !replaced(line)) {
        assert!(lines.any(|other| other == line), "{line:?} is gone: {after}");
    }
    let back = edited.changes.iter().rev().try_fold(after.clone(), |text, change| change.take_back(&text));
    assert_eq!(back.as_deref(), Some(text), "not taken back: {after}");
    after
}

fn refusal(text: &str, wanted: &Wanted) -> String {
    plan(&[file("/c.toml", text)], wanted).expect_err(text).to_string()
}

fn meaning(text: &str) -> Table {
    pruned(&text.parse().unwrap())
}

fn at<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    document::value_at(table, &path(keys))
}

#[test]
fn an_empty_file_becomes_what_is_shipped() {
    let asked = |version| Wanted { cri: Some(true), systemd: Systemd::Asked(true), ..wanted(version) };
    for (version, shipped) in
        [("1.7", SHIPPED_1_7), ("2.0", SHIPPED_2), ("2.1", SHIPPED_2), ("2.4", SHIPPED_2)]
    {
        for text in ["", "\n\n", "# nothing yet\n", "# nothing yet"] {
            assert_eq!(meaning(&after(text, &asked(version))), meaning(shipped), "{version}: {text:?}");
        }
    }
    // What is shipped needs nothing more.
    assert_eq!(after(SHIPPED_1_7, &asked("1.7")), SHIPPED_1_7);
    assert_eq!(after(SHIPPED_2, &asked("2.1")), SHIPPED_2);
}

#[test]
fn a_file_that_is_not_there_is_made() {
    let none = ConfigFile { path: "/c.toml".into(), text: None };
    let edited = plan(&[none], &wanted("2.1")).unwrap();
    assert!(edited[0].before.is_none() && meaning(edited[0].after.as_deref().unwrap()) == meaning(SHIPPED_2));
}

#[test]
fn what_is_there_stays_and_what_is_missing_comes() {
    for version in ["1.7", "2.1"] {
        let after = after(DEBIAN, &wanted(version));
        let text = meaning(&after);
        let cri = ["plugins", CRI_2];
        assert_eq!(
            at(&text, &[&cri[..], &["cni", "bin_dir"]].concat()),
            Some(&"/usr/lib/cni".into()),
            "{after}"
        );
        let handler = [&cri[..], &["containerd", "runtimes", "capsule"]].concat();
        assert_eq!(at(&text, &handler).unwrap()["runtime_type"], RUNTIME.into());
        assert!(
            after.contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.capsule.options]")
        );
        let capabilities = at(&text, &["proxy_plugins", "capsule", "capabilities"]);
        assert_eq!(capabilities.is_some(), version != "1.7", "{after}");
    }
}

#[test]
fn a_list_of_snapshotters_is_made_longer_in_its_form() {
    let element = |name: &str| {
        format!(
            "[[plugins.\"{TRANSFER}\".unpack_config]]\n      differ = \"\"\n      snapshotter = \"{name}\"\n"
        )
    };
    let names = |text: &str| -> Vec<String> {
        let text = meaning(text);
        let list = at(&text, &["plugins", TRANSFER, "unpack_config"]).unwrap().as_array().unwrap();
        list.iter().map(|one| one["snapshotter"].as_str().unwrap().to_owned()).collect()
    };
    for (text, expected) in [
        ("version = 2\n".to_owned(), vec!["overlayfs", "capsule"]),
        (
            format!(
                "version = 2\n[plugins]\n  [plugins.\"{TRANSFER}\"]\n    config_path = \"\"\n\n    {}\n[proxy_plugins]\n",
                element("overlayfs")
            ),
            vec!["overlayfs", "capsule"],
        ),
        (
            format!("version = 2\n{}{}# end", element("native"), element("zfs")),
            vec!["native", "zfs", "capsule"],
        ),
        (format!("version = 2\n{}", element("zfs").trim_end()), vec!["zfs", "capsule"]),
        (
            format!("version = 2\n{}{}", element("capsule"), element("overlayfs")),
            vec!["capsule", "overlayfs"],
        ),
        (format!("version = 3\n[plugins.'{TRANSFER}']\nunpack_config = []\n"), vec!["capsule"]),
        (
            format!(
                "version = 3\n[plugins.'{TRANSFER}']\nunpack_config = [\n  {{snapshotter = 'zfs', platform = 'linux'}}, # why\n]\n"
            ),
            vec!["zfs", "capsule"],
        ),
    ] {
        assert_eq!(names(&after(&text, &wanted("2.1"))), expected, "{text}");
    }
}

#[test]
fn a_list_in_one_value_keeps_its_form() {
    for (list, longer) in [
        ("[]", "['x']"),
        ("[ # none\n]", "['x' # none\n]"),
        ("['a', \"b\"]", "['a', \"b\", 'x']"),
        ("['a',]", "['a','x']"),
        ("[\n  'a', # why\n]", "[\n  'a', # why\n  'x',\n]"),
        ("[\r\n  'a' # ]\r\n]", "[\r\n  'a', 'x' # ]\r\n]"),
    ] {
        let found = document::longer(list, &"x".into()).unwrap();
        assert_eq!(found.replace('"', "'"), longer.replace('"', "'"), "{list}");
    }
    assert_eq!(document::longer("7", &"x".into()), None);
}

#[test]
fn other_values_of_ours_are_replaced_and_other_keys_stay() {
    let text = "version = 3\n[proxy_plugins]\n  [proxy_plugins.capsule] # mine\n    type = \"snapshot\"\n    address = \"/old.sock\" # old\n    \
                platform = \"linux/amd64\"\n  [proxy_plugins.other]\n    address = \"/other.sock\"\n";
    let changed = after(text, &wanted("2.1"));
    assert!(
        changed.contains("    address = \"/run/capsule/capsuled.sock\" # old\n    platform"),
        "{changed}"
    );
    assert!(
        changed.contains("[proxy_plugins.capsule] # mine\n  capabilities = [\"remap-ids\"]\n    type"),
        "{changed}"
    );
    let rebase = "version = 3\n[proxy_plugins.capsule]\ncapabilities = [\"rebase\"]\n";
    assert!(after(rebase, &wanted("2.1")).contains("capabilities = [\"remap-ids\"]"));
    let mapped = "version = 2\n[proxy_plugins.capsule]\ncapabilities = [\"remap-ids\"]\n";
    assert!(after(mapped, &wanted("1.7")).contains("capabilities = []"));
}

#[test]
fn the_capability_is_what_capsuled_does() {
    let capabilities = |text: &str, remap_ids| {
        let text = meaning(&after(text, &Wanted { remap_ids, ..wanted("2.1") }));
        let list = at(&text, &["proxy_plugins", "capsule", "capabilities"])?.as_array()?;
        Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>())
    };
    let with = |list: &str| format!("version = 3\n[proxy_plugins.capsule]\ncapabilities = {list}\n");
    let mapped = Some(vec!["remap-ids".to_owned()]);
    assert_eq!((capabilities("", true), capabilities("", false)), (mapped.clone(), None));
    assert_eq!(
        (capabilities(&with("[]"), true), capabilities(&with("[]"), false)),
        (mapped, Some(Vec::new()))
    );
    for list in ["['remap-ids']", "['rebase']"] {
        assert_eq!(capabilities(&with(list), false), Some(Vec::new()), "{list}");
    }
}

#[test]
fn handlers_of_others_stay_and_ours_is_completed() {
    let runtimes = format!("plugins.'{CRI_3}'.containerd.runtimes");
    let text = format!(
        "version = 3\n[{runtimes}.runc]\nruntime_type = 'io.containerd.runc.v2'\n[{runtimes}.runc.options]\nSystemdCgroup = true\n\
         [{runtimes}.capsule]\nruntime_type = 'io.containerd.runc.v2'\npod_annotations = ['x.io/*']\nprivileged = true\n"
    );
    let completed = meaning(&after(&text, &wanted("2.1")));
    let runtimes = at(&completed, &["plugins", CRI_3, "containerd", "runtimes"]).unwrap();
    assert_eq!(runtimes["runc"]["options"]["SystemdCgroup"], true.into());
    let ours = &runtimes["capsule"];
    assert_eq!((&ours["runtime_type"], &ours["privileged"]), (&RUNTIME.into(), &true.into()));
    assert_eq!(ours["pod_annotations"], Value::from(vec!["x.io/*", ANNOTATIONS]));
    // The shim by its path: docs/runtime.md.
    let by_path = text.replace("privileged = true", &format!("runtime_path = '/usr/bin/{SHIM}'"));
    let kept = meaning(&after(&by_path, &wanted("2.1")));
    let ours = at(&kept, &["plugins", CRI_3, "containerd", "runtimes", "capsule"]).unwrap();
    assert_eq!(ours["runtime_type"], "io.containerd.runc.v2".into());
}

/// containerd 1.7 forgets its own runtimes where a file has one.
#[test]
fn the_default_runtime_is_not_lost() {
    let runtimes = |text: &str, version| {
        let text = meaning(&after(text, &wanted(version)));
        let table = at(&text, &["plugins", CRI_2, "containerd", "runtimes"]).unwrap().as_table().unwrap();
        table.keys().cloned().collect::<Vec<_>>()
    };
    let containerd = format!("version = 2\n[plugins.\"{CRI_2}\".containerd]\n");
    for text in [DEBIAN, containerd.as_str(), &format!("{containerd}default_runtime_name = \"runc\"\n")] {
        assert_eq!(runtimes(text, "1.7"), ["capsule", "runc"], "{text}");
        assert_eq!(runtimes(text, "2.1"), ["capsule"], "{text}");
    }
    let other = format!(
        "{containerd}default_runtime_name = \"crun\"\n[plugins.\"{CRI_2}\".containerd.runtimes.crun]\n  runtime_type = \"x\"\n"
    );
    assert_eq!(runtimes(&other, "1.7"), ["capsule", "crun"]);
    let by_hand =
        format!("version = 2\n[plugins.\"{CRI_2}\".containerd.runtimes.runc]\n  runtime_type = \"mine\"\n");
    assert!(after(&by_hand, &wanted("1.7")).contains("runtime_type = \"mine\""));
}

#[test]
fn systemd_is_changed_only_when_asked_for() {
    let options = format!("[plugins.'{CRI_3}'.containerd.runtimes.capsule.options]");
    let text = format!("version = 3\n{options}\nSystemdCgroup = false\n");
    let value = |systemd| {
        let text = meaning(&after(&text, &Wanted { systemd, ..wanted("2.1") }));
        at(&text, &["plugins", CRI_3, "containerd", "runtimes", "capsule", "options", "SystemdCgroup"])
            .cloned()
    };
    assert_eq!(value(Systemd::Fits(true)), Some(false.into()));
    assert_eq!(value(Systemd::Asked(true)), Some(true.into()));
}

#[test]
fn kubernetes_has_a_handler_unless_it_is_off() {
    let has = |text: &str, cri| after(text, &Wanted { cri, ..wanted("2.1") }).contains("runtimes.capsule");
    let off = format!("version = 3\ndisabled_plugins = [\"{CRI_2}\"]\n");
    assert!(has("version = 3\n", None) && !has(&off, None));
    assert!(!has("version = 3\n", Some(false)) && has(&off, Some(true)));
    assert!(!has(&off.replace(CRI_2, CRI_3), None));
}

#[test]
fn lines_end_as_they_did() {
    let dos = after(&DEBIAN.replace('\n', "\r\n"), &wanted("1.7"));
    assert!(!dos.replace("\r\n", "").contains('\n'), "{dos:?}");
    let unix = after(DEBIAN, &wanted("1.7"));
    assert!(!unix.contains('\r'));
    assert_eq!(meaning(&dos), meaning(&unix));
    let open = after(DEBIAN.trim_end(), &wanted("2.1"));
    assert!(open.contains("path = \"/var/lib/containerd/opt\"\n\n# Resource Capsules"), "{open}");
}

#[test]
fn what_cannot_be_understood_is_refused_with_what_to_do() {
    for (text, version, words) in [
        ("version = ", "2.1", &["is no TOML", "/c.toml"][..]),
        (
            "disabled_plugins = [\"cri\"]\n",
            "2.1",
            &["names no version", "version = 2", "io.containerd.grpc.v1.cri"],
        ),
        ("version = 1\n", "1.7", &["of version 1"]),
        ("version = 5\n", "2.1", &["of version 5"]),
        ("version = \"2\"\n", "2.1", &["of version \"2\""]),
        ("version = 3\n", "1.7", &["containerd 1.7 does not read", "config default"]),
        ("version = 4\n", "2.1", &["version 4", "containerd 2.1"]),
        (
            "version = 3\nproxy_plugins = {}\n",
            "2.1",
            &["by hand", "proxy_plugins.capsule", "/run/capsule/capsuled.sock"],
        ),
        (
            "version = 3\n[proxy_plugins]\ncapsule.type = 'snapshot'\n",
            "2.1",
            &["proxy_plugins.capsule.address", "by hand"],
        ),
        ("version = 3\nproxy_plugins = 7\n", "2.1", &["by hand"]),
        (
            "version = 3\n[plugins]\n'io.containerd.transfer.v1.local' = {}\n",
            "2.1",
            &["unpack_config", "by hand"],
        ),
    ] {
        let said = refusal(text, &wanted(version));
        assert!(
            said.lines().count() == 1 && words.iter().all(|word| said.contains(word)),
            "{text:?}: {said}"
        );
    }
}

#[test]
fn the_word_of_what_is_imported_counts_as_it_does_for_containerd() {
    let main = |version| file("/c.toml", version);
    let transfer = format!("[plugins.'{TRANSFER}']\nmax_concurrent_downloads = 7\n");
    let list = format!("[[plugins.'{TRANSFER}'.unpack_config]]\nsnapshotter = 'zfs'\n");
    let changed = |files: &[ConfigFile], version| -> Vec<(String, String)> {
        let edited = plan(files, &wanted(version)).unwrap();
        edited.into_iter().map(|e| (e.path.display().to_string(), e.after.unwrap())).collect()
    };
    // 1.7: the last table of a plugin is the only one.
    let old = changed(&[main("version = 2\n"), file("/d/a.toml", &transfer)], "1.7");
    let [(_, main_text), (dropped, text)] = &old[..] else { panic!("{old:?}") };
    assert!(
        dropped == "/d/a.toml" && text.contains("unpack_config") && !main_text.contains("unpack_config"),
        "{old:?}"
    );
    // 2.x: tables are merged, so the main file's list counts, unless the other has one of its own.
    let new = changed(&[main("version = 3\n"), file("/d/a.toml", &transfer)], "2.1");
    let [(path, _)] = &new[..] else { panic!("{new:?}") };
    assert_eq!(path, "/c.toml");
    let new = changed(&[main("version = 3\n"), file("/d/a.toml", &list)], "2.1");
    let [(_, main_text), (_, text)] = &new[..] else { panic!("{new:?}") };
    assert!(
        !main_text.contains("unpack_config") && !text.contains("overlayfs") && text.contains("'zfs'"),
        "{new:?}"
    );
    // What is ours there already is where it is changed; names are those of the file's version.
    let proxy = "version = 2\n[proxy_plugins.capsule]\ntype = 'snapshot'\naddress = '/old.sock'\n";
    let new = changed(&[main(SHIPPED_2), file("/d/a.toml", proxy)], "2.1");
    let [(path, text)] = &new[..] else { panic!("{new:?}") };
    assert!(path == "/d/a.toml" && !text.contains("/old.sock"), "{new:?}");
    let cri = format!("version = 2\n[plugins.\"{CRI_2}\"]\nenable_selinux = false\n");
    let old = changed(&[main("version = 2\n"), file("/d/a.toml", &cri)], "1.7");
    assert!(old[1].1.contains("runtimes.capsule") && !old[0].1.contains("runtimes.capsule"), "{old:?}");
}

#[test]
fn a_difference_is_as_diff_shows_it() {
    let edited = plan(&[file("/c.toml", DEBIAN)], &wanted("1.7")).unwrap();
    let shown = difference(&edited[0]);
    assert!(shown.starts_with("--- /c.toml\n+++ /c.toml\n@@ -"), "{shown}");
    let removed = shown.lines().skip(2).filter(|line| line.starts_with('-')).count();
    let added = shown.lines().skip(2).filter(|line| line.starts_with('+')).count();
    assert_eq!(
        (removed, added),
        (0, edited[0].after.as_ref().unwrap().lines().count() - DEBIAN.lines().count())
    );
}

#[test]
fn a_name_that_needs_quotes_has_them() {
    for (name, version, expected) in [
        ("capsule", 3, "[a.capsule]"),
        ("a.b", 3, "[a.'a.b']"),
        ("a.b", 2, "[a.\"a.b\"]"),
        ("it's", 3, "[a.\"it's\"]"),
    ] {
        let header = section::header(&path(&["a", name]), version);
        assert_eq!(header, expected);
        assert!(Parsed::parse(&header).unwrap().value(&path(&["a", name])).is_some());
    }
}
