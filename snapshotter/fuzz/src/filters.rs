//! Filters: any text is parsed or refused with a reason, and any value can be asked for by quoting it.

use capsuled::filters::{Fields, Filters};

/// An item whose every field but those of path `absent` has the value.
struct Item<'a>(&'a str);

impl Fields for Item<'_> {
    fn field(&self, path: &[Vec<u8>]) -> Option<&str> {
        if path.first().is_some_and(|field| field == b"absent") { None } else { Some(self.0) }
    }
}

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    parse_and_match(text);
    ask_for(text);
}

fn parse_and_match(text: &str) {
    match Filters::parse(&[text]) {
        Ok(filters) => {
            let either = Filters::parse(&[text, ""]).map(|filters| filters.matches(&Item(text)));
            assert_eq!(either, Ok(true), "an empty filter beside it matches everything");
            for value in ["", "a", text] {
                assert_eq!(filters.matches(&Item(value)), filters.matches(&Item(value)));
            }
            // A comma is "and": with a filter that matches nothing, nothing matches.
            if !text.is_empty() && text.trim_end() == text {
                let narrowed = Filters::parse(&[format!("absent,{text}")]).map(|f| f.matches(&Item("a")));
                assert_ne!(narrowed, Ok(true), "{text:?}");
            }
        }
        Err(error) => assert!(error.to_string().starts_with("filters: parse error: ["), "{error}"),
    }
}

/// Go's quoting spells every byte.
fn ask_for(value: &str) {
    let quoted: String = value.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
    for (operator, wanted) in [("==", true), ("!=", false)] {
        let filters =
            Filters::parse(&[format!("name{operator}\"{quoted}\"")]).expect("a quoted value parses");
        assert_eq!(filters.matches(&Item(value)), wanted, "{operator} {value:?}");
        assert_eq!(filters.matches(&Item(&format!("{value}+"))), !wanted, "{operator} {value:?}");
    }
}
