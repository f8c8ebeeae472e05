//! The kernel's form of a filter: a program of classic BPF (`Documentation/userspace-api/seccomp_filter.rst`), with denials before it.
//! Pure.
//!
//! | part | |
//! | --- | --- |
//! | for each ABI | is the call of it? no: the next part |
//! | | x86-64 only: is its number of x32? then ENOSYS, whatever it is |
//! | | for each denied call: is it this one? then its error |
//! | at the end | the container's own filter from its beginning, or "allow" where it has none |

use std::str::FromStr;

use thiserror::Error;

use super::{Denied, errno_of};

/// `BPF_MAXINSNS`: longer programs are refused by the kernel.
const MOST: usize = 4096;
/// Bytes of `struct sock_filter`.
const SIZE: usize = 8;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const LOAD_NUMBER: u16 = 0x00; // BPF_LD | BPF_IMM
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// `SECCOMP_RET_ERRNO` and `SECCOMP_RET_ALLOW`.
const ERRNO: u32 = 0x0005_0000;
const ALLOW: u32 = 0x7fff_0000;

/// `__X32_SYSCALL_BIT`: numbers from here on are of x32, a third ABI under the architecture of x86-64.
const X32: u32 = 0x4000_0000;
const ENOSYS: u32 = 38;

/// Calls of one kind of programs: `AUDIT_ARCH_*` of `linux/audit.h`, and its numbers.
struct Abi {
    arch: u32,
    number: fn(&str) -> Option<u32>,
    has_x32: bool,
}

macro_rules! abi {
    ($arch:expr, $table:ident, $has_x32:expr) => {
        Abi {
            arch: $arch,
            number: |name| syscalls::$table::Sysno::from_str(name).ok().map(|call| call as u32),
            has_x32: $has_x32,
        }
    };
}

const X86_64: Abi = abi!(0xc000_003e, x86_64, true);
const I386: Abi = abi!(0x4000_0003, x86, false);
const AARCH64: Abi = abi!(0xc000_00b7, aarch64, false);
const ARM: Abi = abi!(0x4000_0028, arm, false);

/// Those that one kernel runs together.
#[cfg(target_arch = "aarch64")]
const OWN: [Abi; 2] = [AARCH64, ARM];
#[cfg(not(target_arch = "aarch64"))]
const OWN: [Abi; 2] = [X86_64, I386];

/// Why there is no program.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProgramError {
    /// The own one is none.
    #[error("the container's filter of {0} bytes is not a whole number of instructions")]
    Form(usize),
    /// Both together are longer than the kernel takes.
    #[error(
        "the container's filter and what its capsules deny are {0} instructions, and the kernel takes {MOST}"
    )]
    Length(usize),
}

/// Whether a name is of a call that any of the tables has.
pub fn is_call(name: &str) -> bool {
    [X86_64, I386, AARCH64, ARM].iter().any(|abi| (abi.number)(name).is_some())
}

/// `own`, a program as the kernel takes it or nothing, with denials before it.
///
/// # Errors
/// [`ProgramError`].
pub fn narrow(own: Option<&[u8]>, denied: &Denied) -> Result<Vec<u8>, ProgramError> {
    let mut program = Program::default();
    for abi in &OWN {
        program.deny(abi, denied);
    }
    match own {
        None => program.push(RETURN, (0, 0), ALLOW),
        Some(own) if own.len() % SIZE != 0 || own.is_empty() => return Err(ProgramError::Form(own.len())),
        Some(own) => {
            // It may count on the zero that a program begins with.
            program.push(LOAD_NUMBER, (0, 0), 0);
            program.0.extend_from_slice(own);
        }
    }
    match program.0.len() / SIZE {
        length if length > MOST => Err(ProgramError::Length(length)),
        _ => Ok(program.0),
    }
}

#[derive(Default)]
struct Program(Vec<u8>);

impl Program {
    /// One instruction; `skips` are how many after it are not done, if its condition is true and if not.
    fn push(&mut self, code: u16, skips: (u8, u8), k: u32) {
        self.0.extend(code.to_ne_bytes());
        self.0.extend([skips.0, skips.1]);
        self.0.extend(k.to_ne_bytes());
    }

    fn deny(&mut self, abi: &Abi, denied: &Denied) {
        let calls: Vec<(u32, u32)> =
            denied.names().filter_map(|name| Some(((abi.number)(name)?, errno_of(name)))).collect();
        let checks = calls.len() + usize::from(abi.has_x32);
        self.push(LOAD, (0, 0), ARCH);
        self.push(IF_EQUAL, (1, 0), abi.arch);
        // Over the load and the checks; there are fewer calls than a number has bits for.
        self.push(JUMP, (0, 0), u32::try_from(1 + 2 * checks).unwrap_or(u32::MAX));
        self.push(LOAD, (0, 0), NUMBER);
        if abi.has_x32 {
            self.push(IF_AT_LEAST, (0, 1), X32);
            self.push(RETURN, (0, 0), ERRNO | ENOSYS);
        }
        for (number, errno) in calls {
            self.push(IF_EQUAL, (0, 1), number);
            self.push(RETURN, (0, 0), ERRNO | errno);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::denied;
    use super::*;

    /// What the kernel's interpreter does with a call.
    fn run(program: &[u8], arch: u32, number: u32) -> u32 {
        let words: Vec<&[u8]> = program.chunks_exact(SIZE).collect();
        let (mut at, mut a) = (0, 0);
        loop {
            let word = words[at];
            let code = u16::from_ne_bytes([word[0], word[1]]);
            let k = u32::from_ne_bytes(word[4..].try_into().unwrap());
            let skip = |holds: bool| usize::from(if holds { word[2] } else { word[3] });
            at += 1;
            match code {
                LOAD if k == NUMBER => a = number,
                LOAD if k == ARCH => a = arch,
                LOAD_NUMBER => a = k,
                JUMP => at += k as usize,
                IF_EQUAL => at += skip(a == k),
                IF_AT_LEAST => at += skip(a >= k),
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn nothing() -> Vec<u8> {
        let mut program = Program::default();
        program.push(IF_EQUAL, (1, 0), 0);
        program.push(RETURN, (0, 0), 7);
        program.push(LOAD, (0, 0), NUMBER);
        program.push(IF_EQUAL, (0, 1), 1);
        program.push(RETURN, (0, 0), ERRNO | 13);
        program.push(RETURN, (0, 0), ALLOW);
        program.0
    }

    #[test]
    fn every_denied_call_of_both_abis_is_denied_and_the_own_filter_judges_the_rest() {
        let calls = denied(&["ptrace", "clone3", "umount"]);
        for (own, first) in [(None, ALLOW), (Some(nothing()), ERRNO | 13)] {
            let program = narrow(own.as_deref(), &calls).unwrap();
            for abi in &OWN {
                for number in 0..600 {
                    let is = |name: &str| (abi.number)(name) == Some(number);
                    let want = match number {
                        _ if is("ptrace") || is("umount") => ERRNO | 1,
                        _ if is("clone3") => ERRNO | 38,
                        1 => first,
                        _ => ALLOW,
                    };
                    assert_eq!(run(&program, abi.arch, number), want, "{:#x} {number}", abi.arch);
                }
            }
            assert_eq!(run(&program, 0x1234, (OWN[0].number)("ptrace").unwrap()), ALLOW);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn no_call_of_x32_gets_past() {
        let program = narrow(None, &denied(&["ptrace"])).unwrap();
        for number in [X32, X32 | 101, X32 | 521, u32::MAX] {
            assert_eq!(run(&program, X86_64.arch, number), ERRNO | 38);
        }
        assert_eq!(run(&program, X86_64.arch, 101), ERRNO | 1);
        assert_eq!(run(&program, I386.arch, 26), ERRNO | 1);
    }

    #[test]
    fn what_the_kernel_does_not_take_is_refused() {
        let calls = denied(&["ptrace"]);
        assert_eq!(narrow(Some(b"1234567"), &calls), Err(ProgramError::Form(7)));
        assert_eq!(narrow(Some(b""), &calls), Err(ProgramError::Form(0)));
        let most = nothing().repeat(MOST / 6);
        assert!(matches!(narrow(Some(&most), &calls), Err(ProgramError::Length(length)) if length > MOST));
    }

    proptest! {
        /// Whatever is denied, as many as there are: no jump leaves the program, and all else is as the own filter has it.
        #[test]
        fn any_calls(numbers in prop::collection::btree_set(0_usize..460, 0..460)) {
            let names: Vec<String> = numbers
                .iter()
                .filter_map(|number| syscalls::x86_64::Sysno::new(*number))
                .map(|call| call.name().to_owned())
                .collect();
            let calls = Denied::parse(names).unwrap();
            let program = narrow(Some(&nothing()), &calls).unwrap();
            for abi in &OWN {
                let mut want = vec![ALLOW; 600];
                want[1] = ERRNO | 13;
                for name in calls.names() {
                    if let Some(number) = (abi.number)(name) {
                        want[number as usize] = ERRNO | errno_of(name);
                    }
                }
                for (number, want) in (0..).zip(want) {
                    prop_assert_eq!(run(&program, abi.arch, number), want);
                }
            }
        }
    }
}
