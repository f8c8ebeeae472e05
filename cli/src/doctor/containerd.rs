//! containerd: whether it answers, which it is, and what it has loaded.

use std::io;
use std::path::Path;

use super::configuration::Configured;
use super::{Finding, SETUP};
use crate::host::containerd::{Daemon, Plugin, Process, Silent, ask};
use crate::host::{Release, Settings};

/// containerd's name for the kind of plugin that capsuled is.
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

/// The containerd of the machine.
#[derive(Debug)]
pub struct Containerd {
    daemon: Result<Daemon, Silent>,
    /// How it was started; `None` where that cannot be known.
    pub process: Option<Process>,
}

impl Containerd {
    /// Asks the one that listens on a socket.
    pub async fn read(socket: &Path) -> Self {
        let daemon = ask(socket).await;
        let pid = daemon.as_ref().ok().and_then(|daemon| daemon.pid);
        Self { daemon, process: pid.and_then(|pid| Process::read(pid).ok()) }
    }

    /// Whether it answers, and which it is.
    pub fn judge(&self, socket: &Path) -> Vec<Finding> {
        const CHECK: &str = "containerd";
        let name = socket.display();
        match &self.daemon {
            Ok(daemon) => {
                vec![Finding::ok(CHECK, format!("answers at {name}")), version(&daemon.version)]
            }
            Err(Silent::Connect(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                vec![Finding::skipped(CHECK, format!("{name}: asking containerd needs root"))]
            }
            Err(Silent::Connect(error)) => vec![Finding::error(
                CHECK,
                format!("nobody answers at {name} ({error})"),
                "start it; if it listens elsewhere, set containerd.address in capsuled's configuration",
            )],
            Err(Silent::Call(reason)) => vec![Finding::error(
                CHECK,
                format!("what listens at {name} does not answer as containerd does: {reason}"),
                "see containerd's log; if it listens elsewhere, set containerd.address in capsuled's configuration",
            )],
        }
    }

    /// Whether it has the snapshotter, and calls the socket at which capsuled serves it.
    pub fn snapshotter(
        &self,
        settings: &Settings,
        address: &Path,
        configured: Option<&Configured>,
    ) -> Finding {
        const CHECK: &str = "snapshotter";
        let name = &settings.snapshotter;
        let in_file = configured.and_then(|configured| configured.address.as_deref());
        let Ok(daemon) = &self.daemon else {
            return match (configured, in_file) {
                (None, _) => Finding::skipped(CHECK, "containerd cannot be asked about it"),
                (_, None) => Finding::error(
                    CHECK,
                    format!("containerd's configuration has no snapshotter {name}"),
                    SETUP,
                ),
                (_, Some(at)) => judge_address(name, at, address),
            };
        };
        let Some(plugin) = daemon.plugin(SNAPSHOTTER, name) else {
            let found = format!("containerd has no snapshotter {name}");
            return match in_file {
                Some(_) => Finding::error(CHECK, found, "its configuration has it: restart containerd"),
                None => Finding::error(CHECK, found, SETUP),
            };
        };
        match (&plugin.error, &plugin.address) {
            (Some(error), _) => Finding::error(
                CHECK,
                format!("containerd could not load {name}: {error}"),
                "see containerd's log",
            ),
            (None, Some(at)) => judge_address(name, at, address),
            (None, None) => Finding::error(
                CHECK,
                format!("{name} is a snapshotter of containerd's own"),
                "give capsuled another name (containerd.snapshotter in its configuration), and run `capsulectl setup`",
            ),
        }
    }

    /// Whether containerd and capsuled agree about ids of containers in user namespaces, and about rebasing.
    pub fn ids(&self, settings: &Settings, configured: Option<&Configured>) -> Option<Finding> {
        let loaded = self.loaded(&settings.snapshotter).map(|plugin| &plugin.capabilities);
        let capabilities = loaded.or(configured.filter(|c| c.address.is_some()).map(|c| &c.capabilities))?;
        Some(judge_capabilities(&settings.snapshotter, capabilities, settings.remap_ids))
    }

    fn loaded(&self, name: &str) -> Option<&Plugin> {
        self.daemon.as_ref().ok()?.plugin(SNAPSHOTTER, name)
    }

    /// Why the transfer service does not work, if it does not.
    pub fn transfer_error(&self) -> Option<&str> {
        self.daemon.as_ref().ok()?.plugin("io.containerd.transfer.v1", "local")?.error.as_deref()
    }

    /// Why CRI does not work, if it does not.
    pub fn cri_error(&self) -> Option<&str> {
        let plugins = &self.daemon.as_ref().ok()?.plugins;
        let is_cri = |plugin: &&Plugin| plugin.kind == "io.containerd.cri.v1" || plugin.id == "cri";
        plugins.iter().filter(is_cri).find_map(|plugin| plugin.error.as_deref())
    }

    /// Whether it serves CRI; `None` when it does not answer.
    pub fn runs_cri(&self) -> Option<bool> {
        self.daemon.as_ref().ok().map(|daemon| daemon.plugin("io.containerd.grpc.v1", "cri").is_some())
    }
}

fn version(text: &str) -> Finding {
    const CHECK: &str = "containerd-version";
    let tested = "capsules are made for containerd 1.7 and 2.x";
    match text.parse::<Release>() {
        Ok(release) if release.is_known() => Finding::ok(CHECK, text),
        Ok(release) if release < Release::OLDEST => {
            Finding::error(CHECK, format!("{text} is too old"), tested)
        }
        _ => Finding::warning(CHECK, format!("{text} is not known"), tested),
    }
}

fn judge_address(name: &str, containerds: &str, capsuled: &Path) -> Finding {
    const CHECK: &str = "snapshotter";
    let at = containerds.strip_prefix("unix://").unwrap_or(containerds);
    if Path::new(at) == capsuled {
        return Finding::ok(CHECK, format!("containerd has {name} at {at}"));
    }
    let found = format!(
        "containerd looks for {name} at {containerds}, and capsuled serves at {}",
        capsuled.display()
    );
    Finding::error(CHECK, found, SETUP)
}

/// As `snapshotter/src/agreement.rs`, which warns of the same in capsuled's log.
fn judge_capabilities(name: &str, capabilities: &[String], remap_ids: bool) -> Finding {
    const CHECK: &str = "id-mapping";
    let has = |capability: &str| capabilities.iter().any(|has| has == capability);
    if has("rebase") {
        let found =
            format!("[proxy_plugins.{name}] has the capability rebase, with which images may come out wrong");
        return Finding::error(CHECK, found, "take it away, and pull again what was pulled with it");
    }
    match (has("remap-ids"), remap_ids) {
        (true, false) => Finding::warning(
            CHECK,
            format!(
                "containers in user namespaces will see wrong owners: [proxy_plugins.{name}] has the capability remap-ids, and snapshots.remap_ids is false"
            ),
            "set it to true in capsuled's configuration; or, with containerd 1.7, which cannot map ids, take the capability away",
        ),
        (false, true) => Finding::warning(
            CHECK,
            format!(
                "containers in user namespaces will not start: snapshots.remap_ids is true, and [proxy_plugins.{name}] lacks the capability remap-ids"
            ),
            "with containerd 2.x run `capsulectl setup`; with 1.7 set snapshots.remap_ids to false in capsuled's configuration",
        ),
        (true, true) => Finding::ok(CHECK, "ids of containers in user namespaces are mapped"),
        (false, false) => Finding::ok(CHECK, "containers in user namespaces get copies of layers"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    const SOCKET: &str = "/run/capsule/capsuled.sock";

    fn settings() -> Settings {
        Settings::read("/no/such/file".as_ref())
    }

    fn with(plugins: Vec<Plugin>) -> Containerd {
        let daemon = Daemon { version: "v2.1.9".into(), plugins, pid: None };
        Containerd { daemon: Ok(daemon), process: None }
    }

    fn proxy(address: &str) -> Plugin {
        let (kind, id) = (SNAPSHOTTER.to_owned(), "capsule".to_owned());
        Plugin { kind, id, address: Some(address.to_owned()), ..Plugin::default() }
    }

    fn configured(text: &str) -> Configured {
        Configured::of(&text.parse().unwrap(), "capsule")
    }

    fn look(containerd: &Containerd, configuration: Option<&str>) -> Finding {
        let configured = configuration.map(configured);
        containerd.snapshotter(&settings(), SOCKET.as_ref(), configured.as_ref())
    }

    #[test]
    fn the_snapshotter_is_there_and_ours_or_it_is_said_what_to_do() {
        let ok = look(&with(vec![proxy(SOCKET)]), None);
        assert_eq!(ok.state, State::Ok, "{ok:?}");
        assert_eq!(look(&with(vec![proxy("unix:///run/capsule/capsuled.sock")]), None).state, State::Ok);
        let missing = look(&with(Vec::new()), Some(""));
        assert_eq!((missing.state, missing.advice.as_deref()), (State::Error, Some(SETUP)));
        let there = format!("[proxy_plugins.capsule]\naddress = '{SOCKET}'\n");
        let stale = look(&with(Vec::new()), Some(&there));
        assert!(stale.advice.as_deref().unwrap().contains("restart containerd"), "{stale:?}");
        let elsewhere = look(&with(vec![proxy("/run/other.sock")]), None);
        assert_eq!(elsewhere.state, State::Error);
        assert!(elsewhere.found.contains("/run/other.sock") && elsewhere.found.contains(SOCKET));
        let failed = look(&with(vec![Plugin { error: Some("no".into()), ..proxy(SOCKET) }]), None);
        assert!(failed.state == State::Error && failed.found.ends_with("no"), "{failed:?}");
        assert_eq!(look(&with(vec![Plugin { address: None, ..proxy("") }]), None).state, State::Error);
    }

    #[test]
    fn of_a_containerd_that_is_down_the_configuration_is_judged() {
        let down = || {
            let silent = Silent::Connect(io::ErrorKind::ConnectionRefused.into());
            Containerd { daemon: Err(silent), process: None }
        };
        assert_eq!(down().judge(Path::new("/c"))[0].state, State::Error);
        assert_eq!(look(&down(), None).state, State::Skipped);
        assert_eq!(look(&down(), Some("")).state, State::Error);
        let there = format!("[proxy_plugins.capsule]\naddress = '{SOCKET}'\n");
        assert_eq!(look(&down(), Some(&there)).state, State::Ok);
        let denied = Silent::Connect(io::ErrorKind::PermissionDenied.into());
        let denied = Containerd { daemon: Err(denied), process: None };
        assert_eq!(denied.judge(Path::new("/c"))[0].state, State::Skipped);
    }

    #[test]
    fn releases_are_known_too_old_or_too_new() {
        for (text, state) in [
            ("v2.1.9", State::Ok),
            ("1.7.24~ds1", State::Ok),
            ("1.6.3", State::Error),
            ("3.0", State::Warning),
            ("?", State::Warning),
        ] {
            assert_eq!(version(text).state, state, "{text}");
        }
    }

    #[test]
    fn capabilities_agree_with_capsuleds_settings() {
        for (capabilities, remap, state) in [
            (&["remap-ids"][..], true, State::Ok),
            (&[], false, State::Ok),
            (&[], true, State::Warning),
            (&["remap-ids"], false, State::Warning),
            (&["remap-ids", "rebase"], true, State::Error),
        ] {
            let capabilities: Vec<String> = capabilities.iter().map(|c| (*c).to_owned()).collect();
            assert_eq!(judge_capabilities("capsule", &capabilities, remap).state, state, "{capabilities:?}");
        }
    }
}
