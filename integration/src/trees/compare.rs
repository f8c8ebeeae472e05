//! Says where two trees differ, file by file and property by property.

use std::fmt;

use super::{Node, Tree};

/// One property of one file that is not the same in both trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The file.
    pub path: Vec<u8>,
    /// What differs.
    pub what: &'static str,
    /// In the first tree.
    pub first: String,
    /// In the second tree.
    pub second: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, what, first, second } = self;
        write!(f, "/{}: {what}: {first} and {second}", path.escape_ascii())
    }
}

/// All differences, by path. Trees that are the same have none.
pub fn differences(first: &Tree, second: &Tree) -> Vec<Difference> {
    let mut found = Vec::new();
    for (path, node) in first {
        match second.get(path) {
            Some(other) => compare(path, node, other, &mut found),
            None => found.push(missing(path, "there", "missing")),
        }
    }
    let only_second = second.keys().filter(|path| !first.contains_key(*path));
    found.extend(only_second.map(|path| missing(path, "missing", "there")));
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn missing(path: &[u8], first: &str, second: &str) -> Difference {
    Difference { path: path.to_owned(), what: "file", first: first.to_owned(), second: second.to_owned() }
}

fn compare(path: &[u8], first: &Node, second: &Node, found: &mut Vec<Difference>) {
    let named = |node: &Node| {
        let xattrs = node.xattrs.iter();
        let xattrs: Vec<String> =
            xattrs.map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii())).collect();
        [
            ("type", format!("{:o}", node.mode & 0o170_000)),
            ("permissions", format!("{:o}", node.mode & 0o7777)),
            ("owner", node.uid.to_string()),
            ("group", node.gid.to_string()),
            ("size", format!("{:?}", node.size)),
            ("device", format!("{:#x}", node.device)),
            ("links", node.links.to_string()),
            ("same file as", node.twin.escape_ascii().to_string()),
            ("time", format!("{:?}", node.changed)),
            ("extended attributes", format!("[{}]", xattrs.join(" "))),
            ("content", format!("{:?}", node.content)),
        ]
    };
    // Most files are the same: words are made for those that are not.
    if first != second {
        for ((what, first), (_, second)) in named(first).into_iter().zip(named(second)) {
            if first != second {
                found.push(Difference { path: path.to_owned(), what, first, second });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Changed, Content};
    use super::*;

    fn file() -> Node {
        Node {
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            size: Some(1),
            device: 0,
            links: 1,
            twin: b"a".to_vec(),
            changed: Changed::At(1, 2),
            xattrs: BTreeMap::from([(b"user.a".to_vec(), b"1".to_vec())]),
            content: Content::Digest([0; 32]),
        }
    }

    /// One property that is another, and what that is called.
    type Case = (fn(&mut Node), &'static str);

    #[test]
    fn every_property_counts() {
        let cases: [Case; 14] = [
            (|node| node.mode = 0o120_644, "type"),
            (|node| node.mode |= 0o4000, "permissions"),
            (|node| node.uid = 1, "owner"),
            (|node| node.gid = 1, "group"),
            (|node| node.size = Some(2), "size"),
            (|node| node.device = 0x103, "device"),
            (|node| node.links = 2, "links"),
            (|node| node.twin = b"b".to_vec(), "same file as"),
            (|node| node.changed = Changed::At(1, 3), "time"),
            (|node| node.changed = Changed::Meanwhile, "time"),
            (|node| drop(node.xattrs.insert(b"user.a".to_vec(), b"2".to_vec())), "extended attributes"),
            (|node| drop(node.xattrs.insert(b"user.b".to_vec(), b"".to_vec())), "extended attributes"),
            (|node| node.content = Content::Digest([0xff; 32]), "content"),
            (|node| node.content = Content::Target(b"x".to_vec()), "content"),
        ];
        let first = Tree::from([(b"a".to_vec(), file())]);
        assert_eq!(differences(&first, &first), []);
        for (change, what) in cases {
            let mut second = first.clone();
            second.values_mut().for_each(change);
            for (one, other) in [(&first, &second), (&second, &first)] {
                let found = differences(one, other);
                assert_eq!(found.iter().map(|d| d.what).collect::<Vec<_>>(), [what]);
                assert_ne!(found[0].first, found[0].second);
            }
        }
    }

    #[test]
    fn files_of_one_tree_only_count() {
        let (a, b) = (Tree::from([(b"a".to_vec(), file())]), Tree::from([(b"b\xff".to_vec(), file())]));
        let found: Vec<String> = differences(&a, &b).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["/a: file: there and missing", "/b\\xff: file: missing and there"]);
    }
}
