//! What a child process is to have otherwise than its parent.

use std::process::Command;

use rustix::process::{Resource, Rlimit};

/// Gives the processes that `command` starts this limit of open files (`RLIMIT_NOFILE`, getrlimit(2)), whatever the caller
/// has: a program that uses select(2) must not be given descriptors above 1023.
///
/// Such a command is started by fork(2), and not by the faster vfork(2) (0.22 and 0.07 ms in a small process, Linux 6.18):
/// worth it only for a limit that differs from the caller's.
pub fn limit_open_files(command: &mut Command, limit: Rlimit) {
    crate::sys::set_limit_of_children(command, Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use rustix::process::getrlimit;

    use super::*;

    #[test]
    fn a_child_has_a_limit_of_its_own() {
        let own = getrlimit(Resource::Nofile);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -Sn; ulimit -Hn"]);
        limit_open_files(&mut command, Rlimit { current: Some(23), ..own });
        for _ in 0..2 {
            let limits = String::from_utf8(command.output().unwrap().stdout).unwrap();
            let hard = own.maximum.map_or("unlimited".to_owned(), |hard| hard.to_string());
            assert_eq!(limits, format!("23\n{hard}\n"));
        }
        assert_eq!(getrlimit(Resource::Nofile), own);
    }

    #[test]
    fn a_limit_that_cannot_be_is_an_error() {
        let mut command = Command::new("/bin/true");
        // The soft limit is above the hard one.
        limit_open_files(&mut command, Rlimit { current: Some(2), maximum: Some(1) });
        assert_eq!(command.spawn().unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
}
