//! Where an image is in a registry. Pure. Source: OCI distribution specification 1.1, "Pulling manifests".

use super::MoveError;

/// `HOST[:PORT]/REPOSITORY`, and what of it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// A host must be named: there is no registry that is meant when none is.
    ///
    /// # Errors
    /// [`MoveError::Reference`].
    pub fn parse(text: &str) -> Result<Self, MoveError> {
        let wrong = |reason| Err(MoveError::Reference { reference: text.to_owned(), reason });
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| digest.parse::<crate::capsules::model::Digest>().is_err()) {
            return wrong("after '@' comes a digest, as sha256:…");
        }
        let Some((host, path)) = named.split_once('/') else {
            return wrong("write HOST[:PORT]/REPOSITORY[:TAG]");
        };
        let is_host = host == "localhost" || host.contains(['.', ':']);
        let plain = |c: char| c.is_ascii_alphanumeric() || ".:-[]".contains(c);
        if !is_host || !host.chars().all(plain) {
            return wrong("it begins with the registry's host, as registry.example or localhost:5000");
        }
        let (path, tag) = match path.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        let part = |part: &str| {
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            part.chars().all(inner) && edge(part.chars().next()) && edge(part.chars().next_back())
        };
        if !path.split('/').all(part) {
            return wrong("a repository is of lower-case letters, digits, '.', '_', '-' and '/'");
        }
        if tag.is_some_and(|tag| tag.parse::<crate::capsules::model::Version>().is_err()) {
            return wrong("a tag is of letters, digits, '.', '_' and '-'");
        }
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self { repository: format!("{host}/{path}"), tag: owned(tag), digest: owned(digest) })
    }

    /// To fetch: the tag `latest` when nothing else is said.
    pub fn source(&self) -> String {
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => format!("{}@{digest}", self.repository),
            (tag, None) => format!("{}:{}", self.repository, tag.as_deref().unwrap_or("latest")),
        }
    }

    /// What lies beside it in its repository, under another tag.
    pub fn sibling(&self, tag: &str) -> String {
        format!("{}:{tag}", self.repository)
    }

    /// To send to: `tag` when no other is said.
    ///
    /// # Errors
    /// [`MoveError::Reference`] for a digest: what is sent has its own.
    pub fn destination(&self, tag: &str) -> Result<String, MoveError> {
        let written = format!("{}:{}", self.repository, self.tag.as_deref().unwrap_or(tag));
        match self.digest {
            None => Ok(written),
            Some(_) => Err(MoveError::Reference { reference: self.source(), reason: "a push goes to a tag" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_a_host() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let pinned = format!("h.example/a:1@{digest}");
        for (text, source, destination) in [
            ("localhost:5000/a", "localhost:5000/a:latest", Some("localhost:5000/a:1.0")),
            ("h.example/team/a_b:x", "h.example/team/a_b:x", Some("h.example/team/a_b:x")),
            ("[::1]:5000/a:1", "[::1]:5000/a:1", Some("[::1]:5000/a:1")),
            ("localhost/a:1", "localhost/a:1", Some("localhost/a:1")),
            (pinned.as_str(), &format!("h.example/a@{digest}"), None),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.source(), source);
            assert_eq!(reference.destination("1.0").ok().as_deref(), destination, "{text}");
        }
        assert_eq!(Reference::parse(&pinned).unwrap().sibling("2"), "h.example/a:2");
        for text in [
            "",
            "a",
            "a:1",
            "team/a:1",
            "h.x/",
            "h.x/A",
            "h.x/a//b",
            "h.x/a:",
            "h.x/a:-",
            "h.x/a@sha256:0",
            "h.x /a",
            "h.x/a:1:2",
            "http://h.x/a",
            "h.x/a b",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
