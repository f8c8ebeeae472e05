//! Volumes: capsules and directories at paths of the node, upgraded wherever they are mounted, whichever runtime did that.

mod written;

use std::cell::RefCell;
use std::fs;
use std::io::ErrorKind;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::capsulectl::{capsulectl, done, json, refused};
use super::ctr::{Container, OURS, REFERENCE};
use super::readers::{Holder, Inside, Readers, SHARED, VOLUMES, expect_seamless, expect_unbroken};
use super::sets::publish;
use super::world::{World, path, until, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// The same path on the node and in containers.
const VOLUME: &str = "/vol/tools";
/// What readers compare with: the trees that were published.
const TREES: [&str; 2] = ["--mount", "type=bind,src=/tmp/sets,dst=/tmp/sets,options=rbind:ro"];
const BIND: [&str; 2] = ["--mount", "type=bind,src=/vol/tools,dst=/vol/tools,options=rbind:ro"];
/// A directory of the volume by itself, as the kubelet binds a subPath.
const PART: [&str; 2] = ["--mount", "type=bind,src=/vol/part,dst=/vol/tools,options=rbind:ro"];
const READER: &str = "/shared/capsule-reader";
/// How often capsuled is killed while versions change.
const KILLS: usize = 12;

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("an image and capsules are there", || {
        OURS.import()?;
        REFERENCE.import()?;
        for label in ["tools@1", "tools@2", "tools@3", "other@1"] {
            // What a subPath is of.
            fs::create_dir_all(format!("/tmp/sets/{label}/part")).context("create a directory")?;
            let version = label.split_once('@').context("a version")?.1;
            fs::write(format!("/tmp/sets/{label}/part/version"), version).context("write a file")?;
            publish(label, &[])?;
        }
        publish("bare@1", &[])?;
        fs::create_dir_all(SHARED).context("create the shared folder")?;
        // The node has no reader of its own.
        let image = REFERENCE.start("image", &[], &SLEEP)?;
        fs::copy(format!("/proc/{}/root/usr/bin/capsule-reader", image.pid()?), READER)
            .context("copy the reader")?;
        image.remove()?;
        Ok(((), String::new()))
    })?;
    // As systemd has it.
    let shared = Command::new("mount").args(["--make-rshared", "/"]).status().context("mount")?;
    ensure!(shared.success(), "mount --make-rshared");
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    reporter.check("a version is mounted, read-only, as often as is wanted, and stays published", mounted);
    reporter
        .check("a path, a capsule or an id that will not do is refused, and nothing is mounted", mistakes);
    reporter.check("where volumes may not be, none is mounted", || elsewhere(&mut world));
    reporter.check(
        "another version comes to every mount, whichever runtime made it, and no read fails",
        upgraded,
    );
    reporter.check("a directory by itself has the other version, or refuses it", parts);
    reporter.check("who shares a copy in a namespace of his own has the node for no peer", shared_elsewhere);
    reporter.check("what is open drains, and its version stays until it is closed", drains);
    reporter.check("a container that covers its mount keeps none of the others", covered);
    reporter.check("capsuled is killed while versions change, and no read fails", || killed(&mut world));
    written::cases(reporter, &mut world);
    reporter.check("nothing is left on the node", || left(&mounts));
    world.stop()
}

/// Who reads.
enum Spot<'a> {
    Container(&'a Container),
    /// A process of the node; it is killed when this is dropped.
    Node(RefCell<Vec<Child>>),
    /// A process in a mount namespace of its own, which is a copy of the node's, with this propagation.
    Copy(&'static str, RefCell<Vec<Child>>),
}

impl Spot<'_> {
    fn start(command: &[&str], before: &[&str]) -> Result<Child> {
        let command = [before, command].concat();
        let mut child = Command::new(command[0]);
        child.args(&command[1..]).env("PATH", path()).stdin(Stdio::null());
        child.spawn().with_context(|| format!("start {}", command[0]))
    }
}

impl Inside for Spot<'_> {
    fn spawn(&self, exec_id: &str, command: &[&str]) -> Result<()> {
        if let Self::Container(container) = self {
            return container.spawn(exec_id, command);
        }
        let command = [&[READER], &command[1..]].concat();
        match self {
            Self::Container(_) => {}
            Self::Node(children) => children.borrow_mut().push(Self::start(&command, &[])?),
            Self::Copy(propagation, children) => {
                let own = ["unshare", "--mount", "--propagation", propagation];
                children.borrow_mut().push(Self::start(&command, &own)?);
            }
        }
        Ok(())
    }
}

impl Drop for Spot<'_> {
    fn drop(&mut self) {
        if let Self::Node(children) | Self::Copy(_, children) = self {
            for child in children.get_mut() {
                _ = child.kill();
                _ = child.wait();
            }
        }
    }
}

fn options<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&VOLUMES[..2], &TREES, more].concat()
}

fn allowed(file: &str, labels: &[&str]) -> Vec<String> {
    labels.iter().map(|label| format!("/tmp/sets/{label}/{file}")).collect()
}

/// Where mounts on the volume's mount of a container go.
fn propagations(of: &Container) -> Result<Vec<String>> {
    let all = of.mounts()?;
    let own = all.iter().filter(|line| line.split(' ').nth(4) == Some(VOLUME));
    let kinds = own.flat_map(|line| line.split(' ').skip(6).take_while(|field| *field != "-"));
    Ok(kinds.map(|field| field.split(':').next().unwrap_or_default().to_owned()).collect())
}

fn version(at: &str) -> Result<String> {
    fs::read_to_string(format!("{at}/version")).with_context(|| format!("read {at}/version"))
}

/// A volume as it is listed; null when it is not.
fn volume(id: &str) -> Result<Value> {
    let list = json(&["volumes"])?;
    let all = list["volumes"].as_array().context("volumes")?;
    Ok(all.iter().find(|one| one["id"] == id).cloned().unwrap_or_default())
}

fn mounted() -> Result<String> {
    done(&["volumes", "mount", "tools", "--capsule", "tools@1", VOLUME])?;
    done(&["volumes", "mount", "tools", "--capsule", "tools@1", VOLUME])?;
    done(&["volumes", "mount", "tools", "/vol/again"])?;
    for at in [VOLUME, "/vol/again"] {
        ensure!(version(at)? == "1", "{at}: {}", version(at)?);
        let written = fs::write(format!("{at}/version"), "mine").err().map(|error| error.kind());
        ensure!(written == Some(ErrorKind::ReadOnlyFilesystem), "{at}: {written:?}");
    }
    let seen = volume("tools")?;
    ensure!(seen["version"] == "1" && seen["paths"].as_array().is_some_and(|all| all.len() == 2), "{seen}");
    refused(&["rm", "tools@1"], &["tools@1", "volume tools"])?;
    ensure!(
        json(&["prune", "--keep-last", "1", "--dry-run"])?["kept"].to_string().contains("volume tools"),
        "kept"
    );
    for _ in 0..2 {
        done(&["volumes", "umount", "tools", "/vol/again"])?;
    }
    ensure!(fs::metadata("/vol/again").is_err(), "its directory stays");
    ensure!(version(VOLUME)? == "1", "the other mount");
    done(&["volumes", "umount", "tools", VOLUME])?;
    ensure!(volume("tools")? == Value::Null, "{}", volume("tools")?);
    Ok(String::new())
}

fn elsewhere(world: &mut World) -> Result<String> {
    const CONFIG: &str = "/etc/capsule/config.toml";
    let shipped = fs::read_to_string(CONFIG).context("read the configuration")?;
    let mut restart = |text: &str| -> Result<()> {
        fs::write(CONFIG, text).context("write the configuration")?;
        world.kill_capsuled()?;
        world.restart_capsuled()
    };
    restart(&shipped.replace("below = [\"/\"]", "below = [\"/vol/tools\"]"))?;
    std::os::unix::fs::symlink("/vol/tools", "/tmp/link").context("make a link")?;
    let elsewhere = refused(
        &["volumes", "mount", "tools", "/mnt/tools"],
        &["/mnt/tools", "below /vol/tools", "volumes.below"],
    );
    let root = refused(&["volumes", "mount", "tools", VOLUME], &[VOLUME]);
    fs::create_dir_all(VOLUME).context("create a directory")?;
    let linked = done(&["volumes", "mount", "tools", "/tmp/link/a"]).and_then(|_| version("/vol/tools/a"));
    let gone = done(&["volumes", "umount", "tools", "/tmp/link/a"]);
    restart(&shipped)?;
    fs::remove_file("/tmp/link").context("remove a link")?;
    fs::remove_dir(VOLUME).context("remove a directory")?;
    root?;
    gone?;
    ensure!(linked? == "3", "the newest, by the path without links");
    elsewhere
}

fn mistakes() -> Result<String> {
    fs::create_dir_all("/vol/taken").context("create a directory")?;
    let taken = Command::new("mount").args(["-t", "tmpfs", "taken", "/vol/taken"]).status();
    ensure!(taken.context("mount")?.success(), "mount");
    let first = refused(&["volumes", "mount", "tools", "/vol/taken"], &["/vol/taken", "unmount it"]);
    let gone = Command::new("umount").arg("/vol/taken").status();
    ensure!(gone.context("umount")?.success(), "umount");
    fs::remove_dir("/vol/taken").context("remove a directory")?;
    for (args, words) in [
        (&["mount", "tools", "relative"][..], &["relative", "absolute"][..]),
        (&["mount", "tools", "/vol/../x"], &["..", "/vol/../x"]),
        (&["mount", "Tools", "--capsule", "tools", VOLUME], &["\"Tools\"", "[STACK/]NAME"]),
        (&["mount", "a/b/c", "--capsule", "tools", VOLUME], &["a/b/c"]),
        (&["mount", "nothing", VOLUME], &["nothing"]),
        (&["mount", "tools", "--capsule", "tools@9", VOLUME], &["tools", "9"]),
        (&["mount", "tools", "--size", "1GiB", VOLUME], &["only read", "size"]),
        (&["mount", "data", "--directory", VOLUME], &["data", "make it first"]),
        (&["mount", "tools", "--writable", VOLUME], &["tools", "make it first"]),
        (&["upgrade", "tools", "2"], &["no volume tools"]),
        (&["rm", "tools"], &["no volume tools"]),
        (&["stat", "tools"], &["no volume tools"]),
    ] {
        refused(&[&["volumes"], args].concat(), words)?;
    }
    ensure!(json(&["volumes"])?["volumes"].as_array().is_some_and(Vec::is_empty), "something is there");
    ensure!(fs::metadata(VOLUME).is_err(), "the path was made");
    first
}

fn upgraded() -> Result<String> {
    done(&["volumes", "mount", "tools", "--capsule", "tools@1", VOLUME])?;
    let ours = OURS.start("ours", &options(&BIND), &SLEEP)?;
    let theirs = REFERENCE.start("theirs", &options(&BIND), &SLEEP)?;
    let spots = [
        Spot::Container(&ours),
        Spot::Container(&theirs),
        Spot::Node(RefCell::default()),
        Spot::Copy("private", RefCell::default()),
        Spot::Copy("slave", RefCell::default()),
    ];
    let all: Vec<&Spot<'_>> = spots.iter().collect();
    let readers =
        Readers::across(&all, &format!("{VOLUME}/version"), &allowed("version", &["tools@1", "tools@2"]))?;
    let others = propagations(&theirs)?;
    for (to, from) in [("2", "1"), ("1", "2"), ("2", "1")] {
        let upgraded = json(&["volumes", "upgrade", "tools", to])?;
        ensure!(upgraded["from_version"] == from && upgraded["left"] == 0, "{upgraded}");
        // The slave has it from the node.
        ensure!(upgraded["mounts"] == 4, "of the node, two containers and a namespace: {upgraded}");
        ensure!(propagations(&theirs)? == others, "{:?} instead of {others:?}", propagations(&theirs)?);
        sleep(Duration::from_millis(300));
    }
    let again = json(&["volumes", "upgrade", "tools", "2"])?;
    ensure!(again["mounts"] == 0 && again["from_version"] == "2", "{again}");
    let line = expect_seamless(&readers.stop()?)?;
    for container in [&ours, &theirs] {
        ensure!(container.sh("now", &format!("cat {VOLUME}/version"))? == "2", "in {}", container.id);
        let refused =
            container.sh("write", &format!("echo mine 2>/dev/null > {VOLUME}/version || echo refused"))?;
        ensure!(refused.trim() == "refused", "{} writes", container.id);
    }
    drop(spots);
    refused(&["volumes", "upgrade", "tools", "9"], &["tools", "9"])?;
    ensure!(version(VOLUME)? == "2", "a refused upgrade changed it");
    ours.remove()?;
    theirs.remove()?;
    until("nothing drains", || Ok(volume("tools")?["draining"].as_array().is_some_and(Vec::is_empty)))?;
    done(&["rm", "tools@1"])?;
    publish("tools@1", &[])?;
    done(&["volumes", "umount", "tools", VOLUME])?;
    Ok(line)
}

fn bind_part(undo: bool) -> Result<()> {
    fs::create_dir_all("/vol/part").context("create a directory")?;
    let args: &[&str] =
        if undo { &["umount", "/vol/part"] } else { &["mount", "--bind", "/vol/tools/part", "/vol/part"] };
    ensure!(Command::new(args[0]).args(&args[1..]).status().context("mount")?.success(), "{args:?}");
    Ok(())
}

fn parts() -> Result<String> {
    done(&["volumes", "mount", "tools", "--capsule", "tools@1", VOLUME])?;
    bind_part(false)?;
    let shop = REFERENCE.start("shop", &options(&PART), &SLEEP)?;
    let spot = Spot::Container(&shop);
    let readers = Readers::start(
        &spot,
        1,
        &format!("{VOLUME}/version"),
        &allowed("part/version", &["tools@1", "tools@2"]),
    )?;
    let upgraded = json(&["volumes", "upgrade", "tools", "2"])?;
    ensure!(upgraded["left"] == 0 && upgraded["mounts"] == 3, "{upgraded}");
    sleep(Duration::from_millis(300));
    let line = expect_seamless(&readers.stop()?)?;
    // A version without the directory.
    let bare = "/tmp/sets/bare@9";
    fs::create_dir_all(bare).context("create a directory")?;
    fs::write(format!("{bare}/version"), "9").context("write a file")?;
    done(&["build", bare, "--name", "tools", "--version", "9", "--target", "/opt/tools"])?;
    refused(&["volumes", "upgrade", "tools", "9"], &["/part", "/vol/part", "tools@9", "no such directory"])?;
    ensure!(version(VOLUME)? == "2" && version("/vol/part")? == "2", "a refused upgrade changed it");
    drop(spot);
    shop.remove()?;
    bind_part(true)?;
    done(&["volumes", "umount", "tools", VOLUME])?;
    done(&["rm", "tools@9"])?;
    fs::remove_dir("/vol/part").context("remove a directory")?;
    Ok(line)
}

/// Binds the volume in a user namespace, shares that, and mounts something in it when it is told to.
const SHARES: &str = "mkdir -p /tmp/evil && mount --bind /vol/tools /tmp/evil && mount --make-shared /tmp/evil && echo >/shared/ready
while [ ! -e /shared/go ]; do sleep 0.05; done
mount -t tmpfs evil /tmp/evil/part && cat /tmp/evil/version >/shared/done; exec sleep 100000";

fn shared_elsewhere() -> Result<String> {
    let at = |name: &str| format!("{SHARED}/{name}");
    done(&["volumes", "mount", "tools", "--capsule", "tools@1", VOLUME])?;
    let own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SHARES];
    let mut child = Spot::start(&own[1..], &own[..1])?;
    let outcome = until("shared", || Ok(fs::metadata(at("ready")).is_ok())).and_then(|()| {
        let upgraded = json(&["volumes", "upgrade", "tools", "2"])?;
        fs::write(at("go"), "").context("tell it")?;
        until("mounted", || Ok(fs::metadata(at("done")).is_ok()))?;
        let seen = fs::read_to_string(at("done")).context("what it saw")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
        ensure!(!mounts.contains("evil"), "what it has mounted is the node's: {mounts}");
        ensure!(
            fs::metadata(format!("{VOLUME}/part/version")).is_ok(),
            "what it has mounted hides the node's"
        );
        Ok(format!("it saw version {seen}; {upgraded}"))
    });
    child.kill().context("kill it")?;
    child.wait().context("wait for it")?;
    for name in ["ready", "go", "done"] {
        fs::remove_file(at(name)).ok();
    }
    done(&["volumes", "umount", "tools", VOLUME])?;
    outcome
}

fn drains() -> Result<String> {
    done(&["volumes", "mount", "tools", "--capsule", "tools@1", VOLUME])?;
    let shop = REFERENCE.start("shop", &options(&BIND), &SLEEP)?;
    let holder = Holder::start(&shop, &format!("{VOLUME}/version"))?;
    done(&["volumes", "upgrade", "tools", "2"])?;
    let draining = || Ok::<_, anyhow::Error>(volume("tools")?["draining"].as_array().map(Vec::len));
    ensure!(draining()? == Some(1), "{}", volume("tools")?);
    refused(&["rm", "tools@1"], &["volume tools"])?;
    ensure!(holder.stop()? == "1", "what was open is another file");
    until("nothing drains", || Ok(draining()? == Some(0)))?;
    done(&["rm", "tools@1"])?;
    publish("tools@1", &[])?;
    shop.remove()?;
    done(&["volumes", "umount", "tools", VOLUME])?;
    Ok(String::new())
}

fn covered() -> Result<String> {
    done(&["volumes", "mount", "tools", "--capsule", "tools@1", VOLUME])?;
    let hostile = REFERENCE.start("hostile", &[&options(&BIND)[..], &["--privileged"]].concat(), &SLEEP)?;
    let shop = REFERENCE.start("shop", &options(&BIND), &SLEEP)?;
    hostile.sh("cover", &format!("mount -t tmpfs cover {VOLUME}"))?;
    let upgraded = json(&["volumes", "upgrade", "tools", "2"])?;
    ensure!(upgraded["left"] == 1 && upgraded["mounts"] == 2, "{upgraded}");
    ensure!(shop.sh("now", &format!("cat {VOLUME}/version"))? == "2", "the other container");
    hostile.sh("uncover", &format!("umount {VOLUME}"))?;
    // It is tried again.
    until("the container has it", || Ok(hostile.sh("now", &format!("cat {VOLUME}/version"))? == "2"))?;
    hostile.remove()?;
    shop.remove()?;
    done(&["volumes", "umount", "tools", VOLUME])?;
    Ok(upgraded.to_string())
}

fn killed(world: &mut World) -> Result<String> {
    done(&["volumes", "mount", "tools", "--capsule", "tools@1", VOLUME])?;
    let shop = REFERENCE.start("shop", &options(&BIND), &SLEEP)?;
    let spots = [Spot::Container(&shop), Spot::Node(RefCell::default())];
    let all: Vec<&Spot<'_>> = spots.iter().collect();
    let readers =
        Readers::across(&all, &format!("{VOLUME}/version"), &allowed("version", &["tools@1", "tools@2"]))?;
    let mut done_before = 0;
    for round in 0..KILLS {
        let to = if round % 2 == 0 { "2" } else { "1" };
        let upgrade = std::thread::spawn(move || capsulectl(&["volumes", "upgrade", "tools", to]));
        sleep(Duration::from_millis(round as u64 * 7));
        world.kill_capsuled()?;
        let Ok(output) = upgrade.join() else { bail!("a thread") };
        done_before += usize::from(output?.code == 0);
        world.restart_capsuled()?;
        let seen = volume("tools")?;
        ensure!(seen["paths"] == serde_json::json!([VOLUME]), "round {round}: {seen}");
        done(&["volumes", "upgrade", "tools", to]).with_context(|| format!("round {round}: {seen}"))?;
        ensure!(version(VOLUME)? == to, "round {round}: the node has {}", version(VOLUME)?);
        let inside = shop.sh(&format!("now{round}"), &format!("cat {VOLUME}/version"))?;
        ensure!(inside == to, "round {round}: the container has {inside}");
    }
    let line = expect_unbroken(&readers.stop()?)?;
    world.wait_for_snapshotter()?;
    refused(&["rm", "tools@1"], &["volume tools"])?;
    drop(spots);
    shop.remove()?;
    done(&["volumes", "umount", "tools", VOLUME])?;
    ensure!(volume("tools")? == Value::Null, "{}", volume("tools")?);
    Ok(format!("{KILLS} kills, {done_before} after the answer; {line}"))
}

fn left(mounts: &str) -> Result<String> {
    let now = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    let of = |text: &str| {
        text.lines().map(|line| line.split(' ').nth(4).unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let (before, after) = (of(mounts), of(&now));
    let new: Vec<_> = after.iter().filter(|one| !before.contains(one)).collect();
    ensure!(new.is_empty(), "mounts: {new:?}");
    ensure!(json(&["volumes"])?["volumes"].as_array().is_some_and(Vec::is_empty), "volumes");
    let records = fs::read_dir("/run/capsule/volumes").context("the records")?.count();
    ensure!(records == 0, "{records} records");
    Ok(String::new())
}
