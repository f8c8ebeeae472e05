//! What programs rely on is what `docs/semantics.md` says.

use clap::CommandFactory as _;
use serde_json::Value;

use super::*;
use crate::args::Cli;

const PAGE: &str = include_str!("../../../docs/semantics.md");

/// The part about JSON.
fn section() -> &'static str {
    let (_, rest) = PAGE.split_once("\n## JSON\n").expect("a section about JSON");
    rest.split_once("\n## ").expect("a section after it").0
}

/// The row of the table that a command has: its names, and its document.
fn row(command: &str) -> Option<(&'static str, &'static str)> {
    let rows = section().lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    rows.into_iter().find(|(names, _)| names.split(", ").any(|name| name == format!("`{command}`")))
}

/// What the page says of a type: from its name to the next one's.
fn entry(name: &str) -> String {
    let (_, types) = section().split_once("```\n").expect("the types");
    let (types, _) = types.split_once("```").expect("their end");
    let lines = types.lines().skip_while(|line| !line.starts_with(&format!("{name} ")));
    let more = lines.clone().skip(1).take_while(|line| line.starts_with(' '));
    lines.take(1).chain(more).collect::<Vec<_>>().join("\n")
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|other| other == word)
}

/// The names of all fields, those of what is within too.
fn fields(value: &Value, into: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        into.push(name.clone());
        fields(value, into);
    }
}

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).expect("JSON")
}

#[test]
fn every_field_of_a_type_is_on_the_page() {
    let attachment = v1::Attachment {
        writable: Some(v1::Writable::default()),
        resources: Some(v1::Resources::default()),
        ..v1::Attachment::default()
    };
    let plan = json(Plan::from(vec![v1::Planned::default()]));
    for (name, value) in [
        ("Version", json(Version::from(v1::Version::default()))),
        ("Layer", json(Layer::from(v1::Layer::default()))),
        ("Attachment", json(Attachment::from(attachment))),
        ("Planned", plan["planned"][0].clone()),
        ("User", json(User::from(v1::User::default()))),
    ] {
        let (entry, mut names) = (entry(name), Vec::new());
        fields(&value, &mut names);
        assert!(!names.is_empty(), "{name}");
        for field in names {
            assert!(has_word(&entry, &field), "{name} has no {field}: {entry:?}");
        }
    }
}

#[test]
fn every_field_of_a_document_is_on_the_page() {
    let built = v1::BuildResponse { version: Some(v1::Version::default()), existed: false };
    let built = Built::new(built, &Summary { files: None, bytes: 0 }, Duration::ZERO).expect("a version");
    let inspected = v1::InspectCapsuleResponse {
        version: Some(v1::Version::default()),
        ..v1::InspectCapsuleResponse::default()
    };
    let moves = Moves::new("upgrade", vec![v1::Attachment::default()], vec!["1".into()]).expect("a pair");
    let plain = json(Attachment::from(v1::Attachment::default()));
    for (command, value) in [
        ("build", json(built)),
        ("ls", json(Versions::from(v1::ListCapsulesResponse::default()))),
        ("inspect", json(Inspection::try_from(inspected).expect("a version"))),
        ("attach", json(Attachments::from(Vec::new()))),
        ("resolve", json(Plan::from(Vec::new()))),
        ("upgrade", json(&moves)),
        // What it has beside an attachment's.
        ("upgrade", {
            let mut moved = json(&moves)["attachments"][0].clone();
            moved.as_object_mut().expect("an object").retain(|name, _| plain.get(name).is_none());
            moved
        }),
    ] {
        let (_, document) = row(command).expect(command);
        for name in value.as_object().expect("an object").keys() {
            assert!(document.contains(&format!("\"{name}\"")), "{command} has no {name}: {document}");
        }
    }
}

#[test]
fn every_command_is_on_the_page() {
    for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        assert!(row(name).is_some(), "{name} is not in the table");
    }
    assert!(row("no-such-command").is_none());
}
