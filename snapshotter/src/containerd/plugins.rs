//! What containerd believes of its plugins.

use capsule_proto::containerd::services::introspection::v1::{
    PluginsRequest, introspection_client::IntrospectionClient,
};

use super::{Containerd, ContainerdError};

/// containerd's name for the kind of plugin that we are.
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

impl Containerd {
    /// The capabilities that containerd's configuration gives the snapshotter `name`; `None` when it has no such
    /// snapshotter.
    pub async fn snapshotter_capabilities(&self, name: &str) -> Result<Option<Vec<String>>, ContainerdError> {
        let filters = vec![format!("type=={SNAPSHOTTER},id=={name}")];
        let reply = IntrospectionClient::new(self.channel.clone())
            .plugins(PluginsRequest { filters })
            .await
            .map_err(|e| self.failed("list its plugins", e))?;
        Ok(reply.into_inner().plugins.into_iter().next().map(|plugin| plugin.capabilities))
    }
}

impl Containerd {
    /// containerd's version, as `v2.1.9` or `1.7.24~ds1`.
    pub async fn version(&self) -> Result<String, ContainerdError> {
        use capsule_proto::containerd::services::version::v1::version_client::VersionClient;
        let reply = VersionClient::new(self.channel.clone()).version(()).await;
        Ok(reply.map_err(|e| self.failed("tell its version", e))?.into_inner().version)
    }
}
