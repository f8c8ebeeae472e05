//! `grpc.health.v1.Health`: which of this socket's services can do their work now.
//!
//! | service | `SERVING` |
//! | --- | --- |
//! | ``, `containerd.services.snapshots.v1.Snapshots` | until capsuled ends |
//! | each of `capsule.v1` | while containerd is followed, too |
//!
//! Source: grpc/grpc, `doc/health-checking.md`.

use std::pin::Pin;

use capsule_proto::containerd::services::snapshots::v1::snapshots_server;
use futures::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

/// The service.
#[derive(Debug, Clone)]
pub struct HealthService {
    capsules: &'static [&'static str],
    following: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
}

impl HealthService {
    /// Over the services of `capsule.v1` with these names. All calls end once `closing` is set.
    pub fn new(
        capsules: &'static [&'static str],
        following: watch::Receiver<bool>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self { capsules, following, closing }
    }

    /// As a server.
    pub fn into_server(self) -> HealthServer<Self> {
        HealthServer::new(self)
    }

    /// `None` for a service that there is not.
    fn status(&self, service: &str) -> Option<ServingStatus> {
        let is_capsules = self.capsules.contains(&service);
        if !is_capsules && !["", snapshots_server::SERVICE_NAME].contains(&service) {
            return None;
        }
        let serves = !*self.closing.borrow() && (!is_capsules || *self.following.borrow());
        Some(if serves { ServingStatus::Serving } else { ServingStatus::NotServing })
    }

    /// Waits until a status may be another one. False when there will be none after what is now.
    async fn changes(&mut self) -> bool {
        if *self.closing.borrow_and_update() {
            return false;
        }
        // An error means that nobody can set it any more.
        tokio::select! {
            changed = self.closing.changed() => changed.is_ok(),
            changed = self.following.changed() => changed.is_ok(),
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.status(&service) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status.into() })),
            None => Err(Status::not_found(format!("capsuled has no service {service:?}"))),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let states = stream::unfold((self.clone(), None), move |(mut this, last)| {
            let service = service.clone();
            async move {
                loop {
                    let now = this.status(&service).unwrap_or(ServingStatus::ServiceUnknown);
                    if last != Some(now) {
                        return Some((Ok(HealthCheckResponse { status: now.into() }), (this, Some(now))));
                    }
                    // What comes last is told, too.
                    if !this.changes().await
                        && this.status(&service).is_none_or(|status| last == Some(status))
                    {
                        return None;
                    }
                }
            }
        });
        Ok(Response::new(states.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPSULES: &[&str] = &["capsule.v1.Capsules"];

    fn service() -> (HealthService, watch::Sender<bool>, watch::Sender<bool>) {
        let (following, closing) = (watch::Sender::new(false), watch::Sender::new(false));
        let service = HealthService::new(CAPSULES, following.subscribe(), closing.subscribe());
        (service, following, closing)
    }

    async fn check(service: &HealthService, name: &str) -> Option<ServingStatus> {
        let request = Request::new(HealthCheckRequest { service: name.to_owned() });
        match service.check(request).await {
            Ok(answer) => Some(answer.into_inner().status()),
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::NotFound, "{status}");
                None
            }
        }
    }

    #[tokio::test]
    async fn capsules_are_served_while_containerd_is_followed_and_snapshots_always() {
        use ServingStatus::{NotServing, Serving};
        let (service, following, closing) = service();
        let names = ["", snapshots_server::SERVICE_NAME, CAPSULES[0], "capsule.v1.Nothing"];
        for (follows, closes, expected) in [
            (false, false, [Serving, Serving, NotServing]),
            (true, false, [Serving, Serving, Serving]),
            (true, true, [NotServing, NotServing, NotServing]),
        ] {
            following.send_replace(follows);
            closing.send_replace(closes);
            for (name, expected) in names.iter().zip(expected.map(Some).into_iter().chain([None])) {
                assert_eq!(check(&service, name).await, expected, "{name:?}: {follows} {closes}");
            }
        }
    }

    #[tokio::test]
    async fn a_watch_tells_each_change_and_ends_with_capsuled() {
        let (service, following, closing) = service();
        let request = |name: &str| Request::new(HealthCheckRequest { service: name.to_owned() });
        let mut states = service.watch(request(CAPSULES[0])).await.unwrap().into_inner();
        let mut unknown = service.watch(request("nothing")).await.unwrap().into_inner();
        let status =
            |answer: Option<Result<HealthCheckResponse, Status>>| answer.map(|a| a.unwrap().status());
        assert_eq!(status(states.next().await), Some(ServingStatus::NotServing));
        assert_eq!(status(unknown.next().await), Some(ServingStatus::ServiceUnknown));
        following.send_replace(true);
        assert_eq!(status(states.next().await), Some(ServingStatus::Serving));
        closing.send_replace(true);
        assert_eq!(status(states.next().await), Some(ServingStatus::NotServing));
        assert_eq!(status(states.next().await), None);
        assert_eq!(status(unknown.next().await), None);
    }
}
