//! What containerd believes of its plugins.

use std::path::PathBuf;

use capsule_proto::containerd::services::introspection::v1::{
    PluginsRequest, introspection_client::IntrospectionClient,
};

use super::{Containerd, ContainerdError};

/// containerd's name for the kind of plugin that we are.
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
/// And for what keeps blobs.
const CONTENT: &str = "io.containerd.content.v1";

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
    /// The directory in which containerd keeps blobs; `None` where a plugin of somebody else's keeps them elsewhere. Snapshots of
    /// its own snapshotters and its database lie beside it, in its `root`.
    ///
    /// # Errors
    /// containerd's.
    pub async fn content_root(&self) -> Result<Option<PathBuf>, ContainerdError> {
        let filters = vec![format!("type=={CONTENT}")];
        let reply = IntrospectionClient::new(self.channel.clone())
            .plugins(PluginsRequest { filters })
            .await
            .map_err(|e| self.failed("list its plugins", e))?;
        // v2.1.9 `plugins/content/local/plugin`, 1.7 `services/server/server.go`: they export it.
        let root =
            reply.into_inner().plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root"));
        Ok(root.map(PathBuf::from))
    }

    /// containerd's version, as `v2.1.9` or `1.7.24~ds1`.
    pub async fn version(&self) -> Result<String, ContainerdError> {
        use capsule_proto::containerd::services::version::v1::version_client::VersionClient;
        let reply = VersionClient::new(self.channel.clone()).version(()).await;
        Ok(reply.map_err(|e| self.failed("tell its version", e))?.into_inner().version)
    }
}
