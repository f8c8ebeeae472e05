//! Instructions of device programs: of a list of decisions, and of grants before somebody else's. Pure.
//!
//! The kernel passes a `struct bpf_cgroup_dev_ctx`: the access in the upper and the type in the lower half of a word, and two
//! words with the device's numbers. Bits of both: `BPF_DEVCG_*` in `linux/bpf.h`.

use overlayfs_utils::Instruction;

use super::{
    ledger::Grants,
    rules::{Access, DeviceKind},
    runtime::{Condition, Decisions, Runtime},
};

/// What our programs are called: as long as a name may be.
pub const NAME: &str = "capsule_devices";
/// How one of ours begins, as two instructions that load numbers of which nothing is made: this one, and how many instructions
/// are before somebody else's. So a program tells by itself what it was made of.
const MARK: i32 = i32::from_le_bytes(*b"CAPS");

const MOV64: u8 = 0xb7;
const MOV32: u8 = 0xb4;
const MOV32_REGISTER: u8 = 0xbc;
const AND32: u8 = 0x54;
const RIGHT_SHIFT32: u8 = 0x74;
const LOAD_WORD: u8 = 0x61;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
/// The same of the lower halves.
const JUMP_UNLESS_EQUAL32: u8 = 0x56;
const JUMP_UNLESS_SAME: u8 = 0x5d;
const EXIT: u8 = 0x95;
const CALL: u8 = 0x85;
const CALL_REGISTER: u8 = 0x8d;
/// Loads 64 bits, with the second half in the next place; with a source it is the address of a map or the like.
pub const LOAD_64: u8 = 0x18;

const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// How a program is written.
#[derive(Clone, Copy)]
struct Style {
    /// Which instruction sets the answer.
    answer: u8,
    /// A register that may be overwritten.
    scratch: u8,
}

/// Ours keep the register with the context, which what comes behind will read.
const OURS: Style = Style { answer: MOV32, scratch: ANSWER };

/// The program with which a runtime enforces `decisions`, instruction by instruction.
pub fn encode_decisions(decisions: &Decisions, runtime: Runtime) -> Vec<Instruction> {
    let answer = match runtime {
        Runtime::Runc => MOV32,
        Runtime::Crun => MOV64,
    };
    let style = Style { answer, scratch: CONTEXT };
    let mut program = Vec::with_capacity(8 + 9 * decisions.conditions.len());
    program.extend(read_context());
    for condition in &decisions.conditions {
        push_condition(&mut program, condition, style);
    }
    program.extend(say(decisions.otherwise, style));
    program
}

/// `base` with `grants` before it: what they allow is allowed, and everything else is for `base` to decide.
pub fn encode_grants(grants: &Grants, base: &[Instruction]) -> Vec<Instruction> {
    let mut program = vec![load(MARK), load(0)];
    program.extend(read_context());
    for grant in grants.iter() {
        let condition = Condition {
            kind: Some(grant.device.kind),
            major: Some(grant.device.major),
            minor: Some(grant.device.minor),
            access: grant.access,
            allow: true,
        };
        push_condition(&mut program, &condition, OURS);
    }
    // The verifier takes a million instructions, and a count of that many is one.
    program[1] = load(i32::try_from(program.len()).unwrap_or(i32::MAX));
    program.extend_from_slice(base);
    program
}

/// What was there before one of ours, which is told from others by its name and by how it begins.
pub fn decode_base<'a>(name: &str, program: &'a [Instruction]) -> Option<&'a [Instruction]> {
    let [mark, length, ..] = program else { return None };
    let ours = name == NAME && *mark == load(MARK) && *length == load(length.immediate);
    ours.then(|| program.get(usize::try_from(length.immediate).ok()?..).filter(|base| !base.is_empty()))?
}

/// Whether a program that was read back can be loaded again: without calls and addresses, which the kernel shows changed.
pub fn can_be_loaded(program: &[Instruction]) -> bool {
    let mut instructions = program.iter();
    while let Some(instruction) = instructions.next() {
        match instruction.code {
            CALL | CALL_REGISTER => return false,
            LOAD_64 if instruction.source() != 0 => return false,
            LOAD_64 => drop(instructions.next()),
            _ => {}
        }
    }
    !program.is_empty()
}

fn load(number: i32) -> Instruction {
    Instruction::new(MOV32, ANSWER, 0, 0, number)
}

fn read_context() -> [Instruction; 6] {
    [
        Instruction::new(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        Instruction::new(AND32, TYPE, 0, 0, 0xffff),
        Instruction::new(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        Instruction::new(RIGHT_SHIFT32, ACCESS, 0, 0, 16),
        Instruction::new(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        Instruction::new(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ]
}

fn say(allow: bool, style: Style) -> [Instruction; 2] {
    [Instruction::new(style.answer, ANSWER, 0, 0, allow.into()), Instruction::new(EXIT, 0, 0, 0, 0)]
}

/// A few comparisons, each of which jumps behind the answer, and the answer.
fn push_condition(program: &mut Vec<Instruction>, condition: &Condition, style: Style) {
    let mut tests = Vec::with_capacity(6);
    if let Some(kind) = condition.kind {
        let kind = match kind {
            DeviceKind::Block => 1,
            DeviceKind::Char => 2,
        };
        tests.push(unless_equal(TYPE, kind));
    }
    if condition.access != Access::ALL {
        tests.push(Instruction::new(MOV32_REGISTER, style.scratch, ACCESS, 0, 0));
        tests.push(Instruction::new(AND32, style.scratch, 0, 0, condition.access.bits().into()));
        tests.push(Instruction::new(JUMP_UNLESS_SAME, style.scratch, ACCESS, 0, 0));
    }
    tests.extend(condition.major.map(|major| unless_equal(MAJOR, major)));
    tests.extend(condition.minor.map(|minor| unless_equal(MINOR, minor)));
    let count = tests.len();
    for (index, test) in tests.iter_mut().enumerate() {
        if matches!(test.code, JUMP_UNLESS_EQUAL | JUMP_UNLESS_EQUAL32 | JUMP_UNLESS_SAME) {
            // Over the tests behind it, six at most, and the two instructions of the answer.
            test.offset = i16::try_from(count - index - 1 + 2).unwrap_or(i16::MAX);
        }
    }
    program.extend(tests);
    program.extend(say(condition.allow, style));
}

/// Numbers are compared as runc and crun do it, with a comparison that takes the number for a signed one; only for those that no
/// device has would that be wrong.
fn unless_equal(register: u8, number: u32) -> Instruction {
    let code = if i32::try_from(number).is_ok() { JUMP_UNLESS_EQUAL } else { JUMP_UNLESS_EQUAL32 };
    Instruction::new(code, register, 0, 0, number.cast_signed())
}
