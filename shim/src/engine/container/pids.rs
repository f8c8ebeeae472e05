//! Which processes a container has. Its runtime finds them in its control group.
//!
//! Where it has none, as on a rootless node with version 1, no runtime knows. Then they are found by their parents, which in a
//! PID namespace of the container's own finds all: what loses its parent there becomes the init's child.

use std::{
    collections::{HashMap, HashSet},
    fs,
};

use super::Container;
use crate::{engine::EngineError, oci::RuntimeError};

impl Container {
    /// The pids of its processes, with the exec ids of those that are execs.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn pids(&self) -> Result<Vec<(u32, Option<String>)>, EngineError> {
        let listed = self.runtime.ps(self.id.as_str()).await;
        let execs: HashMap<u32, String> = self
            .execs()
            .iter()
            .map(|(id, exec)| (exec.process.state().pid().cast_unsigned(), id.clone()))
            .collect();
        let pids = match listed {
            // A containerd that is started anew takes a task of which it is told no process for one that has ended.
            Err(RuntimeError::Failed { .. }) if self.has_no_cgroup() => {
                plan(self.known_pids(), &read_parents())
            }
            listed => listed?,
        };
        Ok(pids.into_iter().map(|pid| (pid, execs.get(&pid).cloned())).collect())
    }

    /// Whether it is to have no control group, and its init lives.
    fn has_no_cgroup(&self) -> bool {
        self.spec.cgroups_path().is_empty() && self.init.state().live_pid().is_some()
    }

    /// The living processes that the shim has had made.
    fn known_pids(&self) -> Vec<u32> {
        let execs = self.execs();
        let processes = execs.values().map(|exec| &exec.process).chain([&self.init]);
        processes.filter_map(|process| process.state().live_pid()).map(i32::cast_unsigned).collect()
    }
}

/// Each process of the node and its parent. One that ends meanwhile is left out.
fn read_parents() -> HashMap<u32, u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let parent = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, parse_parent(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
    };
    processes.filter_map(parent).collect()
}

/// The parent in a `/proc/PID/stat` (proc_pid_stat(5)), unless the process is a zombie. Its name may hold anything.
fn parse_parent(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let lives = fields.next().is_some_and(|state| !matches!(state, "Z" | "X"));
    fields.next()?.parse().ok().filter(|_| lives)
}

/// Those of `known` that are there, and all that descend from them.
fn plan(known: Vec<u32>, parents: &HashMap<u32, u32>) -> Vec<u32> {
    let mut found: HashSet<u32> = known.into_iter().filter(|pid| parents.contains_key(pid)).collect();
    loop {
        let before = found.len();
        let children = parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid);
        let children: Vec<u32> = children.collect();
        found.extend(children);
        if found.len() == before {
            break;
        }
    }
    let mut pids: Vec<u32> = found.into_iter().collect();
    pids.sort_unstable();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_descends_is_found_and_nothing_else() {
        let parents = HashMap::from([(1, 0), (10, 1), (20, 10), (21, 10), (30, 21), (40, 1), (41, 40)]);
        for (known, pids) in
            [(&[20][..], &[20][..]), (&[10], &[10, 20, 21, 30]), (&[21, 40], &[21, 30, 40, 41]), (&[99], &[])]
        {
            assert_eq!(plan(known.to_vec(), &parents), pids, "{known:?}");
        }
    }

    #[test]
    fn a_parent_is_read_whatever_the_name_is() {
        for (stat, parent) in [
            ("7 (sh) S 3 7 7 0", Some(3)),
            ("7 (a) b (c) R 12 7", Some(12)),
            ("7 (gone) Z 3 7", None),
            ("7 (sh", None),
            ("", None),
        ] {
            assert_eq!(parse_parent(stat), parent, "{stat:?}");
        }
    }

    #[test]
    fn this_process_has_a_parent() {
        let own = std::process::id();
        assert!(plan(vec![own], &read_parents()).contains(&own));
    }
}
