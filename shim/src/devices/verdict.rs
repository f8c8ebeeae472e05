//! What a program answers, found by running it: the instructions that runc, crun and systemd write, which jump forward only.
//! Pure.

use overlayfs_utils::Instruction;

use super::{
    program::LOAD_64,
    rules::{Access, Device, DeviceKind},
};

/// `struct bpf_cgroup_dev_ctx`.
const CONTEXT_SIZE: usize = 12;

/// A register's content.
#[derive(Clone, Copy)]
enum Value {
    Number(u64),
    /// The address of the context.
    Context,
}

/// Whether `program` allows one access to a device: `mknod`, or an open for reading, writing or both. `None` when it does what
/// is not understood here, such as to call the kernel or to count in a loop.
pub fn verdict(program: &[Instruction], device: Device, access: Access) -> Option<bool> {
    let mut machine = Machine { registers: [None; 11], context: encode_context(device, access) };
    machine.registers[1] = Some(Value::Context);
    let mut next = 0;
    loop {
        let instruction = *program.get(next)?;
        next += 1;
        match machine.step(instruction, program.get(next).copied())? {
            Step::Next => {}
            Step::Skip => next += 1,
            Step::Jump => next = next.checked_add(usize::try_from(instruction.offset).ok()?)?,
            Step::Exit => return Some(machine.number(0)? != 0),
        }
    }
}

/// Whether `program` allows all that `access` names: each by itself, and reading and writing at once.
pub fn allows(program: &[Instruction], device: Device, access: Access) -> Option<bool> {
    let subsets = (1..=Access::ALL.bits()).map(Access::from_bits);
    // The kernel asks for `mknod` by itself.
    let asked = |set: &Access| {
        set.without(access).is_empty() && (*set == Access::MKNOD || !set.overlaps(Access::MKNOD))
    };
    let mut verdicts = subsets.filter(asked).map(|set| verdict(program, device, set));
    verdicts.try_fold(true, |all, one| Some(all && one?))
}

fn encode_context(device: Device, access: Access) -> [u8; CONTEXT_SIZE] {
    let kind: u32 = match device.kind {
        DeviceKind::Block => 1,
        DeviceKind::Char => 2,
    };
    let mut context = [0; CONTEXT_SIZE];
    for (place, word) in
        context.chunks_exact_mut(4).zip([u32::from(access.bits()) << 16 | kind, device.major, device.minor])
    {
        place.copy_from_slice(&word.to_le_bytes());
    }
    context
}

enum Step {
    Next,
    /// Over the second half of a long load.
    Skip,
    Jump,
    Exit,
}

struct Machine {
    registers: [Option<Value>; 11],
    context: [u8; CONTEXT_SIZE],
}

impl Machine {
    fn number(&self, register: u8) -> Option<u64> {
        match (*self.registers.get(usize::from(register))?)? {
            Value::Number(number) => Some(number),
            Value::Context => None,
        }
    }

    fn set(&mut self, register: u8, value: Value) -> Option<Step> {
        *self.registers.get_mut(usize::from(register))? = Some(value);
        Some(Step::Next)
    }

    /// The classes, sources and operations of RFC 9669.
    fn step(&mut self, instruction: Instruction, following: Option<Instruction>) -> Option<Step> {
        let (class, operation) = (instruction.code & 0x07, instruction.code & 0xf0);
        match class {
            0 if instruction.code == LOAD_64 && instruction.source() == 0 => {
                let [low, high] =
                    [instruction, following?].map(|half| u64::from(half.immediate.cast_unsigned()));
                self.set(instruction.destination(), Value::Number(high << 32 | low))?;
                Some(Step::Skip)
            }
            1 => self.load(instruction),
            4 | 7 => self.calculate(instruction, operation, class == 7),
            5 | 6 => self.jump(instruction, operation, class == 5),
            _ => None,
        }
    }

    fn load(&mut self, instruction: Instruction) -> Option<Step> {
        let size = match instruction.code {
            0x61 => 4,
            0x69 => 2,
            0x71 => 1,
            _ => return None,
        };
        let Value::Context = (*self.registers.get(usize::from(instruction.source()))?)? else { return None };
        let start = usize::try_from(instruction.offset).ok()?;
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(self.context.get(start..start + size)?);
        self.set(instruction.destination(), Value::Number(u64::from_le_bytes(bytes)))
    }

    /// The other operand: a register, or the number in the instruction.
    fn operand(&self, instruction: Instruction) -> Option<u64> {
        if instruction.code & 0x08 == 0 {
            return Some(i64::from(instruction.immediate).cast_unsigned());
        }
        self.number(instruction.source())
    }

    fn calculate(&mut self, instruction: Instruction, operation: u8, wide: bool) -> Option<Step> {
        const MOVE: u8 = 0xb0;
        // An offset makes other operations of some (division with a sign, moves that extend it).
        if instruction.offset != 0 {
            return None;
        }
        if operation == MOVE && wide && instruction.code & 0x08 != 0 {
            let value = (*self.registers.get(usize::from(instruction.source()))?)?;
            return self.set(instruction.destination(), value);
        }
        let cut = |number: u64| if wide { number } else { number & u64::from(u32::MAX) };
        let b = cut(self.operand(instruction)?);
        let a = if operation == MOVE { 0 } else { cut(self.number(instruction.destination())?) };
        let bits = u32::try_from(b & if wide { 63 } else { 31 }).ok()?;
        let result = match operation {
            0x00 => a.wrapping_add(b),
            0x10 => a.wrapping_sub(b),
            0x20 => a.wrapping_mul(b),
            0x40 => a | b,
            0x50 => a & b,
            0x60 => a << bits,
            0x70 => a >> bits,
            0xa0 => a ^ b,
            MOVE => b,
            _ => return None,
        };
        self.set(instruction.destination(), Value::Number(cut(result)))
    }

    fn jump(&self, instruction: Instruction, operation: u8, wide: bool) -> Option<Step> {
        match (operation, wide) {
            (0x00, true) => return Some(Step::Jump),
            (0x90, true) => return Some(Step::Exit),
            _ => {}
        }
        let cut = |number: u64| if wide { number } else { number & u64::from(u32::MAX) };
        let (a, b) = (cut(self.number(instruction.destination())?), cut(self.operand(instruction)?));
        let taken = match operation {
            0x10 => a == b,
            0x20 => a > b,
            0x30 => a >= b,
            0x40 => a & b != 0,
            0x50 => a != b,
            0xa0 => a < b,
            0xb0 => a <= b,
            _ => return None,
        };
        Some(if taken { Step::Jump } else { Step::Next })
    }
}
