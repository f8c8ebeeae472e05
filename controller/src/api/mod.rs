//! Custom resources, `resourcecapsules.io/v1alpha1`.
//!
//! | kind | scope | who writes it | who reads it |
//! | --- | --- | --- | --- |
//! | [`CapsuleAttachment`] | a namespace | people: which pods have which capsule. Its status, the controller | the controller |
//! | [`NodeCapsules`] | the cluster, one for each node, of the node's name | the controller: what containers of the node have. Its status, the node's agent | that agent, and no other |

mod attachment;
mod node;
mod pieces;

pub use attachment::{CapsuleAttachment, CapsuleAttachmentSpec, CapsuleAttachmentStatus};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
pub use node::{Assigned, Done, NodeCapsules, NodeCapsulesSpec, NodeCapsulesStatus, Owner, PodRef, State};
pub use pieces::{Mode, Resources};

/// All definitions, as the API server takes them.
pub fn definitions() -> [CustomResourceDefinition; 2] {
    [CapsuleAttachment::crd(), NodeCapsules::crd()]
}
