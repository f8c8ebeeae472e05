//! What a list of rules allows, said once more and another way, for the tests to compare with: straight from the rules, access
//! by access, with none of the code that makes programs.

use super::rules::{Access, Device, DeviceKind, Rule};

/// The rules that runc adds, as it documents them: making nodes, null, random, full, tty, zero, urandom, terminals, tun.
const OF_RUNC: [(char, i64, i64, &str, &str); 11] = [
    ('c', -1, -1, "m", ""),
    ('b', -1, -1, "m", ""),
    ('c', 1, 3, "rwm", "/dev/null"),
    ('c', 1, 8, "rwm", "/dev/random"),
    ('c', 1, 7, "rwm", "/dev/full"),
    ('c', 5, 0, "rwm", "/dev/tty"),
    ('c', 1, 5, "rwm", "/dev/zero"),
    ('c', 1, 9, "rwm", "/dev/urandom"),
    ('c', 136, -1, "rwm", ""),
    ('c', 5, 2, "rwm", ""),
    ('c', 10, 200, "rwm", ""),
];

#[derive(Clone)]
struct Plain {
    allow: bool,
    kind: char,
    major: i64,
    minor: i64,
    letters: String,
}

fn plain(rule: &Rule) -> Plain {
    let kind = match rule.kind {
        None => 'a',
        Some(DeviceKind::Block) => 'b',
        Some(DeviceKind::Char) => 'c',
    };
    let number = |number: Option<u32>| number.map_or(-1, i64::from);
    Plain {
        allow: rule.allow,
        kind,
        major: number(rule.major),
        minor: number(rule.minor),
        letters: rule.access.to_string(),
    }
}

fn default((kind, major, minor, letters, _): (char, i64, i64, &str, &str)) -> Plain {
    Plain { allow: true, kind, major, minor, letters: letters.to_owned() }
}

impl Plain {
    /// Whether it is for this device and names every letter of `asked`.
    fn matches(&self, device: Device, asked: &str) -> bool {
        let kind = plain(&Rule {
            allow: true,
            kind: Some(device.kind),
            major: None,
            minor: None,
            access: Access::ALL,
        })
        .kind;
        (self.kind == 'a' || self.kind == kind)
            && [-1, i64::from(device.major)].contains(&self.major)
            && [-1, i64::from(device.minor)].contains(&self.minor)
            && asked.chars().all(|letter| self.letters.contains(letter))
    }
}

/// What runc lets through; `None` where it refuses to start the container.
pub fn runc_allows(rules: &[Rule], paths: &[&str], device: Device, access: Access) -> Option<bool> {
    let all: Vec<Plain> = rules
        .iter()
        .map(plain)
        .chain(OF_RUNC.into_iter().filter(|(.., path)| !paths.contains(path)).map(default))
        .collect();
    if all.iter().any(|rule| rule.letters.is_empty()) {
        return None;
    }
    // Everything before the last rule of type a is forgotten, but for its errors.
    let mut start = 0;
    let mut otherwise = false;
    let mut live: Vec<Plain> = Vec::new();
    for (index, rule) in all.iter().enumerate() {
        if rule.kind == 'a' {
            (start, otherwise, live) = (index + 1, rule.allow, Vec::new());
            continue;
        }
        if rule.allow == otherwise {
            let hole = live.iter().any(|wide| {
                let wider = (wide.major == -1 || wide.major == rule.major)
                    && (wide.minor == -1 || wide.minor == rule.minor)
                    && (wide.major, wide.minor) != (rule.major, rule.minor)
                    && (wide.major == -1 || wide.minor == -1);
                wide.kind == rule.kind && wider && holds(&all[start..index], wide, otherwise, &rule.letters)
            });
            if hole {
                return None;
            }
        }
        live.push(rule.clone());
    }
    let asked = access.to_string();
    let rest = &all[start..];
    let excepted = rest.iter().any(|rule| {
        let named = Plain { letters: "rwm".to_owned(), ..rule.clone() };
        named.matches(device, &asked)
            && asked.chars().all(|one| holds(rest, rule, otherwise, &one.to_string()))
    });
    Some(excepted != otherwise)
}

/// Whether the last word of `rules` on exactly what `like` is for excepts any of `letters` from what holds otherwise.
fn holds(rules: &[Plain], like: &Plain, otherwise: bool, letters: &str) -> bool {
    letters.chars().any(|letter| {
        rules
            .iter()
            .rfind(|rule| {
                (rule.kind, rule.major, rule.minor) == (like.kind, like.major, like.minor)
                    && rule.letters.contains(letter)
            })
            .is_some_and(|last| last.allow != otherwise)
    })
}

/// What crun lets through: its defaults, and else the last rule that matches.
pub fn crun_allows(rules: &[Rule], device: Device, access: Access) -> bool {
    let asked = access.to_string();
    let console = [('c', 5, 1, "rwm", "")];
    let mut defaults = OF_RUNC.into_iter().chain(console).map(default);
    defaults.any(|rule| rule.matches(device, &asked))
        || rules.iter().map(plain).rfind(|rule| rule.matches(device, &asked)).is_some_and(|rule| rule.allow)
}
