//! Every verdict of every program is the evaluator's.

use overlayfs_utils::Instruction;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{
    Access, Device, DeviceKind, Grant,
    evaluate::{crun_allows, runc_allows},
    ledger::Grants,
    parse_rules,
    program::{NAME, can_be_loaded, decode_base, encode_decisions, encode_grants},
    rules::Rule,
    runtime::{NotForRunc, Runtime, decisions_of_crun, decisions_of_runc},
    verdict::{allows, verdict},
};

pub fn device(kind: char, major: u32, minor: u32) -> Device {
    let kind = if kind == 'b' { DeviceKind::Block } else { DeviceKind::Char };
    Device { kind, major, minor }
}

pub fn access(text: &str) -> Access {
    Access::parse(text).unwrap()
}

pub fn rules(value: &Value) -> Vec<Rule> {
    parse_rules(value).unwrap()
}

/// Runs a program in rbpf, an interpreter that knows nothing of devices.
fn run(program: &[Instruction], device: Device, access: Access) -> bool {
    let bytes: Vec<u8> = program.iter().flat_map(|instruction| instruction.to_bytes()).collect();
    let kind: u32 = if device.kind == DeviceKind::Block { 1 } else { 2 };
    let words = [u32::from(access.bits()) << 16 | kind, device.major, device.minor];
    let mut context: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    let machine = rbpf::EbpfVmRaw::new(Some(&bytes)).unwrap();
    match machine.execute_program(&mut context).unwrap() {
        0 => false,
        1 => true,
        other => panic!("the program answers {other}"),
    }
}

#[test]
fn the_programs_are_those_that_runtimes_load() {
    let value = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": true, "type": "b", "access": "r"},
    ]);
    // Read back from a kernel on which each had started a container with these rules: runc 1.3.6, crun 1.28.
    let runc = encode_decisions(&decisions_of_runc(&rules(&value), &[]).unwrap(), Runtime::Runc);
    assert_eq!(text(&runc), include_str!("runc-1.3.6.txt"));
    let crun = encode_decisions(&decisions_of_crun(&rules(&value)), Runtime::Crun);
    assert_eq!(text(&crun), include_str!("crun-1.28.txt"));
}

fn text(program: &[Instruction]) -> String {
    let hex = |instruction: &Instruction| {
        let bytes = instruction.to_bytes().map(|byte| format!("{byte:02x}"));
        bytes.concat() + "\n"
    };
    program.iter().map(hex).collect()
}

#[test]
fn runc_and_crun_differ_where_their_table_says() {
    let at = |value: Value, kind, major, minor, asked: &str| {
        let (list, device) = (rules(&value), device(kind, major, minor));
        let runc = decisions_of_runc(&list, &["/dev/tty"]).map(|decisions| {
            verdict(&encode_decisions(&decisions, Runtime::Runc), device, access(asked)).unwrap()
        });
        let crun = encode_decisions(&decisions_of_crun(&list), Runtime::Crun);
        (runc, verdict(&crun, device, access(asked)).unwrap())
    };
    let deny_null =
        json!([{"allow": true, "access": "rwm"}, {"type": "c", "major": 1, "minor": 3, "access": "rwm"}]);
    assert_eq!(at(deny_null, 'c', 1, 3, "r"), (Ok(true), true), "the defaults have the last word");
    let numbers = json!([{"allow": true, "type": "a", "major": 8, "minor": 0, "access": "r"}]);
    assert_eq!(at(numbers.clone(), 'b', 8, 0, "r"), (Ok(true), true));
    assert_eq!(at(numbers, 'b', 9, 0, "w"), (Ok(true), false), "runc takes a for everything");
    let hole =
        json!([{"allow": true, "type": "b", "access": "rw"}, {"type": "b", "major": 8, "access": "w"}]);
    assert_eq!(at(hole.clone(), 'b', 8, 0, "w"), (Err(NotForRunc::Hole(1)), false));
    assert_eq!(
        at(json!([{"allow": true, "type": "b"}]), 'b', 8, 0, "w"),
        (Err(NotForRunc::NoAccess(0)), false)
    );
    assert_eq!(at(json!([]), 'c', 5, 1, "r"), (Ok(false), true), "the console");
    assert_eq!(at(json!([]), 'c', 5, 0, "r"), (Ok(false), true), "a node of the container's own");
    let halves = json!([{"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"},
        {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "w"}]);
    assert_eq!(at(halves, 'b', 8, 0, "rw"), (Ok(true), false));
    let half_denied =
        json!([{"allow": true, "access": "rwm"}, {"type": "b", "major": 8, "minor": 0, "access": "w"}]);
    assert_eq!(at(half_denied.clone(), 'b', 8, 0, "w"), (Ok(false), false));
    assert_eq!(at(half_denied, 'b', 8, 0, "rw"), (Ok(true), true), "neither stops an open for both");
}

/// Numbers of which many are the same, some those of the defaults, and some those that no device has.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => 0_u32..4,
        4 => prop::sample::select(vec![1, 3, 5, 8, 10, 136, 200]),
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ]
}

fn kind() -> impl Strategy<Value = DeviceKind> {
    prop_oneof![Just(DeviceKind::Block), Just(DeviceKind::Char)]
}

fn rule() -> impl Strategy<Value = Rule> {
    let kind = prop_oneof![1 => Just(None), 8 => kind().prop_map(Some)];
    let number = || prop_oneof![1 => Just(None), 4 => number().prop_map(Some)];
    (any::<bool>(), kind, number(), number(), 0_u8..8).prop_map(|(allow, kind, major, minor, bits)| Rule {
        allow,
        kind,
        major,
        minor,
        access: if bits == 0 { Access::ALL } else { Access::from_bits(bits) },
    })
}

pub fn a_device() -> impl Strategy<Value = Device> {
    (kind(), number(), number()).prop_map(|(kind, major, minor)| Device { kind, major, minor })
}

pub fn an_access() -> impl Strategy<Value = Access> {
    (1_u8..8).prop_map(Access::from_bits)
}

fn some_grants() -> impl Strategy<Value = Vec<Grant>> {
    prop::collection::vec(
        (a_device(), an_access()).prop_map(|(device, access)| Grant { device, access }),
        1..8,
    )
}

/// Accesses at random, and one to each device that is named.
fn asked(list: &[Rule], more: Vec<(Device, Access)>) -> Vec<(Device, Access)> {
    let named = list.iter().flat_map(|rule| {
        let device = Device {
            kind: rule.kind.unwrap_or(DeviceKind::Block),
            major: rule.major.unwrap_or(7),
            minor: rule.minor.unwrap_or(7),
        };
        (1..8).map(move |bits| (device, Access::from_bits(bits)))
    });
    named.take(700).chain(more).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn all_verdicts_are_the_evaluators(
        list in prop_oneof![6 => prop::collection::vec(rule(), 0..12), 1 => prop::collection::vec(rule(), 12..80)],
        has_null in any::<bool>(),
        more in prop::collection::vec((a_device(), an_access()), 16),
    ) {
        let paths: &[&str] = if has_null { &["/dev/null"] } else { &[] };
        let crun = encode_decisions(&decisions_of_crun(&list), Runtime::Crun);
        let runc = decisions_of_runc(&list, paths).map(|decisions| encode_decisions(&decisions, Runtime::Runc));
        for (device, access) in asked(&list, more) {
            let expected = crun_allows(&list, device, access);
            prop_assert_eq!(run(&crun, device, access), expected, "crun {} {}", device, access);
            prop_assert_eq!(verdict(&crun, device, access), Some(expected));
            let expected = runc_allows(&list, paths, device, access);
            let got = runc.as_ref().ok().map(|program| run(program, device, access));
            prop_assert_eq!(got, expected, "runc {} {}", device, access);
            if let Ok(program) = &runc {
                prop_assert_eq!(verdict(program, device, access), expected);
            }
        }
    }

    #[test]
    fn grants_are_allowed_and_nothing_else_changes(
        list in prop::collection::vec(rule(), 0..12),
        grants in some_grants(),
        more in prop::collection::vec((a_device(), an_access()), 16),
    ) {
        let base = encode_decisions(&decisions_of_crun(&list), Runtime::Crun);
        let all: Grants = grants.iter().copied().collect();
        let program = encode_grants(&all, &base);
        prop_assert!(can_be_loaded(&program));
        prop_assert_eq!(decode_base(NAME, &program), Some(&base[..]));
        let of_grants = grants.iter().flat_map(|grant| (1..8).map(|bits| (grant.device, Access::from_bits(bits))));
        for (device, access) in asked(&list, more).into_iter().chain(of_grants) {
            let granted = grants.iter().filter(|grant| grant.device == device).fold(Access::NONE, |sum, grant| sum.union(grant.access));
            let expected = access.without(granted).is_empty() || crun_allows(&list, device, access);
            prop_assert_eq!(run(&program, device, access), expected, "{} {}", device, access);
            prop_assert_eq!(verdict(&program, device, access), Some(expected));
        }
        for grant in &grants {
            prop_assert_eq!(allows(&program, grant.device, grant.access), Some(true));
        }
    }

    /// Programs are outside input: anybody with the right may have attached them.
    #[test]
    fn no_program_makes_its_readers_panic(
        bytes in prop::collection::vec(any::<[u8; 8]>(), 0..40),
        codes in prop::collection::vec(prop::sample::select(vec![0x61, 0xb7, 0xb4, 0x55, 0x5d, 0x05, 0x95, 0x18, 0x54, 0x74]), 40),
        ours in any::<bool>(),
        device in a_device(),
        access in an_access(),
    ) {
        let mut program: Vec<_> = bytes.into_iter().zip(&codes).map(|(mut bytes, code)| {
            bytes[0] = if bytes[1] % 2 == 0 { *code } else { bytes[0] };
            bytes[1] &= 0x77;
            bytes[3] = 0;
            Instruction::from_bytes(bytes)
        }).collect();
        if ours {
            program = encode_grants(&Grants::default(), &program);
        }
        let _ = verdict(&program, device, access);
        let _ = can_be_loaded(&program);
        let base = decode_base(NAME, &program);
        prop_assert!(!ours || base.is_some() || program.len() == 8);
    }
}

#[test]
fn many_rules_make_a_program_of_a_few_instructions_each() {
    // rbpf counts instructions in 16 bits.
    for (count, in_rbpf) in [(1_u32, true), (64, true), (512, true), (4096, false)] {
        let all: Grants =
            (0..count).map(|minor| Grant { device: device('c', 240, minor), access: access("rw") }).collect();
        let base = encode_decisions(&decisions_of_runc(&[], &[]).unwrap(), Runtime::Runc);
        let program = encode_grants(&all, &base);
        assert_eq!(program.len(), 8 + 8 * count as usize + base.len());
        for (minor, asked, expected) in [(count - 1, "rw", true), (count, "r", false), (count, "m", true)] {
            let device = device('c', 240, minor);
            assert_eq!(verdict(&program, device, access(asked)), Some(expected));
            assert!(!in_rbpf || run(&program, device, access(asked)) == expected);
        }
    }
}

#[test]
fn a_program_of_somebody_elses_is_not_taken_for_one_of_ours() {
    let base = encode_decisions(&decisions_of_crun(&[]), Runtime::Crun);
    let program = encode_grants(&Grants::default(), &base);
    assert_eq!(decode_base(NAME, &program), Some(&base[..]));
    assert_eq!(decode_base("other", &program), None);
    assert_eq!(decode_base(NAME, &base), None);
    assert_eq!(decode_base(NAME, &program[..8]), None, "there is nothing behind");
    for length in [-1, i32::MAX] {
        let mut wrong = program.clone();
        wrong[1].immediate = length;
        assert_eq!(decode_base(NAME, &wrong), None);
    }
}
