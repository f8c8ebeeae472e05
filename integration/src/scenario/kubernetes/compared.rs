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
    let helm = objects(&administer(
        "helm",
        &["template", "x", CHART, "--include-crds", "--namespace", "capsule-system"],
    )?)?;
    let name = |object: &Value| (object["kind"].clone(), object["metadata"]["name"].clone());
    for object in &helm {
        let same = kustomize.iter().find(|other| name(other) == name(object));
        let same = same.with_context(|| format!("configs/kustomize has no {:?}", name(object)))?;
        ensure!(same == object, "{same:#}\nand in the chart\n{object:#}");
    }
    // Its namespace is made by whoever installs it.
    ensure!(helm.len() > 10 && kustomize.len() == helm.len() + 1, "{} and {}", kustomize.len(), helm.len());
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
    match object["kind"].as_str().unwrap_or_default() {
        // Helm gives definitions no labels: it applies them as they are.
        "CustomResourceDefinition" => object["metadata"]["labels"] = Value::Null,
        // kustomize does not know that they are of no namespace; the API server does.
        kind if kind.starts_with("ValidatingAdmissionPolicy") => {
            object["metadata"]["namespace"] = Value::Null
        }
        _ => {}
    }
    whole(&mut object);
    if !matches!(object["kind"].as_str(), Some("DaemonSet" | "Deployment")) {
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

/// Numbers as whole ones, where they are: the two write them differently.
fn whole(value: &mut Value) {
    match value {
        Value::Object(all) => all.values_mut().for_each(whole),
        Value::Array(all) => all.iter_mut().for_each(whole),
        Value::Number(number) => {
            let text = number.to_string();
            if let Some(Ok(number)) = text.strip_suffix(".0").map(str::parse::<i64>) {
                *value = json!(number);
            }
        }
        _ => {}
    }
}
