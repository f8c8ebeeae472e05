//! That `configs/kustomize` and the chart in `configs/helm` say the same.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::kubectl::administer;

const CHART: &str = "/payload/configs/helm/resource-capsules";
const KUSTOMIZE: &str = "/payload/configs/kustomize";

/// Both, with what only one of them can have taken away.
pub fn chart() -> Result<String> {
    let kustomize = objects(&administer("kubectl", &["kustomize", KUSTOMIZE])?)?;
    let helm = objects(&administer("helm", &["template", "x", CHART, "--namespace", "capsule-system"])?)?;
    ensure!(helm.len() == 3, "{} objects in the chart", helm.len());
    for object in &helm {
        let same = kustomize.iter().find(|other| other["kind"] == object["kind"]);
        let same = same.with_context(|| format!("configs/kustomize has no {}", object["kind"]))?;
        ensure!(same == object, "{same:#}\nand in the chart\n{object:#}");
    }
    ensure!(kustomize.len() == 4, "{} objects", kustomize.len());
    administer("helm", &["lint", "--strict", CHART])
}

fn objects(text: &str) -> Result<Vec<Value>> {
    let documents = yaml_serde::Deserializer::from_str(text);
    let objects = documents.map(|document| Value::deserialize(document).context("read YAML"));
    objects.map(|object| object.map(plain)).filter(|object| !matches!(object, Ok(Value::Null))).collect()
}

/// Without the ways in which either has a change of the configuration rolled out, and with Kubernetes' defaults.
fn plain(mut object: Value) -> Value {
    if object["kind"] == "ConfigMap" {
        object["metadata"]["name"] = json!("capsuled");
    }
    if object["kind"] != "DaemonSet" {
        return object;
    }
    let template = &mut object["spec"]["template"];
    if let Some(annotations) = template["metadata"]["annotations"].as_object_mut() {
        annotations.remove("checksum/config");
    }
    for kind in ["initContainers", "containers"] {
        for container in template["spec"][kind].as_array_mut().into_iter().flatten() {
            container["imagePullPolicy"] = json!("IfNotPresent");
        }
    }
    for volume in template["spec"]["volumes"].as_array_mut().into_iter().flatten() {
        if volume["name"] == "config" {
            volume["configMap"]["name"] = json!("capsuled");
        }
    }
    object
}
