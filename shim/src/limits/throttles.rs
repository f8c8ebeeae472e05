//! `io.max`: rates of devices. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::value::{MAX_AMOUNT, number};

/// What a device may do, by the keys of `io.max`. What is not there is not limited.
pub type Throttles = BTreeMap<(u32, u32), BTreeMap<IoKey, u64>>;

/// A key of `io.max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoKey {
    /// Bytes read in a second.
    Rbps,
    /// Bytes written.
    Wbps,
    /// Reads.
    Riops,
    /// Writes.
    Wiops,
}

const KEYS: [(&str, IoKey); 4] =
    [("rbps", IoKey::Rbps), ("wbps", IoKey::Wbps), ("riops", IoKey::Riops), ("wiops", IoKey::Wiops)];

/// The name of a key.
pub fn key_name(key: IoKey) -> &'static str {
    KEYS.iter().find(|(_, known)| *known == key).map_or("", |(name, _)| name)
}

/// Lines of `io.max`. The kernel shows keys without limit as `max`; of one that is asked for, that is nothing.
pub fn parse_io(text: &str, shown: bool) -> Result<Throttles, &'static str> {
    const SHAPE: &str = "it is no \"MAJ:MIN KEY=N\" with keys of rbps, wbps, riops and wiops";
    let mut all = Throttles::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|device| device.split_once(':')).ok_or(SHAPE)?;
        let part = |part: &str| number(part).ok().and_then(|part| u32::try_from(part).ok()).ok_or(SHAPE);
        let device = (part(device.0)?, part(device.1)?);
        let mut keys = BTreeMap::new();
        for word in words {
            let (name, amount) = word.split_once('=').ok_or(SHAPE)?;
            let Some((_, key)) = KEYS.iter().find(|(known, _)| *known == name) else { return Err(SHAPE) };
            if shown && amount == "max" {
                continue;
            }
            let amount = match shown {
                // The kernel takes more than can be asked for here.
                true => amount.parse::<u64>().map_err(|_| SHAPE)?.min(MAX_AMOUNT),
                false => number(amount).map_err(|_| SHAPE)?,
            };
            if !shown && amount == 0 {
                return Err("0 is no rate");
            }
            if keys.insert(*key, amount).is_some() {
                return Err("it names a key twice");
            }
        }
        if keys.is_empty() && shown {
            continue;
        }
        if keys.is_empty() || all.insert(device, keys).is_some() {
            return Err(if all.contains_key(&device) { "it names a device twice" } else { SHAPE });
        }
    }
    if all.is_empty() && !shown { Err(SHAPE) } else { Ok(all) }
}

/// Keys of JSON are text.
pub mod as_text {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    use super::{Throttles, parse_io};
    use crate::limits::Value;

    pub fn serialize<S: Serializer>(value: &Throttles, to: S) -> Result<S::Ok, S::Error> {
        Value::Io(value.clone()).to_string().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Throttles, D::Error> {
        parse_io(&String::deserialize(from)?, true).map_err(D::Error::custom)
    }
}
