//! The program in the test containers: only `std`, statically linked, so that it runs where no libc is.
//!
//! `capsule-reader read FILE --allowed FILE... --stop FILE --out FILE` opens, reads and closes a file as fast as it can.
//! `capsule-reader clock ZONE --out FILE` writes the time in a zone every 100 ms, from one process.
//! `capsule-reader hold FILE --stop FILE --out FILE` keeps a file open.
//! `capsule-reader eat THREADS` takes memory for ever, in threads.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ZONEINFO: &str = "/usr/share/zoneinfo";

type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "capsule-reader: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Outcome {
    let (mode, subject) =
        match args {
            [mode, subject, ..] => (mode.as_str(), subject.as_str()),
            _ => return Err(
                "usage: capsule-reader read|clock|hold|eat SUBJECT [--out FILE] [--stop FILE] [--allowed FILE]..."
                    .to_owned(),
            ),
        };
    let option = |name: &'static str| values(args, name).next().ok_or_else(|| format!("{name} is missing"));
    match mode {
        "read" => read(subject, values(args, "--allowed").collect(), option("--stop")?, option("--out")?),
        "clock" => clock(subject, option("--out")?),
        "hold" => hold(subject, option("--stop")?, option("--out")?),
        "eat" => eat(subject),
        _ => Err(format!("unknown mode {mode:?}")),
    }
}

fn values<'a>(args: &'a [String], name: &'a str) -> impl Iterator<Item = &'a str> {
    args.windows(2).filter(move |pair| pair[0] == name).map(|pair| pair[1].as_str())
}

/// Opens, reads and closes `file` until `stop` exists. Every read must equal one of the allowed contents, whole.
fn read(file: &str, allowed: Vec<&str>, stop: &str, out: &str) -> Outcome {
    let allowed: Vec<Vec<u8>> = allowed
        .iter()
        .map(|path| fs::read(path).map_err(|e| format!("{path}: {e}")))
        .collect::<Result<_, _>>()?;
    let stopped = watch_for(stop);
    let mut seen = vec![0_u64; allowed.len()];
    let (mut rounds, mut errors, mut torn) = (0_u64, 0_u64, 0_u64);
    let mut first_error = String::new();
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    let mut content = Vec::new();
    fs::write(out, "started\n").map_err(|e| format!("{out}: {e}"))?;
    while !stopped.load(Ordering::Relaxed) {
        rounds += 1;
        content.clear();
        match File::open(file).and_then(|mut file| file.read_to_end(&mut content)) {
            Ok(_) => match allowed.iter().position(|version| *version == content) {
                Some(version) => seen[version] += 1,
                None => torn += 1,
            },
            Err(error) => {
                errors += 1;
                first_error = if first_error.is_empty() { error.to_string() } else { first_error };
            }
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    let result = format!(
        "{{\"rounds\":{rounds},\"errors\":{errors},\"torn\":{torn},\"seen\":{seen:?},\"longest_us\":{},\"first_error\":{first_error:?}}}\n",
        longest.as_micros()
    );
    replace(out, &result)
}

/// True once `stop` exists: looked for by a thread of its own, so that the reader does nothing but read.
fn watch_for(stop: &str) -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    let (flag, stop) = (Arc::clone(&stopped), stop.to_owned());
    std::thread::spawn(move || {
        while !Path::new(&stop).exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        flag.store(true, Ordering::Relaxed);
    });
    stopped
}

/// Appends a line with this process's id, the time in `zone`, and the release of tzdata, every 100 ms.
fn clock(zone: &str, out: &str) -> Outcome {
    let mut log =
        OpenOptions::new().create(true).append(true).open(out).map_err(|e| format!("{out}: {e}"))?;
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?.as_secs();
        let (offset, name) = match fs::read(format!("{ZONEINFO}/{zone}")) {
            Ok(data) => {
                zone_at(&data, now.cast_signed()).ok_or_else(|| format!("{zone}: not a zone file"))?
            }
            Err(_) => (0, "UTC".to_owned()),
        };
        let release = fs::read_to_string(format!("{ZONEINFO}/tzdata.zi")).unwrap_or_default();
        let release =
            release.lines().next().and_then(|line| line.strip_prefix("# version ")).unwrap_or("none");
        let local = now.cast_signed() + i64::from(offset);
        let (hour, minute, second) = (local / 3600 % 24, local / 60 % 60, local % 60);
        let pid = std::process::id();
        let line =
            format!("pid={pid} zone={zone} time={hour:02}:{minute:02}:{second:02} {name} tzdata={release}\n");
        log.write_all(line.as_bytes()).map_err(|e| format!("{out}: {e}"))?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The offset from UTC in seconds and the zone's name at `now`, from the second data block of a TZif file (RFC 9636).
/// Debian's files list every transition until 2037, so the footer is not needed.
fn zone_at(data: &[u8], now: i64) -> Option<(i32, String)> {
    let counts = |at: usize| -> Option<[usize; 6]> {
        let mut counts = [0; 6];
        for (index, count) in counts.iter_mut().enumerate() {
            *count = u32::from_be_bytes(data.get(at + 20 + 4 * index..at + 24 + 4 * index)?.try_into().ok()?)
                as usize;
        }
        Some(counts)
    };
    let [isutc, isstd, leap, times, types, chars] = counts(0)?;
    let second = 44 + times * 5 + types * 6 + chars + leap * 8 + isstd + isutc;
    let [.., times, types, chars] = counts(second)?;
    let at = second + 44;
    let time =
        |index: usize| data.get(at + 8 * index..at + 8 * index + 8)?.try_into().ok().map(i64::from_be_bytes);
    let before = (0..times).take_while(|index| time(*index).is_some_and(|time| time <= now)).count();
    let kind = match before {
        0 => 0,
        count => usize::from(*data.get(at + times * 8 + count - 1)?),
    };
    let info = at + times * 9 + kind * 6;
    let offset = i32::from_be_bytes(data.get(info..info + 4)?.try_into().ok()?);
    let names = at + times * 9 + types * 6;
    let name = data.get(names + usize::from(*data.get(info + 5)?)..names + chars)?;
    let name = name.split(|byte| *byte == 0).next()?;
    Some((offset, String::from_utf8_lossy(name).into_owned()))
}

/// Keeps `file` open until `stop` exists, then says whether its content was still readable to the end.
fn hold(file: &str, stop: &str, out: &str) -> Outcome {
    let mut held = File::open(file).map_err(|e| format!("{file}: {e}"))?;
    replace(out, "open\n")?;
    let stopped = watch_for(stop);
    while !stopped.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut content = String::new();
    held.read_to_string(&mut content).map_err(|e| format!("{file}: {e}"))?;
    replace(out, &format!("closed after {}\n", content.lines().next().unwrap_or_default()))
}

/// Whoever looks at `out` sees the old content or the new, never half.
fn replace(out: &str, content: &str) -> Outcome {
    let part = format!("{out}.part");
    fs::write(&part, content).and_then(|()| fs::rename(&part, out)).map_err(|e| format!("{out}: {e}"))
}

/// Takes memory in so many threads at once, until the kernel ends it.
fn eat(threads: &str) -> Outcome {
    let threads: usize = threads.parse().map_err(|e| format!("{threads:?}: {e}"))?;
    let eaters: Vec<_> = (0..threads).map(|_| std::thread::spawn(hoard)).collect();
    eaters.into_iter().try_for_each(|eater| eater.join().map_err(|_| "a thread ended".to_owned()))
}

/// All of it stays where it is, so that a process has each page once.
fn hoard() {
    let mut kept = Vec::new();
    loop {
        kept.push(vec![1_u8; 1 << 16]);
    }
}
