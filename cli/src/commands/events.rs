//! Following what happens on the node: a line for each event, taken up again when capsuled is restarted.

use std::error::Error as _;
use std::io::Write;
use std::time::Duration;

use capsule_proto::capsule::v1::{self, EventKind};
use serde::Serialize;
use tonic::{Code, Status};

use super::{Target, write_out};
use crate::args::Output;
use crate::client::Client;
use crate::error::Error;
use crate::remote::RemoteError;
use crate::text::escape_control;
use crate::view::{Time, filled};

/// How long to wait before capsuled is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// One event, as programs read it.
#[derive(Debug, Serialize)]
struct Event {
    sequence: u64,
    at: Option<Time>,
    kind: String,
    container: Option<String>,
    namespace: Option<String>,
    attachment_id: Option<String>,
    target: Option<String>,
    capsule: String,
    version: String,
    from_version: Option<String>,
    digest: String,
    tag: Option<String>,
    message: Option<String>,
    /// What its client called the container; `null` where it had no name beside its id.
    container_name: Option<String>,
    /// The pod that the container is of, as `NAMESPACE/NAME`, and what it is called there.
    pod: Option<String>,
    pod_container: Option<String>,
}

impl From<v1::Event> for Event {
    fn from(e: v1::Event) -> Self {
        Self {
            kind: word(e.kind()),
            sequence: e.sequence,
            at: e.at.map(Time),
            container: filled(e.container),
            namespace: filled(e.namespace),
            attachment_id: filled(e.attachment_id),
            target: filled(e.target),
            capsule: e.capsule,
            version: e.version,
            from_version: filled(e.from_version),
            digest: e.digest,
            tag: filled(e.tag),
            message: filled(e.message),
            container_name: filled(e.container_name),
            pod: filled(e.pod),
            pod_container: filled(e.pod_container),
        }
    }
}

impl Event {
    /// The container as a person names it, and as a command takes it.
    fn place(&self) -> Option<String> {
        if let (Some(pod), Some(container)) = (&self.pod, &self.pod_container) {
            return Some(format!("pod/{pod}/{container}"));
        }
        let (namespace, id) = self.namespace.as_ref().zip(self.container.as_ref())?;
        Some(format!("{namespace}/{}", self.container_name.as_ref().unwrap_or(id)))
    }

    /// As a person reads it.
    fn line(&self) -> String {
        let at = self.at.map(|at| at.0.to_string()).unwrap_or_default();
        let mut line = format!("{at}  {}  {:<11} ", self.sequence, self.kind);
        // One of devices alone has neither.
        if !self.capsule.is_empty() {
            line += &format!(" {}", self.capsule);
        }
        if let Some(from) = &self.from_version {
            line += &format!(" {from} ->");
        }
        if !self.version.is_empty() {
            line += &format!(" {}", self.version);
        }
        if let Some(tag) = &self.tag {
            line += &format!(" as {tag}");
        }
        if let Some(place) = self.place() {
            line += &format!(" in {place}");
        }
        if let Some(target) = &self.target {
            line += &format!(" at {target}");
        }
        if let Some(message) = &self.message {
            line += &format!(": {message}");
        }
        escape_control(&line)
    }
}

/// `rolled-back` of `EVENT_KIND_ROLLED_BACK`: the API's own word.
fn word(kind: EventKind) -> String {
    kind.as_str_name().trim_start_matches("EVENT_KIND_").to_ascii_lowercase().replace('_', "-")
}

/// Prints events until there are no more to come.
///
/// # Errors
/// capsuled's, but for its going away once it has been there: it is waited for then.
pub async fn follow(to: Target<'_>, mut request: v1::WatchRequest) -> Result<(), Error> {
    let mut client = to.connect().await?;
    loop {
        let before = request.after;
        match watch(to, &client, &mut request).await {
            Ok(()) if request.no_follow => return Ok(()),
            Err(error) if !is_away(&error) => return Err(error),
            // It ends such calls when it is restarted.
            _ => {}
        }
        if request.after == before {
            tokio::time::sleep(RETRY).await;
        }
        client = again(to).await?;
    }
}

/// Connects to capsuled, however long it is away.
async fn again(to: Target<'_>) -> Result<Client, Error> {
    let mut is_told = false;
    loop {
        match to.connect().await {
            Err(error) if cannot_be_reached(&error) => {
                if !std::mem::replace(&mut is_told, true) {
                    // A note lost is no failure.
                    let _ = writeln!(std::io::stderr(), "capsulectl: note: {}; waiting for it", error.line());
                }
            }
            connected => return connected,
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// One call. Where the next one goes on is in `request` when it ends.
async fn watch(to: Target<'_>, client: &Client, request: &mut v1::WatchRequest) -> Result<(), Error> {
    let mut answers = client.events().watch(request.clone()).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(event) = answer.event {
            print(to, &event.into())?;
        }
        request.after = Some(answer.sequence);
    }
    Ok(())
}

fn print(to: Target<'_>, event: &Event) -> Result<(), Error> {
    let line = match to.output {
        Output::Text => event.line(),
        Output::Json => serde_json::to_string(event).map_err(Error::Json)?,
    };
    write_out(format!("{line}\n").as_bytes())
}

fn cannot_be_reached(error: &Error) -> bool {
    matches!(
        error,
        Error::Connect { .. }
            | Error::Handshake { .. }
            | Error::Remote(RemoteError::Unreachable { .. } | RemoteError::Handshake { .. })
    )
}

fn is_away(error: &Error) -> bool {
    // A connection that breaks has a source; what capsuled says has none.
    let is = |status: &Status| {
        status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::Cancelled)
    };
    matches!(error, Error::Call(status) if is(status))
}
