//! Containers in user namespaces: labels ask for mapped ids.

use std::{fs, os::unix::fs::MetadataExt as _};

use capsule_proto::containerd::types::Mount;
use tonic::Code;

use super::{Labels, Subject, code, committed, labels, none, option, upper};

/// Asks for uid 0 to be 5000 and gid 0 to be 6000, and more.
fn mapped() -> Labels {
    labels(&[
        ("containerd.io/snapshot/uidmapping", "10:20000:100,0:5000:10"),
        ("containerd.io/snapshot/gidmapping", "0:6000:65536"),
    ])
}

pub async fn privileged_mapped_ids_are_asked_for_by_labels(subject: &mut Subject) {
    committed(subject, "A", "").await;
    committed(subject, "B", "A").await;
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
        let metadata = fs::metadata(upper(mount)).unwrap();
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
