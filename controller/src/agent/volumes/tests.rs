use std::slice::from_ref;

use super::*;

fn wanted(version: Option<&str>) -> VolumeWanted {
    VolumeWanted {
        id: "shop/pvc-1".into(),
        capsule: version.map(|_| "tz".to_owned()),
        version: version.map(str::to_owned),
        mode: VolumeMode::Rw,
        size: Some(1),
        owner: None,
        permissions: None,
        goes: false,
    }
}

fn there(version: &str, mounts: usize) -> Listed {
    Listed { id: "shop/pvc-1".into(), version: version.into(), digest: String::new(), mounts }
}

fn versions() -> Versions {
    let of = |asked: &str, is: Result<&str, &str>| {
        (("tz".to_owned(), asked.to_owned()), is.map(str::to_owned).map_err(str::to_owned))
    };
    [of("1", Ok("1")), of("2", Ok("2")), of("stable", Ok("2")), of("9", Err("no tz@9"))].into()
}

fn run(wanted: &[VolumeWanted], before: &[VolumeDone], there: &There) -> (Option<VolumeDone>, Option<Step>) {
    let planned = plan(wanted, before, there, &versions());
    assert!(planned.len() < 2, "{planned:?}");
    planned.into_iter().next().map_or((None, None), |one| (one.said, Some(one.step)))
}

fn known(all: &[Listed]) -> There {
    There::Known(all.to_vec())
}

fn state(said: Option<&VolumeDone>) -> Option<(VolumeState, Option<&str>)> {
    said.map(|one| (one.state, one.asked.as_deref()))
}

#[test]
fn what_is_written_is_made_and_then_is_as_it_is() {
    let one = wanted(None);
    let make = Step::Make(Box::new(one.clone()), String::new());
    assert_eq!(run(from_ref(&one), &[], &known(&[])), (None, Some(make.clone())));
    // It is there before this agent has said so: capsuled is asked whether it is the one.
    assert_eq!(run(from_ref(&one), &[], &known(&[there("", 0)])), (None, Some(make)));
    let made = done(&there("", 0), None);
    assert_eq!(run(&[one], &[made], &known(&[there("", 2)])).0.unwrap().mounts, 2);
    // Nobody asks anything of it any more.
    assert_eq!(state(run(&[], &[], &known(&[there("", 0)])).0.as_ref()), Some((VolumeState::Made, None)));
}

#[test]
fn why_it_could_not_be_made_is_said_until_it_is() {
    let full = told(none(&wanted(None)), &Status::resource_exhausted("the disk is full"));
    assert!(full.full && full.message.as_deref() == Some("the disk is full"));
    assert!(!told(none(&wanted(None)), &Status::internal("")).full);
    let (said, step) = run(&[wanted(None)], from_ref(&full), &known(&[]));
    assert_eq!((said.as_ref(), matches!(step, Some(Step::Make(..)))), (Some(&full), true));
    // Nobody wants it any more.
    assert_eq!(run(&[], &[full], &known(&[])), (None, None));
}

#[test]
fn another_version_is_put_into_it_where_it_has_not_the_one_that_is_asked_for() {
    let made = [done(&there("1", 1), None)];
    let (said, step) = run(&[wanted(Some("2"))], &made, &known(&[there("1", 1)]));
    assert_eq!(
        (state(said.as_ref()), step),
        (Some((VolumeState::Made, None)), Some(Step::Replace("2".into())))
    );
    let (said, step) = run(&[wanted(Some("stable"))], &made, &known(&[there("2", 1)]));
    assert_eq!((state(said.as_ref()), step), (Some((VolumeState::Made, Some("stable"))), Some(Step::Rest)));
    let (said, step) = run(&[wanted(Some("9"))], &made, &known(&[there("2", 1)]));
    assert_eq!((state(said.as_ref()), step), (Some((VolumeState::Failed, Some("9"))), Some(Step::Rest)));
    assert_eq!(said.unwrap().message.as_deref(), Some("no tz@9"));
    // One that is only read is nothing where nobody has mounted it, and is never made.
    let mut read = wanted(Some("2"));
    (read.mode, read.size) = (VolumeMode::Ro, None);
    assert_eq!(run(&[read.clone()], &[], &known(&[])), (None, None));
    assert_eq!(run(&[read], &[], &known(&[there("1", 1)])).1, Some(Step::Replace("2".into())));
}

#[test]
fn it_is_gone_when_capsuled_says_so_and_not_before() {
    let goes = VolumeWanted { goes: true, ..wanted(None) };
    let (said, step) = run(from_ref(&goes), &[], &known(&[there("", 1)]));
    assert_eq!((state(said.as_ref()), step), (Some((VolumeState::Removing, None)), Some(Step::Remove)));
    let refused = told(said.unwrap(), &Status::failed_precondition("it is mounted"));
    assert_eq!(
        run(from_ref(&goes), from_ref(&refused), &known(&[there("", 1)])).0.unwrap().message,
        refused.message
    );
    assert_eq!(run(from_ref(&goes), &[refused], &known(&[])), (None, None));
    let (said, step) = run(from_ref(&goes), &[], &There::Unknown("why".into()));
    assert_eq!((state(said.as_ref()), step), (Some((VolumeState::Removing, None)), Some(Step::Rest)));
    // What was there is not forgotten.
    let (said, _) = run(&[], &[done(&there("", 0), None)], &There::Unknown("why".into()));
    assert_eq!(state(said.as_ref()), Some((VolumeState::Made, None)));
}

#[test]
fn a_capsuled_without_volumes_is_no_failure_until_one_is_wanted() {
    let old = There::Unknown("it needs a newer one".into());
    assert_eq!(run(&[], &[], &old), (None, None));
    let (said, _) = run(&[wanted(None)], &[], &old);
    assert_eq!(said.unwrap().message.as_deref(), Some("it needs a newer one"));
    assert_eq!(pause(&[], &[]), CALM);
}

#[test]
fn it_is_looked_at_again_by_what_is_to_come() {
    let one = wanted(Some("2"));
    let has = |asked: Option<&str>| done(&there("2", 0), asked.map(str::to_owned));
    assert_eq!(pause(from_ref(&one), &[has(Some("2"))]), CALM);
    assert_eq!(pause(from_ref(&one), &[has(None)]), SOON);
    assert_eq!(pause(from_ref(&one), &[none(&one)]), LATER);
    assert_eq!(pause(from_ref(&one), &[]), SOON);
    let goes = VolumeWanted { goes: true, ..one };
    assert_eq!(pause(from_ref(&goes), &[]), CALM);
    assert_eq!(pause(&[goes], &[has(None)]), LATER);
}
