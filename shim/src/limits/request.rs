//! Updates of a task as containerd sends them, OCI's `LinuxResources`: what they make of a container's own limits, and what the runtime
//! is told instead. Pure.
//!
//! A runtime is told the effective limit in the place of the container's own: limits that kill are never too low, not even between two
//! writes. What goes into the fields of OCI stays in runc's state, so that a later `runc update` of something else writes it again;
//! `unified` does not.

use serde_json::{Map, Value as Json, json};

use super::{
    change::Amounts,
    error::LimitError,
    file::File,
    throttles::{IoKey, Throttles},
    value::{PERIOD, Value, cpus},
};

/// `LinuxResources`.
pub type Request = Map<String, Json>;

/// Limits that a request names by something else: what a runtime makes of it has to be looked at afterwards.
#[must_use]
pub fn indirect(request: &Request) -> Vec<File> {
    let set = |section: &str, field: &str| number(request, section, field).is_some();
    let mut files = Vec::new();
    if set("cpu", "shares") && unified(request, &File::CpuWeight).is_none() {
        files.push(File::CpuWeight);
    }
    for file in [File::IoWeight, File::IoBfqWeight] {
        if set("blockIO", "weight") && unified(request, &file).is_none() {
            files.push(file);
        }
    }
    files
}

/// What becomes of a container's own limits: those of `own` that the request names have its values. 0 names nothing, as runc has it.
///
/// # Errors
/// [`LimitError::Request`].
pub fn merge(own: &Amounts, request: &Request) -> Result<Amounts, LimitError> {
    let mut merged = own.clone();
    for (file, value) in &mut merged {
        if let Some(text) = unified(request, file) {
            *value = match (&*value, read(file, "unified", text)?) {
                // The kernel changes the keys that are named.
                (Value::Io(before), Value::Io(now)) => Value::Io(merge_io(before, text, &now)),
                (_, now) => now,
            };
            continue;
        }
        match file {
            File::MemoryMax => replace_number(value, number(request, "memory", "limit")),
            File::MemoryLow => replace_number(value, number(request, "memory", "reservation")),
            File::PidsMax => replace_number(value, number(request, "pids", "limit")),
            File::CpuMax => replace_quota(value, request),
            File::CpusetCpus => {
                if let Some(text) =
                    field(request, "cpu", "cpus").and_then(Json::as_str).filter(|text| !text.is_empty())
                {
                    *value = Value::Cpus(cpus(text).ok_or_else(|| unknown("cpu.cpus", text))?);
                }
            }
            File::Hugetlb(size) => replace_number(value, hugepages(request, size)),
            File::IoMax => merge_throttles(value, request),
            File::MemoryHigh | File::MemorySwapMax | File::CpuWeight | File::IoWeight | File::IoBfqWeight => {
            }
        }
    }
    merge_swap(&mut merged, request);
    Ok(merged)
}

/// What runtimes are told where there is no word for it.
pub struct Words<'a> {
    /// All CPUs.
    pub all_cpus: &'a str,
    /// No quota, in a period.
    pub no_quota: &'a dyn Fn(u64) -> i64,
}

/// What the runtime is told: the request with the `effective` limits in the place of what it says of them. `now` is what holds of those
/// that are not changed: memory and swap are told together.
#[must_use]
pub fn patch(request: &Request, effective: &Amounts, now: &Amounts, words: &Words<'_>) -> Request {
    let mut told = request.clone();
    for file in effective.keys() {
        if let Some(unified) = told.get_mut("unified").and_then(Json::as_object_mut) {
            unified.remove(&file.to_string());
        }
    }
    for (file, value) in effective {
        match (file, value) {
            (File::MemoryLow, Value::Number(n)) => {
                set(&mut told, "memory", "reservation", json!(signed(*n)));
                // runc takes 0 for "not named".
                set(&mut told, "unified", &file.to_string(), json!(value.to_string()));
            }
            (File::PidsMax, Value::Number(n)) => set(&mut told, "pids", "limit", json!(signed(*n))),
            (File::CpuMax, Value::Quota { quota, period }) => {
                let quota = quota.map_or_else(|| (words.no_quota)(*period), |quota| signed(Some(quota)));
                set(&mut told, "cpu", "quota", json!(quota));
                set(&mut told, "cpu", "period", json!(period));
            }
            (File::CpusetCpus, Value::Cpus(cpus)) => {
                // Runtimes take "" for "not named". All CPUs are told, and the file is emptied afterwards.
                let list = if cpus.is_empty() { words.all_cpus.to_owned() } else { value.to_string() };
                set(&mut told, "cpu", "cpus", json!(list));
            }
            (File::IoWeight, _) => set(&mut told, "unified", "io.weight", json!(format!("default {value}"))),
            (File::CpuWeight | File::MemoryHigh | File::IoBfqWeight, _) => {
                set(&mut told, "unified", &file.to_string(), json!(value.to_string()));
            }
            // Neither do runtimes keep them, nor does systemd know of them: written by us.
            _ => {}
        }
    }
    patch_memory(&mut told, effective, now);
    told
}

/// Whether a runtime is told of a file.
#[must_use]
pub fn is_told(file: &File) -> bool {
    !matches!(file, File::IoMax | File::Hugetlb(_))
}

/// Memory, and swap as OCI counts it: with the memory. Both are told when either changes, or runc refuses more memory than there was
/// memory and swap before.
fn patch_memory(told: &mut Request, effective: &Amounts, now: &Amounts) {
    if !effective.contains_key(&File::MemoryMax) && !effective.contains_key(&File::MemorySwapMax) {
        return;
    }
    let asked = number(told, "memory", "limit").map(unsigned);
    let of = |file| match effective.get(&file).or_else(|| now.get(&file)) {
        Some(Value::Number(n)) => Some(*n),
        _ => None,
    };
    let own = if effective.contains_key(&File::MemoryMax) { None } else { asked };
    let Some(memory) = own.or_else(|| of(File::MemoryMax)) else { return };
    set(told, "memory", "limit", json!(signed(memory)));
    // No swap.max: this kernel has no swap, or does not count it. runc may have some in its state all the same.
    let swap = of(File::MemorySwapMax).flatten();
    let both = match (memory, swap) {
        (Some(memory), Some(swap)) => i64::try_from(memory.saturating_add(swap)).unwrap_or(-1),
        _ => -1,
    };
    set(told, "memory", "swap", json!(both));
    if swap.is_some() {
        // With memory unlimited, OCI has no word for it; and runc with systemd tells systemd of no 0 otherwise.
        let text = Value::Number(swap).to_string();
        set(told, "unified", "memory.swap.max", json!(text));
    }
}

fn merge_swap(merged: &mut Amounts, request: &Request) {
    if unified(request, &File::MemorySwapMax).is_some() || !merged.contains_key(&File::MemorySwapMax) {
        return;
    }
    let Some(both) = number(request, "memory", "swap") else { return };
    let limit = number(request, "memory", "limit").map(unsigned).or(match merged.get(&File::MemoryMax) {
        Some(Value::Number(own)) => Some(*own),
        _ => None,
    });
    let swap = match (unsigned(both), limit) {
        (None, _) => Some(None),
        (Some(both), Some(Some(limit))) => both.checked_sub(limit).map(Some),
        _ => None,
    };
    if let Some(swap) = swap {
        merged.insert(File::MemorySwapMax, Value::Number(swap));
    }
}

fn set(request: &mut Request, section: &str, field: &str, value: Json) {
    let section = request.entry(section).or_insert_with(|| json!({}));
    if !section.is_object() {
        *section = json!({});
    }
    section[field] = value;
}

fn field<'a>(request: &'a Request, section: &str, field: &str) -> Option<&'a Json> {
    request.get(section)?.get(field)
}

/// A number that names something.
fn number(request: &Request, section: &str, name: &str) -> Option<i64> {
    field(request, section, name)?.as_i64().filter(|number| *number != 0)
}

fn unified<'a>(request: &'a Request, file: &File) -> Option<&'a str> {
    field(request, "unified", &file.to_string())?.as_str().filter(|text| !text.is_empty())
}

fn unknown(field: &str, value: &str) -> LimitError {
    LimitError::Request { field: field.to_owned(), value: value.to_owned() }
}

fn read(file: &File, field: &str, text: &str) -> Result<Value, LimitError> {
    Value::read(file, text).ok_or_else(|| unknown(&format!("{field}[{file}]"), text))
}

fn signed(number: Option<u64>) -> i64 {
    number.and_then(|number| i64::try_from(number).ok()).unwrap_or(-1)
}

fn unsigned(number: i64) -> Option<u64> {
    u64::try_from(number).ok()
}

fn replace_number(value: &mut Value, named: Option<i64>) {
    if let Some(named) = named {
        *value = Value::Number(unsigned(named));
    }
}

/// Quota and period can be named one without the other.
fn replace_quota(value: &mut Value, request: &Request) {
    let Value::Quota { quota: own, period: of } = *value else { return };
    let (quota, period) =
        (number(request, "cpu", "quota"), number(request, "cpu", "period").and_then(unsigned));
    let period = period.unwrap_or(if of == 0 { PERIOD } else { of });
    *value = Value::Quota { quota: quota.map_or(own, unsigned), period };
}

fn hugepages(request: &Request, size: &str) -> Option<i64> {
    let limits = request.get("hugepageLimits")?.as_array()?;
    let of = |limit: &&Json| limit["pageSize"].as_str() == Some(size);
    // 0 is a limit: it is only there when it is named.
    limits.iter().rev().find(of)?["limit"].as_i64()
}

const THROTTLES: [(&str, IoKey); 4] = [
    ("throttleReadBpsDevice", IoKey::Rbps),
    ("throttleWriteBpsDevice", IoKey::Wbps),
    ("throttleReadIOPSDevice", IoKey::Riops),
    ("throttleWriteIOPSDevice", IoKey::Wiops),
];

fn merge_throttles(value: &mut Value, request: &Request) {
    let Value::Io(devices) = value else { return };
    for (name, key) in THROTTLES {
        for entry in field(request, "blockIO", name).and_then(Json::as_array).into_iter().flatten() {
            let part = |name: &str| entry[name].as_u64().and_then(|part| u32::try_from(part).ok());
            let (Some(major), Some(minor), Some(rate)) =
                (part("major"), part("minor"), entry["rate"].as_u64())
            else {
                continue;
            };
            let keys = devices.entry((major, minor)).or_default();
            if rate == 0 {
                keys.remove(&key)
            } else {
                keys.insert(key, rate)
            };
        }
    }
    devices.retain(|_, keys| !keys.is_empty());
}

/// A line of `io.max` changes the keys that it names; `max` takes one away.
fn merge_io(before: &Throttles, text: &str, now: &Throttles) -> Throttles {
    let mut merged = before.clone();
    for line in text.lines() {
        let Value::Io(device) =
            Value::read(&File::IoMax, &line.replace("=max", "=1")).unwrap_or(Value::Weight(1))
        else {
            continue;
        };
        for (device, keys) in device {
            let own = merged.entry(device).or_default();
            for key in keys.keys() {
                match now.get(&device).and_then(|now| now.get(key)) {
                    Some(amount) => own.insert(*key, *amount),
                    None => own.remove(key),
                };
            }
        }
    }
    merged.retain(|_, keys| !keys.is_empty());
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: Words<'static> = Words { all_cpus: "0-1", no_quota: &|_| -1 };

    fn amounts(all: &[(&str, &str)]) -> Amounts {
        let one = |(name, text): &(&str, &str)| {
            let file = File::parse(name).unwrap();
            (file.clone(), Value::read(&file, text).unwrap())
        };
        all.iter().map(one).collect()
    }

    fn request(json: Json) -> Request {
        json.as_object().unwrap().clone()
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let own = amounts(&[
            ("memory.max", "100"),
            ("memory.swap.max", "50"),
            ("memory.low", "7"),
            ("pids.max", "max"),
            ("cpu.max", "50000 100000"),
            ("cpuset.cpus", "0"),
            ("hugetlb.2MB.max", "max"),
            ("io.max", "8:0 rbps=1 wbps=2"),
        ]);
        assert_eq!(merge(&own, &request(json!({"memory": {"limit": 0}, "cpu": {"cpus": ""}}))).unwrap(), own);
        let all = json!({
            "memory": {"limit": 300, "swap": 500, "reservation": 9},
            "pids": {"limit": 8},
            "cpu": {"quota": 70000, "cpus": "1-2"},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]},
        });
        let want = amounts(&[
            ("memory.max", "300"),
            ("memory.swap.max", "200"),
            ("memory.low", "9"),
            ("pids.max", "8"),
            ("cpu.max", "70000 100000"),
            ("cpuset.cpus", "1-2"),
            ("hugetlb.2MB.max", "0"),
            ("io.max", "8:0 rbps=5 wbps=2"),
        ]);
        assert_eq!(merge(&own, &request(all)).unwrap(), want);
        let none = json!({
            "memory": {"limit": -1, "swap": -1},
            "pids": {"limit": -1},
            "cpu": {"quota": -1, "period": 20000},
            "unified": {"memory.low": "3", "io.max": "8:0 rbps=max\n8:1 wbps=6"},
        });
        let merged = merge(&own, &request(none)).unwrap();
        let shown = |name: &str| merged[&File::parse(name).unwrap()].to_string();
        assert_eq!(
            ["memory.max", "memory.swap.max", "pids.max", "cpu.max", "memory.low", "io.max"].map(shown),
            ["max", "max", "max", "max 20000", "3", "8:0 wbps=2\n8:1 wbps=6"]
        );
        let wrong = merge(&own, &request(json!({"cpu": {"cpus": "zero"}}))).unwrap_err();
        assert!(wrong.to_string().contains("cpu.cpus zero"), "{wrong}");
    }

    #[test]
    fn the_runtime_is_told_the_effective_limit_in_its_place() {
        let asked = request(json!({
            "memory": {"limit": 300},
            "cpu": {"shares": 512},
            "unified": {"memory.high": "5", "pids.max": "3", "memory.min": "1"},
        }));
        let effective = amounts(&[("memory.max", "400"), ("pids.max", "max"), ("cpu.max", "max 50000")]);
        let told = patch(&asked, &effective, &amounts(&[("memory.swap.max", "50")]), &WORDS);
        assert_eq!(
            Json::Object(told),
            json!({
                "memory": {"limit": 400, "swap": 450},
                "cpu": {"shares": 512, "quota": -1, "period": 50000},
                "pids": {"limit": -1},
                "unified": {"memory.high": "5", "memory.min": "1", "memory.swap.max": "50"},
            })
        );
        assert_eq!(indirect(&asked), [File::CpuWeight]);
        let weight = request(json!({"blockIO": {"weight": 500}, "unified": {"io.weight": "7"}}));
        assert_eq!(indirect(&weight), [File::IoBfqWeight]);
        let without_swap =
            patch(&Request::new(), &amounts(&[("memory.max", "400")]), &Amounts::new(), &WORDS);
        assert_eq!(Json::Object(without_swap), json!({"memory": {"limit": 400, "swap": -1}}));
        // Nothing that attachments change: as it came.
        assert_eq!(patch(&asked, &Amounts::new(), &Amounts::new(), &WORDS), asked);
    }

    #[test]
    fn what_oci_has_no_word_for_is_unified() {
        let effective = amounts(&[
            ("memory.max", "max"),
            ("memory.swap.max", "50"),
            ("memory.low", "0"),
            ("memory.high", "9"),
            ("cpu.weight", "250"),
            ("io.weight", "300"),
            ("io.bfq.weight", "400"),
            ("cpuset.cpus", ""),
            ("io.max", "8:0 rbps=1"),
            ("hugetlb.2MB.max", "0"),
        ]);
        assert_eq!(
            Json::Object(patch(&Request::new(), &effective, &Amounts::new(), &WORDS)),
            json!({
                "memory": {"limit": -1, "swap": -1, "reservation": 0},
                "cpu": {"cpus": "0-1"},
                "unified": {
                    "memory.swap.max": "50", "memory.low": "0", "memory.high": "9", "cpu.weight": "250",
                    "io.weight": "default 300", "io.bfq.weight": "400",
                },
            })
        );
    }
}
