//! Versions of one tree: compared, built on each other and from images, and stored once.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use capsule_proto::capsule::v1::{BuildBase, BuildHeader};
use serde_json::Value;

use super::api::Api;
use super::capsulectl::{capsulectl, done, json, refused};
use super::ctr::{OURS, ctr};
use super::world::{World, with_logs};
use super::{random_trees, sharing, storage};
use crate::event::Reporter;
use crate::images::Image;

/// Where trees are.
const FILES: &str = "/var/tmp/versions";
const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("two versions of a tree are published", || {
        OURS.import()?;
        for version in ["1", "2"] {
            publish(&tree(version)?, "t", version, &[])?;
        }
        Ok(((), String::new()))
    })?;
    reporter.check("a difference is told path by path", differences);
    reporter.check("a version that is not unpacked can be compared, and nothing stays pinned", not_unpacked);
    reporter.check("on a base, only what differs is stored, and the tree is the same", on_a_base);
    reporter.check("a delta on a delta, owners, links and attributes", on_a_delta);
    reporter.check("random trees on each other are the same as whole", random_trees::run);
    reporter.check("a base that is another now, incomplete or unknown is refused", wrong_base);
    reporter.check("an image becomes a version with the same layers", from_an_image);
    reporter.check("an image that is unknown or lacks a part is refused by name", wrong_image);
    reporter.check("ten versions take 1.6 times the space of one, and leave nothing", sharing::ten_versions);
    reporter.check("capsules share files, containers' root file systems do not", sharing::only_capsules);
    reporter.check("killed while it shares files, capsuled leaves nothing half-made", || {
        sharing::killed(&mut world)
    });
    reporter.check(
        "what is published again while its last blobs are collected is whole",
        sharing::published_again,
    );
    reporter.check("layers can be discarded once they are unpacked", || sharing::discarded(&mut world));
    world.stop()
}

/// The tree of a version. All that can differ between two does.
fn tree(version: &str) -> Result<PathBuf> {
    let root = Path::new(FILES).join(version);
    let new = version != "1";
    let write = |name: &str, content: &str| -> Result<()> {
        let path = root.join(name);
        fs::create_dir_all(path.parent().context("a parent")?)?;
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    };
    for i in 0..50 {
        write(&format!("same/{i}"), &format!("{i}\n").repeat(300))?;
    }
    write("same/content", if new { "newer" } else { "older" })?;
    write("same/longer", if new { "longer" } else { "short" })?;
    write("mode", "mode")?;
    fs::set_permissions(root.join("mode"), Permissions::from_mode(if new { 0o600 } else { 0o644 }))?;
    symlink(if new { "mode" } else { "same" }, root.join("link"))?;
    if new {
        write("added/deep/file", "added")?;
        write("was-dir", "a file now")?;
        write("was-file/inside", "a directory now")?;
    } else {
        write("gone/deep/file", "gone")?;
        write("was-dir/inside", "a directory")?;
        write("was-file", "a file")?;
    }
    Ok(root)
}

/// Publishes a tree with more options; what `build` says.
pub(super) fn publish(tree: &Path, name: &str, version: &str, options: &[&str]) -> Result<Value> {
    let tree = tree.to_str().context("a path")?;
    let args = ["build", tree, "--name", name, "--version", version, "--target", "/opt/t"];
    json(&[&args[..], options].concat())
}

/// What `diff` shows, as `A PATH`, `D PATH`, `M PATH WHAT,WHAT`.
pub(super) fn diff(from: &str, to: &str) -> Result<BTreeSet<String>> {
    let all = json(&["diff", from, to])?;
    let line = |change: &Value| -> Option<String> {
        let path = change["path"].as_str()?;
        let what: Vec<&str> = change["what"].as_array()?.iter().filter_map(Value::as_str).collect();
        Some(match change["change"].as_str()? {
            "added" => format!("A {path}"),
            "removed" => format!("D {path}"),
            _ => format!("M {path} {}", what.join(",")),
        })
    };
    let changes = all["changes"].as_array().context("changes")?;
    changes.iter().map(|change| line(change).with_context(|| format!("{change}"))).collect()
}

/// Fails unless two versions show the same tree.
pub(super) fn same(one: &str, other: &str) -> Result<()> {
    let found = diff(one, other)?;
    ensure!(found.is_empty(), "{one} and {other}: {found:?}");
    Ok(())
}

/// The sizes of a version's layers, bottom first.
fn layers(version: &str) -> Result<Vec<u64>> {
    let found = json(&["inspect", version])?;
    let layers = found["layers"].as_array().context("layers")?;
    layers.iter().map(|layer| layer["size"].as_u64().context("a size")).collect()
}

fn differences() -> Result<String> {
    let want = [
        "A added",
        "A added/deep",
        "A added/deep/file",
        "D gone",
        "D gone/deep",
        "D gone/deep/file",
        "M link link",
        "M mode mode",
        "M same/content content",
        "M same/longer content",
        "D was-dir/inside",
        "M was-dir kind,mode",
        "M was-file kind,mode",
        "A was-file/inside",
    ];
    let found = diff("t@1", "t@2")?;
    ensure!(found == want.map(str::to_owned).into(), "{found:#?}");
    same("t@1", "t@1")?;
    let text = done(&["diff", "t@1", "t"])?;
    for line in
        ["M same/longer (content 5→6 bytes)", "M mode (mode 644→600)", "D gone/", "M link (link same→mode)"]
    {
        ensure!(text.lines().any(|other| other == line), "{line:?} is not in {text}");
    }
    let last = text.lines().last().unwrap_or_default();
    ensure!(last == "t@1 → t@2: 4 added, 4 removed, 6 modified", "{last}");
    refused(&["diff", "t@1", "t@9"], &["t", "9", "it has"])?;
    Ok(last.to_owned())
}

/// The image of the test container, as a version that nobody has unpacked.
fn not_unpacked() -> Result<String> {
    let archive = Image::Busybox.in_machine();
    let archive = archive.to_str().context("a path")?;
    ctr(&["-n", "capsules", "image", "import", "--no-unpack", archive])?.success("import")?;
    let snapshots = || -> Result<Vec<String>> {
        let list = ctr(&["-n", "capsules", "snapshot", "--snapshotter", "capsule", "ls"])?.success("ls")?;
        Ok(list.lines().skip(1).filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect())
    };
    let before = snapshots()?;
    let found = diff("t@1", "busybox@latest")?;
    ensure!(found.contains("A bin") && found.contains("D same/0"), "{found:?}");
    let new: Vec<String> = snapshots()?.into_iter().filter(|name| !before.contains(name)).collect();
    ensure!(!new.is_empty(), "nothing was unpacked");
    // What has been unpacked stays so.
    storage::collect()?;
    for name in new.iter().rev() {
        ctr(&["-n", "capsules", "snapshot", "--snapshotter", "capsule", "rm", name])?
            .success("remove what was compared")?;
    }
    Ok(format!("{} layers", new.len()))
}

fn on_a_base() -> Result<String> {
    let tree = Path::new(FILES).join("2");
    let built = publish(&tree, "t", "2-on-1", &["--base", "t@1"])?;
    same("t@2", "t@2-on-1")?;
    let (whole, sizes) = (layers("t@2")?, layers("t@2-on-1")?);
    ensure!(sizes.len() == 2 && sizes[0] == layers("t@1")?[0], "{sizes:?}");
    ensure!(sizes[1] * 3 < whole[0], "{sizes:?} of {whole:?}");
    let again = publish(&tree, "t", "2-on-1", &["--base", "t@1"])?;
    ensure!(again["existed"] == true && again["version"]["digest"] == built["version"]["digest"], "{again}");
    // The same tree as its base.
    publish(&tree, "t", "3-on-2", &["--base", "t@2"])?;
    same("t@2", "t@3-on-2")?;
    let said = json(&["inspect", "t@2-on-1"])?;
    let annotations = &said["annotations"];
    ensure!(
        annotations["org.opencontainers.image.base.name"] == "localhost/capsules/t:1"
            && annotations["org.opencontainers.image.base.digest"] == digest("t@1")?.as_str(),
        "{annotations}"
    );
    // And in a container.
    let container = OURS.start("delta", &[], &SLEEP)?;
    done(&["attach", "delta", "t@2-on-1"])?;
    let list =
        container.sh("list", "cd /opt/t && find . -type f | sort | xargs sha256sum && ls -ld was-dir")?;
    done(&["upgrade", "delta", "t@2"])?;
    let whole_list =
        container.sh("list2", "cd /opt/t && find . -type f | sort | xargs sha256sum && ls -ld was-dir")?;
    ensure!(list == whole_list && list.lines().count() > 50, "{list}\n{whole_list}");
    container.remove()?;
    Ok(format!("{} bytes on {} instead of {}", sizes[1], sizes[0], whole[0]))
}

fn digest(version: &str) -> Result<String> {
    let found = json(&["inspect", version])?;
    Ok(found["version"]["digest"].as_str().context("a digest")?.to_owned())
}

fn on_a_delta() -> Result<String> {
    let root = Path::new(FILES).join("wild");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(Path::new(FILES).join("2")).arg(&root).status();
    ensure!(copied.context("cp")?.success(), "cp failed");
    fs::hard_link(root.join("same/0"), root.join("added/link-to-0"))?;
    fs::hard_link(root.join("same/content"), root.join("other-name"))?;
    fs::remove_dir_all(root.join("was-file"))?;
    fs::write(root.join("was-file"), "a file again")?;
    chown(root.join("mode"), Some(1234), Some(4321))?;
    rustix::fs::setxattr(root.join("same/1"), "user.note", b"x", rustix::fs::XattrFlags::empty())
        .context("setxattr")?;
    for keep in [&[][..], &["--keep-owner"]] {
        let name = if keep.is_empty() { "root" } else { "kept" };
        let (whole, delta) = (format!("4-{name}"), format!("4-{name}-on-2"));
        publish(&root, "t", &whole, keep)?;
        publish(&root, "t", &delta, &[&["--base", "t@2-on-1"], keep].concat())?;
        same(&format!("t@{whole}"), &format!("t@{delta}"))?;
        ensure!(layers(&format!("t@{delta}"))?.len() == 3, "not three layers");
        let text = done(&["diff", "t@2", &format!("t@{delta}")])?;
        ensure!(text.contains("M same/1 (attributes)"), "{text}");
        ensure!(text.contains("owner 0:0→1234:4321") != keep.is_empty(), "{text}");
    }
    // Back to the first.
    publish(&Path::new(FILES).join("1"), "t", "1-on-4", &["--base", "t@4-kept-on-2"])?;
    same("t@1", "t@1-on-4")?;
    Ok(String::new())
}

fn wrong_base() -> Result<String> {
    let tree = Path::new(FILES).join("2");
    let path = tree.to_str().context("a path")?;
    let build = ["build", path, "--name", "t", "--version", "5", "--base"];
    refused(&[&build[..], &["t@99"]].concat(), &["t", "99", "it has"])?;
    refused(&[&build[..], &["nobody"]].concat(), &["nobody", "not known"])?;
    let base = BuildBase {
        capsule: "t".to_owned(),
        version: "1".to_owned(),
        digest: format!("sha256:{}", "0".repeat(64)),
    };
    let header =
        BuildHeader { name: "t".to_owned(), version: "5".to_owned(), base: Some(base), ..Default::default() };
    let Err(moved) = Api::connect()?.build(header, vec![0; 1024]) else { bail!("built on another base") };
    ensure!(moved.code() == tonic::Code::Aborted && moved.message().contains("build it again"), "{moved}");
    let annotated = ["t@1", "--annotation", "org.opencontainers.image.base.name=x"];
    refused(&[&build[..], &annotated].concat(), &["org.opencontainers.image.base.name"])?;
    // A base of which a layer is gone, though it is still unpacked.
    fs::create_dir_all(Path::new(FILES).join("lost"))?;
    fs::write(Path::new(FILES).join("lost/file"), "lost")?;
    publish(&Path::new(FILES).join("lost"), "lost", "1", &[])?;
    let layer = json(&["inspect", "lost@1"])?["layers"][0]["digest"].as_str().context("a layer")?.to_owned();
    ctr(&["-n", "capsules", "content", "rm", &layer])?.success("remove a layer")?;
    let line = refused(&[&build[..], &["lost@1"]].concat(), &["lost@1", "incomplete", &layer])?;
    let list = json(&["ls", "t"])?.to_string();
    ensure!(!list.contains("\"5\""), "it is published: {list}");
    Ok(line)
}

fn from_an_image() -> Result<String> {
    let build = |version: &str| {
        let name = Image::Busybox.name();
        let args = ["build", "--image", name, "--image-namespace", "default", "--name", "tools", "--version"];
        json(&[&args[..], &[version, "--target", "/opt/tools", "--annotation", "a=b"]].concat())
    };
    let built = build("1")?;
    ensure!(build("1")?["existed"] == true, "not the same the second time");
    same("busybox@latest", "tools@1")?;
    let found = json(&["inspect", "tools@1"])?;
    let annotations = &found["annotations"];
    ensure!(
        annotations["a"] == "b" && annotations["org.opencontainers.image.base.name"] == Image::Busybox.name(),
        "{annotations}"
    );
    // Nothing but the layers is of the image, and they stay when it goes.
    ctr(&["-n", "capsules", "image", "rm", "--sync", Image::Busybox.name()])?.success("remove")?;
    let container = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tools"])?;
    let said = container.sh("tools", "/opt/tools/bin/busybox echo from the image")?;
    ensure!(said == "from the image\n", "{said:?}");
    ensure!(json(&["inspect", "tools@1"])?["version"]["complete"] == true, "incomplete");
    container.remove()?;
    // A tree on an image.
    let text = capsulectl(&["diff", "tools@1", "t@1"])?;
    ensure!(text.code == 0, "{text:?}");
    publish(&Path::new(FILES).join("2"), "t", "2-on-tools", &["--base", "tools@1"])?;
    same("t@2", "t@2-on-tools")?;
    Ok(format!("{}", built["version"]["digest"]))
}

fn wrong_image() -> Result<String> {
    let build = |image: &str, words: &[&str]| {
        let args =
            ["build", "--image", image, "--image-namespace", "other", "--name", "bad", "--version", "1"];
        refused(&args, words)
    };
    build("localhost/nothing:1", &["localhost/nothing:1", "other", "images ls"])?;
    let archive = Image::Busybox.in_machine();
    let archive = archive.to_str().context("a path")?;
    ctr(&["-n", "other", "image", "import", "--no-unpack", archive])?.success("import")?;
    let layer = json(&["inspect", "tools@1"])?["layers"][0]["digest"].as_str().context("a layer")?.to_owned();
    ctr(&["-n", "other", "content", "rm", &layer])?.success("remove a layer")?;
    let line = build(Image::Busybox.name(), &[Image::Busybox.name(), "other", &layer])?;
    ensure!(!json(&["ls"])?.to_string().contains("\"bad\""), "it is published");
    Ok(line)
}
