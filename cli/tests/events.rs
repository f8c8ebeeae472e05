//! Following events, against a capsuled that ends each watch after one event.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use capsule_proto::capsule::v1::WatchRequest;

use crate::fake::{Asked, Fake, command};

#[test]
fn events_are_read_by_people_and_by_programs() {
    let fake = Fake::start();
    let ran = fake.run(&["events", "--after", "41", "--no-follow"]);
    let line =
        "2023-11-14T22:13:20Z  42  upgraded     tzdata 1 -> 2 in default/web at /t: all \\x1b[31mwell\n";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), line, ""));
    let asked = WatchRequest { after: Some(41), no_follow: true, ..WatchRequest::default() };
    assert_eq!(fake.asked(), [Asked::Watch(asked)]);
    let words = "events --all --no-follow --container moby/shop --capsule tzdata -o json";
    let ran = fake.run(&words.split(' ').collect::<Vec<_>>());
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        (&json["sequence"], &json["kind"], &json["from_version"]),
        (&1.into(), &"upgraded".into(), &"1".into())
    );
    assert_eq!(
        (&json["container"], &json["container_name"], &json["pod"]),
        (&"web".into(), &"shop".into(), &().into())
    );
    let asked = WatchRequest {
        after: Some(0),
        no_follow: true,
        container: "shop".into(),
        namespace: "moby".into(),
        capsule: "tzdata".into(),
    };
    assert_eq!(fake.asked(), [Asked::Watch(asked)]);
}

/// A pod's name goes to capsuled as it is: who that is only containerd knows.
#[test]
fn events_of_a_pod() {
    let fake = Fake::start();
    let ran = fake.run(&["events", "--no-follow", "--container", "pod/shop/cart/app"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains(" in pod/shop/cart/app at /t"), "{}", ran.stdout);
    let asked =
        WatchRequest { no_follow: true, container: "pod/shop/cart/app".into(), ..WatchRequest::default() };
    assert_eq!(fake.asked(), [Asked::Watch(asked)]);
}

#[test]
fn what_is_gone_is_said() {
    let ran = Fake::start().run(&["events", "--after", "7"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert_eq!(ran.stderr, "capsulectl: events after 7 are no longer kept\n");
}

#[test]
fn a_watch_that_ends_goes_on_where_it_was() {
    let fake = Fake::start();
    let mut child = command(&fake.socket(), &["events"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let lines: Vec<String> = BufReader::new(child.stdout.take().expect("its output"))
        .lines()
        .take(3)
        .map(|l| l.expect("a line"))
        .collect();
    child.kill().expect("it ends");
    child.wait().expect("it ends");
    let numbers: Vec<&str> = lines.iter().map(|line| line.split("  ").nth(1).expect("a number")).collect();
    assert_eq!(numbers, ["101", "102", "103"]);
}
