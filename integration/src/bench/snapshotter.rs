//! The benchmark of snapshotters: runs it natively, writes tables and a JSON file.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::event::Event;
use crate::machine::{Job, Kind, Machine};
use crate::rootfs::Suite;
use crate::scenario::snapshotters;
use crate::workspace::Workspace;

/// Longer than this, and something hangs.
const LIMIT: Duration = Duration::from_secs(3600);
/// What every ratio is to.
const REFERENCE: &str = "overlayfs, behind containerd";

/// Runs the benchmark; its tables. `target/bench-snapshotter.json` has all numbers, `target/bench-snapshotter.md` the
/// tables.
pub fn run(workspace: &Workspace, quick: bool, watch: impl FnMut(&Event)) -> Result<String> {
    let scenario = if quick { snapshotters::QUICK } else { snapshotters::FULL };
    let machine = Machine { kind: Kind::Native, suite: Suite::Forky };
    let job = Job { scenario: scenario.to_owned(), silence: LIMIT };
    let report = machine.run(workspace, &job, watch)?;
    report.expect_ok()?;
    let data =
        |name: &str| report.data(name).cloned().with_context(|| format!("the benchmark sent no {name}"));
    let results = json!({
        "versions": data("versions")?, "rows": data("rows")?, "syncs": data("syncs")?, "large": data("large")?,
    });
    let tables = tables_of(&results)?;
    let folder = workspace.target(".")?;
    let json = format!("{results:#}\n");
    fs::write(folder.join("bench-snapshotter.json"), json).context("write bench-snapshotter.json")?;
    fs::write(folder.join("bench-snapshotter.md"), &tables).context("write bench-snapshotter.md")?;
    Ok(tables)
}

fn tables_of(results: &Value) -> Result<String> {
    let mut text = String::new();
    let versions: Vec<_> = list(results, "versions").iter().filter_map(Value::as_str).collect();
    writeln!(text, "{}\n", versions.join(" · "))?;
    for clients in distinct(list(results, "rows"), "clients") {
        let unit =
            if clients == 1 { "mean time of a call" } else { "calls in a second, all clients together" };
        let plural = if clients == 1 { "client" } else { "clients" };
        writeln!(
            text,
            "**{clients} {plural}**: speed as a multiple of overlayfs's behind containerd; {unit}.\n"
        )?;
        text += &rates(list(results, "rows"), &clients)?;
    }
    writeln!(text, "**1 client**: median and 99th percentile of a call, in milliseconds.\n")?;
    text += &percentiles(list(results, "rows"))?;
    writeln!(text, "**Calls that wait for the disk**, per call of a client.\n")?;
    text += &syncs(list(results, "syncs"))?;
    text += &large(list(results, "large"))?;
    Ok(text)
}

fn rates(rows: &[Value], clients: &Value) -> Result<String> {
    let reference = |row: &Value| {
        let same = |other: &&Value| {
            other["subject"] == REFERENCE
                && other["operation"] == row["operation"]
                && other["clients"] == *clients
        };
        rows.iter().find(same).map_or(f64::NAN, |reference| number(reference, "per_second"))
    };
    table(rows, clients, |row| {
        let ratio = number(row, "per_second") / reference(row);
        let value = match *clients == 1 {
            true => format!("{} ms", significant(1e3 / number(row, "per_second"))),
            false => format!("{}/s", significant(number(row, "per_second"))),
        };
        format!("**{ratio:.2}** {value}")
    })
}

fn percentiles(rows: &[Value]) -> Result<String> {
    let millis = |row: &Value, field: &str| significant(number(row, field) / 1e3);
    table(rows, &json!(1), |row| format!("{}, {}", millis(row, "p50_us"), millis(row, "p99_us")))
}

/// A row for each subject, a column for each operation.
fn table(rows: &[Value], clients: &Value, cell: impl Fn(&Value) -> String) -> Result<String> {
    let rows: Vec<Value> = rows.iter().filter(|row| row["clients"] == *clients).cloned().collect();
    let operations = distinct(&rows, "operation");
    let mut text = header("", &operations)?;
    for subject in distinct(&rows, "subject") {
        write!(text, "| {}", text_of(&subject))?;
        for operation in &operations {
            let row = rows.iter().find(|row| row["subject"] == subject && row["operation"] == *operation);
            write!(text, " | {}", row.map(&cell).unwrap_or_default())?;
        }
        writeln!(text, " |")?;
    }
    Ok(text + "\n")
}

fn syncs(counts: &[Value]) -> Result<String> {
    let mut text = String::new();
    let steps = ["View", "Prepare", "Commit", "Remove"].map(|step| json!(step));
    let columns =
        [&[json!("clients")], steps.as_slice(), &[json!("directory gone when Remove returns")]].concat();
    text += &header("", &columns)?;
    for count in counts {
        write!(text, "| {} | {}", text_of(&count["subject"]), count["clients"])?;
        for step in &steps {
            let calls = count["steps"][text_of(step)].as_object();
            let calls = calls.into_iter().flatten();
            let calls = calls.filter_map(|(name, count)| Some((name, count.as_f64()?)));
            // What is rarer is not the snapshotter's.
            let calls = calls.filter(|(_, count)| *count >= 0.01).map(|(name, count)| match count {
                count if count < 0.1 => format!("{count:.2} {name}"),
                count => format!("{count:.1} {name}"),
            });
            let calls: Vec<_> = calls.collect();
            write!(text, " | {}", if calls.is_empty() { "none".to_owned() } else { calls.join(", ") })?;
        }
        writeln!(text, " | {} |", if count["gone_at_once"] == true { "yes" } else { "no" })?;
    }
    Ok(text + "\n")
}

fn large(weights: &[Value]) -> Result<String> {
    let columns = ["filled in", "memory then: RSS, PSS", "memory after a restart", "time to start"];
    let mut text = header("", &columns.map(|column| json!(column)))?;
    for weight in weights {
        let memory = |when: &str| match weight[when].as_object() {
            Some(_) => {
                let mib = |field: &str| number(&weight[when], field) / 1024.0;
                format!("{:.1}, {:.1} MiB", mib("rss_kib"), mib("pss_kib"))
            }
            None => String::new(),
        };
        let start = weight["start_ms"].as_f64().map(|millis| format!("{millis:.0} ms")).unwrap_or_default();
        let (name, filled) = (text_of(&weight["subject"]), number(weight, "fill_s"));
        writeln!(
            text,
            "| {name} | {filled:.1} s | {} | {} | {start} |",
            memory("filled"),
            memory("restarted")
        )?;
    }
    Ok(text)
}

fn header(first: &str, columns: &[Value]) -> Result<String> {
    let names: Vec<_> = columns.iter().map(text_of).collect();
    let mut text = String::new();
    writeln!(text, "| {first} | {} |\n| --- |{}", names.join(" | "), " ---: |".repeat(columns.len()))?;
    Ok(text)
}

/// The values of a field, each once, in the order they come.
fn distinct(rows: &[Value], field: &str) -> Vec<Value> {
    let mut known: Vec<Value> = Vec::new();
    for row in rows {
        if !known.contains(&row[field]) {
            known.push(row[field].clone());
        }
    }
    known
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or(f64::NAN)
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// As many digits as mean something.
fn significant(value: f64) -> String {
    match value {
        value if value < 1.0 => format!("{value:.3}"),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, clients: u32, per_second: f64, p50_us: f64) -> Value {
        json!({
            "subject": subject, "operation": "Stat", "clients": clients,
            "per_second": per_second, "p50_us": p50_us, "p99_us": p50_us,
        })
    }

    #[test]
    fn ratios_are_to_overlayfs_of_the_same_clients() {
        let results = json!({
            "versions": ["containerd 2"],
            "rows": [
                row(REFERENCE, 1, 1000.0, 900.0), row("capsule, own socket", 1, 1500.0, 600.0),
                row(REFERENCE, 16, 4.0, 900.0), row("capsule, own socket", 16, 8.0, 600.0),
            ],
            "syncs": [{ "subject": REFERENCE, "clients": 1, "gone_at_once": false,
                        "steps": { "Commit": { "fdatasync": 3.0 } } }],
            "large": [{ "subject": "capsule, own socket", "fill_s": 2.0, "start_ms": 12.4,
                        "filled": { "rss_kib": 10240, "pss_kib": 5120 } }],
        });
        let tables = tables_of(&results).unwrap();
        assert!(tables.contains("| capsule, own socket | **1.50** 0.667 ms |"), "{tables}");
        assert!(tables.contains("| capsule, own socket | **2.00** 8.00/s |"), "{tables}");
        assert!(tables.contains("| capsule, own socket | 0.600, 0.600 |"), "{tables}");
        assert!(tables.contains("| 1 | none | none | 3.0 fdatasync | none | no |"), "{tables}");
        assert!(tables.contains("| capsule, own socket | 2.0 s | 10.0, 5.0 MiB |  | 12 ms |"), "{tables}");
    }
}
