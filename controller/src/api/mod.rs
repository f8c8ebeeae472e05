//! Custom resources, `resourcecapsules.io/v1alpha1`.
//!
//! | kind | scope | who writes it | who reads it |
//! | --- | --- | --- | --- |
//! | [`Capsule`] | the cluster | administrators: which versions nodes have before a pod asks. Its status, the controller | the controller |
//! | [`CapsuleAttachment`] | a namespace | people: which pods have which capsule. Its status, the controller | the controller |
//! | [`CapsuleRollout`] | a namespace | people: another version for the pods of a `CapsuleAttachment`, in steps. Its status, the controller | the controller |
//! | [`StorageContract`] | the cluster | administrators: directories of a node that outlive the cluster. Its status, the controller | the controller |
//! | [`NodeCapsules`] | the cluster, one for each node, of the node's name | the controller: what containers of the node have, and its volumes. Its status, the node's agent | that agent |

mod attachment;
mod capsule;
mod contract;
mod node;
mod pieces;
mod rollout;
mod volume;

pub use attachment::{CapsuleAttachment, CapsuleAttachmentSpec, CapsuleAttachmentStatus};
pub use capsule::{Capsule, CapsuleSpec, CapsuleStatus, Retention};
pub use contract::{
    AccessMode, Below, Claimant, Directory, DirectoryState, DirectoryStatus, StorageContract,
    StorageContractSpec, StorageContractStatus,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
pub use node::{
    Assigned, Done, FetchState, Fetched, NodeCapsules, NodeCapsulesSpec, NodeCapsulesStatus, Owner, PodRef,
    State, Wanted,
};
pub use pieces::{HealthCheck, Mode, Resources, dated};
pub use rollout::{
    CapsuleRollout, CapsuleRolloutSpec, CapsuleRolloutStatus, Health, OnFailure, Phase, Query, Step, at,
};
pub use volume::{VolumeDone, VolumeMode, VolumeOwner, VolumeState, VolumeWanted};

/// All definitions, as the API server takes them.
pub fn definitions() -> [CustomResourceDefinition; 5] {
    [
        Capsule::crd(),
        CapsuleAttachment::crd(),
        CapsuleRollout::crd(),
        StorageContract::crd(),
        NodeCapsules::crd(),
    ]
}
