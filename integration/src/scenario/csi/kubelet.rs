//! What befalls a driver on a node: the kubelet finds it, refuses it, and starts it again; capsuled goes and comes; the API server is away.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use capsule_proto::csi::registration::registration_client::RegistrationClient;
use capsule_proto::csi::registration::{InfoRequest, RegistrationStatus};
use capsule_proto::csi::v1::ProbeRequest;
use capsule_proto::csi::v1::volume_capability::access_mode::Mode;
use tonic::Code;

use super::driver::{Driver, ENDPOINT, REGISTRATION, asked, command, connect, published, refused, runtime};
use crate::event::Reporter;
use crate::scenario::capsulectl::done;
use crate::scenario::world::{World, log_of, until};

const AT: &str = "/vol/kubelet";
const KUBECONFIG: &str = "/tmp/csi-kubeconfig";
const AUTHORITY: &str = "/tmp/csi-authority";

pub fn cases(reporter: &mut Reporter, driver: &mut Driver, world: &mut World) {
    reporter.check("the kubelet finds it by its socket, and registers it", || registered(driver));
    reporter.check("a second driver on its sockets is refused, and one that was killed is replaced", || {
        replaced(driver)
    });
    reporter.check("the driver is killed: what is mounted stays, and is taken away by the next", || {
        killed(driver)
    });
    reporter.check("capsuled is killed: calls say so, what is mounted stays, and then all goes on", || {
        capsuled_killed(driver, world)
    });
    reporter.check(
        "a PersistentVolume says which version it has, and while the API server is away its context does",
        || current(driver),
    );
}

fn registered(driver: &Driver) -> Result<String> {
    let runtime = runtime()?;
    let mut kubelet = RegistrationClient::new(connect(&runtime, REGISTRATION));
    let info = runtime.block_on(kubelet.get_info(InfoRequest {}))?.into_inner();
    ensure!(info.r#type == "CSIPlugin" && info.name == "csi.resourcecapsules.io", "{info:?}");
    ensure!(info.endpoint == ENDPOINT && info.supported_versions == ["1.0.0"], "{info:?}");
    let good = RegistrationStatus { plugin_registered: true, error: String::new() };
    runtime.block_on(kubelet.notify_registration_status(good))?;
    driver.wait(async { driver.identity().probe(ProbeRequest {}).await })?;
    Ok(format!("{} {}", info.r#type, info.supported_versions.join(" ")))
}

fn replaced(driver: &mut Driver) -> Result<String> {
    let more = ["--registration", REGISTRATION, "--kubelet-endpoint", ENDPOINT, "--listen", "127.0.0.1:9474"];
    let second = command(&[]).get_args().map(|arg| arg.to_owned()).collect::<Vec<_>>();
    let mut other = std::process::Command::new("timeout");
    // Its own address: it is the sockets that are taken.
    let at = second.iter().position(|arg| arg == "--listen").context("--listen")?;
    other.arg("10").arg("setpriv").args(&second[..at]).args(more).env("PATH", crate::scenario::world::path());
    let output = other.output().context("start a second driver")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1) && said.contains("another process serves"),
        "{}: {said}",
        output.status
    );
    driver.wait(async { driver.identity().probe(ProbeRequest {}).await })?;
    driver.restart()?;
    // The kubelet refuses it: it ends, and is started again by whoever runs it.
    let runtime = runtime()?;
    let mut kubelet = RegistrationClient::new(connect(&runtime, REGISTRATION));
    let bad = RegistrationStatus { plugin_registered: false, error: "no such label".to_owned() };
    let _ = runtime.block_on(kubelet.notify_registration_status(bad)); // it may end before it answers
    until("gone: the sockets", || Ok(!Path::new(ENDPOINT).exists() && !Path::new(REGISTRATION).exists()))?;
    // It says so last.
    until("said: why it ends", || {
        let log = fs::read_to_string(log_of("capsule-csi")).context("read the log")?;
        Ok(log.contains("has not registered csi.resourcecapsules.io: no such label"))
    })?;
    driver.restart()?;
    Ok(said.trim().lines().last().unwrap_or_default().to_owned())
}

fn killed(driver: &mut Driver) -> Result<String> {
    let volume = driver.create(asked("pvc-stays", Mode::SingleNodeWriter, &[]))?;
    driver.publish(published(&volume, AT, Mode::SingleNodeWriter))?;
    fs::write(format!("{AT}/kept"), "kept").context("write")?;
    driver.restart()?;
    ensure!(fs::read_to_string(format!("{AT}/kept")).context("read")? == "kept", "other files");
    driver.publish(published(&volume, AT, Mode::SingleNodeWriter))?;
    ensure!(driver.create(asked("pvc-stays", Mode::SingleNodeWriter, &[]))? == volume, "another volume");
    driver.unpublish(&volume.volume_id, AT)?;
    driver.delete(&volume.volume_id)?;
    Ok(String::new())
}

fn capsuled_killed(driver: &Driver, world: &mut World) -> Result<String> {
    let volume = driver.create(asked("pvc-stays", Mode::SingleNodeWriter, &[]))?;
    driver.publish(published(&volume, AT, Mode::SingleNodeWriter))?;
    fs::write(format!("{AT}/kept"), "kept").context("write")?;
    world.kill_capsuled()?;
    let ready = driver.wait(async { driver.identity().probe(ProbeRequest {}).await })?.ready;
    ensure!(ready == Some(false), "{ready:?}");
    let said =
        refused("a volume", driver.create(asked("pvc-new", Mode::SingleNodeWriter, &[])), Code::Unavailable)?;
    refused(
        "a mount",
        driver.publish(published(&volume, "/vol/other", Mode::SingleNodeMultiWriter)),
        Code::Unavailable,
    )?;
    refused("an end", driver.unpublish(&volume.volume_id, AT), Code::Unavailable)?;
    ensure!(fs::read_to_string(format!("{AT}/kept")).context("read")? == "kept", "other files");
    world.restart_capsuled()?;
    until("ready again", || {
        Ok(driver.wait(async { driver.identity().probe(ProbeRequest {}).await })?.ready == Some(true))
    })?;
    driver.publish(published(&volume, AT, Mode::SingleNodeWriter))?;
    driver.publish(published(&volume, "/vol/other", Mode::SingleNodeMultiWriter))?;
    ensure!(fs::read_to_string("/vol/other/kept").context("read")? == "kept", "other files");
    for at in [AT, "/vol/other"] {
        driver.unpublish(&volume.volume_id, at)?;
    }
    driver.delete(&volume.volume_id)?;
    world.wait_for_snapshotter()?;
    Ok(said)
}

/// An API server that has one PersistentVolume.
fn serve(listener: &TcpListener, answers: usize) -> Result<Vec<String>> {
    let object = r#"{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{"name":"pvc-moved","annotations":{"csi.resourcecapsules.io/version":"2"}}}"#;
    let mut asked = Vec::new();
    for _ in 0..answers {
        let (mut stream, _) = listener.accept().context("accept")?;
        let mut buffer = [0; 8192];
        let count = stream.read(&mut buffer).context("read")?;
        let head = String::from_utf8_lossy(&buffer[..count]).into_owned();
        asked.push(head.lines().next().unwrap_or_default().to_owned());
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{object}",
            object.len()
        );
        stream.write_all(answer.as_bytes()).context("answer")?;
    }
    Ok(asked)
}

fn current(driver: &mut Driver) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let address = listener.local_addr().context("an address")?;
    // A client of Kubernetes wants an authority, also where it needs none, and this machine has none of its own.
    done(&["certs", "init", "--dir", AUTHORITY, "--host", "127.0.0.1"])?;
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
         users: [{{name: a, user: {{}}}}]\nclusters: [{{name: a, cluster: {{server: \"http://{address}\", certificate-authority: {AUTHORITY}/ca.pem}}}}]\n"
    );
    fs::write(KUBECONFIG, config).context("write a configuration")?;
    driver.kill()?;
    let mut command =
        command(&["--registration", REGISTRATION, "--kubelet-endpoint", ENDPOINT, "--current-versions"]);
    *driver = Driver::start_by(command.env("KUBECONFIG", KUBECONFIG))?;
    let request = asked("pvc-moved", Mode::MultiNodeReaderOnly, &[("capsule", "tools"), ("version", "1")]);
    let volume = driver.create(request)?;
    let server = std::thread::spawn(move || serve(&listener, 1));
    let version = |driver: &Driver| -> Result<String> {
        driver.publish(published(&volume, AT, Mode::MultiNodeReaderOnly))?;
        let version = fs::read_to_string(format!("{AT}/version")).context("read")?;
        driver.unpublish(&volume.volume_id, AT)?;
        Ok(version)
    };
    let seen = version(driver)?;
    ensure!(seen == "2", "it has {seen}");
    let asked = server.join().map_err(|_| anyhow!("a thread"))??;
    ensure!(asked[0].starts_with("GET /api/v1/persistentvolumes/pvc-moved"), "{asked:?}");
    // Nobody listens any more.
    let seen = version(driver)?;
    ensure!(seen == "1", "it has {seen}");
    driver.delete(&volume.volume_id)?;
    driver.restart()?;
    Ok(asked[0].clone())
}
