//! The definitions that are shipped are those of the types. `CAPSULE_WRITE_DOCS=1 cargo test` writes them.

use std::{fs, path::Path, process::Command};

const FILES: [&str; 2] = ["kustomize/crds.yaml", "helm/resource-capsules/crds/crds.yaml"];

#[test]
fn the_definitions_that_are_shipped_are_those_of_the_types() {
    let ran = Command::new(env!("CARGO_BIN_EXE_capsule-controller")).arg("crds").output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let text = format!(
        "# Made by `capsule-controller crds`: see controller/src/api.\n{}",
        String::from_utf8(ran.stdout).unwrap()
    );
    for file in FILES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(file);
        if std::env::var_os("CAPSULE_WRITE_DOCS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(there, text, "{}: write it again with CAPSULE_WRITE_DOCS=1", path.display());
    }
}
