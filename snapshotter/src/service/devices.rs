//! `capsule.v1.Devices`.

use std::sync::Arc;

use capsule_proto::capsule::v1 as wire;
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status};

use crate::{
    attachments::{Attachments, model::Attachment},
    devices::{Listed, Listing, Node, Problem, Registry},
};

/// The service.
#[derive(Clone)]
pub struct DevicesService {
    registry: Arc<Registry>,
    attachments: Attachments,
}

impl DevicesService {
    /// Over the specs of the node, and what is attached.
    pub fn new(registry: Arc<Registry>, attachments: Attachments) -> Self {
        Self { registry, attachments }
    }
}

#[tonic::async_trait]
impl wire::devices_server::Devices for DevicesService {
    async fn list_devices(
        &self,
        _: Request<wire::ListDevicesRequest>,
    ) -> Result<Response<wire::ListDevicesResponse>, Status> {
        let (registry, users) = (self.registry.clone(), self.attachments.with_any_devices());
        // Reads files, and looks at nodes of the host.
        let answer = spawn_blocking(move || answer(&registry.listing(), &users)).await;
        answer.map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }
}

fn answer(listing: &Listing, users: &[Attachment]) -> wire::ListDevicesResponse {
    let problem = |problem: &Problem| wire::SpecProblem {
        path: problem.path.display().to_string(),
        reason: problem.reason.clone(),
    };
    wire::ListDevicesResponse {
        devices: listing.devices().map(|listed| device(listed, users)).collect(),
        problems: listing.problems().iter().map(problem).collect(),
    }
}

fn device(listed: Listed, users: &[Attachment]) -> wire::Device {
    let (edits, unavailable) = match listed.edits {
        Ok(edits) => (edits, String::new()),
        Err(error) => (Default::default(), error.to_string()),
    };
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let variable = |entry: &String| entry.split('=').next().unwrap_or_default().to_owned();
    let name = listed.name.to_string();
    let uses = users.iter().filter(|user| user.device_names().contains(&name));
    let used_by = uses.map(|user| wire::DeviceUse {
        namespace: user.container.namespace.clone(),
        container: user.container.id.clone(),
        attachment_id: user.id.clone(),
    });
    wire::Device {
        used_by: used_by.collect(),
        name,
        spec: listed.file.display().to_string(),
        nodes: edits.nodes.iter().map(node).collect(),
        mounts: count(edits.mounts.len()),
        hooks: count(edits.hooks.len()),
        environment: edits.env.iter().map(variable).collect(),
        unavailable,
    }
}

fn node(node: &Node) -> wire::DeviceNode {
    wire::DeviceNode {
        path: node.path.clone(),
        host_path: node.host_path.clone(),
        r#type: node.kind.letter().to_owned(),
        major: node.major,
        minor: node.minor,
        access: node.access.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_has_is_listed_with_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let spec = "cdiVersion: 0.6.0\nkind: example.com/dev\ndevices:\n\
            - name: null\n  containerEdits: {deviceNodes: [{path: /dev/mine, hostPath: /dev/null, permissions: rw}], env: [A=1]}\n\
            - name: gone\n  containerEdits: {deviceNodes: [{path: /dev/gone-for-good}]}\n";
        std::fs::write(dir.path().join("good.yaml"), spec).unwrap();
        std::fs::write(dir.path().join("bad.json"), "{").unwrap();
        let answer = answer(&Registry::new(vec![dir.path().to_owned()]).listing(), &[]);
        let [gone, null] = &answer.devices[..] else { panic!("{answer:?}") };
        assert_eq!((gone.name.as_str(), gone.nodes.len()), ("example.com/dev=gone", 0));
        assert!(gone.unavailable.contains("/dev/gone-for-good"), "{}", gone.unavailable);
        assert_eq!((null.unavailable.as_str(), null.environment.as_slice()), ("", &["A".to_owned()][..]));
        let node = &null.nodes[0];
        assert_eq!(
            (node.path.as_str(), node.r#type.as_str(), node.access.as_str()),
            ("/dev/mine", "c", "rw")
        );
        assert_eq!((node.host_path.as_str(), node.major, node.minor), ("/dev/null", 1, 3));
        assert!(answer.problems[0].path.ends_with("bad.json") && answer.problems.len() == 1);
    }
}
