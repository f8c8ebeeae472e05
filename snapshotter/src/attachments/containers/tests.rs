//! Which container is meant, and what is known of Docker's.

use super::{choose::Index, *};

fn index() -> Index {
    let mut index = Index::new();
    for (namespace, id) in
        [("default", "web"), ("default", "web-2"), ("k8s.io", "3f9a"), ("moby", "3f9a"), ("moby", "77")]
    {
        index.entry(id.into()).or_default().insert(namespace.into(), Known::default());
    }
    for (namespace, id, name) in [
        ("default", "c1f0", "shop"),
        ("other", "c2f0", "shop"),
        ("default", "c3f0", "c1f0"),
        ("default", "c4f0", "web-"),
        ("default", "5hop", "5"),
    ] {
        let known = Known { name: Some(name.to_owned()), ..Known::default() };
        index.entry(id.into()).or_default().insert(namespace.into(), known);
    }
    index
}

fn find(id: &str, namespace: &str) -> Result<String, String> {
    let wanted = Wanted { name: Name::Id(id.into()), namespace: namespace.into() };
    choose(&index(), &wanted).map(|k| k.to_string()).map_err(|e| e.to_string())
}

#[test]
fn ids_and_unique_prefixes_find_containers() {
    assert_eq!(find("web", "").unwrap(), "default/web");
    assert_eq!(find("web-2", "").unwrap(), "default/web-2");
    assert_eq!(find("7", "").unwrap(), "moby/77");
    assert_eq!(find("3f", "moby").unwrap(), "moby/3f9a");
}

#[test]
fn names_find_containers_after_ids_and_before_prefixes() {
    assert_eq!(find("shop", "other").unwrap(), "other/c2f0");
    assert_eq!(find("shop", "default").unwrap(), "default/c1f0");
    assert_eq!(find("c1f0", "").unwrap(), "default/c1f0"); // though another has it for a name
    assert_eq!(find("web-", "").unwrap(), "default/c4f0"); // though an id begins with it
    assert_eq!(find("web-", "default").unwrap(), "default/c4f0");
    // The beginning of a name finds nothing, and one of an id is not kept from it by names.
    assert!(find("sho", "").unwrap_err().contains("not known"));
    assert_eq!(find("5h", "").unwrap(), "default/5hop");
    let ambiguous = find("shop", "").unwrap_err();
    assert!(ambiguous.contains("could be default/c1f0, other/c2f0"), "{ambiguous}");
}

#[tokio::test]
async fn only_a_name_is_one() {
    let containers = Containers::new(Containerd::new(std::path::Path::new("/nowhere.sock")));
    *containers.index.write().unwrap() = index();
    let named = async |id: &str, namespace: &str| {
        let wanted = Wanted { name: Name::Id(id.into()), namespace: namespace.into() };
        containers.by_name(&wanted).await.map(|key| key.to_string())
    };
    assert_eq!(named("shop", "other").await.as_deref(), Some("other/c2f0"));
    // Of two, a whole id (which another has for a name), the beginning of an id, nothing.
    for id in ["shop", "c1f0", "3f", "nope"] {
        assert_eq!(named(id, "").await, None, "{id}");
    }
}

#[test]
fn a_container_of_dockers_is_there_as_long_as_its_lease() {
    let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let (id, runtime) = ("c0".repeat(32), "io.containerd.capsule.v1".to_owned());
    let container = Container {
        id: id.clone(),
        runtime: runtime.clone(),
        created: at(9),
        member: None,
        name: None,
        once: false,
    };
    let lease = Lease { id: id.clone(), created: at(5), labels: std::collections::HashMap::new() };
    let known = |runtime: &str, created, stopped| {
        Some(Known { runtime: runtime.to_owned(), created, stopped, ..Known::default() })
    };
    for (container, lease, expected) in [
        (Some(&container), None, known(&runtime, at(9), false)),
        (Some(&container), Some(&lease), known(&runtime, at(5), false)),
        (None, Some(&lease), known("", at(5), true)),
        (None, None, None),
    ] {
        assert_eq!(Known::of(container.cloned(), lease), expected);
    }
    assert!(is_dockers(&id));
    for other in ["web", "1764398000-abcd", &id[1..], &id.to_uppercase()] {
        assert!(!is_dockers(other), "{other}");
    }
}

/// Two of Docker's, and one of another client's with a label for a name, in a namespace of Docker's and in another.
fn with_dockers(names: &[(char, &str)]) -> (Containers, Index) {
    let id = |digit: char| digit.to_string().repeat(64);
    let docker = Docker::knowing(names.iter().map(|(digit, name)| (id(*digit), (*name).to_owned())));
    let containers = Containers::new(Containerd::new(std::path::Path::new("/nowhere.sock")))
        .with_docker(&BTreeSet::from(["moby".to_owned()]), docker);
    let mut index = Index::new();
    for (namespace, digit, name) in [
        ("moby", 'a', None),
        ("moby", 'b', Some("label")),
        ("moby", 'c', None),
        ("default", 'd', Some("web")),
    ] {
        let known = Known { name: name.map(str::to_owned), ..Known::default() };
        index.entry(id(digit)).or_default().insert(namespace.to_owned(), known);
    }
    (containers, index)
}

#[tokio::test]
async fn dockers_containers_are_called_as_docker_calls_them() {
    let (containers, mut index) = with_dockers(&[('a', "web"), ('c', "job"), ('d', "not-dockers")]);
    containers.call_dockers(&mut index);
    let find = |name: &str, namespace: &str| {
        let wanted = Wanted { name: Name::Id(name.into()), namespace: namespace.into() };
        choose(&index, &wanted).map(|key| key.to_string()).map_err(|error| error.to_string())
    };
    let [a, b, c, d] = ['a', 'b', 'c', 'd'].map(|digit| digit.to_string().repeat(64));
    assert_eq!(find("job", "").unwrap(), format!("moby/{c}"));
    assert_eq!(find("cc", "").unwrap(), format!("moby/{c}"));
    assert_eq!(find("label", "").unwrap(), format!("moby/{b}"));
    assert!(find("not-dockers", "").is_err());
    // Two clients have one name.
    let both = find("web", "").unwrap_err();
    assert!(both.contains(&format!("could be moby/{a}, default/{d}")), "{both}");
    assert_eq!(find("web", "moby").unwrap(), format!("moby/{a}"));
    assert_eq!(find("web", "default").unwrap(), format!("default/{d}"));
}

#[tokio::test]
async fn what_comes_later_has_its_name_too() {
    let (containers, _) = with_dockers(&[('a', "web")]);
    for (namespace, id, name) in [
        ("moby", "a".repeat(64), Some("web")),
        ("other", "a".repeat(64), None),
        ("moby", "a".to_owned(), None),
    ] {
        let key = ContainerKey { namespace: namespace.to_owned(), id };
        containers.put(&key, Known::default());
        assert_eq!(containers.known(&key).unwrap().name.as_deref(), name, "{key}");
    }
}

#[tokio::test]
async fn a_name_that_dockerd_does_not_tell_is_said_to_be_so() {
    let (containers, mut index) = with_dockers(&[('a', "web")]);
    let ask = async |index: &mut Index, name: &str| {
        let wanted = Wanted { name: Name::Id(name.into()), namespace: String::new() };
        let unanswered = containers.name_dockers(index, &wanted).await;
        let found = choose(index, &wanted).map_err(|error| error.without_names(unanswered));
        found.map(|key| key.to_string()).map_err(|error| error.to_string())
    };
    let said = ask(&mut index, "nope").await.unwrap_err();
    assert!(
        said.contains("name one of Docker's by its id") && said.contains("/nowhere/docker.sock"),
        "{said}"
    );
    // What it said before.
    assert_eq!(ask(&mut index, "web").await.unwrap_err().matches("moby/aaa").count(), 1);
    // Without a container of Docker's there is nothing to ask.
    let mut index = self::index();
    let said = ask(&mut index, "nope").await.unwrap_err();
    assert!(!said.contains("docker.sock"), "{said}");
}

#[test]
fn what_is_unknown_or_ambiguous_is_said() {
    assert!(find("we", "").unwrap_err().contains("could be default/web, default/web-2"));
    assert!(find("3f9a", "").unwrap_err().contains("k8s.io/3f9a, moby/3f9a"));
    assert!(find("nope", "").unwrap_err().contains("\"nope\" is not known"));
    assert!(find("web", "moby").unwrap_err().contains("in the containerd namespace moby"));
    assert!(find("", "").is_err());
}
