//! What attachments give to processes that are started after them, variables and groups of devices, and what they deny to them. Pure.

use serde_json::{Value, json};

use super::{
    entry::Entry,
    journal::{DeviceRecord, State},
};
use crate::{creation::Given, seccomp::Denied};

/// Adds it to an OCI process: what the container was created with, and what is attached. A variable that the process has for itself
/// stays; one that it has as the container's own processes have it is the attachment's from now on. Of two attachments' the later
/// counts, and a device's before a capsule's.
pub fn add_to_process(process: &mut Value, created: &Given, capsules: &[Entry], records: &[DeviceRecord]) {
    let of_capsules = present(capsules).flat_map(|record| &record.spec.content.env);
    let there = || records.iter().filter(|record| record.state == State::Attached);
    let mut env = texts(&process["env"]);
    // Which are the process' own: those that differ from the container's.
    let own: Vec<bool> = env.iter().map(|entry| !created.own_env.contains(entry)).collect();
    for entry in created.env.iter().chain(of_capsules).chain(there().flat_map(|record| &record.edits.env)) {
        let name = name_of(entry);
        match env.iter().position(|other| name_of(other) == name) {
            Some(at) if own.get(at) == Some(&true) => {}
            Some(at) => env[at].clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    let attached = there().flat_map(|record| record.edits.additional_gids.iter());
    let groups: Vec<u32> = created.additional_gids.iter().chain(attached).copied().collect();
    if !process.is_object() {
        return;
    }
    if !env.is_empty() {
        process["env"] = json!(env);
    }
    if !groups.is_empty() {
        let mut all: Vec<u64> = process["user"]["additionalGids"]
            .as_array()
            .map(|gids| gids.iter().filter_map(Value::as_u64).collect())
            .unwrap_or_default();
        let new: Vec<u64> = groups.into_iter().map(u64::from).filter(|gid| !all.contains(gid)).collect();
        all.extend(new);
        all.dedup();
        process["user"]["additionalGids"] = json!(all);
    }
}

/// The system calls that capsules deny, of all of them: also of those that come or go just now, which may be seen, or may stay.
pub fn denied(capsules: &[Entry]) -> Denied {
    let mut all = Denied::default();
    for record in capsules {
        all.extend(&record.spec.content.denied);
        if let State::Replacing { content, .. } = &record.state {
            all.extend(&content.denied);
        }
    }
    all
}

/// Those that are there; what is replaced is until what comes is.
fn present(capsules: &[Entry]) -> impl Iterator<Item = &Entry> {
    capsules.iter().filter(|record| !matches!(record.state, State::Attaching | State::Detaching))
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn name_of(entry: &str) -> &str {
    entry.split('=').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlayfs_utils::ContainerPath;

    use crate::hotplug::{
        edits::Edits,
        journal::Record,
        model::{AttachmentId, Content, Mode, Spec},
    };

    fn content(env: &[&str]) -> Content {
        let content = Content::new("tz".into(), "1".into(), String::new(), vec!["/l".into()]).unwrap();
        content.with_env(env.iter().map(|entry| (*entry).to_owned()).collect()).unwrap()
    }

    fn capsule(env: &[&str], state: State) -> Entry {
        let (id, target) = (AttachmentId::parse("a".into()).unwrap(), ContainerPath::parse("/t").unwrap());
        let spec = Spec::new(id, content(env), target, Mode::Ro).unwrap();
        Record { spec, state, mounts: Vec::new(), created: Vec::new() }.into()
    }

    fn record(env: &[&str], gids: &[u32], state: State) -> DeviceRecord {
        let edits = Edits {
            env: env.iter().map(|entry| (*entry).to_owned()).collect(),
            additional_gids: gids.to_vec(),
            ..Edits::default()
        };
        DeviceRecord { state, ..DeviceRecord::new(AttachmentId::parse("a".into()).unwrap(), edits) }
    }

    #[test]
    fn later_processes_have_what_devices_give() {
        let own = ["PATH=/bin", "GPU=none", "MODE=x"].map(str::to_owned);
        let mut process = json!({"env": ["PATH=/bin", "GPU=none", "MODE=asked"], "user": {"uid": 0, "additionalGids": [5]}});
        let records = [
            record(&["GPU=0", "MODE=y", "NEW=1"], &[44, 5], State::Attached),
            record(&["NEW=2"], &[44], State::Attached),
            record(&["GONE=1"], &[9], State::Detaching),
        ];
        let created = Given { own_env: own.to_vec(), ..Given::default() };
        let capsules = [
            capsule(&["GPU=capsule", "TZDIR=/tz"], State::Attached),
            capsule(
                &["TZDIR=/tz2"],
                State::Replacing { content: content(&["TZDIR=/to-come"]), mounts: vec![] },
            ),
            capsule(&["GONE=2"], State::Detaching),
        ];
        add_to_process(&mut process, &created, &capsules, &records);
        assert_eq!(process["env"], json!(["PATH=/bin", "GPU=0", "MODE=asked", "TZDIR=/tz2", "NEW=2"]));
        assert_eq!(process["user"], json!({"uid": 0, "additionalGids": [5, 44]}));
    }

    #[test]
    fn what_any_of_them_denies_is_denied_until_it_is_gone() {
        let deny = |names: &[&str], state| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let (id, target) =
                (AttachmentId::parse("a".into()).unwrap(), ContainerPath::parse("/t").unwrap());
            let spec = Spec::new(id, content(&[]).with_denied(names).unwrap(), target, Mode::Ro).unwrap();
            Entry::from(Record { spec, state, mounts: Vec::new(), created: Vec::new() })
        };
        let coming = content(&[]).with_denied(vec!["bpf".into()]).unwrap();
        let all = [
            deny(&["mount"], State::Attached),
            deny(&["mount", "ptrace"], State::Replacing { content: coming, mounts: vec![] }),
            deny(&["chroot"], State::Detaching),
            deny(&["reboot"], State::Attaching),
        ];
        assert_eq!(denied(&all).names().collect::<Vec<_>>(), ["bpf", "chroot", "mount", "ptrace", "reboot"]);
    }

    #[test]
    fn what_the_container_was_created_with_comes_first() {
        let created = Given {
            own_env: vec!["GPU=none".to_owned(), "MODE=x".to_owned()],
            env: vec!["GPU=0".to_owned(), "MODE=y".to_owned(), "NEW=1".to_owned()],
            additional_gids: vec![44],
            denied: Denied::default(),
        };
        let mut process = json!({"env": ["GPU=none", "MODE=asked"]});
        add_to_process(&mut process, &created, &[], &[record(&["NEW=2"], &[7], State::Attached)]);
        assert_eq!(process["env"], json!(["GPU=0", "MODE=asked", "NEW=2"]));
        assert_eq!(process["user"]["additionalGids"], json!([44, 7]));
        // Twice is as good as once: that is what the shim does of a process that containerd describes as the spec is now.
        let again = process.clone();
        add_to_process(&mut process, &Given { own_env: vec!["GPU=none".to_owned()], ..created }, &[], &[]);
        assert_eq!(process["env"][0], again["env"][0]);
    }

    #[test]
    fn a_process_without_any_is_left_as_it_is() {
        let mut process = json!({"args": ["true"]});
        add_to_process(&mut process, &Given::default(), &[], &[record(&[], &[], State::Attached)]);
        assert_eq!(process, json!({"args": ["true"]}));
        add_to_process(&mut process, &Given::default(), &[], &[record(&["A=1"], &[7], State::Attached)]);
        assert_eq!(process, json!({"args": ["true"], "env": ["A=1"], "user": {"additionalGids": [7]}}));
    }
}
