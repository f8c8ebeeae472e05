//! A namespace, as far as it says which capsules it may have.

use k8s_openapi::{ClusterResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::Deserialize;

use super::{identity, resource};

/// The annotation that says it, as the admission policies read it.
pub const ALLOWED: &str = "resourcecapsules.io/allowed";

/// See above.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Whole")]
pub struct Namespace {
    metadata: ObjectMeta,
    /// Names, and beginnings of names with a `*` after them; none where it may have all.
    allowed: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Whole {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl From<Whole> for Namespace {
    fn from(whole: Whole) -> Self {
        let text = whole.metadata.annotations.as_ref().and_then(|all| all.get(ALLOWED));
        let allowed = text.map(|text| text.split(',').map(|word| word.trim().to_owned()).collect());
        Self { metadata: identity(whole.metadata), allowed }
    }
}

impl Namespace {
    /// Why it may not have a capsule; nothing where it may.
    pub fn refuses(&self, capsule: &str) -> Option<String> {
        let allowed = self.allowed.as_ref()?;
        let is_meant = |word: &String| match word.strip_suffix('*') {
            Some(beginning) => capsule.starts_with(beginning),
            None => capsule == word,
        };
        let said = allowed.join(", ");
        let refusal =
            || format!("the namespace may not have {capsule}: its annotation {ALLOWED} says {said}");
        (!allowed.iter().any(is_meant)).then(refusal)
    }
}

resource!(Namespace, ClusterResourceScope, "", "Namespace", "namespaces");

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(allowed: Option<&str>) -> Namespace {
        let mut whole = json!({ "metadata": { "name": "shop" } });
        if let Some(allowed) = allowed {
            whole["metadata"]["annotations"] = json!({ ALLOWED: allowed });
        }
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn a_namespace_has_what_its_annotation_names() {
        assert!(namespace(None).refuses("tool").is_none());
        let some = namespace(Some("tzdata, li*"));
        for (capsule, may) in
            [("tzdata", true), ("lib", true), ("li", true), ("tool", false), ("tzdata2", false)]
        {
            assert_eq!(some.refuses(capsule).is_none(), may, "{capsule}");
        }
        assert!(namespace(Some("*")).refuses("tool").is_none());
        let none = namespace(Some("")).refuses("tool").unwrap();
        assert!(none.starts_with("the namespace may not have tool: its annotation"), "{none}");
    }
}
