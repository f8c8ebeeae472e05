//! The tables of errors, and the code that answers them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where errors become status codes.
const STATUS: &str = "snapshotter/src/service/status.rs";

/// Of calls that are no part of `status.rs`: what it may say is on the page too.
const ELSEWHERE: [(&str, &str); 1] = [("snapshotter/src/service/events.rs", "out_of_range")];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// As gRPC writes it: `NOT_FOUND` of `NotFound` or `not_found`.
fn written(name: &str) -> String {
    let word = |(at, c): (usize, char)| {
        let begins = c.is_ascii_uppercase() && at > 0;
        begins.then_some('_').into_iter().chain([c.to_ascii_uppercase()])
    };
    name.char_indices().flat_map(word).collect()
}

/// The codes that a function, which begins with these words, gives. `Unknown` is of errors that have their own.
fn given(source: &str, begins: &str) -> BTreeSet<String> {
    let (_, rest) = source.split_once(begins).unwrap_or_else(|| panic!("{STATUS} has no {begins}"));
    let (body, _) = rest.split_once("\n}\n").unwrap();
    let names =
        body.split("Code::").skip(1).filter_map(|rest| rest.split(|c: char| !c.is_alphabetic()).next());
    names.filter(|name| *name != "Unknown").map(written).collect()
}

fn all_given(functions: &[&str]) -> BTreeSet<String> {
    let source = read(STATUS);
    functions.iter().flat_map(|begins| given(&source, begins)).collect()
}

/// The rows of the first table after these words: what is wrong, and its code.
fn table(page: &str, after: &str) -> Vec<(String, String)> {
    let (_, rest) = page.split_once(after).unwrap_or_else(|| panic!("no {after:?}"));
    let rows =
        rest.lines().skip_while(|line| !line.starts_with("| ")).take_while(|line| line.starts_with("| "));
    let cells = |line: &str| {
        let (what, code) = line.trim_matches('|').rsplit_once(" | ").unwrap();
        (what.trim().to_owned(), code.trim().trim_matches('`').to_owned())
    };
    rows.skip(2).map(cells).collect()
}

fn codes(rows: &[(String, String)]) -> BTreeSet<String> {
    rows.iter().map(|(_, code)| code.clone()).collect()
}

#[test]
fn codes_are_written_as_grpc_has_them() {
    assert_eq!(written("FailedPrecondition"), "FAILED_PRECONDITION");
    assert_eq!(written("out_of_range"), "OUT_OF_RANGE");
    let table = table("## E\n\n| a | b |\n| --- | --- |\n| x | y | `NO` |\n\n| z | `YES` |", "## E");
    assert_eq!(table, [("x | y".to_owned(), "NO".to_owned())]);
}

/// Of capsules and attachments.
#[test]
fn the_page_has_the_codes_of_calls() {
    let page = read("docs/semantics.md");
    let told = codes(&table(&page, "## Errors"));
    let mut given = all_given(&[
        "impl From<CapsuleError>",
        "impl From<AttachmentError>",
        "fn attachment(",
        "fn devices(",
        "fn limits(",
        "fn tag(",
        "fn shim(",
    ]);
    for (path, call) in ELSEWHERE {
        assert!(read(path).contains(&format!("::{call}(")), "{path} gives no {call}");
        given.insert(written(call));
    }
    assert_eq!(told, given, "docs/semantics.md, and {STATUS}");
}

/// Of versions on their way.
#[test]
fn the_page_has_the_codes_of_transfers() {
    let page = read("docs/semantics.md");
    let told = codes(&table(&page, "Of versions on their way"));
    assert_eq!(told, all_given(&["fn moving(", "fn signing("]), "docs/semantics.md, and {STATUS}");
}

/// Of attachments that are written to: the messages too are those of the code.
#[test]
fn the_page_has_the_errors_of_what_is_written() {
    let page = read("docs/writing.md");
    let rows = table(&page, "## Errors");
    assert_eq!(codes(&rows), all_given(&["impl From<UpperError>"]), "docs/writing.md, and {STATUS}");
    let sources = ["uppers/error.rs", "attachments/error.rs", "shims/error.rs", "shims/calls.rs"];
    let sources: String = sources.iter().map(|file| read(&format!("snapshotter/src/{file}"))).collect();
    // What a shim lacks is said by who asks it.
    let sources = unbroken(&sources).replace("\"older than", "\"is older than");
    for (what, _) in rows {
        // Outside of the code are words of the page's own.
        for message in what.split('`').skip(1).step_by(2).filter(|text| !text.starts_with('-')) {
            for part in parts(message) {
                assert!(sources.contains(&part), "no error says {part:?}: {message}");
            }
        }
    }
}

/// Texts that go on in the next line are one.
fn unbroken(source: &str) -> String {
    let mut pieces = source.split("\\\n");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |all, piece| all + piece.trim_start())
}

/// What a message says whatever it is about: names are in capitals, and `…` is the rest.
fn parts(message: &str) -> Vec<String> {
    let is_name = |word: &str| word.chars().all(|c| c.is_ascii_uppercase() || "@/:,".contains(c));
    let words: Vec<&str> = message.split(' ').collect();
    let parts = words.split(|word| word.contains('…') || is_name(word));
    let parts = parts.map(|words| words.join(" ").trim_end_matches(':').to_owned());
    parts.filter(|part| !part.is_empty()).collect()
}
