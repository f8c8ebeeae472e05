//! Manifests, indexes and configurations from a registry: read or refused, and each layer has its place in the chain.

use capsuled::capsules::{
    model::Digest,
    oci::{parse_config, parse_index, parse_manifest},
};

/// Two documents with a zero byte between: a manifest (or index), and the configuration that it names.
pub fn check(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (manifest, config) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let digest = Digest::from_sha256(&[0; 32]);
    _ = parse_index(&digest, manifest);
    let Ok(image) = parse_manifest(&digest, manifest) else { return };
    assert!(!image.layers.is_empty());
    _ = (image.default_mode(), image.default_target());
    if let Ok(image) = parse_config(image, config) {
        assert_eq!(image.layers.len(), image.diff_ids.len());
        let chain = image.chain_ids();
        assert_eq!(chain.len(), image.layers.len());
        assert_eq!(chain.first(), image.diff_ids.first());
        _ = image.size();
    }
}
