//! `metrics`: what capsuled counts, printed once or served over HTTP.
//!
//! capsuled itself listens on no network. This process needs its socket and nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use capsule_proto::capsule::v1::{self, attachments_server};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{Target, write_out};
use crate::error::Error;
use crate::trace::Caller;

/// Of OpenMetrics 1.0, section 4.3.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
/// How many connections are served at once.
const CONNECTIONS: usize = 16;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(5);

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
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed.
        let Ok(place) = room.clone().acquire_owned().await else { return Ok(()) };
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Of one connection, or no descriptor is left: others may do.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let node = node.clone();
        tokio::spawn(async move {
            let caller = Caller::default();
            let to = Target { place: &node, output, caller: &caller };
            let answer = service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(answer(to, &request).await)
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(true)
                .serve_connection(TokioIo::new(stream), answer);
            // The client's loss: there is nobody to tell.
            let _ended = served.await;
            drop(place);
        });
    }
}

async fn answer(to: Target<'_>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned());
        refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => match read(to).await {
            Ok(text) => body(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        },
        // This process answers.
        "/livez" => plain(StatusCode::OK, "ok\n".to_owned()),
        // And capsuled does; and can do its work.
        path @ ("/healthz" | "/readyz") => match serves(to, service_of(path)).await {
            Ok(()) => plain(StatusCode::OK, "ok\n".to_owned()),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        _ => plain(StatusCode::NOT_FOUND, "use /metrics, /healthz, /readyz or /livez\n".to_owned()),
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

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    body(status, PLAIN, text)
}

fn body(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
