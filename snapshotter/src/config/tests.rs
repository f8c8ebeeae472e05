//! What a configuration file may say, and every mistake it can have.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::{Config, Level, Require, Verify, parse::parse_config};
use crate::{
    collect::Watermarks,
    resources::Configured,
    snapshots::{Behaviour, MountOption},
};

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
    let keys = "root run socket idle_stop address namespace snapshotter hosts docker_namespaces docker_sockets mount_options remap_ids upperdir_label \
                async_remove keys require interval keep_last keep_tagged older_than high_watermark low_watermark \
                discard_unpacked_layers level format endpoint share";
    for key in keys.split_whitespace() {
        assert!(SHIPPED.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
    }
}

#[test]
fn what_is_set_is_taken() {
    let config = parse_config(
        "root = '/srv/c'\nrun = '/run/c'\nlog.level = 'debug'\n[containerd]\naddress = '/c.sock'\nnamespace = 'a.b'\nsnapshotter = 'x-1'\nhosts = '/h'\ndocker_namespaces = ['moby', 'docker.two']\ndocker_sockets = ['/run/d1.sock', '/run/d2.sock']\n",
    )
    .unwrap();
    assert_eq!(config.root, Path::new("/srv/c"));
    assert_eq!(config.socket, Path::new("/run/c/capsuled.sock"));
    assert_eq!(config.log.level, Level::Debug);
    assert_eq!(config.containerd.address, Path::new("/c.sock"));
    assert_eq!((&*config.containerd.namespace, &*config.containerd.snapshotter), ("a.b", "x-1"));
    assert_eq!(config.containerd.hosts, Path::new("/h"));
    assert_eq!(config.containerd.docker_namespaces, ["docker.two", "moby"].map(str::to_owned).into());
    assert!(
        parse_config("containerd.docker_namespaces = []").unwrap().containerd.docker_namespaces.is_empty()
    );
    assert_eq!(mistakes("[containerd]\ndocker_namespaces = ['a/b']\n")[0].0, 2);
    assert_eq!(config.containerd.docker_sockets, ["/run/d1.sock", "/run/d2.sock"].map(PathBuf::from));
    assert_eq!(parse_config("containerd.docker_sockets = []").unwrap().containerd.docker_sockets.len(), 0);
    assert_eq!(mistakes("[containerd]\n\ndocker_sockets = ['run/docker.sock']\n")[0].0, 3);
    assert_eq!(parse_config("socket = '/s'").unwrap().socket, Path::new("/s"));
}

#[test]
fn a_daemon_may_end_when_idle_if_it_has_nothing_to_do_by_itself() {
    assert_eq!(parse_config("idle_stop = '10m'").unwrap().idle_stop, std::time::Duration::from_secs(600));
    assert_eq!(mistakes("root = '/c'\nidle_stop = 'soon'")[0].0, 2);
    for collects in ["interval = '12h'", "high_watermark = 90\nlow_watermark = 80"] {
        let found = mistakes(&format!("idle_stop = '10m'\n[collect]\n{collects}\n"));
        assert!(found.len() == 1 && found[0].0 == 1 && found[0].1.contains("collect.interval"), "{found:?}");
    }
    assert!(parse_config("idle_stop = '0s'\n[collect]\ninterval = '12h'\n").is_ok());
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

#[test]
fn who_is_trusted_and_for_what() {
    let verify = |text: &str| parse_config(text).map(|config| config.verify);
    let all = verify("[verify]\nkeys = ['/k/a.pub', '/k/b.pub']\nrequire = 'all'\n").unwrap();
    assert_eq!(all, Verify { keys: vec!["/k/a.pub".into(), "/k/b.pub".into()], require: Require::All });
    let some = verify("[verify]\nkeys = ['/k']\nrequire = ['tz', 'app']\n").unwrap();
    assert_eq!(some.require, Require::Only(["app", "tz"].map(|name| name.parse().unwrap()).into()));
    for (text, reason) in [
        ("[verify]\nrequire = 'all'\n", "no version could be used"),
        ("[verify]\nrequire = 'some'\nkeys = ['/k']", "\"none\", \"all\""),
        ("[verify]\nrequire = ['Tz']\nkeys = ['/k']", "not valid"),
        ("[verify]\nrequire = 1", "must be a string"),
        ("[verify]\nkeys = 'k'", "must be an array"),
        ("[verify]\nkeys = ['k']", "absolute path"),
        ("[verify]\nkey = []", "keys and require"),
    ] {
        assert!(mistakes(text).iter().any(|(_, told)| told.contains(reason)), "{text}: {:?}", mistakes(text));
    }
}

#[test]
fn what_has_a_name_has_a_size() {
    assert_eq!(Config::parse("[uppers]\nsize = '64MiB'").unwrap().uppers.size, 64 << 20);
    let below = Config::parse("[volumes]\nbelow = ['/var/lib/kubelet', '/mnt']").unwrap().volumes.below;
    assert_eq!(below, [PathBuf::from("/var/lib/kubelet"), PathBuf::from("/mnt")]);
    assert!(Config::parse("[volumes]\nbelow = ['mnt']").is_err());
    let mistakes = Config::parse("[uppers]\nsize = 'much'\nsizes = '1GiB'").unwrap_err();
    let messages: Vec<_> = mistakes.iter().map(|mistake| mistake.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "uppers.size is \"much\": write a size as 512MiB or 10GiB",
            "unknown key uppers.sizes: known here are size"
        ]
    );
}

#[test]
fn devices_are_described_where_it_is_said() {
    let dirs = parse_config("[devices]\nspec_dirs = ['/run/cdi']\n").unwrap().devices.spec_dirs;
    assert_eq!(dirs, [Path::new("/run/cdi")]);
    assert_eq!(parse_config("[devices]\nspec_dirs = []\n").unwrap().devices.spec_dirs.len(), 0);
    assert!(parse_config("[devices]\nrefuse_foreign_programs = true\n").unwrap().devices.refuse_foreign);
    let kinds = |text| parse_config(text).unwrap().devices.pods_may_name;
    assert_eq!(kinds("[devices]\npods_may_name = ['nvidia.com/gpu', '*']\n"), ["nvidia.com/gpu", "*"]);
    assert_eq!(kinds("[devices]\n"), [""; 0]);
    for (text, word) in [
        ("[devices]\nspec_dirs = '/etc/cdi'\n", "must be an array"),
        ("[devices]\nspec_dirs = ['cdi']\n", "absolute path"),
        ("[devices]\ndirs = []\n", "unknown key devices.dirs"),
        ("[devices]\nrefuse_foreign_programs = 1\n", "devices.refuse_foreign_programs"),
        ("[devices]\npods_may_name = ['gpu']\n", "as vendor.com/gpu"),
    ] {
        assert!(mistakes(text)[0].1.contains(word), "{text}: {:?}", mistakes(text));
    }
}

#[test]
fn collecting_can_be_told_when_and_what() {
    let text = "[collect]\ninterval = '1day'\nkeep_last = 5\nkeep_tagged = false\nolder_than = '0s'\nhigh_watermark = 85\nlow_watermark = 70\n";
    let collect = parse_config(text).unwrap().collect;
    assert_eq!(
        (collect.interval.as_secs(), collect.rules.keep_last, collect.rules.keep_tagged),
        (86_400, 5, false)
    );
    assert_eq!(collect.rules.older_than, Some(std::time::Duration::ZERO));
    assert_eq!(collect.watermarks, Some(Watermarks { high: 85, low: 70 }));
    for (text, word) in [
        ("[collect]\nkeep_last = -1\n", "from 0 to 10000"),
        ("[collect]\nkeep_last = 'x'\n", "must be an integer"),
        ("[collect]\ninterval = 'often'\n", "write a time as"),
        ("[collect]\nhigh_watermark = 80\nlow_watermark = 90\n", "below collect.high_watermark"),
        ("[collect]\nhigh_watermark = 80\n", "above 0"),
        ("[collect]\nkeep = 1\n", "unknown key collect.keep"),
    ] {
        let found = mistakes(text);
        assert!(found[0].1.contains(word), "{text}: {found:?}");
    }
}

/// Everything that can be wrong with a file.
const WRONG: &str = "\
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
    let found = mistakes(WRONG);
    let expected = [
        (1, "root is an integer, and must be a string"),
        (
            2,
            "unknown key rum: known here are root, run, socket, idle_stop, [containerd], [snapshots], [verify], [collect], [capsules], [uppers], [volumes], [devices], [budgets], [remote], [log] and [traces]",
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
        (
            9,
            "unknown key containerd.snapshoter: known here are address, namespace, snapshotter, hosts, docker_namespaces and docker_sockets",
        ),
        (12, "log.level is \"loud\": it must be error, warn, info, debug or trace"),
        (13, "duplicate key"),
        (
            15,
            "unknown key metrics: known here are root, run, socket, idle_stop, [containerd], [snapshots], [verify], [collect], [capsules], [uppers], [volumes], [devices], [budgets], [remote], [log] and [traces]",
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

#[test]
fn budgets_are_of_a_node_namespaces_pods_and_containers() {
    let text = "[budgets.node]\n'memory.max' = '75%'\n'pids.max' = 100\n[budgets.namespaces.'k8s.io']\n\
        'cpu.max' = '2cpus'\n[budgets.pod]\n'memory.low' = 'none'\n[budgets.container]\n'io.max' = 'store rbps=1M'\n";
    let budgets = parse_config(text).unwrap().budgets;
    let shown = |budget: &Configured| {
        budget.iter().map(|(file, ceiling)| format!("{file} {ceiling:?}")).collect::<Vec<_>>()
    };
    // What is not named is the default.
    assert_eq!(
        shown(&budgets.node),
        [
            "memory.max Percent(75)",
            "memory.low Percent(25)",
            "memory.swap.max Percent(50)",
            "cpu.max Percent(100)",
            "pids.max Amount(Number(100))",
        ]
    );
    assert_eq!(shown(&budgets.namespaces["k8s.io"]).len(), 1);
    assert_eq!((shown(&budgets.pod), budgets.container.len()), (vec!["memory.low None".to_owned()], 1));
    for (text, message) in [
        ("[budgets.node]\n'memory.max' = '1.5'\n", "budgets.node.memory.max"),
        ("[budgets.node]\n'memory' = '1M'\n", "unknown key budgets.node.memory"),
        ("[budgets.nodes]\n", "unknown key budgets.nodes"),
        ("[budgets.namespaces.'a b']\n", "budgets.namespaces.a b"),
        ("[budgets.pod]\n'pids.max' = true\n", "budgets.pod.pids.max is a boolean"),
        ("[budgets]\nnode = 1\n", "must be a table"),
    ] {
        let mistakes = parse_config(text).unwrap_err();
        assert!(mistakes[0].message.contains(message), "{mistakes:?}");
    }
}

#[test]
fn the_remote_api_is_off_unless_it_has_an_address() {
    assert_eq!(parse_config("[remote]\n").unwrap().remote.address, None);
    assert_eq!(parse_config("[remote]\naddress = 'none'\n").unwrap().remote.address, None);
    let text = "[remote]\naddress = '[::]:7443'\ncertificate = '/c'\nkey = '/k'\nclient_ca = '/a'\n\
        calls_per_second = 1\nburst = 2\nconnections = 3\n";
    let remote = parse_config(text).unwrap().remote;
    assert_eq!(remote.address, Some("[::]:7443".parse().unwrap()));
    assert_eq!([remote.certificate, remote.key, remote.client_ca], ["/c", "/k", "/a"].map(PathBuf::from));
    assert_eq!([remote.calls_per_second, remote.burst, remote.connections], [1, 2, 3]);
    for (text, word) in [
        ("[remote]\naddress = 'node:7443'\n", "as 10.0.0.5:7443"),
        ("[remote]\naddress = '10.0.0.5'\n", "as 10.0.0.5:7443"),
        ("[remote]\naddress = '10.0.0.5:0'\n", "as 10.0.0.5:7443"),
        ("[remote]\nkey = 'server.key'\n", "absolute path"),
        ("[remote]\ncalls_per_second = 0\n", "from 1 to 10000"),
        ("[remote]\nburst = '5'\n", "must be an integer"),
        ("[remote]\nconnections = 20000\n", "from 1 to 10000"),
        ("[remote]\nrate = 1\n", "unknown key remote.rate"),
        ("remote = 1\n", "must be a table"),
    ] {
        assert!(mistakes(text)[0].1.contains(word), "{text}: {:?}", mistakes(text));
    }
}
