//! Kinds of Kubernetes' own, as far as they are of use here: a cluster may have 100,000 claims, and most of what a claim says is for others.

mod claim;
mod modifier;
mod namespace;
mod volume;

pub use claim::{Claim, Modifying};
pub use modifier::Modifier;
pub use namespace::Namespace;
pub use volume::{ClaimRef, Phase, Volume};

/// What the API calls it.
macro_rules! resource {
    ($slim:ty, $scope:ty, $group:literal, $kind:literal, $plural:literal) => {
        impl kube::Resource for $slim {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
use resource;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What says which object it is, and in which state.
fn identity(whole: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: whole.name,
        namespace: whole.namespace,
        uid: whole.uid,
        resource_version: whole.resource_version,
        deletion_timestamp: whole.deletion_timestamp,
        ..ObjectMeta::default()
    }
}
