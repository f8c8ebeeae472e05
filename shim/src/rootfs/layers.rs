//! The layers of an overlay as its `lowerdir` option has them. Pure.

use std::path::{Path, PathBuf};

use super::{
    PlanError,
    options::{Parsed, attributes},
    plan::Plan,
};

/// `fsconfig(2)` takes no longer value.
const VALUE: usize = 255;

/// Makes the layers in an overlay's options relative to the directory that all of them are in, which is returned. An empty
/// one, after which layers hold nothing but data, stays.
///
/// # Errors
/// [`PlanError::Apart`]; then nothing is changed.
pub fn relative_layers(options: &mut [String]) -> Result<PathBuf, PlanError> {
    let option = options.iter_mut().find(|option| option.starts_with("lowerdir=")).ok_or(PlanError::Apart)?;
    // As they are written: what is escaped stays so.
    let layers = split_at_colons(option.trim_start_matches("lowerdir="));
    let named = || layers.iter().filter(|layer| !layer.is_empty()).map(Path::new);
    let mut common = named().next().and_then(Path::parent).ok_or(PlanError::Apart)?;
    while !named().all(|layer| layer.starts_with(common) && layer != common) {
        common = common.parent().ok_or(PlanError::Apart)?;
    }
    let (Some(_), true) = (common.parent(), common.is_absolute()) else { return Err(PlanError::Apart) };
    let common = common.to_owned();
    let below = |layer: &&str| match Path::new(layer).strip_prefix(&common) {
        Ok(below) => below.display().to_string(),
        Err(_) => String::new(), // the empty one
    };
    let layers: Vec<String> = layers.iter().map(below).collect();
    *option = format!("lowerdir={}", layers.join(":"));
    Ok(split_layers(&common.display().to_string()).concat().into())
}

/// An overlay with an option of its own for each layer. All options together are `length` bytes long, more than a page.
///
/// # Errors
/// [`PlanError::Layer`].
pub fn by_layer(options: Parsed, length: usize, directory: Option<PathBuf>) -> Result<Plan, PlanError> {
    let mut parameters = Vec::new();
    for option in options.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                let mut key = "lowerdir+";
                for layer in split_layers(layers) {
                    if layer.is_empty() {
                        key = "datadir+";
                    } else {
                        parameters.push((key.to_owned(), Some(layer)));
                    }
                }
            }
            Some((key, value)) => parameters.push((key.to_owned(), Some(value.to_owned()))),
            None => parameters.push((option, None)),
        }
    }
    let values = parameters.iter().filter_map(|(_, value)| value.as_ref());
    if let Some(value) = values.clone().find(|value| value.len() > VALUE) {
        return Err(PlanError::Layer { length, value: value.clone() });
    }
    let (flags, propagation) = (attributes(options.flags), options.propagation);
    Ok(Plan::Overlay { directory, parameters, flags, propagation })
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
fn split_layers(value: &str) -> Vec<String> {
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
