//! What the shim has noticed by itself, until capsuled has published it. In memory: it tells of what this process saw.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// How many are kept that nobody has asked for.
const KEPT: usize = 64;

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Somebody had taken what an attachment gives, and it is given again.
    Repaired,
    /// Somebody else's device program is kept behind an attachment's devices.
    ForeignProgram,
    /// Devices of an attachment are denied, and cannot be given again.
    Denied,
}

/// One notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Grows with each, over shims too: microseconds since the epoch, or one more than the last.
    pub number: u64,
    /// The container.
    pub container: String,
    /// The attachment that it is about.
    pub attachment: String,
    /// When, in milliseconds since the epoch.
    pub at: i64,
    /// What.
    pub kind: Kind,
    /// For people.
    pub text: String,
}

/// The newest notices of all containers of this shim.
#[derive(Debug, Default)]
pub struct Notices(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    notices: VecDeque<Notice>,
}

impl Notices {
    /// Keeps one, and forgets the oldest where there are too many.
    pub fn add(&self, container: &str, attachment: &str, kind: Kind, text: String) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last = u64::try_from(since.as_micros()).unwrap_or(0).max(kept.last + 1);
        if kept.notices.len() == KEPT {
            kept.notices.pop_front();
        }
        let notice = Notice {
            number: kept.last,
            container: container.to_owned(),
            attachment: attachment.to_owned(),
            at: i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            kind,
            text,
        };
        kept.notices.push_back(notice);
    }

    /// Those of a container, or of all, of numbers above `after`. Those of the container up to it are forgotten.
    pub fn take_after(&self, container: Option<&str>, after: u64) -> Vec<Notice> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of = |notice: &Notice| container.is_none_or(|id| notice.container == id);
        kept.notices.retain(|notice| !is_of(notice) || notice.number > after);
        kept.notices.iter().filter(|notice| is_of(notice)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_until_it_is_known_to_be_published() {
        let notices = Notices::default();
        for (container, text) in [("a", "one"), ("b", "two"), ("a", "three")] {
            notices.add(container, "x", Kind::Repaired, text.to_owned());
        }
        let texts = |container, after| -> Vec<String> {
            notices.take_after(container, after).into_iter().map(|notice| notice.text).collect()
        };
        let first = notices.take_after(Some("a"), 0);
        assert!(first.is_sorted_by(|one, next| one.number < next.number));
        assert_eq!(texts(Some("a"), 0), ["one", "three"]);
        assert_eq!(texts(Some("a"), first[0].number), ["three"]);
        assert_eq!(texts(Some("a"), 0), ["three"], "what is published is gone");
        assert_eq!(texts(None, 0), ["two", "three"]);
        assert_eq!(texts(Some("a"), first[1].number), [""; 0]);
        assert_eq!(texts(Some("b"), 0), ["two"]);
    }

    #[test]
    fn only_the_newest_are_kept() {
        let notices = Notices::default();
        (0..100).for_each(|n| notices.add("a", "x", Kind::ForeignProgram, n.to_string()));
        let kept = notices.take_after(None, 0);
        assert_eq!((kept.len(), kept[0].text.as_str(), kept[63].text.as_str()), (64, "36", "99"));
    }
}
