//! What starts containers: our shim, and the OCI runtime below it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::Finding;
use crate::host::containerd::Process;
use crate::host::{Settings, find, own_path, run};
use crate::setup::SHIM;

/// Where shims look for capsuled, whatever its configuration says.
const RUN: &str = "/run/capsule";

/// A program, and what it says of its version.
#[derive(Debug)]
enum Program {
    /// None on the path.
    Missing,
    /// A file that cannot be executed.
    Denied(PathBuf),
    /// One that does not run.
    Broken(PathBuf, String),
    /// Its version, as it says it.
    Found(PathBuf, String),
}

/// Looks for both where the containerd that runs does, or on the own path if that is not known.
pub async fn examine(containerd: Option<&Process>, settings: &Settings) -> Vec<Finding> {
    let mut path = containerd.map_or_else(own_path, |process| process.path.clone());
    let whose =
        if containerd.is_some() { "containerd's PATH" } else { "the PATH (containerd's is not known)" };
    let runtimes = [look("runc", &path).await, look("crun", &path).await];
    // containerd looks for shims beside its own program, too.
    if let Some(beside) = containerd.and_then(|process| process.program.parent()) {
        path = std::env::join_paths(std::env::split_paths(&path).chain([beside.to_owned()])).unwrap_or(path);
    }
    let shim = look(SHIM, &path).await;
    let capsuled = reach(&settings.run).await;
    vec![judge_shim(&shim, whose, env!("CARGO_PKG_VERSION")), capsuled, judge_runtimes(&runtimes, whose)]
}

async fn look(name: &str, path: &OsString) -> Program {
    let program = match find(name, path) {
        Ok(Some(program)) => program,
        Ok(None) => return Program::Missing,
        Err(denied) => return Program::Denied(denied),
    };
    let flag = if name == SHIM { "-v" } else { "--version" };
    match run(&program, &[OsStr::new(flag)]).await {
        Ok(ran) if ran.ok => Program::Found(program, version_in(&ran.out)),
        Ok(ran) => Program::Broken(program, ran.err.trim().lines().last().unwrap_or_default().to_owned()),
        Err(reason) => Program::Broken(program, reason),
    }
}

/// From `runc version 1.3.6`, `crun version 1.28` and the shim's `  Version:  0.1.0`.
fn version_in(said: &str) -> String {
    let word = said.lines().find_map(|line| {
        let lower = line.to_ascii_lowercase();
        let at = lower.find("version")?;
        line[at + "version".len()..].trim_start_matches(':').split_whitespace().next()
    });
    word.unwrap_or("of an unknown version").to_owned()
}

fn judge_shim(shim: &Program, whose: &str, own: &str) -> Finding {
    const CHECK: &str = "shim";
    let install = "install it in a directory of it, as /usr/bin";
    match shim {
        Program::Missing => Finding::error(CHECK, format!("there is no {SHIM} on {whose}"), install),
        Program::Denied(file) => {
            let found = format!("{} cannot be executed", file.display());
            Finding::error(CHECK, found, format!("`chmod 0755 {}`", file.display()))
        }
        Program::Broken(file, reason) => {
            Finding::error(CHECK, format!("{} does not run: {reason}", file.display()), "install it anew")
        }
        Program::Found(file, version) if version == own => {
            Finding::ok(CHECK, format!("{} {version}, as capsulectl", file.display()))
        }
        Program::Found(file, version) => Finding::warning(
            CHECK,
            format!("{} is {version}, and capsulectl {own}", file.display()),
            "install both of one release; containers that run keep their shim",
        ),
    }
}

fn judge_runtimes([runc, crun]: &[Program; 2], whose: &str) -> Finding {
    const CHECK: &str = "runtime";
    let found = |name: &str, program: &Program| match program {
        Program::Found(file, version) => Some(format!("{name} {version} ({})", file.display())),
        _ => None,
    };
    match (found("runc", runc), found("crun", crun)) {
        (Some(runc), Some(crun)) => Finding::ok(CHECK, format!("{runc}, {crun}")),
        (Some(runc), None) => Finding::ok(CHECK, runc),
        (None, Some(crun)) => Finding::warning(
            CHECK,
            format!("{crun}, and no runc, which is taken where none is named"),
            "install runc, or name crun (BinaryName in the runtime's options)",
        ),
        (None, None) => {
            Finding::error(CHECK, format!("there is neither runc nor crun on {whose}"), "install runc")
        }
    }
}

/// Whether shims reach capsuled.
async fn reach(run: &Path) -> Finding {
    let socket = Path::new(RUN).join("node.sock");
    judge_reach(run, &socket, UnixStream::connect(&socket).await.map(drop))
}

fn judge_reach(run: &Path, socket: &Path, connected: io::Result<()>) -> Finding {
    const CHECK: &str = "shim-capsuled";
    let name = socket.display();
    if run != Path::new(RUN) {
        let found =
            format!("shims look for capsuled in {RUN}, and its configuration has run = {:?}", run.display());
        return Finding::error(CHECK, found, "leave `run` as it is by default");
    }
    match connected {
        Ok(()) => Finding::ok(CHECK, format!("shims reach capsuled at {name}")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::skipped(CHECK, format!("{name}: looking at it needs root"))
        }
        Err(error) => Finding::error(
            CHECK,
            format!("shims do not reach capsuled at {name} ({error})"),
            "start it; containers that name capsules or devices do not start without",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn programs_say_their_versions() {
        for (said, version) in [
            ("runc version 1.3.6\ncommit: x\n", "1.3.6"),
            ("crun version 1.28\ncommit: x\n", "1.28"),
            ("containerd-shim-capsule-v1:\n  Version:  0.1.0\n\n", "0.1.0"),
            ("", "of an unknown version"),
        ] {
            assert_eq!(version_in(said), version);
        }
    }

    #[test]
    fn the_shim_is_there_and_of_the_same_release() {
        let file = || PathBuf::from("/usr/bin/shim");
        for (program, state) in [
            (Program::Found(file(), "0.1.0".into()), State::Ok),
            (Program::Found(file(), "0.0.9".into()), State::Warning),
            (Program::Missing, State::Error),
            (Program::Denied(file()), State::Error),
            (Program::Broken(file(), "no such library".into()), State::Error),
        ] {
            assert_eq!(judge_shim(&program, "the PATH", "0.1.0").state, state, "{program:?}");
        }
    }

    #[test]
    fn one_oci_runtime_is_enough_if_it_is_runc() {
        let found = |name: &str| Program::Found(name.into(), "1".into());
        let state = |runc, crun| judge_runtimes(&[runc, crun], "the PATH").state;
        assert_eq!(state(found("runc"), found("crun")), State::Ok);
        assert_eq!(state(found("runc"), Program::Missing), State::Ok);
        assert_eq!(state(Program::Missing, found("crun")), State::Warning);
        assert_eq!(state(Program::Missing, Program::Missing), State::Error);
    }

    #[test]
    fn shims_reach_capsuled_where_they_look() {
        let state = |run: &str, connected| judge_reach(run.as_ref(), "/s".as_ref(), connected).state;
        assert_eq!(state(RUN, Ok(())), State::Ok);
        assert_eq!(state("/run/other", Ok(())), State::Error);
        assert_eq!(state(RUN, Err(io::ErrorKind::NotFound.into())), State::Error);
        assert_eq!(state(RUN, Err(io::ErrorKind::PermissionDenied.into())), State::Skipped);
    }
}
