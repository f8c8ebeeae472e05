//! `capsule-simulator`: a large cluster without its nodes, for `make bench-cluster`. Nodes and pods are objects that nobody runs, and what
//! agents would say is said by this one process, in as many calls.
//!
//! Prints a JSON object for each thing that was done: how long it took, and the calls that the API server has counted.

use std::{
    collections::BTreeMap,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use capsule_controller::api::{
    CapsuleAttachment, CapsuleRollout, Done, NodeCapsules, NodeCapsulesStatus, Phase, State,
};
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// A large cluster without its nodes
#[derive(Debug, Parser)]
struct Cli {
    /// How many nodes there are
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    /// How many pods each has
    #[arg(long, default_value_t = 20)]
    pods: usize,
    /// How many CapsuleAttachments share them
    #[arg(long, default_value_t = 100)]
    attachments: usize,
}

const NAMESPACE: &str = "simulated";
const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(1800);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let client = Client::try_default().await.context("the API server")?;
    let cluster = Cluster { client: client.clone() };
    cluster.make(&cli).await?;
    let agents = tokio::spawn(agents(client));
    let all = cli.nodes * cli.pods;
    cluster
        .measured("attach", all, async {
            for one in 0..cli.attachments {
                cluster.attach(one, "1").await?;
            }
            for one in 0..cli.attachments {
                cluster.is_attached(one, all / cli.attachments).await?;
            }
            Ok(())
        })
        .await?;
    let each = all / cli.attachments;
    cluster
        .measured("another version of one", each, async {
            cluster.attach(0, "2").await?;
            cluster.is_attached(0, each).await
        })
        .await?;
    cluster.measured("a rollout of one in 20 steps", each, cluster.roll_out(1, 20)).await?;
    cluster
        .measured("nothing, for a minute", 0, async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
        })
        .await?;
    agents.abort();
    Ok(())
}

struct Cluster {
    client: Client,
}

impl Cluster {
    /// Does it, and prints what it took.
    async fn measured(
        &self,
        what: &str,
        attachments: usize,
        work: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let (calls, began) = (self.calls().await?, Instant::now());
        work.await.with_context(|| what.to_owned())?;
        let took = began.elapsed();
        let now = self.calls().await?;
        let made: BTreeMap<&String, u64> = now
            .iter()
            .map(|(kind, count)| (kind, count - calls.get(kind).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        say(
            &json!({ "what": what, "attachments": attachments, "seconds": took.as_secs_f64(), "calls": made }),
        )?;
        Ok(())
    }

    /// The calls that concern our kinds, by verb and kind, as the API server counts them.
    async fn calls(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let request = hyper::Request::get("/metrics").body(Vec::new())?;
        let text = self.client.request_text(request).await?;
        let mut calls = BTreeMap::new();
        for line in text.lines().filter(|line| {
            line.starts_with("apiserver_request_total{") && line.contains("group=\"resourcecapsules.io\"")
        }) {
            let label = |name: &str| {
                line.split(&format!("{name}=\""))
                    .nth(1)
                    .and_then(|rest| rest.split('"').next())
                    .unwrap_or_default()
            };
            let count: f64 = line.rsplit(' ').next().unwrap_or_default().parse().context("a count")?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a count
            let count = count as u64;
            let of = [label("resource"), label("subresource")].join("/");
            *calls.entry(format!("{} {}", label("verb"), of.trim_end_matches('/'))).or_insert(0) += count;
        }
        Ok(calls)
    }

    async fn make(&self, cli: &Cli) -> anyhow::Result<()> {
        let began = Instant::now();
        create(&Api::<Namespace>::all(self.client.clone()), [json!({ "metadata": { "name": NAMESPACE } })])
            .await?;
        // A controller's work, which is not here; without it no pod is taken.
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), NAMESPACE);
        create(&accounts, [json!({ "metadata": { "name": "default" } })]).await?;
        let nodes = (0..cli.nodes).map(|n| json!({ "metadata": { "name": format!("node-{n}") } }));
        create(&Api::<Node>::all(self.client.clone()), nodes).await?;
        let pods = (0..cli.nodes * cli.pods).map(|n| {
            json!({
                "metadata": { "name": format!("pod-{n}"), "labels": { "group": format!("g{}", n % cli.attachments) } },
                "spec": { "nodeName": format!("node-{}", n / cli.pods), "containers": [{ "name": "app", "image": "none" }] },
            })
        });
        create(&Api::<Pod>::namespaced(self.client.clone(), NAMESPACE), pods).await?;
        say(&json!({ "what": "nodes and pods are made", "seconds": began.elapsed().as_secs_f64() }))?;
        Ok(())
    }

    async fn attach(&self, one: usize, version: &str) -> anyhow::Result<()> {
        let api: Api<CapsuleAttachment> = Api::namespaced(self.client.clone(), NAMESPACE);
        let object = json!({
            "apiVersion": "resourcecapsules.io/v1alpha1", "kind": "CapsuleAttachment", "metadata": { "name": format!("a{one}") },
            "spec": { "podSelector": { "matchLabels": { "group": format!("g{one}") } }, "capsule": "c", "version": version },
        });
        api.patch(&format!("a{one}"), &PatchParams::apply("simulator"), &Patch::Apply(object)).await?;
        Ok(())
    }

    async fn is_attached(&self, one: usize, containers: usize) -> anyhow::Result<()> {
        let api: Api<CapsuleAttachment> = Api::namespaced(self.client.clone(), NAMESPACE);
        until("attached", async || {
            let object = api.get(&format!("a{one}")).await?;
            let status = object.status.clone().unwrap_or_default();
            let is_now = status.observed_generation == object.metadata.generation;
            Ok(is_now
                && usize::try_from(status.attached)? == containers
                && usize::try_from(status.wanted)? == containers)
        })
        .await
    }

    async fn roll_out(&self, one: usize, steps: usize) -> anyhow::Result<()> {
        let api: Api<CapsuleRollout> = Api::namespaced(self.client.clone(), NAMESPACE);
        let steps: Vec<Value> =
            (1..steps).map(|step| json!({ "pods": format!("{}%", step * 100 / steps) })).collect();
        let rollout: CapsuleRollout = serde_json::from_value(json!({
            "apiVersion": "resourcecapsules.io/v1alpha1", "kind": "CapsuleRollout", "metadata": { "name": "r" },
            "spec": {
                "attachment": format!("a{one}"), "version": "2", "steps": steps, "maxUnavailable": "100%",
                "health": { "readiness": false, "settleSeconds": 0 },
            },
        }))?;
        api.create(&PostParams::default(), &rollout).await?;
        until("rolled out", async || {
            let phase = api.get("r").await?.status.unwrap_or_default().phase;
            ensure!(!matches!(phase, Phase::RollingBack | Phase::Stopped | Phase::Superseded), "{phase:?}");
            Ok(phase == Phase::Succeeded)
        })
        .await
    }
}

fn say(what: &Value) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{what}")?)
}

async fn until(what: &str, is: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !is().await? {
        ensure!(began.elapsed() < PATIENCE, "not {what} in {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn create<K>(api: &Api<K>, objects: impl IntoIterator<Item = Value>) -> anyhow::Result<()>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let params = PostParams::default();
    let made = stream::iter(objects).map(|object| {
        let params = &params;
        async move {
            let object: K = serde_json::from_value(object)?;
            match api.create(params, &object).await {
                Err(kube::Error::Api(error)) if error.code == 409 => Ok(()),
                made => made.map(drop).map_err(anyhow::Error::from),
            }
        }
    });
    made.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await.map(drop)
}

/// Says of each node what its agent would: that it has what it was told, once to claim it and once when it is done.
async fn agents(client: Client) -> anyhow::Result<()> {
    let api: Api<NodeCapsules> = Api::all(client);
    // A list at the beginning: a watch of one for each node would begin so, too.
    api.list_metadata(&ListParams::default().limit(1)).await?;
    let objects = watcher(api.clone(), watcher::Config::default()).default_backoff().applied_objects();
    objects
        .try_for_each_concurrent(AT_ONCE, |object| {
            let api = api.clone();
            async move {
                if let Err(error) = answer(&api, &object).await {
                    writeln!(std::io::stderr(), "{}: {error}", object.name_any()).ok();
                }
                Ok(())
            }
        })
        .await?;
    Ok(())
}

async fn answer(api: &Api<NodeCapsules>, object: &NodeCapsules) -> anyhow::Result<()> {
    let status = object.status.clone().unwrap_or_default();
    if status.observed_generation == object.metadata.generation {
        return Ok(());
    }
    let had = status.attachments.len();
    let says = |state: State| {
        let attachments = object.spec.attachments.iter().map(|one| Done {
            owner: one.owner.clone(),
            pod: one.pod.clone(),
            container: one.container.clone(),
            capsule: one.capsule.clone(),
            state,
            asked: one.version.clone(),
            since: None,
            version: one.version.clone(),
            target: Some("/c".to_owned()),
            devices: one.devices.clone(),
            found: false,
            message: None,
        });
        NodeCapsulesStatus {
            observed_generation: object.metadata.generation,
            attachments: attachments.collect(),
            capsules: Vec::new(),
            volumes: Vec::new(),
        }
    };
    let states = if object.spec.attachments.len() > had {
        &[State::Waiting, State::Attached][..]
    } else {
        &[State::Attached]
    };
    for state in states {
        let patch = json!({ "status": says(*state) });
        api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}
