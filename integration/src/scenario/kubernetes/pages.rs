//! What the pages tell people to apply is taken by the API server, with all definitions and policies there.

use anyhow::{Context as _, Result, ensure};

use super::kubectl::kubectl_with;

const PAGES: [(&str, &str); 3] = [
    ("cluster.md", include_str!("../../../../docs/cluster.md")),
    ("csi.md", include_str!("../../../../docs/csi.md")),
    ("kubernetes.md", include_str!("../../../../docs/kubernetes.md")),
];
/// Read by other programs.
const OTHERS: &str = "apiVersion: kind.x-k8s.io/";

/// Each block of YAML that is an object of the API.
fn objects(page: &str) -> impl Iterator<Item = &str> {
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.contains("apiVersion: ") && !block.contains(OTHERS))
}

/// Has the API server look at each of them.
pub fn taken() -> Result<String> {
    let mut count = 0;
    for (page, text) in PAGES {
        for object in objects(text) {
            let output = kubectl_with(&["apply", "--dry-run=server", "-f", "-"], object.as_bytes())?;
            output.success("apply").with_context(|| format!("{page}: {object}"))?;
            count += 1;
        }
    }
    ensure!(count > 10, "{count} objects");
    Ok(format!("{count} objects"))
}
