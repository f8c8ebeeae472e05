//! The benchmark of storage: runs it natively, writes a table and a JSON file.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::event::Event;
use crate::machine::{Job, Kind, Machine};
use crate::rootfs::Suite;
use crate::scenario::storage;
use crate::workspace::Workspace;

/// Longer than this, and something hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs the benchmark; its table. `target/bench-storage.json` has all numbers, `target/bench-storage.md` the table.
pub fn run(workspace: &Workspace, watch: impl FnMut(&Event)) -> Result<String> {
    let machine = Machine { kind: Kind::Native, suite: Suite::Forky };
    let job = Job { scenario: storage::FULL.to_owned(), silence: LIMIT };
    let report = machine.run(workspace, &job, watch)?;
    report.expect_ok()?;
    let data =
        |name: &str| report.data(name).cloned().with_context(|| format!("the benchmark sent no {name}"));
    let results = json!({ "rows": data("rows")?, "machine": data("machine")? });
    let table = table(results["rows"].as_array().map_or(&[], Vec::as_slice))?;
    let folder = workspace.target(".")?;
    fs::write(folder.join("bench-storage.json"), format!("{results:#}\n"))
        .context("write bench-storage.json")?;
    fs::write(folder.join("bench-storage.md"), &table).context("write bench-storage.md")?;
    Ok(table)
}

/// A row for each subject: what ten versions take, and how often that of one.
fn table(rows: &[Value]) -> Result<String> {
    let mut text = String::from(
        "| | unpacked: one, all | ratio | page cache: one, all | ratio | content store: all | time of each |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for row in rows {
        let number = |set: &str, field: &str| row[set][field].as_f64().unwrap_or(f64::NAN);
        let mib = |set: &str, field: &str| number(set, field) / f64::from(1 << 20);
        let cells = ["snapshots", "cache"].map(|field| {
            let ratio = number("all", field) / number("one", field);
            format!("{:.1}, {:.1} MiB | **{ratio:.2}**", mib("one", field), mib("all", field))
        });
        let subject = row["subject"].as_str().unwrap_or_default();
        let (content, ms) = (mib("all", "content"), row["ms"].as_f64().unwrap_or(f64::NAN));
        writeln!(text, "| {subject} | {} | {} | {content:.1} MiB | {ms:.0} ms |", cells[0], cells[1])?;
    }
    Ok(text)
}
