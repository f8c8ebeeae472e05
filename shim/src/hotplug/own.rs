//! What a container has of devices by itself: from its creation, whoever put that into its spec. Pure.
//!
//! That is not made again, and no detach takes it away.

use serde_json::Value;

use super::{
    config::Config,
    edits::{Bind, Edits, Hook, Node},
};
use crate::devices::{Access, DeviceKind, parse_rules};

/// `edits` without the nodes, mounts and hooks that a container's spec has in the same words. A node is the container's own where its
/// rules allow as much of the device.
pub fn without_own(edits: &Edits, config: &Config) -> Edits {
    let mut left = edits.clone();
    left.nodes.retain(|node| !has_node(config, node));
    left.mounts.retain(|bind| !has_mount(config, bind));
    left.hooks.retain(|hook| !config.hooks.iter().any(|own| is_hook(own, hook)));
    left
}

fn has_node(config: &Config, node: &Node) -> bool {
    let is_it = |own: &&Value| own["path"].as_str() == Some(node.path.as_str());
    let Some(own) = config.nodes.iter().find(is_it) else { return false };
    let number = |name: &str| own[name].as_u64().unwrap_or(0);
    let same_numbers = (number("major"), number("minor")) == (node.major.into(), node.minor.into());
    match (own["type"].as_str(), node.grant()) {
        (Some("p"), None) => true,
        (Some("b"), Some(grant)) if grant.device.kind == DeviceKind::Block => {
            same_numbers && allows(config, node)
        }
        (Some("c" | "u"), Some(grant)) if grant.device.kind == DeviceKind::Char => {
            same_numbers && allows(config, node)
        }
        _ => false,
    }
}

/// Whether the spec's rules allow a node's device, the last that has a word about it counting.
fn allows(config: &Config, node: &Node) -> bool {
    let (Some(grant), Ok(rules)) = (node.grant(), parse_rules(&config.rules)) else { return false };
    let is_of = |wanted: Option<u32>, number: u32| wanted.is_none_or(|wanted| wanted == number);
    let of_it = rules.iter().filter(|rule| {
        rule.kind.is_none_or(|kind| kind == grant.device.kind)
            && is_of(rule.major, grant.device.major)
            && is_of(rule.minor, grant.device.minor)
    });
    let allowed = of_it.fold(Access::NONE, |so_far, rule| match rule.allow {
        true => so_far.union(rule.access),
        false => so_far.without(rule.access),
    });
    grant.access.without(allowed).is_empty()
}

fn has_mount(config: &Config, bind: &Bind) -> bool {
    let is_it = |own: &Value| {
        own["destination"].as_str() == Some(bind.target.as_str())
            && own["source"].as_str().is_some_and(|source| bind.source.as_os_str() == source)
    };
    config.mounts.iter().any(is_it)
}

fn is_hook(own: &Value, hook: &Hook) -> bool {
    let texts = |name: &str| -> Vec<String> {
        let list = own[name].as_array().into_iter().flatten();
        list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let env: Vec<String> = hook.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    own["path"].as_str().is_some_and(|path| hook.path.as_os_str() == path)
        && texts("args") == hook.args
        && texts("env") == env
}

#[cfg(test)]
mod tests {
    use overlayfs_utils::{BindOptions, ContainerPath};
    use serde_json::json;

    use super::*;
    use crate::edits::NodeKind;

    fn edits() -> Edits {
        let path = |text: &str| ContainerPath::parse(text).unwrap();
        let node = |name: &str, minor| Node {
            path: path(name),
            kind: NodeKind::Char,
            major: 10,
            minor,
            mode: None,
            uid: None,
            gid: None,
            access: Access::parse("rw").unwrap(),
        };
        let bind = |source: &str| Bind {
            source: source.into(),
            target: path("/usr/lib/b"),
            options: BindOptions::default(),
        };
        let hook = Hook {
            path: "/bin/h".into(),
            args: vec!["h".into(), "x".into()],
            env: vec![("A".into(), "1".into())],
            timeout: None,
        };
        Edits {
            nodes: vec![node("/dev/one", 1), node("/dev/two", 2)],
            mounts: vec![bind("/usr/lib/a")],
            hooks: vec![hook],
            env: vec!["E=1".into()],
            ..Edits::default()
        }
    }

    fn config(access: &str, minor: u32) -> Config {
        Config::of(&json!({
            "mounts": [{"destination": "/usr/lib/b", "source": "/usr/lib/a", "options": ["rbind", "ro"]}],
            "hooks": {"createContainer": [{"path": "/bin/h", "args": ["h", "x"], "env": ["A=1"]}]},
            "linux": {
                "devices": [{"path": "/dev/one", "type": "c", "major": 10, "minor": minor}],
                "resources": {"devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 10, "minor": minor, "access": access},
                ]},
            },
        }))
    }

    #[test]
    fn what_the_spec_has_is_not_made_again() {
        let left = without_own(&edits(), &config("rwm", 1));
        assert_eq!(left.nodes, edits().nodes[1..]);
        assert_eq!((left.mounts, left.hooks, left.env), (vec![], vec![], vec!["E=1".to_owned()]));
    }

    #[test]
    fn what_is_another_or_less_is_made() {
        for other in [config("r", 1), config("rw", 7), Config::default()] {
            assert_eq!(without_own(&edits(), &other).nodes, edits().nodes);
        }
        // Denied again behind.
        let mut denied = config("rw", 1);
        denied.rules.as_array_mut().unwrap().push(json!({"allow": false, "type": "c", "access": "w"}));
        assert_eq!(without_own(&edits(), &denied).nodes.len(), 2);
        let mut other = edits();
        other.mounts[0].source = "/usr/lib/c".into();
        other.hooks[0].args.pop();
        let left = without_own(&other, &config("rw", 1));
        assert_eq!((left.mounts.len(), left.hooks.len()), (1, 1));
    }
}
