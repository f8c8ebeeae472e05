//! What a container uses, in the metrics messages that containerd's clients read (`io.containerd.cgroups.v1` and
//! `v2`), by containerd-shim's readers. Its version 2 reader has cpu, memory and pids; the rest is to come.

use containerd_shim::{
    Error, Result,
    cgroup::{collect_metrics, collect_metrics_v2, get_cgroup},
    protos::protobuf::well_known_types::any::Any,
    util::convert_to_any,
};

use crate::engine::state::State;

/// The metrics of the cgroup that the container's init is in.
///
/// # Errors
/// When the init has ended, or its cgroup cannot be read.
pub fn collect(state: State) -> Result<Any> {
    if state.pid() == 0 || state.exit().is_some() {
        return Err(Error::NotFoundError("the container has no cgroup: it is not running".into()));
    }
    let cgroup = get_cgroup(state.pid().cast_unsigned())?;
    if cgroup.v2() {
        convert_to_any(Box::new(collect_metrics_v2(&cgroup)?))
    } else {
        convert_to_any(Box::new(collect_metrics(&cgroup)?))
    }
}
