//! Errors as containerd's clients know them: each kind of failure has its status.

use containerd_shim::protos::ttrpc::{Code, Error, get_status};

use crate::{
    bundle::BundleError,
    creation::CreationError,
    engine::{EngineError, chain},
    stats::StatsError,
};

/// An error with its status code and all its causes in one line.
pub fn wire(error: EngineError) -> Error {
    Error::RpcStatus(get_status(code(&error), chain(&error)))
}

fn code(error: &EngineError) -> Code {
    match error {
        EngineError::NoContainer(_)
        | EngineError::NoSandbox(_)
        | EngineError::NoExec { .. }
        | EngineError::Finished
        | EngineError::NoCgroup(_)
        | EngineError::Stats(StatsError::Gone(_)) => Code::NOT_FOUND,
        EngineError::Exists(_) | EngineError::ExecExists { .. } => Code::ALREADY_EXISTS,
        EngineError::InitGone(_)
        | EngineError::Creation(
            CreationError::Node(_) | CreationError::Patch(_) | CreationError::Profile(_),
        )
        | EngineError::SandboxPhase(..)
        | EngineError::NotMade { .. }
        | EngineError::Denials(_)
        | EngineError::Node(_)
        | EngineError::HasCapsules { .. } => Code::FAILED_PRECONDITION,
        EngineError::Id(_)
        | EngineError::Options(_)
        | EngineError::Bundle(BundleError::Annotation { .. }) => Code::INVALID_ARGUMENT,
        EngineError::Abandoned(_) => Code::ABORTED,
        EngineError::Ending(_) => Code::UNAVAILABLE,
        // What containerd's own shim answers so: clients take this, and only this, for "the request made no sense now".
        EngineError::Refused(_)
        | EngineError::ExecSpec(..)
        | EngineError::UnknownSignal(_)
        | EngineError::Resources(..)
        | EngineError::Signal(..)
        | EngineError::Bundle(_)
        | EngineError::Rootfs(_)
        | EngineError::Io(_)
        | EngineError::Runtime(_)
        | EngineError::Update(_)
        | EngineError::Checkpoint { .. }
        | EngineError::Creation(_)
        | EngineError::Journal(_)
        | EngineError::Stats(_)
        | EngineError::Undead(_) => Code::UNKNOWN,
    }
}
