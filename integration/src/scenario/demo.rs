//! The main job, end to end, in the seven steps of its acceptance test. Between any two of them capsuled is killed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::api::Api;
use super::capsulectl::{build, done, json as capsulectl_json, ps, publish, refused, tzdata};
use super::ctr::{Container, OURS};
use super::readers::{Clock, Holder, Readers, VOLUMES, expect_seamless};
use super::world::{World, with_logs};
use crate::event::Reporter;
use crate::narrate::human;

/// British Columbia stopped changing its clocks in 2026: the two releases of tzdata disagree about its winter.
const ZONE: &str = "America/Vancouver";
const ZONES: &str = "/usr/share/zoneinfo";
const RELEASE: &str = "/usr/share/zoneinfo/tzdata.zi";
const SWAPS: u32 = 200;
const READERS: usize = 4;
const ID: &str = "shop";

/// Runs the demo.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, tell)
}

/// What the steps share.
struct Stage<'a> {
    reporter: &'a mut Reporter,
    world: World,
    shop: Container,
    clock: Clock,
    /// Versions of tzdata, older first, and how their release calls itself.
    versions: [String; 2],
    releases: [String; 2],
    mounts: Vec<String>,
}

fn tell(reporter: &mut Reporter) -> Result<()> {
    let mut stage = open(reporter)?;
    stage.attach()?;
    stage.crash("after attach")?;
    stage.swap()?;
    stage.crash("after 200 upgrades and rollbacks")?;
    stage.tools()?;
    stage.crash("after the union")?;
    stage.upgrade_after_crash()?;
    stage.busy()?;
    stage.crash("after the lazy detach")?;
    stage.leave()
}

/// Step 1: a container on our snapshotter and runtime, and the capsules.
fn open(reporter: &mut Reporter) -> Result<Stage<'_>> {
    reporter.say("Starting a private containerd with capsuled as its snapshotter plugin.");
    let world =
        reporter.must("containerd and capsuled answer", || Ok((World::start(true)?, String::new())))?;
    reporter.must("a busybox image is imported and unpacked by capsuled", || {
        Ok((OURS.import()?, String::new()))
    })?;
    reporter.say(
        "Publishing capsules: two releases of Debian's tzdata, and strace and procps with their libraries.",
    );
    let versions = reporter.must("capsulectl build publishes them", || {
        let versions = publish()?;
        let detail = format!("tzdata@{}, tzdata@{}, debug-tools@1.0.0", versions[0], versions[1]);
        Ok((versions, detail))
    })?;
    reporter.must("the same tree built again has the same digest", || Ok(((), same_digest()?)))?;
    show(reporter, &["ls"])?;
    reporter.say(format!(
        "Starting the container {ID:?}: one process that prints the time in {ZONE} every 100 ms."
    ));
    let clock = Clock::new()?;
    let shop = reporter.must("the container runs on our snapshotter and runtime", || {
        let shop = OURS.start(ID, &VOLUMES, &Clock::command(ZONE))?;
        Ok((shop, clock.shows("none")?))
    })?;
    let mounts = shop.mounts()?;
    let releases = releases()?;
    Ok(Stage { reporter, world, shop, clock, versions, releases, mounts })
}

/// Builds a copy with other modification times: neither they nor the moment of the build are part of a version.
fn same_digest() -> Result<String> {
    let [(version, tree), _] = tzdata()?;
    let first = capsulectl_json(&["inspect", &format!("tzdata@{version}")])?;
    let tree = tree.to_str().context("a path that is no text")?;
    const COPY: &str = "/tmp/tzdata-copy";
    super::ctr::run("cp", &["-r", "--preserve=links", "--", tree, COPY], b"")?.success("copy a tree")?;
    let again = build(Path::new(COPY), "tzdata", &version, ZONES)?;
    ensure!(first["version"]["digest"] == json!(again), "{} and {again}", first["version"]["digest"]);
    Ok(again)
}

/// How the two releases call themselves.
fn releases() -> Result<[String; 2]> {
    let [old, new] = tzdata()?.map(|(_, tree)| -> Result<String> {
        let text = std::fs::read_to_string(tree.join("tzdata.zi")).context("read tzdata.zi")?;
        let line = text.lines().next().unwrap_or_default();
        Ok(line.strip_prefix("# version ").context("tzdata.zi names no release")?.to_owned())
    });
    Ok([old?, new?])
}

fn show(reporter: &mut Reporter, args: &[&str]) -> Result<()> {
    let out = done(args)?;
    reporter.show(&format!("$ capsulectl {}\n{out}", args.join(" ")));
    Ok(())
}

impl Stage<'_> {
    /// Step 2: attach to the running container.
    fn attach(&mut self) -> Result<()> {
        let reference = format!("tzdata@{}", self.versions[0]);
        self.reporter.say(format!("Attaching {reference} to the running container; nothing is restarted."));
        let (clock, release) = (&self.clock, &self.releases[0]);
        self.reporter.must("the same process sees the capsule", || {
            done(&["attach", ID, &reference])?;
            let line = clock.shows(release)?;
            clock.expect_one_process()?;
            Ok(((), line))
        })?;
        show(self.reporter, &["ps"])
    }

    /// Step 3: 200 upgrades and rollbacks under four readers.
    fn swap(&mut self) -> Result<()> {
        let newest = format!("tzdata@{}", self.versions[1]);
        self.reporter.say(format!(
            "Upgrading to {newest} and rolling back, {SWAPS} times, while {READERS} processes in the container open, \
             read and close a file of it as fast as they can."
        ));
        let allowed: Vec<String> =
            self.versions.iter().map(|version| format!("/reference/tzdata-{version}/tzdata.zi")).collect();
        let readers = Readers::start(&self.shop, READERS, RELEASE, &allowed)?;
        let (clock, releases, versions) = (&self.clock, &self.releases, &self.versions);
        let swapped = self.reporter.must(&format!("{SWAPS} upgrades and {SWAPS} rollbacks"), || {
            // Once as a person does it, then as fast as the API takes it.
            done(&["upgrade", ID, &newest])?;
            clock.shows(&releases[1])?;
            done(&["rollback", ID, "tzdata"])?;
            let mut api = Api::connect()?;
            let started = Instant::now();
            for _ in 1..SWAPS {
                api.upgrade(ID, "tzdata", &versions[1])?;
                api.rollback(ID, "tzdata")?;
            }
            let each = started.elapsed() / (2 * (SWAPS - 1));
            Ok(((), format!("{} each", human(each))))
        });
        let counts = readers.stop()?;
        swapped?;
        self.reporter
            .must("no reader missed the file, every read was one version's content exactly", || {
                Ok(((), expect_seamless(&counts)?))
            })?;
        self.reporter.must("the same process is back at the older release", || {
            let line = clock.shows(&releases[0])?;
            Ok(((), format!("{line}; {}", clock.expect_one_process()?)))
        })
    }

    /// Step 4: tools over the whole file system.
    fn tools(&mut self) -> Result<()> {
        self.reporter.say("Attaching debug-tools as a union over /: strace for a container that has none.");
        let (shop, clock, release) = (&self.shop, &self.clock, &self.releases[0]);
        self.reporter.must("there is no strace before", || {
            let output = shop.exec("no-strace", &["/bin/sh", "-c", "strace -V"], b"")?;
            ensure!(output.code == 127, "{output:?}");
            Ok(((), String::new()))
        })?;
        self.reporter.must("strace works in the live container", || {
            done(&["attach", ID, "debug-tools", "--mode", "union", "--target", "/"])?;
            let output =
                shop.exec("strace", &["strace", "-e", "trace=openat", "cat", "/usr/share/doc/before"], b"")?;
            let trace = output.err.lines().find(|line| line.contains("/usr/share/doc/before"));
            Ok(((), trace.with_context(|| format!("no trace: {output:?}"))?.to_owned()))
        })?;
        self.reporter.must("what was in /usr before is still there, tzdata too", || {
            let text = shop.sh("before", "cat /usr/share/doc/before; busybox true; /usr/bin/ps --version")?;
            ensure!(text.starts_with("what the image itself holds\n") && text.contains("procps"), "{text:?}");
            Ok(((), clock.shows(release)?))
        })
    }

    /// Step 5: kill -9 of capsuled. The container, its mounts and its process go on; afterwards the same is known.
    fn crash(&mut self, when: &str) -> Result<()> {
        let (world, clock, shop) = (&mut self.world, &self.clock, &self.shop);
        self.reporter.must(
            &format!("kill -9 of capsuled {when}: container and mounts go on, ps is the same"),
            || {
                let (known, mounts) = (ps()?, shop.mounts()?);
                world.kill_capsuled()?;
                let line = clock.ticks()?;
                ensure!(shop.mounts()? == mounts, "the container's mounts changed");
                world.restart_capsuled_alone()?;
                let after = ps()?;
                ensure!(after == known, "before: {known:?}, after: {after:?}");
                Ok(((), line))
            },
        )
    }

    /// Step 5, its end: the capsuled that came back works on what the killed one made.
    fn upgrade_after_crash(&mut self) -> Result<()> {
        self.reporter.say(
            "capsuled was killed with kill -9 after each step so far. Upgrading with the one that runs now.",
        );
        let newest = format!("tzdata@{}", self.versions[1]);
        let (clock, release) = (&self.clock, &self.releases[1]);
        self.reporter.must("upgrade works after the crash", || {
            done(&["upgrade", ID, &newest])?;
            Ok(((), clock.shows(release)?))
        })?;
        self.crash("after the last upgrade")
    }

    /// Step 6: detach while a file is open.
    fn busy(&mut self) -> Result<()> {
        self.reporter.say("Detaching tzdata while a process in the container keeps one of its files open.");
        let holder = Holder::start(&self.shop, RELEASE)?;
        self.reporter.must("detach is refused and names the process and the file", || {
            let known = ps()?;
            let line = refused(&["detach", ID, "tzdata"], &["capsule-reader", RELEASE])?;
            ensure!(ps()? == known, "something changed");
            Ok(((), line))
        })?;
        self.crash("after the refused detach")?;
        let (clock, versions) = (&self.clock, &self.versions);
        self.reporter.must("detach --lazy hides it at once", || {
            done(&["detach", ID, "tzdata", "--lazy"])?;
            Ok(((), clock.shows("none")?))
        })?;
        self.reporter.must("the version is draining, with its user", || {
            let seen = ps()?;
            let draining = seen.iter().find(|seen| seen.state == "draining" && seen.version == versions[1]);
            let draining = draining.with_context(|| format!("nothing is draining: {seen:?}"))?;
            ensure!(draining.users.iter().any(|user| user.contains("capsule-reader")), "{draining:?}");
            Ok((
                (),
                format!("{}@{}, used by {}", draining.capsule, draining.version, draining.users.join(", ")),
            ))
        })?;
        show(self.reporter, &["ps", "--users"])?;
        self.crash("while a version is draining")?;
        self.reporter.must("once the file is closed it is gone", || {
            let line = holder.stop()?;
            let deadline = Instant::now() + Duration::from_secs(60);
            while ps()?.iter().any(|seen| seen.state == "draining") {
                ensure!(Instant::now() < deadline, "still draining: {:?}", ps()?);
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(((), format!("read through the open descriptor: {line}")))
        })
    }

    /// Step 7: everything as it was.
    fn leave(self) -> Result<()> {
        let Stage { reporter, world, shop, clock, mounts, .. } = self;
        reporter.say("Detaching the tools and looking at what is left.");
        reporter.must("detach works after the crash", || {
            Ok(((), done(&["detach", ID, "debug-tools"])?.trim().to_owned()))
        })?;
        reporter.must("the container's mount table is what it was before the first attach", || {
            let now = shop.mounts()?;
            ensure!(now == mounts, "before: {mounts:#?}\nafter: {now:#?}");
            Ok(((), format!("{} mounts", now.len())))
        })?;
        reporter
            .must("one process from the beginning to the end", || Ok(((), clock.expect_one_process()?)))?;
        reporter.must("the container is removed and the daemons end", || {
            shop.remove()?;
            world.stop()?;
            Ok(((), String::new()))
        })?;
        Ok(())
    }
}
