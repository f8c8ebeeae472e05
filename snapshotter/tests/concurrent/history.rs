//! What several clients did at once, and whether one order of their calls explains every answer (Wing and Gong,
//! "Testing and verifying concurrent objects", 1993): a call takes effect at one instant between its beginning and its end.

use std::collections::{BTreeMap, HashSet};

use super::{
    call::{Answer, Call, Seen},
    reference::Reference,
};

/// A call as its client saw it; the two instants are of one clock for all clients.
#[derive(Clone, Debug)]
pub struct Event {
    pub call: Call,
    pub begun: u64,
    /// When it ended and with what; nothing when the daemon was killed meanwhile.
    pub ended: Option<(u64, Answer)>,
}

/// Each client's calls in its order.
pub type History = Vec<Vec<Event>>;

type State = BTreeMap<String, Seen>;

fn state(model: &Reference) -> State {
    let snapshots = model.snapshots.iter();
    snapshots.map(|(key, s)| (key.clone(), (s.kind, s.parent.clone(), s.labels.clone()))).collect()
}

struct Search<'a> {
    history: &'a History,
    last: &'a State,
    /// How far each client was and what the state was, where no order was found.
    tried: HashSet<(Vec<usize>, State)>,
}

/// The model after an order of the calls that begins with `model`, explains every answer, and ends with `last`.
pub fn explain(history: &History, model: &Reference, last: &State) -> Option<Reference> {
    let mut search = Search { history, last, tried: HashSet::new() };
    search.from(vec![0; history.len()], model)
}

impl Search<'_> {
    fn from(&mut self, done: Vec<usize>, model: &Reference) -> Option<Reference> {
        let next: Vec<Option<&Event>> =
            self.history.iter().zip(&done).map(|(events, done)| events.get(*done)).collect();
        if next.iter().all(Option::is_none) && state(model) == *self.last {
            return Some(model.clone());
        }
        if !self.tried.insert((done.clone(), state(model))) {
            return None;
        }
        // What ended first must have happened before anything that began later.
        let end = |event: &&Event| event.ended.as_ref().map_or(u64::MAX, |(end, _)| *end);
        let first_end = next.iter().flatten().map(end).min().unwrap_or(u64::MAX);
        for (client, event) in next.iter().enumerate() {
            let Some(event) = event.filter(|event| event.begun < first_end) else { continue };
            let mut after = done.clone();
            after[client] += 1;
            let mut changed = model.clone();
            let answer = event.call.ask(&mut changed);
            let found = match &event.ended {
                Some((_, given)) if *given != answer => None,
                Some(_) => self.from(after, &changed),
                // A call under way at the death may have been done, and may not.
                None => self.from(after.clone(), &changed).or_else(|| self.from(after, model)),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Kind, Refusal};

    fn event(call: Call, begun: u64, ended: Option<(u64, Answer)>) -> Event {
        Event { call, begun, ended }
    }

    fn prepare() -> Call {
        let (key, parent, label) = ("k".to_owned(), String::new(), "1".to_owned());
        Call::Create { kind: Kind::Active, key, parent, label }
    }

    fn stat() -> Call {
        Call::Stat { key: "k".to_owned() }
    }

    fn with_k() -> (Reference, State, Answer) {
        let mut model = Reference::default();
        prepare().ask(&mut model).unwrap();
        let answer = stat().ask(&mut model);
        let state = state(&model);
        (model, state, answer)
    }

    #[test]
    fn what_is_read_after_the_end_must_be_new_and_before_may_be_either() {
        let (_, made, found) = with_k();
        let missing: Answer = Err(Refusal::NotFound);
        let done: Answer = Ok(BTreeMap::new());
        let empty = Reference::default();
        let case = |read_begun, answer: &Answer| {
            let writer = vec![event(prepare(), 1, Some((4, done.clone())))];
            let reader = vec![event(stat(), read_begun, Some((9, answer.clone())))];
            explain(&vec![writer, reader], &empty, &made).is_some()
        };
        assert!(case(2, &missing) && case(2, &found) && case(5, &found));
        assert!(!case(5, &missing));
    }

    #[test]
    fn a_refusal_is_no_reason_to_see_the_old_state_again() {
        let (_, made, _) = with_k();
        let empty = Reference::default();
        let writer = vec![event(prepare(), 1, Some((9, Ok(BTreeMap::new()))))];
        let other = vec![
            event(prepare(), 2, Some((3, Err(Refusal::AlreadyExists)))),
            event(stat(), 4, Some((5, Err(Refusal::NotFound)))),
        ];
        assert!(explain(&vec![writer, other], &empty, &made).is_none());
    }

    #[test]
    fn a_call_that_never_ended_may_have_been_done_or_not() {
        let (_, made, _) = with_k();
        let empty = Reference::default();
        let history = vec![vec![event(prepare(), 1, None)]];
        assert!(explain(&history, &empty, &made).is_some());
        assert!(explain(&history, &empty, &State::new()).is_some());
    }
}
