//! The main job through nerdctl: attach, upgrade under readers, roll back, detach.

use anyhow::{Context as _, Result, ensure};

use super::client::{Container, nerdctl};
use super::left::Node;
use super::until;
use crate::event::Reporter;
use crate::scenario::capsulectl::{done, ps, publish, refused, tzdata};
use crate::scenario::ctr::OURS;
use crate::scenario::readers::{BINDS, Clock, Holder, Readers, expect_seamless};

const ZONE: &str = "America/Vancouver";
const RELEASE: &str = "/usr/share/zoneinfo/tzdata.zi";
const READERS: usize = 3;
const SWAPS: u32 = 20;

/// What the steps share.
struct Stage {
    shop: Container,
    clock: Clock,
    /// Versions of tzdata, older first, and how their release calls itself.
    versions: [String; 2],
    releases: [String; 2],
}

/// Runs every step.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    let before = Node::now()?;
    let stage = reporter.must("a container starts with the capsule of its annotation", start)?;
    reporter.check("nerdctl shows it with its capsules", || stage.shown());
    reporter.check("tools are attached to it, and work in nerdctl exec", || stage.tools());
    reporter
        .check(&format!("{SWAPS} upgrades and rollbacks, and no reader misses the file"), || stage.swap());
    reporter.check("detach names who uses it, and drains", || stage.busy());
    reporter.check("one process from the beginning to the end", || stage.clock.expect_one_process());
    reporter.check("nerdctl restart brings back what the annotation names", || stage.restart());
    reporter.check("rm -f leaves nothing", || {
        stage.shop.remove()?;
        before.is_the_same()?;
        ensure!(ps()?.is_empty(), "{:?}", ps()?);
        Ok(String::new())
    });
    Ok(())
}

fn start() -> Result<(Stage, String)> {
    let versions = publish()?;
    let releases = releases()?;
    let clock = Clock::new()?;
    let annotation = format!("resourcecapsules.io/attach=tzdata@{}", versions[0]);
    let options = [&BINDS[..], &["--annotation", &annotation]].concat();
    let shop = Container::run(OURS, "shop", &options, &Clock::command(ZONE))?;
    let line = clock.shows(&releases[0])?;
    ensure!(!line.contains("UTC"), "{line}");
    Ok((Stage { shop, clock, versions, releases }, line))
}

fn releases() -> Result<[String; 2]> {
    let [old, new] = tzdata()?.map(|(_, tree)| -> Result<String> {
        let text = std::fs::read_to_string(tree.join("tzdata.zi")).context("read tzdata.zi")?;
        let line = text.lines().next().unwrap_or_default();
        Ok(line.strip_prefix("# version ").context("tzdata.zi names no release")?.to_owned())
    });
    Ok([old?, new?])
}

impl Stage {
    fn shown(&self) -> Result<String> {
        let version = &self.versions[0];
        let spec = nerdctl(&["inspect", "--mode", "native", "shop"])?.success("nerdctl inspect")?;
        let annotation = format!("\"resourcecapsules.io/attach\": \"tzdata@{version}\"");
        ensure!(spec.contains(&annotation), "not in its annotations: {annotation}");
        let table = done(&["ps", "shop"])?;
        let row = table.lines().nth(1).unwrap_or_default().to_owned();
        let words: Vec<&str> = row.split_whitespace().collect();
        ensure!(words.starts_with(&["default", "shop", "tzdata", version]), "{table}");
        Ok(row)
    }

    fn tools(&self) -> Result<String> {
        self.has_none()?;
        done(&["attach", "shop", "debug-tools", "--mode", "union", "--target", "/"])?;
        let output = self.shop.exec(&["strace", "-e", "trace=openat", "cat", "/usr/share/doc/before"])?;
        let trace = output.err.lines().find(|line| line.contains("/usr/share/doc/before"));
        let trace = trace.with_context(|| format!("no trace: {output:?}"))?.to_owned();
        done(&["detach", "shop", "debug-tools"])?;
        self.has_none()?;
        self.clock.shows(&self.releases[0])?;
        Ok(trace)
    }

    fn has_none(&self) -> Result<()> {
        let none = self.shop.exec(&["/bin/sh", "-c", "strace -V"])?;
        ensure!(none.code != 0 && none.err.contains("strace: not found"), "{none:?}");
        Ok(())
    }

    fn swap(&self) -> Result<String> {
        let newest = format!("tzdata@{}", self.versions[1]);
        let allowed: Vec<String> =
            self.versions.iter().map(|version| format!("/reference/tzdata-{version}/tzdata.zi")).collect();
        let readers = Readers::start(&self.shop, READERS, RELEASE, &allowed)?;
        let swapped = (0..SWAPS).try_for_each(|_| {
            done(&["upgrade", "shop", &newest])?;
            self.clock.shows(&self.releases[1])?;
            done(&["rollback", "shop", "tzdata"])?;
            self.clock.shows(&self.releases[0]).map(drop)
        });
        let counts = readers.stop()?;
        swapped?;
        expect_seamless(&counts)
    }

    fn busy(&self) -> Result<String> {
        let holder = Holder::start(&self.shop, RELEASE)?;
        let line = refused(&["detach", "shop", "tzdata"], &["capsule-reader", RELEASE])?;
        done(&["detach", "shop", "tzdata", "--lazy"])?;
        self.clock.shows("none")?;
        holder.stop()?;
        until("no more draining", || Ok(ps()?.is_empty()))?;
        Ok(line)
    }

    fn restart(&self) -> Result<String> {
        super::client::done(&["restart", "-t", "0", "shop"])?;
        let line = self.clock.shows(&self.releases[0])?;
        self.shop.expect(&[&format!("tzdata@{} attached", self.versions[0])])?;
        Ok(line)
    }
}
