//! `[collect]`: when versions that nobody needs are removed.

use std::time::Duration;

use toml::de::DeValue;

use super::{
    Config,
    parse::{Reader, Value, article},
};
use crate::collect::Watermarks;

/// Both watermarks: above one the disk is emptied to the other.
#[derive(Default)]
struct Marks {
    high: u8,
    low: u8,
}

impl Reader<'_> {
    pub(super) fn collect(&mut self, config: &mut Config, value: &Value<'_>) {
        let collect = &mut config.collect;
        let mut marks = Marks::default();
        for (key, value) in self.table("collect", value) {
            match key.get_ref().as_ref() {
                "interval" => self.set(&mut collect.interval, "collect.interval", value, parse_duration),
                "keep_last" => {
                    if let Some(count) = self.integer("collect.keep_last", value, 0..=10_000) {
                        collect.rules.keep_last = usize::from(count);
                    }
                }
                "keep_tagged" => self.flag(&mut collect.rules.keep_tagged, "collect.keep_tagged", value),
                "older_than" => {
                    let older_than = self.value("collect.older_than", value, parse_duration);
                    collect.rules.older_than = older_than.or(collect.rules.older_than);
                }
                "high_watermark" => marks.high = self.percent("collect.high_watermark", value),
                "low_watermark" => marks.low = self.percent("collect.low_watermark", value),
                _ => self.unknown(
                    key.span(),
                    &format!("collect.{}", key.get_ref()),
                    "interval, keep_last, keep_tagged, older_than, high_watermark and low_watermark",
                ),
            }
        }
        match marks {
            Marks { high: 0, .. } => {}
            Marks { high, low } if low < high && low > 0 => {
                collect.watermarks = Some(Watermarks { high, low });
            }
            Marks { high, .. } => self.mistake(
                value.span(),
                format!(
                    "collect.low_watermark must be above 0 and below collect.high_watermark, which is {high}"
                ),
            ),
        }
    }

    fn percent(&mut self, name: &str, value: &Value<'_>) -> u8 {
        let percent = self.integer(name, value, 0..=100);
        percent.and_then(|percent| u8::try_from(percent).ok()).unwrap_or_default()
    }

    pub(super) fn integer(
        &mut self,
        name: &str,
        value: &Value<'_>,
        range: std::ops::RangeInclusive<u16>,
    ) -> Option<u16> {
        let DeValue::Integer(integer) = value.get_ref() else {
            self.mistake(
                value.span(),
                format!("{name} is {}, and must be an integer", article(value.get_ref())),
            );
            return None;
        };
        let text = integer.as_str();
        let number = text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.mistake(value.span(), format!("{name} is {text}, and must be from {least} to {most}"));
        }
        number
    }
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}: write a time as 12h or 7days, or 0s"))
}
