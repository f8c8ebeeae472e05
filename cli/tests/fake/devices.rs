//! `capsule.v1.Devices` of the fake: two devices, of which one cannot be had, and a spec that is none.

use capsule_proto::capsule::v1;
use capsule_proto::capsule::v1::devices_server::Devices;
use tonic::{Request, Response, Status};

use super::{Asked, Service};

#[tonic::async_trait]
impl Devices for Service {
    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        self.heard(Asked::Devices(request.into_inner()));
        let node = |path: &str, minor| v1::DeviceNode {
            path: path.into(),
            host_path: path.into(),
            r#type: "c".into(),
            major: 195,
            minor,
            access: "rw".into(),
        };
        let gpu = v1::Device {
            name: "nvidia.com/gpu=0".into(),
            spec: "/var/run/cdi/nvidia.yaml".into(),
            nodes: vec![node("/dev/nvidia0", 0), node("/dev/dri/card1", 1)],
            mounts: 30,
            hooks: 2,
            environment: vec!["NVIDIA_VISIBLE_DEVICES".into()],
            used_by: vec![v1::DeviceUse {
                namespace: "default".into(),
                container: "web".into(),
                attachment_id: "a1".into(),
            }],
            ..v1::Device::default()
        };
        let clock = v1::Device {
            name: "example.com/clock=rtc".into(),
            spec: "/etc/cdi/clock.json".into(),
            unavailable: "cannot look at /dev/rtc9 on this node: No such file or directory (os error 2)"
                .into(),
            ..v1::Device::default()
        };
        let problem =
            v1::SpecProblem { path: "/etc/cdi/\x1b[2J.yaml".into(), reason: "it has no devices".into() };
        Ok(Response::new(v1::ListDevicesResponse { devices: vec![clock, gpu], problems: vec![problem] }))
    }
}
