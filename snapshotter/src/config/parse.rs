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

use super::{Config, Level, Mistake};

/// Most bytes of a socket's path (`sun_path` of unix(7), without its final zero byte).
const SOCKET_PATH_LIMIT: usize = 107;
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

struct Reader<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn mistake(&mut self, span: Range<usize>, message: impl Into<String>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        self.mistakes.push(Mistake { line, message: message.into() });
    }

    fn config(&mut self, table: &DeTable<'_>) -> Config {
        let mut config = Config::default();
        let mut socket = None;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "root" => self.set(&mut config.root, "root", value, parse_root),
                "run" => self.set(&mut config.run, "run", value, parse_path),
                "socket" => socket = self.value("socket", value, parse_socket),
                "containerd" => self.containerd(&mut config, value),
                "log" => self.log(&mut config, value),
                _ => self.unknown(key.span(), key.get_ref(), "root, run, socket, [containerd] and [log]"),
            }
        }
        config.socket = socket.unwrap_or_else(|| config.run.join("capsuled.sock"));
        config
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
                _ => self.unknown(
                    key.span(),
                    &format!("containerd.{}", key.get_ref()),
                    "address, namespace and snapshotter",
                ),
            }
        }
    }

    fn log(&mut self, config: &mut Config, value: &Value<'_>) {
        for (key, value) in self.table("log", value) {
            match key.get_ref().as_ref() {
                "level" => self.set(&mut config.log.level, "log.level", value, parse_level),
                _ => self.unknown(key.span(), &format!("log.{}", key.get_ref()), "level"),
            }
        }
    }

    fn unknown(&mut self, span: Range<usize>, name: &str, known: &str) {
        self.mistake(span, format!("unknown key {name}: known here are {known}"));
    }

    /// The entries of a table; a mistake and none when the value is no table.
    fn table<'v, 't>(
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

    fn set<T>(
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

    /// A string that `parse` accepts; all that can be set is written as one.
    fn value<T>(
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

fn article(value: &DeValue<'_>) -> &'static str {
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

fn parse_path(text: &str) -> Result<PathBuf, String> {
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
fn parse_identifier(text: &str) -> Result<String, String> {
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

fn parse_level(text: &str) -> Result<Level, String> {
    match Level::NAMES.iter().find(|(name, _)| *name == text) {
        Some((_, level)) => Ok(*level),
        None => Err("it must be error, warn, info, debug or trace".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What an operator is shown and told to start from.
    const SHIPPED: &str = include_str!("../../../configs/config.toml");

    fn mistakes(text: &str) -> Vec<(usize, String)> {
        let mistakes = parse_config(text).unwrap_err();
        mistakes.into_iter().map(|mistake| (mistake.line, mistake.message)).collect()
    }

    #[test]
    fn the_shipped_file_says_the_defaults_and_names_every_key() {
        assert_eq!(parse_config(SHIPPED), Ok(Config::default()));
        assert_eq!(parse_config(""), Ok(Config::default()));
        for key in ["root", "run", "socket", "address", "namespace", "snapshotter", "level"] {
            assert!(SHIPPED.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
        }
    }

    #[test]
    fn what_is_set_is_taken() {
        let config = parse_config(
            "root = '/srv/c'\nrun = '/run/c'\nlog.level = 'debug'\n[containerd]\naddress = '/c.sock'\nnamespace = 'a.b'\nsnapshotter = 'x-1'\n",
        )
        .unwrap();
        assert_eq!(config.root, Path::new("/srv/c"));
        assert_eq!(config.socket, Path::new("/run/c/capsuled.sock"));
        assert_eq!(config.log.level, Level::Debug);
        assert_eq!(config.containerd.address, Path::new("/c.sock"));
        assert_eq!((&*config.containerd.namespace, &*config.containerd.snapshotter), ("a.b", "x-1"));
        assert_eq!(parse_config("socket = '/s'").unwrap().socket, Path::new("/s"));
    }

    #[test]
    fn all_mistakes_come_at_once_in_the_order_of_their_lines() {
        let text = "\
root = 5
rum = '/run'
run = 'relative'

[containerd]
address = '/a/../b'
namespace = '-'
snapshotter = 'overlayfs'
snapshoter = 'capsule'

[log]
level = 'loud'
level = 'info'

[metrics]
";
        let found = mistakes(text);
        let expected = [
            (1, "root is an integer, and must be a string"),
            (2, "unknown key rum: known here are root, run, socket, [containerd] and [log]"),
            (3, "run is \"relative\": it must be an absolute path below /, without .."),
            (6, "containerd.address is \"/a/../b\": it must be an absolute path below /, without .."),
            (
                7,
                "containerd.namespace is \"-\": it must be letters and digits with single '.', '_' or '-' between them, at most 76 bytes",
            ),
            (
                8,
                "containerd.snapshotter is \"overlayfs\": containerd has a snapshotter of that name itself: choose another",
            ),
            (9, "unknown key containerd.snapshoter: known here are address, namespace and snapshotter"),
            (12, "log.level is \"loud\": it must be error, warn, info, debug or trace"),
            (13, "duplicate key"),
            (15, "unknown key metrics: known here are root, run, socket, [containerd] and [log]"),
        ];
        let expected: Vec<_> = expected.into_iter().map(|(line, text)| (line, text.to_owned())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn broken_syntax_does_not_hide_other_mistakes() {
        let found = mistakes("root = \nlog.level = 'loud'\ncontainerd = 'x'\nrun = '/r\n");
        let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2, 3, 4], "{found:?}");
    }

    #[test]
    fn values_are_checked_for_what_breaks_later() {
        let long = format!("socket = '/{}'", "s".repeat(107));
        let cases = [
            ("root = '/a:b'", "overlayfs cannot use a path with ':'"),
            ("root = '/'", "absolute path below /"),
            (long.as_str(), "at most 107 bytes, and this has 108"),
            ("containerd.namespace = 'a..b'", "letters and digits"),
            ("[[containerd]]", "containerd is an array, and must be a table"),
        ];
        for (text, reason) in cases {
            let found = mistakes(text);
            assert!(found.len() == 1 && found[0].1.contains(reason), "{text}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_configuration_or_has_mistakes_on_lines_it_has(text in any::<String>()) {
            if let Err(mistakes) = parse_config(&text) {
                let lines = text.matches('\n').count() + 1;
                prop_assert!(!mistakes.is_empty());
                prop_assert!(mistakes.iter().all(|mistake| (1..=lines).contains(&mistake.line)));
            }
        }
    }
}
