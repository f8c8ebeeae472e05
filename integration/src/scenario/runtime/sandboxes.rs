//! The Sandbox API, which containerd's sandbox controller `shim` calls: on the shim's own socket.
//!
//! containerd 1.7's own shim serves it, that of 2.x does not. There a sandbox is no more than answers; with ours it is a
//! record, with states and an end.

use anyhow::{Context as _, Result, anyhow, ensure};
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest,
    StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use ttrpc::Code;

use super::Case;
use super::bed::{Bed, eventually};
use super::process::{ByHand, socket_in};
use super::shim::Shim;

/// The cases.
pub const CASES: &[Case] =
    &[Case::new("a sandbox on the shim's own socket, where there is one", by_hand).in_vm()];

/// The cases of what only ours does.
pub const OWN_CASES: &[Case] =
    &[Case::new("the states of a sandbox, and calls that make no sense in them", states)];

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// One sandbox, on a connection of its own.
struct Sandbox {
    id: String,
    shim: Shim,
}

impl Sandbox {
    fn at(address: &str, id: &str) -> Result<Self> {
        Ok(Self { id: id.to_owned(), shim: Shim::at(address)? })
    }

    fn create(&self) -> Result<()> {
        let request = CreateSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.shim.ask::<CreateSandboxResponse>(SERVICE, "CreateSandbox", &request).map(drop)
    }

    fn start(&self) -> Result<StartSandboxResponse> {
        let request = StartSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.shim.ask(SERVICE, "StartSandbox", &request)
    }

    fn platform(&self) -> Result<String> {
        let request = PlatformRequest { sandbox_id: self.id.clone(), ..Default::default() };
        let answer: PlatformResponse = self.shim.ask(SERVICE, "Platform", &request)?;
        Ok(format!("{}/{}", answer.platform.os, answer.platform.architecture))
    }

    fn status(&self) -> Result<SandboxStatusResponse> {
        let request = SandboxStatusRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.shim.ask(SERVICE, "SandboxStatus", &request)
    }

    fn ping(&self) -> Result<()> {
        let request = PingRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.shim.ask::<PingResponse>(SERVICE, "PingSandbox", &request).map(drop)
    }

    fn stop(&self) -> Result<()> {
        let request = StopSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.shim.ask::<StopSandboxResponse>(SERVICE, "StopSandbox", &request).map(drop)
    }

    fn wait(&self) -> Result<WaitSandboxResponse> {
        let request = WaitSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.shim.ask(SERVICE, "WaitSandbox", &request)
    }

    fn shutdown(&self) -> Result<()> {
        let request = ShutdownSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.shim.ask::<ShutdownSandboxResponse>(SERVICE, "ShutdownSandbox", &request).map(drop)
    }
}

/// The status of an answer that is none of success.
fn code<T: std::fmt::Debug>(answer: Result<T>) -> Result<Code> {
    let error = answer.err().context("it succeeds")?;
    match error.downcast_ref::<ttrpc::Error>() {
        Some(ttrpc::Error::RpcStatus(status)) => Ok(status.code()),
        _ => Err(error),
    }
}

fn by_hand(bed: &Bed) -> Result<String> {
    let shim = ByHand::new(bed, "sandbox")?;
    let socket = socket_in(&shim.start(b"")?)?;
    let (address, id) = (format!("unix://{}", socket.display()), shim.id.clone());
    let sandbox = Sandbox::at(&address, &id)?;
    if bed.is_reference() && bed.facts().containerd_2 {
        let code = code(sandbox.create())?;
        ensure!(code == Code::UNIMPLEMENTED, "CreateSandbox answers {code:?}");
        return shim.end(bed, &socket).map(|()| "not served".to_owned());
    }
    sandbox.create().context("create")?;
    let started = sandbox.start().context("start")?;
    // A sandbox without a process.
    ensure!(started.pid == 0, "{started:?}");
    let platform = sandbox.platform().context("platform")?;
    ensure!(platform == "linux/amd64" || platform == "linux/arm64", "{platform}");
    sandbox.ping().context("ping")?;
    let status = sandbox.status().context("status")?;
    let waiting = Sandbox::at(&address, &id)?;
    let waiter = std::thread::spawn(move || waiting.wait());
    if bed.is_reference() {
        // It is not waited for at all, and ends with its shim.
        eventually("the wait to be over", || {
            ensure!(waiter.is_finished(), "it is not");
            Ok(())
        })?;
    }
    sandbox.stop().context("stop")?;
    let waited = waiter.join().map_err(|_| anyhow!("the waiter panicked"))?.context("wait")?;
    ensure!(waited.exit_status == 0, "{waited:?}");
    let shut_down = sandbox.shutdown();
    ensure!(shut_down.is_ok() || bed.is_reference(), "{shut_down:?}");
    eventually("the shim to end", || {
        let left = shim.servers()?;
        ensure!(left.is_empty() && !socket.exists(), "{left:?} {}", socket.display());
        Ok(())
    })?;
    shim.end(bed, &socket).map(|()| format!("{platform} {:?}", status.state))
}

fn states(bed: &Bed) -> Result<String> {
    let shim = ByHand::new(bed, "states")?;
    let socket = socket_in(&shim.start(b"")?)?;
    let address = format!("unix://{}", socket.display());
    let (sandbox, other) = (Sandbox::at(&address, &shim.id)?, Sandbox::at(&address, "other")?);
    let expect = |what: &str, answer: Result<Code>, expected: Code| {
        let seen = answer.with_context(|| what.to_owned())?;
        ensure!(seen == expected, "{what} answers {seen:?} instead of {expected:?}");
        Ok(())
    };
    expect("start before create", code(sandbox.start()), Code::NOT_FOUND)?;
    sandbox.create()?;
    expect("a second create", code(sandbox.create()), Code::ALREADY_EXISTS)?;
    expect("ping of another", code(other.ping()), Code::NOT_FOUND)?;
    let mut states = vec![sandbox.status()?];
    let started = sandbox.start()?;
    expect("a second start", code(sandbox.start()), Code::FAILED_PRECONDITION)?;
    // With a sandbox it is not without work.
    sandbox.shim.shutdown(&shim.id)?;
    states.push(sandbox.status()?);
    let waiting = Sandbox::at(&address, &shim.id)?;
    let waiter = std::thread::spawn(move || waiting.wait());
    std::thread::sleep(std::time::Duration::from_millis(200));
    ensure!(!waiter.is_finished(), "nobody waits for a sandbox that runs");
    sandbox.stop()?;
    sandbox.stop().context("stop it again")?;
    let waited = waiter.join().map_err(|_| anyhow!("the waiter panicked"))??;
    states.push(sandbox.status()?);
    ensure!(sandbox.wait()? == waited, "another end the second time");
    let names: Vec<_> = states.iter().map(|status| status.state.as_str()).collect();
    ensure!(names == ["SANDBOX_CREATED", "SANDBOX_READY", "SANDBOX_NOTREADY"], "{names:?}");
    let begins = states.iter().map(|status| status.created_at.is_some());
    ensure!(begins.eq([false, true, true]) && states[2].created_at == started.created_at, "{states:?}");
    ensure!(states[2].exited_at == waited.exited_at && waited.exited_at.is_some(), "{states:?} {waited:?}");
    sandbox.shutdown()?;
    eventually("the shim to end", || {
        let left = shim.servers()?;
        ensure!(left.is_empty() && !socket.exists(), "{left:?}");
        Ok(())
    })?;
    shim.end(bed, &socket).map(|()| names.join(", "))
}
