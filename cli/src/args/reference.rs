//! `docs/commands.md`: every command and option, as the program itself explains them. With `CAPSULE_WRITE_DOCS=1` the test writes the page.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use super::Cli;

const HEAD: &str = "\
# Commands

What `capsulectl COMMAND --help` prints, for all of them. A test keeps this page as it is. What the commands promise is in [semantics.md](semantics.md).
";

/// The page.
fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut cli = Cli::command().term_width(110);
    cli.build();
    section(&mut page, &mut cli, 2);
    page
}

fn section(page: &mut String, command: &mut Command, level: usize) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let marks = "#".repeat(level);
    _ = write!(page, "\n{marks} {name}\n\n```text\n{}\n```\n", lines.join("\n").trim());
    for below in
        command.get_subcommands_mut().filter(|below| !below.is_hide_set() && below.get_name() != "help")
    {
        section(page, below, 3);
    }
}

#[test]
fn the_page_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/commands.md");
    let page = page();
    if std::env::var_os("CAPSULE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let first = there.lines().zip(page.lines()).find(|(there, page)| there != page);
    let hint = "CAPSULE_WRITE_DOCS=1 cargo test -p capsulectl reference writes docs/commands.md";
    assert!(there == page, "{first:?} differ, or one is longer: {hint}");
    assert!(page.matches("\n### capsulectl ").count() > 30, "{page}");
}
