//! Static programs for x86-64 of a few instructions, which make system calls that no program of an image makes.

/// Where a program's file is in its memory; what the kernel takes for an address of 32 bits too.
const BASE: u32 = 0x40_0000;
/// A header of 64 bytes and a program header of 56.
const HEADERS: u32 = 120;

/// `int 0x80`, the way into the kernel of i386.
const INT_80: [u8; 2] = [0xcd, 0x80];
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `exit_group` of x86-64.
const EXIT: u32 = 231;

/// Makes the directory with `mkdir` of i386 (39), and exits with the error.
pub fn mkdir_of_i386(path: &str) -> Vec<u8> {
    let mut code = vec![];
    code.extend([0xb8, 39, 0, 0, 0]); // mov eax, 39
    code.push(0xbb); // mov ebx, the path after this code
    code.extend((BASE + HEADERS + 28).to_le_bytes());
    code.extend([0xb9, 0xed, 0x01, 0, 0]); // mov ecx, 0755 in octal
    code.extend(INT_80);
    code.extend([0x89, 0xc3, 0xf7, 0xdb]); // mov ebx, eax; neg ebx
    code.extend([0xb8, 1, 0, 0, 0]); // mov eax, exit
    code.extend(INT_80);
    code.extend(path.as_bytes());
    code.push(0);
    elf(&code)
}

/// Makes each call, of x86-64 or of i386, with arguments that mean nothing. Exits with 0 if all get EPERM, and otherwise with the
/// place, from 1, of the first that does not.
pub fn all_get_eperm(calls: &[u32], of_i386: bool) -> Vec<u8> {
    let mut code = vec![];
    // mov rdi, rsi, rdx, r10, r8, r9, -1
    for register in [[0x48, 0xc7], [0x48, 0xc6], [0x48, 0xc2], [0x49, 0xc2], [0x49, 0xc0], [0x49, 0xc1]] {
        code.extend([register[0], 0xc7, register[1], 0xff, 0xff, 0xff, 0xff]);
    }
    // mov rbx, rcx, -1, which i386 takes before the others
    code.extend([0x48, 0xc7, 0xc3, 0xff, 0xff, 0xff, 0xff, 0x48, 0xc7, 0xc1, 0xff, 0xff, 0xff, 0xff]);
    for (place, call) in (1_u32..).zip(calls) {
        code.push(0xb8); // mov eax, the call
        code.extend(call.to_le_bytes());
        code.extend(if of_i386 { INT_80 } else { SYSCALL });
        code.extend([0x83, 0xf8, 0xff]); // cmp eax, -1
        code.extend([0x74, 12]); // je over the exit
        code.extend(exit(place));
    }
    code.extend(exit(0));
    elf(&code)
}

fn exit(status: u32) -> [u8; 12] {
    let ([a, b, c, d], [e, f, g, h]) = (status.to_le_bytes(), EXIT.to_le_bytes());
    // mov edi, status; mov eax, EXIT
    [0xbf, a, b, c, d, 0xb8, e, f, g, h, SYSCALL[0], SYSCALL[1]]
}

/// A file that the kernel loads and starts at the first byte of `code` (elf(5)).
fn elf(code: &[u8]) -> Vec<u8> {
    let size = u64::from(HEADERS) + code.len() as u64;
    let words =
        |bytes: &mut Vec<u8>, all: &[u64]| all.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(); // 64 bits, little endian
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
    words(&mut file, &[u64::from(BASE + HEADERS), 64, 0]); // start, program headers, no sections
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // sizes of headers, one program header
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // loaded, read and executed
    words(&mut file, &[0, BASE.into(), BASE.into(), size, size, 0x1000]);
    file.extend(code);
    file
}
