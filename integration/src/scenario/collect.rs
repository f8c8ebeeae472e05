//! Collecting: what nobody needs goes, and nothing else.

mod by_itself;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use capsule_proto::containerd::services::leases::v1::leases_client::LeasesClient;
use capsule_proto::containerd::services::leases::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Resource,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use super::capsulectl::{capsulectl, done, json, refused};
use super::ctr::{Container, OURS, ctr};
use super::follow::{Follower, last};
use super::sets::publish;
use super::world::{CONTAINERD_SOCKET, World, until, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// How many versions there are when capsuled is killed while it removes them.
const DOOMED: usize = 24;

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("an image is there", || Ok(((), OURS.import()?)))?;
    reporter.check("what is in use stays, however it is used", in_use);
    reporter.check("what is leased or pinned in containerd stays", leased);
    reporter.check("rules keep the newest, the tagged and the young", rules);
    reporter.check("one version goes, and is refused while it is needed", one);
    reporter.check("what has gone leaves nothing behind", nothing_left);
    reporter.check("a version is attached or removed, never both", races);
    reporter.check("capsuled killed while it removes: no version is there by half", || killed(&mut world));
    reporter.check("a version is tagged or removed, never both", tagged_meanwhile);
    reporter
        .check("by itself, by the policy and when the disk is full", || by_itself::by_the_policy(&mut world));
    reporter.check("by itself, when the disk of containerd's content is full", || {
        by_itself::on_another_disk(&mut world)
    });
    world.stop()
}

/// `NAME@VERSION` of all versions.
fn versions() -> Result<BTreeSet<String>> {
    let list = json(&["ls"])?;
    let all = list["versions"].as_array().context("versions")?.iter();
    Ok(all.map(|v| format!("{}@{}", v["capsule"], v["version"]).replace('"', "")).collect())
}

/// What `prune` says it keeps, and why: `NAME@VERSION REASON`.
fn kept(args: &[&str]) -> Result<Vec<String>> {
    let pruned = json(&[&["prune"], args].concat())?;
    let kept = pruned["kept"].as_array().context("kept")?.iter();
    Ok(kept.map(|v| format!("{}@{} {}", v["capsule"], v["version"], v["reason"]).replace('"', "")).collect())
}

fn expect(labels: &[&str]) -> Result<()> {
    let expected: BTreeSet<String> = labels.iter().map(|label| (*label).to_owned()).collect();
    let found = versions()?;
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    Ok(())
}

fn clear() -> Result<()> {
    done(&["prune", "--keep-last", "0"])?;
    expect(&[])
}

fn in_use() -> Result<String> {
    for label in ["att@1", "back@1", "back@2", "drain@1", "wait@1", "lib@1", "lib@2", "free@1"] {
        publish(label, &[])?;
    }
    publish("app@1", &["lib <2"])?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "att", "back@1", "drain"])?;
    done(&["upgrade", "shop", "back"])?;
    shop.spawn("reader", &["/bin/sh", "-c", "exec 3< /opt/drain/version; sleep 100000"])?;
    until("the reader has it open", || Ok(capsulectl(&["detach", "shop", "drain"])?.err.contains("in use")))?;
    done(&["detach", "shop", "drain", "--lazy"])?;
    // Its task has ended.
    let idle = OURS.start("idle", &[], &SLEEP)?;
    done(&["attach", "idle", "wait"])?;
    idle.kill("SIGKILL")?;
    idle.wait_for("STOPPED")?;
    until("it waits", || Ok(json(&["ps", "idle"])?["attachments"][0]["state"] == "waiting"))?;
    // What is required by what is in use, though the container has it no more.
    done(&["attach", "shop", "app"])?;
    let dry = json(&["prune", "--keep-last", "0", "--dry-run"])?;
    ensure!(dry["removed"].as_array().is_some_and(|all| all.len() == 2), "{dry}");
    let kept = kept(&["--keep-last", "0"])?;
    expect(&["app@1", "att@1", "back@1", "back@2", "drain@1", "lib@1", "wait@1"])?;
    for (label, words) in [
        ("att@1", "attachment"),
        ("back@1", "of back in default/shop"),
        ("drain@1", "its layers, by processes in default/shop"),
        ("wait@1", "of wait in default/idle"),
    ] {
        ensure!(kept.iter().any(|line| line.starts_with(label) && line.contains(words)), "{label}: {kept:?}");
    }
    for container in [shop, idle] {
        container.remove()?;
    }
    until("nothing is in use", || Ok(json(&["ps"])?["attachments"].as_array().is_some_and(Vec::is_empty)))?;
    publish("only@1", &["lib <2"])?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "only"])?;
    let text = done(&["prune", "--keep-last", "0"])?;
    expect(&["lib@1", "only@1"])?;
    shop.remove()?;
    until("nothing is in use", || Ok(json(&["ps"])?["attachments"].as_array().is_some_and(Vec::is_empty)))?;
    clear()?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

fn leased() -> Result<String> {
    for label in ["rented@1", "named@1", "pinned@1"] {
        publish(label, &[])?;
    }
    let digest = json(&["inspect", "rented"])?["version"]["digest"].as_str().context("a digest")?.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let mut leases = runtime.block_on(async { leases() });
    let by_name = runtime.block_on(async {
        let create = CreateRequest { id: "rent".to_owned(), ..Default::default() };
        leases.create(create).await.context("create a lease")?;
        let mut names = "localhost/capsules/named:1";
        for (kind, id) in [("content", digest.as_str()), ("images", names)] {
            let resource = Resource { id: id.to_owned(), r#type: kind.to_owned() };
            let add = AddResourceRequest { id: "rent".to_owned(), resource: Some(resource) };
            match leases.add_resource(add).await {
                // containerd 1.7 knows no leases of images.
                Err(status) if status.code() == Code::Unimplemented => names = "",
                added => _ = added.context("add to a lease")?,
            }
        }
        anyhow::Ok(!names.is_empty())
    })?;
    let image = "localhost/capsules/pinned:1";
    ctr(&["-n", "capsules", "images", "label", image, "io.cri-containerd.pinned=pinned"])?
        .success("ctr images label")?;
    let kept = kept(&["--keep-last", "0"])?;
    ensure!(kept.iter().any(|line| line.contains("the lease rent")), "{kept:?}");
    ensure!(kept.iter().any(|line| line.contains("io.cri-containerd.pinned")), "{kept:?}");
    let all = ["named@1", "pinned@1", "rented@1"];
    expect(if by_name { &all } else { &all[1..] })?;
    ctr(&["-n", "capsules", "images", "label", image, "io.cri-containerd.pinned="])?
        .success("ctr images label")?;
    let delete = DeleteRequest { id: "rent".to_owned(), sync: true };
    runtime.block_on(leases.delete(delete)).context("delete a lease")?;
    clear()?;
    Ok(kept.join(" | "))
}

type Leases = LeasesClient<InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>>;

/// containerd's leases of the capsules' namespace.
fn leases() -> Leases {
    let connector = tower::service_fn(|_: Uri| async {
        UnixStream::connect(Path::new(CONTAINERD_SOCKET)).await.map(TokioIo::new)
    });
    let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
    LeasesClient::with_interceptor(channel, |mut request| {
        request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("capsules"));
        Ok(request)
    })
}

fn rules() -> Result<String> {
    for version in ["1", "2", "3", "4"] {
        publish(&format!("a@{version}"), &[])?;
    }
    publish("b@1", &[])?;
    done(&["tag", "a@1", "stable"])?;
    done(&["prune", "--keep-last", "0", "--older-than", "1h"])?;
    expect(&["a@1", "a@2", "a@3", "a@4", "b@1"])?;
    done(&["prune", "b", "--keep-last", "0", "--dry-run"])?;
    done(&["prune", "--keep-last", "2", "--keep-tagged"])?;
    expect(&["a@1", "a@3", "a@4", "b@1"])?;
    refused(&["prune", "nothing"], &["nothing", "not known"])?;
    let said = done(&["prune"])?;
    expect(&["a@4", "b@1"])?;
    let tags = json(&["ls", "a"])?["versions"][0]["tags"].clone();
    ensure!(tags == Value::Array(Vec::new()), "the tag stands for nothing: {tags}");
    clear()?;
    Ok(said.trim().replace('\n', " | "))
}

fn one() -> Result<String> {
    publish("a@1", &[])?;
    publish("a@2", &[])?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "a@1"])?;
    let line = refused(&["rm", "a@1"], &["a@1 cannot be removed", "in use", "default/shop"])?;
    refused(&["rm", "a@3"], &["a has no version 3"])?;
    ensure!(capsulectl(&["rm", "a"])?.code == 2, "a version must be named");
    done(&["detach", "shop", "a"])?;
    done(&["rm", "a@1"])?;
    expect(&["a@2"])?;
    refused(&["attach", "shop", "a@1"], &["a has no version 1"])?;
    shop.remove()?;
    clear()?;
    Ok(line)
}

/// What was removed is removed everywhere.
fn nothing_left() -> Result<String> {
    for version in 0..10 {
        publish(&format!("gone@{version}"), &[])?;
    }
    clear()?;
    swept()
}

/// Waits until no version has anything on the node.
fn swept() -> Result<String> {
    let list = |args: &[&str]| ctr(&[&["-n", "capsules"], args].concat())?.success("ctr");
    until("no blob, snapshot, image or lease is left", || {
        let blobs = list(&["content", "ls", "-q"])?;
        let snapshots = list(&["snapshots", "--snapshotter", "capsule", "ls"])?.lines().count();
        let images = list(&["images", "ls", "-q"])?;
        let leases = list(&["leases", "ls", "-q"])?;
        Ok(blobs.is_empty() && snapshots <= 1 && images.is_empty() && leases.is_empty())
    })?;
    // One is the image's, which containers run on. A directory goes after its snapshot, with the Cleanup that ends a collection.
    let counts = || {
        let directories = fs::read_dir("/var/lib/capsule/snapshots").context("read the snapshots")?.count();
        let list = ctr(&["snapshots", "--snapshotter", "capsule", "ls"])?.success("ctr")?;
        Ok::<_, anyhow::Error>((directories, list.lines().count().saturating_sub(1)))
    };
    let settled = until("no directory is left without its snapshot", || {
        counts().map(|(directories, others)| directories == others)
    });
    let (directories, others) = counts()?;
    settled.with_context(|| format!("{directories} directories, {others} snapshots"))?;
    Ok(format!("{others} snapshots of other images are left"))
}

fn races() -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    let mut outcomes = [0; 2];
    for round in 0..20_u64 {
        publish("hot@1", &[])?;
        let remover = spawn(move || {
            sleep(Duration::from_micros(400 * (round % 10)));
            capsulectl(&["rm", "hot@1"])
        });
        sleep(Duration::from_millis(if round % 2 == 0 { 0 } else { 4 + round }));
        let attached = capsulectl(&["attach", "shop", "hot@1"])?;
        let removed = remover.join().map_err(|_| anyhow!("a thread"))??;
        let (is_attached, is_removed) = (attached.code == 0, removed.code == 0);
        ensure!(is_attached != is_removed, "attach: {attached:?}, rm: {removed:?}");
        let error = if is_attached { &removed.err } else { &attached.err };
        ensure!(error.trim().lines().count() == 1, "{error}");
        if is_attached {
            expect(&["hot@1"])?;
            done(&["detach", "shop", "hot"])?;
            done(&["rm", "hot@1"])?;
        }
        expect(&[])?;
        outcomes[usize::from(is_attached)] += 1;
    }
    shop.remove()?;
    Ok(format!("{} attached, {} removed", outcomes[1], outcomes[0]))
}

/// What is tagged while others are removed is kept, or the tag is refused.
fn tagged_meanwhile() -> Result<String> {
    let mut outcomes = [0; 2];
    for round in 0..10_u64 {
        for version in 1..=8 {
            publish(&format!("hot@{version}"), &[])?;
        }
        let remover = spawn(|| capsulectl(&["prune", "--keep-last", "0", "--keep-tagged"]));
        sleep(Duration::from_millis(3 + 2 * round));
        let tagged = capsulectl(&["tag", "hot@1", "stable"])?;
        let removed = remover.join().map_err(|_| anyhow!("a thread"))??;
        ensure!(removed.code == 0, "{removed:?}");
        let is_tagged = tagged.code == 0;
        expect(if is_tagged { &["hot@1"] } else { &[] })?;
        ensure!(is_tagged || tagged.err.contains("hot"), "{tagged:?}");
        if is_tagged {
            let tags = json(&["inspect", "hot@stable"])?["version"]["tags"].clone();
            ensure!(tags == serde_json::json!(["stable"]), "{tags}");
        }
        clear()?;
        outcomes[usize::from(is_tagged)] += 1;
    }
    Ok(format!("{} tagged, {} removed", outcomes[1], outcomes[0]))
}

/// capsuled is killed as soon as so many removals are told, of [`DOOMED`].
fn killed(world: &mut World) -> Result<String> {
    let mut left = Vec::new();
    // Whether one is broken off is chance.
    for (round, told) in [1, 1, 3, 8].into_iter().cycle().take(24).enumerate() {
        let within = left.iter().any(|count| (1..DOOMED).contains(count));
        if round >= 4 && within {
            break;
        }
        left.push(killed_after(world, told).with_context(|| format!("killed after {told} removals"))?);
    }
    ensure!(
        left.iter().any(|count| (1..DOOMED).contains(count)),
        "none was broken off: {left:?} of {DOOMED}"
    );
    Ok(format!("{left:?} of {DOOMED} were left"))
}

/// How many versions are left.
fn killed_after(world: &mut World, told: usize) -> Result<usize> {
    for version in 0..DOOMED {
        publish(&format!("x@{version}"), &[])?;
    }
    let events = Follower::start("capsulectl", &["events", "-o", "json", "--after", &last()?])?;
    let caller = spawn(|| capsulectl(&["prune", "--keep-last", "0"]));
    let gone = events.kinds(told)?;
    ensure!(gone.iter().all(|event| event.starts_with("removed x ")), "{gone:?}");
    world.kill_capsuled()?;
    let output = caller.join().map_err(|_| anyhow!("a thread"))??;
    world.restart_capsuled()?;
    until("all is listed", || Ok(capsulectl(&["ls"])?.code == 0))?;
    world.wait_for_snapshotter()?;
    let list = json(&["ls"])?;
    let all = list["versions"].as_array().context("versions")?;
    ensure!(all.iter().all(|v| v["complete"] == true), "{list}");
    ensure!(all.is_empty() || output.code != 0, "{} are left, and the caller was told {output:?}", all.len());
    // What was told is so.
    let is_left =
        |event: &String| all.iter().any(|v| event.ends_with(&format!(" {}", v["version"]).replace('"', "")));
    ensure!(!gone.iter().any(is_left), "{gone:?} were told, and {list} is left");
    each_is_whole(all)?;
    done(&["prune", "--keep-last", "0"])?;
    expect(&[])?;
    swept()?;
    Ok(all.len())
}

/// Each of them can be used.
fn each_is_whole(versions: &[Value]) -> Result<()> {
    let shop: Container = OURS.start("shop", &[], &SLEEP)?;
    for one in versions {
        let label = format!("x@{}", one["version"].as_str().context("a version")?);
        done(&["attach", "shop", &label])?;
        super::sets::expect(&shop, &[&label])?;
        done(&["detach", "shop", "x"])?;
    }
    shop.remove()?;
    until("nothing is in use", || Ok(json(&["ps"])?["attachments"].as_array().is_some_and(Vec::is_empty)))
}
