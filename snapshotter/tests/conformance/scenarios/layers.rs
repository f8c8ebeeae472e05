//! Directories: which ones mounts name, what they weigh, and many of them.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, chown, symlink},
    path::Path,
};

use tonic::Code;

use super::{Subject, code, committed, layer, mounted::Mounted, none, option, upper};

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

pub async fn a_commit_can_name_the_parent(subject: &mut Subject) {
    // As containerd 2.2 unpacks layers in parallel: each is prepared on nothing, and the parent is the newer snapshot.
    let bare = subject.prepare("top", "", none()).await.unwrap();
    committed(subject, "A", "").await;
    committed(subject, "B", "A").await;
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

pub async fn usage_counts_allocated_bytes_and_links_once(subject: &mut Subject) {
    let mounts = subject.prepare("a", "", none()).await.unwrap();
    let directory = upper(&mounts[0]);
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

pub async fn usage_of_committed_snapshots_does_not_change(subject: &mut Subject) {
    let mut upper_of_a = None;
    layer(subject, "A", "", |upper| {
        fs::create_dir_all(upper.join("d/e")).unwrap();
        fs::write(upper.join("d/file"), vec![1; 50_000]).unwrap();
        fs::hard_link(upper.join("d/file"), upper.join("d/e/other")).unwrap();
        symlink("nowhere", upper.join("link")).unwrap();
        upper_of_a = Some(upper.to_owned());
    })
    .await;
    let usage = subject.usage("A").await.unwrap();
    assert_eq!(usage.inodes, 5);
    assert!(usage.size >= 50_000);
    fs::write(upper_of_a.unwrap().join("late"), vec![1; 50_000]).unwrap();
    committed(subject, "B", "A").await;
    assert_eq!(subject.usage("A").await.unwrap(), usage);
    assert_eq!(subject.usage("B").await.unwrap().inodes, 1);
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

/// The lower directories of such a chain are more than one page of mount options.
pub async fn privileged_130_layers_are_one_tree(subject: &mut Subject) {
    let mut parent = String::new();
    for number in 0..130 {
        let name = format!("L{number}");
        layer(subject, &name, &parent, |upper| {
            fs::write(upper.join(format!("file-{number}")), &name).unwrap();
            fs::write(upper.join("every"), &name).unwrap();
        })
        .await;
        parent = name;
    }
    let mounts = subject.view("v", &parent, none()).await.unwrap();
    let lower = option(&mounts[0], "lowerdir").unwrap();
    assert_eq!(lower.split(':').count(), 130);
    let view = Mounted::new(&mounts[0]);
    for number in 0..130 {
        let content = fs::read_to_string(view.path(&format!("file-{number}"))).unwrap();
        assert_eq!(content, format!("L{number}"));
    }
    assert_eq!(fs::read_to_string(view.path("every")).unwrap(), "L129");
    let mounts = subject.prepare("a", &parent, none()).await.unwrap();
    let active = Mounted::new(&mounts[0]);
    fs::write(active.path("every"), "mine").unwrap();
    fs::remove_file(active.path("file-0")).unwrap();
    assert_eq!(fs::read_dir(active.root()).unwrap().count(), 130);
}

pub async fn privileged_views_cannot_be_written_to(subject: &mut Subject) {
    layer(subject, "A", "", |upper| fs::write(upper.join("file"), "a").unwrap()).await;
    layer(subject, "B", "A", |_| ()).await;
    for (key, parent, files) in [("empty", "", 0), ("one", "A", 1), ("two", "B", 1)] {
        let mounts = subject.view(key, parent, none()).await.unwrap();
        let view = Mounted::new(&mounts[0]);
        let root = view.root();
        let refused = fs::write(root.join("new"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{key}");
        assert_eq!(fs::read_dir(root).unwrap().count(), files, "{key}");
    }
}
