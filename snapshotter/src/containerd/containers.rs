//! Containers and their tasks.

use std::{collections::HashMap, time::SystemTime};

use capsule_proto::containerd::services::{
    containers::v1::{
        Container as WireContainer, GetContainerRequest, ListContainersRequest,
        containers_client::ContainersClient,
    },
    tasks::v1::{GetRequest, tasks_client::TasksClient},
};
use capsule_proto::containerd::v1::types::Status as TaskStatus;
use tonic::Code;

use super::{ContainerdError, Scope};

/// Labels of a pod's containers (kubelet, `pkg/kubelet/types/labels.go`).
const POD: [&str; 2] = ["io.kubernetes.pod.namespace", "io.kubernetes.pod.name"];
const POD_UID: &str = "io.kubernetes.pod.uid";
/// Its sandbox, which is a container too, has none.
const CONTAINER: &str = "io.kubernetes.container.name";

/// What a container is in Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// The pod that it is of, as `NAMESPACE/NAME`.
    pub pod: String,
    /// What tells the pod from others of its name, before and after it.
    pub uid: String,
    /// Its name in the pod; none of the pod's sandbox.
    pub container: Option<String>,
}

impl Member {
    fn of(labels: &HashMap<String, String>) -> Option<Self> {
        let pod = POD.map(|label| labels.get(label));
        let (namespace, name) = pod[0].zip(pod[1])?;
        Some(Self {
            pod: format!("{namespace}/{name}"),
            uid: labels.get(POD_UID).cloned().unwrap_or_default(),
            container: labels.get(CONTAINER).cloned(),
        })
    }
}

/// The kubelet's containerd namespace (containerd, `internal/cri/constants`).
pub const PODS: &str = "k8s.io";
/// Label of the name that nerdctl gives a container, unique in its namespace (nerdctl, `pkg/labels/labels.go`).
const NAME: &str = "nerdctl/name";
/// Label that CRI gives each of its containers, after those of the image (containerd, `internal/cri/labels`).
const CRI: &str = "io.cri-containerd.kind";

/// A container as containerd's metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id, unique in its namespace.
    pub id: String,
    /// The runtime it is set to run on, as `io.containerd.runc.v2`.
    pub runtime: String,
    /// When it was created: another container of the same id has another time.
    pub created: Option<SystemTime>,
    /// What it is in a pod, as the kubelet labels its containers.
    pub member: Option<Member>,
    /// The name that its client calls it by, beside its id: as nerdctl labels its containers.
    pub name: Option<String>,
    /// It is CRI's, which starts none a second time: the kubelet makes another one.
    pub once: bool,
}

impl Container {
    /// A container of a namespace. CRI and `ctr` copy an image's labels to its containers: what an image says of itself makes it no
    /// container of a pod elsewhere, and gives none of a pod a name.
    fn of(c: WireContainer, namespace: &str) -> Self {
        let is_cris = c.labels.contains_key(CRI);
        Self {
            member: Member::of(&c.labels).filter(|_| namespace == PODS && is_cris),
            name: c.labels.get(NAME).filter(|name| !name.is_empty() && !is_cris).cloned(),
            once: namespace == PODS && is_cris,
            id: c.id,
            runtime: c.runtime.unwrap_or_default().name,
            created: c.created_at.and_then(|at| SystemTime::try_from(at).ok()),
        }
    }
}

impl Scope {
    /// All containers of the namespace.
    pub async fn containers(&self) -> Result<Vec<Container>, ContainerdError> {
        let reply = ContainersClient::new(self.channel())
            .list(self.request(ListContainersRequest::default()))
            .await
            .map_err(|e| self.failed("list its containers", e))?;
        Ok(reply.into_inner().containers.into_iter().map(|c| self.read(c)).collect())
    }

    fn read(&self, container: WireContainer) -> Container {
        Container::of(container, &String::from_utf8_lossy(self.namespace.as_bytes()))
    }

    /// One container; `None` if the namespace has none of this id.
    pub async fn container(&self, id: &str) -> Result<Option<Container>, ContainerdError> {
        let request = self.request(GetContainerRequest { id: id.to_owned() });
        match ContainersClient::new(self.channel()).get(request).await {
            Ok(reply) => Ok(reply.into_inner().container.map(|c| self.read(c))),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed(&format!("look up the container {id}"), status)),
        }
    }

    /// The state of a container's task as containerd has it ("created", "running", "stopped", …); `None` if it
    /// has no task.
    pub async fn task_state(&self, id: &str) -> Result<Option<String>, ContainerdError> {
        let request = self.request(GetRequest { container_id: id.to_owned(), exec_id: String::new() });
        match TasksClient::new(self.channel()).get(request).await {
            Ok(reply) => {
                Ok(reply.into_inner().process.map(|p| p.status().as_str_name().to_ascii_lowercase()))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed(&format!("look up the task {id}"), status)),
        }
    }

    /// True while the container's task has processes (running, created, paused or pausing).
    pub async fn task_is_live(&self, id: &str) -> Result<bool, ContainerdError> {
        let state = self.task_state(id).await?;
        Ok(state.is_some_and(|s| s != TaskStatus::Stopped.as_str_name().to_ascii_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_says_of_itself_names_no_other_container() {
        let of = |labels: &[(&str, &str)], namespace: &str| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let container = Container::of(WireContainer { labels, ..WireContainer::default() }, namespace);
            assert_eq!(container.once, container.member.is_some());
            (container.member.map(|member| member.pod), container.name)
        };
        let pod = [("io.kubernetes.pod.namespace", "shop"), ("io.kubernetes.pod.name", "web")];
        let (named, cri) = (("nerdctl/name", "web"), ("io.cri-containerd.kind", "container"));
        let (is_pod, is_named) = (Some("shop/web".to_owned()), Some("web".to_owned()));
        assert_eq!(of(&[pod[0], pod[1], cri], "k8s.io"), (is_pod.clone(), None));
        assert_eq!(of(&[pod[0], pod[1], cri, named], "k8s.io"), (is_pod, None));
        assert_eq!(of(&[pod[0], pod[1]], "k8s.io"), (None, None));
        assert_eq!(of(&[pod[0], pod[1], cri], "default"), (None, None));
        assert_eq!(of(&[named], "default"), (None, is_named.clone()));
        assert_eq!(of(&[named], "k8s.io"), (None, is_named));
        assert_eq!(of(&[("nerdctl/name", "")], "default"), (None, None));
    }
}
