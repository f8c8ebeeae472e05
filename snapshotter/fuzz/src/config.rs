//! Configuration: every mistake has its line, and what is accepted means the same when it is written out.

use capsuled::config::{Config, Level};

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text) {
        Ok(config) => {
            for path in [&config.root, &config.run, &config.socket, &config.containerd.address] {
                assert!(path.is_absolute() && path.parent().is_some(), "{}", path.display());
            }
            assert_eq!(Config::parse(&print(&config)), Ok(config));
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            assert!(mistakes.is_sorted_by_key(|mistake| mistake.line));
            // A text that ends with its last line's end has its mistakes at the end one line further.
            let lines = text.matches('\n').count() + 1;
            for mistake in mistakes {
                assert!((1..=lines).contains(&mistake.line), "line {} of {lines}", mistake.line);
                assert!(!mistake.message.is_empty());
            }
        }
    }
}

fn print(config: &Config) -> String {
    let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let path = |path: &std::path::Path| quote(&path.to_string_lossy());
    let level =
        Level::NAMES.iter().find(|(_, level)| *level == config.log.level).map_or("", |(name, _)| name);
    let options: Vec<String> = config.snapshots.mount_options.iter().map(|o| quote(o.as_str())).collect();
    let directories: Vec<String> = config.devices.spec_dirs.iter().map(|dir| path(dir)).collect();
    let behaviour = &config.snapshots.behaviour;
    format!(
        "root = {}\nrun = {}\nsocket = {}\n[containerd]\naddress = {}\nnamespace = {}\nsnapshotter = {}\n\
         [snapshots]\nmount_options = [{}]\nremap_ids = {}\nupperdir_label = {}\nasync_remove = {}\n\
         [devices]\nspec_dirs = [{}]\n[log]\nlevel = {}\n",
        path(&config.root),
        path(&config.run),
        path(&config.socket),
        path(&config.containerd.address),
        quote(&config.containerd.namespace),
        quote(&config.containerd.snapshotter),
        options.join(", "),
        behaviour.remap_ids,
        behaviour.upperdir_label,
        behaviour.async_remove,
        directories.join(", "),
        quote(level),
    )
}
