//! What is said of a rollout beside its numbers: its one condition.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use crate::api::{CapsuleRolloutStatus, Phase, at, dated};

const COMPLETE: &str = "Complete";

fn condition(status: &CapsuleRolloutStatus) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.type_ == COMPLETE)
}

/// What was said last.
#[must_use]
pub fn message(status: &CapsuleRolloutStatus) -> Option<String> {
    condition(status).map(|condition| condition.message.clone())
}

/// Says it. The time of the condition is that of its last change between true and false.
pub fn tell(
    status: &mut CapsuleRolloutStatus,
    before: Option<&CapsuleRolloutStatus>,
    said: String,
    now: Timestamp,
) {
    let is = if status.phase == Phase::Succeeded { "True" } else { "False" };
    let condition = Condition {
        type_: COMPLETE.to_owned(),
        status: is.to_owned(),
        reason: format!("{:?}", status.phase),
        message: said,
        observed_generation: status.observed_generation,
        last_transition_time: at(now),
    };
    let before = before.map_or(&[][..], |before| &before.conditions);
    status.conditions = vec![dated(condition, before)];
}
