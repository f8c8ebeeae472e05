//! Objects of the cluster, as they are and as they change: what is followed is kept (a reflector), and whoever waits is told.

use std::{fmt, sync::Arc};

use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Api, Resource,
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::{
        WatchStreamExt as _, reflector,
        reflector::{ObjectRef, Store},
        watcher,
        watcher::{Config, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

/// It has to be polled for anything to be followed; it ends with the watch.
pub type Watch = BoxStream<'static, ()>;

/// All objects of a kind, kept as they are; whoever waits is told of each change.
pub fn follow<K>(api: Api<DeserializeGuard<K>>, changed: &Arc<Notify>) -> (Store<K>, Watch)
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    follow_what(api, Config::default(), changed, |_| true, |_| true)
}

/// The same of those that `config` chooses and `keeps` keeps, where not every change is one for who waits. An object that is none, whoever
/// got it past its definition, is left out: it must not keep all others from being seen.
pub fn follow_what<K>(
    api: Api<DeserializeGuard<K>>,
    config: Config,
    changed: &Arc<Notify>,
    keeps: fn(&K) -> bool,
    mut matters: impl FnMut(&Event<K>) -> bool + Send + 'static,
) -> (Store<K>, Watch)
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let (changed, there) = (Arc::clone(changed), store.clone());
    let events =
        watcher(api, config).modify(|object| object.meta_mut().managed_fields = None).default_backoff();
    let is_there = move |object: &K| there.get(&ObjectRef::from_obj(object)).is_some();
    let of_use = move |event| valid(event).and_then(|event| kept(event, keeps, &is_there));
    let events = events.filter_map(move |event| std::future::ready(event.map(&of_use).transpose()));
    let told = reflector(writer, events).map(move |event| match event {
        Ok(event) if matters(&event) => changed.notify_one(),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the API server is away"),
    });
    (store, told.boxed())
}

/// An event, unless its object is none.
fn valid<K: Resource<DynamicType = ()>>(event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
    use Event::{Apply, Delete, Init, InitApply, InitDone};
    let checked = |DeserializeGuard(object): DeserializeGuard<K>| match object {
        Ok(object) => Some(object),
        Err(InvalidObject { error, metadata }) => {
            let (kind, name) = (K::kind(&()), metadata.name.unwrap_or_default());
            tracing::warn!(%kind, namespace = metadata.namespace, name, error, "left out: it cannot be read");
            None
        }
    };
    match event {
        Apply(object) => checked(object).map(Apply),
        Delete(object) => checked(object).map(Delete),
        InitApply(object) => checked(object).map(InitApply),
        Init => Some(Init),
        InitDone => Some(InitDone),
    }
}

/// An event of what is kept: what is not kept any more is deleted here, and nobody hears of what never was.
fn kept<K>(event: Event<K>, keeps: fn(&K) -> bool, is_there: impl Fn(&K) -> bool) -> Option<Event<K>> {
    use Event::{Apply, Delete, InitApply};
    match event {
        InitApply(object) => keeps(&object).then_some(InitApply(object)),
        Apply(object) if keeps(&object) => Some(Apply(object)),
        Apply(object) | Delete(object) => is_there(&object).then_some(Delete(object)),
        event => Some(event),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::CapsuleRollout;

    #[test]
    fn an_object_that_is_none_is_left_out() {
        let event = |pods: serde_json::Value| {
            let text = json!({ "metadata": { "name": "r" }, "spec": { "attachment": "a", "version": "1", "maxUnavailable": pods } });
            valid::<CapsuleRollout>(Event::InitApply(serde_json::from_value(text).unwrap()))
        };
        assert!(matches!(event(json!(1)), Some(Event::InitApply(_))));
        assert!(event(json!(3_000_000_000_u64)).is_none());
        assert!(matches!(valid::<CapsuleRollout>(Event::InitDone), Some(Event::InitDone)));
    }

    #[test]
    fn what_is_not_kept_is_not_heard_of_but_for_its_going() {
        let is_even = |number: &i32| number % 2 == 0;
        let told = |event, is_there: bool| kept(event, is_even, |_| is_there);
        assert!(matches!(told(Event::Apply(2), false), Some(Event::Apply(2))));
        assert!(matches!(told(Event::InitApply(2), false), Some(Event::InitApply(2))));
        assert!(told(Event::InitApply(1), false).is_none() && told(Event::Apply(1), false).is_none());
        assert!(matches!(told(Event::Apply(1), true), Some(Event::Delete(1))));
        assert!(told(Event::Delete(2), false).is_none());
        assert!(matches!(told(Event::Delete(2), true), Some(Event::Delete(2))));
    }
}
