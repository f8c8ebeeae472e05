//! containerd's filters, as its documentation of `pkg/filters` has them: what people write, and not every corner.

use regex_lite::Regex;

use super::{Kind, Refusal, Snapshot};

/// All of these must hold.
pub type Filter = Vec<Selector>;

pub struct Selector {
    path: Vec<String>,
    /// Operator and value; presence is asked for when there is none.
    test: Option<(String, String)>,
}

pub fn parse(text: &str) -> Result<Filter, Refusal> {
    let mut rest = text;
    let mut filter = Vec::new();
    while !(filter.is_empty() && text.is_empty()) {
        let (selector, after) = parse_selector(rest).ok_or(Refusal::InvalidArgument)?;
        filter.push(selector);
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None if after.is_empty() => break,
            None => return Err(Refusal::InvalidArgument),
        }
    }
    Ok(filter)
}

fn parse_selector(text: &str) -> Option<(Selector, &str)> {
    let mut path = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = parse_field(rest.trim_start())?;
        path.push(field);
        match after.strip_prefix('.') {
            Some(more) => rest = more,
            None => break rest = after,
        }
    }
    if rest.is_empty() || rest.starts_with(',') {
        return Some((Selector { path, test: None }, rest));
    }
    let rest = rest.trim_start();
    let length = rest.find(|char| !"=!~".contains(char)).unwrap_or(rest.len());
    let (operator, rest) = rest.split_at(length);
    if !["==", "!=", "~="].contains(&operator) {
        return None;
    }
    let (value, rest) = parse_value(rest.trim_start(), operator == "~=")?;
    Some((Selector { path, test: Some((operator.to_owned(), value)) }, rest))
}

fn parse_field(text: &str) -> Option<(String, &str)> {
    if text.starts_with('"') {
        return parse_quoted(text, '"');
    }
    let word = |char: char| char == '_' || char.is_ascii_alphanumeric();
    let length = text.find(|char| !word(char)).unwrap_or(text.len());
    (length > 0).then(|| (text[..length].to_owned(), &text[length..]))
}

fn parse_value(text: &str, any_quote: bool) -> Option<(String, &str)> {
    match text.chars().next()? {
        '"' => parse_quoted(text, '"'),
        quote @ ('/' | '|') => {
            if any_quote {
                parse_quoted(text, quote)
            } else {
                None
            }
        }
        _ => {
            let length = text.find(|char: char| char == ',' || char.is_whitespace()).unwrap_or(text.len());
            (length > 0).then(|| (text[..length].to_owned(), &text[length..]))
        }
    }
}

/// A quoted text. Of Go's escapes those of one letter.
fn parse_quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, char)) = chars.next() {
        match char {
            char if char == quote => return Some((value, &text[at + char.len_utf8()..])),
            '\n' => return None,
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                char if char == quote || char == '\\' => value.push(char),
                _ => return None,
            },
            char => value.push(char),
        }
    }
    None
}

pub fn selects(filter: &Filter, key: &str, snapshot: &Snapshot) -> bool {
    filter.iter().all(|selector| holds(selector, field(&selector.path, key, snapshot)))
}

/// A field's value; presence is told apart from emptiness for labels only.
fn field(path: &[String], key: &str, snapshot: &Snapshot) -> Option<String> {
    match path[0].as_str() {
        "name" => Some(key.to_owned()),
        "parent" => Some(snapshot.parent.clone()),
        "kind" => Some(match snapshot.kind {
            Kind::Active => "active".to_owned(),
            Kind::View => "view".to_owned(),
            Kind::Committed => "committed".to_owned(),
            Kind::Unknown => unreachable!("no snapshot is of an unknown kind"),
        }),
        "labels" => snapshot.labels.get(&path[1..].join(".")).cloned(),
        _ => None,
    }
}

fn holds(selector: &Selector, field: Option<String>) -> bool {
    let Some((operator, value)) = &selector.test else { return field.is_some() };
    match operator.as_str() {
        "==" => field.as_ref() == Some(value),
        "!=" => field.unwrap_or_default() != *value,
        _ => Regex::new(value).is_ok_and(|regex| regex.is_match(&field.unwrap_or_default())),
    }
}
