//! `capsule-controller`: one program, of which each part is a subcommand.

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use capsule_controller::{agent, api, cluster};
use clap::{Parser, Subcommand};
use kube::Client;
use tracing_subscriber::EnvFilter;

/// Capsules for the pods of a Kubernetes cluster
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Plan for all nodes; one in a cluster
    Controller,
    /// Serve one node, beside its capsuled
    Agent {
        /// The node's name in the cluster
        #[arg(long, env = "NODE_NAME")]
        node: String,
        /// capsuled's socket
        #[arg(long, value_name = "PATH", default_value = "/run/capsule/capsuled.sock")]
        socket: PathBuf,
    },
    /// Print the custom resource definitions, as YAML
    Crds,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Part::Crds = cli.part {
        let mut out = std::io::stdout().lock();
        for definition in api::definitions() {
            write!(out, "---\n{}", yaml_serde::to_string(&definition).context("a definition")?)?;
        }
        return Ok(());
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let client = Client::try_default().await.context("the API server: no configuration of it")?;
    tokio::select! {
        result = run(cli.part, client) => result,
        () = ended() => Ok(()),
    }
}

async fn run(part: Part, client: Client) -> anyhow::Result<()> {
    match part {
        Part::Controller => cluster::run(client).await,
        Part::Agent { node, socket } => agent::run(client, agent::Settings { node, socket }).await,
        Part::Crds => Ok(()),
    }
}

/// SIGTERM, or Control-C.
async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = tokio::signal::ctrl_c() => (),
            }
        }
        Err(_) => std::future::pending().await,
    }
}
