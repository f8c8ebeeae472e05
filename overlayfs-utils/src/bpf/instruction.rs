//! One instruction, as the kernel reads it.

/// `struct bpf_insn` (BPF instruction set, RFC 9669): an operation, two registers, an offset and a number.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Instruction {
    /// The operation.
    pub code: u8,
    registers: u8,
    /// How far a jump goes beyond the next instruction, or where in memory a load reads.
    pub offset: i16,
    /// The number in it.
    pub immediate: i32,
}

// The registers of big-endian machines are the other way round, and none of them is supported.
const _: () = assert!(size_of::<Instruction>() == 8 && cfg!(target_endian = "little"));

impl Instruction {
    /// An instruction of these parts; of each register's number only the lower four bits count.
    #[must_use]
    pub const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: (source & 15) << 4 | (destination & 15), offset, immediate }
    }

    /// The register that it writes or compares.
    #[must_use]
    pub const fn destination(self) -> u8 {
        self.registers & 15
    }

    /// The other register.
    #[must_use]
    pub const fn source(self) -> u8 {
        self.registers >> 4
    }

    /// The eight bytes of it.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        let ([a, b], [c, d, e, f]) = (self.offset.to_le_bytes(), self.immediate.to_le_bytes());
        [self.code, self.registers, a, b, c, d, e, f]
    }

    /// The instruction of eight bytes.
    #[must_use]
    pub const fn from_bytes([code, registers, a, b, c, d, e, f]: [u8; 8]) -> Self {
        Self {
            code,
            registers,
            offset: i16::from_le_bytes([a, b]),
            immediate: i32::from_le_bytes([c, d, e, f]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_eight_bytes_of_known_places() {
        // `r4 = *(u32 *)(r1 + 4)`, from a program of runc's as the kernel gave it back.
        let load = Instruction::new(0x61, 4, 1, 4, 0);
        assert_eq!(load.to_bytes(), [0x61, 0x14, 4, 0, 0, 0, 0, 0]);
        assert_eq!(Instruction::from_bytes(load.to_bytes()), load);
        assert_eq!((load.destination(), load.source()), (4, 1));
        let negative = Instruction::new(0x55, 2, 0, -3, -1);
        assert_eq!(negative.to_bytes(), [0x55, 2, 0xfd, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(Instruction::from_bytes(negative.to_bytes()), negative);
    }
}
