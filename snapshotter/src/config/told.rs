//! `[log]` and `[traces]`: what capsuled tells of itself, and to whom.

use capsule_telemetry::Endpoint;

use super::{
    Config, Format, Level,
    parse::{Reader, Value},
};

impl Reader<'_> {
    pub(super) fn log(&mut self, config: &mut Config, value: &Value<'_>) {
        for (key, value) in self.table("log", value) {
            match key.get_ref().as_ref() {
                "level" => self.set(&mut config.log.level, "log.level", value, parse_level),
                "format" => self.set(&mut config.log.format, "log.format", value, parse_format),
                _ => self.unknown(key.span(), &format!("log.{}", key.get_ref()), "level and format"),
            }
        }
    }

    pub(super) fn traces(&mut self, config: &mut Config, value: &Value<'_>) {
        for (key, value) in self.table("traces", value) {
            match key.get_ref().as_ref() {
                "endpoint" => {
                    self.set(&mut config.traces.endpoint, "traces.endpoint", value, parse_endpoint);
                }
                "share" => self.set(&mut config.traces.percent, "traces.share", value, parse_share),
                _ => self.unknown(key.span(), &format!("traces.{}", key.get_ref()), "endpoint and share"),
            }
        }
    }
}

fn parse_level(text: &str) -> Result<Level, String> {
    match Level::NAMES.iter().find(|(name, _)| *name == text) {
        Some((_, level)) => Ok(*level),
        None => Err("it must be error, warn, info, debug or trace".to_owned()),
    }
}

fn parse_format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err("it must be text or json".to_owned()),
    }
}

fn parse_endpoint(text: &str) -> Result<Option<Endpoint>, String> {
    match text {
        "none" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| "write http://HOST:PORT, unix:/PATH, or none for no collector".to_owned()),
    }
}

fn parse_share(text: &str) -> Result<u8, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
    percent.filter(|percent| *percent <= 100).ok_or_else(|| "write a share as 10%, at most 100%".to_owned())
}
