//! A spec with what devices ask for, as CDI's own library puts it there (`ContainerEdits.Apply`). Pure.
//!
//! The spec is kept as the JSON that it is: what this shim has no type for stays.

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::edits::{Mount, SpecEdits};
use crate::edits::{Hook, Node, NodeKind};

/// A spec that does not take devices.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatchError {
    /// It is not of the form of the OCI runtime specification.
    #[error("{0} is not {1}")]
    Form(&'static str, &'static str),
    /// The runtime would have to move it, and older ones leave it out without a word.
    #[error(
        "the network interface {0} is asked for, which no container is given here: use what sets up its network"
    )]
    NetDevice(String),
}

/// `process.env`.
pub fn env_of(config: &Value) -> Vec<String> {
    let env = config["process"]["env"].as_array().into_iter().flatten();
    env.filter_map(|entry| entry.as_str().map(str::to_owned)).collect()
}

/// Puts `edits` into a spec; what is there already in the same words stays as it is.
///
/// # Errors
/// [`PatchError`]; the spec may be changed in part.
pub fn apply(config: &mut Value, edits: &SpecEdits) -> Result<(), PatchError> {
    let config = config.as_object_mut().ok_or(PatchError::Form("it", "an object"))?;
    if let Some((interface, _)) = edits.net_devices.iter().find(|net| !has_net_device(config, net)) {
        return Err(PatchError::NetDevice(interface.clone()));
    }
    if !edits.env.is_empty() {
        put_env(list(object(config, "process")?, "env")?, &edits.env);
    }
    let user = user_of(config);
    if !edits.nodes.is_empty() {
        let linux = object(config, "linux")?;
        for node in &edits.nodes {
            put_node(list(linux, "devices")?, node, user);
            put_rule(list(object(linux, "resources")?, "devices")?, node);
        }
    }
    if !edits.mounts.is_empty() {
        put_mounts(list(config, "mounts")?, &edits.mounts);
    }
    for (point, hook) in &edits.hooks {
        let hooks = list(object(config, "hooks")?, point.name())?;
        let hook = oci_hook(hook);
        if !hooks.iter().any(|other| same_hook(other, &hook)) {
            hooks.push(hook);
        }
    }
    if let Some(rdt) = &edits.intel_rdt {
        object(config, "linux")?.insert("intelRdt".to_owned(), Value::Object(rdt.clone()));
    }
    if !edits.additional_gids.is_empty() {
        let gids = list(object(object(config, "process")?, "user")?, "additionalGids")?;
        for gid in &edits.additional_gids {
            if !gids.contains(&json!(gid)) {
                gids.push(json!(gid));
            }
        }
    }
    Ok(())
}

/// The object of this name, made when there is none. A `null` is none.
fn object<'a>(
    parent: &'a mut Map<String, Value>,
    name: &'static str,
) -> Result<&'a mut Map<String, Value>, PatchError> {
    let value = parent.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or(PatchError::Form(name, "an object"))
}

/// The list of this name, likewise.
fn list<'a>(
    parent: &'a mut Map<String, Value>,
    name: &'static str,
) -> Result<&'a mut Vec<Value>, PatchError> {
    let value = parent.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or(PatchError::Form(name, "a list"))
}

/// A runtime of the OCI runtime specification 1.3 moves it, where somebody else has asked for that.
fn has_net_device(config: &Map<String, Value>, (interface, name): &(String, String)) -> bool {
    let there = config.get("linux").and_then(|linux| linux["netDevices"].get(interface));
    there.is_some_and(|device| device["name"].as_str() == Some(name))
}

fn user_of(config: &Map<String, Value>) -> (Option<u64>, Option<u64>) {
    let user = config.get("process").map(|process| &process["user"]);
    let id = |name: &str| user.and_then(|user| user[name].as_u64()).filter(|id| *id > 0);
    (id("uid"), id("gid"))
}

fn put_env(env: &mut Vec<Value>, entries: &[String]) {
    let name_of = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in entries {
        let name = name_of(entry);
        let same = |other: &&mut Value| other.as_str().is_some_and(|other| name_of(other) == name);
        match env.iter_mut().find(same) {
            Some(there) => *there = json!(entry),
            None => env.push(json!(entry)),
        }
    }
}

/// A node belongs to the container's user where it does not say otherwise.
fn put_node(devices: &mut Vec<Value>, node: &Node, user: (Option<u64>, Option<u64>)) {
    let mut device = json!({ "path": node.path.as_str(), "type": node.kind.letter() });
    if node.kind != NodeKind::Fifo {
        device["major"] = json!(node.major);
        device["minor"] = json!(node.minor);
    }
    let fields = [
        ("fileMode", node.mode.map(u64::from)),
        ("uid", node.uid.map(u64::from).or(user.0)),
        ("gid", node.gid.map(u64::from).or(user.1)),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            device[name] = json!(value);
        }
    }
    match devices.iter_mut().find(|other| other["path"] == node.path.as_str()) {
        Some(there) if is_node(there, node) => {}
        Some(there) => *there = device,
        None => devices.push(device),
    }
}

/// Whether an entry of `linux.devices` is this device, whoever owns it.
fn is_node(entry: &Value, node: &Node) -> bool {
    let number = |name: &str| entry[name].as_u64().unwrap_or(0);
    // `u` is another word for `c`.
    let kind = if entry["type"] == "u" { "c" } else { entry["type"].as_str().unwrap_or_default() };
    kind == node.kind.letter()
        && (node.kind == NodeKind::Fifo
            || (number("major"), number("minor")) == (node.major.into(), node.minor.into()))
}

fn put_rule(rules: &mut Vec<Value>, node: &Node) {
    if node.kind == NodeKind::Fifo || node.access.is_empty() {
        return;
    }
    let rule = json!({
        "allow": true, "type": node.kind.letter(), "major": node.major, "minor": node.minor,
        "access": node.access.to_string(),
    });
    if !rules.contains(&rule) {
        rules.push(rule);
    }
}

/// In an order in which none hides another: parents first (CDI's `sortMounts`).
fn put_mounts(mounts: &mut Vec<Value>, wanted: &[Mount]) {
    let mut changed = false;
    for mount in wanted {
        let same = mounts.iter().position(|other| parts(other) == clean(&mount.destination));
        let is_there = |index: usize| mounts[index]["source"] == mount.source.as_str();
        if same.is_some_and(is_there) {
            continue;
        }
        let new = json!({
            "destination": mount.destination, "type": mount.kind, "source": mount.source, "options": mount.options,
        });
        if let Some(index) = same {
            mounts.remove(index);
        }
        mounts.push(new);
        changed = true;
    }
    if changed {
        mounts.sort_by_key(|mount| parts(mount).len());
    }
}

fn parts(mount: &Value) -> Vec<&str> {
    clean(mount["destination"].as_str().unwrap_or_default())
}

/// The parts of a path.
fn clean(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).collect()
}

fn oci_hook(hook: &Hook) -> Value {
    let mut value = json!({ "path": hook.path });
    if !hook.args.is_empty() {
        value["args"] = json!(hook.args);
    }
    if !hook.env.is_empty() {
        let env = hook.env.iter().map(|(name, value)| format!("{name}={value}"));
        value["env"] = json!(env.collect::<Vec<_>>());
    }
    if let Some(timeout) = hook.timeout {
        value["timeout"] = json!(timeout);
    }
    value
}

/// What is empty may be left out.
fn same_hook(one: &Value, other: &Value) -> bool {
    let same_list = |name: &str| {
        let list = |hook: &Value| hook[name].as_array().cloned().unwrap_or_default();
        list(one) == list(other)
    };
    one["path"] == other["path"]
        && one["timeout"] == other["timeout"]
        && same_list("args")
        && same_list("env")
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
