//! Members as header blocks. Pure.
//!
//! A ustar header, preceded by a pax extended header where ustar's fields cannot hold a value: a name or link
//! target above 100 bytes, a number of too many digits, attributes. ustar's `prefix` is not used, so that there
//! is one encoding of each member.

use super::plan::{Entry, Member};

/// Size of a header block, and what everything is padded to.
pub const BLOCK: usize = 512;
/// Two blocks of zeros end an archive.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

const NAME_LENGTH: usize = 100;
const MAX_ID: u64 = 0o777_7777;
const MAX_SIZE: u64 = 0o777_7777_7777;
/// Name of every extended header: readers that know pax never show it, and it must not vary.
const PAX_NAME: &[u8] = b"././@PaxHeader";

/// The blocks that come before a member's content.
pub fn encode_header(member: &Member) -> Vec<u8> {
    let size = member.content.as_ref().map_or(0, |c| c.size);
    let (typeflag, link, device) = match &member.entry {
        Entry::File | Entry::Whiteout => (b'0', &[][..], (0, 0)),
        Entry::HardLink { first } => (b'1', first.as_slice(), (0, 0)),
        Entry::Symlink { target } => (b'2', target.as_slice(), (0, 0)),
        Entry::Device { block: false, major, minor } => (b'3', &[][..], (*major, *minor)),
        Entry::Device { block: true, major, minor } => (b'4', &[][..], (*major, *minor)),
        Entry::Directory => (b'5', &[][..], (0, 0)),
        Entry::Fifo => (b'6', &[][..], (0, 0)),
    };
    let records = pax_records(member, link, size);
    let mut blocks = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        let fields = Fields {
            name: PAX_NAME,
            mode: 0o644,
            size: records.len() as u64,
            typeflag: b'x',
            ..Fields::default()
        };
        blocks.extend_from_slice(&ustar(&fields));
        blocks.extend_from_slice(&records);
        blocks.resize(blocks.len() + padding(records.len() as u64), 0);
    }
    blocks.extend_from_slice(&ustar(&Fields {
        name: &member.name,
        mode: member.mode,
        uid: member.uid.into(),
        gid: member.gid.into(),
        size,
        mtime: member.mtime,
        typeflag,
        link,
        device,
    }));
    blocks
}

/// Zeros needed after this many bytes.
pub fn padding(length: u64) -> usize {
    let over = (length % BLOCK as u64) as usize; // below BLOCK
    (BLOCK - over) % BLOCK
}

#[derive(Default)]
struct Fields<'a> {
    name: &'a [u8],
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    typeflag: u8,
    link: &'a [u8],
    device: (u32, u32),
}

/// Fields at their offsets in `struct posix_header`. A value that does not fit is in an extended header, which
/// overrides it; here it is cut (text) or 0 (numbers).
fn ustar(fields: &Fields<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put_text(&mut block[0..100], fields.name);
    put_octal(&mut block[100..108], fields.mode.into());
    put_octal(&mut block[108..116], fields.uid);
    put_octal(&mut block[116..124], fields.gid);
    put_octal(&mut block[124..136], fields.size);
    put_octal(&mut block[136..148], fields.mtime);
    block[156] = fields.typeflag;
    put_text(&mut block[157..257], fields.link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    put_octal(&mut block[329..337], fields.device.0.into());
    put_octal(&mut block[337..345], fields.device.1.into());
    // The checksum is taken with its own field as spaces: six digits, NUL, space.
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    put_octal(&mut block[148..155], sum);
    block
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Digits with leading zeros and a NUL at the end.
fn put_octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let value = if value >> (3 * digits) == 0 { value } else { 0 };
    for (i, byte) in field[..digits].iter_mut().rev().enumerate() {
        *byte = b'0' + ((value >> (3 * i)) & 7) as u8;
    }
    field[digits] = 0;
}

fn pax_records(member: &Member, link: &[u8], size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    let long = |text: &[u8]| text.len() > NAME_LENGTH;
    let texts = [("path", member.name.as_slice()), ("linkpath", link)];
    // POSIX: values are UTF-8 unless this record, which comes first, says otherwise.
    if texts.iter().any(|(_, text)| long(text) && std::str::from_utf8(text).is_err()) {
        pax_record(&mut records, b"hdrcharset", b"BINARY");
    }
    for (key, text) in texts.into_iter().filter(|(_, text)| long(text)) {
        pax_record(&mut records, key.as_bytes(), text);
    }
    for (key, value, max) in [
        ("uid", u64::from(member.uid), MAX_ID),
        ("gid", u64::from(member.gid), MAX_ID),
        ("size", size, MAX_SIZE),
    ] {
        if value > max {
            pax_record(&mut records, key.as_bytes(), value.to_string().as_bytes());
        }
    }
    for (name, value) in &member.xattrs {
        pax_record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits too.
fn pax_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3; // space, `=`, newline
    let mut length = rest + decimal_digits(rest);
    length = rest + decimal_digits(length); // its own digits may have made it longer by one
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn decimal_digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        for value_length in 0..1200 {
            let mut record = Vec::new();
            pax_record(&mut record, b"path", &vec![b'x'; value_length]);
            let text = String::from_utf8(record).expect("ASCII");
            let (length, _) = text.split_once(' ').expect("a space");
            assert_eq!(length.parse::<usize>().expect("a number"), text.len(), "value of {value_length}");
        }
    }

    #[test]
    fn octal_fields() {
        let mut field = [0xff; 8];
        put_octal(&mut field, 0o755);
        assert_eq!(&field, b"0000755\0");
        put_octal(&mut field, 0o777_7777);
        assert_eq!(&field, b"7777777\0");
        put_octal(&mut field, 0o1000_0000);
        assert_eq!(&field, b"0000000\0");
    }

    #[test]
    fn padding_fills_the_block() {
        for (length, want) in [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511)] {
            assert_eq!(padding(length), want, "{length}");
        }
    }
}
