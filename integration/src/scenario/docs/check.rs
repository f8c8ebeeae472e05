//! What pages may say, judged by the source alone: no machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::page::{self, Fence};
use super::{INSTALL, PAGES, Page, UNIFIED_PAGES};

/// Where programs of ours are that users see.
const SOURCES: [&str; 6] =
    ["cli/src", "controller/src", "remote/src", "shim/src", "snapshotter/src", "telemetry/src"];
const PREFIX: &str = "resourcecapsules.io/";
/// Read where the pages are written, and by nobody else.
const OWN: [&str; 1] = ["CAPSULE_WRITE_DOCS"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files below a folder of the project whose names end so, by their paths in the project.
fn files(folder: &str, end: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&path, end));
        } else if path.ends_with(end) {
            found.push(path);
        }
    }
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The pages, decisions left out: what those show is of their day.
fn pages() -> Vec<(String, String)> {
    let mut pages = files("docs", ".md");
    pages.retain(|path| !path.starts_with("docs/adr/"));
    pages.push("README.md".to_owned());
    pages.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

/// Those whose examples are run.
fn tried() -> impl Iterator<Item = &'static Page> {
    PAGES.iter().chain(&UNIFIED_PAGES).chain([&INSTALL])
}

#[test]
fn every_example_is_run_or_says_why_not() {
    let explained = |fence: &Fence<'_>| {
        let says = |what| fence.mark.is_some_and(|mark| mark.starts_with(what));
        matches!(fence.kind, "" | "text") || says("not run: ") || says("same as: ")
    };
    for (path, source) in pages() {
        let fences = page::fences(&source).unwrap();
        match tried().find(|(_, name, _)| *name == path) {
            Some((_, _, text)) => assert_eq!(*text, source, "another file is called {path}"),
            None => {
                let unexplained = fences.iter().find(|fence| !explained(fence));
                assert!(unexplained.is_none(), "{path}: not run, and it does not say why: {unexplained:?}");
            }
        }
    }
}

#[test]
fn what_a_page_shows_of_a_file_is_in_it() {
    let mut seen = 0;
    for (path, source) in pages() {
        for (file, text) in page::quotes(&source).unwrap() {
            let whole = fs::read_to_string(root().join(&file)).unwrap_or_default();
            assert!(whole.contains(&text), "{path} shows of {file}:\n{text}");
            seen += 1;
        }
    }
    assert!(seen > 7, "{seen}");
}

#[test]
fn what_a_page_shows_can_be_read() {
    for (path, source) in pages() {
        for fence in page::fences(&source).unwrap() {
            let mistake = match fence.kind {
                "yaml" => yaml_serde::from_str::<serde_json::Value>(&fence.text).err().map(|e| e.to_string()),
                "json" => serde_json::from_str::<serde_json::Value>(&fence.text).err().map(|e| e.to_string()),
                "toml" => toml::from_str::<toml::Table>(&fence.text).err().map(|e| e.to_string()),
                "ini" => not_of_a_unit(&fence.text),
                // Run, or shown with a reason; what nobody reads but people.
                "sh" | "bash" | "console" | "" | "text" => None,
                _ => fence
                    .mark
                    .is_none()
                    .then(|| format!("nobody judges a fence of the kind {:?}", fence.kind)),
            };
            assert_eq!(mistake, None, "{path}:{}", fence.line);
        }
    }
}

/// The line that is none of systemd's files (systemd.syntax(7)).
fn not_of_a_unit(text: &str) -> Option<String> {
    let is_one = |line: &&str| {
        let is_section = line.starts_with('[') && line.ends_with(']');
        let name = line.split_once('=').map_or("", |(name, _)| name);
        let is_setting = name.starts_with(|c: char| c.is_ascii_uppercase()) && !name.contains(' ');
        line.is_empty() || line.starts_with(['#', ';']) || is_section || is_setting
    };
    text.lines().find(|line| !is_one(line)).map(str::to_owned)
}

#[test]
fn what_a_page_shows_of_the_configuration_is_known() {
    const FILE: &str = "# /etc/capsule/config.toml";
    let whole = read("configs/config.toml");
    let mut seen = 0;
    for (path, source) in pages() {
        for fence in page::fences(&source).unwrap() {
            let Some(text) = fence.text.strip_prefix(FILE).filter(|_| fence.kind == "toml") else { continue };
            let told = toml::from_str::<toml::Table>(text).unwrap();
            for (name, table) in told {
                let (_, rest) = whole.split_once(&format!("\n[{name}]\n")).unwrap_or_default();
                let section = rest.split("\n[").next().unwrap_or_default();
                for key in table.as_table().into_iter().flat_map(toml::Table::keys) {
                    let is_known = section.lines().any(|line| line.split(" = ").next() == Some(key));
                    assert!(is_known, "{path}:{}: {name}.{key}", fence.line);
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

#[test]
fn links_lead_somewhere() {
    let mut documents = files("docs", ".md");
    documents.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned));
    let mut seen = 0;
    for path in documents {
        let source = read(&path);
        for target in links(&source) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let folder = Path::new(&path).parent().unwrap();
            let file = if file.is_empty() { PathBuf::from(&path) } else { folder.join(file) };
            assert!(root().join(&file).exists(), "{path}: {target}");
            if !heading.is_empty() {
                let there = fs::read_to_string(root().join(&file)).unwrap();
                assert!(headings(&there).contains(heading), "{path}: {target}");
            }
            seen += 1;
        }
    }
    assert!(seen > 300, "{seen}");
}

#[test]
fn the_index_names_every_page() {
    let source = read("docs/README.md");
    let index: BTreeSet<&str> = links(&source).filter_map(|target| target.split('#').next()).collect();
    for (path, _) in pages() {
        let Some(page) = path.strip_prefix("docs/").filter(|page| *page != "README.md") else { continue };
        assert!(index.contains(page), "docs/README.md does not name {page}");
    }
}

#[test]
fn annotations_and_labels_are_on_their_page() {
    let ends = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let names = |text: &str| -> BTreeSet<String> {
        let rests = text.split(PREFIX).skip(1);
        rests
            .filter_map(|rest| rest.split(ends).next())
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let sources = SOURCES.iter().flat_map(|folder| files(folder, ".rs"));
    let policies = std::iter::once("configs/kustomize/admission.yaml".to_owned());
    let used: BTreeSet<String> = sources.chain(policies).flat_map(|path| names(&read(&path))).collect();
    assert!(used.len() > 15, "{used:?}");
    assert_eq!(names(&read("docs/annotations.md")), used, "docs/annotations.md, and the sources");
}

#[test]
fn variables_are_on_their_page() {
    let page = read("docs/semantics.md");
    for path in SOURCES.iter().flat_map(|folder| files(folder, ".rs")) {
        let source = read(&path);
        let ours = source.split('"').filter(|text| text.starts_with("CAPSULE_"));
        let asked = source.split("env = \"").skip(1).filter_map(|rest| rest.split('"').next());
        let is_name = |text: &&str| text.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        for name in ours.chain(asked).filter(is_name).filter(|name| !OWN.contains(name)) {
            assert!(page.contains(&format!("`{name}`")), "{name} of {path}");
        }
    }
}

/// The lines of a document outside its fences.
fn prose(source: &str) -> impl Iterator<Item = &str> {
    let mut within = false;
    source.lines().filter(move |line| {
        let edge = line.starts_with("```");
        within ^= edge;
        !within && !edge
    })
}

/// Where it links to within the project.
fn links(source: &str) -> impl Iterator<Item = &str> {
    let targets = prose(source).flat_map(|line| line.split("](").skip(1));
    targets.filter_map(|rest| rest.split(')').next()).filter(|target| !target.contains(':'))
}

/// Its headings, as links name them.
fn headings(source: &str) -> BTreeSet<String> {
    let heading = |line: &str| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    prose(source).filter(|line| line.starts_with('#')).map(heading).collect()
}
