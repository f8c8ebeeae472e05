//! Parts of what is said when something goes wrong with an attachment. Pure.

use super::model::{Attachment, ContainerKey};
use crate::{docker::Unanswered, shims::User, uppers::model::UpperName};

pub fn with_targets(all: &[Attachment]) -> String {
    let what = all.iter().map(|a| format!("{}{}", a.label(), at_target(&a.target)));
    what.collect::<Vec<_>>().join(", ")
}

/// The words of `capsulectl detach` for one.
pub fn what_to_detach(attachment: &Attachment) -> String {
    match attachment.has_capsule() {
        true => attachment.capsule.to_string(),
        false => attachment
            .device_names()
            .iter()
            .map(|name| format!("--device {name}"))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

pub fn nothing_to_decide(container: &ContainerKey, name: Option<&UpperName>) -> String {
    match name {
        Some(name) => format!(
            "what was written in {container} is kept as {name} in any case: leave --keep and --drop out; \"capsulectl uppers rm {name}\" removes it"
        ),
        None => format!(
            "the attachment in {container} is read-only, so nothing was written: leave --keep and --drop out"
        ),
    }
}

pub fn in_namespace(namespace: &str) -> String {
    if namespace.is_empty() { String::new() } else { format!(" in the containerd namespace {namespace}") }
}

pub fn by_ids(unanswered: Option<&Unanswered>) -> String {
    unanswered.map(|why| format!("; {why}; name one of Docker's by its id")).unwrap_or_default()
}

pub fn in_the_pod(names: &[String]) -> String {
    match names {
        [] => "see \"crictl ps\"".to_owned(),
        names => format!("the pod has {}", names.join(", ")),
    }
}

pub fn at_target(target: &str) -> String {
    if target.is_empty() { String::new() } else { format!(" at {target}") }
}

/// How many users a message names.
const USERS_NAMED: usize = 3;

pub fn list_users(users: &[User]) -> String {
    let mut named: Vec<String> = users
        .iter()
        .take(USERS_NAMED)
        .map(|u| format!("process {} ({}) has {} ({})", u.pid, u.command, u.path, u.how))
        .collect();
    if users.len() > USERS_NAMED {
        named.push(format!("and {} more", users.len() - USERS_NAMED));
    }
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_of_a_busy_attachment_are_named() {
        let user = |pid| User { pid, command: "cat".into(), path: "/data/x".into(), how: "fd 3".into() };
        let one = list_users(&[user(7)]);
        assert_eq!(one, "process 7 (cat) has /data/x (fd 3)");
        let many = list_users(&(1..=5).map(user).collect::<Vec<_>>());
        assert!(many.ends_with("process 3 (cat) has /data/x (fd 3), and 2 more"), "{many}");
    }
}
