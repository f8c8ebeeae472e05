//! Every refusal: one line with the cause and what to do, and nothing changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::{self, Seen, build, done, json, ps, publish, tzdata};
use super::ctr::{Container, OURS, REFERENCE, ctr, run as run_program};
use super::readers::{SHARED, VOLUMES};
use super::world::{World, until, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    fs::create_dir_all(SHARED).with_context(|| format!("create {SHARED}"))?;
    reporter.must("images and capsules are there", || {
        OURS.import()?;
        REFERENCE.import()?;
        publish()?;
        Ok(((), String::new()))
    })?;
    let shop = OURS.start("shop", &VOLUMES, &SLEEP)?;
    refusals(reporter, &shop);
    containers(reporter);
    targets(reporter, &shop);
    incomplete(reporter, &shop);
    shop.remove()?;
    unreachable(reporter, &mut world);
    start_up(reporter);
    world.stop()
}

/// What a refusal must leave as it was.
#[derive(Debug, PartialEq)]
struct Before {
    attachments: Vec<Seen>,
    container: Vec<String>,
    node: BTreeSet<String>,
}

impl Before {
    fn read(container: &Container) -> Result<Self> {
        Ok(Self { attachments: ps()?, container: container.mounts()?, node: node_mounts()? })
    }
}

/// The node's own mounts: nothing done in a container may add one.
fn node_mounts() -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    Ok(table.lines().map(str::to_owned).collect())
}

/// One call that must be refused in one line with these words. Of an attachment the line names, besides, the container that was
/// asked for, a capsule, and the target where the call names one.
fn refused(args: &[&str], words: &[&str]) -> Result<String> {
    let line = capsulectl::refused(args, words)?;
    if let ["attach" | "upgrade" | "rollback" | "detach", container, capsules @ ..] = args {
        let target = capsules.iter().position(|word| *word == "--target").and_then(|at| capsules.get(at + 1));
        let capsules: Vec<&str> =
            capsules.iter().take_while(|word| !word.starts_with("--")).copied().collect();
        let bare = |capsule: &str| capsule.split('@').next().is_some_and(|name| line.contains(name));
        ensure!(line.contains(container), "does not name the container {container}: {line}");
        ensure!(capsules.iter().any(|capsule| bare(capsule)), "names none of {capsules:?}: {line}");
        ensure!(
            target.is_none_or(|target| line.contains(target)),
            "does not name the target {target:?}: {line}"
        );
    }
    Ok(line)
}

/// One call that must be refused in one line with these words, and change nothing.
fn case(reporter: &mut Reporter, name: &str, container: &Container, args: &[&str], words: &[&str]) {
    reporter.check(name, || {
        let before = Before::read(container)?;
        let line = refused(args, words)?;
        let after = Before::read(container)?;
        ensure!(before == after, "something changed: {before:#?} {after:#?}");
        Ok(line)
    });
}

fn refusals(reporter: &mut Reporter, shop: &Container) {
    for (name, args, words) in [
        ("unknown capsule", vec!["attach", "shop", "no-such"], vec!["no-such"]),
        ("unknown version", vec!["attach", "shop", "tzdata@1999.1.0"], vec!["tzdata", "1999.1.0"]),
        ("unknown container", vec!["attach", "no-such-container", "tzdata"], vec!["no-such-container"]),
        (
            "relative target",
            vec!["attach", "shop", "tzdata", "--target", "usr/share"],
            vec!["usr/share", "absolute"],
        ),
        ("target with ..", vec!["attach", "shop", "tzdata", "--target", "/usr/../etc"], vec!["/usr/../etc"]),
        ("target taken by a volume", vec!["attach", "shop", "tzdata", "--target", SHARED], vec![SHARED]),
        ("upgrade of what is not attached", vec!["upgrade", "shop", "tzdata"], vec!["tzdata", "shop"]),
        ("rollback of what is not attached", vec!["rollback", "shop", "tzdata"], vec!["tzdata", "shop"]),
        ("detach of what is not attached", vec!["detach", "shop", "tzdata"], vec!["tzdata", "shop"]),
        (
            "one of a set is unknown: none is attached",
            vec!["attach", "shop", "tzdata", "no-such"],
            vec!["no-such"],
        ),
    ] {
        case(reporter, name, shop, &args, &words);
    }
    reporter.check("a version published again with other content", || {
        let [(version, _), (_, other)] = tzdata()?;
        let other = other.to_str().context("path")?;
        refused(&["build", other, "--name", "tzdata", "--version", &version], &["tzdata", &version])
    });
    reporter.check("rollback before any upgrade", || {
        done(&["attach", "shop", "tzdata"])?;
        let line = refused(&["rollback", "shop", "tzdata"], &["tzdata"]);
        let again = refused(&["attach", "shop", "tzdata"], &["/usr/share/zoneinfo"]);
        let other = ["attach", "shop", "debug-tools", "--target", "/usr/share/zoneinfo"];
        refused(&other, &["is taken by tzdata"])?;
        done(&["detach", "shop", "tzdata"])?;
        Ok(format!("{}; attached again: {}", line?, again?))
    });
}

fn containers(reporter: &mut Reporter) {
    reporter.check("ambiguous container", || {
        let one = OURS.start("web-1", &[], &SLEEP)?;
        let _two = OURS.start("web-2", &[], &SLEEP)?;
        let before = Before::read(&one)?;
        let line = refused(&["attach", "web", "tzdata"], &["web-1", "web-2"])?;
        ensure!(before == Before::read(&one)?, "something changed");
        Ok(line)
    });
    reporter.check("a container whose task has ended", || {
        let ended = OURS.start("ended", &[], &SLEEP)?;
        ended.kill("SIGKILL")?;
        ended.wait_for("STOPPED")?;
        refused(&["attach", "ended", "tzdata"], &["ended", "not running"])
    });
    reporter.check("a container on another runtime", || {
        let other = REFERENCE.start("other", &[], &SLEEP)?;
        let before = Before::read(&other)?;
        let line = refused(&["attach", "other", "tzdata"], &["other", "io.containerd.runc.v2"])?;
        ensure!(before == Before::read(&other)?, "something changed");
        Ok(line)
    });
    reporter.check("a read-only root with no such directory", || {
        let fixed = OURS.start("fixed", &["--read-only"], &SLEEP)?;
        let before = Before::read(&fixed)?;
        let line = refused(&["attach", "fixed", "tzdata", "--target", "/no/such/place"], &["/no"])?;
        ensure!(before == Before::read(&fixed)?, "something changed");
        Ok(line)
    });
}

/// Links planted in the container: none may lead a mount out of it.
fn targets(reporter: &mut Reporter, shop: &Container) {
    let planted = "ln -s /proc/1/root /etc/x; ln -s ../../../../../../tmp /etc/up; mkdir -p /srv/real; ln -s /srv/real /srv/link";
    reporter.check("links are planted", || shop.sh("plant", planted));
    case(
        reporter,
        "a link to /proc/1/root",
        shop,
        &["attach", "shop", "tzdata", "--target", "/etc/x/usr/share/planted"],
        &["/etc/x"],
    );
    reporter.check("a link with .. stays in the container", || {
        inside_only(shop, "/etc/up/planted", "/tmp/planted")
    });
    reporter.check("links swapped while attaching lead nowhere else", || swapped_links(shop));
}

/// Attaches at `target` or is refused; either way nothing of the node is touched.
fn inside_only(shop: &Container, target: &str, leads_to: &str) -> Result<String> {
    let before = Before::read(shop)?;
    let output = capsulectl::capsulectl(&["attach", "shop", "tzdata", "--target", target])?;
    ensure!(node_mounts()? == before.node, "the node's mount table changed");
    ensure!(!Path::new(leads_to).exists(), "{leads_to} appeared on the node");
    if output.code == 0 {
        let seen = shop.sh("look", &format!("head -n1 {leads_to}/tzdata.zi"))?;
        ensure!(seen.contains("version"), "{seen:?}");
        done(&["detach", "shop", "tzdata"])?;
    } else {
        ensure!(output.err.trim().lines().count() == 1, "not one line: {:?}", output.err);
    }
    ensure!(Before::read(shop)? == before, "something is left");
    Ok(if output.code == 0 {
        format!("attached inside, at {leads_to}")
    } else {
        output.err.trim().to_owned()
    })
}

fn swapped_links(shop: &Container) -> Result<String> {
    let before = Before::read(shop)?;
    // Three links that take turns, each put in place by one rename: to a directory, out through procfs, and upwards.
    let script = "mkdir -p /srv/real; cd /srv; ln -s /srv/real swap; while [ ! -e /shared/swap.stop ]; do \
                  ln -s /proc/1/root/etc next; mv -T next swap; ln -s /srv/real next; mv -T next swap; \
                  ln -s ../../../../tmp next; mv -T next swap; done; rm -rf swap real";
    let stop = Path::new(SHARED).join("swap.stop");
    shop.spawn("swapper", &["/bin/sh", "-c", script])?;
    // An attach before its first link makes a directory there, which no link replaces.
    until("the links are swapped", || {
        Ok(shop.sh("look", "test -L /srv/swap && echo yes || echo no")?.trim() == "yes")
    })?;
    let (mut attached, mut refusals) = (0, 0);
    // Whether a link is swapped just then is chance.
    for round in 0..2000 {
        if round >= 150 && attached > 0 && refusals > 0 {
            break;
        }
        let args = ["attach", "shop", "tzdata", "--target", "/srv/swap/planted"];
        let output = capsulectl::capsulectl(&args)?;
        ensure!(node_mounts()? == before.node, "the node's mount table changed");
        if output.code == 0 {
            attached += 1;
            done(&["detach", "shop", "tzdata", "--lazy"])?;
        } else {
            refusals += 1;
            ensure!(output.err.trim().lines().count() == 1, "not one line: {:?}", output.err);
        }
    }
    fs::write(&stop, "").context("stop the swapping")?;
    for place in ["/etc/planted", "/tmp/planted", "/srv/real", "/srv/swap"] {
        ensure!(!Path::new(place).exists(), "{place} appeared on the node");
    }
    let after = shop.mounts()?;
    ensure!(after == before.container, "left in the container: {after:#?}");
    ensure!(ps()? == before.attachments, "left: {:?}", ps()?);
    ensure!(attached > 0 && refusals > 0, "not a race: {attached} attached, {refusals} refused");
    Ok(format!("{attached} attached inside the container, {refusals} refused, nothing left"))
}

/// An image whose layer is in neither store.
fn incomplete(reporter: &mut Reporter, shop: &Container) {
    let spoilt = reporter.check("a version is published and its layer removed", || {
        let tree = Path::new("/tmp/spoilt");
        fs::create_dir_all(tree).context("create a tree")?;
        fs::write(tree.join("file"), "content").context("write a file")?;
        build(tree, "spoilt", "1.0.0", "/srv/spoilt")?;
        let layers = json(&["inspect", "spoilt@1.0.0"])?;
        let layer = &layers["layers"][0];
        let digest = layer["digest"].as_str().context("no digest")?;
        ctr(&["-n", "capsules", "content", "rm", digest])?.success("ctr content rm")?;
        if let Some(snapshot) = layer["snapshot"].as_str() {
            ctr(&["-n", "capsules", "snapshots", "--snapshotter", "capsule", "rm", snapshot])?
                .success("ctr snapshots rm")?;
        }
        // containerd's garbage collector tells the snapshotter, in its own time.
        let deadline = Instant::now() + Duration::from_secs(90);
        while json(&["ls", "spoilt"])?["versions"][0]["complete"] == true {
            ensure!(Instant::now() < deadline, "still complete");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(String::new())
    });
    if spoilt {
        case(
            reporter,
            "an incomplete version",
            shop,
            &["attach", "shop", "spoilt@1.0.0"],
            &["spoilt", "incomplete"],
        );
        reporter.check("ls says what is missing", || {
            let list = json(&["ls", "spoilt"])?;
            let version = &list["versions"][0];
            ensure!(version["complete"] == false && version["incomplete"].is_string(), "{version}");
            Ok(version["incomplete"].to_string())
        });
    }
}

fn unreachable(reporter: &mut Reporter, world: &mut World) {
    reporter.check("capsuled is not reachable", || {
        world.kill_capsuled()?;
        let line = refused(&["ps"], &[super::world::CAPSULED_SOCKET]);
        world.restart_capsuled()?;
        line
    });
}

/// Refusals of capsuled itself.
fn start_up(reporter: &mut Reporter) {
    reporter.check("a configuration with three mistakes: all of them, with their lines", || {
        let path = "/tmp/mistakes.toml";
        fs::write(path, "root = 7\nnonsense = true\n\n[log]\nlevel = \"loud\"\n")
            .context("write a configuration")?;
        let output = run_program("capsuled", &["--config", path, "--check-config"], b"")?;
        ensure!(output.code != 0, "accepted");
        for wanted in [":1", ":2", ":5", "root", "nonsense", "loud"] {
            ensure!(output.err.contains(wanted), "does not name {wanted:?}: {}", output.err);
        }
        ensure!(output.err.trim().lines().count() == 3, "not one line each: {}", output.err);
        Ok(output.err.trim().replace('\n', " | "))
    });
    reporter.check("a kernel that is too old", || {
        let output = run_program("setarch", &["--uname-2.6", "capsuled", "--config", "/dev/null"], b"")?;
        ensure!(output.code == 1 && output.err.contains("6.6"), "{output:?}");
        Ok(output.err.trim().to_owned())
    });
}
