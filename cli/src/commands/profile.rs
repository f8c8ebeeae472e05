//! `profile`: which of the services run, and what they take; and another choice of them.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use toml_edit::DocumentMut;

use super::Target;
use crate::args::ProfileArgs;
use crate::error::Error;
use crate::host::{Ran, find, judged, own_path, run};
use crate::profile::{Profile, ProfileError, ends_when_idle};
use crate::setup;
use crate::text::{Text, size};

const CAPSULED: &str = "capsuled.service";
const METRICS: &str = "capsule-metrics.service";
/// The remote API is its own decision: docs/remote.md.
const REMOTE: &str = "capsule-remote.service";

/// Result of `profile`.
#[derive(Debug, Serialize)]
struct Shown {
    /// `null` where what runs is none of them.
    profile: Option<Profile>,
    services: Vec<Service>,
}

#[derive(Debug, Serialize)]
struct Service {
    name: &'static str,
    /// Whether it is started with the machine; one that its socket alone starts is not.
    enabled: bool,
    /// As systemd says it: `active`, `inactive`, `failed`.
    state: String,
    /// What it takes for itself (Pss of smaps_rollup, proc_pid_smaps(5)); `null` when it does not run, or cannot be looked at.
    memory: Option<u64>,
}

impl Text for Shown {
    fn text(&self, _: SystemTime) -> String {
        let name = self.profile.map_or("none of minimal, standard and full", Profile::name);
        let mut text = format!("{name}\n\n{:<26}{:<10}{:<12}MEMORY\n", "SERVICE", "ENABLED", "STATE");
        for Service { name, enabled, state, memory } in &self.services {
            let enabled = if *enabled { "yes" } else { "no" };
            let memory = memory.map_or_else(|| "-".to_owned(), size);
            let _ = writeln!(text, "{name:<26}{enabled:<10}{state:<12}{memory}"); // writing to a String does not fail
        }
        text
    }
}

/// Shows the profile, or makes it another one; what is done already is done again.
///
/// # Errors
/// [`ProfileError`].
pub async fn profile(to: Target<'_>, args: ProfileArgs) -> Result<(), Error> {
    to.socket("profile")?;
    let file = std::path::absolute(&args.capsuled_config).unwrap_or(args.capsuled_config);
    if !Path::new("/run/systemd/system").exists() {
        return Err(ProfileError::NoSystemd(file).into());
    }
    let mut config = read(&file)?;
    if let Some(profile) = args.profile {
        // Each step is done again where an earlier try came to no end.
        let has_metrics = is_installed(METRICS).await?;
        for (unit, is_installed) in [(CAPSULED, is_installed(CAPSULED).await?), (METRICS, has_metrics)] {
            if !is_installed && (unit == CAPSULED || profile.has_metrics()) {
                return Err(ProfileError::NoUnit(unit).into());
            }
        }
        if let Some(text) = profile.written(&config) {
            check(profile, &file, &text).await?;
            setup::write_file(&file, &text, &file).map_err(ProfileError::File)?;
            config = read(&file)?;
        }
        // Calls wait in its socket meanwhile. A minimal one that has ended stays so.
        systemctl(&[if profile == Profile::Minimal { "try-restart" } else { "restart" }, CAPSULED]).await?;
        if has_metrics {
            let enable = if profile.has_metrics() { "enable" } else { "disable" };
            systemctl(&[enable, "--now", METRICS]).await?;
        }
    }
    let mut services = Vec::new();
    for name in [CAPSULED, METRICS, REMOTE] {
        services.push(look(name).await?);
    }
    let profile = Profile::of(ends_when_idle(&config), services[1].enabled);
    let shown = Shown { profile, services };
    to.print(&shown, &shown)
}

/// A file that is not there says nothing.
fn read(file: &Path) -> Result<DocumentMut, ProfileError> {
    let text = setup::read_file(file)?.unwrap_or_default();
    text.parse().map_err(|error: toml_edit::TomlError| ProfileError::Syntax {
        file: file.to_owned(),
        message: error.message().to_owned(),
    })
}

/// Has capsuled judge what the file is to be.
async fn check(profile: Profile, file: &Path, text: &str) -> Result<(), ProfileError> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let trial = folder.join(format!(".profile-{}.toml", std::process::id()));
    setup::write_file(&trial, text, file)?;
    let checked = match program("capsuled") {
        Ok(program) => judged(&program, &trial).await.map_err(failed("capsuled --check-config")),
        Err(error) => Err(error),
    };
    let _ = fs::remove_file(&trial); // it was only to be read
    let checked = checked?;
    if checked.ok {
        return Ok(());
    }
    let said = format!("{}{}", checked.out, checked.err)
        .replace(&trial.display().to_string(), &file.display().to_string());
    Err(ProfileError::Refused {
        profile: profile.name(),
        file: file.to_owned(),
        message: said.trim().to_owned(),
    })
}

async fn is_installed(unit: &str) -> Result<bool, ProfileError> {
    let shown = ran("systemctl", &words(&["show", "--property=LoadState", "--value", unit])).await?;
    Ok(shown.out.trim() != "not-found")
}

async fn look(name: &'static str) -> Result<Service, ProfileError> {
    let enabled = ran("systemctl", &words(&["is-enabled", name])).await?.out;
    let shown = ran("systemctl", &words(&["show", "--property=ActiveState,MainPID", name])).await?.out;
    let property = |key: &str| {
        shown.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
    };
    let memory = property("MainPID").parse().ok().filter(|pid| *pid != 0).and_then(memory);
    let enabled = matches!(enabled.trim(), "enabled" | "enabled-runtime" | "indirect");
    Ok(Service { name, enabled, state: property("ActiveState").to_owned(), memory })
}

fn memory(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

async fn systemctl(args: &[&str]) -> Result<(), ProfileError> {
    let done = ran("systemctl", &words(args)).await?;
    if done.ok {
        return Ok(());
    }
    Err(ProfileError::Program {
        command: format!("systemctl {}", args.join(" ")),
        reason: done.err.trim().to_owned(),
    })
}

fn words<'a>(args: &[&'a str]) -> Vec<&'a OsStr> {
    args.iter().map(|word| OsStr::new(*word)).collect()
}

async fn ran(name: &str, args: &[&OsStr]) -> Result<Ran, ProfileError> {
    run(&program(name)?, args).await.map_err(failed(name))
}

fn program(name: &str) -> Result<PathBuf, ProfileError> {
    let found = find(name, &own_path());
    let found = found.map_err(|file| failed(name)(format!("{} cannot be executed", file.display())))?;
    found.ok_or_else(|| failed(name)("there is no such program on the path".to_owned()))
}

fn failed(command: &str) -> impl Fn(String) -> ProfileError {
    move |reason| ProfileError::Program { command: command.to_owned(), reason }
}
