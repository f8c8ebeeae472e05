//! After a power cut: what capsuled says is attached, kept and published, and what is on the disk of it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::model::{Deed, Seen, Writes, plain};
use crate::power::client::Client;
use crate::power::expect::{Expected, Kind};
use crate::power::journal::{Call, Labels};
use crate::power::tree;
use crate::workspace::output_of;

/// How long capsuled may take to remove what nobody needs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A capsuled that has started after a cut.
#[derive(Debug)]
pub struct After<'a> {
    /// `capsulectl` is here.
    pub programs: &'a Path,
    /// A folder for what this needs.
    pub folder: &'a Path,
    /// capsuled's root.
    pub root: &'a Path,
    /// Its socket.
    pub socket: &'a Path,
}

impl After<'_> {
    /// Compares all of it with what must be there; how many trees were compared.
    pub fn check(&self, client: &mut Client, expected: &Expected) -> Result<usize> {
        let under_way: Vec<&Deed> = expected
            .under_way
            .values()
            .filter_map(|call| if let Call::Deed(deed) = call { Some(deed) } else { None })
            .collect();
        let mut compared = self.versions(client, expected)?;
        let seen = self.seen()?;
        expected.deeds.check(&under_way, &seen)?;
        compared += seen.kept.len();
        let own = seen.held.values().filter(|(.., writes)| matches!(writes, Some(Writes::Own(_)))).count();
        self.settled(own, &seen)?;
        self.go_on(&seen)?;
        Ok(compared)
    }

    /// Each version that was published has its snapshot, with every file as it was.
    fn versions(&self, client: &mut Client, expected: &Expected) -> Result<usize> {
        let found = client.list()?;
        for (snapshot, manifest) in &expected.deeds.published {
            let kind = found.get(snapshot).map(|found| found.kind);
            ensure!(kind == Some(Kind::Committed), "the version of {snapshot} is {kind:?}");
            let (key, labels) = ("check-view".to_owned(), Labels::new());
            let view = Call::Create { key: key.clone(), parent: snapshot.clone(), labels, view: true };
            if let Some(refused) = client.call(&view)? {
                bail!("cannot look at {snapshot}: {refused}");
            }
            let tree = plain(tree::manifest(&client.mounts(&key)?.top()?)?);
            let other: Vec<_> = tree.iter().filter(|line| !manifest.contains(line)).collect();
            ensure!(
                tree == *manifest,
                "the version of {snapshot} has {other:?}, and should have {manifest:?}"
            );
            client.call(&Call::Remove { key })?;
        }
        Ok(expected.deeds.published.len())
    }

    fn seen(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        for upper in array(&self.json(&["uppers"])?, "uppers")? {
            let name = text(&upper, "name")?;
            let files = self.files(&self.root.join("uppers").join(&name))?;
            seen.kept.insert(name, files);
        }
        for a in array(&self.json(&["ps"])?, "attachments")? {
            ensure!(a["state"] == "waiting", "after a boot it is not waiting: {a}");
            let (capsule, version) = (text(&a, "capsule")?, text(&a, "version")?);
            let before = a["previous_version"].as_str().map(|version| format!("{capsule}@{version}"));
            let writes = match (&a["writable"], a["writable"]["persist"].as_str()) {
                (Value::Null, _) => None,
                (_, Some(name)) => Some(Writes::Named(name.to_owned())),
                (_, None) => {
                    let own = self.root.join("attachments").join(text(&a, "id")?);
                    Some(Writes::Own(self.files(&own)?))
                }
            };
            let place = format!("{} {}", text(&a, "container")?, text(&a, "target")?);
            let twice = seen.held.insert(place, (format!("{capsule}@{version}"), before, writes));
            ensure!(twice.is_none(), "twice: {a}");
        }
        Ok(seen)
    }

    /// The numbers of the files that were written, each of which is whole.
    fn files(&self, of: &Path) -> Result<BTreeSet<u32>> {
        let image = of.join("image");
        if !image.exists() {
            return numbers(&of.join("upper"));
        }
        let at = self.folder.join("upper");
        fs::create_dir_all(&at).context("create a mount point")?;
        output_of(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&image).arg(&at))
            .context("what was written has a file system that does not recover")?;
        let numbers = numbers(&at.join("upper"));
        output_of(Command::new("umount").arg(&at)).context("unmount what was written")?;
        numbers
    }

    /// Nothing is there that nothing has: directories, and files of the pool without a version.
    fn settled(&self, own: usize, seen: &Seen) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (attachments, uppers) =
                (names(&self.root.join("attachments"))?, names(&self.root.join("uppers"))?);
            let lonely = self.lonely()?;
            if attachments.len() == own && uppers.iter().eq(seen.kept.keys()) && lonely.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "long after the start: {attachments:?} for {own} attachments, {uppers:?}, pool: {lonely:?}"
            );
            sleep(Duration::from_millis(5));
        }
    }

    /// Files of the pool that no version has.
    fn lonely(&self) -> Result<Vec<String>> {
        let pool = self.root.join("pool");
        let names = if pool.exists() { names(&pool)? } else { BTreeSet::new() };
        let alone = |name: &String| fs::symlink_metadata(pool.join(name)).is_ok_and(|file| file.nlink() < 2);
        Ok(names.into_iter().filter(alone).collect())
    }

    /// What is kept and not in use can be removed.
    fn go_on(&self, seen: &Seen) -> Result<()> {
        let used: BTreeSet<&String> = seen
            .held
            .values()
            .filter_map(|(.., writes)| if let Some(Writes::Named(name)) = writes { Some(name) } else { None })
            .collect();
        let Some(name) = seen.kept.keys().find(|name| !used.contains(name)) else { return Ok(()) };
        self.json(&["uppers", "rm", name])?;
        ensure!(!self.root.join("uppers").join(name).exists(), "{name} is there after it was removed");
        Ok(())
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(self.programs.join("capsulectl"));
        command.arg("--address").arg(self.socket).args(["--output", "json"]).args(args);
        let out = output_of(&mut command)?;
        serde_json::from_str(&out).with_context(|| format!("no JSON: {out:?}"))
    }
}

/// What is not there yet has no file.
fn numbers(upper: &Path) -> Result<BTreeSet<u32>> {
    if !upper.exists() {
        return Ok(BTreeSet::new());
    }
    let mut numbers = BTreeSet::new();
    for name in names(upper)? {
        let number: u32 = name.strip_prefix('t').and_then(|n| n.parse().ok()).context("a file's name")?;
        let content = fs::read_to_string(upper.join(&name)).with_context(|| format!("read {name}"))?;
        // One that was being written may be empty yet.
        ensure!(content == number.to_string() || content.is_empty(), "{name} holds {content:?}");
        if !content.is_empty() {
            numbers.insert(number);
        }
    }
    Ok(numbers)
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn array(value: &Value, field: &str) -> Result<Vec<Value>> {
    Ok(value[field].as_array().with_context(|| format!("no {field}"))?.clone())
}

fn text(value: &Value, field: &str) -> Result<String> {
    Ok(value[field].as_str().with_context(|| format!("no {field} in {value}"))?.to_owned())
}
