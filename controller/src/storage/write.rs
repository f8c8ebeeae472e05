//! What is written of volumes: many objects at once, each in its own call. Whoever is gone needs no word; what has changed meanwhile is seen
//! in a moment, and planned anew.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{core::v1::PersistentVolume, storage::v1::StorageClass};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::events::Recorder,
};
use serde_json::{Value, json};

use super::{
    CONTRACT, SELECTED_NODE,
    plan::{Note, Write},
    slim::{Claim, Volume},
};
use crate::{
    api::{StorageContract, StorageContractStatus},
    bounded, events, merged_by,
    meters::Meters,
};

/// Who has written a field.
const MANAGER: &str = "capsule-storage";
/// How many objects are written at once.
const AT_ONCE: usize = 16;

/// Writes to the API server.
pub struct Writer {
    client: Client,
    recorder: Recorder,
    meters: Meters,
}

/// Whether it was written; and what is to be said of one that was not.
type Written = (Result<(), kube::Error>, Option<Note>);

impl Writer {
    /// With this client.
    pub fn new(client: Client, recorder: Recorder, meters: Meters) -> Self {
        Self { client, recorder, meters }
    }

    /// Writes all; what is to be said of what could not be, and the first error.
    pub async fn all(&self, writes: Vec<Write>) -> (Vec<Note>, Option<kube::Error>) {
        let writes = writes.into_iter().map(|write| self.one(write));
        let written: Vec<Written> = stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
        let (results, notes): (Vec<_>, Vec<_>) = written.into_iter().unzip();
        (notes.into_iter().flatten().collect(), results.into_iter().find_map(Result::err))
    }

    /// An event.
    pub async fn say(&self, note: &Note) {
        let Note { object, action, reason, message, is_bad } = note;
        events::publish_of(&self.recorder, object, action, reason, message, *is_bad).await;
    }

    async fn one(&self, write: Write) -> Written {
        match write {
            Write::Create(volume, note) => Box::pin(self.create(*volume, note)).await,
            Write::Patch(name, patch) => {
                self.counted("PersistentVolume", None, self.patch(&name, patch)).await
            }
            Write::Delete { name, uid, version } => {
                let delete = self.delete::<Volume>(&name, uid, version);
                self.counted("PersistentVolume", None, delete).await
            }
            Write::Reschedule { namespace, name, version, note } => {
                let patch = json!({ "metadata": { "resourceVersion": version, "annotations": { SELECTED_NODE: null } } });
                let write = async {
                    let (params, patch) = (merged_by(MANAGER), Patch::Merge(patch));
                    bounded(self.claims(&namespace).patch(&name, &params, &patch)).await.map(drop)
                };
                self.counted("PersistentVolumeClaim", Some(note), write).await
            }
            Write::Claim { namespace, name, status, version, note } => {
                let write = self.claim(&namespace, &name, version, status);
                self.counted("PersistentVolumeClaim/status", note, write).await
            }
            Write::CreateClass(class) => {
                let api: Api<StorageClass> = Api::all(self.client.clone());
                let write = async { bounded(api.create(&params(), &class)).await.map(drop) };
                self.counted("StorageClass", None, write).await
            }
            Write::DeleteClass(name, uid) => {
                self.counted("StorageClass", None, self.delete::<StorageClass>(&name, uid, None)).await
            }
            Write::Hold(contract, is_held, note) => {
                self.counted("StorageContract", note, self.hold(&contract, is_held)).await
            }
            Write::Contract(contract, status) => {
                let note = changed(&contract, &status);
                self.counted("StorageContract/status", note, self.status(&contract, *status)).await
            }
        }
    }

    /// Counts a write, and says what is to be said where it was taken.
    async fn counted(
        &self,
        kind: &str,
        note: Option<Note>,
        write: impl Future<Output = Result<(), kube::Error>>,
    ) -> Written {
        let written = write.await;
        let is_overtaken = is_code(&written, &[404, 409]);
        self.meters.wrote(kind, written.is_ok() || is_overtaken);
        match (written, note) {
            (Ok(()), Some(note)) => {
                self.say(&note).await;
                (Ok(()), None)
            }
            (Err(_), _) if is_overtaken => (Ok(()), None),
            (written, _) => (written, None),
        }
    }

    /// Where there is one of the name it was made a moment ago, or is somebody else's: then it is said.
    async fn create(&self, volume: PersistentVolume, note: Note) -> Written {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let written = bounded(api.create(&params(), &volume)).await.map(drop);
        let name = volume.name_any();
        let failed = |why: String| {
            Some(Note { reason: "ProvisioningFailed", message: why, is_bad: true, ..note.clone() })
        };
        if is_code(&written, &[409]) {
            let there = bounded(Api::<Volume>::all(self.client.clone()).get_opt(&name)).await;
            let handle = volume.spec.and_then(|spec| spec.csi).map(|csi| csi.volume_handle);
            let is_other = |there: &Volume| Some(&*there.handle) != handle.as_deref() || !there.is_ours;
            return match there {
                Ok(Some(there)) if is_other(&there) => (
                    Ok(()),
                    failed(format!(
                        "there is another PersistentVolume {name}: delete it, or choose another name"
                    )),
                ),
                there => (there.map(drop), None),
            };
        }
        match written {
            Err(kube::Error::Api(error)) => {
                let said = failed(format!(
                    "the API server does not take the PersistentVolume {name}: {}",
                    error.message
                ));
                (self.counted("PersistentVolume", None, async { Err(kube::Error::Api(error)) }).await.0, said)
            }
            written => self.counted("PersistentVolume", Some(note), async { written }).await,
        }
    }

    async fn patch(&self, name: &str, patch: Value) -> Result<(), kube::Error> {
        let api: Api<Volume> = Api::all(self.client.clone());
        bounded(api.patch(name, &merged_by(MANAGER), &Patch::Merge(patch))).await.map(drop)
    }

    async fn delete<K>(
        &self,
        name: &str,
        uid: Option<String>,
        version: Option<String>,
    ) -> Result<(), kube::Error>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let preconditions = Some(Preconditions { uid, resource_version: version });
        let api: Api<K> = Api::all(self.client.clone());
        bounded(api.delete(name, &DeleteParams { preconditions, ..DeleteParams::default() })).await.map(drop)
    }

    fn claims(&self, namespace: &str) -> Api<Claim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Applied, so that what is not said any more is gone.
    async fn claim(
        &self,
        namespace: &str,
        name: &str,
        version: Option<String>,
        status: Value,
    ) -> Result<(), kube::Error> {
        let patch = json!({
            "apiVersion": Claim::api_version(&()), "kind": Claim::kind(&()),
            "metadata": { "resourceVersion": version }, "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        bounded(self.claims(namespace).patch_status(name, &params, &Patch::Apply(patch))).await.map(drop)
    }

    async fn hold(&self, contract: &StorageContract, is_held: bool) -> Result<(), kube::Error> {
        let mut finalizers: Vec<&str> =
            contract.finalizers().iter().map(String::as_str).filter(|one| *one != CONTRACT).collect();
        finalizers.extend(is_held.then_some(CONTRACT));
        let version = contract.resource_version();
        let patch = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": version } });
        let api: Api<StorageContract> = Api::all(self.client.clone());
        bounded(api.patch(&contract.name_any(), &merged_by(MANAGER), &Patch::Merge(patch))).await.map(drop)
    }

    async fn status(
        &self,
        contract: &StorageContract,
        status: StorageContractStatus,
    ) -> Result<(), kube::Error> {
        let patch = json!({
            "apiVersion": StorageContract::api_version(&()), "kind": StorageContract::kind(&()), "status": status,
        });
        let api: Api<StorageContract> = Api::all(self.client.clone());
        let params = PatchParams::apply(MANAGER).force();
        bounded(api.patch_status(&contract.name_any(), &params, &Patch::Apply(patch))).await.map(drop)
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

fn is_code(written: &Result<(), kube::Error>, codes: &[u16]) -> bool {
    matches!(written, Err(kube::Error::Api(error)) if codes.contains(&error.code))
}

/// What is said where a contract is ready or not for another reason than before.
fn changed(contract: &Arc<StorageContract>, status: &StorageContractStatus) -> Option<Note> {
    let before = contract.status.as_ref().and_then(|status| status.conditions.first()).map(|one| &one.reason);
    let now = status.conditions.first().filter(|now| before != Some(&now.reason))?;
    let (message, is_bad) = (now.message.clone(), now.reason != "Provided" && now.reason != "Pending");
    let reason = match now.reason.as_str() {
        "Provided" => "Provided",
        "Pending" => "Pending",
        "Lost" => "DirectoryLost",
        "Released" => "DirectoryReleased",
        _ => "DirectoryFailed",
    };
    Some(Note { is_bad, ..Note::good(contract.as_ref(), "Provide", reason, message) })
}
