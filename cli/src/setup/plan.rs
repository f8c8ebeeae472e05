//! What is to be in containerd's configuration, and what has to be changed for that. Pure.

use std::fmt::Write as _;
use std::path::PathBuf;

use toml::{Table, Value};

use super::change::{Change, Draft};
use super::document::{Found, Parsed, longer, path, version_of};
use super::error::SetupError;
use super::section::{
    CRI_2, CRI_3, CRI_IMAGES, DEFAULT_RUNTIME, HANDLER, Section, TRANSFER, Wanted, Wish, default_runtime,
    handler, header, images, snapshotter,
};
use crate::host::Release;

/// A file of containerd's configuration.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its text; `None` when it is not there.
    pub text: Option<String>,
}

/// A file that is to be changed.
#[derive(Debug, Clone)]
pub struct Edited {
    /// Where it is.
    pub path: PathBuf,
    /// Its text; `None` when it is not there.
    pub before: Option<String>,
    /// Its text to be; `None` when it is not to be there.
    pub after: Option<String>,
    /// What is changed.
    pub changes: Vec<Change>,
}

/// What has to be changed in the files of a configuration, in the order in which containerd reads them: the main one first, then
/// what it imports. Empty when all is as it should be.
///
/// # Errors
/// [`SetupError`]: a file cannot be understood, or has a form that is not added to.
pub fn plan(files: &[ConfigFile], wanted: &Wanted) -> Result<Vec<Edited>, SetupError> {
    let texts: Vec<&str> = files.iter().map(|file| file.text.as_deref().unwrap_or_default()).collect();
    let mut parsed = Vec::new();
    for (file, text) in files.iter().zip(&texts) {
        let syntax = |message| SetupError::Syntax { file: file.path.clone(), message };
        parsed.push(Parsed::parse(text).map_err(syntax)?);
    }
    let versions = versions(files, &parsed, wanted)?;
    let mut drafts: Vec<Draft> = texts.iter().map(|text| Draft::new(text)).collect();
    if parsed[0].meaning().get("version").is_none() {
        let line = format!("version = {}\n", versions[0]);
        add(&files[0], &mut drafts[0], &lines(&parsed[0], &line), "its version")?;
    }
    let at = target(&parsed, &path(&["proxy_plugins", &wanted.snapshotter]));
    fulfil(&files[at], &mut drafts[at], versions[at], &snapshotter(wanted))?;
    let at = target_of_plugin(&parsed, wanted.release, &path(&["plugins", TRANSFER]), &["unpack_config"]);
    unpack(&files[at], &mut drafts[at], versions[at], wanted)?;
    if wanted.cri.unwrap_or_else(|| !disables_cri(&parsed)) {
        let names: Vec<&str> = versions.iter().map(|version| cri_plugin(*version)).collect();
        let at = target_of_cri(&parsed, &names, wanted.release);
        let default = path(&["plugins", names[at], "containerd", "default_runtime_name"]);
        let default = parsed[at].value(&default).and_then(Value::as_str).unwrap_or(DEFAULT_RUNTIME);
        if wanted.release.is_1_7() && default == DEFAULT_RUNTIME {
            fulfil(&files[at], &mut drafts[at], versions[at], &default_runtime(names[at]))?;
        }
        let present = parsed[at].value(&path(&["plugins", names[at], "containerd", "runtimes", HANDLER]));
        fulfil(&files[at], &mut drafts[at], versions[at], &handler(names[at], wanted, present))?;
        if !wanted.release.is_1_7() {
            let at = target(&parsed, &path(&["plugins", CRI_IMAGES, "runtime_platforms", HANDLER]));
            fulfil(&files[at], &mut drafts[at], versions[at], &images(wanted))?;
        }
    }
    let edited = files.iter().zip(drafts).filter(|(_, draft)| !draft.changes.is_empty());
    Ok(edited
        .map(|(file, draft)| Edited {
            path: file.path.clone(),
            before: file.text.clone(),
            after: Some(draft.text),
            changes: draft.changes,
        })
        .collect())
}

/// The versions of the files. An imported one without a version is read as one of version 2.
fn versions(files: &[ConfigFile], parsed: &[Parsed<'_>], wanted: &Wanted) -> Result<Vec<i64>, SetupError> {
    let newest = wanted.release.config_version();
    let mut versions = Vec::new();
    for (number, (file, parsed)) in files.iter().zip(parsed).enumerate() {
        let version = match version_of(parsed, &file.path)? {
            Some(version) if version > newest => {
                let (file, release) = (file.path.clone(), wanted.release.to_string());
                return Err(SetupError::TooNew { file, version, release });
            }
            Some(version) => version,
            None if parsed.meaning().is_empty() => newest.min(3),
            None if number == 0 => return Err(SetupError::NoVersion { file: file.path.clone() }),
            None => 2,
        };
        versions.push(version);
    }
    Ok(versions)
}

/// The plugin that has the runtime handlers, in a file of this version.
pub fn cri_plugin(version: i64) -> &'static str {
    if version < 3 { CRI_2 } else { CRI_3 }
}

/// Whether the list of disabled plugins has one of those that CRI is made of.
fn disables_cri(parsed: &[Parsed<'_>]) -> bool {
    let lists = parsed.iter().filter_map(|file| file.meaning().get("disabled_plugins")?.as_array());
    lists.flatten().filter_map(Value::as_str).any(|name| [CRI_2, CRI_3].contains(&name))
}

/// The file whose word counts: the last that says something there, or the main one.
fn target(parsed: &[Parsed<'_>], path: &[String]) -> usize {
    parsed.iter().rposition(|file| file.value(path).is_some()).unwrap_or(0)
}

/// The same for a plugin's table. containerd 1.7 takes the whole table of the last file that has one, 2.x merges them, and takes
/// each list, and each other value, from the last that has it (tried with 1.7.24 and 2.1.9).
fn target_of_plugin(parsed: &[Parsed<'_>], release: Release, plugin: &[String], within: &[&str]) -> usize {
    if release.is_1_7() {
        return target(parsed, plugin);
    }
    target(parsed, &[plugin, &path(within)].concat())
}

fn target_of_cri(parsed: &[Parsed<'_>], names: &[&str], release: Release) -> usize {
    let has = |(file, name): (&Parsed<'_>, &&str)| {
        let plugin = path(&["plugins", name]);
        let handler = [&plugin[..], &path(&["containerd", "runtimes", HANDLER])].concat();
        file.value(if release.is_1_7() { &plugin } else { &handler }).is_some()
    };
    parsed.iter().zip(names).map(has).collect::<Vec<_>>().iter().rposition(|has| *has).unwrap_or(0)
}

/// Makes what a section wants true: tables that are missing are put at the end, keys into those that are there.
fn fulfil(file: &ConfigFile, draft: &mut Draft, version: i64, section: &Section) -> Result<(), SetupError> {
    let mut block = String::new();
    for (table, keys) in &section.tables {
        let text = draft.text.clone();
        let Ok(parsed) = Parsed::parse(&text) else { continue }; // each step leaves TOML
        match parsed.find(table) {
            Found::Nothing | Found::Implied => {
                let _ = writeln!(block, "{}", header(table, version)); // writing to a String cannot fail
                for (key, wish) in keys {
                    if let Some(value) = wish.fresh() {
                        let _ = writeln!(block, "  {key} = {value}");
                    }
                }
            }
            _ => keys.iter().try_for_each(|(key, wish)| set_key(file, draft, table, key, wish))?,
        }
    }
    if block.is_empty() {
        return Ok(());
    }
    let block = format!("# Resource Capsules, by `capsulectl setup`: {}.\n{block}", section.title);
    append(file, draft, &block)
}

fn set_key(
    file: &ConfigFile,
    draft: &mut Draft,
    table: &[String],
    key: &str,
    wish: &Wish,
) -> Result<(), SetupError> {
    let full = [table, &path(&[key])].concat();
    let text = draft.text.clone();
    let Ok(parsed) = Parsed::parse(&text) else { return Ok(()) };
    let wanted = match parsed.value(&full) {
        Some(present) => wish.over(present),
        None => wish.fresh(),
    };
    let Some(wanted) = wanted else { return Ok(()) };
    let after = wanted.to_string();
    let line = format!("  {key} = {after}{}", parsed.newline());
    let made = match (parsed.find(&full), parsed.find(table)) {
        (Found::Value(_, span), _) => {
            let before = text[span.clone()].to_owned();
            let after = wish.element().and_then(|one| longer(&before, one)).unwrap_or_else(|| after.clone());
            draft.make(span, &after, Change::Replaced { key: full.clone(), before, after: after.clone() })
        }
        (Found::Nothing, Found::Table(header)) => {
            let at = parsed.end_of_line(header.end);
            let text_ends = !text[..at].ends_with('\n');
            !text_ends && draft.make(at..at, &line, Change::Added { key: full.clone(), line: line.clone() })
        }
        _ => false,
    };
    if made {
        return Ok(());
    }
    let (what, wanted) = (full.join("."), format!("{key} = {after}"));
    Err(SetupError::ByHand { file: file.path.clone(), what, wanted })
}

/// `unpack_config` of the transfer service: a list that replaces containerd's own, of which overlayfs is the first.
fn unpack(file: &ConfigFile, draft: &mut Draft, version: i64, wanted: &Wanted) -> Result<(), SetupError> {
    let list = path(&["plugins", TRANSFER, "unpack_config"]);
    let text = draft.text.clone();
    let Ok(parsed) = Parsed::parse(&text) else { return Ok(()) };
    let element = |snapshotter: &str, indent: &str| {
        let header = format!("[{}]", header(&list, version));
        let snapshotter = Value::from(snapshotter);
        format!("{indent}{header}\n{indent}  platform = \"linux\"\n{indent}  snapshotter = {snapshotter}\n")
    };
    let is_ours = |one: &Value| one.get("snapshotter").and_then(Value::as_str) == Some(&wanted.snapshotter);
    let present = parsed.value(&list).and_then(Value::as_array);
    if present.is_some_and(|list| list.iter().any(is_ours)) {
        return Ok(());
    }
    match parsed.find(&list) {
        Found::Nothing => {
            let title =
                "for `ctr image pull` and `import`; the list replaces containerd's own, which is overlayfs";
            let (own, ours) = (element("overlayfs", ""), element(&wanted.snapshotter, ""));
            append(file, draft, &format!("# Resource Capsules, by `capsulectl setup`: {title}.\n{own}{ours}"))
        }
        Found::Tables(end) => {
            let first = file_indent(&parsed, end);
            let more = lines(&parsed, &element(&wanted.snapshotter, first));
            let before = if text[..end].ends_with('\n') { "" } else { parsed.newline() };
            let more = format!("{before}{more}");
            let change = Change::Inserted { text: more.clone() };
            made(draft.make(end..end, &more, change), file, &list, &more)
        }
        Found::Value(Value::Array(_), span) => {
            let ours = Value::Table(Table::from_iter([
                ("platform".to_owned(), Value::from("linux")),
                ("snapshotter".to_owned(), Value::from(wanted.snapshotter.as_str())),
            ]));
            let before = text[span.clone()].to_owned();
            let after = longer(&before, &ours).unwrap_or_default();
            let change = Change::Replaced { key: list.clone(), before, after: after.clone() };
            made(draft.make(span, &after, change), file, &list, &ours.to_string())
        }
        _ => made(false, file, &list, &element(&wanted.snapshotter, "")),
    }
}

/// How far the header of the element is indented that ends at `end`.
fn file_indent<'a>(parsed: &Parsed<'a>, end: usize) -> &'a str {
    let text = &parsed.text()[..end];
    let line = text.lines().rev().find(|line| line.trim_start().starts_with("[[")).unwrap_or_default();
    &line[..line.len() - line.trim_start().len()]
}

fn made(made: bool, file: &ConfigFile, what: &[String], wanted: &str) -> Result<(), SetupError> {
    if made {
        return Ok(());
    }
    let wanted = wanted.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let wanted = wanted.collect::<Vec<_>>().join("; ");
    Err(SetupError::ByHand { file: file.path.clone(), what: what.join("."), wanted })
}

/// Puts lines at the end of the file, after an empty one.
fn append(file: &ConfigFile, draft: &mut Draft, block: &str) -> Result<(), SetupError> {
    let gap = match draft.text.as_str() {
        "" => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    let text = draft.text.clone();
    let Ok(parsed) = Parsed::parse(&text) else { return Ok(()) };
    let what = block.lines().find(|line| line.starts_with('[')).unwrap_or_default();
    add(file, draft, &lines(&parsed, &format!("{gap}{block}")), what)
}

fn add(file: &ConfigFile, draft: &mut Draft, more: &str, what: &str) -> Result<(), SetupError> {
    let end = draft.text.len();
    let text = if end > 0 && !draft.text.ends_with('\n') && !more.starts_with(['\n', '\r']) {
        format!("\n{more}")
    } else {
        more.to_owned()
    };
    let is_made = draft.make(end..end, &text, Change::Inserted { text: text.clone() });
    made(is_made, file, &[what.to_owned()], more)
}

/// Lines that end as those of the file do.
fn lines(parsed: &Parsed<'_>, text: &str) -> String {
    text.replace('\n', parsed.newline())
}
