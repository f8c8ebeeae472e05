use std::collections::BTreeMap;

use super::*;

/// A tree by paths: "/a/" is a directory, "/a -> b" a link, "/a" a file.
struct Paths(BTreeMap<String, Entry>);

impl Paths {
    fn new(paths: &[&str]) -> Self {
        let mut all = BTreeMap::new();
        for path in paths {
            let (name, entry) = match path.split_once(" -> ") {
                Some((name, text)) => (name, Entry::Link(text.to_owned())),
                None if path.ends_with('/') => (path.trim_end_matches('/'), Entry::Dir),
                None => (*path, Entry::Other),
            };
            for (end, _) in name.match_indices('/').skip(1) {
                all.insert(name[..end].to_owned(), Entry::Dir);
            }
            all.insert(name.to_owned(), entry);
        }
        Self(all)
    }

    fn link_target(&self, path: &ContainerPath) -> Option<ContainerPath> {
        match self.0.get(path.as_str())? {
            Entry::Dir => Some(path.clone()),
            Entry::Link(text) => {
                let dir = ContainerPath::parse(&format!("/{}", text.trim_start_matches('/'))).ok()?;
                (self.0.get(dir.as_str()) == Some(&Entry::Dir)).then_some(dir)
            }
            Entry::Other => None,
        }
    }
}

impl Capsule for Paths {
    type Error = PlanRefusal;

    fn entries(&self, dir: &ContainerPath) -> Result<Vec<(String, Entry)>, PlanRefusal> {
        let prefix = if dir.is_root() { "/".to_owned() } else { format!("{dir}/") };
        let below = self.0.iter().filter_map(|(path, entry)| {
            let name = path.strip_prefix(&prefix)?;
            (!name.is_empty() && !name.contains('/')).then(|| (name.to_owned(), entry.clone()))
        });
        Ok(below.collect())
    }

    fn resolve_dir(&self, path: &ContainerPath) -> Result<Option<ContainerPath>, PlanRefusal> {
        Ok(self.link_target(path))
    }
}

impl Place<PlanRefusal> for Paths {
    fn look(&self, path: &ContainerPath) -> Result<There, PlanRefusal> {
        Ok(match self.0.get(path.as_str()) {
            None => There::Missing,
            Some(Entry::Dir) => There::Dir,
            Some(Entry::Link(text)) => There::Link(text.clone(), self.link_target(path)),
            Some(Entry::Other) => There::Other,
        })
    }
}

fn plan(
    capsule: &[&str],
    container: &[&str],
    mounts: &[&str],
    target: &str,
) -> Result<Vec<String>, PlanRefusal> {
    let mounts: Vec<_> =
        mounts.iter().map(|p| Seen { path: (*p).to_owned(), what: format!("volume {p}") }).collect();
    let target = ContainerPath::parse(target).unwrap();
    let planned = plan_union(&Paths::new(capsule), &Paths::new(container), &mounts, &target)?;
    let show = |p: Planned| format!("{}{}<{}", p.at, if p.alone { "!" } else { "" }, p.from);
    Ok(planned.into_iter().map(show).collect())
}

#[test]
fn a_union_covers_the_target_when_nothing_is_mounted_below() {
    assert_eq!(plan(&["/bin/x"], &["/usr/bin/"], &["/proc"], "/usr").unwrap(), ["/usr</"]);
    assert_eq!(plan(&["/bin/x"], &["/usr/"], &["/usrlocal"], "/usr").unwrap(), ["/usr</"]);
    assert_eq!(plan(&["/bin/x"], &["/"], &[], "/opt/new").unwrap(), ["/opt/new!</"]);
}

#[test]
fn a_union_at_the_root_goes_to_each_hierarchy() {
    let capsule = ["/usr/bin/strace", "/etc/strace.conf", "/opt/x/y", "/proc/", "/lib64 -> usr/lib64"];
    let container = ["/usr/", "/etc/", "/proc/", "/lib64 -> usr/lib64"];
    let planned = plan(&capsule, &container, &["/proc"], "/").unwrap();
    assert_eq!(planned, ["/etc</etc", "/opt!</opt", "/usr</usr"]);
}

#[test]
fn nothing_that_is_mounted_is_hidden() {
    // The demo: tzdata is there when the debug tools come.
    let capsule = ["/usr/bin/strace", "/usr/share/doc/strace/x", "/usr/share/man/y"];
    let container = ["/usr/share/zoneinfo/", "/usr/bin/", "/usr/share/man/"];
    let planned = plan(&capsule, &container, &["/usr/share/zoneinfo", "/proc"], "/").unwrap();
    assert_eq!(
        planned,
        ["/usr/bin</usr/bin", "/usr/share/doc!</usr/share/doc", "/usr/share/man</usr/share/man"]
    );
}

#[test]
fn links_are_skipped_where_equal_and_taken_for_their_directory_where_missing() {
    let capsule = ["/usr/lib64/ld.so", "/lib64 -> usr/lib64"];
    assert_eq!(plan(&capsule, &["/usr/"], &[], "/").unwrap(), ["/lib64!</usr/lib64", "/usr</usr"]);
    assert_eq!(plan(&capsule, &["/usr/", "/lib64/"], &[], "/").unwrap(), ["/lib64</usr/lib64", "/usr</usr"]);
    assert_eq!(plan(&capsule, &["/usr/lib64/", "/lib64 -> /usr/lib64"], &[], "/").unwrap(), ["/usr</usr"]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |capsule: &[&str], container: &[&str], mounts: &[&str], target: &str, words: &[&str]| {
        let text = plan(capsule, container, mounts, target).unwrap_err().to_string();
        for word in words {
            assert!(text.contains(word), "{text:?} lacks {word:?}");
        }
    };
    refused(&["/x"], &["/data/"], &["/data"], "/data", &["/data is occupied by volume /data"]);
    refused(&["/x"], &["/data/"], &["/data"], "/data/sub", &["volume /data", "mode ro"]);
    refused(&["/a-file"], &["/usr/"], &[], "/", &["/a-file"]);
    refused(
        &["/share/x", "/tool"],
        &["/usr/share/"],
        &["/usr/share/zi"],
        "/usr",
        &["/usr/share/x", "/usr/share/zi"],
    );
    refused(&["/usr/x"], &["/usr"], &[], "/", &["/usr is not a directory"]);
    refused(&["/usr/lib/a", "/lib/b"], &["/usr/lib/", "/lib -> usr/lib"], &[], "/", &["same place"]);
    refused(
        &["/lib -> usr/lib", "/usr/lib/a"],
        &["/usr/", "/opt/", "/lib -> opt"],
        &[],
        "/",
        &["/lib is a link"],
    );
    refused(&["/lib -> nowhere"], &["/usr/"], &[], "/", &["in the capsule"]);
    refused(&["/usr/"], &["/usr/"], &[], "/", &["nothing to put"]);
    refused(&["/usr/x"], &["/usr -> gone"], &[], "/", &["/usr is a link in the container"]);
}
