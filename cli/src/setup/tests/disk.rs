//! Files: links, modes, imports, and what is written beside them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;

use super::super::files::{Configuration, write};
use super::super::record::path_of;
use super::*;

pub(super) fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    folder
}

pub(super) fn text(folder: &TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).unwrap()
}

pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn there_and_back() {
    let folder = folder(&[("config.toml", DEBIAN)]);
    let main = folder.path().join("config.toml");
    fs::set_permissions(&main, fs::Permissions::from_mode(0o640)).unwrap();
    prepare(&main, &wanted("2.1")).unwrap().write().unwrap();
    assert!(text(&folder, "config.toml").contains("[proxy_plugins.capsule]"));
    assert_eq!(text(&folder, "config.toml.before-capsule"), DEBIAN);
    assert_eq!(names(folder.path()).len(), 3);
    for name in names(folder.path()) {
        let mode = fs::metadata(folder.path().join(&name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o640, "{name}");
    }
    assert!(prepare(&main, &wanted("2.1")).unwrap().edited.is_empty());
    let undo = prepare_undo(&main).unwrap();
    assert!(undo.has_record() && undo.kept.is_empty());
    undo.write().unwrap();
    assert_eq!(
        (text(&folder, "config.toml").as_str(), names(folder.path())),
        (DEBIAN, vec!["config.toml".to_owned()])
    );
    assert!(!prepare_undo(&main).unwrap().has_record());
}

#[test]
fn a_second_setup_adds_to_the_first() {
    let folder = folder(&[("config.toml", DEBIAN)]);
    let main = folder.path().join("config.toml");
    prepare(&main, &Wanted { cri: Some(false), ..wanted("2.1") }).unwrap().write().unwrap();
    prepare(&main, &wanted("2.1")).unwrap().write().unwrap();
    assert_eq!(text(&folder, "config.toml.before-capsule"), DEBIAN);
    prepare_undo(&main).unwrap().write().unwrap();
    assert_eq!(text(&folder, "config.toml"), DEBIAN);
    // With something of somebody else's in between, the backup is not it any more.
    prepare(&main, &Wanted { cri: Some(false), ..wanted("2.1") }).unwrap().write().unwrap();
    let mut theirs = text(&folder, "config.toml");
    theirs.insert_str(0, "# theirs\n");
    fs::write(&main, theirs).unwrap();
    prepare(&main, &wanted("2.1")).unwrap().write().unwrap();
    prepare_undo(&main).unwrap().write().unwrap();
    assert_eq!(text(&folder, "config.toml"), format!("# theirs\n{DEBIAN}"));
}

#[test]
fn what_stays_is_on_record_until_it_is_gone() {
    let folder = folder(&[("config.toml", DEBIAN)]);
    let main = folder.path().join("config.toml");
    prepare(&main, &wanted("2.1")).unwrap().write().unwrap();
    let changed = text(&folder, "config.toml").replace("/run/capsule/capsuled.sock", "/theirs.sock");
    fs::write(&main, &changed).unwrap();
    let undo = prepare_undo(&main).unwrap();
    assert_eq!(undo.kept, [format!("[proxy_plugins.capsule] in {}", main.display())]);
    undo.write().unwrap();
    let left = text(&folder, "config.toml");
    assert!(left.contains("/theirs.sock") && !left.contains("unpack_config"), "{left}");
    fs::write(&main, left.replace("/theirs.sock", "/run/capsule/capsuled.sock")).unwrap();
    let undo = prepare_undo(&main).unwrap();
    assert!(undo.kept.is_empty());
    undo.write().unwrap();
    assert_eq!((text(&folder, "config.toml").as_str(), names(folder.path()).len()), (DEBIAN, 1));
}

#[test]
fn a_link_stays_one_and_a_missing_folder_is_made() {
    let folder = folder(&[("real/c.toml", DEBIAN)]);
    let link = folder.path().join("config.toml");
    symlink("real/c.toml", &link).unwrap();
    prepare(&link, &wanted("2.1")).unwrap().write().unwrap();
    assert!(link.is_symlink() && text(&folder, "real/c.toml").contains("proxy_plugins"));
    prepare_undo(&link).unwrap().write().unwrap();
    assert_eq!(text(&folder, "real/c.toml"), DEBIAN);
    let new = folder.path().join("etc/containerd/config.toml");
    prepare(&new, &wanted("2.1")).unwrap().write().unwrap();
    assert_eq!(meaning(&fs::read_to_string(&new).unwrap()), meaning(SHIPPED_2));
    prepare_undo(&new).unwrap().write().unwrap();
    assert!(!new.exists() && !path_of(&new).exists());
}

#[test]
fn what_changes_meanwhile_is_not_overwritten() {
    let folder = folder(&[("config.toml", DEBIAN)]);
    let main = folder.path().join("config.toml");
    let prepared = prepare(&main, &wanted("2.1")).unwrap();
    fs::write(&main, "version = 2\n").unwrap();
    assert!(matches!(prepared.write(), Err(SetupError::Changed { .. })));
    assert_eq!((text(&folder, "config.toml").as_str(), names(folder.path()).len()), ("version = 2\n", 1));
}

#[test]
fn imports_are_found_in_containerds_order() {
    let main = "version = 3\nimports = [\"conf.d/*.toml\", \"./one.toml\", \"*/deep/x*.toml\"]\n";
    let folder = folder(&[
        ("config.toml", main),
        ("conf.d/b.toml", "imports = [\"../config.toml\", \"inner.toml\"]\n"),
        ("conf.d/a.toml", ""),
        ("conf.d/inner.toml", ""),
        ("conf.d/c.conf", "no TOML"),
        ("one.toml", ""),
        ("z/deep/x1.toml", ""),
        ("z/deep/y.toml", "no TOML"),
    ]);
    let read = Configuration::read(&folder.path().join("config.toml")).unwrap();
    let root = folder.path();
    let found: Vec<String> = read
        .files
        .iter()
        .map(|file| file.path.strip_prefix(root).unwrap_or(&file.path).display().to_string())
        .collect();
    let names =
        ["config.toml", "conf.d/a.toml", "conf.d/b.toml", "conf.d/inner.toml", "one.toml", "z/deep/x1.toml"];
    assert_eq!(found, names);
}

#[test]
fn nothing_that_is_written_beside_is_imported() {
    let folder = folder(&[("config.toml", "version = 3\nimports = [\"*\"]\n")]);
    let error = prepare(&folder.path().join("config.toml"), &wanted("2.1")).unwrap_err().to_string();
    assert!(error.contains("before-capsule") && error.contains("*.toml"), "{error}");
    assert_eq!(names(folder.path()), ["config.toml"]);
    let missing = self::folder(&[("config.toml", "version = 3\nimports = [\"/no/such.toml\"]\n")]);
    let error = prepare(&missing.path().join("config.toml"), &wanted("2.1")).unwrap_err().to_string();
    assert!(error.contains("/no/such.toml") && error.contains("imported"), "{error}");
}

#[test]
fn a_file_is_replaced_whole() {
    let folder = folder(&[("a", "old")]);
    let file = folder.path().join("a");
    write(&file, "new", &file).unwrap();
    assert_eq!((text(&folder, "a").as_str(), names(folder.path()).len()), ("new", 1));
    fs::create_dir(folder.path().join("taken")).unwrap();
    assert!(write(&folder.path().join("taken"), "new", &file).is_err());
    assert_eq!(names(folder.path()), ["a", "taken"]);
}
