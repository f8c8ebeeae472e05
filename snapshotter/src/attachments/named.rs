//! Attachments that a container's annotation names: there before its first process runs.

use overlayfs_utils::ContainerPath;

use super::{
    AttachSpec, Attachments,
    containers::{Name, Wanted},
    devices::Moment,
    error::AttachmentError,
    model::{Attachment, ContainerKey},
};
use crate::{capsules::model::Mode, resources};

/// What separates the annotation's entries; the parts of an entry are separated by `:`.
const COMMA: char = ',';

/// The attachments named by `text`: `NAME[@VERSION][:TARGET[:MODE]]`, separated by commas.
///
/// A target may hold neither a comma nor a colon: for one that does there is `capsulectl attach`.
///
/// # Errors
/// [`AttachmentError::Named`] with the entry that is wrong, and how.
pub fn parse_named(text: &str) -> Result<Vec<AttachSpec>, AttachmentError> {
    text.split(COMMA).map(str::trim).map(parse_entry).collect()
}

fn parse_entry(entry: &str) -> Result<AttachSpec, AttachmentError> {
    let wrong = |reason: &dyn ToString| AttachmentError::Named {
        entry: entry.to_owned(),
        reason: reason.to_string(),
    };
    let mut parts = entry.split(':');
    let capsule = parts.next().unwrap_or_default();
    let (name, version) = capsule.split_once('@').map_or((capsule, None), |(name, v)| (name, Some(v)));
    let target = parts.next().filter(|target| !target.is_empty());
    // As a record has it, or a repeated call would not find what it made.
    let target = target.map(ContainerPath::parse).transpose().map_err(|e| wrong(&e))?;
    let mode = match parts.next() {
        None => None,
        Some("ro") => Some(Mode::Ro),
        Some("union") => Some(Mode::Union),
        Some(other) => return Err(wrong(&format!("mode {other:?} is not known: use ro or union"))),
    };
    if let Some(more) = parts.next() {
        return Err(wrong(&format!("{more:?} is too much: a target holds no colon")));
    }
    Ok(AttachSpec {
        capsule: name.parse().map_err(|e| wrong(&e))?,
        version: version.map(str::parse).transpose().map_err(|e| wrong(&e))?,
        target: target.map(|target| target.as_str().to_owned()),
        mode,
        digest: None,
        unless_present: false,
        writable: None,
        resources: resources::Wanted::default(),
        named: Some(entry.to_owned()),
    })
}

impl Attachments {
    /// Gives back what `named`, the container's annotation, leaves of what its last task had: see [`Attachments::restore`].
    ///
    /// # Errors
    /// As [`Attachments::restore`]; [`AttachmentError::Named`].
    pub async fn restore_named(
        &self,
        container: &ContainerKey,
        named: &str,
    ) -> Result<Vec<Attachment>, AttachmentError> {
        let annotation = if named.is_empty() { Vec::new() } else { parse_named(named)? };
        self.restore(container, &annotation).await
    }

    /// Makes the attachments that `named` describes in a container whose task has just been created. Those that are there
    /// already, because its last task had them or the call is repeated, are left as they are. With [`Moment::Created`] the
    /// container's spec has what [`Attachments::devices_at_creation`] said.
    ///
    /// # Errors
    /// As [`Attachments::attach`] and [`Attachments::restore`]; [`AttachmentError::Named`].
    pub async fn attach_named(
        &self,
        container: &ContainerKey,
        named: &str,
        moment: Moment,
    ) -> Result<Vec<Attachment>, AttachmentError> {
        let specs = parse_named(named)?;
        self.restore(container, &specs).await?;
        let present = self.records.shown(container);
        let specs = self.missing(specs, &present).await?;
        if specs.is_empty() {
            return Ok(present);
        }
        let wanted = Wanted { name: Name::Id(container.id.clone()), namespace: container.namespace.clone() };
        self.attach_at(&wanted, &specs, &[], moment).await
    }

    /// Of what the annotation names, what the container does not have.
    pub(super) async fn missing(
        &self,
        mut specs: Vec<AttachSpec>,
        present: &[Attachment],
    ) -> Result<Vec<AttachSpec>, AttachmentError> {
        specs.retain(|spec| !present.iter().any(|attachment| is(attachment, spec)));
        if !present.is_empty() && !specs.is_empty() {
            // What is attached has the version that a tag stands for. An entry that made something is not asked for any more.
            specs = self.settle_tags(&specs).await?;
            specs.retain(|spec| !present.iter().any(|attachment| is(attachment, spec)));
        }
        Ok(specs)
    }
}

/// Whether an attachment was made for `spec`, whatever version it has been moved to since, or is what it asks for as
/// far as it says.
fn is(attachment: &Attachment, spec: &AttachSpec) -> bool {
    if spec.named.is_some() && attachment.named == spec.named {
        return true;
    }
    attachment.capsule == spec.capsule
        && spec.version.as_ref().is_none_or(|version| *version == attachment.current.version)
        && spec.target.as_ref().is_none_or(|target| *target == attachment.target)
        && spec.mode.is_none_or(|mode| mode == attachment.mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NAME VERSION TARGET MODE` of each entry, `-` for what it leaves open.
    fn parsed(text: &str) -> Vec<String> {
        let or_open = |part: Option<String>| part.unwrap_or_else(|| "-".to_owned());
        let show = |spec: AttachSpec| {
            let version = or_open(spec.version.map(|v| v.to_string()));
            let mode = or_open(spec.mode.map(|m| format!("{m:?}").to_lowercase()));
            format!("{} {version} {} {mode}", spec.capsule, or_open(spec.target))
        };
        parse_named(text).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn entries_name_a_capsule_and_what_they_like_of_the_rest() {
        for (text, expected) in [
            ("tz", vec!["tz - - -"]),
            ("tz@2026.1", vec!["tz 2026.1 - -"]),
            ("tz:/usr/share/zoneinfo", vec!["tz - /usr/share/zoneinfo -"]),
            ("tz://usr/share/", vec!["tz - /usr/share -"]),
            ("tz@1::union", vec!["tz 1 - union"]),
            ("tz@1:/a:ro, tools:/:union", vec!["tz 1 /a ro", "tools - / union"]),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_name_their_entry() {
        for (text, entry, reason) in [
            ("tz,", "", "name"),
            ("tz@", "tz@", "version"),
            ("Tz", "Tz", "name"),
            ("ok,tz:relative", "tz:relative", "absolute"),
            ("tz:/a/../b", "tz:/a/../b", ".."),
            ("tz:/a:rw", "tz:/a:rw", "use ro or union"),
            ("tz:/a:ro:x", "tz:/a:ro:x", "too much"),
        ] {
            match parse_named(text) {
                Err(AttachmentError::Named { entry: found, reason: why }) => {
                    assert_eq!(found, entry);
                    assert!(why.contains(reason), "{text}: {why}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
