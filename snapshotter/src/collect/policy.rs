//! Collecting by itself: every so often by rules, and when the disk is full.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{Collector, Rules, Verdict};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// When versions are removed without anybody asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How often; never when zero.
    pub interval: Duration,
    /// What is kept then.
    pub rules: Rules,
    /// When the disk is full, whatever the interval; never when `None`.
    pub watermarks: Option<Watermarks>,
}

/// How full a disk may be, in percent of what unprivileged users may fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Above this, versions go, the oldest first.
    pub high: u8,
    /// Until it is not above this any more.
    pub low: u8,
}

impl Collector {
    /// Collects by policy until the daemon ends. The disk of `root` is looked at, and that of containerd's content.
    pub async fn collect(self, policy: Policy, root: PathBuf) {
        let look = policy.watermarks.map(|_| LOOK);
        let every = Some(policy.interval).filter(|interval| !interval.is_zero());
        let Some(shortest) = every.into_iter().chain(look).min() else { return };
        let mut ticks = interval(shortest);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await; // the first comes at once: nothing at the start
        let mut since = Duration::ZERO;
        loop {
            ticks.tick().await;
            since += shortest;
            if every.is_some_and(|every| since >= every) {
                since = Duration::ZERO;
                self.collect_by_rules(&policy.rules).await;
            }
            if let Some(watermarks) = policy.watermarks {
                self.collect_by_space(watermarks, &self.disks(&root).await).await;
            }
        }
    }

    async fn collect_by_rules(&self, rules: &Rules) {
        match self.prune(&[], rules, false).await {
            Ok(judged) => {
                let gone = judged.iter().filter(|one| one.verdict == Verdict::Remove);
                for one in gone {
                    tracing::info!(capsule = one.label(), "removed: nobody needs it");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot collect versions; tried again at the next time"),
        }
    }

    /// The disks on which versions take room: ours, and containerd's where that is another one.
    async fn disks(&self, root: &Path) -> Vec<PathBuf> {
        let mut disks = vec![root.to_owned()];
        match self.containerd.content_root().await {
            Ok(Some(theirs)) if is_another_disk(root, &theirs) => disks.push(theirs),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "cannot ask where containerd's content is"),
        }
        disks
    }

    /// Removes unused versions while one of the disks is fuller than it may be: the newest of each capsule and what has a tag
    /// stays.
    async fn collect_by_space(&self, watermarks: Watermarks, disks: &[PathBuf]) {
        let is_above =
            |disk: &Path, mark| Fill::read(disk).is_some_and(|fill| fill.percent() > f64::from(mark));
        for disk in disks.iter().filter(|disk| is_above(disk, watermarks.high)) {
            let used = || Fill::read(disk).map(Fill::percent).unwrap_or_default();
            let (before, path) = (used(), disk.display());
            match self.make_room(|| is_above(disk, watermarks.low)).await {
                Ok(0) => {
                    tracing::warn!(disk = %path, used = before, "the disk is full, and every version is needed")
                }
                Ok(removed) => tracing::info!(
                    disk = %path,
                    removed,
                    before,
                    used = used(),
                    "the disk was full: removed the oldest that nobody needs"
                ),
                Err(error) => {
                    tracing::warn!(disk = %path, %error, "the disk is full, and nothing can be collected");
                }
            }
        }
    }
}

/// Whether `other` is there, and on another file system.
fn is_another_disk(root: &Path, other: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|about| about.dev()).ok();
    device(other).is_some_and(|other| device(root) != Some(other))
}

/// How full a file system is.
#[derive(Debug, Clone, Copy)]
struct Fill {
    used: u64,
    free: u64,
}

impl Fill {
    fn read(root: &Path) -> Option<Self> {
        let stat = rustix::fs::statvfs(root).ok().filter(|stat| stat.f_blocks > 0)?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize;
        Some(Self { used, free: stat.f_bavail * stat.f_frsize })
    }

    /// As df(1) tells it.
    #[allow(clippy::cast_precision_loss)] // a percentage
    fn percent(self) -> f64 {
        self.used as f64 * 100.0 / (self.used + self.free).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_as_full_as_df_says() {
        let fill = Fill { used: 900, free: 100 };
        assert!((fill.percent() - 90.0).abs() < 1e-9);
        assert!(Fill::read(Path::new("/")).is_some_and(|fill| fill.percent() > 0.0));
        assert!(Fill::read(Path::new("/nowhere")).is_none());
    }

    #[test]
    fn disks_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_another_disk(folder.path(), Path::new("/proc")));
        assert!(!is_another_disk(folder.path(), folder.path()));
        assert!(!is_another_disk(folder.path(), &folder.path().join("lost")));
    }
}
