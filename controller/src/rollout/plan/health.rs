//! Whether pods are well, and a rollout gets on.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Member, Next, Progress, seconds};
use crate::api::{Phase, State, Step, at};

impl Next<'_> {
    /// Why it has failed, if it has.
    pub(super) fn failure(&mut self) -> Option<String> {
        for pod in self.known.pods.values().filter(|pod| pod.is_told) {
            let version = &self.rollout.spec.version;
            let failed = pod
                .containers
                .iter()
                .find(|c| c.asked.as_ref() == Some(version) && c.state == Some(State::Failed));
            if let Some(failed) = failed {
                return Some(format!(
                    "{}: {}",
                    pod.name,
                    failed.message.as_deref().unwrap_or("it cannot have it")
                ));
            }
            if self.is_unwell(pod) {
                let patience = self.rollout.spec.health.unready_seconds;
                return Some(format!("{} is not ready, for longer than {patience} s", pod.name));
            }
        }
        if let Some(query) = &self.rollout.spec.health.prometheus {
            match self.known.answer {
                Some(Ok(true)) => {
                    self.status.unanswered = 0;
                    self.status.answered_at = Some(at(self.known.now));
                }
                Some(Ok(false)) if !self.updated.is_empty() => self.status.unanswered += 1,
                // It is not known: nothing gets on until it is.
                _ => {}
            }
            if self.status.unanswered > query.tolerated {
                return Some(format!(
                    "Prometheus has had no answer {} times to {:?}",
                    self.status.unanswered, query.query
                ));
            }
        }
        let waited = self.since(self.status.progressed_at.as_ref().map(|time| time.0));
        let deadline = seconds(self.rollout.spec.progress_deadline_seconds);
        let is_late = !self.waits() && waited > deadline;
        is_late.then(|| {
            format!(
                "nothing got on for {} s: {}",
                self.rollout.spec.progress_deadline_seconds,
                self.said_before()
            )
        })
    }

    /// Whether it is to wait: for somebody, for the pause of a step, or for a pod.
    pub(super) fn waits(&self) -> bool {
        let pause = self.step().map_or(Duration::ZERO, |step| seconds(step.pause_seconds));
        let settled = self.status.settled_at.as_ref().map(|time| time.0);
        let is_pausing = settled.is_some_and(|settled| self.since(Some(settled)) <= pause);
        self.status.phase == Phase::Paused || is_pausing || self.known.pods.is_empty()
    }

    /// The step that it is at; none at the last, with all pods.
    pub(super) fn step(&self) -> Option<&Step> {
        self.rollout.spec.steps.get(usize::try_from(self.status.step - 1).unwrap_or(0))
    }

    /// Whether the query, if there is one, has had an answer since then.
    pub(super) fn is_answered(&self, since: Option<&Time>) -> bool {
        self.rollout.spec.health.prometheus.is_none()
            || self.status.answered_at.as_ref().is_some_and(|at| since.is_none_or(|since| at.0 > since.0))
    }

    /// Not ready, for longer than it may be. One that was not ready before the step has as long as the others get on, and then as long again:
    /// it is not this version's doing alone.
    fn is_unwell(&self, pod: &Member) -> bool {
        let health = &self.rollout.spec.health;
        let Some(since) = pod.unready_since.filter(|_| health.readiness) else { return false };
        let [stepped, progressed] = [&self.status.stepped_at, &self.status.progressed_at]
            .map(|time| time.as_ref().map_or(since, |time| time.0));
        let counted = if since < stepped { progressed } else { since };
        self.since(Some(counted)) > seconds(health.unready_seconds)
    }

    pub(super) fn is_updated(&self, pod: &Member) -> bool {
        let version = Some(&self.rollout.spec.version);
        pod.is_told
            && pod.containers.iter().all(|c| c.asked.as_ref() == version && c.state == Some(State::Attached))
    }

    /// It has it for long enough, and is ready.
    pub(super) fn is_well(&self, pod: &Member) -> bool {
        let health = &self.rollout.spec.health;
        let is_settled = |c: &Progress| self.since(c.since) >= seconds(health.settle_seconds);
        self.is_updated(pod)
            && pod.containers.iter().all(is_settled)
            && (pod.unready_since.is_none() || !health.readiness)
    }
}
