//! The manual pages, one for each command, as the package has them. Pure.
//!
//! They say what `--help` says. What `clap_mangen` does not know is that help texts end with examples, whose lines must stay
//! as they are, and which pages belong together.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// The manual that the pages are part of, in the middle of their first line.
const MANUAL: &str = "Resource Capsules";

/// The line that opens the examples of a help text.
const EXAMPLES: &str = "Examples:";

/// A page.
#[derive(Debug)]
pub struct Page {
    /// As `capsulectl-attach.1`.
    pub file: String,
    /// Its source, for man(1).
    pub text: Vec<u8>,
}

/// The pages of a program and of all its commands that are not hidden.
///
/// # Errors
/// None that can happen: a page is written to memory.
pub fn pages(command: Command) -> io::Result<Vec<Page>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let source = format!("{} {}", command.get_name(), command.get_version().unwrap_or_default());
    let mut pages = Vec::new();
    add(&command, None, &source, &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, parent: Option<&str>, source: &str, pages: &mut Vec<Page>) -> io::Result<()> {
    pages.push(page(command, parent, source)?);
    let name = display_name(command);
    shown(command).try_for_each(|command| add(command, Some(name), source, pages))
}

fn page(command: &Command, parent: Option<&str>, source: &str) -> io::Result<Page> {
    let man = Man::new(command.clone()).manual(MANUAL).source(source);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if shown(command).next().is_some() {
        man.render_subcommands_section(&mut text)?;
    }
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    after_help(&help).to_writer(&mut text)?;
    see_also(command, parent).to_writer(&mut text)?;
    Ok(Page { file: man.get_filename(), text })
}

/// Indented lines are examples, and stay as they are; the others are prose.
fn after_help(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut literal = false;
    for line in help.lines() {
        let indented = line.starts_with(' ');
        if literal && !indented {
            roff.control("fi", []);
            roff.control("RE", []);
            literal = false;
        }
        match line {
            EXAMPLES => {
                roff.control("SH", ["EXAMPLES"]);
            }
            "" => {
                roff.control("PP", []);
            }
            _ if indented && !literal => {
                roff.control("RS", ["4"]).control("nf", []).text([roman(line.trim_start())]);
                literal = true;
            }
            _ => {
                roff.text([roman(line.trim_start())]);
            }
        }
    }
    if literal {
        roff.control("fi", []).control("RE", []);
    }
    roff
}

fn see_also(command: &Command, parent: Option<&str>) -> Roff {
    let mut pages: Vec<String> = parent.map(|parent| format!("{parent}(1)")).into_iter().collect();
    pages.extend(shown(command).map(|command| format!("{}(1)", display_name(command))));
    pages.extend(["capsule.toml(5)".to_owned(), "capsuled(8)".to_owned()]);
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]);
    roff
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

fn display_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_command_has_a_page_with_all_that_its_help_says() {
        let pages = pages(Cli::command()).expect("pages");
        let text = |file: &str| {
            let page = pages.iter().find(|page| page.file == file);
            String::from_utf8(page.unwrap_or_else(|| panic!("no {file}")).text.clone()).expect("text")
        };
        for command in Cli::command().get_subcommands() {
            let file = format!("capsulectl-{}.1", command.get_name());
            assert_eq!(pages.iter().any(|page| page.file == file), !command.is_hide_set(), "{file}");
        }
        let (top, attach, remove) =
            (text("capsulectl.1"), text("capsulectl-attach.1"), text("capsulectl-uppers-rm.1"));
        for (page, words) in [
            (&top, ".SH SUBCOMMANDS"),
            (&top, "capsulectl\\-attach(1)"),
            (&attach, "\\fBcapsulectl attach\\fR"),
            (&attach, "capsulectl attach web tzdata@2026.1 \\-\\-target /opt/zoneinfo\n"),
            (&attach, "capsulectl(1), capsule.toml(5)"),
            (&attach, ".SH \"GLOBAL OPTIONS\""),
            (&remove, "capsulectl\\-uppers(1)"),
        ] {
            assert!(page.contains(words), "{words:?} is not in {page}");
        }
    }

    #[test]
    fn examples_stay_as_they_are_and_prose_flows() {
        let text = after_help("Examples:\n  one   two\n  three\n\nSome\nprose.").to_roff();
        assert_eq!(
            text.replace('\u{c}', ""),
            ".SH EXAMPLES\n.RS 4\n.nf\none   two\nthree\n.fi\n.RE\n.PP\nSome\nprose.\n"
        );
    }
}
