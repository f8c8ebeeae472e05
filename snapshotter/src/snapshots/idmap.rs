//! Id mappings, as containerd's clients ask for them by labels: pure types, validated at construction.
//!
//! A client that wants a container in a user namespace of its own labels the container's snapshot with the
//! namespace's mappings (containerd, `client/snapshotter_opts_unix.go`, `WithUserNSRemapperLabels`). The layers stay as
//! they are; whoever mounts the snapshot maps their owners.

use std::{fmt, str::FromStr};

use super::model::{InvalidInput, Labels};

/// The label with the mapping of user ids.
pub const UID_LABEL: &str = "containerd.io/snapshot/uidmapping";
/// The label with the mapping of group ids.
pub const GID_LABEL: &str = "containerd.io/snapshot/gidmapping";

/// Most extents of one mapping (`UID_GID_MAP_MAX_EXTENTS`, Linux `include/linux/user_namespace.h`).
const EXTENTS_LIMIT: usize = 340;
/// How much of a malformed extent an error quotes.
const QUOTE: usize = 64;

/// Why a text is no mapping that can be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// An extent is not three numbers.
    #[error("{extent:?} is not CONTAINER:HOST:LENGTH, ids from 0 to 4294967294 and how many")]
    Extent {
        /// The beginning of the extent.
        extent: String,
    },
    /// An extent goes beyond the last id.
    #[error("{extent:?} goes beyond the last id, 4294967294")]
    Beyond {
        /// The extent.
        extent: String,
    },
    /// Two extents are about the same id, which the kernel refuses.
    #[error("its extents overlap")]
    Overlap,
    /// More extents than the kernel takes.
    #[error("it has {count} extents, more than {EXTENTS_LIMIT}")]
    Extents {
        /// How many.
        count: usize,
    },
    /// The container's root has no id outside, and could not own its root directory.
    #[error("id 0 is not in it, and the container's root directory needs an owner")]
    NoRoot,
}

/// `length` ids from `container` on inside, which are those from `host` on outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    container: u32,
    host: u32,
    length: u32,
}

impl Extent {
    fn parse(text: &str) -> Result<Self, IdMapError> {
        let malformed = || IdMapError::Extent { extent: text.chars().take(QUOTE).collect() };
        let mut numbers = text.split(':').map(parse_number);
        let mut next = || numbers.next().flatten().ok_or_else(malformed);
        let extent = Self { container: next()?, host: next()?, length: next()? };
        let is_id = |number: u32| number < u32::MAX; // which means "none": (uid_t) -1, chown(2)
        if numbers.next().is_some() || !is_id(extent.container) || !is_id(extent.host) || extent.length == 0 {
            return Err(malformed());
        }
        let fits = |first: u32| first.checked_add(extent.length).is_some();
        if !fits(extent.container) || !fits(extent.host) {
            return Err(IdMapError::Beyond { extent: text.to_owned() });
        }
        Ok(extent)
    }
}

/// Decimal digits and nothing else.
fn parse_number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// Whether any two of these runs of ids, (first, length), have an id in common.
fn overlap(mut runs: Vec<(u32, u32)>) -> bool {
    runs.sort_unstable();
    runs.windows(2).any(|pair| pair[1].0 - pair[0].0 < pair[0].1)
}

/// A mapping of ids as user_namespaces(7) has it, in which id 0 has its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    extents: Vec<Extent>,
    root: u32,
}

impl IdMap {
    /// Which id 0 is outside.
    pub fn root(&self) -> u32 {
        self.root
    }
}

impl FromStr for IdMap {
    type Err = IdMapError;

    /// Takes `CONTAINER:HOST:LENGTH`, several with commas between them (containerd, `internal/userns/idmap.go`,
    /// `Unmarshal`). Refuses besides what the kernel would refuse when the snapshot is mounted.
    fn from_str(text: &str) -> Result<Self, IdMapError> {
        let extents = text.split(',').map(Extent::parse).collect::<Result<Vec<_>, _>>()?;
        if extents.len() > EXTENTS_LIMIT {
            return Err(IdMapError::Extents { count: extents.len() });
        }
        let runs = |first: fn(&Extent) -> u32| extents.iter().map(|e| (first(e), e.length)).collect();
        if overlap(runs(|e| e.container)) || overlap(runs(|e| e.host)) {
            return Err(IdMapError::Overlap);
        }
        let root = extents.iter().find(|e| e.container == 0).ok_or(IdMapError::NoRoot)?.host;
        Ok(Self { extents, root })
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Extent { container, host, length }) in self.extents.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(out, "{comma}{container}:{host}:{length}")?;
        }
        Ok(())
    }
}

/// What a snapshot's labels say about ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    uids: Option<IdMap>,
    gids: Option<IdMap>,
}

impl IdMaps {
    /// Reads the mappings from labels.
    ///
    /// # Errors
    /// Names the label whose value is no mapping.
    pub fn of(labels: &Labels) -> Result<Self, InvalidInput> {
        let read = |label: &'static str| {
            let value = labels.as_map().get(label);
            let map = value.map(|value| value.parse()).transpose();
            map.map_err(|reason| InvalidInput::IdMapping { label, reason })
        };
        Ok(Self { uids: read(UID_LABEL)?, gids: read(GID_LABEL)? })
    }

    /// The owner of the root directory, user and group: what id 0 is outside. A mapping that is not given changes no
    /// id; nothing when neither is.
    pub fn owner(&self) -> Option<(u32, u32)> {
        if self.uids.is_none() && self.gids.is_none() {
            return None;
        }
        let root = |map: &Option<IdMap>| map.as_ref().map_or(0, IdMap::root);
        Some((root(&self.uids), root(&self.gids)))
    }

    /// The mount options that ask for the mapping. Whoever performs the mount acts on them and does not pass them to
    /// the kernel (containerd ≥ 2.0, `core/mount/mount_linux.go`).
    pub fn options(&self) -> impl Iterator<Item = String> {
        let option = |name: &str, map: &Option<IdMap>| map.as_ref().map(|map| format!("{name}={map}"));
        [option("uidmap", &self.uids), option("gidmap", &self.gids)].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<IdMap, IdMapError> {
        text.parse()
    }

    #[test]
    fn mappings_have_one_or_several_extents() {
        for text in
            ["0:1000:1", "0:100000:65536", "0:1:1,1:100:10,4294967290:7:4", "5:6:7,0:0:5", "0:0:4294967295"]
        {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("5:6:7,0:99:5").unwrap().root(), 99);
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_with_the_reason() {
        let malformed = |extent: &str| IdMapError::Extent { extent: extent.to_owned() };
        let beyond = |extent: &str| IdMapError::Beyond { extent: extent.to_owned() };
        let many = (0..341).map(|id| format!("{id}:{id}:1")).collect::<Vec<_>>().join(",");
        let cases = [
            ("", malformed("")),
            ("0:1", malformed("0:1")),
            ("0:1:2:3", malformed("0:1:2:3")),
            ("0:1:2x", malformed("0:1:2x")),
            ("0: 1:2", malformed("0: 1:2")),
            ("0:+1:2", malformed("0:+1:2")),
            ("0:-1:2", malformed("0:-1:2")),
            ("0:4294967295:1", malformed("0:4294967295:1")),
            ("0:1000:0", malformed("0:1000:0")),
            ("0:1000:10,", malformed("")),
            ("0:0:1,upperdir=/etc", malformed("upperdir=/etc")),
            ("0:0:4294967296", malformed("0:0:4294967296")),
            ("0:1:4294967295", beyond("0:1:4294967295")),
            ("0:4294967294:2", beyond("0:4294967294:2")),
            ("0:0:10,9:20:1", IdMapError::Overlap),
            ("0:0:10,10:9:1", IdMapError::Overlap),
            ("1:1:10", IdMapError::NoRoot),
            (many.as_str(), IdMapError::Extents { count: 341 }),
        ];
        for (text, reason) in cases {
            assert_eq!(parse(text), Err(reason), "{text}");
        }
        let long = parse(&"ü".repeat(100)).unwrap_err();
        assert_eq!(long, malformed(&"ü".repeat(64)));
    }

    fn maps(pairs: &[(&str, &str)]) -> Result<IdMaps, InvalidInput> {
        let pairs = pairs.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned()));
        IdMaps::of(&Labels::parse(pairs).unwrap())
    }

    #[test]
    fn labels_say_who_owns_the_root_and_how_it_is_mounted() {
        let both = maps(&[(UID_LABEL, "0:1000:5"), (GID_LABEL, "0:2000:5"), ("l", "x")]).unwrap();
        assert_eq!(both.owner(), Some((1000, 2000)));
        assert!(both.options().eq(["uidmap=0:1000:5", "gidmap=0:2000:5"]));
        let one = maps(&[(GID_LABEL, "0:2000:5")]).unwrap();
        assert_eq!(one.owner(), Some((0, 2000)));
        assert!(one.options().eq(["gidmap=0:2000:5"]));
        let neither = maps(&[("l", "x"), (UID_LABEL, "")]).unwrap();
        assert_eq!((neither.owner(), neither.options().count()), (None, 0));
    }

    #[test]
    fn a_malformed_label_is_named() {
        let refused = maps(&[(UID_LABEL, "0:1000:5"), (GID_LABEL, "zero")]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "label containerd.io/snapshot/gidmapping is no id mapping: \"zero\" is not CONTAINER:HOST:LENGTH, ids \
             from 0 to 4294967294 and how many"
        );
    }
}
