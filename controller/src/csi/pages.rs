//! Listings in pages. A token names the last entry that was given, so entries may come and go between pages. Pure.

use tonic::Status;

/// Begins every token.
const AFTER: &str = "after:";

/// One page of `entries`, which are sorted by their ids, and the token of the next; an empty one when this is the last.
///
/// # Errors
/// `INVALID_ARGUMENT` for a negative number; `ABORTED` for a token that this driver did not give, as the specification has it.
pub fn page<T>(
    entries: Vec<T>,
    id: impl Fn(&T) -> String,
    max: i32,
    token: &str,
) -> Result<(Vec<T>, String), Status> {
    let max = usize::try_from(max)
        .map_err(|_| Status::invalid_argument(format!("max_entries is {max}: it cannot be negative")))?;
    let after = match token.strip_prefix(AFTER) {
        Some(after) if !after.is_empty() => after,
        None if token.is_empty() => "",
        _ => {
            let what = "is none of this driver's: begin again without one";
            return Err(Status::aborted(format!("starting_token {token:?} {what}")));
        }
    };
    let mut rest = entries;
    rest.retain(|entry| id(entry).as_str() > after);
    if max == 0 || rest.len() <= max {
        return Ok((rest, String::new()));
    }
    rest.truncate(max);
    let token = rest.last().map(|last| format!("{AFTER}{}", id(last))).unwrap_or_default();
    Ok((rest, token))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn turn(entries: &[&str], max: i32, token: &str) -> Result<(Vec<String>, String), Code> {
        let entries = entries.iter().map(|entry| (*entry).to_owned()).collect();
        page(entries, Clone::clone, max, token).map_err(|status| status.code())
    }

    #[test]
    fn pages_have_every_entry_once() {
        let all = ["a", "b", "c", "d", "e"];
        for max in 1..7 {
            let (mut seen, mut token) = (Vec::new(), String::new());
            loop {
                let (entries, next) = turn(&all, max, &token).unwrap();
                assert!(entries.len() <= usize::try_from(max).unwrap());
                seen.extend(entries);
                token = next;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(seen, all, "{max}");
        }
        assert_eq!(turn(&all, 0, "").unwrap().0, all);
        assert_eq!(turn(&[], 2, "").unwrap(), (Vec::new(), String::new()));
    }

    #[test]
    fn entries_come_and_go_between_pages() {
        let (_, token) = turn(&["a", "b", "c"], 2, "").unwrap();
        assert_eq!(turn(&["a", "bb", "c"], 2, &token).unwrap().0, ["bb", "c"]);
        assert_eq!(turn(&["a"], 2, &token).unwrap().0, [""; 0]);
    }

    #[test]
    fn other_tokens_are_refused() {
        for token in ["invalid-token", "after:", "after", "a", "AFTER:a"] {
            assert_eq!(turn(&["a"], 0, token), Err(Code::Aborted), "{token}");
        }
        assert_eq!(turn(&["a"], -1, ""), Err(Code::InvalidArgument));
    }
}
