//! `devices`: what the node has by CDI.

use std::fmt::Write;
use std::time::SystemTime;

use capsule_proto::capsule::v1;
use serde::Serialize;

use super::Target;
use crate::args::DevicesArgs;
use crate::error::Error;
use crate::table::Table;
use crate::text::{Text, escape_control};
use crate::view::filled;

/// Result of `devices`.
#[derive(Debug, Serialize)]
struct Devices {
    devices: Vec<Device>,
    /// What is wrong with specs.
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Device {
    name: String,
    /// The file of its spec.
    spec: String,
    nodes: Vec<Node>,
    /// How many files and directories of the host are mounted for it.
    mounts: u32,
    hooks: u32,
    /// Names of variables.
    environment: Vec<String>,
    /// Why it cannot be had now; `null` when it can.
    unavailable: Option<String>,
    used_by: Vec<Use>,
}

#[derive(Debug, Serialize)]
struct Node {
    path: String,
    host_path: String,
    /// `b`, `c` or `p`.
    r#type: String,
    major: u32,
    minor: u32,
    /// Letters of `rwm`.
    access: String,
}

#[derive(Debug, Serialize)]
struct Use {
    namespace: String,
    container: String,
    attachment: String,
}

#[derive(Debug, Serialize)]
struct Problem {
    path: String,
    reason: String,
}

impl From<v1::Device> for Device {
    fn from(device: v1::Device) -> Self {
        let node = |node: v1::DeviceNode| Node {
            path: node.path,
            host_path: node.host_path,
            r#type: node.r#type,
            major: node.major,
            minor: node.minor,
            access: node.access,
        };
        let user = |user: v1::DeviceUse| Use {
            namespace: user.namespace,
            container: user.container,
            attachment: user.attachment_id,
        };
        Self {
            name: device.name,
            spec: device.spec,
            nodes: device.nodes.into_iter().map(node).collect(),
            mounts: device.mounts,
            hooks: device.hooks,
            environment: device.environment,
            unavailable: filled(device.unavailable),
            used_by: device.used_by.into_iter().map(user).collect(),
        }
    }
}

impl Text for Devices {
    fn text(&self, _: SystemTime) -> String {
        let mut table = Table::new(["DEVICE", "NODES", "MOUNTS", "USED BY", "SPEC"]);
        for device in &self.devices {
            let nodes = match &device.unavailable {
                Some(reason) => format!("unavailable: {reason}"),
                None => device.nodes.iter().map(|node| node.path.as_str()).collect::<Vec<_>>().join(","),
            };
            let users = device.used_by.iter().map(|user| format!("{}/{}", user.namespace, user.container));
            table.row([
                device.name.clone(),
                nodes,
                device.mounts.to_string(),
                users.collect::<Vec<_>>().join(","),
                device.spec.clone(),
            ]);
        }
        let mut text = table.to_string();
        if !self.problems.is_empty() {
            text.push_str("\nNot used:\n");
        }
        for Problem { path, reason } in &self.problems {
            // Writing to a String does not fail.
            let _ = writeln!(text, "  {}: {}", escape_control(path), escape_control(reason));
        }
        text
    }
}

/// Lists devices.
///
/// # Errors
/// capsuled's, and when no device is of the name.
pub async fn list(to: Target<'_>, args: DevicesArgs) -> Result<(), Error> {
    let answer = to.connect().await?.devices().list_devices(v1::ListDevicesRequest {}).await?.into_inner();
    let problem = |problem: v1::SpecProblem| Problem { path: problem.path, reason: problem.reason };
    let mut devices = Devices {
        devices: answer.devices.into_iter().map(Device::from).collect(),
        problems: answer.problems.into_iter().map(problem).collect(),
    };
    if let Some(only) = args.only {
        let class = format!("{only}=");
        devices.devices.retain(|device| device.name == only || device.name.starts_with(&class));
        if devices.devices.is_empty() {
            return Err(Error::NoDevice(only));
        }
    }
    to.print(&devices, &devices)
}
