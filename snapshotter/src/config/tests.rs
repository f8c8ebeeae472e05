//! What a configuration file may say, and every mistake it can have.

use std::path::Path;

use proptest::prelude::*;

use super::{Config, Level, parse::parse_config};
use crate::snapshots::{Behaviour, MountOption};

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
    let keys = "root run socket address namespace snapshotter mount_options remap_ids upperdir_label \
                async_remove discard_unpacked_layers level";
    for key in keys.split_whitespace() {
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
fn snapshots_can_be_told_how_to_behave() {
    let config = parse_config(
        "[snapshots]\nmount_options = ['volatile', 'metacopy=on']\nremap_ids = false\nupperdir_label = true\n\
         async_remove = false\n",
    );
    let snapshots = config.unwrap().snapshots;
    let options = ["volatile", "metacopy=on"].map(|option| MountOption::parse(option).unwrap());
    assert_eq!(snapshots.mount_options, options);
    let behaviour = Behaviour { remap_ids: false, upperdir_label: true, async_remove: false };
    assert_eq!(snapshots.behaviour, behaviour);
}

#[test]
fn layers_of_capsules_can_be_discarded() {
    let config = parse_config("[capsules]\ndiscard_unpacked_layers = true\n").unwrap();
    assert!(config.capsules.discard_unpacked_layers);
    let wrong = mistakes("[capsules]\ndiscard = true\ndiscard_unpacked_layers = 1\n");
    assert_eq!(wrong.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3]);
    assert!(wrong[0].1.contains("known here are discard_unpacked_layers"), "{wrong:?}");
}

/// A file with a mistake of every kind.
const MISTAKEN: &str = "\
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

[snapshots]
mount_options = [
  'volatile', 'lowerdir=/etc',
  'xino=on,index=on',
  7,
]
async_remove = 'yes'
sync_remove = true
";

#[test]
fn all_mistakes_come_at_once_in_the_order_of_their_lines() {
    let found = mistakes(MISTAKEN);
    let expected = [
        (1, "root is an integer, and must be a string"),
        (
            2,
            "unknown key rum: known here are root, run, socket, [containerd], [snapshots], [capsules] and [log]",
        ),
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
        (
            15,
            "unknown key metrics: known here are root, run, socket, [containerd], [snapshots], [capsules] and [log]",
        ),
        (
            19,
            "an item of snapshots.mount_options is \"lowerdir=/etc\": capsuled sets lowerdir itself, as each snapshot and this machine need it: leave it out",
        ),
        (
            20,
            "an item of snapshots.mount_options is \"xino=on,index=on\": it must be one option of overlayfs, as NAME or NAME=VALUE, without spaces and commas",
        ),
        (21, "an item of snapshots.mount_options is an integer, and must be a string"),
        (23, "snapshots.async_remove is a string, and must be true or false"),
        (
            24,
            "unknown key snapshots.sync_remove: known here are mount_options, remap_ids, upperdir_label and async_remove",
        ),
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
    let no_room = format!("run = '/{}'", "r".repeat(93));
    assert!(parse_config(&format!("run = '/{}'", "r".repeat(92))).is_ok());
    let cases = [
        ("root = '/a:b'", "overlayfs cannot use a path with ':'"),
        ("root = '/'", "absolute path below /"),
        (long.as_str(), "at most 107 bytes, and this has 108"),
        (no_room.as_str(), "capsuled.sock in it would have 108"),
        ("containerd.namespace = 'a..b'", "letters and digits"),
        ("[[containerd]]", "containerd is an array, and must be a table"),
        ("snapshots.mount_options = 'volatile'", "is a string, and must be an array"),
        ("snapshots.mount_options = ['']", "it must be one option"),
        ("snapshots.remap_ids = 1", "is an integer, and must be true or false"),
        ("snapshots.upperdir_label = []", "is an array, and must be true or false"),
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
