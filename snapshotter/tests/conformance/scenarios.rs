//! The expectations. Each runs on a subject without snapshots of the scenario.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, chown},
    path::Path,
    process::Command,
    time::SystemTime,
};

use capsule_proto::containerd::{services::snapshots::v1::Kind, types::Mount};
use tonic::{Code, Status};

use super::subject::{Labels, Subject, labels};

fn none() -> Labels {
    Labels::new()
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

/// The value of an option such as `upperdir=`.
fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

/// Prepares `name-key` on `parent`, lets `write` fill its directory, and commits it as `name`.
async fn layer(subject: &mut Subject, name: &str, parent: &str, write: impl FnOnce(&Path)) {
    let key = format!("{name}-key");
    let mounts = subject.prepare(&key, parent, none()).await.unwrap();
    let upper = option(&mounts[0], "upperdir").unwrap_or(&mounts[0].source);
    write(Path::new(upper));
    subject.commit(name, &key, none()).await.unwrap();
}

pub async fn a_layer_is_prepared_committed_and_built_upon(subject: &mut Subject) {
    subject.prepare("a", "", none()).await.unwrap();
    let active = subject.stat("a").await.unwrap();
    assert_eq!((active.name.as_str(), active.parent.as_str(), active.kind()), ("a", "", Kind::Active));
    subject.commit("A", "a", none()).await.unwrap();
    assert_eq!(code(subject.stat("a").await), Code::NotFound);
    assert_eq!(subject.stat("A").await.unwrap().kind(), Kind::Committed);
    subject.prepare("b", "A", none()).await.unwrap();
    subject.view("v", "A", none()).await.unwrap();
    assert_eq!(subject.stat("b").await.unwrap().parent, "A");
    let view = subject.stat("v").await.unwrap();
    assert_eq!((view.parent.as_str(), view.kind()), ("A", Kind::View));
    subject.commit("B", "b", none()).await.unwrap();
    assert_eq!(subject.stat("B").await.unwrap().parent, "A");
}

pub async fn mounts_are_a_bind_or_an_overlay(subject: &mut Subject) {
    let bottom = subject.prepare("a", "", none()).await.unwrap();
    assert_eq!((bottom.len(), bottom[0].r#type.as_str()), (1, "bind"));
    assert_eq!(bottom[0].options, ["rw", "rbind"]);
    assert_eq!(subject.mounts("a").await.unwrap(), bottom);
    let a = bottom[0].source.clone();
    subject.commit("A", "a", none()).await.unwrap();

    let view = subject.view("v", "A", none()).await.unwrap();
    assert_eq!((view[0].r#type.as_str(), &view[0].source), ("bind", &a));
    assert_eq!(view[0].options, ["ro", "rbind"]);

    let empty = subject.view("e", "", none()).await.unwrap();
    assert_eq!(empty[0].options, ["ro", "rbind"]);

    let second = subject.prepare("b", "A", none()).await.unwrap();
    assert_eq!((second[0].r#type.as_str(), second[0].source.as_str()), ("overlay", "overlay"));
    assert_eq!(option(&second[0], "lowerdir"), Some(a.as_str()));
    let b = option(&second[0], "upperdir").unwrap().to_owned();
    assert!(Path::new(&b).is_dir() && Path::new(option(&second[0], "workdir").unwrap()).is_dir());
    assert_eq!(subject.mounts("b").await.unwrap(), second);
    subject.commit("B", "b", none()).await.unwrap();

    let deep = subject.view("w", "B", none()).await.unwrap();
    assert_eq!(option(&deep[0], "lowerdir"), Some(format!("{b}:{a}").as_str()));
    assert_eq!((option(&deep[0], "upperdir"), option(&deep[0], "workdir")), (None, None));
}

pub async fn mistakes_have_containerds_codes(subject: &mut Subject) {
    layer(subject, "A", "", |_| ()).await;
    subject.prepare("a", "", none()).await.unwrap();
    subject.view("v", "A", none()).await.unwrap();

    assert_eq!(code(subject.prepare("x", "missing", none()).await), Code::NotFound);
    assert_eq!(code(subject.view("x", "missing", none()).await), Code::NotFound);
    assert_eq!(code(subject.prepare("x", "a", none()).await), Code::InvalidArgument);
    assert_eq!(code(subject.view("x", "v", none()).await), Code::InvalidArgument);
    for taken in ["a", "v", "A"] {
        assert_eq!(code(subject.prepare(taken, "", none()).await), Code::AlreadyExists);
        assert_eq!(code(subject.view(taken, "A", none()).await), Code::AlreadyExists);
        assert_eq!(code(subject.commit(taken, "a", none()).await), Code::AlreadyExists);
    }
    assert_eq!(code(subject.commit("x", "missing", none()).await), Code::NotFound);
    assert_eq!(code(subject.commit("x", "v", none()).await), Code::FailedPrecondition);
    assert_eq!(code(subject.commit("x", "A", none()).await), Code::FailedPrecondition);
    assert_eq!(code(subject.mounts("A").await), Code::FailedPrecondition);
    assert_eq!(code(subject.mounts("missing").await), Code::NotFound);
    assert_eq!(code(subject.stat("missing").await), Code::NotFound);
    assert_eq!(code(subject.usage("missing").await), Code::NotFound);
    assert_eq!(code(subject.remove("missing").await), Code::NotFound);
    assert_eq!(code(subject.update("missing", none(), &[]).await), Code::NotFound);
    assert_eq!(code(subject.update("a", none(), &["parent"]).await), Code::InvalidArgument);
    // containerd 2.1 means InvalidArgument too, and forgets to say so in its listing.
    assert!(matches!(code(subject.list(&["name=x"]).await), Code::InvalidArgument | Code::Unknown));
    assert_eq!(subject.list(&[""]).await.unwrap(), ["A", "a", "v"]);
}

pub async fn a_parent_with_children_stays(subject: &mut Subject) {
    layer(subject, "A", "", |_| ()).await;
    layer(subject, "B", "A", |_| ()).await;
    subject.view("v", "B", none()).await.unwrap();
    assert_eq!(code(subject.remove("A").await), Code::FailedPrecondition);
    assert_eq!(code(subject.remove("B").await), Code::FailedPrecondition);
    for key in ["v", "B", "A"] {
        subject.remove(key).await.unwrap();
    }
    assert!(subject.list(&[""]).await.unwrap().is_empty());
}

pub async fn keys_can_be_used_again(subject: &mut Subject) {
    layer(subject, "A", "", |_| ()).await;
    subject.prepare("k", "A", none()).await.unwrap();
    subject.remove("k").await.unwrap();
    subject.view("k", "A", none()).await.unwrap();
    subject.remove("k").await.unwrap();
    subject.prepare("k", "", none()).await.unwrap();
    subject.remove("A").await.unwrap();
    subject.commit("A", "k", none()).await.unwrap();
    assert_eq!(subject.list(&[""]).await.unwrap(), ["A"]);
}

pub async fn updates_follow_their_field_paths(subject: &mut Subject) {
    layer(subject, "A", "", |_| ()).await;
    subject.prepare("a", "A", none()).await.unwrap();
    subject.view("v", "A", none()).await.unwrap();
    for key in ["A", "a", "v"] {
        let before = subject.stat(key).await.unwrap();
        let three = labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]);
        let all = subject.update(key, three.clone(), &[]).await.unwrap();
        assert_eq!(all.labels, three);
        assert_eq!((all.created_at, &all.parent, all.kind), (before.created_at, &before.parent, before.kind));
        let time = |info: &capsule_proto::containerd::services::snapshots::v1::Info| {
            SystemTime::try_from(info.updated_at.unwrap()).unwrap()
        };
        assert!(time(&all) > time(&before));
        let some = labels(&[("l1", "updated"), ("l4", "v4")]);
        let some = subject.update(key, some, &["labels.l1", "labels.l2"]).await.unwrap();
        assert_eq!(some.labels, labels(&[("l1", "updated"), ("l3", "v3")]));
        let last = labels(&[("l4", "v4")]);
        assert_eq!(subject.update(key, last.clone(), &["labels"]).await.unwrap().labels, last);
        assert_eq!(subject.stat(key).await.unwrap().labels, last);
    }
}

pub async fn labels_have_a_size_limit(subject: &mut Subject) {
    let sized = |length: usize| labels(&[("k", "v".repeat(length - 1).as_str())]);
    subject.prepare("a", "", sized(4096)).await.unwrap();
    assert_eq!(code(subject.prepare("b", "", sized(4097)).await), Code::InvalidArgument);
    assert_eq!(code(subject.view("b", "", sized(4097)).await), Code::InvalidArgument);
    assert_eq!(code(subject.update("a", sized(4097), &[]).await), Code::InvalidArgument);
    assert_eq!(code(subject.commit("A", "a", sized(4097)).await), Code::InvalidArgument);
    assert_eq!(subject.stat("a").await.unwrap().labels, sized(4096));
    assert_eq!(code(subject.stat("b").await), Code::NotFound);
}

pub async fn commit_replaces_labels_and_times(subject: &mut Subject) {
    subject.prepare("a", "", labels(&[("old", "1")])).await.unwrap();
    let prepared = subject.stat("a").await.unwrap();
    subject.commit("A", "a", labels(&[("new", "2")])).await.unwrap();
    let committed = subject.stat("A").await.unwrap();
    assert_eq!(committed.labels, labels(&[("new", "2")]));
    assert_eq!(committed.created_at, committed.updated_at);
    let time = |stamp: Option<prost_types::Timestamp>| SystemTime::try_from(stamp.unwrap()).unwrap();
    assert!(time(committed.created_at) > time(prepared.created_at));
}

pub async fn listings_filter_as_containerd_does(subject: &mut Subject) {
    subject.prepare("a-np", "", none()).await.unwrap();
    layer(subject, "p", "", |_| ()).await;
    subject.prepare("a", "p", none()).await.unwrap();
    subject.view("v", "p", none()).await.unwrap();
    subject.prepare("p-wl-key", "", none()).await.unwrap();
    subject.commit("p-wl", "p-wl-key", labels(&[("l", "1")])).await.unwrap();
    subject.prepare("a-wl", "p-wl", labels(&[("l", "2")])).await.unwrap();
    subject.view("v-wl", "p-wl", labels(&[("l", "3"), ("d.e/f", "x y")])).await.unwrap();
    subject.prepare("a-np-wl", "", labels(&[("l", "2")])).await.unwrap();

    let cases: [(&[&str], &[&str]); 13] = [
        (&[""], &["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"]),
        (&["kind==active"], &["a", "a-np", "a-np-wl", "a-wl"]),
        (&["kind==view"], &["v", "v-wl"]),
        (&["kind==committed"], &["p", "p-wl"]),
        (&["name==KEY(p)", "name==KEY(a-np-wl)"], &["a-np-wl", "p"]),
        (&["name==KEY(a-wl),labels.l"], &["a-wl"]),
        (&["parent==KEY(p)"], &["a", "v"]),
        (&["parent!=\"\""], &["a", "a-wl", "v", "v-wl"]),
        (&["labels.l"], &["a-np-wl", "a-wl", "p-wl", "v-wl"]),
        (&["labels.l==2"], &["a-np-wl", "a-wl"]),
        (&["labels.l~=/^[13]$/"], &["p-wl", "v-wl"]),
        (&["labels.\"d.e/f\"==\"x y\"", "kind==none"], &["v-wl"]),
        (&["unknown"], &[]),
    ];
    for (filters, expected) in cases {
        assert_eq!(subject.list(filters).await.unwrap(), expected, "{filters:?}");
    }
}

pub async fn long_listings_come_whole(subject: &mut Subject) {
    let mut expected: Vec<String> = (0..250).map(|n| format!("s{n}")).collect();
    for key in &expected {
        subject.prepare(key, "", none()).await.unwrap();
    }
    expected.sort();
    assert_eq!(subject.list(&[""]).await.unwrap(), expected);
}

pub async fn usage_counts_allocated_bytes_and_links_once(subject: &mut Subject) {
    let mounts = subject.prepare("a", "", none()).await.unwrap();
    let directory = Path::new(&mounts[0].source);
    let empty = subject.usage("a").await.unwrap();
    assert_eq!(empty.inodes, 1);
    fs::write(directory.join("file"), vec![1; 100_000]).unwrap();
    fs::hard_link(directory.join("file"), directory.join("link")).unwrap();
    File::create(directory.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    let allocated =
        |name: &str| i64::try_from(fs::metadata(directory.join(name)).unwrap().blocks() * 512).unwrap();
    File::open(directory.join("file")).unwrap().sync_all().unwrap(); // delayed allocation counts only then
    let active = subject.usage("a").await.unwrap();
    assert_eq!(active.inodes, 3);
    assert_eq!(active.size, empty.size + allocated("file") + allocated("sparse"));
    subject.commit("A", "a", none()).await.unwrap();
    assert_eq!(subject.usage("A").await.unwrap(), active);
    subject.view("v", "A", none()).await.unwrap();
    assert_eq!(subject.usage("v").await.unwrap(), Default::default());
}

pub async fn privileged_the_root_keeps_its_owner(subject: &mut Subject) {
    layer(subject, "A", "", |upper| {
        assert_eq!(fs::metadata(upper).unwrap().mode() & 0o7777, 0o755);
        chown(upper, Some(1234), Some(5678)).expect("changing owners needs root");
    })
    .await;
    layer(subject, "B", "A", |upper| {
        let metadata = fs::metadata(upper).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
    })
    .await;
}

pub async fn a_commit_can_name_the_parent(subject: &mut Subject) {
    // As containerd 2.2 unpacks layers in parallel: each is prepared on nothing, and the parent is the newer snapshot.
    let bare = subject.prepare("top", "", none()).await.unwrap();
    layer(subject, "A", "", |_| ()).await;
    layer(subject, "B", "A", |_| ()).await;
    subject.prepare("active", "", none()).await.unwrap();
    for (parent, expected) in [("missing", Code::NotFound), ("active", Code::FailedPrecondition)] {
        let refused = subject.commit_on("T", "top", parent, none()).await;
        if refused.is_ok() {
            assert!(subject.is_older_than(2, 2));
            return;
        }
        assert_eq!(code(refused), expected, "{parent}");
    }
    assert_eq!(subject.stat("top").await.unwrap().parent, "");
    assert_eq!(subject.mounts("top").await.unwrap(), bare);
    subject.commit_on("T", "top", "B", none()).await.unwrap();
    assert_eq!(subject.stat("T").await.unwrap().parent, "B");
    assert_eq!(subject.list(&["parent==KEY(B)"]).await.unwrap(), ["T"]);

    let view = subject.view("v", "T", none()).await.unwrap();
    let lower = option(&view[0], "lowerdir").unwrap();
    assert_eq!((lower.split(':').count(), lower.split(':').next()), (3, Some(bare[0].source.as_str())));
    for parent in ["B", "T"] {
        assert_eq!(code(subject.remove(parent).await), Code::FailedPrecondition);
    }
    for key in ["v", "T", "B"] {
        subject.remove(key).await.unwrap();
    }
}

pub async fn a_parent_given_at_prepare_stays(subject: &mut Subject) {
    layer(subject, "A", "", |_| ()).await;
    layer(subject, "B", "", |_| ()).await;
    subject.prepare("same", "A", none()).await.unwrap();
    subject.commit_on("S", "same", "A", none()).await.unwrap();
    assert_eq!(subject.stat("S").await.unwrap().parent, "A");
    subject.prepare("other", "A", none()).await.unwrap();
    match subject.commit_on("O", "other", "B", none()).await {
        // containerd's own metadata leaves another parent out of what it asks its snapshotters for.
        Ok(()) => assert!(subject.is_containerd()),
        refused => {
            assert_eq!(code(refused), Code::InvalidArgument);
            subject.commit("O", "other", none()).await.unwrap();
        }
    }
    assert_eq!(subject.stat("O").await.unwrap().parent, "A");
}

/// Asks for uid 0 to be 5000 and gid 0 to be 6000, and more.
fn mapped() -> Labels {
    labels(&[
        ("containerd.io/snapshot/uidmapping", "10:20000:100,0:5000:10"),
        ("containerd.io/snapshot/gidmapping", "0:6000:65536"),
    ])
}

pub async fn privileged_mapped_ids_are_asked_for_by_labels(subject: &mut Subject) {
    layer(subject, "A", "", |_| ()).await;
    layer(subject, "B", "A", |_| ()).await;
    let asked = ["uidmap=10:20000:100,0:5000:10", "gidmap=0:6000:65536"];
    let bottom = subject.prepare("bottom", "", mapped()).await.unwrap();
    if !bottom[0].options.contains(&asked[0].to_owned()) {
        assert!(subject.is_older_than(2, 0), "{bottom:?}");
        return;
    }
    assert_eq!(bottom[0].options, [asked[0], asked[1], "rw", "rbind"]);
    assert_eq!(subject.mounts("bottom").await.unwrap(), bottom);
    assert_eq!(
        subject.view("bound", "A", mapped()).await.unwrap()[0].options,
        [asked[0], asked[1], "ro", "rbind"]
    );
    for (key, active) in [("active", true), ("view", false)] {
        let mounts = match active {
            true => subject.prepare(key, "B", mapped()).await.unwrap(),
            false => subject.view(key, "B", mapped()).await.unwrap(),
        };
        assert_eq!(mounts[0].options[..2], asked);
        assert_eq!(subject.mounts(key).await.unwrap(), mounts);
        assert_eq!(option(&mounts[0], "upperdir").is_some(), active);
    }

    let owner = |mount: &Mount| {
        let metadata = fs::metadata(option(mount, "upperdir").unwrap_or(&mount.source)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    assert_eq!(owner(&bottom[0]), (5000, 6000));
    assert_eq!(owner(&subject.mounts("active").await.unwrap()[0]), (5000, 6000));
    let one = labels(&[("containerd.io/snapshot/uidmapping", "0:5000:1")]);
    let one = subject.prepare("one", "", one).await.unwrap();
    assert_eq!((owner(&one[0]), one[0].options[0].as_str()), ((5000, 0), "uidmap=0:5000:1"));

    // The labels go with the commit: what is built on it is not mapped by itself.
    subject.commit("C", "active", none()).await.unwrap();
    let plain = subject.prepare("plain", "C", none()).await.unwrap();
    assert!(!plain[0].options.iter().any(|option| option.contains("map=")));
    assert_eq!(owner(&plain[0]), (5000, 6000));
    subject.commit("D", "plain", mapped()).await.unwrap();
    assert_eq!(subject.stat("D").await.unwrap().labels, mapped());
}

pub async fn malformed_id_mappings_are_refused(subject: &mut Subject) {
    for (index, mapping) in ["x", "0:1", "0:-1:5", "1:1000:5", "0:0:1,,1:1:1"].into_iter().enumerate() {
        let labels = labels(&[("containerd.io/snapshot/gidmapping", mapping)]);
        let key = format!("k{index}");
        let refused = subject.prepare(&key, "", labels).await;
        if refused.is_ok() {
            assert!(subject.is_older_than(2, 0), "{mapping}");
            return;
        }
        // containerd 2.1 means InvalidArgument too, and forgets to say so.
        assert!(matches!(code(refused), Code::InvalidArgument | Code::Unknown), "{mapping}");
        assert_eq!(code(subject.stat(&key).await), Code::NotFound);
    }
}

/// Performs a mount with mount(8) and gives the mount point; unmounted when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(mount: &Mount) -> Self {
        let target = tempfile::tempdir().unwrap();
        let mut command = Command::new("mount");
        match mount.r#type.as_str() {
            "bind" => command.arg("--rbind"),
            other => command.args(["-t", other]),
        };
        let options: Vec<&str> = mount.options.iter().map(String::as_str).filter(|o| *o != "rbind").collect();
        let status =
            command.args(["-o", &options.join(","), &mount.source]).arg(target.path()).status().unwrap();
        assert!(status.success(), "mounting {mount:?} needs root: {status}");
        Self(target)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        _ = Command::new("umount").arg(self.0.path()).status();
    }
}

pub async fn privileged_whiteouts_and_contents_show_through_mounts(subject: &mut Subject) {
    let mounts = subject.prepare("a", "", none()).await.unwrap();
    {
        let mounted = Mounted::new(&mounts[0]);
        fs::write(mounted.path("kept"), "one").unwrap();
        fs::write(mounted.path("removed"), "one").unwrap();
        fs::create_dir(mounted.path("dir")).unwrap();
        fs::write(mounted.path("dir/hidden"), "one").unwrap();
    }
    subject.commit("A", "a", none()).await.unwrap();
    let mounts = subject.prepare("b", "A", none()).await.unwrap();
    {
        let mounted = Mounted::new(&mounts[0]);
        fs::remove_file(mounted.path("removed")).unwrap();
        fs::remove_dir_all(mounted.path("dir")).unwrap();
        fs::create_dir(mounted.path("dir")).unwrap();
        fs::write(mounted.path("kept"), "two").unwrap();
    }
    subject.commit("B", "b", none()).await.unwrap();
    let mounts = subject.view("v", "B", none()).await.unwrap();
    let mounted = Mounted::new(&mounts[0]);
    assert_eq!(fs::read_to_string(mounted.path("kept")).unwrap(), "two");
    assert!(!mounted.path("removed").exists());
    assert_eq!(fs::read_dir(mounted.path("dir")).unwrap().count(), 0);
    let refused = fs::write(mounted.path("new"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

pub async fn many_clients_at_once_lose_nothing(subject: &mut Subject) {
    let clients = (0..16).map(|client| {
        let mut subject = subject.clone();
        tokio::spawn(async move {
            let mut parent = String::new();
            for depth in 0..5 {
                let name = format!("c{client}-{depth}");
                layer(&mut subject, &name, &parent, |_| ()).await;
                parent = name;
            }
            subject.view(&format!("v{client}"), &parent, none()).await.unwrap();
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert_eq!(subject.list(&["kind==committed"]).await.unwrap().len(), 80);
    for client in 0..16 {
        let mounts = subject.mounts(&format!("v{client}")).await.unwrap();
        assert_eq!(option(&mounts[0], "lowerdir").unwrap().split(':').count(), 5);
    }
}
