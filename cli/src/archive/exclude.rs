//! Decides which paths of a tree are left out. Pure: text in, a matcher out.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// A line that is no pattern.
#[derive(Debug, PartialEq, Eq)]
pub struct BadPattern {
    /// Counted from 1.
    pub line: usize,
    pub what: String,
}

/// What is not part of the tree: some paths for what they are, others by patterns.
#[derive(Debug)]
pub struct Exclude {
    own: BTreeSet<Vec<u8>>,
    patterns: Gitignore,
}

impl Exclude {
    /// The patterns of an ignore file, in the syntax of gitignore(5), and exact paths that no pattern brings back.
    ///
    /// # Errors
    /// [`BadPattern`] for the first line that could match nothing: git passes over it, and what it was meant to
    /// keep out would be published.
    pub fn parse(text: &[u8], own: BTreeSet<Vec<u8>>) -> Result<Self, BadPattern> {
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        let mut builder = GitignoreBuilder::new("");
        builder.allow_unclosed_class(false);
        let mut last = 0;
        for (index, line) in text.split(|b| *b == b'\n').enumerate() {
            last = index + 1;
            let bad = |what| BadPattern { line: index + 1, what };
            let line = std::str::from_utf8(line).map_err(|_| bad("it is not UTF-8".to_owned()))?;
            let line = escape_braces(line.strip_suffix('\r').unwrap_or(line));
            builder.add_line(None, &line).map_err(|e| bad(reason(&e)))?;
        }
        let patterns = builder.build().map_err(|e| BadPattern { line: last, what: reason(&e) })?;
        Ok(Self { own, patterns })
    }

    /// Whether the path, relative to the tree's root, is left out. As in git the last pattern that matches decides.
    ///
    /// For a directory that is left out nobody asks about what is below it, so nothing there can be brought back.
    pub fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        self.own.contains(path) || self.patterns.matched(OsStr::from_bytes(path), is_dir).is_ignore()
    }
}

fn reason(error: &ignore::Error) -> String {
    match error {
        ignore::Error::Glob { err, .. } => err.clone(),
        other => other.to_string(),
    }
}

/// The crate reads `{a,b}` as "a or b"; gitignore(5) gives braces no meaning.
fn escape_braces(pattern: &str) -> String {
    let mut escaped = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            '[' => class_length(rest),
            _ => c.len_utf8(),
        };
        if matches!(c, '{' | '}') {
            escaped.push('\\');
        }
        escaped.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    escaped
}

/// Bytes of the `[…]` that the text begins with; all of it when the class is not closed.
fn class_length(text: &str) -> usize {
    let negation = usize::from(text[1..].starts_with(['!', '^']));
    // A bracket in the first place is a member.
    let mut at = 1 + negation + usize::from(text[1 + negation..].starts_with(']'));
    while let Some(c) = text[at..].chars().next() {
        let named = text[at..].strip_prefix("[:").and_then(|name| name.find(":]"));
        at += named.map_or(c.len_utf8(), |name| name + 4);
        if c == ']' {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether a walk that enters no excluded directory reaches the path; a directory ends in a slash.
    fn is_left_out(patterns: &str, path: &str) -> bool {
        let exclude = Exclude::parse(patterns.as_bytes(), BTreeSet::new()).expect("patterns");
        let (path, is_dir) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        let parents = path.match_indices('/').map(|(end, _)| &path[..end]);
        parents.into_iter().any(|parent| exclude.excludes(parent.as_bytes(), true))
            || exclude.excludes(path.as_bytes(), is_dir)
    }

    /// Each row was asked of `git check-ignore` (2.39) too.
    #[test]
    fn patterns_mean_what_they_mean_to_git() {
        for (patterns, out, kept) in [
            ("", &[][..], &["a"][..]),
            ("# a\n\n   \n", &[], &["a", "# a"]),
            ("\\#a", &["#a"], &["a"]),
            ("*.o", &["a.o", "d/a.o", "d.o/x", ".o"], &["a.c", "o"]),
            ("/a", &["a", "a/x"], &["d/a"]),
            ("a/b", &["a/b", "a/b/c"], &["d/a/b", "b"]),
            ("a/", &["a/", "a/x", "d/a/x"], &["a", "d/a"]),
            ("a/*", &["a/b", "a/b/c"], &["a/", "d/a/b"]),
            ("a/**", &["a/b", "a/b/c"], &["a/", "b/a/c"]),
            ("**/a/b", &["a/b", "d/a/b", "d/e/a/b"], &["b"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["b", "ab", "d/a/b"]),
            ("*\n!a", &["b", "d/", "d/a"], &["a"]),
            ("d\n!d/a", &["d/", "d/a"], &["a"]),
            ("d/*\n!d/a", &["d/b"], &["d/", "d/a"]),
            ("!a\na", &["a"], &[]),
            ("\\!a", &["!a"], &["a"]),
            ("a  ", &["a"], &["a  "]),
            ("a\\ ", &["a "], &["a"]),
            ("a\r\nb\r", &["a", "b"], &["a\r"]),
            ("a?c", &["abc"], &["ac", "a/c"]),
            ("[a-c]x", &["ax", "d/cx"], &["dx"]),
            ("[!a]x", &["bx"], &["ax"]),
            ("[]{]x", &["]x", "{x"], &["ax", "[x"]),
            ("[[:digit:]{]x", &["1x", "{x"], &["ax"]),
            ("{{name}}/", &["{{name}}/", "{{name}}/a"], &["name/", "name"]),
            ("{a,b}", &["{a,b}"], &["a", "b"]),
            ("\\{a", &["{a"], &["a", "\\{a"]),
            ("é{", &["é{"], &["é"]),
            ("\u{feff}a", &["a"], &["b"]),
        ] {
            for path in out {
                assert!(is_left_out(patterns, path), "{patterns:?} leaves out {path:?}");
            }
            for path in kept {
                assert!(!is_left_out(patterns, path), "{patterns:?} keeps {path:?}");
            }
        }
    }

    #[test]
    fn names_are_bytes() {
        let exclude = Exclude::parse(b"*.tmp", BTreeSet::new()).expect("patterns");
        assert!(exclude.excludes(b"\xff\xfe.tmp", false));
        assert!(!exclude.excludes(b"\xff\xfe", false));
    }

    #[test]
    fn no_pattern_brings_back_what_is_left_out_for_what_it_is() {
        let own = BTreeSet::from([b"capsule.toml".to_vec()]);
        let exclude = Exclude::parse(b"!capsule.toml\n!*", own).expect("patterns");
        assert!(exclude.excludes(b"capsule.toml", false));
        assert!(!exclude.excludes(b"d/capsule.toml", false));
    }

    #[test]
    fn what_is_no_pattern_has_its_line() {
        for (text, line, what) in [
            (&b"a\n[b"[..], 2, "unclosed character class"),
            (b"[z-a]", 1, "invalid range"),
            (b"\n\na\\", 3, "dangling '\\'"),
            (b"a\n\xff\nb", 2, "not UTF-8"),
        ] {
            let bad = Exclude::parse(text, BTreeSet::new()).expect_err(what);
            assert_eq!(bad.line, line, "{bad:?}");
            assert!(bad.what.contains(what), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_text_is(text in "[\\\\\\[\\]!^:{}a-cé\r\n ]{0,30}", path in "[{}a-c]{1,4}") {
            let bytes = text.as_bytes();
            match Exclude::parse(bytes, BTreeSet::new()) {
                Ok(exclude) => { exclude.excludes(path.as_bytes(), false); }
                Err(bad) => prop_assert!((1..=bytes.split(|b| *b == b'\n').count()).contains(&bad.line)),
            }
            let plain = text.replace(['{', '}'], "");
            prop_assert_eq!(escape_braces(&plain), plain);
            let literal = Exclude::parse(path.as_bytes(), BTreeSet::new());
            prop_assert!(literal.is_ok_and(|l| l.excludes(path.as_bytes(), false)), "{:?} is itself", path);
        }
    }
}
