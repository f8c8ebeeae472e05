//! From the text of `config.toml` to a [`Config`], collecting every mistake with its line.

use std::{
    collections::HashSet,
    ops::Range,
    path::{Component, Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::collect::parse_duration;
use super::{Config, Mistake, Require};
use crate::{capsules::model::CapsuleName, snapshots::MountOption};

/// Most bytes of a socket's path (`sun_path` of unix(7), without its final zero byte).
const SOCKET_PATH_LIMIT: usize = 107;
/// The API's socket in the run directory. No other socket there has a longer name.
const SOCKET: &str = "capsuled.sock";
/// Most bytes of a containerd namespace or plugin name (containerd, `pkg/identifiers`).
const IDENTIFIER_LIMIT: usize = 76;
/// Snapshotters inside containerd: a proxy plugin of the same name makes containerd 2.1 panic.
const BUILT_IN: [&str; 7] = ["blockfile", "btrfs", "devmapper", "erofs", "native", "overlayfs", "zfs"];
/// What a root's path may not hold: overlayfs reads them as syntax in its list of lower directories.
const OVERLAY_SYNTAX: [char; 4] = [':', ',', '\\', '"'];

/// Parses the text; what it does not mention is the default.
pub(super) fn parse_config(text: &str) -> Result<Config, Vec<Mistake>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { text, mistakes: Vec::new() };
    for error in errors {
        reader.mistake(error.span().unwrap_or_default(), error.message().replace('\n', ": "));
    }
    let broken: HashSet<usize> = reader.mistakes.iter().map(|mistake| mistake.line).collect();
    let syntax = std::mem::take(&mut reader.mistakes);
    let config = reader.config(document.get_ref());
    // What was recovered from a line that breaks the syntax says nothing about what was meant.
    reader.mistakes.retain(|mistake| !broken.contains(&mistake.line));
    reader.mistakes.extend(syntax);
    reader.mistakes.sort_by_key(|mistake| mistake.line);
    if reader.mistakes.is_empty() { Ok(config) } else { Err(reader.mistakes) }
}

pub(super) struct Reader<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

pub(super) type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    pub(super) fn mistake(&mut self, span: Range<usize>, message: impl Into<String>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        self.mistakes.push(Mistake { line, message: message.into() });
    }

    fn config(&mut self, table: &DeTable<'_>) -> Config {
        let mut config = Config::default();
        let (mut socket, mut idle_stop) = (None, None);
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "root" => self.set(&mut config.root, "root", value, parse_root),
                "run" => self.set(&mut config.run, "run", value, parse_run),
                "socket" => socket = self.value("socket", value, parse_socket),
                "idle_stop" => {
                    self.set(&mut config.idle_stop, "idle_stop", value, parse_duration);
                    idle_stop = Some(value.span());
                }
                "containerd" => self.containerd(&mut config, value),
                "snapshots" => self.snapshots(&mut config, value),
                "verify" => self.verify(&mut config, value, key.span()),
                "collect" => self.collect(&mut config, value),
                "capsules" => self.capsules(&mut config, value),
                "uppers" => self.uppers(&mut config, value),
                "volumes" => self.volumes(&mut config, value),
                "devices" => self.devices(&mut config, value),
                "budgets" => self.budgets(&mut config, value),
                "remote" => self.remote(&mut config, value),
                "log" => self.log(&mut config, value),
                "traces" => self.traces(&mut config, value),
                _ => self.unknown(
                    key.span(),
                    key.get_ref(),
                    "root, run, socket, idle_stop, [containerd], [snapshots], [verify], [collect], [capsules], [uppers], [volumes], [devices], [budgets], [remote], [log] and [traces]",
                ),
            }
        }
        config.socket = socket.unwrap_or_else(|| config.run.join(SOCKET));
        if let Some(span) = idle_stop {
            self.check_idle_stop(&config, span);
        }
        config
    }

    /// What is to be done at times of its own is not done by a daemon that has ended.
    fn check_idle_stop(&mut self, config: &Config, span: Range<usize>) {
        let collects = !config.collect.interval.is_zero() || config.collect.watermarks.is_some();
        if collects && !config.idle_stop.is_zero() {
            self.mistake(
                span,
                "a capsuled that ends when idle cannot collect by itself: leave out either idle_stop, or collect.interval and the watermarks",
            );
        }
    }

    fn volumes(&mut self, config: &mut Config, value: &Value<'_>) {
        for (key, value) in self.table("volumes", value) {
            match key.get_ref().as_ref() {
                "below" => {
                    let parse = |text: &str| if text == "/" { Ok(text.into()) } else { parse_path(text) };
                    config.volumes.below = self.list("volumes.below", value, parse);
                }
                "ephemeral" => {
                    self.set(&mut config.volumes.ephemeral, "volumes.ephemeral", value, parse_size);
                }
                _ => self.unknown(key.span(), &format!("volumes.{}", key.get_ref()), "below and ephemeral"),
            }
        }
    }

    fn uppers(&mut self, config: &mut Config, value: &Value<'_>) {
        for (key, value) in self.table("uppers", value) {
            match key.get_ref().as_ref() {
                "size" => self.set(&mut config.uppers.size, "uppers.size", value, parse_size),
                _ => self.unknown(key.span(), &format!("uppers.{}", key.get_ref()), "size"),
            }
        }
    }

    fn containerd(&mut self, config: &mut Config, value: &Value<'_>) {
        let containerd = &mut config.containerd;
        for (key, value) in self.table("containerd", value) {
            match key.get_ref().as_ref() {
                "address" => {
                    self.set(&mut containerd.address, "containerd.address", value, parse_socket);
                }
                "namespace" => {
                    self.set(&mut containerd.namespace, "containerd.namespace", value, parse_identifier);
                }
                "snapshotter" => {
                    self.set(&mut containerd.snapshotter, "containerd.snapshotter", value, parse_snapshotter);
                }
                "hosts" => self.set(&mut containerd.hosts, "containerd.hosts", value, parse_path),
                "docker_namespaces" => {
                    let namespaces = self.list("containerd.docker_namespaces", value, parse_identifier);
                    containerd.docker_namespaces = namespaces.into_iter().collect();
                }
                "docker_sockets" => {
                    containerd.docker_sockets = self.list("containerd.docker_sockets", value, parse_socket);
                }
                _ => self.unknown(
                    key.span(),
                    &format!("containerd.{}", key.get_ref()),
                    "address, namespace, snapshotter, hosts, docker_namespaces and docker_sockets",
                ),
            }
        }
    }

    fn snapshots(&mut self, config: &mut Config, value: &Value<'_>) {
        let snapshots = &mut config.snapshots;
        let behaviour = &mut snapshots.behaviour;
        for (key, value) in self.table("snapshots", value) {
            match key.get_ref().as_ref() {
                "mount_options" => snapshots.mount_options = self.mount_options(value),
                "remap_ids" => self.flag(&mut behaviour.remap_ids, "snapshots.remap_ids", value),
                "upperdir_label" => {
                    self.flag(&mut behaviour.upperdir_label, "snapshots.upperdir_label", value);
                }
                "async_remove" => self.flag(&mut behaviour.async_remove, "snapshots.async_remove", value),
                _ => self.unknown(
                    key.span(),
                    &format!("snapshots.{}", key.get_ref()),
                    "mount_options, remap_ids, upperdir_label and async_remove",
                ),
            }
        }
    }

    fn verify(&mut self, config: &mut Config, value: &Value<'_>, span: Range<usize>) {
        let verify = &mut config.verify;
        for (key, value) in self.table("verify", value) {
            match key.get_ref().as_ref() {
                "keys" => verify.keys = self.list("verify.keys", value, parse_path),
                "require" => verify.require = self.require(value),
                _ => self.unknown(key.span(), &format!("verify.{}", key.get_ref()), "keys and require"),
            }
        }
        if verify.keys.is_empty() && verify.require != Require::None {
            self.mistake(span, "verify.require is set, and verify.keys has no key: no version could be used");
        }
    }

    fn require(&mut self, value: &Value<'_>) -> Require {
        const NAME: &str = "verify.require";
        if matches!(value.get_ref(), DeValue::Array(_)) {
            let parse = |text: &str| text.parse::<CapsuleName>().map_err(|error| error.to_string());
            return Require::Only(self.list(NAME, value, parse).into_iter().collect());
        }
        let parse = |text: &str| match text {
            "none" => Ok(Require::None),
            "all" => Ok(Require::All),
            _ => Err("it must be \"none\", \"all\", or an array of capsules' names".to_owned()),
        };
        self.value(NAME, value, parse).unwrap_or(Require::None)
    }

    fn capsules(&mut self, config: &mut Config, value: &Value<'_>) {
        const DISCARD: &str = "capsules.discard_unpacked_layers";
        for (key, value) in self.table("capsules", value) {
            match key.get_ref().as_ref() {
                "discard_unpacked_layers" => {
                    self.flag(&mut config.capsules.discard_unpacked_layers, DISCARD, value);
                }
                _ => self.unknown(
                    key.span(),
                    &format!("capsules.{}", key.get_ref()),
                    "discard_unpacked_layers",
                ),
            }
        }
    }

    fn mount_options(&mut self, value: &Value<'_>) -> Vec<MountOption> {
        let parse = |text: &str| MountOption::parse(text).map_err(|error| error.to_string());
        self.list("snapshots.mount_options", value, parse)
    }

    /// An array of strings that `parse` accepts; those that it does not are mistakes, and left out.
    pub(super) fn list<T>(
        &mut self,
        name: &str,
        value: &Value<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let DeValue::Array(items) = value.get_ref() else {
            self.mistake(
                value.span(),
                format!("{name} is {}, and must be an array", article(value.get_ref())),
            );
            return Vec::new();
        };
        items.iter().filter_map(|item| self.value(&format!("an item of {name}"), item, &parse)).collect()
    }

    pub(super) fn flag(&mut self, field: &mut bool, name: &str, value: &Value<'_>) {
        match value.get_ref() {
            DeValue::Boolean(flag) => *field = *flag,
            other => {
                self.mistake(
                    value.span(),
                    format!("{name} is {}, and must be true or false", article(other)),
                );
            }
        }
    }

    pub(super) fn unknown(&mut self, span: Range<usize>, name: &str, known: &str) {
        self.mistake(span, format!("unknown key {name}: known here are {known}"));
    }

    /// The entries of a table; a mistake and none when the value is no table.
    pub(super) fn table<'v, 't>(
        &mut self,
        name: &str,
        value: &'v Value<'t>,
    ) -> Vec<(&'v Spanned<toml::de::DeString<'t>>, &'v Value<'t>)> {
        match value.get_ref() {
            DeValue::Table(table) => table.iter().collect(),
            other => {
                self.mistake(value.span(), format!("{name} is {}, and must be a table", article(other)));
                Vec::new()
            }
        }
    }

    pub(super) fn set<T>(
        &mut self,
        field: &mut T,
        name: &str,
        value: &Value<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) {
        if let Some(parsed) = self.value(name, value, parse) {
            *field = parsed;
        }
    }

    /// A string that `parse` accepts.
    pub(super) fn value<T>(
        &mut self,
        name: &str,
        value: &Value<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let DeValue::String(text) = value.get_ref() else {
            self.mistake(
                value.span(),
                format!("{name} is {}, and must be a string", article(value.get_ref())),
            );
            return None;
        };
        parse(text).map_err(|reason| self.mistake(value.span(), format!("{name} is {text:?}: {reason}"))).ok()
    }
}

pub(super) fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

pub(super) fn parse_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.parent().is_none() || text.contains('\0') {
        return Err("it must be an absolute path below /, without ..".to_owned());
    }
    Ok(path.to_owned())
}

fn parse_root(text: &str) -> Result<PathBuf, String> {
    if let Some(char) = text.chars().find(|char| OVERLAY_SYNTAX.contains(char)) {
        return Err(format!("overlayfs cannot use a path with {char:?}"));
    }
    parse_path(text)
}

/// The directory must leave room for the names of the sockets in it.
fn parse_run(text: &str) -> Result<PathBuf, String> {
    let path = parse_path(text)?;
    let length = path.join(SOCKET).as_os_str().len();
    if length > SOCKET_PATH_LIMIT {
        return Err(format!(
            "a socket's path has at most {SOCKET_PATH_LIMIT} bytes, and {SOCKET} in it would have {length}"
        ));
    }
    Ok(path)
}

fn parse_socket(text: &str) -> Result<PathBuf, String> {
    if text.len() > SOCKET_PATH_LIMIT {
        return Err(format!(
            "a socket's path has at most {SOCKET_PATH_LIMIT} bytes, and this has {}",
            text.len()
        ));
    }
    parse_path(text)
}

/// containerd's rule (`pkg/identifiers`): letters and digits, with single `.`, `_` or `-` between them.
fn parse_size(text: &str) -> Result<u64, String> {
    text.parse()
        .map(|size: bytesize::ByteSize| size.as_u64())
        .map_err(|_| "write a size as 512MiB or 10GiB".to_owned())
}

pub(super) fn parse_identifier(text: &str) -> Result<String, String> {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if text.len() > IDENTIFIER_LIMIT || !text.split(['.', '_', '-']).all(plain) {
        return Err(format!(
            "it must be letters and digits with single '.', '_' or '-' between them, at most {IDENTIFIER_LIMIT} bytes"
        ));
    }
    Ok(text.to_owned())
}

fn parse_snapshotter(text: &str) -> Result<String, String> {
    if BUILT_IN.contains(&text) {
        return Err("containerd has a snapshotter of that name itself: choose another".to_owned());
    }
    parse_identifier(text)
}
