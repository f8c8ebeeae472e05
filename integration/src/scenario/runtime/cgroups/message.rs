//! Fields of a protobuf message by their numbers: the metrics' types are in no package that the test bed has, and a reader
//! that knows nothing sees what is really there.

use anyhow::{Context as _, Result, bail, ensure};

/// One field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, or the bits of a floating point number.
    Number(u64),
    /// A text, or a message.
    Bytes(&'a [u8]),
}

/// All fields of a message, by number.
pub fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            1 => {
                let (head, rest) = bytes.split_first_chunk().context("a number ends early")?;
                bytes = rest;
                Value::Number(u64::from_le_bytes(*head))
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).context("a length")?;
                ensure!(length <= bytes.len(), "a field of {length} bytes in {}", bytes.len());
                let (head, rest) = bytes.split_at(length);
                bytes = rest;
                Value::Bytes(head)
            }
            kind => bail!("a field of wire type {kind}"),
        };
        fields.push((tag >> 3, value));
    }
    Ok(fields)
}

/// All messages or texts of this number.
pub fn all(bytes: &[u8], number: u64) -> Result<Vec<&[u8]>> {
    let all = fields(bytes)?.into_iter().filter(|(found, _)| *found == number);
    let bytes_of = |(_, value)| match value {
        Value::Bytes(bytes) => Ok(bytes),
        Value::Number(_) => bail!("field {number} is a number"),
    };
    all.map(bytes_of).collect()
}

/// The number at a path of field numbers: 0 when it, or a message above it, is not there, as protobuf has it.
pub fn number(bytes: &[u8], path: &[u64]) -> Result<u64> {
    let (&last, above) = path.split_last().context("a path of no numbers")?;
    let mut message = bytes;
    for &number in above {
        message = all(message, number)?.last().copied().unwrap_or_default();
    }
    let found = fields(message)?.into_iter().rfind(|(found, _)| *found == last);
    match found {
        Some((_, Value::Number(number))) => Ok(number),
        Some((_, Value::Bytes(_))) => bail!("field {path:?} is no number"),
        None => Ok(0),
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().context("a number ends early")?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    bail!("a number of more than 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_path() -> Result<()> {
        // 1: {1: 300, 2: "ab"}, 3: 7, 4: 1.0
        let bytes =
            [&[0x0a, 7, 0x08, 0xac, 2, 0x12, 2, b'a', b'b', 0x18, 7, 0x21][..], &1f64.to_le_bytes()].concat();
        assert_eq!(number(&bytes, &[1, 1])?, 300);
        assert_eq!(all(all(&bytes, 1)?[0], 2)?, [b"ab"]);
        assert_eq!((number(&bytes, &[3])?, number(&bytes, &[5])?, number(&bytes, &[6, 1])?), (7, 0, 0));
        assert_eq!(number(&bytes, &[4])?, 1f64.to_bits());
        assert!(number(&bytes, &[1]).is_err() && fields(&bytes[..5]).is_err());
        Ok(())
    }
}
