//! Pods, as `kubectl` drives them.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::files::file;
use super::{Class, until};
use crate::images::Image;
use crate::scenario::capsulectl::ps;
use crate::scenario::cri::K8S;
use crate::scenario::ctr::{Output, ctr, run};
use crate::scenario::readers::Inside;

/// The Kubernetes namespace of all pods here, as in configs/kubernetes/pod.yaml.
pub const NAMESPACE: &str = "shop";

/// Runs `kubectl`.
pub fn kubectl(args: &[&str]) -> Result<Output> {
    kubectl_with(args, b"")
}

/// Runs `kubectl` with `input` on its standard input.
pub fn kubectl_with(args: &[&str], input: &[u8]) -> Result<Output> {
    client("kubectl", &[&["--namespace", NAMESPACE], args].concat(), input)
}

/// Runs a client of the cluster as its administrator, for no namespace, which must succeed; what it prints.
pub fn administer(program: &str, args: &[&str]) -> Result<String> {
    let output = client(program, args, b"")?.success(&format!("{program} {}", args.join(" ")))?;
    Ok(output.trim().to_owned())
}

fn client(program: &str, args: &[&str], input: &[u8]) -> Result<Output> {
    let config = file("admin.conf");
    run("env", &[&["HOME=/root", program, "--kubeconfig", &config], args].concat(), input)
}

/// Runs `kubectl`, which must succeed; what it prints.
pub fn done(args: &[&str]) -> Result<String> {
    let output = kubectl(args)?.success(&format!("kubectl {}", args.join(" ")))?;
    Ok(output.trim().to_owned())
}

/// Runs `kubectl get … -o json`.
pub fn get(args: &[&str]) -> Result<Value> {
    let text = done(&[&["get"], args, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("no JSON: {text:?}"))
}

/// `kubectl apply -f -`.
pub fn apply(object: &Value) -> Result<()> {
    let text = serde_json::to_vec(object)?;
    kubectl_with(&["apply", "-f", "-"], &text)?.success("kubectl apply").map(drop)
}

/// A pod's manifest: containers of the test image that run scripts.
#[derive(Debug, Clone)]
pub struct Manifest(pub Value);

impl Manifest {
    /// With the containers of these names and scripts.
    pub fn new(name: &str, class: Class, containers: &[(&str, &str)]) -> Self {
        let containers: Vec<Value> = containers
            .iter()
            .map(|(name, script)| {
                json!({
                    "name": name, "image": Image::Busybox.name(), "imagePullPolicy": "Never",
                    "command": ["/bin/sh", "-c", script],
                })
            })
            .collect();
        let mut spec = json!({ "containers": containers, "terminationGracePeriodSeconds": 1 });
        if let Some(class) = class {
            spec["runtimeClassName"] = json!(class);
        }
        Self(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec }))
    }

    /// With annotations.
    pub fn annotated(mut self, annotations: &[(&str, &str)]) -> Self {
        for (key, value) in annotations {
            self.0["metadata"]["annotations"][*key] = json!(value);
        }
        self
    }

    /// With more in the spec, or in the first container's.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.0["spec"]);
        self
    }

    /// Applies it, and waits until the pod is ready.
    pub fn ready(self) -> Result<Pod> {
        let pod = self.applied()?;
        pod.is_ready()?;
        Ok(pod)
    }

    /// Applies it.
    pub fn applied(self) -> Result<Pod> {
        let name = self.0["metadata"]["name"].as_str().context("a pod has a name")?.to_owned();
        apply(&self.0)?;
        Ok(Pod { name })
    }
}

/// A pod; it is deleted when this is dropped.
#[derive(Debug)]
pub struct Pod {
    /// Its name, in [`NAMESPACE`].
    pub name: String,
}

impl Pod {
    /// As the API server has it.
    pub fn get(&self) -> Result<Value> {
        get(&["pod", &self.name])
    }

    /// Waits until it is as wanted; with what was seen last in the error.
    pub fn comes_to(&self, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        until(what, || Ok(is(&self.get()?)))
            .with_context(|| format!("{}: {}", self.name, self.get().unwrap_or_default()["status"]))?;
        self.get()
    }

    /// Waits until it is ready.
    pub fn is_ready(&self) -> Result<()> {
        self.comes_to("ready", |pod| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions
                .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
        })
        .map(drop)
    }

    /// One of its containers, which there is.
    pub fn member<'a>(&'a self, name: &'a str) -> Result<Member<'a>> {
        let status = status_of(&self.get()?, name);
        let id = id_in(&status).with_context(|| format!("{name} of {}: {status}", self.name))?.to_owned();
        let restarts = status["restartCount"].as_u64().context("no count of restarts")?;
        Ok(Member { pod: self, name, id, restarts })
    }

    /// Waits until a container runs that is not this one, and the pod is ready.
    pub fn restarted<'a>(&'a self, before: &Member<'a>) -> Result<Member<'a>> {
        self.comes_to("restarted", |pod| {
            let status = status_of(pod, before.name);
            let other = status["containerID"].as_str().is_some_and(|id| !id.ends_with(&before.id));
            other && status["ready"] == true && status["state"]["running"].is_object()
        })?;
        self.member(before.name)
    }

    /// `kubectl delete`, which waits until it is gone.
    pub fn delete(self) -> Result<()> {
        done(&["delete", "pod", &self.name, "--timeout=110s"])?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "pod", &self.name, "--force", "--timeout=60s"]);
    }
}

/// What is told of a container of a pod.
pub fn status_of(pod: &Value, name: &str) -> Value {
    let all = pod["status"]["containerStatuses"].as_array();
    all.and_then(|all| all.iter().find(|one| one["name"] == name)).cloned().unwrap_or_default()
}

/// containerd's id of the container that a status is of, once it has one.
pub fn id_in(status: &Value) -> Option<&str> {
    status["containerID"].as_str()?.strip_prefix("containerd://")
}

/// The process on the node of a pod's container.
pub fn pid_of(id: &str) -> Result<u32> {
    let list = ctr(&["-n", K8S, "tasks", "ls"])?.success("list tasks")?;
    let row = list.lines().find_map(|line| line.strip_prefix(id));
    let pid = row.and_then(|row| row.split_ascii_whitespace().next());
    pid.with_context(|| format!("{id} has no task: {list}"))?.parse().context("a process id")
}

/// A container of a pod, as it was when it was asked for.
#[derive(Debug)]
pub struct Member<'a> {
    pod: &'a Pod,
    /// Its name in the pod.
    pub name: &'a str,
    /// Its id.
    pub id: String,
    /// How often there was another before.
    pub restarts: u64,
}

impl Member<'_> {
    /// As `capsulectl` takes it.
    pub fn reference(&self) -> String {
        format!("pod/{NAMESPACE}/{}/{}", self.pod.name, self.name)
    }

    /// Its process on the node.
    pub fn pid(&self) -> Result<u32> {
        pid_of(&self.id)
    }

    /// `kubectl exec` with `input`.
    pub fn exec(&self, command: &[&str], input: &[u8]) -> Result<Output> {
        let fixed = ["exec", "-i", &self.pod.name, "-c", self.name, "--"];
        kubectl_with(&[&fixed[..], command].concat(), input)
    }

    /// Runs a script in it, which must succeed; what it prints.
    pub fn sh(&self, script: &str) -> Result<String> {
        Ok(self.exec(&["/bin/sh", "-c", script], b"")?.success(script)?.trim().to_owned())
    }

    /// `kubectl logs`, once they are as wanted.
    pub fn logs(&self, more: &[&str], what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let logs = || done(&[&["logs", &self.pod.name, "-c", self.name], more].concat());
        until(&format!("in its log: {what}"), || Ok(is(&logs()?)))
            .with_context(|| format!("{:?}", logs()))?;
        logs()
    }

    /// Its attachments, as `NAME@VERSION STATE`.
    pub fn has(&self) -> Result<Vec<String>> {
        let of_it = ps()?.into_iter().filter(|seen| seen.container == self.id);
        Ok(of_it.map(|seen| format!("{}@{} {}", seen.capsule, seen.version, seen.state)).collect())
    }

    /// That it has these, as [`Member::has`] shows them.
    pub fn expect(&self, expected: &[&str]) -> Result<()> {
        let found = self.has()?;
        ensure!(found == expected, "{}: {found:?} instead of {expected:?}", self.reference());
        Ok(())
    }
}

impl Inside for Member<'_> {
    fn spawn(&self, _: &str, command: &[&str]) -> Result<()> {
        let behind = ["/bin/sh", "-c", "\"$@\" </dev/null >/dev/null 2>&1 &", "sh"];
        self.exec(&[&behind[..], command].concat(), b"")?.success("run it behind").map(drop)
    }
}
