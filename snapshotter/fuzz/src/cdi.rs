//! CDI specs: what is accepted is complete, and what is not says why.

use capsuled::devices::{Format, Spec};

pub fn check(data: &[u8]) {
    for format in [Format::Json, Format::Yaml] {
        match Spec::parse(data, format) {
            Ok(spec) => {
                assert!(spec.devices().next().is_some(), "a spec has a device");
                for name in spec.devices() {
                    assert_eq!(name.to_string().parse().as_ref(), Ok(name));
                    // What is on the host is no matter here.
                    let _ = spec.edits_of(name);
                }
                for edits in spec
                    .shared_edits()
                    .into_iter()
                    .chain(spec.devices().filter_map(|d| spec.edits_of(d).ok()?))
                {
                    assert!(edits.nodes.iter().all(|node| node.path.starts_with('/')));
                    assert!(edits.env.iter().all(|entry| entry.find('=').is_some_and(|at| at > 0)));
                    assert!(!edits.additional_gids.contains(&0));
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
