//! A shim's own socket, for the calls that containerd makes by itself and tells nobody about.

use std::fs;

use anyhow::{Context as _, Result};
use containerd_shim::protos::api::{
    ConnectRequest, ConnectResponse, DeleteRequest, DeleteResponse, Empty, ShutdownRequest, StateRequest,
    StateResponse,
};
use protobuf::Message;
use tokio::runtime::Runtime;
use ttrpc::asynchronous::Client;

use super::client::NAMESPACE;

const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task";
/// Generous: nothing that is asked here takes long.
const LIMIT: i64 = 60_000_000_000;

/// A connection to a shim.
pub struct Shim {
    runtime: Runtime,
    client: Client,
    /// Of its Task API.
    version: u32,
}

impl Shim {
    /// Connects to the shim of a container, by what is noted of it.
    pub fn of(container: &str) -> Result<Self> {
        let (address, version) = Self::noted(container)?;
        Ok(Self { version, ..Self::at(&address)? })
    }

    /// What is noted of the shim of a container: its address, and the version of its Task API. By containerd 2; for 1.7, which
    /// knows one version, the shim itself notes where it is.
    pub fn noted(container: &str) -> Result<(String, u32)> {
        let bundle = format!("{BUNDLES}/{NAMESPACE}/{container}");
        if let Ok(text) = fs::read(format!("{bundle}/bootstrap.json")) {
            let noted: serde_json::Value = serde_json::from_slice(&text).context("parse bootstrap.json")?;
            let address = noted["address"].as_str().context("bootstrap.json has no address")?;
            let version = noted["version"].as_u64().and_then(|version| version.try_into().ok());
            return Ok((address.to_owned(), version.context("bootstrap.json has no version")?));
        }
        let address = fs::read_to_string(format!("{bundle}/address"));
        Ok((address.with_context(|| format!("nothing is noted of the shim in {bundle}"))?, 2))
    }

    /// Connects to the shim that has this address, and serves the newest version.
    pub fn at(address: &str) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let client = runtime.block_on(Client::connect(address));
        let client = client.with_context(|| format!("connect to {address}"))?;
        Ok(Self { runtime, client, version: 3 })
    }

    /// Connect: the pids of the shim and of the task.
    pub fn connect(&self, container: &str) -> Result<(u32, u32)> {
        let request = ConnectRequest { id: container.to_owned(), ..Default::default() };
        let answer: ConnectResponse = self.call("Connect", &request)?;
        Ok((answer.shim_pid, answer.task_pid))
    }

    /// State.
    pub fn state(&self, container: &str, exec: &str) -> Result<StateResponse> {
        let (id, exec_id) = (container.to_owned(), exec.to_owned());
        self.call("State", &StateRequest { id, exec_id, ..Default::default() })
    }

    /// Delete of the task.
    pub fn delete(&self, container: &str) -> Result<()> {
        let request = DeleteRequest { id: container.to_owned(), ..Default::default() };
        self.call::<DeleteResponse>("Delete", &request).map(drop)
    }

    /// Shutdown, which a shim follows once it has no container: it may be gone before it has answered.
    pub fn shutdown(&self, container: &str) -> Result<()> {
        let request = ShutdownRequest { id: container.to_owned(), ..Default::default() };
        match self.call::<Empty>("Shutdown", &request) {
            Err(error) if matches!(error.downcast_ref(), Some(ttrpc::Error::RpcStatus(_))) => Err(error),
            _ => Ok(()),
        }
    }

    fn call<T: Message>(&self, method: &str, request: &dyn protobuf::MessageDyn) -> Result<T> {
        self.ask(&format!("containerd.task.v{}.Task", self.version), method, request)
    }

    /// Any call of any service.
    ///
    /// # Errors
    /// [`ttrpc::Error`], with the shim's status if it has answered.
    pub fn ask<T: Message>(
        &self,
        service: &str,
        method: &str,
        request: &dyn protobuf::MessageDyn,
    ) -> Result<T> {
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            timeout_nano: LIMIT,
            payload: request.write_to_bytes_dyn().context("encode a request")?,
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.client.request(request)).context(method.to_owned())?;
        T::parse_from_bytes(&answer.payload).with_context(|| format!("decode the answer to {method}"))
    }
}
