//! Rollouts over a cluster that does what it is told, or not.

use super::*;
use crate::api::{CapsuleRolloutSpec, Health, HealthCheck, Query, Step};

const OLD: &str = "1";
const NEW: &str = "2";

/// Pods that do what they are told when [`Cluster::work`] is called.
struct Cluster {
    rollout: CapsuleRollout,
    version: Option<String>,
    pods: BTreeMap<String, Member>,
    now: Timestamp,
    answer: Option<Result<bool, &'static str>>,
    /// What cannot take the new version.
    broken: BTreeSet<String>,
    /// Most pods that were not well at once.
    worst: usize,
    other: Option<&'static str>,
}

fn progress(asked: &str, state: State) -> Progress {
    Progress { asked: Some(asked.to_owned()), state: Some(state), message: None, since: None }
}

fn spec(steps: Vec<Step>) -> CapsuleRolloutSpec {
    CapsuleRolloutSpec {
        attachment: "a".into(),
        version: NEW.into(),
        steps,
        max_unavailable: IntOrString::Int(2),
        health: Health { settle_seconds: 0, ..Health::default() },
        progress_deadline_seconds: 600,
        on_failure: OnFailure::RollBack,
        paused: false,
        approved: 0,
    }
}

fn step(pods: &str, pause_seconds: i32, approval: bool) -> Step {
    let pods = pods.parse().map_or_else(|_| IntOrString::String(pods.to_owned()), IntOrString::Int);
    Step { pods, pause_seconds, approval }
}

impl Cluster {
    fn new(pods: usize, spec: CapsuleRolloutSpec) -> Self {
        let member = |n| Member {
            name: format!("web-{n:02}"),
            is_told: false,
            containers: vec![progress(OLD, State::Attached)],
            unready_since: None,
        };
        Self {
            rollout: CapsuleRollout::new("r", spec),
            version: Some(OLD.to_owned()),
            pods: (0..pods).map(|n| (format!("uid-{n:02}"), member(n))).collect(),
            now: Timestamp::from_second(1_000_000).unwrap(),
            answer: None,
            broken: BTreeSet::new(),
            worst: 0,
            other: None,
        }
    }

    /// One pass of the controller.
    fn pass(&mut self) -> Phase {
        let known = Known {
            version: self.version.as_deref(),
            other: self.other,
            pods: &self.pods,
            answer: self.answer.take(),
            now: self.now,
        };
        let decision = decide(&self.rollout, &known);
        for (uid, pod) in &mut self.pods {
            pod.is_told = decision.updated.contains(uid);
        }
        if decision.is_done {
            self.version = Some(NEW.to_owned());
        }
        let phase = decision.status.phase;
        self.rollout.status = Some(decision.status);
        let busy = self.pods.values().filter(|pod| {
            pod.is_told && (pod.containers[0].asked.as_deref() != Some(NEW) || pod.unready_since.is_some())
        });
        self.worst = self.worst.max(busy.count());
        phase
    }

    /// Pods do what they were told; a second goes by.
    fn work(&mut self) {
        for (uid, pod) in &mut self.pods {
            let version = if pod.is_told || self.version.as_deref() == Some(NEW) { NEW } else { OLD };
            let is_broken = version == NEW && self.broken.contains(uid);
            let state = if is_broken { State::Failed } else { State::Attached };
            let since =
                pod.containers[0].since.filter(|_| pod.containers[0].asked.as_deref() == Some(version));
            let message = is_broken.then(|| "no".to_owned());
            pod.containers =
                vec![Progress { message, since: since.or(Some(self.now)), ..progress(version, state) }];
        }
        self.now = Timestamp::from_second(self.now.as_second() + 1).unwrap();
    }

    fn told(&self) -> usize {
        self.pods.values().filter(|pod| pod.is_told).count()
    }

    fn run(&mut self, seconds: usize) -> Phase {
        let mut phase = Phase::Pending;
        for _ in 0..seconds {
            phase = self.pass();
            self.work();
        }
        phase
    }

    fn status(&self) -> &CapsuleRolloutStatus {
        self.rollout.status.as_ref().unwrap()
    }

    fn said(&self) -> String {
        status::message(self.status()).unwrap()
    }
}

#[test]
fn all_get_it_a_few_at_a_time() {
    let mut cluster = Cluster::new(20, spec(Vec::new()));
    assert_eq!(cluster.pass(), Phase::Progressing);
    assert_eq!(cluster.run(30), Phase::Succeeded);
    assert_eq!((cluster.version.as_deref(), cluster.worst), (Some(NEW), 2));
    let status = cluster.status();
    assert_eq!((status.pods, status.conditions[0].status.as_str()), (20, "True"));
}

#[test]
fn steps_wait_and_want_to_be_approved() {
    let steps = vec![step("1", 0, false), step("25%", 10, false), step("50%", 0, true)];
    let mut cluster = Cluster::new(10, spec(steps));
    cluster.run(5);
    assert_eq!((cluster.status().step, cluster.told()), (2, 3), "25% of ten are three");
    cluster.run(20);
    assert_eq!((cluster.status().phase, cluster.status().step, cluster.told()), (Phase::Paused, 3, 5));
    assert!(cluster.said().contains("spec.approved: 1"), "{}", cluster.said());
    // Nobody hurries: that is no failure.
    cluster.run(1000);
    assert_eq!(cluster.status().phase, Phase::Paused);
    cluster.rollout.spec.approved = 1;
    assert_eq!(cluster.run(20), Phase::Succeeded);
}

#[test]
fn a_pause_holds_it_and_what_is_not_well_meanwhile_still_counts() {
    let mut cluster = Cluster::new(10, spec(Vec::new()));
    cluster.run(3);
    cluster.rollout.spec.paused = true;
    let told = cluster.told();
    cluster.run(10);
    assert_eq!((cluster.status().phase, cluster.told()), (Phase::Paused, told));
    cluster.pods.get_mut("uid-00").unwrap().unready_since = Some(cluster.now);
    assert_eq!(cluster.run(30), Phase::Paused);
    cluster.run(4);
    assert_eq!(cluster.status().phase, Phase::RolledBack);
}

#[test]
fn what_cannot_have_it_takes_all_back() {
    let mut cluster = Cluster::new(10, spec(Vec::new()));
    cluster.broken.insert("uid-05".to_owned());
    assert_eq!(cluster.run(20), Phase::RolledBack);
    assert_eq!((cluster.told(), cluster.version.as_deref()), (0, Some(OLD)));
    assert_eq!(cluster.said(), "web-05: no");
    assert!(cluster.pods.values().all(|pod| pod.containers[0].asked.as_deref() == Some(OLD)));
    // And it is over.
    cluster.broken.clear();
    assert_eq!((cluster.run(20), cluster.told()), (Phase::RolledBack, 0));
}

#[test]
fn where_one_wants_to_look_it_stops() {
    let mut cluster =
        Cluster::new(10, CapsuleRolloutSpec { on_failure: OnFailure::Stop, ..spec(Vec::new()) });
    cluster.broken.insert("uid-03".to_owned());
    cluster.run(20);
    assert_eq!((cluster.status().phase, cluster.told()), (Phase::Stopped, 4));
    assert_eq!(cluster.said(), "web-03: no");
}

#[test]
fn pods_that_were_not_ready_before_come_last_and_have_their_time() {
    let mut cluster = Cluster::new(4, spec(Vec::new()));
    let long_ago = Timestamp::from_second(1000).unwrap();
    cluster.pods.get_mut("uid-00").unwrap().unready_since = Some(long_ago);
    cluster.run(10);
    assert_eq!(cluster.told(), 4);
    cluster.run(15);
    assert_eq!(cluster.status().phase, Phase::Progressing);
    assert_eq!(cluster.run(30), Phase::RolledBack);
    assert!(cluster.said().contains("web-00 is not ready"), "{}", cluster.said());
    let mut patient = Cluster::new(4, spec(Vec::new()));
    patient.rollout.spec.health.readiness = false;
    patient.pods.get_mut("uid-00").unwrap().unready_since = Some(long_ago);
    assert_eq!(patient.run(20), Phase::Succeeded);
}

fn asking(spec: CapsuleRolloutSpec) -> Cluster {
    let mut cluster = Cluster::new(20, spec);
    cluster.rollout.spec.health.prometheus = Some(Query { query: "ok".into(), tolerated: 1 });
    cluster
}

#[test]
fn prometheus_lets_it_begin_and_takes_it_back() {
    let mut cluster = asking(spec(vec![step("2", 1000, false)]));
    assert_eq!((cluster.run(5), cluster.told()), (Phase::Pending, 0));
    cluster.answer = Some(Err("it is away"));
    cluster.pass();
    assert!(cluster.said().contains("it is away"), "{}", cluster.said());
    cluster.answer = Some(Ok(true));
    assert_eq!(cluster.run(5), Phase::Progressing);
    for (answer, count, phase) in [
        (Some(Ok(false)), 1, Phase::Progressing),
        (None, 1, Phase::Progressing),
        (Some(Err("away")), 1, Phase::Progressing),
        (Some(Ok(true)), 0, Phase::Progressing),
        (Some(Ok(false)), 1, Phase::Progressing),
        (Some(Ok(false)), 2, Phase::RollingBack),
    ] {
        cluster.answer = answer;
        assert_eq!((cluster.pass(), cluster.status().unanswered), (phase, count));
    }
}

#[test]
fn nothing_gets_on_while_prometheus_is_away() {
    let mut cluster = asking(spec(Vec::new()));
    cluster.answer = Some(Ok(true));
    cluster.run(5);
    assert_eq!(cluster.told(), 2, "one answer, one batch");
    for _ in 0..10 {
        cluster.answer = Some(Err("away"));
        cluster.run(1);
    }
    assert_eq!((cluster.told(), cluster.status().phase), (2, Phase::Progressing));
    cluster.answer = Some(Ok(true));
    cluster.run(3);
    assert_eq!(cluster.told(), 4);
    // And in the end it is not done, but given up.
    assert_eq!(cluster.run(700), Phase::RolledBack);
}

#[test]
fn a_pod_is_well_when_its_probes_had_time_to_fail() {
    let mut cluster = Cluster::new(4, spec(Vec::new()));
    cluster.rollout.spec.health.settle_seconds = 10;
    cluster.run(9);
    assert_eq!((cluster.told(), cluster.status().updated, cluster.status().healthy), (2, 2, 0));
    cluster.pods.get_mut("uid-00").unwrap().unready_since = Some(cluster.now);
    assert_eq!(cluster.run(8), Phase::Progressing);
    assert_eq!(cluster.told(), 3, "one is not well");
    assert_eq!(cluster.run(30), Phase::RolledBack);
}

#[test]
fn one_that_waits_for_another_takes_nothing_over_from_it() {
    let mut cluster = Cluster::new(4, spec(Vec::new()));
    cluster.other = Some("first");
    // What the first has told them.
    cluster.pods.values_mut().for_each(|pod| pod.is_told = true);
    assert_eq!((cluster.pass(), cluster.told()), (Phase::Pending, 0));
}

#[test]
fn a_second_pause_is_a_pause() {
    let mut cluster = Cluster::new(4, spec(vec![step("1", 5, false), step("2", 20, false)]));
    cluster.run(12);
    assert_eq!((cluster.status().step, cluster.told()), (2, 2));
    cluster.run(10);
    assert_eq!((cluster.status().step, cluster.told()), (2, 2));
    assert_eq!(cluster.run(30), Phase::Succeeded);
    assert!(cluster.status().settled_at.is_some());
}

#[test]
fn a_node_that_is_away_keeps_no_other_from_going_back() {
    let mut cluster = Cluster::new(4, spec(Vec::new()));
    cluster.pods.get_mut("uid-03").unwrap().containers[0].state = None;
    cluster.broken.insert("uid-00".to_owned());
    assert_eq!(cluster.run(3), Phase::RollingBack);
    for (uid, pod) in &mut cluster.pods {
        pod.is_told = false;
        pod.containers = vec![Progress {
            state: (uid != "uid-03").then_some(State::Attached),
            ..progress(OLD, State::Attached)
        }];
    }
    assert_eq!(cluster.pass(), Phase::RolledBack);
}

#[test]
fn no_pods_are_no_success() {
    let mut cluster = Cluster::new(0, spec(Vec::new()));
    assert_eq!(cluster.run(1000), Phase::Progressing);
    assert_eq!(cluster.said(), "no pod has the CapsuleAttachment");
}

#[test]
fn nothing_getting_on_is_a_failure() {
    let mut cluster =
        Cluster::new(4, CapsuleRolloutSpec { progress_deadline_seconds: 20, ..spec(Vec::new()) });
    cluster.pass();
    // Their node does not answer.
    for _ in 0..30 {
        cluster.pass();
        cluster.now = Timestamp::from_second(cluster.now.as_second() + 1).unwrap();
    }
    assert_eq!(cluster.status().phase, Phase::RolledBack);
    assert!(cluster.said().starts_with("nothing got on for 20 s"), "{}", cluster.said());
}

#[test]
fn another_version_of_the_attachment_counts() {
    let mut cluster = Cluster::new(10, spec(Vec::new()));
    cluster.run(3);
    cluster.version = Some("3".to_owned());
    assert_eq!((cluster.pass(), cluster.told()), (Phase::Superseded, 0));
    let mut alone = Cluster::new(10, spec(Vec::new()));
    alone.run(3);
    alone.version = None;
    assert_eq!((alone.pass(), alone.told()), (Phase::Superseded, 0));
}

#[test]
fn it_begins_only_where_one_could_go_back() {
    let mut cluster = Cluster::new(3, spec(Vec::new()));
    for (version, said) in [(None, "there is no CapsuleAttachment a"), (Some(""), "has no version")] {
        cluster.version = version.map(str::to_owned);
        assert_eq!((cluster.pass(), cluster.told()), (Phase::Pending, 0));
        assert!(cluster.said().contains(said), "{}", cluster.said());
    }
    cluster.version = Some(NEW.to_owned());
    assert_eq!(cluster.pass(), Phase::Succeeded);
}

#[test]
fn a_pod_that_comes_meanwhile_is_one_of_them() {
    let mut cluster = Cluster::new(4, spec(vec![step("50%", 5, false)]));
    cluster.run(4);
    assert_eq!(cluster.told(), 2);
    for n in 4..8 {
        let pod = Member { name: format!("web-{n:02}"), is_told: false, ..cluster.pods["uid-03"].clone() };
        cluster.pods.insert(format!("uid-{n:02}"), pod);
    }
    cluster.run(3);
    assert_eq!(cluster.told(), 4);
    cluster.pods.retain(|uid, _| uid != "uid-00");
    assert_eq!(cluster.run(30), Phase::Succeeded);
}

#[test]
fn shares_are_rounded_for_safety() {
    let percent = |text: &str| IntOrString::String(text.to_owned());
    assert_eq!(share(&percent("25%"), 10, true), 3);
    assert_eq!(share(&percent("25%"), 10, false), 2);
    assert_eq!(share(&percent("1%"), 10, false), 0);
    assert_eq!(share(&percent("100%"), 10, true), 10);
    assert_eq!(share(&IntOrString::Int(7), 10, true), 7);
}

#[test]
fn what_is_to_be_run_is_the_rollouts() {
    let check = HealthCheck { command: vec!["/check".into()], timeout_seconds: 5 };
    let text = serde_json::json!({ "attachment": "a", "version": "2", "health": { "exec": check } });
    let spec: CapsuleRolloutSpec = serde_json::from_value(text).unwrap();
    assert_eq!(
        (spec.health.exec, spec.health.unready_seconds, spec.max_unavailable),
        (Some(check), 30, IntOrString::Int(1))
    );
}

#[test]
fn what_could_not_be_written_down_is_not_done() {
    let mut cluster = Cluster::new(3, spec(Vec::new()));
    cluster.pods.get_mut("uid-01").unwrap().is_told = true;
    let mut of = |phase: Phase, from: Option<&str>| {
        let from = from.map(str::to_owned);
        cluster.rollout.status =
            Some(CapsuleRolloutStatus { phase, from, ..CapsuleRolloutStatus::default() });
        before(&cluster.rollout, &cluster.pods).into_iter().collect::<Vec<_>>()
    };
    // What pods were told before it began is another's.
    assert!(of(Phase::Pending, None).is_empty());
    assert_eq!(of(Phase::Progressing, Some(OLD)), ["uid-01"]);
    assert_eq!(of(Phase::Stopped, Some(OLD)), ["uid-01"]);
    assert!(of(Phase::RollingBack, Some(OLD)).is_empty());
}
