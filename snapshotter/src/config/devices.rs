//! `[devices]`: where the node's devices are described.

use super::{
    Config,
    parse::{Reader, Value, parse_path},
};

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
                _ => {
                    let name = format!("devices.{}", key.get_ref());
                    self.unknown(key.span(), &name, "spec_dirs and refuse_foreign_programs");
                }
            }
        }
    }
}
