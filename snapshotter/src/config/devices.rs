//! `[devices]`: where the node's devices are described.

use super::{
    Config,
    parse::{Reader, Value, parse_path},
};
use crate::devices::DeviceName;

impl Reader<'_> {
    pub(super) fn devices(&mut self, config: &mut Config, value: &Value<'_>) {
        for (key, value) in self.table("devices", value) {
            match key.get_ref().as_ref() {
                "spec_dirs" => {
                    config.devices.spec_dirs = self.list("devices.spec_dirs", value, parse_path);
                }
                "refuse_foreign_programs" => {
                    let refuse = &mut config.devices.refuse_foreign;
                    self.flag(refuse, "devices.refuse_foreign_programs", value);
                }
                "pods_may_name" => {
                    let parse = |text: &str| match text {
                        "*" => Ok(text.to_owned()),
                        kind => {
                            DeviceName::new(kind, "any").map(|name| name.kind().to_owned()).map_err(|_| {
                                "write the kind of devices, as vendor.com/gpu, or \"*\" for all".to_owned()
                            })
                        }
                    };
                    config.devices.pods_may_name = self.list("devices.pods_may_name", value, parse);
                }
                _ => {
                    let name = format!("devices.{}", key.get_ref());
                    self.unknown(key.span(), &name, "spec_dirs, refuse_foreign_programs and pods_may_name");
                }
            }
        }
    }
}
