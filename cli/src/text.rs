//! Results as a person reads them. Pure: the present instant is an argument.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use bytesize::ByteSize;

use crate::table::Table;
use crate::view::{
    Attachment, Attachments, Built, Inspection, Moves, Plan, Resources, Time, User, Version, Versions,
};

/// A result that can be read by people.
pub trait Text {
    /// The text, each line ended.
    fn text(&self, now: SystemTime) -> String;
}

impl Text for Built {
    fn text(&self, _: SystemTime) -> String {
        let Version { capsule, version, digest, .. } = &self.version;
        let existed = if self.existed { "already published, " } else { "" };
        let files = match self.files {
            None => String::new(),
            Some(1) => "1 file, ".to_owned(),
            Some(n) => format!("{n} files, "),
        };
        let (size, ms) = (size(self.bytes), self.elapsed_ms);
        line(format!("{capsule}@{version}  {digest}  ({existed}{files}{size}, {ms} ms)"))
    }
}

impl Text for Versions {
    fn text(&self, now: SystemTime) -> String {
        let mut table = Table::new([
            "CAPSULE", "VERSION", "TAGS", "DIGEST", "SIZE", "CREATED", "TARGET", "MODE", "IN USE", "STATUS",
        ]);
        for v in &self.versions {
            table.row([
                v.capsule.clone(),
                v.version.clone(),
                v.tags.join(","),
                short_digest(&v.digest).to_owned(),
                size(v.size),
                age(v.created_at, now),
                v.default_target.clone().unwrap_or_default(),
                v.default_mode.unwrap_or_default().to_owned(),
                v.attachments.to_string(),
                status(v).to_owned(),
            ]);
        }
        table.to_string()
    }
}

impl Text for Inspection {
    fn text(&self, now: SystemTime) -> String {
        let v = &self.version;
        let mut text = String::new();
        for (key, value) in [
            ("Capsule", v.capsule.clone()),
            ("Version", v.version.clone()),
            ("Tags", v.tags.join(", ")),
            ("Digest", v.digest.clone()),
            ("Image", format!("{} (containerd namespace {})", v.image, v.namespace)),
            ("Size", size(v.size)),
            ("Created", age(v.created_at, now)),
            ("Target", v.default_target.clone().unwrap_or_default()),
            ("Mode", v.default_mode.unwrap_or_default().to_owned()),
            (
                "Status",
                v.incomplete.as_ref().map_or_else(|| status(v).to_owned(), |i| format!("incomplete: {i}")),
            ),
        ] {
            let value = if value.is_empty() { "-" } else { &value };
            text.push_str(&line(format!("{key:<10}  {value}")));
        }
        text.push_str(&declared(v));
        for (key, value) in &self.annotations {
            text.push_str(&line(format!("Annotation  {key}={value}")));
        }
        let mut layers = Table::new(["LAYER", "SIZE", "MEDIA TYPE", "SNAPSHOT"]);
        for l in &self.layers {
            let snapshot = l.snapshot.clone().unwrap_or_default();
            layers.row([l.digest.clone(), size(l.size), l.media_type.clone(), snapshot]);
        }
        let _ = write!(text, "\n{layers}"); // writing to a String cannot fail
        if !self.attachments.is_empty() {
            let _ = write!(text, "\n{}", attachments_table(&self.attachments, now));
        }
        text
    }
}

impl Text for Plan {
    fn text(&self, _: SystemTime) -> String {
        let mut table = Table::new(["CAPSULE", "VERSION", "DIGEST", "TARGET", "MODE", "WHY"]);
        for p in &self.planned {
            let why = match (p.present, p.required_by.join(", ")) {
                (true, by) if by.is_empty() => "attached already".to_owned(),
                (true, by) => format!("attached already, required by {by}"),
                (false, by) if by.is_empty() => "asked for".to_owned(),
                (false, by) => format!("required by {by}"),
            };
            let version = match &p.from_version {
                Some(from) if *from != p.version => format!("{from} -> {}", p.version),
                _ => p.version.clone(),
            };
            table.row([
                p.capsule.clone(),
                version,
                short_digest(&p.digest).to_owned(),
                p.target.clone(),
                p.mode.unwrap_or_default().to_owned(),
                why,
            ]);
        }
        table.to_string()
    }
}

/// What the version needs, a line for each.
fn declared(v: &Version) -> String {
    let pairs = |map: &BTreeMap<String, String>| -> Vec<String> {
        map.iter().map(|(key, value)| format!("{key}={value}")).collect()
    };
    let lists = [
        ("Requires", v.requires.clone()),
        ("Variable", pairs(&v.environment)),
        ("Resource", pairs(&v.resources)),
        ("Cap", pairs(&v.caps)),
        ("Device", v.devices.clone()),
        ("Seccomp", v.seccomp.iter().filter_map(|seccomp| seccomp.level.clone()).collect()),
        ("Denies", v.seccomp.iter().flat_map(|seccomp| seccomp.deny.clone()).collect()),
    ];
    let lines = lists
        .into_iter()
        .flat_map(|(key, values)| values.into_iter().map(move |value| line(format!("{key:<10}  {value}"))));
    lines.collect()
}

impl Text for Moves {
    fn text(&self, _: SystemTime) -> String {
        let sentences = self.attachments.iter().map(|moved| {
            let Attachment { capsule, version, target, .. } = &moved.attachment;
            let place = moved.attachment.place();
            line(match &moved.from_version {
                None => format!("{place}: {capsule} {version} is new, at {target}"),
                Some(from) if from == version => {
                    format!("{place}: {capsule} is at {version} already, at {target}")
                }
                Some(from) => format!("{place}: {capsule} {from} -> {version} at {target}"),
            })
        });
        sentences.collect()
    }
}

/// What `attach` says.
#[derive(Debug)]
pub struct Attached<'a>(pub &'a Attachments);

impl Text for Attached<'_> {
    fn text(&self, _: SystemTime) -> String {
        let sentences = self.0.attachments.iter().map(|a| {
            let (place, devices) = (a.place(), a.devices.join(", "));
            if a.capsule.is_empty() {
                return line(format!(
                    "{place}: {devices} attached; processes that run already do not have its variables"
                ));
            }
            let with = if devices.is_empty() { devices } else { format!(", with {devices}") };
            let (label, how) = (format!("{}@{}", a.capsule, a.version), how(a));
            let limits = a.resources.as_ref().map(limits).unwrap_or_default();
            line(format!("{place}: {label} attached at {} ({how}){with}{limits}", a.target))
        });
        sentences.collect()
    }
}

/// What an attachment does to limits, as `, memory.max +512 MiB, pids.max at most 64`.
fn limits(resources: &Resources) -> String {
    let amount = |file: &str, text: &str| match text.parse() {
        Ok(bytes) if file.starts_with("memory.") || file.starts_with("hugetlb.") => {
            ByteSize::b(bytes).display().iec().to_string()
        }
        _ => text.replace('\n', "; "),
    };
    let grants = resources.grants.iter().map(|(file, text)| format!(", {file} +{}", amount(file, text)));
    let caps = resources.caps.iter().map(|(file, text)| format!(", {file} at most {}", amount(file, text)));
    grants.chain(caps).collect()
}

/// What `detach` says.
#[derive(Debug)]
pub struct Detached<'a>(pub &'a Attachments);

impl Text for Detached<'_> {
    fn text(&self, _: SystemTime) -> String {
        let sentences = self.0.attachments.iter().map(|a| {
            let what = format!("{}: {}", a.place(), named(a));
            match a.state {
                "draining" if a.capsule.is_empty() => {
                    line(format!("{what} detached; what is open stays open{}", kept_by(&a.users)))
                }
                _ if a.capsule.is_empty() => line(format!("{what} detached")),
                "draining" => line(format!("{what} hidden at {}, draining{}", a.target, kept_by(&a.users))),
                _ => line(format!("{what} detached from {}", a.target)),
            }
        });
        sentences.collect()
    }
}

/// `CAPSULE@VERSION`, or the names of devices alone.
fn named(a: &Attachment) -> String {
    if a.capsule.is_empty() { a.devices.join(", ") } else { format!("{}@{}", a.capsule, a.version) }
}

fn kept_by(users: &[User]) -> String {
    match users.first() {
        None => String::new(),
        Some(u) => {
            let more = if users.len() > 1 { format!(" and {} more", users.len() - 1) } else { String::new() };
            format!(": in use by {} (pid {}), {} {}{more}", u.command, u.pid, u.how, u.path)
        }
    }
}

/// What `ps` says.
#[derive(Debug)]
pub struct Listed<'a> {
    /// The rows.
    pub attachments: &'a Attachments,
    /// Also a line per process that keeps a draining version alive.
    pub users: bool,
}

impl Text for Listed<'_> {
    fn text(&self, now: SystemTime) -> String {
        let mut text = attachments_table(&self.attachments.attachments, now);
        let used: Vec<_> = self.attachments.attachments.iter().filter(|a| !a.users.is_empty()).collect();
        if self.users && !used.is_empty() {
            let mut table = Table::new(["PID", "COMMAND", "HOW", "PATH", "CAPSULE", "CONTAINER"]);
            for (a, u) in used.into_iter().flat_map(|a| a.users.iter().map(move |u| (a, u))) {
                table.row([
                    u.pid.to_string(),
                    u.command.clone(),
                    u.how.clone(),
                    u.path.clone(),
                    named(a),
                    a.place(),
                ]);
            }
            let _ = write!(text, "\n{table}"); // writing to a String cannot fail
        }
        text
    }
}

fn attachments_table(attachments: &[Attachment], now: SystemTime) -> String {
    let header = [
        "NAMESPACE",
        "CONTAINER",
        "CAPSULE",
        "VERSION",
        "DIGEST",
        "TARGET",
        "MODE",
        "STATE",
        "SINCE",
        "PREVIOUS",
        "USERS",
        "DEVICES",
    ];
    let mut table = Table::new(header);
    for a in attachments {
        table.row([
            a.namespace.clone(),
            a.called(),
            a.capsule.clone(),
            a.version.clone(),
            short_digest(&a.digest).to_owned(),
            a.target.clone(),
            how(a),
            a.state.to_owned(),
            age(a.since, now),
            a.previous_version.clone().unwrap_or_default(),
            if a.state == "draining" { a.users.len().to_string() } else { String::new() },
            a.devices.join(","),
        ]);
    }
    table.to_string()
}

/// `ro` that can be written to is `rw`.
fn how(a: &Attachment) -> String {
    match (a.mode.unwrap_or_default(), &a.writable) {
        (mode, None) => mode.to_owned(),
        ("ro", Some(_)) => "rw".to_owned(),
        (mode, Some(_)) => format!("{mode},rw"),
    }
}

fn status(v: &Version) -> &'static str {
    if v.complete { "ready" } else { "incomplete" }
}

fn line(text: String) -> String {
    let mut text = escape_control(&text);
    text.push('\n');
    text
}

/// The first twelve digits, as other tools abbreviate a digest.
pub fn short_digest(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

/// Bytes in binary units with one decimal.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes.saturating_mul(10) / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// How long ago, in the largest unit that fits; empty when unknown.
pub fn age(then: Option<Time>, now: SystemTime) -> String {
    let Some(then) = then.and_then(|t| SystemTime::try_from(t.0).ok()) else {
        return String::new();
    };
    // A clock that was set back shows as no time at all.
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7_200 => format!("{}m ago", seconds / 60),
        7_200..172_800 => format!("{}h ago", seconds / 3_600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// Control characters as `\xNN`: names and paths come from containers, and a terminal must not obey them.
pub fn escape_control(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(safe, "\\x{:02x}", u32::from(c)); // writing to a String cannot fail
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sizes() {
        for (bytes, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (5_368_709_120, "5.0 GiB"),
            (u64::MAX, "1638.3 PiB"),
        ] {
            assert_eq!(size(bytes), want, "{bytes}");
        }
    }

    #[test]
    fn ages() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, want) in [
            (0, "0s ago"),
            (3, "3s ago"),
            (119, "119s ago"),
            (120, "2m ago"),
            (7_199, "119m ago"),
            (7_200, "2h ago"),
            (172_800, "2d ago"),
        ] {
            let now = then + Duration::from_secs(seconds);
            assert_eq!(age(Some(Time(then.into())), now), want, "{seconds}");
        }
        assert_eq!(age(Some(Time(then.into())), SystemTime::UNIX_EPOCH), "0s ago");
        assert_eq!(age(None, then), "");
    }

    #[test]
    fn digests() {
        assert_eq!(short_digest("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_digest("odd"), "odd");
    }
}
