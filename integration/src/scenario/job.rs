//! The main job through a client with names: attach, upgrade under readers, roll back, detach.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::{done, ps, publish, refused, tzdata};
use super::ctr::Output;
use super::left::{Node, Places};
use super::readers::{BINDS, Clock, Holder, Inside, Readers, expect_seamless};
use super::world::within;
use crate::event::Reporter;

const ANNOTATION: &str = "resourcecapsules.io/attach";
const ZONE: &str = "America/Vancouver";
const RELEASE: &str = "/usr/share/zoneinfo/tzdata.zi";
const READERS: usize = 3;
const SWAPS: u32 = 20;
/// Between two questions a shim is asked ever less often who still uses what was detached.
const PATIENCE: Duration = Duration::from_secs(90);

/// A container of a client's, on our runtime; it is removed when this is dropped.
pub trait Client: Inside + Sized {
    /// The client's program.
    const NAME: &str;

    /// Runs one in the background, without a network.
    fn run(name: &str, options: &[&str], command: &[&str]) -> Result<Self>;

    /// What the client shows of one of its annotations.
    fn annotation(&self, name: &str) -> Result<String>;

    /// Runs a command in it.
    fn exec(&self, command: &[&str]) -> Result<Output>;

    /// The client's `restart`.
    fn restart(&self) -> Result<()>;

    /// That it has these, as `NAME@VERSION STATE`.
    fn expect(&self, expected: &[&str]) -> Result<()>;

    /// The client's `rm -f`.
    fn remove(self) -> Result<()>;
}

/// What the steps share.
struct Stage<C> {
    shop: C,
    clock: Clock,
    /// Versions of tzdata, older first, and how their release calls itself.
    versions: [String; 2],
    releases: [String; 2],
}

/// Runs every step. `places`: where the client's containers are.
pub fn run<C: Client>(reporter: &mut Reporter, places: &'static Places) -> Result<()> {
    let (before, name) = (Node::now(places)?, C::NAME);
    let stage = reporter.must("a container starts with the capsule of its annotation", Stage::<C>::start)?;
    reporter.check(&format!("{name} shows it with its capsules"), || stage.shown(places.namespace));
    reporter.check(&format!("tools are attached to it, and work in {name} exec"), || stage.tools());
    reporter
        .check(&format!("{SWAPS} upgrades and rollbacks, and no reader misses the file"), || stage.swap());
    reporter.check("detach names who uses it, and drains", || stage.busy());
    reporter.check("one process from the beginning to the end", || stage.clock.expect_one_process());
    reporter.check(&format!("{name} restart brings back what the annotation names"), || stage.restart());
    reporter.check("rm -f leaves nothing", || {
        stage.shop.remove()?;
        before.is_the_same()?;
        ensure!(ps()?.is_empty(), "{:?}", ps()?);
        Ok(String::new())
    });
    Ok(())
}

fn releases() -> Result<[String; 2]> {
    let [old, new] = tzdata()?.map(|(_, tree)| -> Result<String> {
        let text = std::fs::read_to_string(tree.join("tzdata.zi")).context("read tzdata.zi")?;
        let line = text.lines().next().unwrap_or_default();
        Ok(line.strip_prefix("# version ").context("tzdata.zi names no release")?.to_owned())
    });
    Ok([old?, new?])
}

impl<C: Client> Stage<C> {
    fn start() -> Result<(Self, String)> {
        let versions = publish()?;
        let releases = releases()?;
        let clock = Clock::new()?;
        let annotation = format!("{ANNOTATION}=tzdata@{}", versions[0]);
        let options = [&BINDS[..], &["--annotation", &annotation]].concat();
        let shop = C::run("shop", &options, &Clock::command(ZONE))?;
        let line = clock.shows(&releases[0])?;
        ensure!(!line.contains("UTC"), "{line}");
        Ok((Self { shop, clock, versions, releases }, line))
    }

    fn shown(&self, namespace: &str) -> Result<String> {
        let version = &self.versions[0];
        let shown = self.shop.annotation(ANNOTATION)?;
        ensure!(shown == format!("tzdata@{version}"), "{ANNOTATION} is shown as {shown:?}");
        let table = done(&["ps", "shop"])?;
        let row = table.lines().nth(1).unwrap_or_default().to_owned();
        let words: Vec<&str> = row.split_whitespace().collect();
        ensure!(words.starts_with(&[namespace, "shop", "tzdata", version]), "{table}");
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
        within(PATIENCE, "no more draining", || Ok(ps()?.is_empty()))?;
        Ok(line)
    }

    fn restart(&self) -> Result<String> {
        self.shop.restart()?;
        let line = self.clock.shows(&self.releases[0])?;
        self.shop.expect(&[&format!("tzdata@{} attached", self.versions[0])])?;
        Ok(line)
    }
}
