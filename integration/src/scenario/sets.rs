//! Sets: what a capsule requires comes with it, goes with nothing that still needs it, and is explained when it cannot be.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::{Seen, capsulectl, done, json, ps, refused};
use super::ctr::{Container, OURS};
use super::terminal;
use super::world::{World, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// Where trees and lock files are.
const FILES: &str = "/tmp/sets";

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let world = World::start(true)?;
    reporter.must("an image and capsules are there", || {
        OURS.import()?;
        for (label, requires) in [
            ("lib@1.0", &[][..]),
            ("lib@1.5", &[]),
            ("lib@2.0-rc.1", &[]),
            ("lib@2.0", &[]),
            ("app@1", &["lib >=1, <2"]),
            ("plugin@1", &["lib >=2"]),
            ("bundle@1", &["app"]),
            ("lost@1", &["nothing ^1"]),
        ] {
            publish(label, requires)?;
        }
        Ok(((), String::new()))
    })?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    reporter
        .check("what is required is attached too, at the highest version that will do", || together(&shop));
    reporter.check("what is required does not go, nor move where it will not do", || kept(&shop));
    reporter.check("what the container has counts", || counts(&shop));
    reporter.check("all goes in turn, and nothing is left", || taken_away(&shop));
    reporter.check("a conflict is explained, and nothing is attached", || conflict(&shop));
    reporter.check("a plan is shown, and changes nothing", || planned(&shop));
    reporter.check("a lock file pins versions, and content", || locked(&shop));
    reporter.check("top on a terminal: drawn again, and the terminal is as it was", || {
        publish("tool@1", &[])?;
        done(&["attach", "shop", "lib@1.0"])?;
        let said = terminal::top(&shop)?;
        done(&["detach", "shop", "lib"])?;
        Ok(said)
    });
    reporter.check("a requirement that is none is refused when it is published", mistakes);
    shop.remove()?;
    world.stop()
}

/// Publishes a tree of one file that holds the version. Its target is `/opt/NAME`.
pub(super) fn publish(label: &str, requires: &[&str]) -> Result<()> {
    let requires: Vec<&str> = requires.iter().flat_map(|requirement| ["--require", requirement]).collect();
    publish_with(label, &requires)
}

/// The same, with these options of `build`.
pub(super) fn publish_with(label: &str, options: &[&str]) -> Result<()> {
    let (name, version) = label.split_once('@').context("NAME@VERSION")?;
    let tree = tree(label, version)?;
    let tree = tree.to_str().context("a path")?;
    let target = format!("/opt/{name}");
    let args = ["build", tree, "--name", name, "--version", version, "--target", &target];
    done(&[&args, options].concat()).map(drop)
}

fn tree(label: &str, content: &str) -> Result<PathBuf> {
    let tree = Path::new(FILES).join(label);
    fs::create_dir_all(&tree).with_context(|| format!("create {}", tree.display()))?;
    fs::write(tree.join("version"), content).context("write a file")?;
    // No two versions have the same tree.
    fs::write(tree.join("label"), label).context("write a file")?;
    Ok(tree)
}

/// What the container has, as `NAME@VERSION`, and that its files are there.
fn has(container: &Container) -> Result<Vec<String>> {
    let seen: Vec<Seen> = ps()?.into_iter().filter(|seen| seen.container == container.id).collect();
    for one in &seen {
        let root = format!("/proc/{}/root/{}/version", container.pid()?, one.target);
        let content = fs::read_to_string(&root).with_context(|| format!("read {root}"))?;
        ensure!(content == one.version, "{root} holds {content:?}, not {:?}", one.version);
    }
    Ok(seen.iter().map(|one| format!("{}@{}", one.capsule, one.version)).collect())
}

pub(super) fn expect(container: &Container, labels: &[&str]) -> Result<()> {
    let found = has(container)?;
    ensure!(found == labels, "{found:?} instead of {labels:?}");
    Ok(())
}

fn together(shop: &Container) -> Result<String> {
    let said = done(&["attach", "shop", "bundle"])?;
    expect(shop, &["app@1", "bundle@1", "lib@1.5"])?;
    let list = json(&["ps", "shop"])?;
    let required: Vec<String> = list["attachments"]
        .as_array()
        .context("attachments")?
        .iter()
        .map(|a| format!("{} {}", a["capsule"], a["required_by"]))
        .collect();
    let expected = [r#""app" ["bundle"]"#, r#""bundle" []"#, r#""lib" ["app"]"#];
    ensure!(expected.iter().all(|line| required.contains(&(*line).to_owned())), "{required:?}");
    Ok(said.trim().replace('\n', " | "))
}

fn kept(shop: &Container) -> Result<String> {
    let detach = refused(&["detach", "shop", "lib"], &["app@1", "lib >=1, <2", "detach app@1 first"])?;
    let words = ["the container has app@1", "app@1 requires lib >=1, <2", "lib@2.0 is asked for"];
    refused(&["upgrade", "shop", "lib@2.0"], &words)?;
    expect(shop, &["app@1", "bundle@1", "lib@1.5"])?;
    done(&["upgrade", "shop", "lib@1.0"])?;
    expect(shop, &["app@1", "bundle@1", "lib@1.0"])?;
    // The newest that will do.
    done(&["upgrade", "shop", "lib"])?;
    expect(shop, &["app@1", "bundle@1", "lib@1.5"])?;
    done(&["rollback", "shop", "lib"])?;
    Ok(detach)
}

fn counts(shop: &Container) -> Result<String> {
    // What is there is the lower one.
    let line = refused(&["attach", "shop", "plugin"], &["plugin", "lib >=2", "the container has lib@1.0"])?;
    expect(shop, &["app@1", "bundle@1", "lib@1.0"])?;
    Ok(line)
}

fn taken_away(shop: &Container) -> Result<String> {
    refused(&["detach", "shop", "app"], &["bundle@1"])?;
    for capsule in ["bundle", "app", "lib"] {
        done(&["detach", "shop", capsule])?;
    }
    expect(shop, &[])?;
    Ok(String::new())
}

fn conflict(shop: &Container) -> Result<String> {
    let words = [
        "app@1 requires lib >=1, <2",
        "plugin@1 requires lib >=2",
        "plugin is asked for",
        "ask for other versions of app and plugin",
    ];
    let line = refused(&["attach", "shop", "app", "plugin"], &words)?;
    refused(&["attach", "shop", "lost"], &["nothing", "publish or pull it"])?;
    expect(shop, &[])?;
    Ok(line)
}

fn planned(shop: &Container) -> Result<String> {
    let plan = |args: &[&str]| -> Result<Vec<String>> {
        let all = json(args)?;
        let all = all["planned"].as_array().context("planned")?.clone();
        Ok(all
            .iter()
            .map(|p| format!("{}@{} {}", p["capsule"], p["version"], p["present"]).replace('"', ""))
            .collect())
    };
    let alone = plan(&["resolve", "app"])?;
    ensure!(alone == ["lib@1.5 false", "app@1 false"], "{alone:?}");
    done(&["attach", "shop", "lib@1.0"])?;
    let there = plan(&["resolve", "app", "--container", "shop"])?;
    ensure!(there == ["lib@1.0 true", "app@1 false"], "{there:?}");
    let dry = plan(&["attach", "shop", "app", "--dry-run"])?;
    ensure!(dry == there, "{dry:?}");
    expect(shop, &["lib@1.0"])?;
    done(&["detach", "shop", "lib"])?;
    let text = done(&["resolve", "app"])?;
    Ok(text.trim().replace('\n', " | "))
}

fn locked(shop: &Container) -> Result<String> {
    let lock = format!("{FILES}/app.lock");
    done(&["resolve", "app", "--lock", &lock])?;
    publish("lib@1.6", &[])?;
    done(&["attach", "shop", "--locked", &lock])?;
    expect(shop, &["app@1", "lib@1.5"])?;
    done(&["detach", "shop", "app"])?;
    done(&["detach", "shop", "lib"])?;
    // The same version of another content is not what was locked.
    let text = fs::read_to_string(&lock).context("read the lock file")?;
    let digest = text.split("sha256:").nth(1).and_then(|rest| rest.split('"').next()).context("a digest")?;
    fs::write(&lock, text.replacen(digest, &"0".repeat(64), 1)).context("write the lock file")?;
    let line = refused(&["attach", "shop", "--locked", &lock], &["is sha256:", "resolve anew"])?;
    expect(shop, &[])?;
    fs::write(&lock, "version = 1\nunknown = 2\n").context("write the lock file")?;
    refused(&["attach", "shop", "--locked", &lock], &[&lock, "unknown"])?;
    Ok(line)
}

fn mistakes() -> Result<String> {
    let tree = tree("bad@1", "1")?;
    let tree = tree.to_str().context("a path")?;
    let build = |requires: &str| {
        capsulectl(&["build", tree, "--name", "bad", "--version", "1", "--require", requires])
    };
    let mut told = Vec::new();
    for (requires, word) in
        [("lib 1.0", "begin it with one of"), ("bad", "require itself"), ("lib >=2, <1", "no version")]
    {
        let output = build(requires)?;
        ensure!(output.code == 1 && output.err.contains(word), "{requires}: {output:?}");
        told.push(output.err.trim().to_owned());
    }
    let list = json(&["ls"])?.to_string();
    ensure!(!list.contains("\"bad\""), "it is published: {list}");
    Ok(told.swap_remove(0))
}
