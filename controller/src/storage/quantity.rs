//! Amounts as Kubernetes writes them.

/// How many bytes a quantity is, rounded up: `1Gi`, `1.5G`, `1e9`, `100m`. None where it is no quantity, negative, or more than 2^63.
#[must_use]
pub fn bytes(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + part.len() == 0 || part.contains('.') {
        return None;
    }
    let mantissa: u128 = format!("{whole}{part}").parse().ok()?;
    let (mut multiple, mut divisor) = scale(suffix)?;
    // What both have is taken out, so that nothing overflows that need not.
    let places = power(10, u32::try_from(part.len()).ok()?)?;
    divisor = divisor.checked_mul(places)?;
    while multiple % 10 == 0 && divisor % 10 == 0 {
        (multiple, divisor) = (multiple / 10, divisor / 10);
    }
    i64::try_from(mantissa.checked_mul(multiple)?.div_ceil(divisor)).ok()
}

/// What a suffix multiplies and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    const PARTS: [&str; 3] = ["m", "u", "n"];
    let place =
        |all: &[&str]| all.iter().position(|one| *one == suffix).and_then(|at| u32::try_from(at).ok());
    if suffix.is_empty() {
        return Some((1, 1));
    }
    if let Some(at) = place(&BINARY) {
        return Some((power(1024, at + 1)?, 1));
    }
    if let Some(at) = place(&DECIMAL) {
        return Some((power(1000, at + 1)?, 1));
    }
    if let Some(at) = place(&PARTS) {
        return Some((1, power(1000, at + 1)?));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let scale = power(10, exponent.unsigned_abs())?;
    Some(if exponent < 0 { (1, scale) } else { (scale, 1) })
}

fn power(base: u128, exponent: u32) -> Option<u128> {
    base.checked_pow(exponent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_kubernetes_reads_them() {
        for (text, is) in [
            ("0", 0),
            ("1", 1),
            ("1Gi", 1 << 30),
            ("10G", 10_000_000_000),
            ("1.5Gi", 3 << 29),
            (".5Ki", 512),
            ("1e3", 1000),
            ("1E3", 1000),
            ("1E", 1_000_000_000_000_000_000),
            ("12e-1", 2),
            ("100m", 1),
            ("1n", 1),
            ("2500m", 3),
            ("1.1", 2),
        ] {
            assert_eq!(bytes(text), Some(is), "{text}");
        }
        for text in ["", "Gi", ".", "-1", "1.2.3", "1 Gi", "1gi", "16Ei", "1e99", "1e", "ten"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_are_themselves_and_nothing_panics(number in 0..i64::MAX, text in "[0-9.eEmkKMGi+-]{0,12}") {
            prop_assert_eq!(bytes(&number.to_string()), Some(number));
            let _ = bytes(&text);
        }

        #[test]
        fn a_suffix_multiplies(number in 1..1_000_000_i64) {
            prop_assert_eq!(bytes(&format!("{number}Mi")), Some(number << 20));
            prop_assert_eq!(bytes(&format!("{number}.0M")), Some(number * 1_000_000));
        }
    }
}
