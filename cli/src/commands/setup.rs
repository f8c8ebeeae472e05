//! `setup`: shows what is to be changed in containerd's configuration, asks, and writes it.

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::{Target, write_out};
use crate::args::{DEFAULT_ADDRESS, Output, SetupArgs};
use crate::error::Error;
use crate::host::cgroups::Driver;
use crate::host::{DEFAULT_SETTINGS, Release, Settings, containerd};
use crate::setup::{self, Edited, Prepared, SetupError, Systemd, Wanted};
use crate::text::{Text, escape_control};

/// Result of `setup`.
#[derive(Debug, Serialize)]
struct Done {
    /// Whether the files were written.
    written: bool,
    undo: bool,
    files: Vec<File>,
    /// Of an undo: what was changed since, and stays.
    kept: Vec<String>,
    /// What else is to be done or known.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct File {
    path: String,
    /// `created`, `changed` or `removed`.
    change: &'static str,
    /// As `diff -u` shows it.
    diff: String,
    /// Where it is kept as it was before; `null` when it was kept there already, or was not there.
    backup: Option<String>,
}

impl File {
    fn new(prepared: &Prepared, edited: &Edited) -> Self {
        let change = match (&edited.before, &edited.after) {
            (None, _) => "created",
            (_, None) => "removed",
            _ => "changed",
        };
        let backup = prepared.backup(&edited.path).map(|path| path.display().to_string());
        Self { path: edited.path.display().to_string(), change, diff: setup::difference(edited), backup }
    }
}

/// What is said after the difference.
impl Text for Done {
    fn text(&self, _: SystemTime) -> String {
        let mut text = String::new();
        if self.files.is_empty() {
            let nothing = if self.undo { "nothing to take back" } else { "nothing to change" };
            text.push_str(&format!("{nothing}\n"));
        }
        for File { path, change, backup, .. } in self.files.iter().filter(|_| self.written) {
            let kept = backup.as_ref().map(|path| format!("; as it was: {path}")).unwrap_or_default();
            // Writing to a String does not fail.
            let _ = writeln!(text, "{}", escape_control(&format!("{path} {change}{kept}")));
        }
        for note in &self.notes {
            let _ = writeln!(text, "{}", escape_control(note));
        }
        text
    }
}

/// Changes containerd's configuration, or takes that back.
///
/// # Errors
/// [`SetupError`].
pub async fn setup(to: Target<'_>, args: SetupArgs) -> Result<(), Error> {
    let socket = to.socket("setup")?;
    let settings = Settings::read(DEFAULT_SETTINGS.as_ref());
    let mut notes = Vec::new();
    let prepared = if args.undo {
        setup::prepare_undo(&args.config)?
    } else {
        let wanted = wanted(socket, &args, &settings).await?;
        if wanted.release.is_1_7() && settings.remap_ids {
            notes.push(format!(
                "containerd {} maps no ids: set snapshots.remap_ids = false in {DEFAULT_SETTINGS}",
                wanted.release
            ));
        }
        setup::prepare(&args.config, &wanted)?
    };
    let files: Vec<File> = prepared.edited.iter().map(|edited| File::new(&prepared, edited)).collect();
    let changes = !files.is_empty();
    if changes && !args.yes && !args.dry_run && !io::stdin().is_terminal() {
        return Err(SetupError::NoTerminal.into());
    }
    if args.undo && !prepared.has_record() {
        notes.push(format!("setup has changed nothing that is on record for {}", args.config.display()));
    }
    if changes {
        notes.insert(
            0,
            "containerd reads its configuration when it starts: restart it (`systemctl restart containerd`)"
                .to_owned(),
        );
    }
    notes.extend(prepared.notes.iter().cloned());
    let kept = prepared.kept.clone();
    if to.output == Output::Text && !args.dry_run {
        write_out(prepared.diff().as_bytes())?;
    }
    if changes && !args.yes && !args.dry_run {
        ask(&to, &prepared)?;
    }
    let mut done = Done { written: false, undo: args.undo, files, kept, notes };
    if args.dry_run {
        done.notes.clear();
        return match to.output {
            Output::Text if changes => write_out(prepared.diff().as_bytes()),
            _ => to.print(&done, &done),
        };
    }
    if changes || args.undo {
        prepared.write()?;
    }
    done.written = changes;
    to.print(&done, &done)?;
    if done.kept.is_empty() { Ok(()) } else { Err(SetupError::Kept(done.kept).into()) }
}

async fn wanted(socket: &Path, args: &SetupArgs, settings: &Settings) -> Result<Wanted, SetupError> {
    let release = match args.containerd_version {
        Some(release) => Some(release),
        None => containerd::release(&settings.containerd).await,
    };
    let release = release.ok_or(SetupError::NoRelease)?;
    if !Release::is_known(release) {
        return Err(SetupError::Release(release.to_string()));
    }
    // What capsuled's configuration says goes, unless another address was named.
    let is_default = socket.as_os_str() == DEFAULT_ADDRESS;
    let address = if is_default { settings.socket.as_path() } else { socket };
    let systemd = match args.systemd_cgroup.made() {
        Some(value) => Systemd::Asked(value),
        None => Systemd::Fits(Driver::read().fits()),
    };
    Ok(Wanted {
        release,
        snapshotter: settings.snapshotter.clone(),
        address: address.display().to_string(),
        root: settings.root.display().to_string(),
        remap_ids: settings.remap_ids,
        cri: args.cri.made(),
        systemd,
    })
}

/// Asks a person. What is asked about is on the screen, or is shown there too.
fn ask(to: &Target<'_>, prepared: &Prepared) -> Result<(), Error> {
    let mut stderr = io::stderr().lock();
    let shown = if to.output == Output::Json { prepared.diff() } else { String::new() };
    write!(stderr, "{shown}Write this? [y/N] ").and_then(|()| stderr.flush()).map_err(Error::Print)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|source| Error::Stdin { source })?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(SetupError::Declined.into())
}
