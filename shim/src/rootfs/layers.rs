//! The layers of an overlay as its `lowerdir` option has them. Pure.

use std::path::{Path, PathBuf};

use super::PlanError;

/// Makes the layers in an overlay's options relative to the directory that all of them are in, which is returned.
pub fn relative_layers(options: &mut [String]) -> Result<PathBuf, PlanError> {
    let option = options.iter_mut().find(|option| option.starts_with("lowerdir=")).ok_or(PlanError::Apart)?;
    // As they are written: what is escaped stays so.
    let layers = split_at_colons(option.trim_start_matches("lowerdir="));
    let mut common = Path::new(layers[0]).parent().ok_or(PlanError::Apart)?;
    while !layers.iter().all(|layer| Path::new(layer).starts_with(common) && Path::new(layer) != common) {
        common = common.parent().ok_or(PlanError::Apart)?;
    }
    let (Some(_), true) = (common.parent(), common.is_absolute()) else { return Err(PlanError::Apart) };
    let common = common.to_owned();
    let below = |layer: &&str| Path::new(layer).strip_prefix(&common).map(|p| p.display().to_string());
    let layers: Vec<String> = layers.iter().filter_map(|layer| below(layer).ok()).collect();
    *option = format!("lowerdir={}", layers.join(":"));
    Ok(split_layers(&common.display().to_string()).concat().into())
}

/// Splits at the colons that no backslash precedes.
fn split_at_colons(value: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in value.char_indices() {
        if c == ':' && !escaped {
            parts.push(&value[begin..at]);
            begin = at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&value[begin..]);
    parts
}

/// Splits at the colons that no backslash precedes, and takes the backslashes away, as overlayfs does.
pub fn split_layers(value: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        match (c, layers.last_mut()) {
            (':', _) => layers.push(String::new()),
            ('\\', Some(last)) => last.extend(rest.next()),
            (c, Some(last)) => last.push(c),
            (_, None) => {}
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_as_overlayfs_does() {
        assert_eq!(split_layers(r"/a\:b:/c\\d:/e"), ["/a:b", r"/c\d", "/e"]);
    }
}
