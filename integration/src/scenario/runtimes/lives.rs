//! Lives of containers and of execs, one at a time and many at once.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::client::{Client, Output};
use super::subject::Subject;
use crate::images::Image;
use crate::scenario::ctr::run as run_program;
use crate::scenario::snapshotters::client::NAMESPACE;
use crate::scenario::snapshotters::load::each;

/// A program that ends at once.
const TRUE: [&str; 1] = ["/bin/true"];
/// A program that does nothing for long.
pub const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];

/// One container that runs `true` and is gone: as `ctr run --rm` does it, by the same calls.
pub async fn run(bench: &mut Bench, subject: &Subject, id: &str) -> Result<()> {
    let template = bench.template(subject)?.clone();
    let mut client = bench.client.clone();
    let began = Instant::now();
    let rootfs = client.make(subject, &template, id, &TRUE, None).await?;
    let made = Instant::now();
    client.create(id, rootfs, &Output::default()).await?;
    let created = made.elapsed();
    let mut waiter = client.clone();
    let wait = async {
        let status = waiter.wait(id, "").await?;
        Ok::<_, anyhow::Error>((status, Instant::now()))
    };
    let start = async {
        client.start(id, "").await?;
        Ok::<_, anyhow::Error>(made.elapsed())
    };
    let (ended, started) = tokio::join!(wait, start);
    let ((status, ended), started) = (ended?, started?);
    ensure!(status == 0, "{id}: exit status {status}");
    client.delete(id).await?;
    let deleted = Instant::now();
    client.unmake(subject, id).await?;
    let all = began.elapsed();
    bench.samples.time(subject, "run --rm, by API", all);
    bench.samples.time(subject, "task: create", created);
    bench.samples.time(subject, "task: create and start", started);
    bench.samples.time(subject, "task: delete", deleted - ended);
    bench.samples.time(subject, "task: create to deleted", deleted - made);
    Ok(())
}

/// The same by `ctr` itself.
pub fn run_by_ctr(bench: &mut Bench, subject: &Subject, id: &str) -> Result<()> {
    let mut args = vec!["-n", NAMESPACE, "run", "--rm", "--runtime", subject.runtime];
    args.extend(["--snapshotter", subject.snapshotter, Image::Busybox.name(), id]);
    args.extend(TRUE);
    let began = Instant::now();
    run_program("ctr", &args, b"")?.success("ctr run --rm")?;
    bench.samples.time(subject, "ctr run --rm", began.elapsed());
    Ok(())
}

/// One more process in a running container, from `Exec` to `Delete`.
pub async fn exec(bench: &mut Bench, subject: &Subject, id: &str, exec_id: &str) -> Result<()> {
    let template = bench.template(subject)?.clone();
    let mut client = bench.client.clone();
    let began = Instant::now();
    client.exec(&template, id, exec_id, &TRUE).await?;
    let mut waiter = client.clone();
    let start = async {
        client.start(id, exec_id).await?;
        Ok::<_, anyhow::Error>(began.elapsed())
    };
    let (status, started) = tokio::join!(waiter.wait(id, exec_id), start);
    let (status, started) = (status?, started?);
    ensure!(status == 0, "{id} {exec_id}: exit status {status}");
    client.delete_exec(id, exec_id).await?;
    bench.samples.time(subject, "exec, by API", began.elapsed());
    bench.samples.time(subject, "exec: until it runs", started);
    Ok(())
}

/// `count` containers by `clients` clients at once, each with a connection of its own; then all of them removed.
pub async fn crowd(
    bench: &mut Bench,
    subject: &Subject,
    tag: &str,
    (clients, count): (usize, usize),
) -> Result<()> {
    let template = bench.template(subject)?.clone();
    let mut workers = Vec::new();
    for worker in 0..clients {
        let ids = (worker..count).step_by(clients).map(|number| format!("{tag}-{number}"));
        workers.push((Client::connect().await?, *subject, template.clone(), ids.collect::<Vec<_>>()));
    }
    let began = Instant::now();
    let (workers, pids) = each(workers, async |(client, subject, template, ids)| {
        let mut pids = Vec::new();
        for id in ids {
            let rootfs = client.make(subject, template, id, &SLEEP, None).await?;
            client.create(id, rootfs, &Output::default()).await?;
            pids.push(client.start(id, "").await?);
        }
        Ok(pids)
    })
    .await
    .context("start a crowd")?;
    let started = began.elapsed();
    bench.weigh_crowd(subject, &pids.concat()).await?;
    let removing = Instant::now();
    each(workers, async |(client, subject, _, ids)| {
        for id in ids {
            client.remove(subject, id).await?;
        }
        Ok(())
    })
    .await
    .context("remove a crowd")?;
    bench.samples.time(subject, "many: all started", started);
    bench.samples.time(subject, "many: all removed", removing.elapsed());
    Ok(())
}
