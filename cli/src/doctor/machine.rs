//! The machine itself: its kernel, control groups and disk.

use std::ffi::OsStr;
use std::path::Path;

use bytesize::ByteSize;
use rustix::fs::statvfs;
use rustix::process::geteuid;

use super::Finding;
use crate::host::cgroups::Cgroups;
use crate::host::run;

/// What limits of containers need.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// With less than this, capsuled removes what it can at once.
const SCARCE: u64 = 64 << 20;
/// With less than this, a large version may find no room.
const LITTLE: u64 = 1 << 30;

/// What trying out the kernel has given.
#[derive(Debug)]
enum Trial {
    /// What it can do, or what it cannot, in capsuled's words.
    Done(Result<String, String>),
    /// Nobody tried, because of this.
    Not(&'static str),
}

/// The kernel, tried out by capsuled's own probe.
pub async fn kernel(capsuled: Option<&Path>) -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let trial = match capsuled {
        None => Trial::Not("capsuled, which tries it out, is not installed"),
        Some(_) if !geteuid().is_root() => Trial::Not("trying it out needs root"),
        Some(program) => Trial::Done(match run(program, &[OsStr::new("--check-kernel")]).await {
            Ok(ran) if ran.ok => Ok(ran.out.trim().to_owned()),
            Ok(ran) => Err(ran.err.trim().trim_start_matches("capsuled: ").to_owned()),
            Err(reason) => Err(format!("{} --check-kernel: {reason}", program.display())),
        }),
    };
    judge_kernel(&release, trial)
}

fn judge_kernel(release: &str, trial: Trial) -> Finding {
    const CHECK: &str = "kernel";
    match trial {
        Trial::Done(Ok(features)) => Finding::ok(CHECK, features),
        Trial::Done(Err(reason)) => Finding::error(
            CHECK,
            format!("Linux {release} does not do: {reason}"),
            "capsules need Linux 6.6 or newer with overlayfs (docs/kernel-policy.md)",
        ),
        Trial::Not(reason) => {
            Finding::skipped(CHECK, format!("Linux {release}; what it can do is not known: {reason}"))
        }
    }
}

/// Control groups: limits and devices of live containers need version 2.
pub fn cgroups() -> Finding {
    judge_cgroups(&Cgroups::read())
}

fn judge_cgroups(cgroups: &Cgroups) -> Finding {
    const CHECK: &str = "cgroups";
    let found = match cgroups {
        Cgroups::Unified(controllers) => {
            let has = |name: &&str| controllers.iter().any(|controller| controller == name);
            let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
            let found = format!("version 2, with the controllers {}", controllers.join(", "));
            return match missing.as_slice() {
                [] => Finding::ok(CHECK, found),
                missing => Finding::warning(
                    CHECK,
                    format!("{found}; without {}", missing.join(", ")),
                    "attachments cannot change limits of what is missing; enable it in the kernel's command line or configuration",
                ),
            };
        }
        Cgroups::Hybrid => "version 1, with version 2 beside it for systemd (hybrid)",
        Cgroups::Old => "version 1",
        Cgroups::Nowhere => {
            return Finding::error(
                CHECK,
                "not mounted",
                "mount cgroup2 at /sys/fs/cgroup: no container starts without",
            );
        }
    };
    Finding::warning(
        CHECK,
        found,
        "capsules are attached, but limits and devices of live containers need version 2: boot with \
         systemd.unified_cgroup_hierarchy=1",
    )
}

/// Space where capsuled keeps versions.
pub fn disk(root: &Path) -> Finding {
    // The file system is the one of what is there already.
    let present = root.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    match statvfs(present) {
        Ok(stat) => judge_disk(root, stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize),
        Err(errno) => {
            Finding::skipped("disk", format!("{}: {}", present.display(), std::io::Error::from(errno)))
        }
    }
}

fn judge_disk(root: &Path, free: u64, all: u64) -> Finding {
    const CHECK: &str = "disk";
    let size = |bytes| ByteSize(bytes).display().iec().to_string();
    let found = format!("{} of {} free for {}", size(free), size(all), root.display());
    let advice =
        "make room (`capsulectl prune`), or move `root` in capsuled's configuration to a larger disk";
    match free {
        _ if free < SCARCE => Finding::error(CHECK, found, advice),
        _ if free < LITTLE => Finding::warning(CHECK, found, advice),
        _ => Finding::ok(CHECK, found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_kernel_is_as_capsuled_finds_it() {
        let state = |trial| judge_kernel("6.5.1", trial).state;
        assert_eq!(state(Trial::Done(Ok("Linux 6.18; …".into()))), State::Ok);
        assert_eq!(state(Trial::Not("x")), State::Skipped);
        let old = judge_kernel("6.5.1", Trial::Done(Err("Linux 6.5 is too old".into())));
        assert_eq!(old.state, State::Error);
        assert!(old.found.contains("too old") && old.advice.unwrap().contains("6.6"));
    }

    #[test]
    fn limits_need_version_2_with_its_controllers() {
        let all = || CONTROLLERS.map(str::to_owned).to_vec();
        assert_eq!(judge_cgroups(&Cgroups::Unified(all())).state, State::Ok);
        let less = judge_cgroups(&Cgroups::Unified(all()[..2].to_vec()));
        assert_eq!(less.state, State::Warning);
        assert!(less.found.ends_with("without memory, pids"), "{}", less.found);
        assert_eq!(judge_cgroups(&Cgroups::Hybrid).state, State::Warning);
        assert_eq!(judge_cgroups(&Cgroups::Old).state, State::Warning);
        assert_eq!(judge_cgroups(&Cgroups::Nowhere).state, State::Error);
    }

    #[test]
    fn a_disk_has_room_or_not() {
        let state = |free| judge_disk(Path::new("/x"), free, 1 << 40).state;
        assert_eq!(
            [state(1 << 20), state(1 << 29), state(1 << 35)],
            [State::Error, State::Warning, State::Ok]
        );
    }
}
