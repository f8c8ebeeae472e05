//! `[remote]`: how clients elsewhere are served.

use std::net::SocketAddr;

use super::{
    Config,
    parse::{Reader, Value, parse_path},
};

impl Reader<'_> {
    pub(super) fn remote(&mut self, config: &mut Config, value: &Value<'_>) {
        let remote = &mut config.remote;
        for (key, value) in self.table("remote", value) {
            match key.get_ref().as_ref() {
                "address" => self.set(&mut remote.address, "remote.address", value, parse_address),
                "certificate" => self.set(&mut remote.certificate, "remote.certificate", value, parse_path),
                "key" => self.set(&mut remote.key, "remote.key", value, parse_path),
                "client_ca" => self.set(&mut remote.client_ca, "remote.client_ca", value, parse_path),
                "calls_per_second" => {
                    self.count(&mut remote.calls_per_second, "remote.calls_per_second", value);
                }
                "burst" => self.count(&mut remote.burst, "remote.burst", value),
                "connections" => self.count(&mut remote.connections, "remote.connections", value),
                _ => self.unknown(
                    key.span(),
                    &format!("remote.{}", key.get_ref()),
                    "address, certificate, key, client_ca, calls_per_second, burst and connections",
                ),
            }
        }
    }

    fn count(&mut self, field: &mut u16, name: &str, value: &Value<'_>) {
        if let Some(count) = self.integer(name, value, 1..=10_000) {
            *field = count;
        }
    }
}

fn parse_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "none" {
        return Ok(None);
    }
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() > 0);
    address
        .map(Some)
        .ok_or_else(|| "write an address and a port, as 10.0.0.5:7443 or [::]:7443, or \"none\"".to_owned())
}
