//! Which versions the node is to fetch, which channels stand for what, and what goes again. Pure: what is wanted, what was said, and what
//! capsuled has, in; steps, and what to say of them, out.

use std::collections::BTreeMap;

use crate::api::{FetchState, Fetched, Retention, Wanted};

/// A version of a capsule.
pub type Key = (String, String);

/// What capsuled has.
#[derive(Debug, Clone, Default)]
pub struct There {
    /// Versions that are complete, with the digests of their manifests.
    pub versions: BTreeMap<Key, String>,
    /// Tags, by capsule and tag: the version that each stands for.
    pub tags: BTreeMap<Key, String>,
}

/// Versions that may not be used, and why: nobody has signed them who should.
pub type Unsigned = BTreeMap<Key, String>;

/// What is to be done about a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Fetch it, or its signatures anew.
    Fetch {
        /// Its image, `HOST/REPOSITORY:TAG`.
        reference: String,
        /// Of these keys, one has to have signed it; none where it need not be signed.
        keys: Vec<String>,
    },
    /// Let these names stand for it.
    Tag(Vec<String>),
    /// Remove it, if nobody needs it.
    Remove,
}

/// Plans for all versions: those that are wanted first, in their order.
pub fn plan(
    wanted: &[Wanted],
    before: &[Fetched],
    there: &There,
    unsigned: &Unsigned,
) -> Vec<(Fetched, Step)> {
    let mut planned: Vec<(Fetched, Step)> = wanted
        .iter()
        .flat_map(|one| {
            one.versions.iter().map(|version| plan_version(one, version, before, there, unsigned))
        })
        .collect();
    let leaving: Vec<_> = before
        .iter()
        .filter(|one| one.own && one.goes && there.versions.contains_key(&key(one)))
        .filter(|one| !planned.iter().any(|(wanted, _)| key(wanted) == key(one)))
        .map(|one| {
            (Fetched { state: FetchState::Removing, channels: Vec::new(), ..one.clone() }, Step::Remove)
        })
        .collect();
    planned.extend(leaving);
    planned
}

/// Which version.
pub fn key(one: &Fetched) -> Key {
    (one.name.clone(), one.version.clone())
}

fn plan_version(
    wanted: &Wanted,
    version: &str,
    before: &[Fetched],
    there: &There,
    unsigned: &Unsigned,
) -> (Fetched, Step) {
    let key = (wanted.name.clone(), version.to_owned());
    let was_own = before.iter().any(|one| one.own && self::key(one) == key);
    let (has_come, why) = (there.versions.contains_key(&key), unsigned.get(&key));
    let is_there = has_come && why.is_none();
    let channels: Vec<String> =
        wanted.channels.iter().filter(|(_, of)| *of == version).map(|(channel, _)| channel.clone()).collect();
    let stands = |channel: &String| {
        there.tags.get(&(wanted.name.clone(), channel.clone())).map(String::as_str) == Some(version)
    };
    let (stand, missing): (Vec<String>, Vec<String>) = channels.into_iter().partition(stands);
    let said = Fetched {
        name: wanted.name.clone(),
        version: version.to_owned(),
        state: match why {
            Some(_) => FetchState::Failed,
            None if is_there && missing.is_empty() => FetchState::Present,
            None => FetchState::Fetching,
        },
        own: was_own || !has_come,
        goes: wanted.retention == Retention::Remove,
        channels: stand,
        message: why.cloned(),
    };
    let step = match is_there {
        false => Step::Fetch { reference: format!("{}:{version}", wanted.image), keys: wanted.keys.clone() },
        true if missing.is_empty() => Step::Rest,
        true => Step::Tag(missing),
    };
    (said, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(versions: &[&str], stable: Option<&str>, retention: Retention) -> Wanted {
        Wanted {
            name: "tz".into(),
            image: "localhost/tz".into(),
            versions: versions.iter().map(ToString::to_string).collect(),
            channels: stable.map(|version| ("stable".to_owned(), version.to_owned())).into_iter().collect(),
            keys: vec![],
            retention,
        }
    }

    fn there(versions: &[&str], stable: Option<&str>) -> There {
        There {
            versions: versions
                .iter()
                .map(|version| (("tz".to_owned(), (*version).to_owned()), format!("sha256:{version}")))
                .collect(),
            tags: stable
                .map(|version| (("tz".to_owned(), "stable".to_owned()), version.to_owned()))
                .into_iter()
                .collect(),
        }
    }

    fn run(wanted: &[Wanted], before: &[Fetched], there: &There) -> (Vec<(FetchState, Step)>, Vec<Fetched>) {
        let planned = plan(wanted, before, there, &Unsigned::new());
        (
            planned.iter().map(|(said, step)| (said.state, step.clone())).collect(),
            planned.into_iter().map(|(said, _)| said).collect(),
        )
    }

    #[test]
    fn what_is_missing_is_fetched_and_goes_again_where_that_is_wanted() {
        let both = [wanted(&["1", "2"], None, Retention::Remove)];
        let (told, said) = run(&both, &[], &there(&["1"], None));
        let fetch = Step::Fetch { reference: "localhost/tz:2".into(), keys: vec![] };
        assert_eq!(told, [(FetchState::Present, Step::Rest), (FetchState::Fetching, fetch)]);
        assert_eq!([said[0].own, said[1].own], [false, true]);
        let (told, said) = run(&both, &said, &there(&["1", "2"], None));
        assert_eq!(told, [(FetchState::Present, Step::Rest), (FetchState::Present, Step::Rest)]);
        // What was there before is somebody else's.
        let (told, said) = run(&[], &said, &there(&["1", "2"], None));
        assert_eq!(told, [(FetchState::Removing, Step::Remove)]);
        assert_eq!(said[0].version, "2");
        assert_eq!(run(&[], &said, &there(&["1"], None)).0, []);
        let kept = [wanted(&["2"], None, Retention::Keep)];
        let said = run(&kept, &[], &there(&[], None)).1;
        assert_eq!(run(&[], &said, &there(&["2"], None)).0, []);
    }

    #[test]
    fn a_channel_moves_once_its_version_is_there() {
        let stable = [wanted(&["1", "2"], Some("2"), Retention::Keep)];
        let (told, _) = run(&stable, &[], &there(&["1"], Some("1")));
        assert!(matches!(told[1], (FetchState::Fetching, Step::Fetch { .. })));
        let (told, _) = run(&stable, &[], &there(&["1", "2"], Some("1")));
        assert_eq!(
            told,
            [(FetchState::Present, Step::Rest), (FetchState::Fetching, Step::Tag(vec!["stable".into()]))]
        );
        let (told, said) = run(&stable, &[], &there(&["1", "2"], Some("2")));
        assert_eq!(told, [(FetchState::Present, Step::Rest), (FetchState::Present, Step::Rest)]);
        assert_eq!(said[1].channels, ["stable"]);
    }

    #[test]
    fn a_version_that_nobody_has_signed_is_not_present_and_no_channel_moves_to_it() {
        let stable = [wanted(&["1", "2"], Some("2"), Retention::Keep)];
        let unsigned = [(("tz".to_owned(), "2".to_owned()), "no signature".to_owned())].into();
        let planned = plan(&stable, &[], &there(&["1", "2"], Some("1")), &unsigned);
        let (said, step) = &planned[1];
        assert_eq!(
            (said.state, said.own, said.message.as_deref()),
            (FetchState::Failed, false, Some("no signature"))
        );
        // Its signatures may come.
        assert!(matches!(step, Step::Fetch { .. }), "{step:?}");
        assert_eq!(planned[0].0.state, FetchState::Present);
    }
}
