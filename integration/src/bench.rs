//! The benchmark's outside: runs it natively and in a VM, writes a table and a JSON file.

pub mod runtime;
pub mod snapshotter;
pub mod storage;

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::event::Event;
use crate::machine::{Job, Kind, Machine};
use crate::rootfs::Suite;
use crate::workspace::Workspace;

/// Where it is run, and how long that may take.
const RUNS: [(Kind, &str, Duration); 2] =
    [(Kind::Native, "bench", Duration::from_secs(900)), (Kind::Vm, "bench-vm", Duration::from_secs(900))];

/// Runs the benchmark; the table. `target/bench.json` has the same numbers, `target/bench.md` the same table.
pub fn run(workspace: &Workspace, mut watch: impl FnMut(&Event)) -> Result<String> {
    let mut results = Vec::new();
    for (kind, scenario, limit) in RUNS {
        let machine = Machine { kind, suite: Suite::Forky };
        let job = Job { scenario: scenario.to_owned(), silence: limit };
        let report = machine.run(workspace, &job, &mut watch)?;
        report.expect_ok()?;
        let data =
            |name: &str| report.data(name).cloned().with_context(|| format!("the benchmark sent no {name}"));
        results.push(
            json!({ "machine": machine.to_string(), "kernel": data("kernel")?, "rows": data("rows")? }),
        );
    }
    let results = Value::Array(results);
    let table = table_of(&results)?;
    let folder = workspace.target(".")?;
    fs::write(folder.join("bench.json"), format!("{results:#}\n")).context("write bench.json")?;
    fs::write(folder.join("bench.md"), &table).context("write bench.md")?;
    Ok(table)
}

fn table_of(results: &Value) -> Result<String> {
    let mut table = String::new();
    for run in results.as_array().into_iter().flatten() {
        let (machine, kernel) = (text(run, "machine"), text(run, "kernel"));
        writeln!(
            table,
            "{machine}: {kernel}\n\n| operation | count | p50 | p99 |\n| --- | ---: | ---: | ---: |"
        )?;
        for row in run["rows"].as_array().into_iter().flatten() {
            let time = |field: &str| {
                row[field].as_f64().map_or_else(String::new, |micros| format!("{:.3} ms", micros / 1e3))
            };
            writeln!(
                table,
                "| {} | {} | {} | {} |",
                text(row, "name"),
                row["count"],
                time("p50_us"),
                time("p99_us")
            )?;
        }
        writeln!(table, "\n{}\n", ratios(run))?;
    }
    Ok(table)
}

/// What the numbers are for: attach beside its lower bound, and beside what people do today.
fn ratios(run: &Value) -> String {
    let p50 = |name: &str| {
        let rows = run["rows"].as_array()?;
        rows.iter().find(|row| row["name"] == name)?["p50_us"].as_f64()
    };
    let attach = p50("capsuled: attach");
    let ratio =
        |other: Option<f64>| attach.zip(other).map(|(attach, other)| (attach / other, other / attach));
    let mut text = String::new();
    if let Some((times, _)) = ratio(p50("bare system calls: attach")) {
        text += &format!("attach takes {times:.1} times the bare system calls");
    }
    if let Some((_, times)) = ratio(p50("ctr task rm + ctr run with a bind mount")) {
        text += &format!(", and is {times:.0} times faster than recreating the container");
    }
    text + "."
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_row_and_the_ratios() {
        let results = json!([{ "machine": "native forky", "kernel": "Linux 6.18", "rows": [
            { "name": "bare system calls: attach", "count": 2, "p50_us": 250.0, "p99_us": 300.0 },
            { "name": "capsuled: attach", "count": 2, "p50_us": 1000.0, "p99_us": 2000.0 },
            { "name": "ctr task rm + ctr run with a bind mount", "count": 1, "p50_us": 150_000.0, "p99_us": 150_000.0 },
        ]}]);
        let table = table_of(&results).unwrap();
        assert!(table.contains("| capsuled: attach | 2 | 1.000 ms | 2.000 ms |"), "{table}");
        assert!(table.contains("4.0 times the bare"), "{table}");
        assert!(table.contains("150 times faster"), "{table}");
    }
}
