//! Programs of any instructions: what is said of them is what an interpreter that knows nothing of devices makes of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use overlayfs_utils::Instruction;
use proptest::prelude::*;

use super::{
    super::{
        Access, Device, DeviceKind, Grant,
        ledger::Grants,
        program::{NAME, decode_base, encode_grants},
        verdict::verdict,
    },
    programs::{a_device, an_access},
};

/// Whether a program compares 64 bits with a negative number. The kernel extends its sign (RFC 9669, section 4.3;
/// `JMP_JEQ_K` and its like in `kernel/bpf/core.c`), rbpf 0.4 fills it with zeros.
fn compares_with_negative(program: &[Instruction]) -> bool {
    let is = |one: &Instruction| one.code & 0x0f == 0x05 && one.code & 0xf0 != 0 && one.immediate < 0;
    program.iter().any(is)
}

/// The interpreter's answer; none where it refuses the program, takes it for another one, or panics, as it does where a sum overflows.
fn interpreted(program: &[Instruction], device: Device, access: Access) -> Option<bool> {
    if compares_with_negative(program) {
        return None;
    }
    let bytes: Vec<u8> = program.iter().flat_map(|instruction| instruction.to_bytes()).collect();
    let kind: u32 = if device.kind == DeviceKind::Block { 1 } else { 2 };
    let words = [u32::from(access.bits()) << 16 | kind, device.major, device.minor];
    let mut context: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    let machine = rbpf::EbpfVmRaw::new(Some(&bytes)).ok()?;
    let answer = catch_unwind(AssertUnwindSafe(|| machine.execute_program(&mut context)));
    answer.ok()?.ok().map(|answer| answer != 0)
}

/// Loads, sums and comparisons of both widths, with numbers and with registers, and the odd one that is none of them.
fn code() -> impl Strategy<Value = u8> {
    let known: &[u8] = &[
        0x61, 0x69, 0x71, 0x18, 0x95, 0x05, 0x07, 0x0f, 0x04, 0x0c, 0x17, 0x1f, 0x24, 0x2c, 0x47, 0x4f, 0x54,
        0x5c, 0x57, 0x5f, 0x67, 0x6f, 0x74, 0x7c, 0x77, 0x7f, 0xa7, 0xaf, 0xb7, 0xbf, 0xb4, 0xbc, 0x15, 0x1d,
        0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d, 0x55, 0x5d, 0xa5, 0xad, 0xb5, 0xbd, 0x16, 0x1e, 0x26, 0x56, 0x5e,
        0xa6, 0xb6, 0x85, 0x37, 0xc7, 0xcf, 0x65, 0xdc,
    ];
    prop::sample::select(known)
}

fn number() -> impl Strategy<Value = i32> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(2),
        Just(10),
        Just(229),
        Just(0xffff),
        Just(16),
        Just(-1),
        any::<i32>()
    ]
}

fn instruction() -> impl Strategy<Value = Instruction> {
    let offset = prop_oneof![Just(0_i16), Just(4), Just(8), 0_i16..6];
    (code(), 0_u8..6, 0_u8..6, offset, number())
        .prop_map(|(code, to, from, offset, number)| Instruction::new(code, to, from, offset, number))
}

/// As programs begin that read what they are asked, so that most of these come to an answer.
fn program() -> impl Strategy<Value = Vec<Instruction>> {
    prop::collection::vec(instruction(), 0..24).prop_map(|middle| {
        let load = |to, at| Instruction::new(0x61, to, 1, at, 0);
        let mut all = vec![
            load(2, 0),
            load(3, 4),
            load(4, 8),
            Instruction::new(0xb7, 0, 0, 0, 0),
            Instruction::new(0xb7, 5, 0, 0, 7),
        ];
        all.extend(middle);
        // Where the last jumps may lead.
        all.extend([Instruction::new(0xb7, 0, 0, 0, 1); 6]);
        all.push(Instruction::new(0x95, 0, 0, 0, 0));
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_said_of_a_program_is_what_it_does(program in program(), device in a_device(), access in an_access()) {
        if let Some(said) = verdict(&program, device, access)
            && let Some(does) = interpreted(&program, device, access)
        {
            prop_assert_eq!(said, does);
        }
    }

    /// Whatever a program does: before it, grants allow what they name, and nothing else is another.
    #[test]
    fn grants_before_any_program_change_nothing_else(
        base in program(),
        grants in prop::collection::vec((a_device(), an_access()), 1..6),
        other in a_device(),
        access in an_access(),
    ) {
        let grants: Grants = grants.into_iter().map(|(device, access)| Grant { device, access }).collect();
        let ours = encode_grants(&grants, &base);
        prop_assert_eq!(decode_base(NAME, &ours), Some(base.as_slice()));
        prop_assert_eq!(decode_base("other", &ours), None);
        for Grant { device, access } in grants.iter() {
            prop_assert_eq!(interpreted(&ours, device, access).unwrap_or(true), true);
        }
        let granted = grants.iter().any(|grant| grant.device == other && access.without(grant.access).is_empty());
        if !granted {
            prop_assert_eq!(verdict(&ours, other, access), verdict(&base, other, access));
            if let (Some(before), Some(after)) = (interpreted(&base, other, access), interpreted(&ours, other, access)) {
                prop_assert_eq!(before, after);
            }
        }
    }
}
