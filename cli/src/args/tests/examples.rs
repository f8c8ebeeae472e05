//! Every command line that a document or a help text shows is one.

use std::fs;

use super::*;

/// The command lines of `capsulectl` in a text: those that begin a line, a prompt before them or not, or follow a pipe.
fn command_lines(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim().trim_start_matches("# ");
        for part in line.split(" | ") {
            // Variables of the shell's before a command.
            let words = part
                .split_once("capsulectl ")
                .filter(|(before, _)| before.is_empty() || before.ends_with(") "));
            if let Some((_, words)) = words {
                let end = words.find(" #").unwrap_or(words.len());
                let end = words[..end].find(['<', '>']).filter(|_| !words.contains('\'')).unwrap_or(end);
                found.push(format!("capsulectl {}", words[..end].trim()));
            }
        }
    }
    found
}

/// Refusals that say that a line is no command line of ours.
fn mistake(line: &str) -> Option<String> {
    let Some(words) = shlex::split(line) else { return Some(format!("`{line}`: a quotation is not closed")) };
    match Cli::parse_line(words) {
        Ok(_) => None,
        Err(e) if !e.use_stderr() => None, // help and version
        Err(e) => Some(format!("`{line}`: {e}")),
    }
}

/// Lines of prose that begin with the program's name, and patterns.
fn is_prose(line: &str) -> bool {
    ["capsulectl asks", "capsulectl itself", "capsulectl does"].iter().any(|start| line.starts_with(start))
}

#[test]
fn documents_show_command_lines_that_are_some() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("an entry").path());
    let pages =
        docs.chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|e| e == "md"));
    let (mut mistakes, mut count) = (Vec::new(), 0);
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page");
        // Only what is in blocks of code.
        let blocks: String = text.split("```").skip(1).step_by(2).collect::<Vec<_>>().join("\n");
        for line in command_lines(&blocks).into_iter().filter(|line| !is_prose(line)) {
            count += 1;
            mistakes.extend(mistake(&line).map(|m| format!("{}: {m}", page.display())));
        }
    }
    assert!(count > 30, "{count} examples");
    assert_eq!(mistakes, Vec::<String>::new());
}

#[test]
fn help_texts_show_command_lines_that_are_some() {
    let command = Cli::command();
    let all = command.get_subcommands().chain([&command]);
    let texts = all.filter_map(clap::Command::get_after_help).map(ToString::to_string);
    let lines: Vec<String> =
        texts.flat_map(|text| command_lines(&text)).filter(|line| !is_prose(line)).collect();
    assert!(lines.len() > 50, "{} examples", lines.len());
    let mistakes: Vec<String> = lines.iter().filter_map(|line| mistake(line)).collect();
    assert_eq!(mistakes, Vec::<String>::new());
}
