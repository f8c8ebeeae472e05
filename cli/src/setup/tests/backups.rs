//! What others have written is on the disk after an undo, whatever happened in between.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::record::path_of;
use super::disk::{folder, names, text};
use super::*;

const THEIRS: &str = "[debug]\n  level = \"debug\"\n";

fn setup(main: &Path, wanted: &Wanted) {
    prepare(main, wanted).unwrap().write().unwrap();
}

/// Takes it back; says how many changes stay.
fn undo(main: &Path) -> usize {
    let undo = prepare_undo(main).unwrap();
    let kept = undo.kept.len();
    undo.write().unwrap();
    kept
}

/// A folder with a file that setup made, without a handler.
fn made() -> (TempDir, PathBuf) {
    let folder = folder(&[]);
    let main = folder.path().join("config.toml");
    setup(&main, &Wanted { cri: Some(false), ..wanted("2.1") });
    (folder, main)
}

#[test]
fn a_file_that_setup_made_stays_with_what_others_have_added_before_another_setup() {
    let (folder, main) = made();
    fs::write(&main, format!("{}\n{THEIRS}", text(&folder, "config.toml"))).unwrap();
    setup(&main, &wanted("2.1"));
    assert_eq!(undo(&main), 0);
    // Without its version it would be of version 1, which neither containerd nor another setup takes.
    let left = text(&folder, "config.toml");
    assert_eq!(
        left.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n"),
        format!("version = 3\n{}", THEIRS.trim())
    );
    assert_eq!(names(folder.path()), ["config.toml"]);
}

#[test]
fn a_file_that_setup_made_stays_with_what_an_undo_has_kept() {
    let (folder, main) = made();
    let changed = text(&folder, "config.toml").replace("/run/capsule/capsuled.sock", "/theirs.sock");
    fs::write(&main, format!("{changed}\n{THEIRS}")).unwrap();
    for _ in 0..3 {
        assert_eq!(undo(&main), 1);
        let left = text(&folder, "config.toml");
        assert!(left.contains("/theirs.sock") && left.contains(THEIRS), "{left}");
    }
    // Another setup makes it ours no more than before.
    setup(&main, &wanted("2.1"));
    undo(&main);
    assert!(text(&folder, "config.toml").contains(THEIRS));
}

#[test]
fn a_file_that_setup_made_goes_once_nothing_is_in_it() {
    let (folder, main) = made();
    let ours = text(&folder, "config.toml");
    fs::write(&main, ours.replace("/run/capsule/capsuled.sock", "/theirs.sock")).unwrap();
    assert_eq!(undo(&main), 1);
    let left = text(&folder, "config.toml");
    fs::write(&main, left.replace("/theirs.sock", "/run/capsule/capsuled.sock")).unwrap();
    assert_eq!(undo(&main), 0);
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
}

#[test]
fn a_file_that_was_removed_and_made_again_is_removed_again() {
    let folder = folder(&[("config.toml", DEBIAN)]);
    let main = folder.path().join("config.toml");
    setup(&main, &wanted("2.1"));
    fs::remove_file(&main).unwrap();
    setup(&main, &wanted("2.1"));
    assert_eq!(undo(&main), 0);
    // What it was before the first one is still there.
    assert_eq!(names(folder.path()), ["config.toml.before-capsule"]);
    assert_eq!(text(&folder, "config.toml.before-capsule"), DEBIAN);
}

#[test]
fn imported_files_of_the_same_name_are_kept_apart() {
    let list = |name| format!("[[plugins.'{TRANSFER}'.unpack_config]]\nsnapshotter = '{name}'\n");
    let proxy = "version = 2\n[proxy_plugins.capsule]\ntype = 'snapshot'\naddress = '/old.sock'\n".to_owned();
    let files = [
        ("config.toml", "version = 3\nimports = [\"*/x.toml\"]\n".to_owned()),
        ("a/x.toml", proxy),
        ("b/x.toml", format!("version = 3\n{}", list("zfs"))),
    ];
    let folder = folder(&files.each_ref().map(|(name, text)| (*name, text.as_str())));
    let main = folder.path().join("config.toml");
    setup(&main, &wanted("2.1"));
    for (name, before) in &files {
        assert_ne!(&text(&folder, name), before, "{name} is not changed: this tests nothing");
    }
    let backups = names(folder.path()).iter().filter(|name| name.ends_with(".before-capsule")).count();
    assert_eq!(backups, files.len(), "{:?}", names(folder.path()));
    assert_eq!(undo(&main), 0);
    for (name, before) in &files {
        assert_eq!(&text(&folder, name), before, "{name}");
    }
    assert_eq!(names(folder.path()), ["a", "b", "config.toml"]);
}

#[test]
fn a_backup_that_is_there_is_not_overwritten() {
    let folder = folder(&[("config.toml", DEBIAN)]);
    let main = folder.path().join("config.toml");
    setup(&main, &Wanted { cri: Some(false), ..wanted("2.1") });
    let between = text(&folder, "config.toml");
    fs::remove_file(path_of(&main)).unwrap();
    setup(&main, &wanted("2.1"));
    assert_eq!(text(&folder, "config.toml.before-capsule"), DEBIAN);
    assert_eq!(undo(&main), 0);
    assert_eq!(text(&folder, "config.toml"), between);
    assert_eq!(names(folder.path()), ["config.toml", "config.toml.before-capsule"]);
    assert_eq!(text(&folder, "config.toml.before-capsule"), DEBIAN);
}

#[test]
fn a_backup_that_is_another_text_is_neither_used_nor_removed() {
    let folder = folder(&[("config.toml", DEBIAN)]);
    let main = folder.path().join("config.toml");
    for other in [&b"version = 2\n# theirs\n"[..], b"\xff\xfe"] {
        setup(&main, &wanted("2.1"));
        let backup = folder.path().join("config.toml.before-capsule");
        fs::write(&backup, other).unwrap();
        let notes = prepare_undo(&main).unwrap().notes;
        assert!(notes.len() == 1 && notes[0].starts_with(&backup.display().to_string()), "{notes:?}");
        assert_eq!(undo(&main), 0);
        assert_eq!(text(&folder, "config.toml"), DEBIAN);
        assert_eq!(fs::read(&backup).unwrap(), other);
        assert_eq!(names(folder.path()).len(), 2);
        fs::remove_file(&backup).unwrap();
    }
}

#[test]
fn the_backup_of_a_file_that_is_gone_stays() {
    let folder = folder(&[("config.toml", DEBIAN)]);
    let main = folder.path().join("config.toml");
    setup(&main, &wanted("2.1"));
    fs::remove_file(&main).unwrap();
    let backup = folder.path().join("config.toml.before-capsule");
    let said = format!("{} is gone; as it was before setup: {}", main.display(), backup.display());
    assert_eq!(prepare_undo(&main).unwrap().notes, [said]);
    assert_eq!(undo(&main), 0);
    assert_eq!(text(&folder, "config.toml.before-capsule"), DEBIAN);
    assert_eq!(names(folder.path()).len(), 1);
}

#[test]
fn a_backup_that_is_written_meanwhile_is_not_overwritten() {
    let folder = folder(&[("config.toml", DEBIAN)]);
    let main = folder.path().join("config.toml");
    let prepared = prepare(&main, &wanted("2.1")).unwrap();
    fs::write(folder.path().join("config.toml.before-capsule"), "theirs").unwrap();
    assert!(matches!(prepared.write(), Err(SetupError::Changed { .. })));
    assert_eq!(text(&folder, "config.toml"), DEBIAN);
    assert_eq!(text(&folder, "config.toml.before-capsule"), "theirs");
    assert_eq!(names(folder.path()).len(), 2);
    // The next one keeps it under another name.
    setup(&main, &wanted("2.1"));
    assert_eq!(text(&folder, "config.toml.before-capsule.2"), DEBIAN);
    assert_eq!(undo(&main), 0);
    assert_eq!(names(folder.path()), ["config.toml", "config.toml.before-capsule"]);
}

#[test]
fn a_backup_of_a_setup_that_was_interrupted_is_used() {
    let folder = folder(&[("config.toml", DEBIAN), ("config.toml.before-capsule", DEBIAN)]);
    let main = folder.path().join("config.toml");
    setup(&main, &wanted("2.1"));
    assert_eq!(names(folder.path()).len(), 3);
    assert_eq!(undo(&main), 0);
    assert_eq!(names(folder.path()), ["config.toml"]);
}
