//! Events to containerd: an ordered queue of our own.
//!
//! containerd-shim's publisher gives an event up after five tries, lets later events overtake one that is retried, and
//! does not flush at exit. Here an event stays at the head until containerd has it. The queue is short however long
//! containerd is away: without it nothing new is started, and what is left are exits, one of each process. A container
//! may run out of memory again and again meanwhile; of that, one event waits in a row ([`Publisher::publish_oom`]).

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use containerd_shim::{
    Context,
    event::Event,
    protos::{
        api::ForwardRequest,
        events::task::TaskOOM,
        protobuf::{Message, MessageField, well_known_types::timestamp::Timestamp},
        shim::event::Envelope,
        shim_async::EventsClient,
        ttrpc,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    connection,
    message::{self, EVENTS},
};

/// One try to hand an event over.
const TRY: Duration = Duration::from_secs(5);
/// Pause between tries: doubles from the first to the second value.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Publishes events in the order of the calls to [`Publisher::publish`].
#[derive(Clone)]
pub struct Publisher {
    namespace: Arc<str>,
    queue: mpsc::UnboundedSender<Queued>,
    /// How many events are queued or in flight.
    pending: watch::Sender<usize>,
    ooms: Ooms,
}

struct Queued {
    envelope: Envelope,
    /// The container that it says to be out of memory, if it says that.
    oom: Option<String>,
}

/// The containers of which it is queued, and not in flight, that they ran out of memory, with no other event behind it.
#[derive(Clone, Default)]
struct Ooms(Arc<Mutex<HashSet<String>>>);

impl Ooms {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Publisher {
    /// Starts publishing to containerd's ttrpc socket at `address`.
    pub fn start(address: String, namespace: &str) -> Self {
        let (queue, events) = mpsc::unbounded_channel();
        let (pending, ooms) = (watch::Sender::new(0), Ooms::default());
        tokio::spawn(forward_all(address, events, pending.clone(), ooms.clone()));
        Self { namespace: namespace.into(), queue, pending, ooms }
    }

    /// Queues an event. Neither waits nor fails.
    pub fn publish(&self, event: impl Event + Message) {
        // What comes from now on explains what comes later.
        self.ooms.lock().clear();
        self.enqueue(event, None);
    }

    /// Queues that a container ran out of memory, unless just that is queued already, with no other event than of that kind
    /// behind it. Once it is being sent containerd may know it: then it is queued once more.
    pub fn publish_oom(&self, container_id: &str) {
        if self.ooms.lock().insert(container_id.to_owned()) {
            let id = container_id.to_owned();
            self.enqueue(TaskOOM { container_id: id.clone(), ..Default::default() }, Some(id));
        }
    }

    fn enqueue(&self, event: impl Event + Message, oom: Option<String>) {
        let topic = event.topic();
        let event = match message::wrap(EVENTS, &event) {
            Ok(event) => event,
            Err(error) => return log::error!("encode event {topic}: {error}"),
        };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.to_string(),
            topic,
            event: MessageField::some(event),
            ..Default::default()
        };
        self.pending.send_modify(|pending| *pending += 1);
        if self.queue.send(Queued { envelope, oom }).is_err() {
            log::error!("the publisher has ended");
        }
    }

    /// Waits until containerd has every event, at most `limit`. Returns how many it has not.
    pub async fn flush(&self, limit: Duration) -> usize {
        let mut pending = self.pending.subscribe();
        // The sender is `self`: it cannot be gone.
        let _ = timeout(limit, pending.wait_for(|pending| *pending == 0)).await;
        *self.pending.borrow()
    }
}

async fn forward_all(
    address: String,
    mut events: mpsc::UnboundedReceiver<Queued>,
    pending: watch::Sender<usize>,
    ooms: Ooms,
) {
    let mut client = None;
    while let Some(Queued { envelope, oom }) = events.recv().await {
        if let Some(container) = oom {
            ooms.lock().remove(&container);
        }
        deliver(&address, &mut client, envelope).await;
        pending.send_modify(|pending| *pending -= 1);
    }
}

/// Tries until containerd has the event, or has refused it for good.
async fn deliver(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) {
    let request = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
    let mut pause = BACKOFF.0;
    loop {
        match forward(address, client, &request).await {
            Ok(()) => return,
            Err(error) if is_final(&error) => {
                return log::error!("containerd refuses event {}: {error}", request.envelope.topic);
            }
            Err(error) => {
                log::warn!("publish {}: {error}; next try in {pause:?}", request.envelope.topic);
                *client = None;
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

async fn forward(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let client = match client {
        Some(client) => client,
        None => client.insert(EventsClient::new(connection::connect(address).await?)),
    };
    let nanoseconds = i64::try_from(TRY.as_nanos()).unwrap_or(i64::MAX);
    client.forward(Context { timeout_nano: nanoseconds, ..Default::default() }, request).await?;
    Ok(())
}

/// containerd answered, and will answer the same next time.
fn is_final(error: &ttrpc::Error) -> bool {
    matches!(error, ttrpc::Error::RpcStatus(status)
        if matches!(status.code(), ttrpc::Code::INVALID_ARGUMENT | ttrpc::Code::UNIMPLEMENTED))
}

/// A time as protobuf has it.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos().cast_signed(),
        ..Default::default()
    }
}

/// What is told in the place of a time that there is none of: 0001-01-01T00:00:00Z, by which programs in Go know that
/// (`time.Time.IsZero`). A field that is left out is 1970 for them.
pub fn no_time() -> Timestamp {
    Timestamp { seconds: -62_135_596_800, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use async_trait::async_trait;
    use containerd_shim::protos::{
        api::Empty,
        events::task::TaskPaused,
        shim_async::{Events, create_events},
        ttrpc::r#async::{Server, TtrpcContext},
    };

    use super::*;

    #[derive(Default)]
    struct Containerd {
        seen: Mutex<Vec<String>>,
        failures: Mutex<u32>,
    }

    #[async_trait]
    impl Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "later")));
            }
            self.seen
                .lock()
                .unwrap()
                .push(TaskOOM::parse_from_bytes(&request.envelope.event.value).unwrap().container_id);
            Ok(Empty::default())
        }
    }

    fn oom(id: &str) -> TaskOOM {
        TaskOOM { container_id: id.into(), ..Default::default() }
    }

    fn serve(socket: &Path, containerd: &Arc<Containerd>) -> Server {
        Server::new()
            .bind(&format!("unix://{}", socket.display()))
            .unwrap()
            .register_service(create_events(containerd.clone()))
    }

    /// More failures than containerd-shim's publisher would stand, and a containerd that starts late.
    #[tokio::test]
    async fn events_arrive_in_order_through_failures() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("ttrpc");
        let publisher = Publisher::start(socket.display().to_string(), "ns");
        publisher.publish(oom("1"));
        publisher.publish(oom("2"));
        assert_eq!(publisher.flush(Duration::from_millis(80)).await, 2);

        let containerd = Arc::new(Containerd { failures: Mutex::new(7), ..Default::default() });
        let mut server = serve(&socket, &containerd);
        server.start().await.unwrap();
        publisher.publish(oom("3"));
        assert_eq!(publisher.flush(Duration::from_secs(30)).await, 0);
        assert_eq!(*containerd.seen.lock().unwrap(), ["1", "2", "3"]);
    }

    #[tokio::test]
    async fn of_one_containers_want_of_memory_one_event_waits_in_a_row() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("ttrpc");
        let publisher = Publisher::start(socket.display().to_string(), "ns");
        let many = |id| (0..1000).for_each(|_| publisher.publish_oom(id));
        many("a");
        assert_eq!(publisher.flush(Duration::from_millis(80)).await, 1);
        // The first is being sent. Whether containerd has it nobody knows.
        many("a");
        many("b");
        many("a");
        assert_eq!(publisher.flush(Duration::ZERO).await, 3);
        // What is killed next may be what ends next.
        publisher.publish(TaskPaused { container_id: "c".into(), ..Default::default() });
        many("a");
        assert_eq!(publisher.flush(Duration::ZERO).await, 5);

        let containerd = Arc::new(Containerd::default());
        let mut server = serve(&socket, &containerd);
        server.start().await.unwrap();
        assert_eq!(publisher.flush(Duration::from_secs(30)).await, 0);
        publisher.publish_oom("a");
        assert_eq!(publisher.flush(Duration::from_secs(30)).await, 0);
        assert_eq!(*containerd.seen.lock().unwrap(), ["a", "a", "b", "c", "a", "a"]);
    }
}
