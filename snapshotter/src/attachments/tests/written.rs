//! What is written to attachments: made, kept, dropped, and found again after a crash.

use std::{fs, time::Duration};

use tokio::time::sleep;

use super::*;
use crate::uppers::{
    Readable, UpperError, Wanted as Writable,
    model::{Fate, Upper},
};

impl TestNode {
    async fn write_to(&self, capsule: &str, name: Option<&str>) -> Result<Attachment, AttachmentError> {
        let writable = Some(Writable { name: name.map(|name| name.parse().unwrap()), size: None });
        let attached = self.engine.attach(&wanted(), &[AttachSpec { writable, ..spec(capsule) }]).await;
        attached.map(|mut all| all.remove(0))
    }

    /// Names below the root's folder.
    fn left(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("root").join(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Once what goes in the background is gone.
    async fn own(&self, expected: usize) -> Vec<String> {
        for _ in 0..500 {
            if self.left("attachments").len() == expected {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        self.left("attachments")
    }

    /// As if the container had written a file.
    fn scribble(&self, attachment: &Attachment) {
        let path = self.dir.path().join("root/attachments").join(&attachment.id).join("upper");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("file"), "text").unwrap();
    }
}

fn keep(name: &str) -> Fate {
    Fate::Keep(name.parse().unwrap())
}

#[tokio::test]
async fn what_was_written_is_kept_or_dropped_as_asked_and_never_silently() {
    let node = TestNode::start().await;
    let attached = node.write_to("tzdata@1", None).await.unwrap();
    assert!(matches!(&attached.upper, Some(Upper { name: None, limit: None, .. })));
    let place = node.dir.path().join("root/attachments").join(&attached.id);
    let asked = node.shim.0.lock().unwrap().mounted[&attached.id].upper.clone();
    assert_eq!(asked.directory(), place.to_str().unwrap());
    let undecided = node.engine.detach(&choice("tzdata"), true, None).await.unwrap_err();
    assert!(matches!(undecided, AttachmentError::Undecided { .. }), "{undecided}");
    let fixed = node.upgrade(&["tzdata@2"]).await.unwrap_err();
    assert!(matches!(fixed, AttachmentError::Writable { .. }), "{fixed}");
    assert_eq!(node.shim.mounted(), ["tzdata@1"]);
    node.engine.detach(&choice("tzdata"), false, Some(&Fate::Drop)).await.unwrap();
    assert_eq!(node.own(0).await, [""; 0]);

    let attached = node.write_to("tzdata@1", None).await.unwrap();
    node.scribble(&attached);
    node.engine.detach(&choice("tzdata"), false, Some(&keep("notes"))).await.unwrap();
    assert_eq!((node.own(0).await, node.left("uppers")), (vec![], vec!["notes".to_owned()]));
    assert!(node.dir.path().join("root/uppers/notes/upper/file").exists());
    assert_eq!(node.listed().await, [""; 0]);

    // A name that is taken changes nothing.
    let attached = node.write_to("tzdata@1", None).await.unwrap();
    let taken = node.engine.detach(&choice("tzdata"), false, Some(&keep("notes"))).await.unwrap_err();
    assert!(matches!(taken, AttachmentError::Upper(UpperError::Exists(_))), "{taken}");
    assert_eq!((node.own(1).await, node.shim.mounted()), (vec![attached.id], vec!["tzdata@1".to_owned()]));
}

#[tokio::test]
async fn what_has_a_name_is_there_for_the_next_and_for_one_at_a_time() {
    let mut node = TestNode::start().await;
    let first = node.write_to("tzdata@1", Some("notes")).await.unwrap();
    assert_eq!(first.upper.unwrap().limit, Some(8 << 20));
    let other = node.write_to("tools@1", Some("notes")).await.unwrap_err();
    assert!(matches!(other, AttachmentError::Upper(UpperError::InUse { .. })), "{other}");
    let nothing = node.engine.detach(&choice("tzdata"), false, Some(&Fate::Drop)).await.unwrap_err();
    assert!(matches!(nothing, AttachmentError::NothingToDecide { name: Some(_), .. }), "{nothing}");
    node.restart().await;
    assert_eq!(node.engine.uppers().list().unwrap()[0].used_by, Some(first.id));
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    let other = node.write_to("tools@1", Some("notes")).await.unwrap_err();
    assert!(matches!(other, AttachmentError::Upper(UpperError::OtherCapsule { .. })), "{other}");
    // Another version of the same capsule may have it.
    let second = node.write_to("tzdata@2", Some("notes")).await.unwrap();
    assert!(second.upper.unwrap().name.is_some());
    let name = "notes".parse().unwrap();
    assert!(matches!(node.engine.uppers().remove(&name), Err(UpperError::InUse { .. })));
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    node.engine.uppers().remove(&name).unwrap();
    assert_eq!(node.left("uppers"), [""; 0]);
    assert!(matches!(node.engine.uppers().remove(&name), Err(UpperError::Unknown(_))));
}

#[tokio::test]
async fn an_attach_that_fails_leaves_nothing() {
    let node = TestNode::start().await;
    node.shim.0.lock().unwrap().refuse.push("attach tzdata@1".into());
    node.write_to("tzdata@1", None).await.unwrap_err();
    node.write_to("tzdata@1", Some("notes")).await.unwrap_err();
    assert_eq!(node.own(0).await, [""; 0]);
    for _ in 0..500 {
        sleep(Duration::from_millis(if node.left("uppers").is_empty() { 0 } else { 10 })).await;
    }
    assert_eq!(node.left("uppers"), [""; 0]);
    node.shim.0.lock().unwrap().refuse.clear();
    node.write_to("tzdata@1", Some("notes")).await.unwrap();
}

/// It mounts read-only, and says nothing of it.
#[tokio::test]
async fn a_shim_that_knows_of_no_upper_directories_is_refused() {
    let node = TestNode::start().await;
    node.shim.0.lock().unwrap().old = true;
    let refused = node.write_to("tzdata@1", None).await.unwrap_err();
    let text =
        "the shim of default/c1 is older than this capsuled and attaches read-only: recreate the container";
    assert!(refused.to_string().contains(text), "{refused}");
    assert_eq!((node.shim.mounted(), node.own(0).await), (vec![], vec![]));
    assert_eq!(node.durable().await, []);
    node.engine.attach(&wanted(), &[spec("tzdata@1")]).await.unwrap();
}

/// The node was restarted, and no container has.
#[tokio::test]
async fn what_nobody_has_goes_also_when_there_is_no_container() {
    let mut node = TestNode::start().await;
    fs::create_dir_all(node.dir.path().join("root/attachments/0123/upper")).unwrap();
    fs::remove_dir_all(node.dir.path().join("run/tasks")).unwrap();
    node.restart().await;
    assert_eq!(node.own(0).await, [""; 0]);
}

#[tokio::test]
async fn one_that_is_damaged_is_listed_beside_the_others_and_can_go() {
    let node = TestNode::start().await;
    for name in ["first", "second"] {
        node.write_to("tzdata@1", Some(name)).await.unwrap();
        node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    }
    fs::write(node.dir.path().join("root/uppers/first/about.json"), "{").unwrap();
    let uppers = node.engine.uppers();
    let listed = uppers.list().unwrap();
    let known: Vec<_> = listed.iter().map(|one| (one.name.to_string(), one.about.is_some())).collect();
    assert_eq!(known, [("first".to_owned(), false), ("second".to_owned(), true)]);
    let refused = node.write_to("tzdata@1", Some("first")).await.unwrap_err();
    assert!(matches!(refused, AttachmentError::Upper(UpperError::About { .. })), "{refused}");
    uppers.remove(&"first".parse().unwrap()).unwrap();
    assert_eq!(node.left("uppers"), ["second"]);
}

/// What is read stays over the version that it was written over, which has to be there, and the same.
#[tokio::test]
async fn what_is_read_is_nobody_elses_and_over_the_version_that_it_was() {
    let node = TestNode::start().await;
    let attached = node.write_to("tzdata@1", Some("notes")).await.unwrap();
    let (uppers, name) = (node.engine.uppers(), "notes".parse().unwrap());
    let reading = uppers.read(&Readable::Attachment(&attached)).unwrap();
    assert_eq!(
        (reading.over().version.to_string(), &reading.over().digest),
        ("1".to_owned(), &attached.current.digest)
    );
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    let other = node.write_to("tzdata@2", Some("notes")).await.unwrap_err();
    assert!(matches!(other, AttachmentError::Upper(UpperError::InUse { .. })), "{other}");
    drop(reading);
    let reading = uppers.read(&Readable::Named(&name)).unwrap();
    let other = node.write_to("tzdata@2", Some("notes")).await.unwrap_err();
    assert!(matches!(other, AttachmentError::Upper(UpperError::BeingRead(_))), "{other}");
    assert!(matches!(uppers.remove(&name), Err(UpperError::BeingRead(_))));
    assert_eq!(uppers.list().unwrap()[0].used_by, None);
    let base = uppers.base(&node.engine.capsules, &reading).await.unwrap();
    assert_eq!(base.version.to_string(), "1");
    drop(reading);
    let second = node.write_to("tzdata@2", Some("notes")).await.unwrap();
    let ended = uppers.read(&Readable::Attachment(&attached)).unwrap_err();
    assert!(matches!(&ended, UpperError::Ended(id) if *id == attached.id), "{ended}");
    assert_eq!(uppers.read(&Readable::Attachment(&second)).unwrap().over().version.to_string(), "2");
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    // Removed, and published again as something else.
    let about = node.dir.path().join("root/uppers/notes/about.json");
    let text = fs::read_to_string(&about).unwrap();
    let other = format!("sha256:{}", "0".repeat(64));
    fs::write(&about, text.replace(&second.current.digest.to_string(), &other)).unwrap();
    let reading = uppers.read(&Readable::Named(&name)).unwrap();
    let refused = uppers.base(&node.engine.capsules, &reading).await.unwrap_err();
    let wanted =
        format!("tzdata@2 of digest {other}, and the version of that name is {}", second.current.digest);
    assert!(refused.to_string().contains(&wanted), "{refused}");
}

#[tokio::test]
async fn a_crash_in_a_detach_keeps_what_was_to_be_kept() {
    // Unmounted, or unmounted and renamed.
    for renamed in [false, true] {
        let mut node = TestNode::start().await;
        let attached = node.write_to("tzdata@1", None).await.unwrap();
        node.scribble(&attached);
        node.shim.0.lock().unwrap().mounted.clear();
        let phase = Phase::Detaching { lazy: false, fate: Some(keep("notes")) };
        node.write(vec![Change::Put(Box::new(Attachment { phase, ..attached.clone() }))]).await;
        if renamed {
            let at = |path: &str| node.dir.path().join("root").join(path);
            fs::rename(at(&format!("attachments/{}", attached.id)), at("uppers/notes")).unwrap();
        }
        node.restart().await;
        assert_eq!((node.own(0).await, node.left("uppers")), (vec![], vec!["notes".to_owned()]));
        assert_eq!(node.durable().await, []);
        assert!(node.dir.path().join("root/uppers/notes/upper/file").exists());
    }
}

#[tokio::test]
async fn what_somebody_else_unmounted_is_kept_and_what_nobody_has_goes() {
    let mut node = TestNode::start().await;
    let attached = node.write_to("tzdata@1", None).await.unwrap();
    node.scribble(&attached);
    node.shim.0.lock().unwrap().unmounted.push(attached.id.clone());
    // Of an attach that never came to be.
    fs::create_dir_all(node.dir.path().join("root/attachments/0123/upper")).unwrap();
    node.restart().await;
    assert_eq!((node.own(0).await, node.left("uppers")), (vec![], vec![attached.id]));
}

/// Whoever was first after a restart has the name, and what was to have it is not lost.
#[tokio::test]
async fn what_cannot_have_its_name_is_kept_under_the_attachments_id() {
    let mut node = TestNode::start().await;
    let attached = node.write_to("tzdata@1", None).await.unwrap();
    node.scribble(&attached);
    node.shim.0.lock().unwrap().mounted.clear();
    let phase = Phase::Detaching { lazy: false, fate: Some(keep("notes")) };
    node.write(vec![Change::Put(Box::new(Attachment { phase, ..attached.clone() }))]).await;
    fs::create_dir_all(node.dir.path().join("root/uppers/notes")).unwrap();
    node.restart().await;
    assert_eq!(node.own(0).await, [""; 0]);
    let kept = node.dir.path().join("root/uppers").join(&attached.id).join("upper/file");
    assert!(kept.exists(), "{:?}", node.left("uppers"));
}

/// Nothing is removed that nobody has decided about.
#[tokio::test]
async fn what_can_have_no_name_at_all_stays_on_record_until_it_can() {
    let mut node = TestNode::start().await;
    let attached = node.write_to("tzdata@1", None).await.unwrap();
    node.scribble(&attached);
    node.shim.0.lock().unwrap().mounted.clear();
    let phase = Phase::Detaching { lazy: false, fate: Some(keep("notes")) };
    node.write(vec![Change::Put(Box::new(Attachment { phase, ..attached.clone() }))]).await;
    let named = node.dir.path().join("root/uppers");
    for name in ["notes", &attached.id] {
        fs::create_dir_all(named.join(name)).unwrap();
    }
    for _ in 0..2 {
        node.restart().await;
        assert_eq!((node.own(1).await, node.durable().await.len()), (vec![attached.id.clone()], 1));
    }
    fs::remove_dir(named.join("notes")).unwrap();
    node.restart().await;
    assert_eq!((node.own(0).await, node.durable().await), (vec![], vec![]));
    assert!(named.join("notes/upper/file").exists());
}

#[tokio::test]
async fn what_was_unmounted_while_it_was_on_record_as_waiting_is_kept() {
    let mut node = TestNode::start().await;
    let attached = node.write_to("tzdata@1", None).await.unwrap();
    node.scribble(&attached);
    node.shim.0.lock().unwrap().unmounted.push(attached.id.clone());
    node.write(vec![Change::Put(Box::new(Attachment { phase: Phase::Waiting, ..attached.clone() }))]).await;
    node.restart().await;
    assert_eq!((node.own(0).await, node.left("uppers")), (vec![], vec![attached.id]));
}
