//! Which programs are replaced, by what is attached and what is wanted.

use overlayfs_utils::{Instruction, ProgramId, ProgramInfo, ProgramTag, Sharing};
use proptest::prelude::*;
use serde_json::json;

use super::{
    super::{
        Access, Aim, Device, DeviceKind, Expected, Grant, Ledger, Policy, Wish,
        ledger::Grants,
        plan::{Change, Refusal, Situation, plan_programs},
        program::{NAME, decode_base, encode_decisions},
        runtime::{Runtime, decisions_of_crun, decisions_of_runc},
        verdict::{allows, verdict},
    },
    programs::{a_device, access, an_access, device, rules},
};

const FUSE: Device = Device { kind: DeviceKind::Char, major: 10, minor: 229 };

fn fuse() -> Grants {
    [Grant { device: FUSE, access: access("rw") }].into_iter().collect()
}

fn program(id: u32, name: &str, instructions: Vec<Instruction>) -> ProgramInfo {
    ProgramInfo {
        id: ProgramId(id),
        tag: ProgramTag([0; 8]),
        name: name.to_owned(),
        loaded_at: std::time::Duration::ZERO,
        map_count: 0,
        instructions: Some(instructions),
    }
}

/// The program of a container that may open nothing but the defaults.
fn of_runc() -> Vec<Instruction> {
    encode_decisions(&decisions_of_runc(&[], &[]).unwrap(), Runtime::Runc)
}

/// A program of nobody known: it allows the device with the numbers 1 and `minor`.
fn foreign(minor: u32) -> Vec<Instruction> {
    let list = rules(&json!([{"allow": true, "type": "c", "major": 1, "minor": minor, "access": "rwm"}]));
    encode_decisions(&decisions_of_crun(&list), Runtime::Runc)
}

fn situation(own: Vec<ProgramInfo>) -> Situation {
    Situation { own, above: Vec::new(), sharing: Sharing::Shared }
}

fn plan(situation: &Situation, wanted: &Grants, policy: Policy) -> Result<Vec<Change>, Refusal> {
    plan_programs(situation, &Expected::new(&[], &[]), Wish { wanted, policy, aim: Aim::Give })
}

/// The same, where something is taken away.
fn plan_taking(situation: &Situation, wanted: &Grants, policy: Policy) -> Result<Vec<Change>, Refusal> {
    plan_programs(situation, &Expected::new(&[], &[]), Wish { wanted, policy, aim: Aim::Take })
}

/// What is attached after a plan, which is to leave nothing to do.
fn after(situation: &Situation, wanted: &Grants, policy: Policy) -> Situation {
    let changes = plan(situation, wanted, policy).unwrap();
    let own = situation.own.iter().map(|present| {
        match changes.iter().find(|change| change.replaced == present.id) {
            Some(change) => program(present.id.0 + 100, NAME, change.instructions.clone()),
            None => present.clone(),
        }
    });
    let next = Situation { own: own.collect(), above: Vec::new(), sharing: situation.sharing };
    assert_eq!(plan(&next, wanted, policy).unwrap(), [], "a plan leaves nothing to do");
    next
}

#[test]
fn a_device_is_given_and_taken_back_and_the_program_is_what_it_was() {
    let before = situation(vec![program(1, "", of_runc())]);
    assert_eq!(plan(&before, &Grants::default(), Policy::Refuse).unwrap(), []);
    let changes = plan(&before, &fuse(), Policy::Refuse).unwrap();
    assert!(matches!(&changes[..], [Change { replaced: ProgramId(1), adopts: false, .. }]), "{changes:?}");
    assert_eq!(allows(&changes[0].instructions, FUSE, access("rw")), Some(true));

    let with = after(&before, &fuse(), Policy::Refuse);
    let back = after(&with, &Grants::default(), Policy::Refuse);
    assert_eq!(back.own[0].instructions.as_deref(), Some(&of_runc()[..]));
}

#[test]
fn what_a_container_may_open_anyway_changes_nothing() {
    let null: Grants = [Grant { device: device('c', 1, 3), access: Access::ALL }].into_iter().collect();
    let container = situation(vec![program(1, "", of_runc())]);
    assert_eq!(plan(&container, &null, Policy::Merge).unwrap(), []);
    // Neither does anything when nothing limits it.
    assert_eq!(plan(&situation(Vec::new()), &fuse(), Policy::Merge).unwrap(), []);
    // What it may open in part only is given.
    let list = rules(&json!([{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]));
    let readable = encode_decisions(&decisions_of_runc(&list, &[]).unwrap(), Runtime::Runc);
    assert_eq!(plan(&situation(vec![program(1, "", readable)]), &fuse(), Policy::Merge).unwrap().len(), 1);
}

#[test]
fn a_program_that_replaced_ours_is_merged_again_or_refused() {
    let with = after(&situation(vec![program(1, "", of_runc())]), &fuse(), Policy::Merge);
    // The runtime's update: the same rules, ours lost.
    let updated = situation(vec![program(7, "", of_runc())]);
    let repaired = after(&updated, &fuse(), Policy::Refuse);
    assert_eq!(repaired.own[0].instructions, with.own[0].instructions);
    // Somebody else's rules, in place of ours and beside them.
    for own in [vec![program(8, "", foreign(99))], vec![with.own[0].clone(), program(8, "", foreign(99))]] {
        let changed = situation(own);
        let refused = plan(&changed, &fuse(), Policy::Refuse).unwrap_err();
        assert!(
            matches!(&refused, Refusal::Foreign { device: FUSE, program: ProgramId(8), .. }),
            "{refused}"
        );
        let changes = plan(&changed, &fuse(), Policy::Merge).unwrap();
        let adopted: Vec<_> =
            changes.iter().filter(|change| change.adopts).map(|change| change.replaced).collect();
        assert_eq!(adopted, [ProgramId(8)]);
        let merged = after(&changed, &fuse(), Policy::Merge);
        let last = merged.own.last().unwrap();
        assert_eq!(decode_base(NAME, last.instructions.as_deref().unwrap()), Some(&foreign(99)[..]));
        // Detaching, also where a stricter policy came in between, leaves theirs.
        let back = after(&merged, &Grants::default(), Policy::Refuse);
        assert_eq!(back.own.last().unwrap().instructions.as_deref(), Some(&foreign(99)[..]));
    }
    // One that allows the device is left alone, whatever the policy.
    let list = rules(&json!([{"allow": true, "type": "c", "access": "rwm"}]));
    let kind = encode_decisions(&decisions_of_crun(&list), Runtime::Runc);
    let beside = situation(vec![with.own[0].clone(), program(9, "theirs", kind)]);
    assert_eq!(plan(&beside, &fuse(), Policy::Refuse).unwrap(), []);
}

/// Whatever stands in the way of one device, another can be taken away.
#[test]
fn a_device_is_taken_while_another_is_denied() {
    let null = Grant { device: Device { minor: 99, major: 1, ..FUSE }, access: access("rw") };
    let both: Grants = fuse().iter().chain([null]).collect();
    let ours = after(&situation(vec![program(1, "", of_runc())]), &both, Policy::Merge).own.remove(0);
    let mut hidden = program(3, "theirs", of_runc());
    hidden.instructions = None;
    let mut counting = program(4, "counter", of_runc());
    counting.map_count = 1;
    for stranger in [program(2, "theirs", foreign(98)), hidden, counting] {
        let beside = situation(vec![ours.clone(), stranger.clone()]);
        let above = Situation { above: vec![stranger], ..situation(vec![ours.clone()]) };
        for container in [beside, above] {
            plan(&container, &fuse(), Policy::Refuse).unwrap_err();
            let changes = plan_taking(&container, &fuse(), Policy::Refuse).unwrap();
            assert!(matches!(&changes[..], [Change { adopts: false, .. }]), "{changes:?}");
            assert_eq!(changes[0].replaced, ours.id);
            assert_eq!(allows(&changes[0].instructions, FUSE, access("rw")), Some(true));
            assert_eq!(allows(&changes[0].instructions, null.device, null.access), Some(false));
            // And the last one.
            let changes = plan_taking(&container, &Grants::default(), Policy::Refuse).unwrap();
            assert_eq!(changes[0].instructions, of_runc());
        }
    }
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let mut hidden = program(3, "theirs", of_runc());
    hidden.instructions = None;
    let mut counting = program(4, "counter", of_runc());
    counting.map_count = 1;
    let mut calling = of_runc();
    calling.insert(6, Instruction::new(0x85, 0, 0, 0, 5));
    for program in [hidden, counting, program(5, "calls", calling)] {
        let (id, container) = (program.id, situation(vec![program]));
        let refused = plan(&container, &fuse(), Policy::Merge).unwrap_err();
        assert!(matches!(&refused, Refusal::Opaque { program, .. } if *program == id), "{refused}");
        assert_eq!(plan(&container, &Grants::default(), Policy::Merge).unwrap(), []);
    }
    // One of ours that cannot be read may allow anything.
    let mut unreadable = program(6, NAME, of_runc());
    unreadable.instructions = None;
    let container = situation(vec![unreadable]);
    for plan in [plan, plan_taking] {
        let refused = plan(&container, &Grants::default(), Policy::Merge).unwrap_err();
        assert!(matches!(&refused, Refusal::Opaque { program: ProgramId(6), .. }), "{refused}");
    }
    let alone = Situation { sharing: Sharing::Alone, ..situation(vec![program(1, "", of_runc())]) };
    assert_eq!(plan(&alone, &fuse(), Policy::Merge).unwrap_err(), Refusal::NotShared);
    let above =
        Situation { above: vec![program(2, "", of_runc())], ..situation(vec![program(1, "", of_runc())]) };
    let refused = plan(&above, &fuse(), Policy::Merge).unwrap_err();
    assert_eq!(refused, Refusal::Above { device: FUSE, program: ProgramId(2) });
    assert!(refused.to_string().contains("c 10:229"), "{refused}");
}

#[test]
fn a_ledger_counts_what_several_have() {
    let (kvm, read) = (device('c', 10, 232), access("r"));
    let ledger = Ledger::default()
        .with("one", vec![Grant { device: FUSE, access: read }])
        .with("two", vec![Grant { device: FUSE, access: access("w") }, Grant { device: kvm, access: read }]);
    assert_eq!(ledger.wanted().iter().next(), Some(Grant { device: FUSE, access: access("rw") }));
    assert_eq!(ledger.users(FUSE).collect::<Vec<_>>(), ["one", "two"]);
    let left = ledger.without("two").wanted();
    assert_eq!(left.iter().collect::<Vec<_>>(), [Grant { device: FUSE, access: read }]);
    let json = serde_json::to_string(&ledger).unwrap();
    assert!(json.contains(r#"{"device":{"kind":"char","major":10,"minor":229},"access":"r"}"#), "{json}");
    assert_eq!(serde_json::from_str::<Ledger>(&json).unwrap(), ledger);
    assert!(
        serde_json::from_str::<Ledger>(
            r#"{"a":[{"device":{"kind":"char","major":1,"minor":1},"access":"x"}]}"#
        )
        .is_err()
    );
}

#[derive(Debug, Clone)]
enum Step {
    Attach(u8, Vec<(Device, Access)>),
    Detach(u8),
    /// The runtime puts its program there again, in place of all.
    Update,
    /// Somebody attaches a program of theirs beside.
    Beside(u32),
    /// Somebody replaces the first by one of theirs.
    Instead(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..3, prop::collection::vec((a_device(), an_access()), 1..4)).prop_map(|(id, devices)| Step::Attach(id, devices)),
        3 => (0_u8..3).prop_map(Step::Detach),
        1 => Just(Step::Update),
        1 => (0_u32..9).prop_map(Step::Beside),
        1 => (0_u32..9).prop_map(Step::Instead),
    ]
}

proptest! {
    /// Whatever happens in between: what is attached is allowed, what others' programs decide is as they decide it, and
    /// when all is detached theirs are left, instruction by instruction.
    #[test]
    fn attached_devices_and_others_programs_live_together(
        steps in prop::collection::vec(step(), 1..16),
        probes in prop::collection::vec((a_device(), an_access()), 8),
    ) {
        let (mut ledger, mut now) = (Ledger::default(), situation(vec![program(1, "", of_runc())]));
        // What is there without us.
        let mut theirs = vec![of_runc()];
        for (number, step) in steps.into_iter().enumerate() {
            let id = 1000 * u32::try_from(number + 1).unwrap();
            match step {
                Step::Attach(attachment, devices) => {
                    let grants = devices.into_iter().map(|(device, access)| Grant { device, access }).collect();
                    ledger = ledger.with(&attachment.to_string(), grants);
                }
                Step::Detach(attachment) => ledger = ledger.without(&attachment.to_string()),
                Step::Update => {
                    now.own = vec![program(id, "", of_runc())];
                    theirs = vec![of_runc()];
                }
                Step::Beside(minor) => {
                    now.own.push(program(id, "", foreign(minor)));
                    theirs.push(foreign(minor));
                }
                Step::Instead(minor) => {
                    now.own[0] = program(id, "", foreign(minor));
                    theirs[0] = foreign(minor);
                }
            }
            let wanted = ledger.wanted();
            now = after(&now, &wanted, Policy::Merge);
            for (device, access) in &probes {
                let granted = wanted.iter().find(|grant| grant.device == *device).map_or(Access::NONE, |grant| grant.access);
                for (present, base) in now.own.iter().zip(&theirs) {
                    let got = verdict(present.instructions.as_deref().unwrap(), *device, *access).unwrap();
                    let base = verdict(base, *device, *access).unwrap();
                    prop_assert_eq!(got, base || access.without(granted).is_empty());
                }
            }
            for grant in wanted.iter() {
                for present in &now.own {
                    prop_assert_eq!(allows(present.instructions.as_deref().unwrap(), grant.device, grant.access), Some(true));
                }
            }
        }
        now = after(&now, &Grants::default(), Policy::Refuse);
        let left: Vec<_> = now.own.into_iter().map(|present| present.instructions.unwrap()).collect();
        prop_assert_eq!(left, theirs);
    }
}
