//! Power cuts of a VM at work: what was acknowledged is there, and nothing else.
//!
//! `CAPSULE_POWER_CUTS` is the number of cuts on each file system, `CAPSULE_POWER_SEED` the seed of the clients and of
//! the cuts. What was counted is written past the test harness, which would show it of failures only.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use capsule_integration::machine::Kind;
use capsule_integration::power::machine::{Filesystem, Load, Omission, Work};
use capsule_integration::power::{self, Campaign, Outcome};
use capsule_integration::workspace::{Workspace, require_root};

const CUTS: usize = 100;
/// Enough to find what is left out: most cuts do.
const CUTS_OF_MUTANTS: usize = 24;

fn setting(name: &str) -> Result<Option<usize>> {
    let value = std::env::var(name).ok();
    value.map(|value| value.parse().with_context(|| format!("{name} is {value:?}, not a number"))).transpose()
}

fn cut_power(load: (Filesystem, Work), omission: Option<Omission>, cuts: usize) -> Result<Outcome> {
    require_root("cutting a VM's power")?;
    let workspace = Workspace::of(Path::new(env!("CARGO_BIN_EXE_capsule-testbed")))?;
    let _lock = workspace.lock(Kind::Vm.turn())?;
    let seed = u64::try_from(setting("CAPSULE_POWER_SEED")?.unwrap_or(1))?;
    let (filesystem, work) = load;
    let calls = match work {
        Work::Snapshots => 500,
        Work::Attachments => 160,
    };
    let load = Load { filesystem, work, seed, calls, seconds: 180, omission };
    power::run(&workspace, Campaign { load, cuts })
}

fn tell(outcome: &Outcome) -> Result<()> {
    writeln!(std::io::stderr(), "{outcome}").context("tell the outcome")
}

fn nothing_is_lost(filesystem: Filesystem, work: Work) -> Result<()> {
    let cuts = setting("CAPSULE_POWER_CUTS")?.unwrap_or(CUTS);
    let outcome = cut_power((filesystem, work), None, cuts)?;
    tell(&outcome)?;
    let compared: usize = outcome.verdicts.iter().map(|verdict| verdict.compared).sum();
    ensure!(compared > cuts, "hardly anything had been there: {compared} trees in {cuts} cuts");
    ensure!(outcome.failures().next().is_none(), "power cuts lost something, see above");
    Ok(())
}

#[test]
fn privileged_vm_power_cuts_lose_nothing_on_ext4() -> Result<()> {
    nothing_is_lost(Filesystem::Ext4, Work::Snapshots)
}

#[test]
fn privileged_vm_power_cuts_lose_nothing_on_xfs() -> Result<()> {
    nothing_is_lost(Filesystem::Xfs, Work::Snapshots)
}

/// Attachments, what is written to them, and versions that share files.
#[test]
fn privileged_vm_power_cuts_lose_nothing_attached() -> Result<()> {
    nothing_is_lost(Filesystem::Ext4, Work::Attachments)
}

/// The campaign itself is tested: a capsuled that does not sync must be found out.
#[test]
fn privileged_vm_power_cuts_find_what_is_not_synced() -> Result<()> {
    for (omission, work) in [
        (Omission::Syncfs, Work::Snapshots),
        (Omission::Fdatasync, Work::Snapshots),
        (Omission::Fdatasync, Work::Attachments),
    ] {
        let outcome = cut_power((Filesystem::Ext4, work), Some(omission), CUTS_OF_MUTANTS)?;
        let (lost, cuts) = (outcome.failures().count(), outcome.verdicts.len());
        writeln!(
            std::io::stderr(),
            "without {}, {work}: {lost} of {cuts} cuts lost something",
            omission.name()
        )
        .context("tell the outcome")?;
        ensure!(lost > 0, "nobody noticed that capsuled does not call {}", omission.name());
    }
    Ok(())
}
