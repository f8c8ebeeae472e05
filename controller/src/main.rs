//! `capsule-controller`: one program, of which each part is a subcommand.

use std::{io::Write as _, net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use capsule_controller::{agent, api, cluster, csi, health, lease::Election, meters::Meters};
use clap::{Args, Parser, Subcommand, ValueEnum};
use hyper::Uri;
use kube::Client;
use tracing_subscriber::EnvFilter;

/// Capsules for the pods of a Kubernetes cluster
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// How what is told on standard error is written
    #[arg(long, env = "LOG_FORMAT", global = true, default_value = "text")]
    log_format: Format,
    #[command(subcommand)]
    part: Part,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Lines for people
    Text,
    /// Each line an object, for what collects logs
    Json,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Plan for all nodes; of several, one at a time
    Controller {
        /// What it is called among several, and no other is
        #[arg(long, env = "POD_NAME")]
        identity: Option<String>,
        /// The Lease that is held by the one that works, in the client's own namespace
        #[arg(long, default_value = "capsule-controller")]
        lease: String,
        /// The Prometheus that rollouts may ask
        #[arg(long, env = "PROMETHEUS", value_name = "http://HOST[:PORT]")]
        prometheus: Option<String>,
        /// Where /metrics, /livez and /readyz are served
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
    },
    /// Serve one node, beside its capsuled
    Agent {
        /// The node's name in the cluster
        #[arg(long, env = "NODE_NAME")]
        node: String,
        /// capsuled's socket
        #[arg(long, value_name = "PATH", default_value = "/run/capsule/capsuled.sock")]
        socket: PathBuf,
        /// Where /metrics, /livez and /readyz are served
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
    },
    /// Serve one node's storage driver (CSI), beside its capsuled
    Csi(Csi),
    /// Print the custom resource definitions, as YAML
    Crds,
}

#[derive(Debug, Args)]
struct Csi {
    /// Where the driver is served
    #[arg(long, env = "CSI_ENDPOINT", value_name = "PATH")]
    endpoint: PathBuf,
    /// capsuled's socket
    #[arg(long, value_name = "PATH", default_value = "/run/capsule/capsuled.sock")]
    socket: PathBuf,
    /// The node's name in the cluster
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Where the kubelet finds it: a socket in its plugins_registry
    #[arg(long, value_name = "PATH", requires = "kubelet_endpoint")]
    registration: Option<PathBuf>,
    /// The driver's socket, as the kubelet sees it
    #[arg(long, value_name = "PATH", requires = "registration")]
    kubelet_endpoint: Option<PathBuf>,
    /// Volumes that Kubernetes provisioned have the version that their PersistentVolumes say
    #[arg(long)]
    current_versions: bool,
    /// Where /metrics, /livez and /readyz are served
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
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
    log(cli.log_format);
    let client = async || Client::try_default().await.context("the API server: no configuration of it");
    match cli.part {
        Part::Controller { identity, lease, prometheus, listen } => {
            let (client, meters) = (client().await?, meters("controller", listen).await?);
            let identity = identity.unwrap_or_else(own_name);
            let prometheus = prometheus.filter(|text| !text.is_empty()).as_deref().map(server).transpose()?;
            let work = cluster::run(client.clone(), prometheus, meters.clone());
            Box::pin(Election::new(client, &lease, identity, meters).lead(work, ended())).await
        }
        Part::Agent { node, socket, listen } => {
            let (client, meters) = (client().await?, meters("agent", listen).await?);
            tokio::select! {
                result = agent::run(client, agent::Settings { node, socket }, meters) => result,
                () = ended() => Ok(()),
            }
        }
        Part::Csi(csi) => {
            let client = if csi.current_versions { Some(client().await?) } else { None };
            let settings = csi::Settings {
                endpoint: csi.endpoint,
                socket: csi.socket,
                node: csi.node,
                registration: csi.registration.zip(csi.kubelet_endpoint),
            };
            csi::run(settings, client, meters("csi", csi.listen).await?, ended()).await
        }
        Part::Crds => Ok(()),
    }
}

fn log(format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match format {
        Format::Text => lines.init(),
        Format::Json => lines.json().flatten_event(true).init(),
    }
}

/// Those of a part, served where somebody wants them.
async fn meters(part: &str, listen: Option<SocketAddr>) -> anyhow::Result<Meters> {
    let meters = Meters::new(part);
    if let Some(address) = listen {
        health::serve(address, meters.clone()).await?;
    }
    Ok(meters)
}

/// No other process of this machine has it.
fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), std::process::id())
}

fn server(text: &str) -> anyhow::Result<Uri> {
    let uri: Uri = text.parse().with_context(|| format!("--prometheus {text}"))?;
    let is_plain = (uri.scheme_str(), uri.query()) == (Some("http"), None) && uri.host().is_some();
    anyhow::ensure!(is_plain, "--prometheus {text}: not http://HOST[:PORT]");
    Ok(uri)
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
