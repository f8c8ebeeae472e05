//! The benchmark of runtimes: runs it natively, writes a table and a JSON file.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::event::Event;
use crate::machine::{Job, Kind, Machine};
use crate::rootfs::Suite;
use crate::scenario::runtimes;
use crate::scenario::runtimes::subject::{BOTH, GO, SHIM};
use crate::workspace::Workspace;

/// Longer than this, and something hangs.
const LIMIT: Duration = Duration::from_secs(3600);
/// The program that is measured as users get it.
const PROGRAM: &str = "containerd-shim-capsule-v1";

/// Runs the benchmark; its table. `target/bench-runtime.json` has all numbers, `target/bench-runtime.md` the table.
pub fn run(workspace: Workspace, quick: bool, watch: impl FnMut(&Event)) -> Result<String> {
    let (scenario, workspace) = match quick {
        true => (runtimes::QUICK, workspace),
        false => (runtimes::FULL, workspace.with_released(PROGRAM)),
    };
    let machine = Machine { kind: Kind::Native, suite: Suite::Forky };
    let job = Job { scenario: scenario.to_owned(), silence: LIMIT };
    let report = machine.run(&workspace, &job, watch)?;
    report.expect_ok()?;
    let data =
        |name: &str| report.data(name).cloned().with_context(|| format!("the benchmark sent no {name}"));
    let program = workspace.program(PROGRAM);
    let size = fs::metadata(&program).with_context(|| format!("stat {}", program.display()))?.len();
    let results = json!({ "versions": data("versions")?, "shim_bytes": size, "rows": data("rows")? });
    let table = table_of(&results)?;
    let folder = workspace.target(".")?;
    fs::write(folder.join("bench-runtime.json"), format!("{results:#}\n"))
        .context("write bench-runtime.json")?;
    fs::write(folder.join("bench-runtime.md"), &table).context("write bench-runtime.md")?;
    Ok(table)
}

fn table_of(results: &Value) -> Result<String> {
    let rows = results["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let versions: Vec<_> =
        results["versions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let size = results["shim_bytes"].as_f64().unwrap_or_default() / 1e6;
    let mut text = String::new();
    writeln!(text, "{} · our shim: {size:.1} MB on disk\n", versions.join(" · "))?;
    writeln!(
        text,
        "Median (and 99th percentile where there are so many); in bold: ours for each 1 of the Go shim's.\n"
    )?;
    writeln!(text, "| | {} | {} | {} |\n| --- | ---: | ---: | ---: |", GO.name, SHIM.name, BOTH.name)?;
    let mut figures: Vec<&Value> = Vec::new();
    for row in rows {
        if !figures.contains(&&row["figure"]) {
            figures.push(&row["figure"]);
        }
    }
    for figure in figures {
        let of =
            |subject: &str| rows.iter().find(|row| row["figure"] == *figure && row["subject"] == subject);
        let go = of(GO.name);
        let unit = go.and_then(|row| row["unit"].as_str()).unwrap_or_default();
        let [first, second, third] = [go.map(values), ratio(of(SHIM.name), go), ratio(of(BOTH.name), go)]
            .map(Option::unwrap_or_default);
        let name = figure.as_str().unwrap_or_default();
        let comma = if unit.is_empty() { "" } else { ", " };
        writeln!(text, "| {name}{comma}{unit} | {first} | {second} | {third} |")?;
    }
    Ok(text)
}

/// Fewer than this, and the 99th percentile is the worst.
const MANY: f64 = 100.0;

fn values(row: &Value) -> String {
    let mut text = significant(number(row, "p50"));
    if number(row, "count") >= MANY {
        text += &format!(" ({})", significant(number(row, "p99")));
    }
    text
}

fn ratio(ours: Option<&Value>, go: Option<&Value>) -> Option<String> {
    let (ours, go) = (ours?, go?);
    let ratio = |field: &str| number(ours, field) / number(go, field);
    let mut text = format!("**{:.2}", ratio("p50"));
    if number(ours, "count") >= MANY {
        text += &format!(" ({:.2})", ratio("p99"));
    }
    Some(format!("{text}** {}", values(ours)))
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or(f64::NAN)
}

/// As many digits as mean something.
fn significant(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, figure: &str, count: u32, p50: f64) -> Value {
        json!({ "subject": subject, "figure": figure, "unit": "ms", "count": count, "p50": p50, "p99": 2.0 * p50 })
    }

    #[test]
    fn ratios_are_to_the_go_shim() {
        let results = json!({
            "versions": ["containerd 2"],
            "shim_bytes": 1_500_000,
            "rows": [row(GO.name, "start", 100, 20.0), row(SHIM.name, "start", 100, 15.0),
                     row(GO.name, "many", 3, 900.0), row(SHIM.name, "many", 3, 950.0), row(BOTH.name, "many", 3, 450.0)],
        });
        let table = table_of(&results).unwrap();
        assert!(table.contains("| start, ms | 20.0 (40.0) | **0.75 (0.75)** 15.0 (30.0) |  |\n"), "{table}");
        assert!(table.contains("| many, ms | 900 | **1.06** 950 | **0.50** 450 |\n"), "{table}");
    }
}
