//! System calls that a version denies: to containers that are created with it, and to processes that are started while it is attached.
//! Pure.
//!
//! | level | denies |
//! | --- | --- |
//! | `baseline` | what administers the machine: mounts, `unshare` and `setns`, modules, the clock, swap, quotas, BPF, tracing of the kernel, keys |
//! | `restricted` | that, and what looks into other processes or has been a way into the kernel: ptrace, io_uring, userfaultfd, chroot, device nodes |
//!
//! `baseline` is most of what Docker's and containerd's profile denies to a container without capabilities; most containers of Kubernetes have no filter
//! (`seccompDefault` is off unless a kubelet is told). A name stands for the list of the capsuled that attaches.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use syscalls::{aarch64, arm, x86, x86_64};

/// Of `baseline`.
const ADMINISTRATION: &[&str] = &[
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_settime",
    "clock_settime64",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "vhangup",
    "vm86",
    "vm86old",
];

/// What `restricted` has more.
const OTHERS: &[&str] = &[
    "chroot",
    "fanotify_init",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kcmp",
    "mknod",
    "mknodat",
    "name_to_handle_at",
    "personality",
    "pidfd_getfd",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "userfaultfd",
];

/// What i386 has for calls beside what has their name and a number: `socketcall` and `ipc` are many of them in one.
const SAME: &[(&[&str], &str)] = &[
    (
        &[
            "accept",
            "accept4",
            "bind",
            "connect",
            "getpeername",
            "getsockname",
            "getsockopt",
            "listen",
            "recv",
            "recvfrom",
            "recvmmsg",
            "recvmsg",
            "send",
            "sendmmsg",
            "sendmsg",
            "sendto",
            "setsockopt",
            "shutdown",
            "socket",
            "socketpair",
        ],
        "socketcall",
    ),
    (
        &[
            "msgctl",
            "msgget",
            "msgrcv",
            "msgsnd",
            "semctl",
            "semget",
            "semop",
            "semtimedop",
            "shmat",
            "shmctl",
            "shmdt",
            "shmget",
        ],
        "ipc",
    ),
    (&["mmap"], "mmap2"),
    (&["lseek"], "_llseek"),
    (&["select"], "_newselect"),
    (&["umount2"], "umount"),
    (&["getrlimit"], "ugetrlimit"),
    (&["wait4"], "waitpid"),
];

/// What a runtime, or any program, needs between the moment a filter is there and the program's first own instruction: without one of
/// these no process starts. Measured: each call of x86-64 denied alone, for root, a user and a terminal, with `no_new_privileges` and
/// without (then runc's filter is there before it has changed its user), by runc 1.1 and 1.3 and crun 1.21 and 1.28.
const NEEDED: &[&str] = &[
    "arch_prctl",
    "capget",
    "capset",
    "chdir",
    "close",
    "execve",
    "exit_group",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "mprotect",
    "newfstatat",
    "openat",
    "prctl",
    "read",
    "setgid",
    "setgroups",
    "setresgid",
    "setresuid",
    "setuid",
    "statx",
    "write",
];

/// A named list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What administers the machine.
    Baseline,
    /// That, and more.
    Restricted,
}

impl Level {
    const ALL: [Self; 2] = [Self::Baseline, Self::Restricted];

    fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }

    fn calls(self) -> impl Iterator<Item = &'static str> {
        let more = if self == Self::Restricted { OTHERS } else { &[] };
        ADMINISTRATION.iter().chain(more).copied()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a version denies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seccomp {
    /// All of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// And these.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub deny: BTreeSet<String>,
}

/// What cannot be denied: which, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidDenial {
    /// As it was written.
    pub which: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Seccomp {
    /// Judges what a publisher wrote: a level's name or nothing, and names of calls.
    ///
    /// # Errors
    /// [`InvalidDenial`].
    pub fn parse(level: &str, deny: Vec<String>) -> Result<Self, InvalidDenial> {
        let invalid = |which: &str, reason| InvalidDenial { which: which.to_owned(), reason };
        let level = match level {
            "" => None,
            name => Some(
                Level::ALL
                    .into_iter()
                    .find(|level| level.name() == name)
                    .ok_or_else(|| invalid(name, "a level is baseline or restricted"))?,
            ),
        };
        Self { level, deny: deny.into_iter().collect() }.checked()
    }

    /// The same, if all of it can be denied.
    ///
    /// # Errors
    /// [`InvalidDenial`].
    pub fn checked(self) -> Result<Self, InvalidDenial> {
        for name in &self.deny {
            let reason = match name.as_str() {
                name if NEEDED.contains(&name) => "no process could be started without it",
                name if !is_call(name) => "it is no system call: see syscalls(2) for their names",
                _ => continue,
            };
            return Err(InvalidDenial { which: name.clone(), reason });
        }
        Ok(self)
    }

    /// Whether nothing is denied.
    pub fn is_empty(&self) -> bool {
        self.level.is_none() && self.deny.is_empty()
    }

    /// All that is denied, in the order of the alphabet, with what programs of 32 bits have for the same.
    pub fn calls(&self) -> Vec<String> {
        let mut all: BTreeSet<String> =
            self.level.into_iter().flat_map(Level::calls).map(str::to_owned).collect();
        all.extend(self.deny.iter().cloned());
        let others: Vec<String> = all.iter().flat_map(|name| same_in_32_bits(name)).collect();
        all.extend(others);
        all.into_iter().collect()
    }
}

/// Calls of 32-bit programs, by other names, that do what a call does, or with others what many do.
fn same_in_32_bits(name: &str) -> Vec<String> {
    let numbered = ["32", "64", "_time64"].map(|suffix| format!("{name}{suffix}"));
    let mut all: Vec<String> = numbered.into_iter().filter(|name| is_call(name)).collect();
    let (_, more) = SAME.iter().find(|(names, _)| names.contains(&name)).unwrap_or(&(&[], ""));
    all.extend((!more.is_empty()).then(|| (*more).to_owned()));
    all
}

/// Whether the kernel has a call of this name, on any machine that is built for.
fn is_call(name: &str) -> bool {
    x86_64::Sysno::from_str(name).is_ok()
        || x86::Sysno::from_str(name).is_ok()
        || aarch64::Sysno::from_str(name).is_ok()
        || arm::Sysno::from_str(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(level: &str, deny: &[&str]) -> Result<Seccomp, InvalidDenial> {
        Seccomp::parse(level, deny.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn levels_are_of_calls_that_there_are_and_nothing_that_is_needed() {
        for level in Level::ALL {
            let calls: Vec<&str> = level.calls().collect();
            for call in &calls {
                assert!(is_call(call) && !NEEDED.contains(call), "{level}: {call}");
            }
            let once: BTreeSet<&str> = calls.iter().copied().collect();
            assert_eq!(once.len(), calls.len(), "{level}");
        }
        let (less, more) = (parse("baseline", &[]).unwrap(), parse("restricted", &[]).unwrap());
        assert!(less.calls().iter().all(|call| more.calls().contains(call)));
        assert!(!less.calls().contains(&"ptrace".to_owned()) && more.calls().contains(&"ptrace".to_owned()));
    }

    #[test]
    fn calls_come_on_top_of_a_level_each_once() {
        let both = parse("baseline", &["socket", "mount", "socket"]).unwrap();
        assert_eq!(both.calls().len(), ADMINISTRATION.len() + 2);
        assert_eq!(parse("", &["socket", "clone3"]).unwrap().calls(), ["clone3", "socket", "socketcall"]);
        assert_eq!(
            parse("", &["chown", "ppoll"]).unwrap().calls(),
            ["chown", "chown32", "ppoll", "ppoll_time64"]
        );
        assert!(SAME.iter().all(|(names, other)| is_call(other) && names.iter().all(|name| is_call(name))));
        assert!(parse("", &[]).unwrap().is_empty() && !both.is_empty());
    }

    #[test]
    fn what_cannot_be_denied_is_named() {
        for (level, deny, which, reason) in [
            ("Baseline", &[][..], "Baseline", "baseline or restricted"),
            ("", &["socket", "sokcet"], "sokcet", "no system call"),
            ("", &["execve"], "execve", "no process could be started"),
            ("", &[""], "", "no system call"),
        ] {
            let error = parse(level, deny).unwrap_err();
            assert_eq!(error.which, which);
            assert!(error.reason.contains(reason), "{error:?}");
        }
    }
}
