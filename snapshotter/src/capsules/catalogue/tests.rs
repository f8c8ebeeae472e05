//! Which image counts for a version, and by what names it is found.

use super::*;
use crate::capsules::oci::Descriptor;

fn published(name: &str, version: &str, image: &str) -> Published {
    Published {
        name: name.parse().unwrap(),
        version: version.parse().unwrap(),
        digest: Digest::from_sha256(&[1; 32]),
        image_name: image.into(),
        created_at: None,
        image: Err("unread".into()),
    }
}

fn image() -> Image {
    let digest = Digest::from_sha256(&[1; 32]);
    Image {
        manifest: None,
        config: Descriptor { media_type: String::new(), digest, size: 0 },
        layers: vec![],
        diff_ids: vec![],
        annotations: BTreeMap::new(),
    }
}

#[test]
fn the_newest_release_is_found() {
    let catalogue = Catalogue::default();
    for version in ["1.9", "1.10", "2.0-rc.1"] {
        catalogue.put(published("a", version, version));
    }
    let name: CapsuleName = "a".parse().unwrap();
    assert_eq!(catalogue.find(&name, None).unwrap().version.as_str(), "1.10");
    catalogue.change("1.10", None);
    catalogue.change("1.9", None);
    assert_eq!(catalogue.find(&name, None).unwrap().version.as_str(), "2.0-rc.1");
    let missing = catalogue.find(&name, Some(&"3".parse().unwrap())).unwrap_err();
    assert_eq!(missing.to_string(), "capsule a has no version 3: it has 2.0-rc.1");
    catalogue.change("2.0-rc.1", None);
    assert!(matches!(catalogue.find(&name, None), Err(CapsuleError::UnknownCapsule { .. })));
}

#[test]
fn a_range_stands_for_the_highest_in_it() {
    let catalogue = Catalogue::default();
    for version in ["1.9", "1.10", "2.0-rc.1", "2.0"] {
        catalogue.put(published("a", version, version));
    }
    let find = |range: &str| {
        let wanted = format!("a {range}").parse().unwrap();
        catalogue.find_within(&wanted).map(|found| found.version.to_string()).map_err(|e| e.to_string())
    };
    for (range, version) in [
        ("*", "2.0"),
        ("^1", "1.10"),
        (">=1, <1.10", "1.9"),
        ("<=2.0-rc.1", "1.10"),
        ("=2.0-rc.1", "2.0-rc.1"),
    ] {
        assert_eq!(find(range).as_deref(), Ok(version), "{range}");
    }
    let none = find(">=3, <4").unwrap_err();
    assert_eq!(none, "capsule a has no version that is >=3, <4: it has 2.0, 2.0-rc.1, 1.10, 1.9");
    // One that is complete is taken before a higher one that is not.
    catalogue.put(Published { image: Ok(image()), ..published("a", "1.5", "1.5") });
    assert_eq!(find("^1").as_deref(), Ok("1.5"));
}

#[test]
fn our_own_reference_wins_over_another_claim() {
    let catalogue = Catalogue::default();
    catalogue.put(published("a", "1", "localhost/capsules/a:1"));
    catalogue.put(published("a", "1", "elsewhere/a:1"));
    assert_eq!(catalogue.list(None)[0].image_name, "localhost/capsules/a:1");
    let other = Catalogue::default();
    other.put(published("a", "1", "elsewhere/a:1"));
    other.put(published("a", "1", "localhost/capsules/a:1"));
    assert_eq!(other.list(None)[0].image_name, "localhost/capsules/a:1");
}

fn tagged(tag: &str, version: &str, digest: u8) -> Tagged {
    Tagged {
        name: "a".parse().unwrap(),
        tag: tag.parse().unwrap(),
        version: version.parse().unwrap(),
        digest: Digest::from_sha256(&[digest; 32]),
        image_name: format!("localhost/capsules/a:{tag}"),
    }
}

#[test]
fn a_version_is_found_by_its_name_then_by_a_tag_then_as_the_latest() {
    let catalogue = Catalogue::default();
    for version in ["1", "2", "3-rc.1"] {
        catalogue.put(published("a", version, &format!("localhost/capsules/a:{version}")));
    }
    let tag = |tag: &str, digest: u8| {
        let tagged = tagged(tag, "1", digest);
        let version = Published { digest: tagged.digest.clone(), ..published("a", "1", &tagged.image_name) };
        catalogue.write().add(Claim { version, tag: Some(tagged) });
    };
    tag("stable", 1);
    tag("2", 1); // hidden by the version
    let name: CapsuleName = "a".parse().unwrap();
    let find = |tag: &str| catalogue.find(&name, Some(&tag.parse().unwrap())).map(|p| p.version.to_string());
    for (tag, version) in [("1", "1"), ("2", "2"), ("stable", "1"), (LATEST, "2")] {
        assert_eq!(find(tag).unwrap(), version, "{tag}");
    }
    let unknown = find("lost").unwrap_err().to_string();
    assert_eq!(unknown, "capsule a has no version lost: it has 3-rc.1, 2, 1, stable (tag)");
    let tags =
        |version: &str| catalogue.tags_of(&catalogue.version(&name, &version.parse().unwrap()).unwrap());
    assert_eq!(tags("1"), ["stable".parse().unwrap()]);
    assert!(tags("2").is_empty());
    tag(LATEST, 1);
    assert_eq!(find(LATEST).unwrap(), "1");
    catalogue.change("localhost/capsules/a:stable", None);
    assert!(find("stable").is_err());
}

#[test]
fn a_version_is_there_while_an_image_of_it_is() {
    let catalogue = Catalogue::default();
    catalogue.put(published("a", "1", "elsewhere/a:1"));
    catalogue.put(published("a", "1", "localhost/capsules/a:1"));
    let name: CapsuleName = "a".parse().unwrap();
    let version: Version = "1".parse().unwrap();
    assert_eq!(catalogue.images_of(&name, &version), ["localhost/capsules/a:1", "elsewhere/a:1"]);
    catalogue.change("localhost/capsules/a:1", None);
    assert_eq!(catalogue.version(&name, &version).unwrap().image_name, "elsewhere/a:1");
    catalogue.change("elsewhere/a:1", None);
    assert!(catalogue.list(None).is_empty());
}
