//! Random trees: the same bytes in whatever order they are made, and read back as they were.

use proptest::sample::Index;

use super::*;

/// A tree as a map from path to what is there. Files of the same content number are one file of several names.
pub(super) type Tree = BTreeMap<Vec<u8>, Node>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Directory { mode: u32 },
    File { number: usize },
    Symlink { target: Vec<u8> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileSpec {
    content: Vec<u8>,
    mode: u32,
    attribute: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct Specimen {
    files: Vec<FileSpec>,
    tree: Tree,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]".prop_map(String::into_bytes),
        2 => "[a-c][-./]?[a-z]{0,3}".prop_map(|s| s.replace('/', "-").into_bytes()),
        1 => Just(b"\xff\xfe\x01".to_vec()),
        1 => (90usize..255, any::<bool>()).prop_map(|(n, utf8)| vec![if utf8 { b'n' } else { 0xe9 }; n]),
    ]
}

fn node(files: usize) -> impl Strategy<Value = Node> {
    let modes = prop_oneof![Just(0o755u32), Just(0o700), Just(0o1777)];
    prop_oneof![
        1 => modes.prop_map(|mode| Node::Directory { mode }),
        4 => any::<Index>().prop_map(move |i| Node::File { number: i.index(files) }),
        2 => proptest::collection::vec(1u8.., 1..150).prop_map(|target| Node::Symlink { target }),
    ]
}

fn file_spec() -> impl Strategy<Value = FileSpec> {
    let content = prop_oneof![
        3 => proptest::collection::vec(any::<u8>(), 0..1500),
        1 => Just(vec![7; 512]),
        1 => Just(vec![0; stream::CHUNK + 13]),
    ];
    let modes = prop_oneof![Just(0o644u32), Just(0o755), Just(0o4755), Just(0o600)];
    let attribute = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
    (content, modes, attribute).prop_map(|(content, mode, attribute)| FileSpec { content, mode, attribute })
}

fn specimen() -> impl Strategy<Value = Specimen> {
    let paths =
        |files| proptest::collection::vec((proptest::collection::vec(name(), 1..4), node(files)), 1..20);
    proptest::collection::vec(file_spec(), 1..5)
        .prop_flat_map(move |files| (Just(files.clone()), paths(files.len())))
        .prop_map(|(files, entries)| {
            let mut tree = Tree::new();
            for (components, node) in entries {
                insert(&mut tree, &components, node);
            }
            Specimen { files, tree }
        })
}

/// Puts a node at a path, its parents as directories; what was there first stays.
fn insert(tree: &mut Tree, components: &[Vec<u8>], node: Node) {
    for depth in 1..components.len() {
        let parent = components[..depth].join(&b'/');
        if !matches!(tree.entry(parent).or_insert(Node::Directory { mode: 0o755 }), Node::Directory { .. }) {
            return;
        }
    }
    tree.entry(components.join(&b'/')).or_insert(node);
}

impl Specimen {
    /// Makes the tree on disk, in the given order, with modification times that follow from `age`.
    fn make(&self, dir: &Path, order: &[Vec<u8>], age: u64) {
        let mut made: BTreeMap<usize, PathBuf> = BTreeMap::new();
        for path in order {
            let at = join(dir, path);
            fs::create_dir_all(at.parent().expect("a parent")).expect("parents");
            match &self.tree[path] {
                Node::Directory { .. } => fs::create_dir_all(&at).expect("a directory"),
                Node::Symlink { target } => {
                    std::os::unix::fs::symlink(OsStr::from_bytes(target), &at).expect("a link");
                }
                Node::File { number } => match made.get(number) {
                    Some(first) => fs::hard_link(first, &at).expect("a hard link"),
                    None => {
                        self.files[*number].make(&at, age);
                        made.insert(*number, at);
                    }
                },
            }
        }
        for (path, node) in &self.tree {
            if let Node::Directory { mode } = node {
                let mode = fs::Permissions::from_mode(*mode);
                fs::set_permissions(join(dir, path), mode).expect("a mode");
            }
        }
    }
}

impl FileSpec {
    fn make(&self, at: &Path, age: u64) {
        fs::write(at, &self.content).expect("a file");
        if let Some(value) = &self.attribute {
            rustix::fs::setxattr(at, "user.test", value, rustix::fs::XattrFlags::empty())
                .expect("user attributes on the temporary directory's file system (tmpfs: Linux 6.6)");
        }
        fs::set_permissions(at, fs::Permissions::from_mode(self.mode)).expect("a mode");
        let mtime = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + age * self.content.len() as u64);
        File::options().write(true).open(at).and_then(|f| f.set_modified(mtime)).expect("a time");
    }
}

/// What another reader finds in an archive: the tree, in which hard links share a file again.
///
/// The headers are read by the `tar` crate, the extended ones here: the crate takes a newline inside a value for
/// the value's end, POSIX and containerd go by the length.
pub(super) fn read_back(bytes: &[u8]) -> (Tree, Vec<FileSpec>, Vec<Vec<u8>>) {
    let (mut tree, mut files, mut order) = (Tree::new(), Vec::new(), Vec::new());
    let mut records = BTreeMap::new();
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().expect("entries").raw(true) {
        let mut entry = entry.expect("an entry");
        let header = entry.header().clone();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("content");
        if header.entry_type() == tar::EntryType::XHeader {
            records = parse_records(&content);
            continue;
        }
        let mut record = |key: &str| records.remove(key);
        assert_eq!(header.mtime().expect("a time"), OPTIONS.mtime);
        assert_eq!((header.uid().expect("a uid"), header.gid().expect("a gid")), (0, 0));
        let name = record("path").unwrap_or_else(|| header.path_bytes().into_owned());
        let link = record("linkpath").or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        let path = name.strip_suffix(b"/").unwrap_or(&name).to_vec();
        let mode = header.mode().expect("a mode");
        let node = match header.entry_type() {
            tar::EntryType::Directory => Node::Directory { mode },
            tar::EntryType::Symlink => Node::Symlink { target: link.expect("a target") },
            tar::EntryType::Link => tree[&link.expect("a target")].clone(),
            tar::EntryType::Regular => {
                files.push(FileSpec { content, mode, attribute: record("SCHILY.xattr.user.test") });
                Node::File { number: files.len() - 1 }
            }
            other => panic!("unexpected type {other:?}"),
        };
        records.remove("hdrcharset");
        assert!(records.is_empty(), "{records:?}");
        order.push(path.clone());
        assert!(tree.insert(path, node).is_none(), "twice: {name:?}");
    }
    (tree, files, order)
}

/// `LENGTH KEY=VALUE\n`, one after the other.
pub(super) fn parse_records(mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let digits = bytes.iter().position(|b| *b == b' ').expect("a space");
        let length: usize = String::from_utf8_lossy(&bytes[..digits]).parse().expect("a length");
        let record = bytes[digits + 1..length].strip_suffix(b"\n").expect("a newline");
        let equals = record.iter().position(|b| *b == b'=').expect("an equals sign");
        let key = String::from_utf8(record[..equals].to_vec()).expect("UTF-8");
        assert!(records.insert(key, record[equals + 1..].to_vec()).is_none());
        bytes = &bytes[length..];
    }
    records
}

/// File numbers by order of path, so that two trees can be compared.
fn normal(tree: &Tree, files: &[FileSpec]) -> (Tree, Vec<FileSpec>) {
    let mut numbers = BTreeMap::new();
    let mut kept = Vec::new();
    let tree = tree.iter().map(|(path, node)| {
        let node = match node {
            Node::File { number } => {
                let next = kept.len();
                let number = *numbers.entry(*number).or_insert_with(|| {
                    kept.push(files[*number].clone());
                    next
                });
                Node::File { number }
            }
            other => other.clone(),
        };
        (path.clone(), node)
    });
    (tree.collect(), kept)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn same_tree_same_bytes_and_read_back((specimen, shuffled) in specimen().prop_flat_map(|s| {
        let paths: Vec<_> = s.tree.keys().cloned().collect();
        (Just(s), Just(paths).prop_shuffle())
    })) {
        let sorted: Vec<_> = specimen.tree.keys().cloned().collect();
        let (one, two) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        specimen.make(one.path(), &sorted, 1);
        specimen.make(two.path(), &shuffled, 60);
        let bytes = archive_of(one.path());
        prop_assert_eq!(bytes.len() % 512, 0);
        prop_assert!(bytes == archive_of(two.path()), "the archives differ");

        let (tree, files, order) = read_back(&bytes);
        prop_assert!(order.is_sorted(), "{:?}", order);
        prop_assert_eq!(normal(&tree, &files), normal(&specimen.tree, &specimen.files));
    }
}
