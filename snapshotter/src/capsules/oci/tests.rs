//! Manifests and configurations, made and read.

use super::*;

fn declaration() -> Declaration {
    Declaration {
        name: "tzdata".parse().unwrap(),
        version: "2024.1".parse().unwrap(),
        default_target: Some("/usr/share/zoneinfo".into()),
        default_mode: Some(Mode::Ro),
        declared: Declared::default(),
        annotations: BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]),
    }
}

fn layer() -> Descriptor {
    Descriptor { media_type: LAYER_TAR.into(), digest: Digest::from_sha256(&[7; 32]), size: 3 }
}

#[test]
fn what_is_made_reads_back() {
    let blobs = make_image(&declaration(), &stack()).unwrap();
    let image = parse_manifest(&blobs.manifest.1.digest, &blobs.manifest.0).unwrap();
    assert_eq!(image.config, blobs.config.1);
    let image = parse_config(image, &blobs.config.0).unwrap();
    assert_eq!(image.diff_ids, [layer().digest]);
    assert_eq!(image.chain_ids(), [layer().digest]);
    assert_eq!(image.default_mode(), Some(Mode::Ro));
    assert_eq!(image.default_target(), Some("/usr/share/zoneinfo"));
    assert_eq!(image.annotations[NAME], "tzdata");
    assert_eq!(image.size(), 3);
}

fn stack() -> Stack {
    Stack { layers: vec![layer()], diff_ids: vec![layer().digest], base: None }
}

#[test]
fn a_base_is_named_and_its_layers_come_first() {
    let above = Descriptor { digest: Digest::from_sha256(&[8; 32]), ..layer() };
    let base = Some(("localhost/capsules/b:1".to_owned(), Digest::from_sha256(&[9; 32])));
    let diff_ids = vec![layer().digest, above.digest.clone()];
    let stack = Stack { layers: vec![layer(), above.clone()], diff_ids: diff_ids.clone(), base };
    let blobs = make_image(&declaration(), &stack).unwrap();
    let image = parse_manifest(&blobs.manifest.1.digest, &blobs.manifest.0).unwrap();
    let image = parse_config(image, &blobs.config.0).unwrap();
    assert_eq!((image.layers, image.diff_ids), (vec![layer(), above], diff_ids));
    assert_eq!(image.annotations[BASE_NAME], "localhost/capsules/b:1");
    assert_eq!(image.annotations[BASE_DIGEST], Digest::from_sha256(&[9; 32]).to_string());
}

#[test]
fn the_same_input_gives_the_same_digest() {
    let one = make_image(&declaration(), &stack()).unwrap();
    let two = make_image(&declaration(), &stack()).unwrap();
    assert_eq!(one.manifest.1, two.manifest.1);
    let mut other = declaration();
    other.version = "2024.2".parse().unwrap();
    assert_ne!(make_image(&other, &stack()).unwrap().manifest.1, one.manifest.1);
}

#[test]
fn chain_ids_follow_the_specification() {
    let image = Image {
        manifest: None,
        config: layer(),
        layers: vec![layer(), layer()],
        diff_ids: vec![Digest::from_sha256(&[1; 32]), Digest::from_sha256(&[2; 32])],
        annotations: BTreeMap::new(),
    };
    let chain = image.chain_ids();
    assert_eq!(chain[0], image.diff_ids[0]);
    let expected = Sha256::digest(format!("{} {}", image.diff_ids[0], image.diff_ids[1]).as_bytes());
    assert_eq!(chain[1], Digest::from_sha256(&expected));
}

#[test]
fn images_that_cannot_be_versions_are_refused() {
    let digest = Digest::from_sha256(&[0; 32]);
    assert!(matches!(parse_manifest(&digest, b"{"), Err(OciError::Json { .. })));
    let blobs = make_image(&declaration(), &stack()).unwrap();
    let text = String::from_utf8(blobs.manifest.0.clone()).unwrap();
    let none = text.replace(&serde_json::to_string(&vec![layer()]).unwrap(), "[]");
    assert!(matches!(parse_manifest(&digest, none.as_bytes()), Err(OciError::NoLayers)));
    let image = parse_manifest(&digest, &blobs.manifest.0).unwrap();
    let config = br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#;
    assert!(matches!(parse_config(image, config), Err(OciError::LayerCount { layers: 1, diff_ids: 0 })));
}
