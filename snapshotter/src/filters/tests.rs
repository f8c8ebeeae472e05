//! The table of containerd's `filter_test.go`, and properties that hold for any input.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Entry {
    name: &'static str,
    other: &'static str,
    labels: BTreeMap<&'static str, &'static str>,
}

impl Fields for Entry {
    fn field(&self, path: &[Vec<u8>]) -> Option<&str> {
        let present = |value: &'static str| (!value.is_empty()).then_some(value);
        match path.first()?.as_slice() {
            b"name" => present(self.name),
            b"other" => present(self.other),
            b"labels" => {
                let key = String::from_utf8(path[1..].join(&b'.')).ok()?;
                self.labels.get(key.as_str()).copied()
            }
            _ => None,
        }
    }
}

fn corpus() -> Vec<Entry> {
    let named = |name| Entry { name, ..Entry::default() };
    let labelled = |name, labels: &[(&'static str, &'static str)]| Entry {
        labels: labels.iter().copied().collect(),
        ..named(name)
    };
    vec![
        labelled("foo", &[("foo", "true")]),
        named("bar"),
        labelled("foo", &[("foo", "present"), ("more complex label", "present")]),
        labelled("bar", &[("bar", "true")]),
        labelled("fooer", &[("more complex label with \\ and \"", "present")]),
        labelled("fooer", &[("more complex label with \\ and \".post", "present")]),
        Entry { other: "too complex, yo", ..named("baz") },
        Entry { other: "abc", ..named("bazo") },
        labelled("compound", &[("foo", "omg_asdf.asdf-qwer")]),
    ]
}

fn matching(filter: &Filters) -> Vec<usize> {
    let matches = |(index, entry): (usize, Entry)| filter.matches(&entry).then_some(index);
    corpus().into_iter().enumerate().filter_map(matches).collect()
}

#[test]
fn filters_match_what_containerd_matches() {
    let all: &[usize] = &[0, 1, 2, 3, 4, 5, 6, 7, 8];
    let cases: [(&str, &[usize]); 22] = [
        ("", all),
        ("name", all),
        ("labels.foo", &[0, 2, 8]),
        ("labels.foo,name", &[0, 2, 8]),
        ("labels.foo==true", &[0]),
        ("labels.foo==omg_asdf.asdf-qwer", &[8]),
        ("name==bar", &[1, 3]),
        ("name!=bar", &[0, 2, 4, 5, 6, 7, 8]),
        ("name==bar,labels.bar", &[3]),
        (r#"other=="too complex, yo""#, &[6]),
        ("other~=[abc]+,name!=foo", &[6, 7]),
        ("other~=/[abc]+/,name!=foo", &[6, 7]),
        ("other~=/[abc]{1,2}/,name!=foo", &[6, 7]),
        (r#"other~=/[abc]{0,1}"\//,name!=foo"#, &[]),
        ("name==bar,labels.bar==true", &[3]),
        ("name==bar,labels.bar==wrong", &[]),
        (r#"name==foo,labels."more complex label""#, &[2]),
        (r#"labels."more complex label with \\ and \""==present"#, &[4]),
        (r#"labels."more complex label with \\ and \"".post==present"#, &[5]),
        // Ours: an absent field is not equal to anything, but unequal to everything but "".
        (r#"other!="""#, &[6, 7]),
        ("name ==  \"b\\x61r\", labels.bar", &[3]),
        ("other~=(", &[]),
    ];
    for (text, expected) in cases {
        assert_eq!(matching(&Filters::parse(&[text]).unwrap()), expected, "{text}");
    }
}

#[test]
fn mistakes_are_reported_as_containerd_reports_them() {
    let cases = [
        (
            "labels.|foo|==omg_asdf.asdf-qwer",
            "[labels. >|||< foo|==omg_asdf.asdf-qwer]: invalid quote encountered",
        ),
        (
            r#"labels.?"more complex label with \\ and \"".post==present"#,
            r#"[labels. >|?|< "more complex label with \\ and \"".post==present]: expected field or quoted"#,
        ),
        ("name==foo,", "[name==foo,]: expected field or quoted"),
        ("labels.", "[labels.]: expected field or quoted"),
        ("image~=,id?=?fbaq", "[image~= >|,|< id?=?fbaq]: expected value or quoted"),
        ("labels.ns/key==value", "[labels.ns >|/|< key==value]: quoted literal not terminated"),
        ("labels.key==/value", "[labels.key== >|/|< value]: quoted literal not terminated"),
        ("name==foo ,name", "[name==foo >| |< ,name]: unexpected input:  "),
        ("name=foo", "[name >|=|< foo]: unsupported operator \"=\""),
        ("name==\"\\q\"", "[name== >|\"|< \\q\"]: illegal escape sequence"),
    ];
    for (text, expected) in cases {
        let error = Filters::parse(&[text]).unwrap_err().to_string();
        assert_eq!(error, format!("filters: parse error: {expected}"));
    }
}

#[test]
fn several_filters_are_alternatives() {
    let filter = Filters::parse(&["name==bar", "labels.foo==true"]).unwrap();
    assert_eq!(matching(&filter), [0, 1, 3]);
    let none: [&str; 0] = [];
    assert_eq!(matching(&Filters::parse(&none).unwrap()).len(), corpus().len());
}

#[test]
fn escapes_spell_bytes_and_code_points() {
    let cases: [(&str, Option<&[u8]>); 8] = [
        (r#""\x41\101\u00e9\U0001F600\n""#, Some("AAé😀\n".as_bytes())),
        (r#""\xff""#, Some(&[0xff])),
        (r#""\ud800""#, Some("\u{fffd}".as_bytes())),
        (r#""\400""#, None),
        (r#""\/""#, None),
        (r"/\//", Some(b"/")),
        (r#""\x+1""#, None),
        ("\"", None),
    ];
    for (literal, expected) in cases {
        assert_eq!(quote::unquote(literal).as_deref(), expected, "{literal}");
    }
}

/// Quotes as Go's `%q` does for these characters.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

struct One(String);

impl Fields for One {
    fn field(&self, path: &[Vec<u8>]) -> Option<&str> {
        (path == [b"labels".to_vec(), b"a.b/c".to_vec()]).then_some(self.0.as_str())
    }
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused(text in any::<String>()) {
        let _ = Filters::parse(&[text]).map(|filter| matching(&filter));
    }

    #[test]
    fn any_text_of_the_alphabet_parses_or_is_refused(text in r#"[a.,=!~"/|\\ x0u\n\x00é]{0,24}"#) {
        let _ = Filters::parse(&[text]).map(|filter| matching(&filter));
    }

    #[test]
    fn a_quoted_value_means_itself(value in "[^\u{0}\u{fffd}]*", other in ".*") {
        let equal = Filters::parse(&[format!("labels.\"a.b/c\"=={}", quoted(&value))]).unwrap();
        let unequal = Filters::parse(&[format!("labels.\"a.b/c\"!={}", quoted(&value))]).unwrap();
        prop_assert!(equal.matches(&One(value.clone())));
        prop_assert!(!unequal.matches(&One(value.clone())));
        let same = other == value;
        prop_assert_eq!(equal.matches(&One(other.clone())), same);
        prop_assert_eq!(unequal.matches(&One(other)), !same);
    }

    #[test]
    fn plain_values_need_no_quotes(value in "[A-Za-z0-9_-][A-Za-z0-9_:@+.-]{0,40}") {
        let filter = Filters::parse(&[format!("labels.\"a.b/c\"=={value}")]).unwrap();
        prop_assert!(filter.matches(&One(value)));
    }
}
