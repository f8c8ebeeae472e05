//! A VolumeAttributesClass, which clusters have since Kubernetes 1.34.

use std::collections::BTreeMap;

use k8s_openapi::{ClusterResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::Deserialize;

use super::resource;

/// See above.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Modifier {
    #[serde(default)]
    metadata: ObjectMeta,
    /// Whose volumes it is for.
    pub driver_name: String,
    /// What it changes.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

impl Modifier {
    /// Its name among the kinds of its group.
    pub const PLURAL: &str = "volumeattributesclasses";
    /// Its group and version.
    pub const API_VERSION: &str = "storage.k8s.io/v1";
}

resource!(
    Modifier,
    ClusterResourceScope,
    "storage.k8s.io",
    "VolumeAttributesClass",
    "volumeattributesclasses"
);

#[cfg(test)]
mod tests {
    use kube::Resource as _;

    use super::*;

    #[test]
    fn it_is_where_the_api_has_it() {
        assert_eq!(
            Modifier::url_path(&(), None),
            format!("/apis/{}/{}", Modifier::API_VERSION, Modifier::PLURAL)
        );
    }
}
