//! The package on a machine of Debian's: installed, used, upgraded under readers, removed and purged. What is done is what
//! [`docs::INSTALL`] shows, with apt and systemd; what is proved is beside it.

mod memory;
mod node;
mod remote;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, ensure};

use self::node::{CHOICES, CONFIG, DATA, NAME, PROGRAMS, UNITS};
use super::boots::{send_journal, systemctl};
use super::capsulectl::{done, ps, publish, tzdata};
use super::ctr::{Container, OURS, ctr, run as run_program};
use super::docs;
use super::readers::{Clock, Readers, VOLUMES, expect_seamless};
use super::upgrade::Load;
use super::world::CAPSULED_SOCKET;
use crate::event::Reporter;

const ID: &str = "shop";
/// Its two releases disagree about this place's winter.
const ZONE: &str = "America/Vancouver";
const RELEASE: &str = "/usr/share/zoneinfo/tzdata.zi";
/// What an administrator has written into the configuration.
const EDITED: &str = "\n# Edited by hand.\n";

/// Runs it.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    let outcome = all(reporter);
    if outcome.is_err() || !reporter.all_ok() {
        send_journal(reporter);
    }
    outcome
}

fn all(reporter: &mut Reporter) -> Result<()> {
    let before = reporter.must("a machine with Debian's containerd, and none of our programs", || {
        let before = node::prepare()?;
        let detail = format!("{} files", before.len());
        Ok((before, detail))
    })?;
    docs::section(reporter, docs::INSTALL, "Install")?;
    reporter.check("all of the package is there, and runs as it says", installed);
    reporter.check("systemd has nothing to say of its units", units_are_sound);
    reporter.check("the image's node-install refuses a node that has it", not_twice);
    reporter.must("the remote API is switched on, and answers a client file", || {
        Ok(((), remote::switched_on()?))
    })?;
    reporter.check("its services take little memory", memory::measured);
    let shop = upgraded_under_readers(reporter)?;
    reporter.check("removal is refused while a container runs with it", removal_is_refused);
    reporter.must("removed all the same, the container goes on, and is found again", || {
        Ok(((), removed_anyway(shop)?))
    })?;
    docs::section(reporter, docs::INSTALL, "Remove")?;
    reporter.check("what was removed is gone, what was made and written stays", removed);
    docs::section(reporter, docs::INSTALL, "Purge")?;
    reporter.check("after purge nothing is left but data", || purged(&before));
    reporter.check("purged without data, nothing is left at all", || purged_empty(&before));
    Ok(())
}

/// Units, programs, pages, completions and the configuration.
fn installed() -> Result<String> {
    for unit in UNITS {
        for question in ["is-enabled", "is-active"] {
            systemctl(&[question, unit]).with_context(|| format!("{question} {unit}"))?;
        }
    }
    for unit in CHOICES {
        let [enabled, active] = ["is-enabled", "is-active"]
            .map(|question| run_program("systemctl", &[question, unit], b"").map(|output| output.out));
        let state = format!("{} {}", enabled?.trim(), active?.trim());
        ensure!(state == "disabled inactive", "{unit} is {state}");
    }
    let pid = node::capsuled()?;
    for file in [
        "/usr/share/man/man1/capsulectl.1.gz",
        "/usr/share/man/man1/capsulectl-attach.1.gz",
        "/usr/share/man/man1/capsulectl-metrics.1.gz",
        "/usr/share/man/man5/capsuled-config.5.gz",
        "/usr/share/man/man5/capsule.toml.5.gz",
        "/usr/share/man/man8/capsuled.8.gz",
        "/usr/share/man/man8/capsule-remote.8.gz",
        "/usr/share/man/man8/containerd-shim-capsule-v1.8.gz",
        "/usr/share/bash-completion/completions/capsulectl",
        "/usr/share/zsh/vendor-completions/_capsulectl",
        "/usr/share/fish/vendor_completions.d/capsulectl.fish",
        "/usr/share/doc/resource-capsules/copyright",
        "/usr/share/doc/resource-capsules/docs/install.md",
        "/usr/share/doc/resource-capsules/docs/adr/README.md",
        "/usr/share/doc/resource-capsules/docs/tasks/ca-bundles.md",
        "/usr/share/doc/resource-capsules/examples/grafana/resource-capsules.json",
    ] {
        ensure!(fs::metadata(file).is_ok_and(|meta| meta.len() > 100), "{file} is not there");
    }
    let conffiles = run_program("dpkg-query", &["-W", "-f", "${Conffiles}", NAME], b"")?.out;
    ensure!(conffiles.trim().starts_with(CONFIG) && conffiles.trim().lines().count() == 1, "{conffiles:?}");
    let differs = run_program("dpkg", &["--verify", NAME], b"")?.out;
    ensure!(differs.is_empty(), "{differs}");
    Ok(format!("capsuled is process {pid}"))
}

/// As a cluster's DaemonSet runs it, with the image's busybox. What it would write into is not there.
fn not_twice() -> Result<String> {
    let refused = run_program("busybox", &["sh", "/payload/configs/image/node-install"], b"")?;
    let said = refused.err.trim().to_owned();
    ensure!(
        refused.code == 1 && said.contains("capsuled runs on this node already, by its package"),
        "{refused:?}"
    );
    ensure!(refused.out.is_empty() && !Path::new("/node").exists(), "it has gone on: {refused:?}");
    Ok(said)
}

/// As they are installed, with the programs and units that they name.
fn units_are_sound() -> Result<String> {
    // The machine has no man(1).
    let verify = [&["verify", "--man=no"][..], &UNITS, &CHOICES].concat();
    let verified = run_program("systemd-analyze", &verify, b"")?;
    let said = format!("{}{}", verified.out, verified.err);
    ensure!(verified.code == 0 && said.is_empty(), "exit status {}: {said}", verified.code);
    Ok(String::new())
}

/// The newer package is installed while readers read in a container, and clients call.
fn upgraded_under_readers(reporter: &mut Reporter) -> Result<Container> {
    let (clock, [old, new]) = (Clock::new()?, tzdata()?);
    let shop = reporter.must("a container runs with a capsule", || {
        OURS.import()?;
        publish()?;
        let shop = OURS.start(ID, &VOLUMES, &Clock::command(ZONE))?;
        done(&["attach", ID, &format!("tzdata@{}", old.0)])?;
        fs::write(CONFIG, fs::read_to_string(CONFIG)? + EDITED).context(CONFIG)?;
        Ok((shop, done(&["ps"])?))
    })?;
    let allowed = [&old, &new].map(|(version, _)| format!("/reference/tzdata-{version}/tzdata.zi"));
    let (readers, load) = reporter.must("readers read in it, and a client calls capsuled", || {
        let readers = Readers::start(&shop, 2, RELEASE, &allowed)?;
        Ok(((readers, Load::start(CAPSULED_SOCKET, 1, false)), String::new()))
    })?;
    let (first, known) = (node::capsuled()?, ps()?);
    let first_remote = node::process(remote::NAME)?;
    let outcome = docs::section(reporter, docs::INSTALL, "Upgrade");
    let calls = load.calls.clone();
    let failures = load.end();
    reporter.check("no call has failed", || {
        ensure!(failures.is_empty(), "{} failed: {}", failures.len(), failures.join("; "));
        Ok(format!("{} calls", calls.load(Ordering::Relaxed)))
    });
    reporter.check("the new program runs, and knows what the old one knew", || {
        let (state, revision) = node::state()?;
        ensure!((state.as_str(), revision.as_str()) == ("ii", "2"), "{state} {revision}");
        let second = node::capsuled()?;
        ensure!(second != first, "it is still process {first}");
        let after = ps()?;
        ensure!(after == known, "before: {known:?}, after: {after:?}");
        ensure!(fs::read_to_string(CONFIG)?.ends_with(EDITED), "the configuration was replaced");
        Ok(format!("process {first}, then {second}"))
    });
    reporter.check("so does the remote API's", || {
        let second = node::process(remote::NAME)?;
        ensure!(second != first_remote, "it is still process {first_remote}");
        remote::called()?;
        Ok(format!("process {first_remote}, then {second}"))
    });
    reporter.check("the container's shim, which is older, changes versions for it", || {
        done(&["upgrade", ID, &format!("tzdata@{}", new.0)])
    });
    reporter.check("no reader missed anything", || expect_seamless(&readers.stop()?));
    reporter.check("the container's process is the same", || clock.expect_one_process());
    outcome.map(|()| shop)
}

fn removal_is_refused() -> Result<String> {
    let output = node::apt(&["remove", NAME], &[])?;
    // apt of today gives dpkg a terminal.
    let all = format!("{}{}", output.out, output.err).replace('\r', "");
    let words = [format!("  default/{ID}\n"), "End them and repeat this".to_owned()];
    ensure!(
        output.code != 0 && words.iter().all(|words| all.contains(words)),
        "exit status {}: {all}",
        output.code
    );
    let (state, _) = node::state()?;
    ensure!(state == "ii", "dpkg says {state}");
    Ok(format!("capsuled is process {}", node::capsuled()?))
}

/// Without its programs, a container runs on; with them, it is all as it was.
fn removed_anyway(shop: Container) -> Result<String> {
    let (clock, known) = (Clock::running(), ps()?);
    node::apt(&["remove", NAME], &[("CAPSULE_REMOVE_ANYWAY", "1")])?.success("apt-get remove")?;
    ensure!(!Path::new("/usr/bin/capsuled").exists(), "capsuled is there");
    let ticks = clock.ticks()?;
    node::apt(&["install", &node::newer()?], &[])?.success("apt-get install")?;
    node::capsuled()?;
    systemctl(&["is-enabled", remote::NAME])?;
    let after = ps()?;
    ensure!(after == known, "before: {known:?}, after: {after:?}");
    done(&["detach", ID, "tzdata", "--lazy"])?;
    shop.remove()?;
    Ok(ticks)
}

fn removed() -> Result<String> {
    for program in PROGRAMS {
        ensure!(!Path::new("/usr/bin").join(program).exists(), "{program} is there");
    }
    for unit in UNITS.iter().chain(&CHOICES) {
        let active = run_program("systemctl", &["is-active", unit], b"")?.out;
        ensure!(active.trim() != "active", "{unit} is active");
    }
    ensure!(!Path::new(CAPSULED_SOCKET).exists(), "the socket is there");
    ensure!(fs::read_to_string(CONFIG)?.ends_with(EDITED), "the configuration is not as it was");
    ensure!(Path::new(DATA).join("metadata.redb").exists(), "the store is gone");
    ctr(&["version"])?.success("ctr version")?;
    let (state, _) = node::state()?;
    Ok(format!("dpkg says {state}"))
}

fn purged(before: &BTreeSet<String>) -> Result<String> {
    // The keys of an authority are data, too.
    ensure!(Path::new(remote::CERTIFICATES).join("ca.key").exists(), "the authority's key is gone");
    fs::remove_dir_all(remote::CERTIFICATES).context(remote::CERTIFICATES)?;
    nothing_but(before)?;
    let data = run_program("du", &["-sh", DATA], b"")?.success("du")?;
    Ok(format!("left: {}", data.trim()))
}

fn nothing_but(before: &BTreeSet<String>) -> Result<()> {
    let after = node::on_disk()?;
    let new: Vec<_> = after.difference(before).collect();
    let gone: Vec<_> = before.difference(&after).collect();
    ensure!(new.is_empty() && gone.is_empty(), "left: {new:?}; missing: {gone:?}");
    Ok(())
}

/// As when nothing was ever made with it.
fn purged_empty(before: &BTreeSet<String>) -> Result<String> {
    fs::remove_dir_all(DATA).context(DATA)?;
    node::apt(&["install", &node::newer()?], &[])?.success("apt-get install")?;
    node::capsuled()?;
    let said = node::apt(&["purge", NAME], &[])?.success("apt-get purge")?;
    ensure!(!Path::new(DATA).exists(), "{DATA} is there: {said}");
    nothing_but(before)?;
    Ok(String::new())
}
