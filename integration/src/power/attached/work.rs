//! Clients that work at once: one for each container, and one that publishes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::mem::ManuallyDrop;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, mount, mount_bind};

use super::model::{Deed, State, Writes, plain};
use crate::power::client::Client;
use crate::power::journal::{Call, Labels, Mark, Marker};
use crate::power::machine::{Load, Omission};
use crate::power::random::Random;
use crate::power::tree;
use crate::scenario::capsulectl::{done, json};
use crate::scenario::ctr::{Container, OURS};
use crate::scenario::world::{CAPSULED_SOCKET, World, log_of};

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
const CONTAINERS: usize = 2;
/// Targets of each container, and names for what is written to.
const TARGETS: usize = 3;
const NAMES: usize = 3;
/// Versions of the capsule that is attached.
const VERSIONS: usize = 3;
/// Contents of files that versions have in common.
const CONTENTS: usize = 8;
const CONTENT: usize = 48 << 10;

/// Works on what is mounted at `disk` until the load is done; how many deeds were done.
pub fn run(load: &Load, disk: &Path, marker: &Marker) -> Result<usize> {
    let root = disk.join("capsule");
    fs::create_dir_all(&root).context("create capsuled's root")?;
    mount_bind(&root, "/var/lib/capsule").context("put capsuled's root in its place")?;
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).context("mount cgroups")?;
    if let Some(omission) = load.omission {
        leave_out(omission)?;
    }
    let outcome = work(load, marker);
    outcome.with_context(|| {
        let log = fs::read_to_string(log_of("capsuled")).unwrap_or_default();
        log.lines().rev().take(4).collect::<Vec<_>>().join(" | ")
    })
}

/// Puts a program in capsuled's place that runs it without one system call.
fn leave_out(omission: Omission) -> Result<()> {
    let (program, real) = ("/payload/bin/capsuled", "/payload/bin/capsuled-whole");
    fs::rename(program, real).context("rename capsuled")?;
    let call = omission.name();
    let script = format!(
        "#!/bin/sh\nexec strace --follow-forks --seccomp-bpf --quiet=all --output=/dev/null --trace={call} \
         --inject={call}:retval=0 -- {real} \"$@\"\n"
    );
    fs::write(program, script).context("write a program")?;
    fs::set_permissions(program, PermissionsExt::from_mode(0o755)).context("make it one")
}

fn work(load: &Load, marker: &Marker) -> Result<usize> {
    // It ends with the VM's power.
    std::mem::forget(World::start(true)?);
    OURS.import()?;
    let shared = Shared {
        marker,
        deeds: AtomicUsize::new(0),
        most: load.calls,
        until: Instant::now() + Duration::from_secs(load.seconds),
    };
    let mut publisher = Publisher::new(&shared, load.seed)?;
    for version in 1..=VERSIONS {
        publisher.publish(&format!("c@{version}"))?;
    }
    // Their containers end with the VM's power: one that is removed takes along what is attached.
    let owner = |number| Owner::new(number, &shared, load.seed).map(ManuallyDrop::new);
    let mut owners = (0..CONTAINERS).map(owner).collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let owners: Vec<_> = owners.iter_mut().map(|owner| scope.spawn(|| owner.work())).collect();
        let publisher = scope.spawn(|| publisher.work());
        owners.into_iter().chain([publisher]).try_for_each(|client| {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked")).and_then(|worked| worked)
        })
    })?;
    Ok(shared.deeds.load(Ordering::Relaxed))
}

struct Shared<'a> {
    marker: &'a Marker,
    deeds: AtomicUsize,
    most: usize,
    until: Instant,
}

impl Shared<'_> {
    fn over(&self) -> bool {
        self.deeds.load(Ordering::Relaxed) >= self.most || Instant::now() > self.until
    }

    /// Does it, with marks before and after.
    fn deed(&self, client: usize, deed: &Deed, how: impl FnOnce() -> Result<()>) -> Result<()> {
        self.marker.mark(&Mark::Begin { client, call: Call::Deed(deed.clone()) })?;
        how().with_context(|| format!("{deed:?}"))?;
        self.deeds.fetch_add(1, Ordering::Relaxed);
        self.marker.mark(&Mark::Done { client, refused: None })
    }
}

/// The client that publishes versions, which have files in common.
struct Publisher<'a> {
    shared: &'a Shared<'a>,
    random: Random,
    client: Client,
    contents: Vec<Vec<u8>>,
}

impl<'a> Publisher<'a> {
    const NUMBER: usize = CONTAINERS;

    fn new(shared: &'a Shared<'a>, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        let contents = (0..CONTENTS).map(|_| random.bytes(CONTENT)).collect();
        Ok(Self { shared, random, client: Client::connect(Path::new(CAPSULED_SOCKET))?, contents })
    }

    fn work(&mut self) -> Result<()> {
        for version in 1.. {
            if self.shared.over() {
                break;
            }
            self.publish(&format!("p@{version}"))?;
        }
        Ok(())
    }

    fn publish(&mut self, label: &str) -> Result<()> {
        let (name, version) = label.split_once('@').context("NAME@VERSION")?;
        let tree = format!("/tmp/trees/{label}");
        fs::create_dir_all(&tree).context("create a tree")?;
        fs::write(format!("{tree}/label"), label).context("write a file")?;
        for file in 0..4 {
            let content = self.random.pick(&self.contents).context("a content")?;
            fs::write(format!("{tree}/f{file}"), content).context("write a file")?;
        }
        let deed = Deed::Publish { label: label.to_owned() };
        let build = || done(&["build", &tree, "--name", name, "--version", version]).map(drop);
        self.shared.deed(Self::NUMBER, &deed, build)?;
        let inspected = json(&["inspect", label])?;
        let snapshot = inspected["layers"][0]["snapshot"].as_str().context("its snapshot")?;
        // containerd puts its namespace and a number before the name.
        let all = self.client.list()?;
        let snapshot = all.into_keys().find(|key| key.ends_with(&format!("/{snapshot}")));
        let snapshot = snapshot.with_context(|| format!("no snapshot of {label}"))?;
        let (key, labels) = ("look".to_owned(), Labels::new());
        let view = Call::Create { key: key.clone(), parent: snapshot.clone(), labels, view: true };
        if let Some(refused) = self.client.call(&view)? {
            bail!("cannot look at {snapshot}: {refused}");
        }
        let manifest = plain(tree::manifest(&self.client.mounts(&key)?.top()?)?);
        self.client.call(&Call::Remove { key })?;
        self.shared.deed(Self::NUMBER, &Deed::Published { snapshot, manifest }, || Ok(()))
    }
}

/// The client of one container: places and names are its own.
struct Owner<'a> {
    number: usize,
    shared: &'a Shared<'a>,
    random: Random,
    container: Container,
    root: String,
    state: State,
}

impl<'a> Owner<'a> {
    fn new(number: usize, shared: &'a Shared<'a>, seed: u64) -> Result<Self> {
        let container = OURS.start(&format!("v{number}"), &[], &SLEEP)?;
        let root = format!("/proc/{}/root", container.pid()?);
        let random = Random::new(seed.wrapping_add(1_000_003 * (number as u64 + 1)));
        Ok(Self { number, shared, random, container, root, state: State::default() })
    }

    fn work(&mut self) -> Result<()> {
        while !self.shared.over() {
            let Some(deed) = self.choose() else { continue };
            self.shared.deed(self.number, &deed, || self.carry_out(&deed))?;
            self.state.apply(&deed);
        }
        Ok(())
    }

    /// Something that can be done.
    fn choose(&mut self) -> Option<Deed> {
        let place = format!("{} /opt/t{}", self.container.id, self.random.below(TARGETS));
        let name = format!("{}-{}", self.container.id, self.random.below(NAMES));
        let is_used = |held: &super::model::Held| held.writes == Some(Writes::Named(name.clone()));
        let is_free = !self.state.held.values().any(is_used);
        let is_new = !self.state.kept.contains_key(&name);
        let label = format!("c@{}", 1 + self.random.below(VERSIONS));
        let Some(held) = self.state.held.get(&place) else {
            if self.random.percent(35) {
                return (is_free && !is_new).then_some(Deed::Throw { name });
            }
            let writes = match self.random.below(10) {
                0..3 => None,
                3..6 => Some(Writes::Own(BTreeSet::new())),
                _ if is_free => Some(Writes::Named(name)),
                _ => return None,
            };
            return Some(Deed::Attach { place, label, writes });
        };
        match (&held.writes, self.random.below(10)) {
            (None, 0..5) if held.label != label => Some(Deed::Upgrade { place, label }),
            (None, 5..7) if !held.history.is_empty() => Some(Deed::Rollback { place }),
            (None, _) => Some(Deed::Detach { place, keep: None }),
            (Some(_), 0..6) => {
                let number = u32::try_from(self.random.below(1_000_000)).unwrap_or_default();
                Some(Deed::Write { place, number })
            }
            (Some(Writes::Own(_)), 6..9) if is_new => Some(Deed::Detach { place, keep: Some(name) }),
            (Some(_), _) => Some(Deed::Detach { place, keep: None }),
        }
    }

    fn carry_out(&self, deed: &Deed) -> Result<()> {
        if let Deed::Write { place, number } = deed {
            let target = place.split_once(' ').context("a place")?.1;
            return write(&format!("{}{target}", self.root), *number);
        }
        let words = words(deed, &self.state)?;
        done(&words.split(' ').collect::<Vec<_>>()).map(drop)
    }
}

/// The words for `capsulectl`.
fn words(deed: &Deed, state: &State) -> Result<String> {
    let at = |place: &str| -> Result<(String, String)> {
        let (container, target) = place.split_once(' ').context("a place")?;
        Ok((container.to_owned(), format!("--target {target}")))
    };
    Ok(match deed {
        Deed::Attach { place, label, writes } => {
            let (container, target) = at(place)?;
            let how = match writes {
                None => String::new(),
                Some(Writes::Own(_)) => " --writable".to_owned(),
                // What is kept under the name has its size already, or none.
                Some(Writes::Named(name)) if state.kept.contains_key(name) => format!(" --persist {name}"),
                Some(Writes::Named(name)) => format!(" --persist {name} --size 4MiB"),
            };
            format!("attach {container} {label} {target}{how}")
        }
        Deed::Upgrade { place, label } => {
            let (container, target) = at(place)?;
            format!("upgrade {container} {label} {target}")
        }
        Deed::Rollback { place } => {
            let (container, target) = at(place)?;
            format!("rollback {container} c {target}")
        }
        Deed::Detach { place, keep } => {
            let (container, target) = at(place)?;
            let own = matches!(state.held.get(place).and_then(|h| h.writes.as_ref()), Some(Writes::Own(_)));
            let fate = match keep {
                Some(name) => format!(" --keep {name}"),
                None if own => " --drop".to_owned(),
                None => String::new(),
            };
            format!("detach {container} c {target}{fate}")
        }
        Deed::Throw { name } => format!("uppers rm {name}"),
        other => bail!("{other:?} is not for capsulectl"),
    })
}

/// As a program that wants to find it again.
fn write(folder: &str, number: u32) -> Result<()> {
    let path = format!("{folder}/t{number}");
    let mut file = File::create(&path).with_context(|| format!("create {path}"))?;
    std::io::Write::write_all(&mut file, number.to_string().as_bytes()).context("write")?;
    file.sync_all().with_context(|| format!("sync {path}"))?;
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("sync {folder}"))
}
