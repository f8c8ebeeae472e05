//! Go's string literals, with slashes and bars as further quotes (`quote.go`).

/// The value that a quoted literal spells, or `None` when it breaks the syntax.
pub(super) fn unquote(literal: &str) -> Option<Vec<u8>> {
    let quote = literal.chars().next()?;
    let mut rest = literal.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut value = Vec::with_capacity(rest.len());
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        match char {
            '\n' => return None,
            char if char == quote => return None,
            '\\' => rest = unescape(rest, quote, &mut value)?,
            char => push(&mut value, char),
        }
    }
    Some(value)
}

fn push(value: &mut Vec<u8>, char: char) {
    value.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Reads one escape from the text after its backslash; gives the text after it.
fn unescape<'a>(text: &'a str, quote: char, value: &mut Vec<u8>) -> Option<&'a str> {
    let char = text.chars().next()?;
    let rest = &text[char.len_utf8()..];
    let byte = match char {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        'x' => {
            value.push(u8::try_from(digits(rest, 2, 16)?).ok()?);
            return rest.get(2..);
        }
        'u' | 'U' => {
            let count = if char == 'u' { 4 } else { 8 };
            let code = digits(rest, count, 16).filter(|code| *code <= u32::from(char::MAX))?;
            // Go writes U+FFFD for a surrogate.
            push(value, char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            return rest.get(count..);
        }
        '0'..='7' => {
            value.push(u8::try_from(digits(text, 3, 8)?).ok()?);
            return text.get(3..);
        }
        char if char == quote => {
            push(value, char);
            return Some(rest);
        }
        _ => return None,
    };
    value.push(byte);
    Some(rest)
}

fn digits(text: &str, count: usize, base: u32) -> Option<u32> {
    let digits = text.get(..count)?;
    if !digits.chars().all(|char| char.is_digit(base)) {
        return None; // from_str_radix alone would take a sign
    }
    u32::from_str_radix(digits, base).ok()
}
