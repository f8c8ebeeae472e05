//! What hot-plug needs of a container's `config.json`: as the runtime had it, whatever has become of the container since.

use std::path::Path;

use serde_json::Value;

use super::error::DevicesError;
use crate::bundle::Bundle;

/// Read for each call: it is needed by few.
#[derive(Debug, Default)]
pub struct Config {
    /// `linux.resources.devices`.
    pub rules: Value,
    /// `linux.devices`.
    pub nodes: Vec<Value>,
    /// `mounts`.
    pub mounts: Vec<Value>,
    /// `hooks.createContainer`.
    pub hooks: Vec<Value>,
    /// `process.user`: user and group.
    pub user: (u32, u32),
    /// `process.env`.
    pub env: Vec<String>,
    /// `ociVersion`.
    pub version: String,
}

impl Config {
    /// Reads the one of `bundle`.
    ///
    /// # Errors
    /// [`DevicesError::Config`].
    pub fn read(bundle: &Path) -> Result<Self, DevicesError> {
        let bundle = Bundle::new(&bundle.display().to_string());
        let config = bundle.and_then(|bundle| bundle.read_config()).map_err(DevicesError::Config)?;
        Ok(Self::of(&config))
    }

    /// The paths of `linux.devices`.
    pub fn paths(&self) -> Vec<&str> {
        self.nodes.iter().filter_map(|node| node["path"].as_str()).collect()
    }

    pub(super) fn of(config: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(text).collect()
        };
        let id = |name: &str| {
            let number = config["process"]["user"][name].as_u64().and_then(|id| u32::try_from(id).ok());
            number.unwrap_or(0)
        };
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        Self {
            rules: config["linux"]["resources"]["devices"].clone(),
            nodes: list(&config["linux"]["devices"]),
            mounts: list(&config["mounts"]),
            hooks: list(&config["hooks"]["createContainer"]),
            user: (id("uid"), id("gid")),
            env: texts(&config["process"]["env"]),
            version: text(&config["ociVersion"]).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_out_is_empty() {
        let config = Config::of(&json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 1000, "gid": 5}, "env": ["A=1", "B=2"]},
            "linux": {
                "devices": [{"path": "/dev/a", "type": "c"}],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            },
        }));
        assert_eq!((config.user, config.paths()), ((1000, 5), vec!["/dev/a"]));
        assert_eq!((config.env.len(), config.rules.as_array().map(Vec::len)), (2, Some(1)));
        let empty = Config::of(&json!({}));
        assert_eq!((empty.user, empty.rules.clone(), empty.paths().len()), ((0, 0), Value::Null, 0));
    }
}
