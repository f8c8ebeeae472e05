//! Generates the wire types without `protoc`: protox parses for tonic, ttrpc-codegen has its own parser.

use std::{env, error::Error, fs, path::Path};

const VENDOR: &str = "../vendor-protos";
const OURS: &str = "proto";
const CONTAINERD: &str = "github.com/containerd/containerd/api";
const CONTAINERD_FILES: &[&str] = &[
    "services/snapshots/v1/snapshots.proto",
    "services/streaming/v1/streaming.proto",
    "services/transfer/v1/transfer.proto",
    "types/transfer/imagestore.proto",
    "types/transfer/importexport.proto",
    "types/transfer/progress.proto",
    "types/transfer/registry.proto",
    "types/transfer/streaming.proto",
    "services/containers/v1/containers.proto",
    "services/content/v1/content.proto",
    "services/diff/v1/diff.proto",
    "services/events/v1/events.proto",
    "services/images/v1/images.proto",
    "services/introspection/v1/introspection.proto",
    "services/leases/v1/leases.proto",
    "services/namespaces/v1/namespace.proto",
    "services/tasks/v1/tasks.proto",
    "services/version/v1/version.proto",
    "events/container.proto",
    "events/image.proto",
    "events/namespace.proto",
    "events/snapshot.proto",
    "events/task.proto",
];
/// What a task's metrics are on control groups of version 2.
const METRICS: &str = "github.com/containerd/cgroups/cgroup2/stats/metrics.proto";
/// The files of `capsule.v1`: one for each part of the API.
const CAPSULE: [&str; 13] = [
    "capsule/v1/budgets.proto",
    "capsule/v1/capsule.proto",
    "capsule/v1/collect.proto",
    "capsule/v1/devices.proto",
    "capsule/v1/events.proto",
    "capsule/v1/metrics.proto",
    "capsule/v1/signatures.proto",
    "capsule/v1/tags.proto",
    "capsule/v1/transfer.proto",
    "capsule/v1/tree.proto",
    "capsule/v1/uppers.proto",
    "capsule/v1/usage.proto",
    "capsule/v1/volumes.proto",
];
/// The kubelet's API of a container runtime.
const CRI: &str = "k8s.io/cri-api/pkg/apis/runtime/v1/api.proto";
/// The container storage interface, and by what a driver of it makes itself known to the kubelet.
const CSI: [&str; 2] = [
    "github.com/container-storage-interface/spec/csi.proto",
    "k8s.io/kubelet/pkg/apis/pluginregistration/v1/api.proto",
];
/// Both are served over ttrpc: the shim's service, and what the shim asks of capsuled.
const TTRPC: [&str; 2] = ["proto/capsule/hotplug/v1/hotplug.proto", "proto/capsule/node/v1/node.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={VENDOR}");
    println!("cargo:rerun-if-changed={OURS}");
    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        generate_grpc()?;
    }
    if env::var_os("CARGO_FEATURE_CRI").is_some() {
        let set = protox::compile([CRI], [VENDOR])?;
        tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(set)?;
    }
    if env::var_os("CARGO_FEATURE_CSI").is_some() {
        let set = protox::compile(CSI, [VENDOR])?;
        tonic_prost_build::configure().build_client(true).build_server(true).compile_fds(set)?;
    }
    if env::var_os("CARGO_FEATURE_HOTPLUG").is_some() {
        generate_ttrpc()?;
    }
    Ok(())
}

fn generate_grpc() -> Result<(), Box<dyn Error>> {
    let files: Vec<String> = CONTAINERD_FILES
        .iter()
        .map(|f| format!("{CONTAINERD}/{f}"))
        .chain([METRICS.to_owned()])
        .chain(CAPSULE.map(str::to_owned))
        .collect();
    let set = protox::compile(&files, [VENDOR, OURS])?;
    // containerd's streams carry messages by their names.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_fds_with_config(set, config)?;
    let mut own = protox::Compiler::new([VENDOR, OURS])?;
    let described = own.include_imports(true).open_files(CAPSULE)?.encode_file_descriptor_set();
    fs::write(Path::new(&env::var("OUT_DIR")?).join("capsule.v1.bin"), described)?;
    Ok(())
}

fn generate_ttrpc() -> Result<(), Box<dyn Error>> {
    let out = Path::new(&env::var("OUT_DIR")?).join("ttrpc");
    fs::create_dir_all(&out)?;
    ttrpc_codegen::Codegen::new()
        .inputs(TTRPC)
        .include(OURS)
        .out_dir(&out)
        .rust_protobuf()
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .customize(ttrpc_codegen::Customize { async_all: true, gen_mod: false, ..Default::default() })
        .run()?;
    strip_inner_attributes(&out)
}

/// The generated files open with inner attributes, which `include!` does not accept: they move to the module.
fn strip_inner_attributes(dir: &Path) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let kept: Vec<&str> =
            text.lines().filter(|l| !l.starts_with("#![") && !l.starts_with("//!")).collect();
        fs::write(&path, kept.join("\n"))?;
    }
    Ok(())
}
