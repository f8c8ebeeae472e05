//! How many descriptors the server may have open.
//!
//! It has several for each process of its containers, and a pod's server has many of these: more than the soft limit of
//! 1024 that systemd gives services allows. That limit is for programs that use select(2), which this one does not.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes all that the hard limit allows. Returns the limit as it was, which child processes are to have, if it is another
/// now. (A program in Go does both by itself, from Go 1.19 on.)
pub fn raise() -> Option<Rlimit> {
    let given = getrlimit(Resource::Nofile);
    if given.current == given.maximum {
        return None;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: given.maximum, ..given }) {
        Ok(()) => Some(given),
        Err(error) => {
            log::warn!("the limit of open files stays {:?}: {error}", given.current);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::reaper::Reaper;

    /// In a process of its own, whose limit is nobody else's.
    #[test]
    fn children_have_the_limit_that_the_shim_was_given() {
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "shim::open_files::tests::alone", "--ignored", "--nocapture"]);
        let output = alone.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[tokio::test]
    #[ignore = "run by children_have_the_limit_that_the_shim_was_given, in a process of its own"]
    async fn alone() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let given = Rlimit { current: Some(99), maximum: hard };
        setrlimit(Resource::Nofile, given).unwrap();
        assert_eq!(raise(), Some(given));
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: hard, maximum: hard });
        // What is all there is already is nothing that children need back.
        assert_eq!(raise(), None);
        let soft_limit_is = async |reaper: &Reaper, limit: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &format!("test \"$(ulimit -Sn)\" = {limit}")]);
            reaper.spawn(&mut command).unwrap().exited.await.unwrap().status == 0
        };
        let reaper = Reaper::start(Some(given)).unwrap();
        assert!(soft_limit_is(&reaper, "99").await);
        assert!(!soft_limit_is(&reaper, "98").await);
    }
}
