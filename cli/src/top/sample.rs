//! What was used between two answers of capsuled. Pure.

use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use capsule_proto::capsule::v1;
use serde::Serialize;

use crate::table::Table;
use crate::text::Text;
use crate::view::filled;

/// What all containers use.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// By namespace and container.
    pub containers: Vec<Row>,
}

/// What one container uses.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub namespace: String,
    pub container: String,
    /// What its client calls it; `null` where it has no name beside its id.
    pub container_name: Option<String>,
    /// `NAMESPACE/NAME`; `null` for a container of no pod.
    pub pod: Option<String>,
    /// Capsules with their versions, and devices.
    pub attachments: Vec<String>,
    /// `null` for a container whose task does not run, or that has control groups of version 1.
    pub used: Option<Used>,
}

/// In bytes, and for what is a rate in so much a second.
#[derive(Debug, Clone, Serialize)]
pub struct Used {
    /// Of one CPU, in percent.
    pub cpu: f64,
    /// Of the time, in percent, for which its limit kept it from a CPU.
    pub throttled: f64,
    pub memory: u64,
    /// `null` for none.
    pub memory_limit: Option<u64>,
    pub swap: u64,
    pub pids: u64,
    pub pids_limit: Option<u64>,
    pub read: f64,
    pub written: f64,
    pub oom_kills: u64,
    /// `null` where the kernel does not account for it.
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

/// For how much of the last ten seconds some, or all, processes waited, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pressure {
    pub some: f64,
    pub full: f64,
}

impl Sample {
    /// What was used between two answers; a container that the first has not has used nothing yet.
    pub fn between(first: &v1::ListUsageResponse, second: &v1::ListUsageResponse) -> Self {
        let row = |now: &v1::ContainerUsage| {
            let same =
                |c: &&v1::ContainerUsage| (&c.namespace, &c.container) == (&now.namespace, &now.container);
            Row::between(first.containers.iter().find(same).unwrap_or(now), now)
        };
        Self { containers: second.containers.iter().map(row).collect() }
    }
}

impl Row {
    /// The container's name, or its id where it has none.
    pub fn called(&self) -> &str {
        self.container_name.as_deref().unwrap_or(&self.container)
    }

    fn between(before: &v1::ContainerUsage, now: &v1::ContainerUsage) -> Self {
        let measured = now.measured_at.and_then(|at| SystemTime::try_from(at).ok());
        Self {
            namespace: now.namespace.clone(),
            container: now.container.clone(),
            container_name: filled(now.name.clone()),
            pod: filled(now.pod.clone()),
            attachments: now.attachments.clone(),
            used: measured.map(|at| Used::between(before, now, at)),
        }
    }
}

impl Used {
    fn between(before: &v1::ContainerUsage, now: &v1::ContainerUsage, at: SystemTime) -> Self {
        let earlier = before.measured_at.and_then(|at| SystemTime::try_from(at).ok());
        let passed = earlier.and_then(|earlier| at.duration_since(earlier).ok());
        let rate = |of: fn(&v1::ContainerUsage) -> u64| rate(of(before), of(now), passed);
        let pressure = |p: Option<v1::Pressure>| p.map(|p| Pressure { some: p.some, full: p.full });
        Self {
            // Microseconds in a second, in percent.
            cpu: rate(|c| c.cpu_us) / 10_000.0,
            throttled: rate(|c| c.throttled_us) / 10_000.0,
            memory: now.memory,
            memory_limit: now.memory_limit,
            swap: now.swap,
            pids: now.pids,
            pids_limit: now.pids_limit,
            read: rate(|c| c.read_bytes),
            written: rate(|c| c.written_bytes),
            oom_kills: now.oom_kills,
            cpu_pressure: pressure(now.cpu_pressure),
            memory_pressure: pressure(now.memory_pressure),
            io_pressure: pressure(now.io_pressure),
        }
    }
}

/// In a second. A task that was started anew counts from nothing.
#[allow(clippy::cast_precision_loss)] // shown with one place
fn rate(before: u64, now: u64, passed: Option<Duration>) -> f64 {
    let used = now.checked_sub(before).unwrap_or(now);
    let seconds = passed.map(|passed| passed.as_secs_f64()).filter(|seconds| *seconds > 0.0);
    seconds.map_or(0.0, |seconds| used as f64 / seconds)
}

/// Short, as `1.5M`.
pub fn bytes(bytes: u64) -> String {
    let short = ByteSize::b(bytes).display().iec_short().to_string();
    short.replace(' ', "")
}

/// Short, as `1.5M`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate is not below 0
pub fn bytes_each_second(rate: f64) -> String {
    if rate < 1.0 { "0".to_owned() } else { bytes(rate as u64) }
}

/// `c/m/i`: for how much of the time some processes waited for CPUs, memory and I/O.
pub fn pressures(used: &Used) -> String {
    let one = |p: Option<Pressure>| p.map_or_else(|| "-".to_owned(), |p| format!("{:.0}", p.some));
    [used.cpu_pressure, used.memory_pressure, used.io_pressure].map(one).join("/")
}

/// Of nothing for none.
pub fn limit(limit: Option<u64>, show: impl Fn(u64) -> String) -> String {
    limit.map_or_else(|| "none".to_owned(), show)
}

impl Text for Sample {
    fn text(&self, _: SystemTime) -> String {
        let header = [
            "NAMESPACE",
            "CONTAINER",
            "CPU%",
            "MEMORY",
            "LIMIT",
            "PIDS",
            "READ/s",
            "WRITE/s",
            "PRESSURE",
            "ATTACHED",
        ];
        let mut table = Table::new(header);
        for row in &self.containers {
            let attached = row.attachments.join(",");
            let (namespace, container) = (row.namespace.clone(), row.called().to_owned());
            let Some(used) = &row.used else {
                let none = String::new;
                let nothing = [none(), none(), none(), none(), none(), none(), none()];
                let [cpu, memory, most, pids, read, written, pressure] = nothing;
                table.row([namespace, container, cpu, memory, most, pids, read, written, pressure, attached]);
                continue;
            };
            table.row([
                namespace,
                container,
                format!("{:.1}", used.cpu),
                bytes(used.memory),
                limit(used.memory_limit, bytes),
                used.pids.to_string(),
                bytes_each_second(used.read),
                bytes_each_second(used.written),
                pressures(used),
                attached,
            ]);
        }
        table.to_string()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn usage(container: &str, seconds: i64, counted: u64) -> v1::ContainerUsage {
        v1::ContainerUsage {
            namespace: "default".into(),
            container: container.into(),
            attachments: vec!["tzdata@2026.1".into(), "tools@1".into()],
            measured_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            memory: 3 << 19,
            memory_limit: Some(64 << 20),
            cpu_us: counted,
            pids: 3,
            read_bytes: counted * 2,
            cpu_pressure: Some(v1::Pressure { some: 12.4, ..Default::default() }),
            io_pressure: Some(v1::Pressure { some: 0.0, full: 7.0, ..Default::default() }),
            ..Default::default()
        }
    }

    pub fn answer(containers: Vec<v1::ContainerUsage>) -> v1::ListUsageResponse {
        v1::ListUsageResponse { containers }
    }

    #[test]
    fn what_is_counted_becomes_rates() {
        let first = answer(vec![usage("web", 10, 1_000_000), usage("again", 10, 5_000_000)]);
        // `again` was started anew in between, `new` is there since.
        let second =
            answer(vec![usage("web", 12, 4_000_000), usage("again", 12, 2_000_000), usage("new", 12, 9)]);
        let sample = Sample::between(&first, &second);
        let cpu: Vec<f64> =
            sample.containers.iter().map(|row| row.used.as_ref().expect("used").cpu).collect();
        assert_eq!(cpu, [150.0, 100.0, 0.0]);
        let text = sample.text(SystemTime::UNIX_EPOCH);
        let words: Vec<&str> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        let web =
            ["default", "web", "150.0", "1.5M", "64.0M", "3", "2.9M", "0", "12/-/0", "tzdata@2026.1,tools@1"];
        assert_eq!(words, web);
    }

    #[test]
    fn a_container_that_does_not_run_uses_nothing() {
        let stopped = v1::ContainerUsage { measured_at: None, ..usage("web", 0, 0) };
        let sample = Sample::between(&answer(vec![]), &answer(vec![stopped]));
        assert!(sample.containers[0].used.is_none());
        assert!(sample.text(SystemTime::UNIX_EPOCH).contains("tzdata"));
    }
}
