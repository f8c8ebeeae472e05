//! The examples of a page, as its source has them. Pure: no I/O.
//!
//! | in the source | means |
//! | --- | --- |
//! | a fence `sh` or `bash` | commands, each of which must succeed |
//! | a fence `console` | commands after `# `, each with what it prints; one that prints an error must fail |
//! | `<!-- prepare` … `-->` | a script that is run at this place, which readers do not see |
//! | `<!-- not run: REASON -->` | the next fence, of any kind, is shown only |
//! | `<!-- file: PATH -->` | the next fence is what that file holds |
//! | `<!-- same as: PATH -->` | the next fence is a part of that file of the project |

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};

/// A part of a page, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// What an example needs.
    Prepare { line: usize, script: String },
    /// A command that readers see.
    Example { line: usize, command: String, prints: Option<String> },
    /// A fence that is not run.
    Shown { line: usize, reason: String },
    /// A fence that is a file.
    File { line: usize, path: String, text: String },
}

impl Part {
    /// Where it is in its source, counted from 1.
    pub fn line(&self) -> usize {
        match self {
            Self::Prepare { line, .. }
            | Self::Example { line, .. }
            | Self::Shown { line, .. }
            | Self::File { line, .. } => *line,
        }
    }
}

/// The lines of the section whose heading is `## HEADING`, if a page has one.
pub fn section(source: &str, heading: &str) -> Option<Range<usize>> {
    let headings = || source.lines().zip(1..).filter(|(line, _)| line.starts_with("## "));
    let (_, first) = headings().find(|(line, _)| line.strip_prefix("## ") == Some(heading))?;
    let next = headings().map(|(_, number)| number).find(|number| *number > first);
    Some(first..next.unwrap_or(usize::MAX))
}

/// What a page has to run.
///
/// # Errors
/// A fence or comment without an end; `not run` without a fence after it.
pub fn parse(source: &str) -> Result<Vec<Part>> {
    let mut lines = source.lines().enumerate().map(|(number, line)| (number + 1, line));
    let (mut parts, mut shown, mut file) = (Vec::new(), None, None);
    while let Some((number, line)) = lines.next() {
        if let Some(reason) = line.strip_prefix("<!-- not run: ") {
            let reason = reason.strip_suffix(" -->").with_context(|| format!("line {number}: no end"))?;
            shown = Some((number, reason.to_owned()));
        } else if let Some(path) = line.strip_prefix("<!-- file: ") {
            let path = path.strip_suffix(" -->").with_context(|| format!("line {number}: no end"))?;
            file = Some(path.to_owned());
        } else if line == "<!-- prepare" {
            let script = until(&mut lines, number, |line| line == "-->")?;
            parts.push(Part::Prepare { line: number, script: script.join("\n") });
        } else if let Some(kind) = line.strip_prefix("```") {
            let text = until(&mut lines, number, |line| line == "```")?;
            if let Some(path) = file.take() {
                let text = text.iter().flat_map(|line| [line, "\n"]).collect();
                parts.push(Part::File { line: number, path, text });
                continue;
            }
            match (kind, shown.take()) {
                (_, Some((_, reason))) => parts.push(Part::Shown { line: number, reason }),
                ("sh" | "bash", None) => parts.extend(commands(number + 1, &text)),
                ("console", None) => parts.extend(dialogue(number + 1, &text)),
                (_, None) => {}
            }
        }
    }
    ensure!(shown.is_none() && file.is_none(), "a fence is missing at the end");
    Ok(parts)
}

/// What a page shows of the project's own files: each file, and what is to be in it.
///
/// # Errors
/// A fence without an end, or none after the comment.
#[cfg(test)]
pub fn quotes(source: &str) -> Result<Vec<(String, String)>> {
    let mut lines = source.lines().enumerate().map(|(number, line)| (number + 1, line));
    let mut quotes = Vec::new();
    while let Some((number, line)) = lines.next() {
        let Some(path) = line.strip_prefix("<!-- same as: ").and_then(|rest| rest.strip_suffix(" -->"))
        else {
            continue;
        };
        let fence = lines.next().is_some_and(|(_, line)| line.starts_with("```"));
        ensure!(fence, "line {number}: no fence after it");
        let text = until(&mut lines, number, |line| line == "```")?;
        quotes.push((path.to_owned(), text.iter().flat_map(|line| [line, "\n"]).collect()));
    }
    Ok(quotes)
}

/// A fence as its source has it.
#[cfg(test)]
#[derive(Debug)]
pub struct Fence<'a> {
    /// Where it begins, counted from 1.
    pub line: usize,
    /// The word after the fence; empty without one.
    pub kind: &'a str,
    /// What the comment right above it says.
    pub mark: Option<&'a str>,
    pub text: String,
}

/// All fences of a page.
///
/// # Errors
/// A fence without an end.
#[cfg(test)]
pub fn fences(source: &str) -> Result<Vec<Fence<'_>>> {
    let mut lines = source.lines().enumerate().map(|(number, line)| (number + 1, line));
    let (mut fences, mut above) = (Vec::new(), "");
    while let Some((line, text)) = lines.next() {
        if let Some(kind) = text.strip_prefix("```") {
            let mark = above.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
            let within = until(&mut lines, line, |line| line == "```")?;
            fences.push(Fence { line, kind, mark, text: within.join("\n") });
        }
        above = text;
    }
    Ok(fences)
}

fn until<'a>(
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
    from: usize,
    is_end: impl Fn(&str) -> bool,
) -> Result<Vec<&'a str>> {
    let mut text = Vec::new();
    for (_, line) in lines {
        if is_end(line) {
            return Ok(text);
        }
        text.push(line);
    }
    anyhow::bail!("line {from}: no end")
}

/// One a line, or more lines where one ends with a backslash.
fn commands(first: usize, text: &[&str]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut goes_on = false;
    for (number, line) in text.iter().enumerate() {
        let continues = std::mem::replace(&mut goes_on, line.ends_with('\\'));
        match parts.last_mut() {
            Some(Part::Example { command, .. }) if continues => {
                command.push('\n');
                command.push_str(line);
            }
            _ if line.trim().is_empty() || line.starts_with('#') => {}
            _ => {
                parts.push(Part::Example { line: first + number, command: (*line).to_owned(), prints: None });
            }
        }
    }
    parts
}

fn dialogue(first: usize, text: &[&str]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (number, line) in text.iter().enumerate() {
        match (line.strip_prefix("# "), parts.last_mut()) {
            (Some(command), _) => {
                parts.push(Part::Example {
                    line: first + number,
                    command: command.to_owned(),
                    prints: Some(String::new()),
                });
            }
            (None, Some(Part::Example { prints: Some(prints), .. })) => {
                prints.push_str(line);
                prints.push('\n');
            }
            (None, _) => {}
        }
    }
    parts
}

/// Whether a command that is shown with `expected` may print `found`: white space does not count (lines are broken to fit the
/// page), nor what is different each time: times, sizes, digests, process ids. `…` stands for anything. Nothing is expected of one
/// that is shown without.
pub fn prints(expected: &str, found: &str) -> bool {
    let (expected, found) = (normal(expected), normal(found));
    if expected.is_empty() {
        return true;
    }
    let mut rest = found.as_str();
    let pieces: Vec<&str> = expected.split('…').collect();
    for (number, piece) in pieces.iter().enumerate() {
        let at = match number {
            0 => rest.starts_with(piece).then_some(0),
            last if last + 1 == pieces.len() && !piece.is_empty() => {
                rest.ends_with(piece).then(|| rest.len() - piece.len())
            }
            _ => rest.find(piece),
        };
        let Some(at) = at else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty() || expected.ends_with('…')
}

/// What is counted in.
const UNITS: [(&str, &str); 10] = [
    ("ms", "TIME"),
    ("s", "TIME"),
    ("µs", "TIME"),
    ("B", "SIZE"),
    ("bytes", "SIZE"),
    ("KiB", "SIZE"),
    ("MiB", "SIZE"),
    ("GiB", "SIZE"),
    ("file", "files"),
    ("files", "files"),
];

fn normal(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word = match word.find("sha256:") {
            Some(at) => {
                let rest = word[at + 7..].trim_start_matches(|c: char| c.is_ascii_hexdigit() || c == '…');
                format!("{}DIGEST{rest}", &word[..at])
            }
            None => word.to_owned(),
        };
        let is_number = |word: &str| word.trim_start_matches('(').parse::<f64>().is_ok();
        let bare = word.trim_end_matches([',', ')', ';']);
        let unit = UNITS.iter().find(|(unit, _)| *unit == bare);
        if let (Some((_, class)), Some(before)) = (unit, words.last_mut().filter(|before| is_number(before)))
        {
            let open = if before.starts_with('(') { "(" } else { "" };
            *before = format!("{open}N {class}{}", &word[bare.len()..]);
            continue;
        }
        let is_pid = words.last().is_some_and(|before| before == "process" || before == "(pid");
        let digits = word.trim_start_matches(|c: char| c.is_ascii_digit());
        words.push(if is_pid { format!("N{digits}") } else { passing(&word).unwrap_or(word) });
    }
    words.join(" ")
}

/// A word that is another one each time: a time, how long ago, a number of an event, a digest cut short, an id.
fn passing(word: &str) -> Option<String> {
    let has = |length: usize, is: fn(char) -> bool| word.len() == length && word.chars().all(is);
    let is_hex: fn(char) -> bool = |c| c.is_ascii_hexdigit();
    let is_time = word.len() > 20 && word.ends_with('Z') && word.as_bytes().get(10) == Some(&b'T');
    let is_ago = word.strip_suffix(['s', 'm', 'h', 'd']).is_some_and(|n| n.parse::<u64>().is_ok());
    let is_number = has(13, |c| c.is_ascii_digit());
    let kinds = [
        (is_time, "TIME"),
        (is_ago, "AGO"),
        (is_number, "NUMBER"),
        (has(12, is_hex), "SHORT"),
        (has(24, is_hex), "ID"),
    ];
    kinds.iter().find(|(is, _)| *is).map(|(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_is_run() {
        let source = "# Page\n<!-- prepare\nmkdir a\nmkdir b\n-->\n```sh\n# words\nls \\\n  a\n\ncat b # why\n```\n\
                      text\n```console\n# ls\na  b\n# rm a\ncapsulectl: no\n```\n<!-- not run: a reason -->\n```sh\nhalt\n```\n\
                      ```toml\nx = 1\n```\n<!-- file: a/b.toml -->\n```toml\nx = 2\n```\n";
        let example = |line, command: &str, prints: Option<&str>| Part::Example {
            line,
            command: command.into(),
            prints: prints.map(Into::into),
        };
        assert_eq!(
            parse(source).unwrap(),
            [
                Part::Prepare { line: 2, script: "mkdir a\nmkdir b".into() },
                example(8, "ls \\\n  a", None),
                example(11, "cat b # why", None),
                example(15, "ls", Some("a  b\n")),
                example(17, "rm a", Some("capsulectl: no\n")),
                Part::Shown { line: 21, reason: "a reason".into() },
                Part::File { line: 28, path: "a/b.toml".into(), text: "x = 2\n".into() },
            ]
        );
        let shown = Part::Shown { line: 2, reason: "x".into() };
        assert_eq!(parse("<!-- not run: x -->\n```toml\n```\n").unwrap(), [shown]);
        for broken in ["```sh\nls\n", "<!-- prepare\n", "<!-- not run: x -->\n"] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_page_says_what_it_shows_of_files() {
        let source = "<!-- same as: a.toml -->\n```toml\nx = 1\n```\n```toml\ny = 1\n```\n";
        assert_eq!(quotes(source).unwrap(), [("a.toml".to_owned(), "x = 1\n".to_owned())]);
        assert!(quotes("<!-- same as: a -->\ntext\n").is_err());
    }

    #[test]
    fn only_what_is_different_each_time_may_differ() {
        let shown = "tzdata@2026.6.0  sha256:145594f8…  (494 files, 609.5 KiB,\n153 ms)";
        assert!(prints(shown, "tzdata@2026.6.0  sha256:0123456789abcdef  (1 files, 12 B, 1.2 s)\n"));
        assert!(!prints(shown, "tzdata@2026.5.0  sha256:0123456789abcdef  (1 files, 12 B, 1.2 s)\n"));
        assert!(!prints(shown, "tzdata@2026.6.0  sha256:0123456789abcdef  (1 files, 12 B, 1.2 s) more\n"));
        assert!(prints("in use: process 219 (cat) has …; end", "in use: process 7 (cat) has /x (fd 3); end"));
        assert!(!prints(
            "in use: process 219 (cat) has …; end",
            "in use: process 7 (tar) has /x (fd 3); end"
        ));
        assert!(!prints("a … c", "a b d") && prints("a … c", "a b c") && prints("a …", "a b"));
        let event = "2026-11-29T10:47:23.318685232Z  1795949243081  published    app 1";
        assert!(prints(event, "2027-01-01T00:00:00.1Z 1800000000000 published app 1"));
        assert!(!prints(event, "2027-01-01T00:00:00.1Z 1800000000000 published app 2"));
        assert!(prints("lib 1 a73f2f5332b1 2.5 KiB 1s ago", "lib 1 0123456789ab 3 KiB 4m ago"));
        assert!(prints("", "anything"));
        assert!(prints("by cat (pid 219), fd 3", "by cat (pid 7), fd 3"));
        assert!(!prints("by cat (pid 219), fd 3", "by cat (pid 7), fd 4"));
    }
}
