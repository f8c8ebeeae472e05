//! What setup has done is taken back, and nothing else.

use super::super::change::Change;
use super::super::record::{Record, Recorded};
use super::*;

/// A configuration with setup's changes, and the record of it.
fn done(text: &str) -> (String, Recorded) {
    let edited = plan(&[file("/c.toml", text)], &wanted("2.1")).unwrap().remove(0);
    let mut record = Record::default();
    record.add(&edited, Some("/c.toml.before-capsule".into()));
    (edited.after.unwrap(), record.files.remove(0))
}

/// What an undo makes of this text, and the names of what it keeps.
fn undone(recorded: &Recorded, text: &str, backup: Option<&str>) -> (Option<String>, Vec<String>) {
    let taken_back = recorded.take_back(&file("/c.toml", text), backup);
    let after = match taken_back.edited {
        Some(edited) => edited.after,
        None => Some(text.to_owned()),
    };
    (after, taken_back.kept.iter().map(Change::name).collect())
}

const OTHER: &str = "version = 3\n# mine\n[proxy_plugins.capsule]\n  address = \"/old.sock\"\n[proxy_plugins.other]\n  type = \"snapshot\"\n";

#[test]
fn untouched_it_is_what_it_was() {
    let (text, recorded) = done(OTHER);
    assert_eq!(undone(&recorded, &text, Some(OTHER)), (Some(OTHER.to_owned()), Vec::new()));
    // The backup is not needed for that.
    assert_eq!(undone(&recorded, &text, None), (Some(OTHER.to_owned()), Vec::new()));
}

#[test]
fn what_others_have_changed_elsewhere_stays() {
    let (text, recorded) = done(OTHER);
    let changed = text
        .replace("# mine", "# yours")
        .replace("[proxy_plugins.other]", "[debug]\nlevel = \"debug\"\n[proxy_plugins.other]");
    let (after, kept) = undone(&recorded, &changed, Some(OTHER));
    let expected = OTHER
        .replace("# mine", "# yours")
        .replace("[proxy_plugins.other]", "[debug]\nlevel = \"debug\"\n[proxy_plugins.other]");
    assert_eq!((after.as_deref(), kept), (Some(expected.as_str()), Vec::new()));
}

#[test]
fn what_others_have_changed_of_ours_stays_and_is_named() {
    let (text, recorded) = done("version = 3\n");
    for (from, to, names) in [
        ("address = \"/run/capsule/capsuled.sock\"", "address = \"/other.sock\"", "[proxy_plugins.capsule]"),
        (
            "  snapshotter = \"overlayfs\"\n",
            "  snapshotter = \"zfs\"\n",
            "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]",
        ),
        (
            "SystemdCgroup = true\n",
            "SystemdCgroup = true\n  BinaryName = \"crun\"\n",
            "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.capsule]",
        ),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let (after, kept) = undone(&recorded, &changed, None);
        let after = after.unwrap();
        assert_eq!(kept, [names], "{after}");
        assert!(after.contains(to), "{after}");
        // The two others are gone.
        assert_eq!(after.matches("# Resource Capsules").count(), 1, "{after}");
        assert!(after.parse::<Table>().is_ok());
    }
    let (text, recorded) = done(OTHER);
    let changed = text.replace("/run/capsule/capsuled.sock", "/theirs.sock");
    let (after, kept) = undone(&recorded, &changed, None);
    assert_eq!(kept, ["proxy_plugins.capsule.address"]);
    assert_eq!(after.unwrap(), OTHER.replace("/old.sock", "/theirs.sock"));
}

#[test]
fn what_others_have_taken_back_is_no_matter() {
    let (_, recorded) = done(OTHER);
    assert_eq!(undone(&recorded, OTHER, None), (Some(OTHER.to_owned()), Vec::new()));
    let gone = ConfigFile { path: "/c.toml".into(), text: None };
    assert!(recorded.take_back(&gone, None).edited.is_none());
}

#[test]
fn a_file_that_setup_made_goes_unless_something_was_added() {
    let none = ConfigFile { path: "/c.toml".into(), text: None };
    let edited = plan(&[none], &wanted("2.1")).unwrap().remove(0);
    let mut record = Record::default();
    record.add(&edited, Some("/c.toml.before-capsule".into()));
    let text = edited.after.unwrap();
    assert_eq!(undone(&record.files[0], &text, None), (None, Vec::new()));
    let more = format!("{text}\n[debug]\nlevel = \"debug\"\n");
    let (after, kept) = undone(&record.files[0], &more, None);
    assert!(kept.is_empty());
    assert_eq!(after.as_deref().map(str::trim), Some("version = 3\n\n[debug]\nlevel = \"debug\""));
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let (_, recorded) = done(OTHER);
    let mut record = Record::default();
    record.files.push(recorded);
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    assert!(serde_json::from_str::<Record>(&text.replace("inserted", "invented")).is_err());
}
