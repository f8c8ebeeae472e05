//! Layers of everything that images seldom hold and a snapshotter must not harm.
//!
//! Their lowest is busybox. What is in a layer by its time of unpacking alone (folders that it names only in paths)
//! is here too.

use super::layer::Entry;

/// `cap_net_raw`, effective and permitted, as `setcap` writes it: `struct vfs_cap_data` of version 2 in
/// linux/capability.h.
pub const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The same for the root of a user namespace, whose id follows: version 3.
const NET_RAW_OF_100000: [u8; 24] =
    [1, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa0, 0x86, 1, 0];
/// An access list that grants user 7 reading: version 2 of `struct posix_acl_xattr_header` and its entries.
const ACCESS_LIST: [u8; 44] = [
    2, 0, 0, 0, // version
    1, 0, 6, 0, 255, 255, 255, 255, // the owner: read and write
    2, 0, 4, 0, 7, 0, 0, 0, // user 7: read
    4, 0, 4, 0, 255, 255, 255, 255, // the group: read
    16, 0, 4, 0, 255, 255, 255, 255, // at most: read
    32, 0, 4, 0, 255, 255, 255, 255, // others: read
];

/// Where everything lies but what must lie elsewhere.
const AT: &str = "srv/odd";

fn at(path: &str) -> String {
    format!("{AT}/{path}")
}

/// All layers above busybox, lowest first. `busybox` is its program's content.
pub fn layers(busybox: &[u8]) -> Vec<Vec<Entry>> {
    vec![
        kinds(),
        names(),
        attributes(busybox),
        victims(),
        replacements(),
        whiteouts(),
        opaque(),
        again(),
        without_parents(),
        metadata_only(),
        many(),
    ]
}

/// Every type of file and every bit of a mode.
fn kinds() -> Vec<Entry> {
    let mut layer = vec![Entry::folder("srv"), Entry::folder(AT), Entry::folder(at("kinds"))];
    let at = |name: &str| at(&format!("kinds/{name}"));
    for mode in [0, 0o1, 0o444, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777] {
        layer.push(Entry::file(at(&format!("file-{mode:o}")), format!("{mode}")).mode(mode));
        layer.push(Entry::folder(at(&format!("folder-{mode:o}"))).mode(mode));
        layer.push(Entry::file(at(&format!("folder-{mode:o}/inside")), ""));
    }
    layer.extend([
        Entry::fifo(at("fifo")).mode(0o622),
        Entry::character_device(at("null"), 1, 3).mode(0o666),
        Entry::character_device(at("large"), 4000, 1_000_000),
        Entry::block_device(at("block"), 7, 200).owner(0, 6),
        Entry::file(at("empty"), ""),
        Entry::sparse(at("sparse"), 8 << 20, 3 << 20, "in the middle"),
        Entry::file(at("zeros"), vec![0; 1 << 20]),
    ]);
    for (name, to) in [
        ("loop-a", "loop-b"),
        ("loop-b", "loop-a"),
        ("self", "self"),
        ("up", "../../../../../.."),
        ("absolute", "/etc/passwd"),
        ("dangling", "no/such/file"),
    ] {
        layer.push(Entry::symlink(at(name), to).owner(12, 34).mtime(99, 5));
    }
    layer.push(Entry::symlink(at("long"), "x/".repeat(1500)));
    // One file by three names in two folders, and what is no regular file by two.
    layer.push(Entry::file(at("first"), "one file").mode(0o640).owner(1, 2).mtime(5, 6));
    for link in ["second", "folder-2755/third"] {
        layer.push(Entry::hard_link(at(link), at("first")).mode(0o640).owner(1, 2).mtime(5, 6));
    }
    layer.push(Entry::hard_link(at("fifo-2"), at("fifo")).mode(0o622));
    layer.push(Entry::hard_link(at("null-2"), at("null")).mode(0o666));
    layer
}

/// Names of every length and of every byte that a name may have.
fn names() -> Vec<Entry> {
    let mut layer = vec![Entry::folder(at("names"))];
    for name in [
        b"\xff\xfe not UTF-8".as_slice(),
        b"line\nbreak",
        b"back\\slash",
        b"col:on,comma=",
        b" spaces ",
        b"-dash",
        b"...",
        b"\x01\x7f",
        "caf\u{e9} \u{65e5}\u{672c}".as_bytes(),
        "cafe\u{301}".as_bytes(), // as the letter above, in two characters
    ] {
        let path = [at("names/").as_bytes(), name].concat();
        layer.push(Entry::folder(&path));
        layer.push(Entry::file([&path, b"/".as_slice(), name].concat(), name));
        layer.push(Entry::symlink([&path, b"-link".as_slice()].concat(), name));
    }
    layer.push(Entry::file(at(&format!("names/{}", "n".repeat(255))), "long"));
    layer.push(Entry::hard_link(
        at(&format!("names/{}", "l".repeat(255))),
        at(&format!("names/{}", "n".repeat(255))),
    ));
    // 3.5 KiB: with what a snapshotter and a mount put before it, still a path.
    let mut path = at("names");
    for depth in 0..14 {
        path = format!("{path}/{depth:0>250}");
        layer.push(Entry::folder(&path));
    }
    layer.push(Entry::file(format!("{path}/end"), "deep"));
    layer
}

/// Owners, times and extended attributes.
fn attributes(busybox: &[u8]) -> Vec<Entry> {
    let mut layer = vec![Entry::folder(at("attributes"))];
    let at = |name: &str| at(&format!("attributes/{name}"));
    for owner in [1000, 65534, 65536, 3_000_000_000, 4_294_967_294] {
        layer.push(Entry::file(at(&format!("owner-{owner}")), "").owner(owner, owner - 1).mode(0o6755));
    }
    for (seconds, nanoseconds) in [
        (0, 1),
        (1, 999_999_999),
        (-1, 0),
        (-100_000_000_000, 5),
        (1 << 33, 123_456_789),
        (1_700_000_000, 100),
    ] {
        layer.push(Entry::file(at(&format!("time-{seconds}")), "").mtime(seconds, nanoseconds));
        layer.push(Entry::folder(at(&format!("folder-time-{seconds}"))).mtime(seconds, nanoseconds));
        layer.push(Entry::file(at(&format!("folder-time-{seconds}/inside")), ""));
    }
    layer.extend([
        Entry::file(at("busybox-raw"), busybox).mode(0o755).xattr("security.capability", NET_RAW),
        Entry::file(at("raw-in-namespace"), "").mode(0o755).xattr("security.capability", NET_RAW_OF_100000),
        Entry::file(at("user"), "")
            .xattr("user.a", "1")
            .xattr("user.empty", "")
            .xattr("user.bytes", [0, 255, 10, 61]),
        Entry::file(at("large"), "").xattr("user.large", vec![b'x'; 3000]),
        Entry::file(at("list"), "").mode(0o644).xattr("system.posix_acl_access", ACCESS_LIST),
        Entry::folder(at("folder"))
            .xattr("user.a", "1")
            .xattr("trusted.a", "2")
            .xattr("system.posix_acl_default", ACCESS_LIST),
        Entry::symlink(at("link"), "user").xattr("trusted.a", "of the link"),
        Entry::fifo(at("fifo")).xattr("trusted.a", "of the fifo"),
    ]);
    layer
}

/// What the layers above change.
fn victims() -> Vec<Entry> {
    let mut layer = vec![Entry::folder(at("changed"))];
    let at = |name: &str| at(&format!("changed/{name}"));
    for name in
        ["file-to-folder", "file-to-link", "file-to-fifo", "removed", "removed-again", "kept", "attributes"]
    {
        layer.push(Entry::file(at(name), name).owner(5, 6).xattr("user.a", name));
    }
    layer.push(Entry::file(at(&"w".repeat(251)), "its whiteout's name is as long as a name may be"));
    for name in [
        "folder-to-file",
        "folder-to-link",
        "removed-folder",
        "opaque",
        "opaque-empty",
        "opaque-late",
        "kept-folder",
        "attributes-folder",
    ] {
        layer.push(Entry::folder(at(name)).mode(0o750).owner(7, 8).mtime(11, 12).xattr("user.a", name));
        layer.push(Entry::folder(at(&format!("{name}/inner"))).mode(0o700).mtime(13, 14));
        layer.push(Entry::file(at(&format!("{name}/inner/file")), name));
        layer.push(Entry::file(at(&format!("{name}/file")), name));
    }
    layer.push(Entry::symlink(at("link-to-folder"), "kept-folder"));
    layer.push(Entry::symlink(at("link-to-file"), "kept"));
    layer.push(Entry::symlink(at("link-on-the-way"), "kept-folder"));
    layer.push(Entry::file(at("name-1"), "by three names"));
    layer.push(Entry::hard_link(at("name-2"), at("name-1")));
    layer.push(Entry::hard_link(at("name-3"), at("name-1")));
    layer
}

/// A type in the place of another.
fn replacements() -> Vec<Entry> {
    let at = |name: &str| at(&format!("changed/{name}"));
    vec![
        Entry::folder(at("file-to-folder")),
        Entry::file(at("file-to-folder/new"), "new"),
        Entry::symlink(at("file-to-link"), "kept"),
        Entry::fifo(at("file-to-fifo")),
        Entry::file(at("folder-to-file"), "new"),
        Entry::symlink(at("folder-to-link"), "kept-folder"),
        Entry::folder(at("link-to-folder")),
        Entry::file(at("link-to-folder/new"), "new"),
        Entry::file(at("link-to-file"), "new"),
        // Only this name changes.
        Entry::file(at("name-2"), "by itself"),
        // A member below what is a link in a lower layer: overlayfs makes it a folder.
        Entry::file(at("link-on-the-way/new"), "new"),
    ]
}

/// Files and folders removed, by the names that the format gives.
fn whiteouts() -> Vec<Entry> {
    let changed = at("changed");
    vec![
        Entry::removed(&changed, "removed"),
        Entry::removed(&changed, "removed-again"),
        Entry::removed(&changed, "removed-folder"),
        Entry::removed(&changed, "name-3"),
        Entry::removed(&changed, "never-there"),
        Entry::removed(&changed, &"w".repeat(251)),
        Entry::removed(&at("changed/kept-folder/inner"), "file"),
        // To overlayfs a device of this number is a whiteout, whoever made it.
        Entry::character_device(at("kinds/zeros"), 0, 0),
    ]
}

/// Folders whose lower content is hidden, with the mark before, after and instead of new content.
fn opaque() -> Vec<Entry> {
    let at = |name: &str| at(&format!("changed/{name}"));
    vec![
        Entry::folder(at("opaque")).mode(0o711),
        Entry::opaque(&at("opaque")),
        Entry::file(at("opaque/file"), "of the upper layer"),
        Entry::opaque(&at("opaque-empty")),
        Entry::folder(at("opaque-late")),
        Entry::file(at("opaque-late/new"), "before the mark"),
        Entry::opaque(&at("opaque-late")),
    ]
}

/// What was removed, there again; and a whiteout in the layer that has the file too.
fn again() -> Vec<Entry> {
    let changed = at("changed");
    let at = |name: &str| format!("{changed}/{name}");
    vec![
        Entry::file(at("removed-again"), "again").mtime(77, 0),
        Entry::folder(at("removed-folder")),
        Entry::file(at("removed-folder/new"), "only this"),
        Entry::file(at("opaque/inner"), "a folder far below"),
        Entry::removed(&changed, "kept-folder"),
        Entry::folder(at("kept-folder")),
        Entry::file(at("kept-folder/file"), "after its whiteout"),
    ]
}

/// Members whose folders are no members: they are made, with the attributes of the layer below where it has them.
fn without_parents() -> Vec<Entry> {
    vec![
        Entry::file(at("changed/attributes-folder/inner/new"), "new"),
        Entry::file(at("of/no/layer"), "new"),
        Entry::file(at("attributes/folder/new"), "below a folder with an access list for what is new"),
        Entry::removed(&at("changed/attributes-folder"), "file"),
    ]
}

/// Nothing new but attributes.
fn metadata_only() -> Vec<Entry> {
    vec![
        Entry::folder(at("changed/attributes-folder"))
            .mode(0o1700)
            .owner(9, 10)
            .mtime(21, 22)
            .xattr("user.b", "new"),
        Entry::file(at("changed/attributes"), "attributes").mode(0o4711).owner(11, 12).mtime(23, 24),
    ]
}

/// More files than a folder's block has room for.
fn many() -> Vec<Entry> {
    let mut layer = vec![Entry::folder(at("many"))];
    layer.extend((0..2000).map(|n| Entry::file(at(&format!("many/file-{n}")), vec![b'x'; n % 7])));
    layer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_can_be_written() {
        let layers = layers(b"busybox");
        assert!(layers.len() > 10);
        for layer in layers {
            assert!(super::super::layer::archive(&layer).unwrap().len() > 1024);
        }
    }
}
