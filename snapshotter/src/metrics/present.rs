//! How things are when somebody asks.

use std::{fmt::Error, path::Path};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::{
    attachments::{ContainerUsage, model::Phase},
    containerd::Pressures,
    resources::Usage,
};

/// All that is told of now.
#[derive(Debug, Default)]
pub struct Present {
    /// Containers that have something attached.
    pub containers: Vec<ContainerUsage>,
    /// Budgets.
    pub budgets: Vec<Usage>,
    /// How many versions there are.
    pub versions: usize,
    /// Bytes of their layers: what two versions share is counted for both.
    pub version_bytes: u64,
    /// Mounts of volumes at paths of the node.
    pub volume_mounts: usize,
    /// Volumes that have another version than some processes still use.
    pub volumes_draining: usize,
    /// The file system of the snapshots, where it tells.
    pub disk: Option<Disk>,
    /// The number of the last event.
    pub events: u64,
    /// containerd's events are followed.
    pub following: bool,
}

/// A file system, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// All of it.
    pub size: u64,
    /// What an ordinary user could still write, as df(1) tells it.
    pub available: u64,
}

impl Disk {
    /// That of `path`. None where it does not say.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        // ramfs, for one, has no number of blocks.
        let stat = rustix::fs::statvfs(path).ok().filter(|stat| stat.f_blocks > 0)?;
        Some(Self { size: stat.f_blocks * stat.f_frsize, available: stat.f_bavail * stat.f_frsize })
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Present {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.encode_node(&mut encoder)?;
        self.encode_budgets(&mut encoder)?;
        for (name, help, unit, value) in gauges() {
            self.family(&mut encoder, (name, help, unit, MetricType::Gauge), |usage, labels, metric| {
                value(usage).map_or(Ok(()), |value| one(metric, labels, &ConstGauge::new(value)))
            })?;
        }
        for (name, help, unit, value) in counters() {
            self.family(&mut encoder, (name, help, unit, MetricType::Counter), |usage, labels, metric| {
                value(usage).map_or(Ok(()), |value| one(metric, labels, &ConstCounter::new(value)))
            })?;
        }
        self.encode_pressure(&mut encoder)
    }
}

fn one(metric: &mut MetricEncoder<'_>, labels: &Labels<'_>, value: &impl EncodeMetric) -> Result<(), Error> {
    value.encode(metric.encode_family(labels)?)
}

type Described = (&'static str, &'static str, Option<Unit>, MetricType);
type Value<T> = (&'static str, &'static str, Option<Unit>, fn(&ContainerUsage) -> Option<T>);

/// Of each container, where its shim has measured it.
fn gauges() -> [Value<u64>; 5] {
    [
        ("capsule_container_memory", "Memory that the container uses", Some(Unit::Bytes), |c| {
            Some(c.metrics()?.memory.as_ref()?.usage)
        }),
        ("capsule_container_memory_limit", "Its limit of memory, where it has one", Some(Unit::Bytes), |c| {
            Some(c.metrics()?.memory.as_ref()?.usage_limit).filter(|limit| *limit != u64::MAX)
        }),
        ("capsule_container_swap", "Swap that the container uses", Some(Unit::Bytes), |c| {
            Some(c.metrics()?.memory.as_ref()?.swap_usage)
        }),
        ("capsule_container_pids", "Processes and threads of the container", None, |c| {
            Some(c.metrics()?.pids.as_ref()?.current)
        }),
        ("capsule_container_attachments", "What the container has attached", None, |c| {
            u64::try_from(c.attachments.len()).ok()
        }),
    ]
}

fn counters() -> [Value<f64>; 5] {
    [
        ("capsule_container_cpu", "CPU that the container has used", Some(Unit::Seconds), |c| {
            Some(seconds(c.metrics()?.cpu.as_ref()?.usage_usec))
        }),
        (
            "capsule_container_cpu_throttled",
            "For how long its limit kept it from CPUs",
            Some(Unit::Seconds),
            |c| Some(seconds(c.metrics()?.cpu.as_ref()?.throttled_usec)),
        ),
        ("capsule_container_io_read", "What the container has read from disks", Some(Unit::Bytes), |c| {
            Some(c.metrics()?.io.as_ref()?.usage.iter().map(|one| float(one.rbytes)).sum())
        }),
        ("capsule_container_io_written", "What it has written to disks", Some(Unit::Bytes), |c| {
            Some(c.metrics()?.io.as_ref()?.usage.iter().map(|one| float(one.wbytes)).sum())
        }),
        (
            "capsule_container_oom_kills",
            "Processes of it that the kernel killed for want of memory",
            None,
            |c| Some(float(c.metrics()?.memory_events.as_ref()?.oom_kill)),
        ),
    ]
}

const MICROSECONDS: f64 = 1e6;

fn seconds(microseconds: u64) -> f64 {
    float(microseconds) / MICROSECONDS
}

#[allow(clippy::cast_precision_loss)] // Prometheus' numbers are floating
fn float(number: u64) -> f64 {
    number as f64
}

impl Present {
    fn encode_node(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let attachments = || self.containers.iter().flat_map(|container| &container.attachments);
        let mut family = encoder.encode_descriptor(
            "capsuled_attachments",
            "Attachments on record, by state",
            None,
            MetricType::Gauge,
        )?;
        for (state, waits) in [("attached", false), ("waiting", true)] {
            let count = attachments().filter(|a| (a.phase == Phase::Waiting) == waits).count();
            one(
                &mut family,
                &vec![("state", state)],
                &ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)),
            )?;
        }
        for (name, help, unit, number) in self.numbers() {
            let Some(number) = number else { continue };
            let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            ConstGauge::new(number).encode(metric)?;
        }
        let mut build =
            encoder.encode_descriptor("capsuled_build", "This release", None, MetricType::Info)?;
        let version =
            prometheus_client::metrics::info::Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        version.encode(build.encode_family(&Vec::<(&str, &str)>::new())?)
    }

    fn numbers(&self) -> [(&'static str, &'static str, Option<Unit>, Option<u64>); 8] {
        let help = "The layers of the versions on this node: what two share is counted for both";
        let disk = self.disk;
        [
            ("capsuled_versions", "Versions on this node", None, Some(self.versions as u64)),
            ("capsuled_versions", help, Some(Unit::Bytes), Some(self.version_bytes)),
            (
                "capsuled_volume_mounts",
                "Mounts of volumes at paths of the node",
                None,
                Some(self.volume_mounts as u64),
            ),
            (
                "capsuled_volumes_draining",
                "Volumes of which processes still use a version that they have not any more",
                None,
                Some(self.volumes_draining as u64),
            ),
            ("capsuled_disk_size", "The snapshots' file system", Some(Unit::Bytes), disk.map(|d| d.size)),
            (
                "capsuled_disk_available",
                "What can still be written to it",
                Some(Unit::Bytes),
                disk.map(|d| d.available),
            ),
            (
                "capsuled_following_containerd",
                "1 while containerd's events are followed",
                None,
                Some(u64::from(self.following)),
            ),
            ("capsuled_last_event", "The number of the last event", None, Some(self.events)),
        ]
    }

    fn encode_budgets(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help =
            "Of each limit that attachments add to: bytes, a number, millionths of a CPU, or a rate a second";
        for (name, of) in [
            ("capsuled_budget", (|usage| usage.budget) as fn(&Usage) -> Option<u64>),
            ("capsuled_budget_used", |usage| Some(usage.used)),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for usage in &self.budgets {
                let (name, limit) = (usage.scope.name(), usage.dimension.to_string());
                let labels = vec![("scope", usage.scope.kind()), ("name", &name), ("limit", &limit)];
                if let Some(number) = of(usage) {
                    one(&mut metric, &labels, &ConstGauge::new(number))?;
                }
            }
        }
        Ok(())
    }

    fn family(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit, kind): Described,
        each: impl Fn(&ContainerUsage, &Labels<'_>, &mut MetricEncoder<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for usage in &self.containers {
            each(usage, &labels(usage), &mut metric)?;
        }
        Ok(())
    }

    fn encode_pressure(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "For how long some, or all, of its processes waited for CPUs, memory or I/O";
        let name = "capsule_container_pressure_waiting";
        self.family(
            encoder,
            (name, help, Some(Unit::Seconds), MetricType::Counter),
            |usage, labels, metric| {
                let Some(metrics) = usage.metrics() else { return Ok(()) };
                for (resource, stats) in metrics.pressures() {
                    let Some(stats) = stats else { continue };
                    for (kind, data) in [("some", &stats.some), ("full", &stats.full)] {
                        let Some(data) = data else { continue };
                        let mut labels = labels.clone();
                        labels.extend([("resource", resource), ("processes", kind)]);
                        one(metric, &labels, &ConstCounter::new(seconds(data.total)))?;
                    }
                }
                Ok(())
            },
        )
    }
}

fn labels(usage: &ContainerUsage) -> Labels<'_> {
    let pod = usage.pod.as_deref().unwrap_or_default();
    vec![("namespace", &usage.container.namespace), ("container", &usage.container.id), ("pod", pod)]
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use capsule_proto::containerd::cgroups::{
        CpuStat, IoEntry, IoStat, MemoryStat, Metrics, PsiData, PsiStats,
    };

    use super::*;
    use crate::{
        attachments::model::ContainerKey, containerd::Measured, metrics::Meters, resources::Budgets,
    };

    fn container(metrics: Option<Metrics>) -> ContainerUsage {
        ContainerUsage {
            container: ContainerKey { namespace: "k8s.io".into(), id: "c1".into() },
            pod: Some("shop/cart".into()),
            name: None,
            attachments: Vec::new(),
            measured: Some(Measured { at: SystemTime::UNIX_EPOCH, metrics }),
        }
    }

    #[test]
    fn how_things_are_is_told_by_the_conventions() {
        let psi = PsiStats { some: Some(PsiData { total: 1_500_000, ..PsiData::default() }), full: None };
        let io = |rbytes| IoEntry { rbytes, ..IoEntry::default() };
        let metrics = Metrics {
            memory: Some(MemoryStat {
                usage: 7,
                usage_limit: u64::MAX,
                psi: Some(psi),
                ..MemoryStat::default()
            }),
            cpu: Some(CpuStat { usage_usec: 2_000_000, ..CpuStat::default() }),
            io: Some(IoStat { usage: vec![io(3), io(4)], psi: None }),
            ..Metrics::default()
        };
        let present = Present {
            containers: vec![container(Some(metrics)), container(None)],
            versions: 3,
            version_bytes: 7,
            volume_mounts: 2,
            disk: Some(Disk { size: 9, available: 8 }),
            following: true,
            budgets: Budgets::default().usage(Vec::new()),
            ..Present::default()
        };
        let text = Meters::default().text(present).unwrap();
        let labels = "{namespace=\"k8s.io\",container=\"c1\",pod=\"shop/cart\"";
        for line in [
            "capsuled_versions 3".to_owned(),
            "capsuled_versions_bytes 7".to_owned(),
            "capsuled_volume_mounts 2".to_owned(),
            "capsuled_volumes_draining 0".to_owned(),
            "capsuled_disk_size_bytes 9".to_owned(),
            "capsuled_disk_available_bytes 8".to_owned(),
            "capsuled_following_containerd 1".to_owned(),
            "capsuled_attachments{state=\"attached\"} 0".to_owned(),
            format!("capsuled_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
            format!("capsule_container_memory_bytes{labels}}} 7"),
            format!("capsule_container_cpu_seconds_total{labels}}} 2.0"),
            format!("capsule_container_io_read_bytes_total{labels}}} 7.0"),
            format!(
                "capsule_container_pressure_waiting_seconds_total{labels},resource=\"memory\",processes=\"some\"}} 1.5"
            ),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        // No limit is no number, and what was not measured is not zero.
        assert!(!text.contains("capsule_container_memory_limit_bytes{"), "{text}");
        assert_eq!(text.matches("capsule_container_memory_bytes{").count(), 1, "{text}");
    }
}
