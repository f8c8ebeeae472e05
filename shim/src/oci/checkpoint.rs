//! `checkpoint` and `restore`: a container's processes written to files by criu, and made of them again.

use std::{ffi::OsString, path::Path};

use super::{NewProcess, Runtime, RuntimeError};
use crate::options::CheckpointOptions;

/// Where criu finds processes that it is to make again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images<'a> {
    /// The directory of their images.
    pub path: &'a Path,
    /// That of an earlier checkpoint, of which they are the difference.
    pub parent: Option<&'a Path>,
    /// Where it works and logs.
    pub work: &'a Path,
}

impl Runtime {
    /// Writes the container's processes to the directory `image`. criu works and logs in `work`, which is made.
    ///
    /// # Errors
    /// [`RuntimeError`]; then the container goes on.
    pub async fn checkpoint(
        &self,
        id: &str,
        image: &Path,
        work: &Path,
        options: &CheckpointOptions,
    ) -> Result<(), RuntimeError> {
        let mut args = checkpoint_args(image, work, options);
        args.push(id.into());
        self.call(&args).await.map(drop)
    }

    /// Makes a container with the processes that a checkpoint wrote down, which go on at once.
    ///
    /// # Errors
    /// [`RuntimeError`] with the last error in the runtime's log.
    pub async fn restore(
        &self,
        id: &str,
        images: &Images<'_>,
        new: NewProcess<'_>,
    ) -> Result<(), RuntimeError> {
        let mut args: Vec<OsString> = vec!["restore".into(), "--bundle".into(), (&self.bundle).into()];
        args.extend(["--image-path".into(), images.path.into(), "--work-path".into(), images.work.into()]);
        if let Some(parent) = images.parent {
            args.extend(["--parent-path".into(), parent.into()]);
        }
        // Its children are ours to reap.
        args.extend(["--detach".into(), "--no-subreaper".into()]);
        args.extend(self.create.iter().filter(|switch| *switch == "--no-pivot").cloned());
        self.make(args, id, new).await
    }
}

/// As containerd's own shim has them (go-runc, `CheckpointOpts.args`), and the mode of cgroups, which that leaves out.
fn checkpoint_args(image: &Path, work: &Path, options: &CheckpointOptions) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["checkpoint".into(), "--image-path".into(), image.into()];
    args.extend(["--work-path".into(), work.into()]);
    if let Some(parent) = &options.parent_path {
        args.extend(["--parent-path".into(), parent.into()]);
    }
    let switches = [
        ("--tcp-established", options.open_tcp),
        ("--ext-unix-sk", options.external_unix_sockets),
        ("--shell-job", options.terminal),
        ("--file-locks", options.file_locks),
        ("--leave-running", !options.exit),
    ];
    args.extend(switches.into_iter().filter(|(_, on)| *on).map(|(switch, _)| switch.into()));
    for namespace in &options.empty_namespaces {
        args.extend(["--empty-ns".into(), namespace.into()]);
    }
    if !options.cgroups_mode.is_empty() {
        args.extend(["--manage-cgroups-mode".into(), options.cgroups_mode.as_str().into()]);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_switches() {
        let args = |options| {
            let args = checkpoint_args(Path::new("/i"), Path::new("/w"), &options);
            args.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        let begin = "checkpoint --image-path /i --work-path /w";
        assert_eq!(args(CheckpointOptions::default()), format!("{begin} --leave-running"));
        let all = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into(), "pid".into()],
            cgroups_mode: "soft".into(),
            work_path: None,
            parent_path: Some("/old".into()),
        };
        let switches = "--parent-path /old --tcp-established --ext-unix-sk --shell-job --file-locks --empty-ns network \
                        --empty-ns pid --manage-cgroups-mode soft";
        assert_eq!(args(all), format!("{begin} {switches}"));
    }
}
