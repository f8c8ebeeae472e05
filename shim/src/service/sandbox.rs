//! The Sandbox API (`containerd.runtime.sandbox.v1.Sandbox`), which containerd's sandbox controller `shim` calls for clients
//! of its Controller service, and for CRI with `sandboxer = "shim"`. CRI's default, `podsandbox`, makes pods of containers and never calls it.
//!
//! containerd 1.7's own shim serves it as `pause`, a sandbox that is a record and no process: its pid is 0. From 2.0 on
//! that shim has none at all. This is the record, with an end that can be waited for: a container that asks for the
//! namespaces of process 0 fails, as there, and never gets the host's instead.

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use containerd_shim::{TtrpcContext, TtrpcResult, protos::types::platform::Platform};
use containerd_shim_protos::{
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
        PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
        SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
        StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
        WaitSandboxResponse,
    },
    sandbox_async::Sandbox,
};
use protobuf::MessageField;

use super::status::wire;
use crate::{
    engine::{Engine, Phase},
    events::timestamp,
};

/// The Sandbox service over an engine.
pub struct SandboxService(pub Arc<Engine>);

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> TtrpcResult<CreateSandboxResponse> {
        self.0.sandboxes().create(&request.sandbox_id).map_err(wire)?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> TtrpcResult<StartSandboxResponse> {
        let since = self.0.sandboxes().start(&request.sandbox_id, SystemTime::now()).map_err(wire)?;
        let created_at = MessageField::some(timestamp(since));
        Ok(StartSandboxResponse { created_at, ..Default::default() })
    }

    async fn platform(&self, _: &TtrpcContext, _: PlatformRequest) -> TtrpcResult<PlatformResponse> {
        let platform =
            Platform { os: "linux".into(), architecture: architecture().into(), ..Default::default() };
        Ok(PlatformResponse { platform: MessageField::some(platform), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> TtrpcResult<StopSandboxResponse> {
        self.0.sandboxes().stop(&request.sandbox_id, SystemTime::now()).map_err(wire)?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> TtrpcResult<WaitSandboxResponse> {
        let at = self.0.sandboxes().wait(&request.sandbox_id).await.map_err(wire)?;
        Ok(WaitSandboxResponse { exited_at: MessageField::some(timestamp(at)), ..Default::default() })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> TtrpcResult<SandboxStatusResponse> {
        let phase = self.0.sandboxes().phase(&request.sandbox_id).map_err(wire)?;
        let (since, at) = match phase {
            Phase::Created => (None, None),
            Phase::Ready { since } => (Some(since), None),
            Phase::Stopped { since, at } => (since, Some(at)),
        };
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            state: phase.name().to_owned(),
            created_at: since.map(timestamp).into(),
            exited_at: at.map(timestamp).into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> TtrpcResult<PingResponse> {
        self.0.sandboxes().phase(&request.sandbox_id).map_err(wire)?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> TtrpcResult<ShutdownSandboxResponse> {
        self.0.sandboxes().remove(&request.sandbox_id, SystemTime::now());
        // What the call promises, also when containerd takes a half made sandbox back.
        self.0.end();
        Ok(ShutdownSandboxResponse::default())
    }

    /// Nothing is in the sandbox that its containers' own numbers do not have.
    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> TtrpcResult<SandboxMetricsResponse> {
        self.0.sandboxes().phase(&request.sandbox_id).map_err(wire)?;
        Ok(SandboxMetricsResponse::default())
    }
}

/// As Go names it (`GOARCH`).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
}
