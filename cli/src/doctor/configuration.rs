//! containerd's configuration, as containerd itself reads it: with all that is imported, and its defaults (`config dump`).

use std::ffi::OsStr;
use std::path::Path;

use toml::{Table, Value};

use super::containerd::Containerd;
use super::{Finding, SETUP};
use crate::host::cgroups::Driver;
use crate::host::containerd::DEFAULT_CONFIG;
use crate::host::{find, own_path, run};
use crate::setup::{ANNOTATIONS, CRI_2, CRI_3, CRI_IMAGES, HANDLER, RUNTIME, SHIM, TRANSFER};

/// How containerd's CRI plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cri<'a> {
    /// It works, or will when containerd is started.
    On,
    /// It is disabled.
    Off,
    /// It did not start, because of this.
    Failed(&'a str),
}

/// What a configuration says of capsules.
#[derive(Debug, Default)]
pub struct Configured {
    /// The socket of the snapshotter; `None` when there is no such proxy plugin.
    pub address: Option<String>,
    /// The snapshotter's capabilities.
    pub capabilities: Vec<String>,
    /// Whether the transfer service unpacks into it.
    unpacks: bool,
    /// Whether the CRI plugin is disabled.
    pub cri_disabled: bool,
    /// The runtime handler.
    handler: Option<Table>,
    /// Whether the plugin of images knows the handler's snapshotter, or has not to.
    knows_images: bool,
}

impl Configured {
    /// Asks the program of the containerd that runs, or the one on the path.
    ///
    /// # Errors
    /// Why it is not known, in words.
    pub async fn read(containerd: &Containerd, snapshotter: &str) -> Result<Self, String> {
        let running = containerd.process.as_ref();
        let program = running.map(|process| process.program.clone()).filter(|program| program.exists());
        let found = || find("containerd", &own_path()).ok().flatten();
        let program = program
            .or_else(found)
            .ok_or("there is no program containerd on the path that could show its configuration")?;
        let config = running.and_then(|process| process.config.as_deref());
        let mut words: Vec<&OsStr> = Vec::new();
        words.extend(config.into_iter().flat_map(|config| ["--config".as_ref(), config.as_os_str()]));
        // containerd 1.7 shows nothing where there is no file.
        let is_default = config.is_none() && !Path::new(DEFAULT_CONFIG).exists();
        words.extend(["config", if is_default { "default" } else { "dump" }].map(OsStr::new));
        let ran = run(&program, &words)
            .await
            .map_err(|reason| format!("{} config: {reason}", program.display()))?;
        if !ran.ok {
            let last = ran.err.trim().lines().last().unwrap_or_default().to_owned();
            return Err(format!("containerd's configuration cannot be read: {last}"));
        }
        let table = ran
            .out
            .parse()
            .map_err(|_| "what containerd shows of its configuration is no TOML".to_owned())?;
        Ok(Self::of(&table, snapshotter))
    }

    /// What the text of `config dump` says.
    pub fn of(dump: &Table, snapshotter: &str) -> Self {
        let at = |keys: &[&str]| {
            let (first, rest) = keys.split_first()?;
            rest.iter().try_fold(dump.get(*first)?, |value, key| value.get(key))
        };
        let texts = |value: Option<&Value>| -> Vec<String> {
            let list = value.and_then(Value::as_array).into_iter().flatten();
            list.filter_map(|one| one.as_str().map(str::to_owned)).collect()
        };
        let proxy = ["proxy_plugins", snapshotter];
        let unpack = at(&["plugins", TRANSFER, "unpack_config"]).and_then(Value::as_array);
        let handler = [CRI_3, CRI_2]
            .iter()
            .find_map(|plugin| at(&["plugins", plugin, "containerd", "runtimes", HANDLER]));
        let is_old = at(&["plugins", CRI_3]).is_none();
        let images = [&["runtime_platforms", HANDLER][..], &[]]
            .map(|keys| at(&[&["plugins", CRI_IMAGES], keys].concat()));
        let is_ours = |one: &Value| one.get("snapshotter").and_then(Value::as_str) == Some(snapshotter);
        Self {
            address: at(&[&proxy[..], &["address"]].concat()).and_then(Value::as_str).map(str::to_owned),
            capabilities: texts(at(&[&proxy[..], &["capabilities"]].concat())),
            unpacks: unpack.is_some_and(|list| list.iter().any(is_ours)),
            cri_disabled: texts(dump.get("disabled_plugins"))
                .iter()
                .any(|name| [CRI_2, CRI_3, "cri"].contains(&name.as_str())),
            handler: handler.and_then(Value::as_table).cloned(),
            knows_images: is_old || images.into_iter().flatten().any(is_ours),
        }
    }

    /// Whether `ctr` can unpack images into the snapshotter.
    pub fn unpack(&self, snapshotter: &str, error: Option<&str>) -> Finding {
        const CHECK: &str = "unpack";
        match (error, self.unpacks) {
            (Some(error), _) => Finding::error(
                CHECK,
                format!("containerd's transfer service did not start: {error}"),
                "`ctr image pull` and capsules' pull need it: correct its unpack_config, and restart containerd",
            ),
            (None, true) => Finding::ok(CHECK, format!("`ctr` can unpack images into {snapshotter}")),
            (None, false) => Finding::warning(
                CHECK,
                format!("`ctr image pull` cannot unpack images into {snapshotter}"),
                SETUP,
            ),
        }
    }

    /// The runtime handler for Kubernetes, where CRI is on.
    pub fn handler(&self, cri: Cri<'_>, snapshotter: &str, driver: Driver) -> Vec<Finding> {
        const CHECK: &str = "cri-handler";
        if let Cri::Failed(error) = cri {
            let found = format!("containerd's CRI plugin did not start, and Kubernetes needs it: {error}");
            let advice = "correct its configuration and restart containerd, or put it into disabled_plugins";
            return vec![Finding::error(CHECK, found, advice)];
        }
        let is_on = cri == Cri::On;
        if !is_on {
            return vec![Finding::ok(CHECK, "containerd's CRI plugin is off: there is no Kubernetes here")];
        }
        let Some(handler) = &self.handler else {
            let found = format!("pods cannot have capsules: there is no runtime handler {HANDLER}");
            return vec![Finding::warning(CHECK, found, SETUP)];
        };
        let text = |key: &str| handler.get(key).and_then(Value::as_str).unwrap_or_default();
        let by_path = text("runtime_path").ends_with(&format!("/{SHIM}"));
        let annotations = handler.get("pod_annotations").and_then(Value::as_array);
        let passes = annotations.is_some_and(|list| list.iter().any(|one| one.as_str() == Some(ANNOTATIONS)));
        let mut wrong = Vec::new();
        if text("runtime_type") != RUNTIME && !by_path {
            wrong.push(format!("has the runtime type {:?}, not {RUNTIME}", text("runtime_type")));
        }
        if text("snapshotter") != snapshotter {
            wrong.push(format!("has the snapshotter {:?}, not {snapshotter}", text("snapshotter")));
        }
        if !passes {
            wrong.push(format!("keeps the pods' annotations {ANNOTATIONS} from the shim (pod_annotations)"));
        }
        if !wrong.is_empty() {
            let found = format!("the runtime handler {HANDLER} {}", wrong.join("; "));
            return vec![Finding::error(CHECK, found, SETUP)];
        }
        let ready = format!("pods can have capsules: the runtime handler is {HANDLER}");
        let ready = match self.knows_images {
            true => Finding::ok(CHECK, ready),
            false => Finding::warning(
                CHECK,
                format!("{ready}; the kubelet cannot measure any pod while one of it runs"),
                SETUP,
            ),
        };
        let systemd = handler.get("options").and_then(|options| options.get("SystemdCgroup")?.as_bool());
        vec![ready, judge_driver(systemd.unwrap_or(false), driver)]
    }
}

fn judge_driver(handler: bool, driver: Driver) -> Finding {
    const CHECK: &str = "cgroup-driver";
    let name = |systemd| if systemd { "systemd" } else { "cgroupfs" };
    let set = |to: bool| format!("`capsulectl setup --systemd-cgroup={to}`, then restart containerd");
    match driver.kubelet {
        Some(kubelet) if kubelet == handler => {
            Finding::ok(CHECK, format!("{}, as the kubelet", name(handler)))
        }
        Some(kubelet) => Finding::error(
            CHECK,
            format!("the runtime handler {HANDLER} has {}, and the kubelet {}", name(handler), name(kubelet)),
            set(kubelet),
        ),
        None if driver.systemd && !handler => Finding::warning(
            CHECK,
            format!("the runtime handler {HANDLER} has cgroupfs, and systemd runs this machine"),
            format!("two would manage the same control groups: {}", set(true)),
        ),
        None if handler && !driver.systemd => Finding::warning(
            CHECK,
            format!("the runtime handler {HANDLER} has systemd, which does not run this machine"),
            format!("pods will not start: {}", set(false)),
        ),
        None => Finding::ok(CHECK, name(handler)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    const NO_KUBELET: Driver = Driver { kubelet: None, systemd: true };
    const GOOD: &str = "
        [proxy_plugins.capsule]
        address = '/s.sock'
        capabilities = ['remap-ids']
        [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
        snapshotter = 'capsule'
        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.capsule]
        runtime_type = 'io.containerd.capsule.v1'
        snapshotter = 'capsule'
        pod_annotations = ['a', 'resourcecapsules.io/*']
        options = {SystemdCgroup = true}
        [plugins.'io.containerd.cri.v1.images'.runtime_platforms.capsule]
        snapshotter = 'capsule'
        ";

    fn of(text: &str) -> Configured {
        Configured::of(&text.parse().unwrap(), "capsule")
    }

    fn states(findings: &[Finding]) -> Vec<State> {
        findings.iter().map(|finding| finding.state).collect()
    }

    #[test]
    fn what_is_configured_is_found() {
        let good = of(GOOD);
        assert_eq!(good.address.as_deref(), Some("/s.sock"));
        assert_eq!(good.capabilities, ["remap-ids"]);
        assert_eq!(good.unpack("capsule", None).state, State::Ok);
        assert_eq!(good.unpack("capsule", Some("no snapshotter x")).state, State::Error);
        assert_eq!(states(&good.handler(Cri::On, "capsule", NO_KUBELET)), [State::Ok, State::Ok]);
        let unknown_images = |table: &str| {
            of(&GOOD.replace("[plugins.'io.containerd.cri.v1.images'.runtime_platforms.capsule]", table))
        };
        let unknown = unknown_images("[plugins.'io.containerd.cri.v1.images'.runtime_platforms.other]");
        assert_eq!(states(&unknown.handler(Cri::On, "capsule", NO_KUBELET)), [State::Warning, State::Ok]);
        let default = unknown_images("[plugins.'io.containerd.cri.v1.images']");
        assert_eq!(states(&default.handler(Cri::On, "capsule", NO_KUBELET)), [State::Ok, State::Ok]);
        let old = of(&GOOD.replace(CRI_3, CRI_2));
        assert_eq!(states(&old.handler(Cri::On, "capsule", NO_KUBELET)), [State::Ok, State::Ok]);
        assert!(of("disabled_plugins = ['io.containerd.grpc.v1.cri']").cri_disabled && !good.cri_disabled);
    }

    #[test]
    fn what_is_not_is_said() {
        let none = of("");
        assert!(none.address.is_none());
        assert_eq!(none.unpack("capsule", None).state, State::Warning);
        assert_eq!(states(&none.handler(Cri::On, "capsule", NO_KUBELET)), [State::Warning]);
        assert_eq!(states(&none.handler(Cri::Off, "capsule", NO_KUBELET)), [State::Ok]);
        assert_eq!(states(&of(GOOD).handler(Cri::Failed("no runc"), "capsule", NO_KUBELET)), [State::Error]);
        for (from, to, word) in [
            ("capsule.v1'", "runc.v2'", "runtime type"),
            ("'a', 'resourcecapsules.io/*'", "", "annotations"),
            ("        snapshotter = 'capsule'\n        pod", "        pod", "snapshotter"),
        ] {
            let [finding] = &of(&GOOD.replace(from, to)).handler(Cri::On, "capsule", NO_KUBELET)[..] else {
                panic!("{to}")
            };
            assert!(finding.state == State::Error && finding.found.contains(word), "{finding:?}");
        }
        let by_path = GOOD.replace(
            "runtime_type = 'io.containerd.capsule.v1'",
            "runtime_type = 'io.containerd.runc.v2'\nruntime_path = '/usr/bin/containerd-shim-capsule-v1'",
        );
        assert_eq!(states(&of(&by_path).handler(Cri::On, "capsule", NO_KUBELET))[0], State::Ok);
    }

    #[test]
    fn the_driver_is_the_kubelets_or_what_runs_the_machine() {
        for (handler, kubelet, systemd, state) in [
            (true, Some(true), false, State::Ok),
            (true, Some(false), true, State::Error),
            (false, Some(false), true, State::Ok),
            (false, None, true, State::Warning),
            (true, None, false, State::Warning),
            (false, None, false, State::Ok),
        ] {
            let found = judge_driver(handler, Driver { kubelet, systemd });
            assert_eq!(found.state, state, "{found:?}");
        }
    }
}
