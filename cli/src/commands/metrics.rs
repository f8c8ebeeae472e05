//! `metrics`: what capsuled counts, printed once or served over HTTP.
//!
//! capsuled itself listens on no network. This process needs its socket and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;

use capsule_proto::capsule::v1::{self, attachments_server};
use capsule_telemetry::http::{self, Answer};
use tokio::net::TcpListener;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{Target, write_out};
use crate::error::Error;
use crate::trace::Caller;

/// Prints what capsuled counts, or serves it.
///
/// # Errors
/// capsuled's where it is printed once; when the address cannot be listened on.
pub async fn metrics(to: Target<'_>, listen: Option<SocketAddr>) -> Result<(), Error> {
    match listen {
        None => write_out(read(to).await?.as_bytes()),
        Some(address) => serve(to, address).await,
    }
}

async fn read(to: Target<'_>) -> Result<String, Error> {
    let answer = to.connect().await?.metrics().read_metrics(v1::ReadMetricsRequest {}).await?;
    Ok(answer.into_inner().text)
}

async fn serve(to: Target<'_>, address: SocketAddr) -> Result<(), Error> {
    let refused = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    write_out(format!("serving on http://{}/metrics\n", listener.local_addr().map_err(refused)?).as_bytes())?;
    let (node, output) = (Arc::new(to.place.clone()), to.output);
    let answer = move |path: String| {
        let node = Arc::clone(&node);
        async move {
            let caller = Caller::default();
            answer(Target { place: &node, output, caller: &caller }, &path).await
        }
    };
    http::serve(listener, answer).await;
    Ok(())
}

async fn answer(to: Target<'_>, path: &str) -> Answer {
    match path {
        "/metrics" => read(to).await.map_or_else(|error| Answer::unavailable(&error), Answer::metrics),
        // This process answers.
        "/livez" => Answer::ok(),
        // And capsuled does; and can do its work.
        "/healthz" | "/readyz" => {
            serves(to, service_of(path)).await.map_or_else(|why| Answer::unavailable(&why), |()| Answer::ok())
        }
        _ => Answer::not_found("/metrics, /healthz, /readyz or /livez"),
    }
}

/// The service that a path is about: the one that attaches, or all that is left without containerd.
fn service_of(path: &str) -> &'static str {
    if path == "/readyz" { attachments_server::SERVICE_NAME } else { "" }
}

/// Whether a service of capsuled's can do its work, as it says itself; one that cannot say it is old, and does when it answers.
async fn serves(to: Target<'_>, service: &str) -> Result<(), String> {
    let client = to.connect().await.map_err(|error| error.to_string())?;
    let request = HealthCheckRequest { service: service.to_owned() };
    match client.health().check(request).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(_) => {
            Err("capsuled is not ready: it does not follow containerd (yet), or ends; see its log".to_owned())
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(()),
        Err(status) => Err(format!("capsuled does not say whether it is ready: {}", status.message())),
    }
}
