//! Denials in a filter that is written by names: a spec's, and the one in runc's record. Pure; the JSON is kept as it is otherwise.
//!
//! libseccomp, which both runtimes have read it, takes no rule that does what the filter does anyway, and no two rules for one call that
//! contradict each other. So whatever allows a denied call is taken out, and a denial put in only where that is not enough.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{Denied, errno_of};

/// A filter that is not of its form.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0} is not {1}")]
pub struct ProfileError(pub(super) &'static str, pub(super) &'static str);

/// What a rule does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// They are done, or somebody is asked.
    Passes,
    /// They get this error.
    Fails(u32),
    /// Worse.
    Ends,
}

/// How a filter is written: the words of one of the two forms.
struct Form {
    default_action: &'static str,
    default_errno: &'static str,
    is_action: fn(&Value) -> bool,
    verdict: fn(action: &Value, errno: &Value) -> Verdict,
    /// Of a rule the names.
    names: fn(&mut Value) -> Vec<String>,
    /// The rule with these names alone.
    with_names: fn(&Value, Vec<String>) -> Vec<Value>,
    /// A rule with which these calls get this error.
    deny: fn(Vec<String>, u32) -> Vec<Value>,
    /// A filter that allows everything.
    open: fn() -> Value,
}

/// OCI runtime specification, `config-linux.md`, "Seccomp".
const SPEC: Form = Form {
    default_action: "defaultAction",
    default_errno: "defaultErrnoRet",
    is_action: |action| action.as_str().is_some_and(|action| action.starts_with("SCMP_ACT_")),
    verdict: |action, errno| match action.as_str() {
        Some("SCMP_ACT_ERRNO") => fails(errno),
        Some("SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" | "SCMP_ACT_KILL_PROCESS" | "SCMP_ACT_TRAP") => {
            Verdict::Ends
        }
        _ => Verdict::Passes,
    },
    names: |rule| texts(&rule["names"]),
    with_names: |rule, names| {
        let mut rule = rule.clone();
        rule["names"] = json!(names);
        vec![rule]
    },
    deny: |names, errno| vec![json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno})],
    open: || json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ARCHITECTURES.map(|(name, _)| name)}),
};

/// libcontainer, `configs.Seccomp` and its `Action`s (runc 1.1 to 1.3).
const STATE: Form = Form {
    default_action: "default_action",
    default_errno: "default_errno_ret",
    is_action: Value::is_u64,
    verdict: |action, errno| match action.as_u64() {
        Some(2) => fails(errno),
        Some(1 | 3 | 8 | 9) => Verdict::Ends,
        _ => Verdict::Passes,
    },
    names: |rule| rule["name"].as_str().map(str::to_owned).into_iter().collect(),
    with_names: |rule, names| if names.is_empty() { vec![] } else { vec![rule.clone()] },
    deny: |names, errno| {
        let rule = |name| json!({"name": name, "action": 2, "errnoRet": errno, "args": null});
        names.into_iter().map(rule).collect()
    },
    open: || json!({"default_action": 4, "architectures": ARCHITECTURES.map(|(_, name)| name), "syscalls": null}),
};

/// crun takes the program in it and not `linux.seccomp`.
const BPF_DATA: &str = "run.oci.seccomp_bpf_data";

/// The node's, as a spec and as libcontainer calls them.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [(&str, &str); 2] = [("SCMP_ARCH_AARCH64", "arm64"), ("SCMP_ARCH_ARM", "arm")];
#[cfg(not(target_arch = "aarch64"))]
const ARCHITECTURES: [(&str, &str); 3] =
    [("SCMP_ARCH_X86_64", "amd64"), ("SCMP_ARCH_X86", "x86"), ("SCMP_ARCH_X32", "x32")];

fn fails(errno: &Value) -> Verdict {
    let errno = errno.as_u64().and_then(|errno| u32::try_from(errno).ok());
    Verdict::Fails(errno.unwrap_or(1)) // EPERM, of the specification
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// Puts denials into a spec's `linux.seccomp`, which is made where there is none.
///
/// # Errors
/// [`ProfileError`]; the spec is as it was.
pub fn narrow_spec(config: &mut Value, denied: &Denied) -> Result<(), ProfileError> {
    if !config["annotations"][BPF_DATA].is_null() {
        return Err(ProfileError(
            "the annotation run.oci.seccomp_bpf_data",
            "looked into: crun takes it in place of the filter",
        ));
    }
    let config = config.as_object_mut().ok_or(ProfileError("config.json", "an object"))?;
    let linux = config.entry("linux").or_insert_with(|| json!({}));
    let linux = linux.as_object_mut().ok_or(ProfileError("linux", "an object"))?;
    narrow(linux, "seccomp", &SPEC, denied)
}

/// Puts denials into the filter of runc's record of a container.
///
/// # Errors
/// [`ProfileError`], of one that is not runc's; it is as it was.
pub fn narrow_state(state: &mut Value, denied: &Denied) -> Result<(), ProfileError> {
    let config = state.get_mut("config").and_then(Value::as_object_mut);
    let config = config.ok_or(ProfileError("config", "an object"))?;
    // It is always written. A release that calls it otherwise would not see what is put here.
    if !config.contains_key("seccomp") {
        return Err(ProfileError("config.seccomp", "there"));
    }
    narrow(config, "seccomp", &STATE, denied)
}

fn narrow(
    parent: &mut Map<String, Value>,
    name: &'static str,
    form: &Form,
    denied: &Denied,
) -> Result<(), ProfileError> {
    let own = parent.get(name).filter(|own| !own.is_null());
    let mut filter = own.cloned().unwrap_or_else(form.open);
    let fields = filter.as_object_mut().ok_or(ProfileError(name, "an object"))?;
    let rules = match fields.get("syscalls").unwrap_or(&Value::Null) {
        Value::Null => Vec::new(),
        Value::Array(rules) => rules.clone(),
        _ => return Err(ProfileError("seccomp.syscalls", "a list")),
    };
    let action = fields.get(form.default_action).filter(|action| (form.is_action)(action));
    let action = action.ok_or(ProfileError(form.default_action, "an action"))?;
    let default = (form.verdict)(action, fields.get(form.default_errno).unwrap_or(&Value::Null));
    fields.insert("syscalls".to_owned(), Value::Array(narrow_rules(rules, default, form, denied)));
    parent.insert(name.to_owned(), filter);
    Ok(())
}

fn narrow_rules(rules: Vec<Value>, default: Verdict, form: &Form, denied: &Denied) -> Vec<Value> {
    let refuses = |rule: &Value| {
        let verdict = (form.verdict)(&rule["action"], &rule["errnoRet"]);
        let always = rule["args"].as_array().is_none_or(Vec::is_empty);
        always && verdict != Verdict::Passes
    };
    let (mut refused, mut taken): (Vec<String>, Vec<String>) = Default::default();
    let mut narrowed: Vec<Value> = Vec::new();
    for mut rule in rules {
        let names = (form.names)(&mut rule);
        if refuses(&rule) {
            refused.extend(names);
            narrowed.push(rule);
            continue;
        }
        let (out, kept): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| denied.has(name));
        if out.is_empty() {
            narrowed.push(rule);
        } else if !kept.is_empty() {
            narrowed.extend((form.with_names)(&rule, kept));
        }
        taken.extend(out);
    }
    let mut more: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for name in denied.names().filter(|name| !refused.iter().any(|other| other == name)) {
        let errno = errno_of(name);
        // What was allowed gets an error, and nobody is ended for it; what would end a process goes on doing so.
        let ends = default == Verdict::Ends && !taken.iter().any(|other| other == name);
        if !ends && default != Verdict::Fails(errno) {
            more.entry(errno).or_default().push(name.to_owned());
        }
    }
    narrowed.extend(more.into_iter().flat_map(|(errno, names)| (form.deny)(names, errno)));
    narrowed
}

#[cfg(test)]
mod tests {
    use super::super::denied;
    use super::*;

    fn spec(seccomp: Value, calls: &[&str]) -> Value {
        let mut config = json!({"linux": {"seccomp": seccomp, "x": 1}});
        narrow_spec(&mut config, &denied(calls)).unwrap();
        assert_eq!(config["linux"]["x"], 1);
        config["linux"]["seccomp"].clone()
    }

    #[test]
    fn a_container_without_a_filter_gets_one_of_denials() {
        let made = spec(Value::Null, &["ptrace", "clone3"]);
        assert_eq!(made["defaultAction"], "SCMP_ACT_ALLOW");
        assert_eq!(made["architectures"].as_array().unwrap().len(), ARCHITECTURES.len());
        let want = json!([
            {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ]);
        assert_eq!(made["syscalls"], want);
        let mut config = json!({});
        narrow_spec(&mut config, &denied(&["ptrace"])).unwrap();
        assert_eq!(config["linux"]["seccomp"]["syscalls"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn what_allows_is_taken_out_and_what_refuses_stays() {
        let own = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["read", "ptrace", "mount"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
                {"names": ["bpf", "keyctl"], "action": "SCMP_ACT_KILL"},
                {"names": ["clone3"], "action": "SCMP_ACT_ALLOW"},
            ],
        });
        let made = spec(own, &["ptrace", "mount", "bpf", "clone3"]);
        assert_eq!(made["flags"], json!(["SECCOMP_FILTER_FLAG_LOG"]));
        let want = json!([
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["bpf", "keyctl"], "action": "SCMP_ACT_KILL"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ]);
        assert_eq!(made["syscalls"], want);
    }

    #[test]
    fn a_rule_with_a_condition_does_not_stand_for_a_denial() {
        let own = json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": [
            {"names": ["mount"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["umount2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
        ]});
        let want = json!([
            {"names": ["umount2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        ]);
        assert_eq!(spec(own, &["mount", "umount2"])["syscalls"], want);
        // What kills whatever it does not know goes on killing, but not for what it allowed.
        let own = json!({"defaultAction": "SCMP_ACT_KILL", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ALLOW"}]});
        let want = json!([{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]);
        assert_eq!(spec(own, &["mount", "bpf"])["syscalls"], want);
    }

    #[test]
    fn runcs_record_is_narrowed_in_its_own_words() {
        let mut state = json!({"id": "c", "config": {"seccomp": null, "rootfs": "/r"}});
        narrow_state(&mut state, &denied(&["mount"])).unwrap();
        let made = &state["config"]["seccomp"];
        assert_eq!((&made["default_action"], &state["config"]["rootfs"]), (&json!(4), &json!("/r")));
        assert_eq!(made["syscalls"], json!([{"name": "mount", "action": 2, "errnoRet": 1, "args": null}]));
        let own = json!({"default_action": 2, "default_errno_ret": 38, "syscalls": [
            {"name": "mount", "action": 4, "args": null}, {"name": "bpf", "action": 9, "args": []}, {"name": "read", "action": 4},
        ]});
        let mut state = json!({"config": {"seccomp": own}});
        narrow_state(&mut state, &denied(&["mount", "bpf", "clone3"])).unwrap();
        let want = json!([
            {"name": "bpf", "action": 9, "args": []}, {"name": "read", "action": 4},
            {"name": "mount", "action": 2, "errnoRet": 1, "args": null},
        ]);
        assert_eq!(state["config"]["seccomp"]["syscalls"], want);
    }

    #[test]
    fn what_is_of_no_form_is_refused_and_stays() {
        for config in [
            json!([]),
            json!({"linux": 1}),
            json!({"linux": {"seccomp": "x"}}),
            json!({"linux": {"seccomp": {"syscalls": 1}}}),
            json!({"linux": {"seccomp": {}}}),
            json!({"linux": {"seccomp": {"defaultAction": ""}}}),
            json!({"annotations": {BPF_DATA: "AAAA"}, "linux": {}}),
        ] {
            let mut narrowed = config.clone();
            assert!(narrow_spec(&mut narrowed, &denied(&["mount"])).is_err(), "{config}");
            assert_eq!(narrowed, config);
        }
        for state in [
            json!({"ociVersion": "1.0.2"}),
            json!({"config": {"rootfs": "/r"}}),
            json!({"config": {"seccomp": {"default_action": "x"}}}),
        ] {
            assert!(narrow_state(&mut state.clone(), &denied(&["mount"])).is_err(), "{state}");
        }
    }
}
