//! Wire types, generated at build time from `vendor-protos/` (containerd, verbatim) and `proto/` (ours).
//!
//! Nothing but generated code lives here: no I/O, no conversion, no validation.
#![allow(warnings, clippy::all)] // generated: judged by its generators, not by our lints

/// containerd's gRPC services, in the modules of their protobuf packages.
#[cfg(feature = "grpc")]
pub mod containerd {
    /// Shared messages.
    pub mod types {
        tonic::include_proto!("containerd.types");
        /// What the transfer service is told by `Any`.
        pub mod transfer {
            tonic::include_proto!("containerd.types.transfer");
        }
    }
    /// `containerd.v1.types`: tasks' processes.
    pub mod v1 {
        /// Task types.
        pub mod types {
            tonic::include_proto!("containerd.v1.types");
        }
    }
    /// Events published on containerd's stream, by the types their `Any` names.
    pub mod events {
        tonic::include_proto!("containerd.events");
    }
    /// A task's metrics on control groups of version 2.
    pub mod cgroups {
        tonic::include_proto!("io.containerd.cgroups.v2");
    }
    /// gRPC services.
    pub mod services {
        macro_rules! service {
            ($($name:ident = $package:literal),* $(,)?) => {$(
                #[doc = concat!("`", $package, "`.")]
                pub mod $name {
                    /// Version 1.
                    pub mod v1 {
                        tonic::include_proto!($package);
                    }
                }
            )*};
        }
        service! {
            containers = "containerd.services.containers.v1",
            content = "containerd.services.content.v1",
            diff = "containerd.services.diff.v1",
            events = "containerd.services.events.v1",
            images = "containerd.services.images.v1",
            introspection = "containerd.services.introspection.v1",
            leases = "containerd.services.leases.v1",
            namespaces = "containerd.services.namespaces.v1",
            snapshots = "containerd.services.snapshots.v1",
            streaming = "containerd.services.streaming.v1",
            tasks = "containerd.services.tasks.v1",
            transfer = "containerd.services.transfer.v1",
            version = "containerd.services.version.v1",
        }
    }
}

/// `google.rpc`.
#[cfg(feature = "grpc")]
pub mod google {
    /// Status with details.
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

/// `runtime.v1`: what the kubelet asks of containerd (CRI). Messages alone: the tests call by the methods' names.
#[cfg(feature = "cri")]
pub mod cri {
    /// Version 1.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
    }
}

/// The container storage interface.
#[cfg(feature = "csi")]
pub mod csi {
    /// `csi.v1`: what the kubelet, and whoever else mounts for others, asks of a storage driver.
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
    /// By what a driver makes itself known to the kubelet.
    pub mod registration {
        tonic::include_proto!("pluginregistration");
    }
}

/// `capsule.v1`: capsuled's API.
#[cfg(feature = "grpc")]
pub mod capsule {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("capsule.v1");
        /// All of it and what it imports, as a `google.protobuf.FileDescriptorSet`: for reflection, and for tests that no
        /// call is forgotten.
        pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/capsule.v1.bin"));
    }
}

/// `capsule.hotplug.v1`: the shim's hot-plug service, over ttrpc.
#[cfg(feature = "hotplug")]
pub mod hotplug {
    mod hotplug {
        include!(concat!(env!("OUT_DIR"), "/ttrpc/hotplug.rs"));
    }
    mod hotplug_ttrpc {
        include!(concat!(env!("OUT_DIR"), "/ttrpc/hotplug_ttrpc.rs"));
    }
    pub use self::hotplug::*;
    pub use self::hotplug_ttrpc::{Hotplug, HotplugClient, create_hotplug};
}

/// `capsule.node.v1`: what a shim asks of capsuled, over ttrpc.
#[cfg(feature = "hotplug")]
pub mod node {
    // Named by the generated code: nodes and hooks of devices are the same messages.
    use super::hotplug;
    mod node {
        include!(concat!(env!("OUT_DIR"), "/ttrpc/node.rs"));
    }
    mod node_ttrpc {
        include!(concat!(env!("OUT_DIR"), "/ttrpc/node_ttrpc.rs"));
    }
    pub use self::node::*;
    pub use self::node_ttrpc::{Node, NodeClient, create_node};
}
