//! A spec as it is written (`schema/schema.json` of the CDI project, up to version 1.1.0). Unknown fields are mistakes, as
//! they are for containerd.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    pub cdi_version: String,
    pub kind: String,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub devices: Option<Vec<Device>>,
    #[serde(default)]
    pub container_edits: Option<Edits>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Device {
    pub name: String,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub container_edits: Option<Edits>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Edits {
    #[serde(default)]
    pub env: Option<Vec<String>>,
    #[serde(default)]
    pub device_nodes: Option<Vec<Node>>,
    #[serde(default)]
    pub net_devices: Option<Vec<NetDevice>>,
    #[serde(default)]
    pub hooks: Option<Vec<Hook>>,
    #[serde(default)]
    pub mounts: Option<Vec<Mount>>,
    #[serde(default)]
    pub intel_rdt: Option<IntelRdt>,
    /// The text of the specification writes `additionalGIDs`, its schema `additionalGids`.
    #[serde(default, alias = "additionalGIDs")]
    pub additional_gids: Option<Vec<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Node {
    pub path: String,
    #[serde(default)]
    pub host_path: Option<String>,
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub major: Option<i64>,
    #[serde(default)]
    pub minor: Option<i64>,
    #[serde(default, deserialize_with = "mode")]
    pub file_mode: Option<u32>,
    #[serde(default)]
    pub permissions: Option<String>,
    #[serde(default)]
    pub uid: Option<u32>,
    #[serde(default)]
    pub gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetDevice {
    pub host_interface_name: String,
    pub name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    pub hook_name: String,
    pub path: String,
    #[serde(default)]
    pub args: Option<Vec<String>>,
    #[serde(default)]
    pub env: Option<Vec<String>>,
    #[serde(default)]
    pub timeout: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default)]
    pub options: Option<Vec<String>>,
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IntelRdt {
    #[serde(default, rename = "closID")]
    pub clos_id: Option<String>,
    #[serde(default)]
    pub l3_cache_schema: Option<String>,
    #[serde(default)]
    pub mem_bw_schema: Option<String>,
    #[serde(default)]
    pub schemata: Option<Vec<String>>,
    #[serde(default)]
    pub enable_monitoring: Option<bool>,
    /// Until 1.0.
    #[serde(default, rename = "enableCMT")]
    pub enable_cmt: Option<bool>,
    /// Until 1.0.
    #[serde(default, rename = "enableMBM")]
    pub enable_mbm: Option<bool>,
}

/// A number, or as YAML 1.1 writes an octal one, which YAML 1.2 takes for a text: `0660`.
fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Mode {
        Number(u32),
        Text(String),
    }
    let octal = |text: &str| {
        let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'))?;
        u32::from_str_radix(digits, 8).ok()
    };
    match Option::<Mode>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Mode::Number(mode)) => Ok(Some(mode)),
        Some(Mode::Text(text)) => octal(&text).map(Some).ok_or_else(|| {
            de::Error::custom(format_args!("fileMode {text:?} is no mode: give a number, as 438 or 0666"))
        }),
    }
}
