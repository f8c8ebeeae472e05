//! How a rollout goes on. Pure: what is so, in; which pods have the version, and the rollout's next status, out.
//!
//! ```text
//! Pending -> Progressing <-> Paused -> Succeeded
//!                |   (failed)
//!                +-> RollingBack -> RolledBack
//!                +-> Stopped
//!     (another version of the CapsuleAttachment) -> Superseded
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{apimachinery::pkg::util::intstr::IntOrString, jiff::Timestamp};

use super::status;
use crate::api::{CapsuleRollout, CapsuleRolloutStatus, OnFailure, Phase, State, at};

/// A pod of the attachment's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Whether its containers were told to have the version.
    pub is_told: bool,
    /// How far each of its containers is with what it was told: of the version that it says, and why not.
    pub containers: Vec<Progress>,
    /// Since when it is not ready; none where it is.
    pub unready_since: Option<Timestamp>,
}

/// How far a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The version that it was asked for.
    pub asked: Option<String>,
    /// How far; none where its node has not said yet.
    pub state: Option<State>,
    /// Why it cannot have it.
    pub message: Option<String>,
    /// Since when.
    pub since: Option<Timestamp>,
}

/// All that is known, of one moment.
#[derive(Debug)]
pub struct Known<'a> {
    /// The attachment's version; none where there is no such attachment, an empty one where it has none.
    pub version: Option<&'a str>,
    /// Another rollout that goes on with the same attachment.
    pub other: Option<&'a str>,
    /// Its pods, by uid.
    pub pods: &'a BTreeMap<String, Member>,
    /// What Prometheus has answered since it was asked last: that all is well, or not.
    pub answer: Option<Result<bool, &'a str>>,
    /// Now.
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub struct Decision {
    /// The pods that have the version, by uid.
    pub updated: BTreeSet<String>,
    /// What is so then.
    pub status: CapsuleRolloutStatus,
    /// All have it: it is to be the attachment's.
    pub is_done: bool,
    /// Time alone may change it, after this.
    pub again: Option<Duration>,
}

/// Decides for one rollout.
#[must_use]
pub fn decide(rollout: &CapsuleRollout, known: &Known<'_>) -> Decision {
    let before = rollout.status.clone().unwrap_or_default();
    if before.phase.is_over() {
        return Decision { updated: BTreeSet::new(), status: before, is_done: false, again: None };
    }
    let mut next =
        Next { rollout, known, status: before, updated: told(known.pods), is_done: false, again: None };
    next.status.observed_generation = rollout.metadata.generation;
    let said = next.go();
    next.count();
    status::tell(&mut next.status, rollout.status.as_ref(), said, known.now);
    let Next { updated, status, is_done, again, .. } = next;
    Decision { updated, status, is_done, again }
}

/// The pods that were told to have it.
fn told(pods: &BTreeMap<String, Member>) -> BTreeSet<String> {
    pods.iter().filter(|(_, pod)| pod.is_told).map(|(uid, _)| uid.clone()).collect()
}

/// The pods that have it by what is written of it, whatever was decided since.
pub fn before(rollout: &CapsuleRollout, pods: &BTreeMap<String, Member>) -> BTreeSet<String> {
    let status = rollout.status.as_ref();
    let has_begun = status.is_some_and(|status| status.from.is_some() && status.phase != Phase::RollingBack);
    if has_begun { told(pods) } else { BTreeSet::new() }
}

struct Next<'a> {
    rollout: &'a CapsuleRollout,
    known: &'a Known<'a>,
    status: CapsuleRolloutStatus,
    updated: BTreeSet<String>,
    is_done: bool,
    again: Option<Duration>,
}

impl Next<'_> {
    /// One look; what is said of it.
    fn go(&mut self) -> String {
        let version = self.known.version.unwrap_or_default();
        if self.status.from.is_none() {
            // What pods were told is another rollout's.
            self.updated.clear();
            return self.begin(version);
        }
        if self.known.version == Some(self.rollout.spec.version.as_str()) {
            // It is the attachment's own now.
            self.status.phase = Phase::Succeeded;
            return "it is the CapsuleAttachment's version".to_owned();
        }
        if self.status.from.as_deref() != Some(version) {
            self.updated.clear();
            self.status.phase = Phase::Superseded;
            return match self.known.version {
                None => "the CapsuleAttachment is gone".to_owned(),
                Some(_) => format!("the CapsuleAttachment was given the version {version:?}"),
            };
        }
        match self.status.phase {
            Phase::RollingBack => self.roll_back(),
            Phase::Stopped => self.said_before(),
            _ => match self.failure() {
                Some(why) => self.fail(why),
                None => self.progress(),
            },
        }
    }

    fn begin(&mut self, version: &str) -> String {
        let attachment = &self.rollout.spec.attachment;
        if self.known.version.is_none() {
            return format!("there is no CapsuleAttachment {attachment}");
        }
        if version.is_empty() {
            return format!(
                "the CapsuleAttachment {attachment} has no version, to which one could go back: give it the one that its pods have"
            );
        }
        if version == self.rollout.spec.version {
            self.status.phase = Phase::Succeeded;
            return format!("the CapsuleAttachment {attachment} has this version");
        }
        if let Some(other) = self.known.other {
            return format!("it waits for the CapsuleRollout {other}");
        }
        if let Some(query) = &self.rollout.spec.health.prometheus {
            self.again = Some(Duration::from_secs(1));
            match self.known.answer {
                Some(Ok(true)) => {}
                Some(Ok(false)) => {
                    return format!("it does not begin before Prometheus has an answer to {:?}", query.query);
                }
                Some(Err(why)) => return format!("it does not begin: {why}"),
                None => return "Prometheus is asked".to_owned(),
            }
        }
        self.status.from = Some(version.to_owned());
        self.status.answered_at = self.known.answer.map(|_| at(self.known.now));
        (self.status.phase, self.status.step) = (Phase::Progressing, 1);
        self.mark();
        "it begins".to_owned()
    }

    /// A step begins.
    fn mark(&mut self) {
        let now = Some(at(self.known.now));
        (self.status.stepped_at, self.status.progressed_at) = (now.clone(), now);
        self.again = Some(Duration::ZERO);
    }

    fn said_before(&self) -> String {
        status::message(&self.status).unwrap_or_default()
    }

    fn fail(&mut self, why: String) -> String {
        match self.rollout.spec.on_failure {
            OnFailure::RollBack => {
                self.status.phase = Phase::RollingBack;
                self.updated.clear();
            }
            OnFailure::Stop => self.status.phase = Phase::Stopped,
        }
        self.status.settled_at = None;
        why
    }

    fn roll_back(&mut self) -> String {
        self.updated.clear();
        // Whoever never had it has nothing to go back from, and whoever does not answer may have it still.
        let has_it = |c: &Progress| c.asked.as_ref() == Some(&self.rollout.spec.version);
        if self.known.pods.values().all(|pod| !pod.is_told && !pod.containers.iter().any(has_it)) {
            self.status.phase = Phase::RolledBack;
        }
        self.said_before()
    }

    fn count(&mut self) {
        let pods = self.known.pods.values();
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        self.status.pods = number(pods.len());
        self.status.updated = number(pods.clone().filter(|pod| self.is_updated(pod)).count());
        let healthy = number(pods.filter(|pod| self.is_well(pod)).count());
        if healthy > self.status.healthy && self.status.phase == Phase::Progressing {
            self.status.progressed_at = Some(at(self.known.now));
        }
        self.status.healthy = healthy;
    }

    /// How many pods the present step wants.
    fn goal(&self) -> usize {
        let all = self.known.pods.len();
        self.step().map_or(all, |step| share(&step.pods, all, true).min(all))
    }

    fn progress(&mut self) -> String {
        if self.known.pods.is_empty() {
            return "no pod has the CapsuleAttachment".to_owned();
        }
        let goal = self.goal();
        let well = self.known.pods.values().filter(|pod| self.is_well(pod)).count();
        let busy = self.updated.len() - well;
        if self.updated.len() >= goal && busy == 0 {
            return self.settled(goal);
        }
        self.status.settled_at = None;
        if self.rollout.spec.paused {
            self.status.phase = Phase::Paused;
            return format!("{well} pods have it and are well; it is paused");
        }
        self.status.phase = Phase::Progressing;
        self.again = Some(Duration::from_secs(1));
        if !self.is_answered(self.status.moved_at.as_ref()) {
            return format!(
                "{well} of {goal} pods have it and are well; Prometheus is asked before the next"
            );
        }
        let room = share(&self.rollout.spec.max_unavailable, self.known.pods.len(), false)
            .max(1)
            .saturating_sub(busy);
        let missing = goal.saturating_sub(self.updated.len());
        let more: Vec<String> = self.candidates().into_iter().take(room.min(missing)).collect();
        if !more.is_empty() {
            self.status.moved_at = Some(at(self.known.now));
        }
        self.updated.extend(more);
        format!("{well} of {goal} pods have it and are well")
    }

    /// Pods that do not have it, those that are ready first; always in the same order.
    fn candidates(&self) -> Vec<String> {
        let others = self.known.pods.iter().filter(|(uid, _)| !self.updated.contains(*uid));
        let mut others: Vec<_> =
            others.map(|(uid, pod)| (pod.unready_since.is_some(), &pod.name, uid)).collect();
        others.sort();
        others.into_iter().map(|(_, _, uid)| uid.clone()).collect()
    }

    /// All that the step wants have it and are well.
    fn settled(&mut self, goal: usize) -> String {
        let since = self.status.settled_at.get_or_insert_with(|| at(self.known.now)).0;
        if !self.is_answered(Some(&at(since))) {
            self.again = Some(Duration::from_secs(1));
            return format!("{goal} pods have it and are well; Prometheus is asked before it goes on");
        }
        let Some(step) = self.step().cloned() else {
            self.is_done = true;
            return format!("all {goal} pods have it and are well");
        };
        let left = seconds(step.pause_seconds).saturating_sub(self.since(Some(since)));
        if self.rollout.spec.paused {
            self.status.phase = Phase::Paused;
            return format!("{goal} pods have it and are well; it is paused");
        }
        if !left.is_zero() {
            self.status.phase = Phase::Progressing;
            self.again = Some(left.min(Duration::from_secs(5)));
            return format!("{goal} pods have it and are well; the next step is in a while");
        }
        let taken = usize::try_from(self.status.step).unwrap_or(0);
        let approvals = self.rollout.spec.steps.iter().take(taken).filter(|step| step.approval).count();
        if step.approval && usize::try_from(self.rollout.spec.approved).unwrap_or(0) < approvals {
            self.status.phase = Phase::Paused;
            return format!(
                "{goal} pods have it and are well; the next step is to be approved (spec.approved: {approvals})"
            );
        }
        self.status.phase = Phase::Progressing;
        (self.status.step, self.status.settled_at) = (self.status.step + 1, None);
        self.mark();
        format!("{goal} pods have it and are well")
    }

    fn since(&self, then: Option<Timestamp>) -> Duration {
        let then = then.unwrap_or(self.known.now);
        Duration::try_from(self.known.now.duration_since(then)).unwrap_or_default()
    }
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// A number of `all`, as it is or by percentage.
fn share(of: &IntOrString, all: usize, up: bool) -> usize {
    match of {
        IntOrString::Int(number) => usize::try_from(*number).unwrap_or(0),
        IntOrString::String(text) => {
            let percent =
                text.strip_suffix('%').and_then(|number| number.parse::<usize>().ok()).unwrap_or(100);
            if up { (all * percent).div_ceil(100) } else { all * percent / 100 }
        }
    }
}

mod health;
#[cfg(test)]
mod tests;
