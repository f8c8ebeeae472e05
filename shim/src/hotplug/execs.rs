//! What devices give to processes that are started after them: variables and groups. Pure.

use serde_json::{Value, json};

use super::journal::{DeviceRecord, State};

/// Adds it to an OCI process. A variable that the process has for itself stays; one that it has as the container's own processes
/// have it (`own`) is the device's from now on. Of two devices' the later counts.
pub fn add_to_process(process: &mut Value, records: &[DeviceRecord], own: &[String]) {
    let there = || records.iter().filter(|record| record.state == State::Attached);
    let mut env = texts(&process["env"]);
    let before = env.len();
    for entry in there().flat_map(|record| &record.edits.env) {
        let name = name_of(entry);
        match env.iter().position(|other| name_of(other) == name) {
            Some(at) if at >= before || own.contains(&env[at]) => env[at].clone_from(entry),
            Some(_) => {}
            None => env.push(entry.clone()),
        }
    }
    let groups: Vec<u32> = there().flat_map(|record| record.edits.additional_gids.iter().copied()).collect();
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

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn name_of(entry: &str) -> &str {
    entry.split('=').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hotplug::{edits::Edits, model::AttachmentId};

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
        add_to_process(&mut process, &records, &own);
        assert_eq!(process["env"], json!(["PATH=/bin", "GPU=0", "MODE=asked", "NEW=2"]));
        assert_eq!(process["user"], json!({"uid": 0, "additionalGids": [5, 44]}));
    }

    #[test]
    fn a_process_without_any_is_left_as_it_is() {
        let mut process = json!({"args": ["true"]});
        add_to_process(&mut process, &[record(&[], &[], State::Attached)], &[]);
        assert_eq!(process, json!({"args": ["true"]}));
        add_to_process(&mut process, &[record(&["A=1"], &[7], State::Attached)], &[]);
        assert_eq!(process, json!({"args": ["true"], "env": ["A=1"], "user": {"additionalGids": [7]}}));
    }
}
