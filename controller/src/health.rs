//! What the kubelet and Prometheus ask the parts.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use capsule_telemetry::http::{self, Answer};
use tokio::net::TcpListener;

use crate::meters::Meters;

/// A program that has not got round for so long never will.
const SILENT: Duration = Duration::from_secs(600);

/// Serves `/metrics`, `/livez` and `/readyz`, until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(address: SocketAddr, meters: Meters) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    tokio::spawn(http::serve(listener, move |path| {
        let answer = answer(&path, &meters);
        async move { answer }
    }));
    Ok(())
}

fn answer(path: &str, meters: &Meters) -> Answer {
    match path {
        "/metrics" => meters.text().map_or_else(|error| Answer::unavailable(&error), Answer::metrics),
        "/livez" if meters.silent_for() > SILENT => {
            Answer::unavailable(&format!("nothing was done for {:?}", meters.silent_for()))
        }
        "/livez" => Answer::ok(),
        "/readyz" if meters.is_ready() => Answer::ok(),
        "/readyz" => Answer::unavailable(&"what it needs does not answer: see the log"),
        _ => Answer::not_found("/metrics, /livez or /readyz"),
    }
}
