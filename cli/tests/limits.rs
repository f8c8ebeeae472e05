//! Limits of containers, and budgets.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use capsule_proto::capsule::v1::{ListBudgetsRequest, Resources};

use crate::fake::{Asked, Fake};

#[test]
fn what_is_asked_of_limits_is_passed_on_and_shown() {
    let fake = Fake::start();
    let words = ["attach", "web", "tzdata", "--grant", "memory.max=536870912", "--cap", "io.max=8:0 rbps=9"];
    let ran = fake.run(&words);
    let said = "default/web: tzdata@2026.1 attached at /usr/share/zoneinfo (ro), memory.max +512.0 MiB, io.max at most 8:0 rbps=9\n";
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), said));
    let asked = fake.asked();
    let [Asked::Attach(request)] = &asked[..] else { panic!("{asked:?}") };
    let pair = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let want = Resources { grants: pair("memory.max", "536870912"), caps: pair("io.max", "8:0 rbps=9") };
    assert_eq!(request.specs[0].resources.as_ref(), Some(&want));
    let ran = fake.run(&[&words[..], &["-o", "json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["attachments"][0]["resources"]["grants"]["memory.max"], "536870912");
}

#[test]
fn what_can_mean_nothing_is_wrong_usage() {
    let fake = Fake::start();
    for (words, reason) in [
        (&["attach", "web", "a", "b", "--grant", "pids.max=1"][..], "for one capsule and 2"),
        (&["attach", "web", "--device", "a/b=c", "--cap", "pids.max=1"], "name one"),
        (&["attach", "web", "a", "--grant", "pids.max=1", "--grant", "pids.max=2"], "twice"),
        (&["attach", "web", "a", "--grant", "pids.max"], "KEY=VALUE"),
        (&["attach", "web", "--locked", "l", "--cap", "pids.max=1"], "cannot be used with"),
    ] {
        let ran = fake.run(words);
        assert_eq!(ran.code, Some(2), "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(reason), "{words:?}: {}", ran.stderr);
    }
    assert_eq!(fake.asked(), []);
}

#[test]
fn budgets_are_listed_with_what_uses_them() {
    let fake = Fake::start();
    let ran = fake.run(&["budget"]);
    let rows: Vec<Vec<&str>> = ran.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["SCOPE", "NAME", "LIMIT", "BUDGET", "USED", "BY"]);
    assert_eq!(
        rows[1],
        ["node", "-", "memory.max", "3GiB", "1.5GiB", "default/web", "tzdata@2026.1", "1.5GiB"]
    );
    assert_eq!(rows[2], ["pod", "shop/cart", "pids.max", "none", "0", "-"]);
    let ran = fake.run(&["budget", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["budgets"][0]["uses"][0]["amount"], 3_u64 << 29);
    assert_eq!(
        (&json["budgets"][1]["budget"], &json["budgets"][0]["name"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
    assert_eq!(fake.asked(), [Asked::Budgets(ListBudgetsRequest {}), Asked::Budgets(ListBudgetsRequest {})]);
}

#[test]
fn what_containers_use_is_a_table_where_there_is_no_terminal() {
    let fake = Fake::start();
    let ran = fake.run(&["top"]);
    let rows: Vec<Vec<&str>> = ran.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let web = ["default", "web", "0.0", "5.0M", "1.0G", "7", "0", "0", "-/3/-", "tzdata@2026.1"];
    assert_eq!((ran.code, &rows[1][..]), (Some(0), &web[..]), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(rows[2].join(" "), "default old - - - - - - - tzdata@2026.1");
    let ran = fake.run(&["top", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["containers"][0]["used"]["memory_pressure"]["full"], 1.0);
    assert_eq!(json["containers"][1]["used"], serde_json::Value::Null);
    // Two looks each: what is counted up becomes a rate.
    assert_eq!(fake.asked().len(), 4);
}
