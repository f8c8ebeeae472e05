//! Which versions are chosen, and how a conflict is told.

use super::*;

/// `NAME@VERSION` and its requirements, separated by `;`.
type Published = [(&'static str, &'static str)];

fn shelf(published: &Published) -> impl Fn(&CapsuleName) -> Vec<Candidate> + use<'_> {
    |name| {
        let of_name = published.iter().filter_map(|(label, requires)| {
            let (n, version) = label.split_once('@').unwrap();
            let requires = match *requires {
                "!" => Err("its manifest is gone".to_owned()),
                all => Ok(all.split(';').filter(|r| !r.is_empty()).map(|r| r.parse().unwrap()).collect()),
            };
            (n == name.as_str()).then(|| Candidate { version: version.parse().unwrap(), requires })
        });
        of_name.collect()
    }
}

fn run(published: &Published, wanted: &[&str], present: &[&str]) -> Result<String, String> {
    let wanted = wanted.iter().map(|text| text.parse::<Requirement>().unwrap());
    let mut asked = Asked { wanted: wanted.map(|r| (r.name, r.versions)).collect(), ..Asked::default() };
    for label in present {
        let (name, version) = label.split_once('@').unwrap();
        asked.present.entry(name.parse().unwrap()).or_default().insert(version.parse().unwrap());
    }
    let chosen = resolve(&asked, &shelf(published)).map_err(|conflict| conflict.to_string())?;
    let show = |c: &Chosen| {
        let by = c.required_by.iter().map(CapsuleName::as_str).collect::<Vec<_>>().join("+");
        format!(
            "{}@{}{}{}",
            c.name,
            c.version,
            if c.present { "!" } else { "" },
            if by.is_empty() { by } else { format!("<{by}") }
        )
    };
    Ok(chosen.iter().map(show).collect::<Vec<_>>().join(" "))
}

#[test]
fn the_highest_that_go_together_are_chosen() {
    let published: &Published = &[
        ("app@1", "cuda >=12, <13"),
        ("app@2", "cuda >=12.4, <13; libc"),
        ("app@3-rc.1", "cuda"),
        ("cuda@12.2", ""),
        ("cuda@12.10", ""),
        ("cuda@12.11-rc.1", ""),
        ("cuda@13", ""),
        ("libc@2", ""),
        ("plugin@1", "cuda <12.10"),
        ("broken@1", "libc"),
        ("broken@2", "!"),
        ("a@1", "b"),
        ("b@1", "a"),
        ("pre@1-alpha", ""),
    ];
    for (wanted, present, expected) in [
        (&["app"][..], &[][..], "cuda@12.10<app libc@2<app app@2"),
        (&["app =1"], &[], "cuda@12.10<app app@1"),
        (&["app", "plugin"], &[], "cuda@12.2<app+plugin app@1 plugin@1"),
        (&["app"], &["cuda@12.2"], "cuda@12.2!<app app@1"),
        (&["app"], &["cuda@12.10", "cuda@12.2"], "cuda@12.10!<app libc@2<app app@2"),
        (&["app", "cuda"], &["cuda@13"], "cuda@12.10<app libc@2<app app@2"),
        (&["app"], &["cuda@12.9"], "cuda@12.9!<app libc@2<app app@2"),
        (&["broken"], &[], "libc@2<broken broken@1"),
        (&["a"], &[], "b@1<a a@1<b"),
        (&["pre"], &[], "pre@1-alpha"),
        (&["app =3-rc.1"], &[], "cuda@13<app app@3-rc.1"),
        (&["app >=3-rc"], &[], "cuda@13<app app@3-rc.1"),
    ] {
        assert_eq!(run(published, wanted, present).as_deref(), Ok(expected), "{wanted:?} {present:?}");
    }
}

/// What becomes of what the container has: `NAME@VERSION` of what is not as it was.
fn moved(
    published: &Published,
    wanted: &[&str],
    present: &[&str],
    earlier: &[&str],
) -> Result<String, String> {
    let label = |text: &&str| {
        let (name, version) = text.split_once('@').unwrap();
        (name.parse::<CapsuleName>().unwrap(), version.parse::<Version>().unwrap())
    };
    let wanted = wanted.iter().map(|text| text.parse::<Requirement>().unwrap());
    let mut asked = Asked { wanted: wanted.map(|r| (r.name, r.versions)).collect(), ..Asked::default() };
    for (name, version) in present.iter().map(label) {
        asked.present.entry(name).or_default().insert(version);
    }
    let shelf = shelf(published);
    let mut moves = Moves { movable: required(&asked.wanted, &shelf), ..Moves::default() };
    for (name, version) in earlier.iter().map(label) {
        moves.earlier.entry(name).or_default().push(version);
    }
    asked.moves = Some(moves);
    let chosen = resolve(&asked, &shelf).map_err(|conflict| conflict.to_string())?;
    let is_new = |c: &&Chosen| asked.present.get(&c.name).is_none_or(|all| !all.contains(&c.version));
    Ok(chosen
        .iter()
        .filter(is_new)
        .map(|c| format!("{}@{}", c.name, c.version))
        .collect::<Vec<_>>()
        .join(" "))
}

#[test]
fn what_a_new_version_requires_is_moved_or_comes_along() {
    let published: &Published = &[
        ("app@1", "lib >=1, <2"),
        ("app@2", "lib >=2; extra"),
        ("app@3", "other >=2"),
        ("lib@1.0", ""),
        ("lib@1.5", ""),
        ("lib@2.0", ""),
        ("lib@2.5", "base"),
        ("base@1", ""),
        ("extra@1", ""),
        ("plugin@1", "lib <2"),
        ("plugin@2", "lib >=2"),
        ("other@2", ""),
        ("lame@1", "nothing"),
    ];
    for (wanted, present, earlier, expected) in [
        // The highest that will do; what is there is kept where it will do.
        (&["app =2"][..], &["app@1", "lib@1.0"][..], &[][..], "base@1 lib@2.5 extra@1 app@2"),
        (&["app =2"], &["app@1", "lib@2.0"], &[], "extra@1 app@2"),
        (&["app =1"], &["app@2", "lib@2.5", "extra@1"], &["lib@1.0", "app@1"], "lib@1.0 app@1"),
        // What went away since can be gone back to.
        (&["app =0"], &["app@1", "lib@1.0"], &["app@0"], "app@0"),
        (&["app =1"], &["app@2", "lib@2.5"], &["lib@1.1"], "lib@1.1 app@1"),
        // Others stay as they are, and count; what they lack already does not.
        (
            &["app =2", "plugin =2"],
            &["app@1", "plugin@1", "lib@1.0"],
            &[],
            "base@1 lib@2.5 extra@1 app@2 plugin@2",
        ),
        (&["app =3"], &["app@1", "lib@1.0", "lame@1"], &[], "other@2 app@3"),
        (&["lib >=1.0"], &["app@1", "lib@1.0"], &[], "lib@1.5"),
        // Asked for as well as required.
        (&["app =1", "lib >=1.0, <=1.5"], &["app@1", "lib@1.0"], &[], "lib@1.5"),
        // The newest, though older ones would leave more as it is.
        (&["app >=1, <=2"], &["app@1", "lib@1.0"], &[], "base@1 lib@2.5 extra@1 app@2"),
        (
            &["app >=1, <=2", "other"],
            &["app@1", "lib@1.0", "other@1"],
            &[],
            "base@1 lib@2.5 extra@1 app@2 other@2",
        ),
    ] {
        assert_eq!(
            moved(published, wanted, present, earlier).as_deref(),
            Ok(expected),
            "{wanted:?} {present:?}"
        );
    }
    let error = moved(published, &["app =2"], &["app@1", "plugin@1", "lib@1.0"], &[]).unwrap_err();
    for fact in [
        "app@2 requires lib >=2",
        "plugin@1 requires lib <2",
        "the container has plugin@1",
        "app@2 is asked for",
    ] {
        assert!(error.contains(fact), "{error} lacks {fact:?}");
    }
}

#[test]
fn a_conflict_is_explained_in_facts() {
    let published: &Published = &[
        ("app@1", "cuda >=12, <13"),
        ("plugin@1", "cuda >=13"),
        ("cuda@12.4", ""),
        ("cuda@13", ""),
        ("lonely@1", "nothing >=1"),
        ("dead@1", "!"),
    ];
    for (wanted, present, facts) in [
        (
            &["app", "plugin"][..],
            &[][..],
            &[
                "app@1 requires cuda >=12, <13",
                "plugin@1 requires cuda >=13",
                "app is asked for",
                "; ask for other versions of app and plugin, or for fewer of them",
            ][..],
        ),
        (&["lonely"], &[], &["capsule nothing is not known here: publish or pull it"]),
        (&["app"], &["cuda@13"], &["the container has cuda@13: upgrade it first"]),
        (&["app =2"], &[], &["app@2 is asked for", "there is no app =2, only 1: publish or pull it"]),
        (
            &["dead"],
            &[],
            &["dead@1 cannot be used: its manifest is gone", "; ask for another version of dead (see"],
        ),
    ] {
        let error = run(published, wanted, present).unwrap_err();
        for fact in facts {
            assert!(error.contains(fact), "{wanted:?} {present:?}: {error} lacks {fact:?}");
        }
        assert!(!error.contains("the call"), "{error}");
        let cures = ["publish or pull it", "upgrade it first", "; ask for "];
        assert_eq!(cures.iter().filter(|cure| error.contains(*cure)).count(), 1, "{error}");
    }
}
