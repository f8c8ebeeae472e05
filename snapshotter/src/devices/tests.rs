//! Specs, directories of them, and the host's nodes.

mod directories;
mod specs;

use super::*;

const NVIDIA: &str = include_str!("../../fuzz/seeds/cdi/nvidia.yaml");
const EVERYTHING: &str = include_str!("../../fuzz/seeds/cdi/everything.json");

fn spec(text: &str) -> Result<Spec, String> {
    Spec::parse(text.as_bytes(), Format::Yaml).map_err(|error| error.to_string())
}

fn name(text: &str) -> DeviceName {
    text.parse().unwrap()
}

/// A spec of one device that asks for an environment variable.
fn plain(kind: &str, device: &str, env: &str) -> String {
    format!(
        "cdiVersion: 0.6.0\nkind: {kind}\ndevices:\n- name: {device}\n  containerEdits:\n    env: [{env}]\n"
    )
}
