//! Volumes that are written to: bounded, kept, published, and never two versions at once.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SLEEP, options, version, volume};
use crate::event::Reporter;
use crate::scenario::capsulectl::{capsulectl, done, json, refused};
use crate::scenario::ctr::REFERENCE;
use crate::scenario::world::World;

const AT: &str = "/vol/data";
/// What capsuled has of volumes that are written to.
const FOLDER: &str = "/var/lib/capsule/volumes";

pub fn cases(reporter: &mut Reporter, world: &mut World) {
    reporter.check("a directory has its owner, its mode and its size, and what is written stays", || {
        directory(world)
    });
    reporter.check("a capsule is written over, published, and upgraded when it is mounted nowhere", over);
    reporter.check("a container writes to it, and another beside it sees that", shared);
    reporter.check("what will not do is refused, and nothing is made", mistakes);
}

fn directory(world: &mut World) -> Result<String> {
    let create = [
        "volumes",
        "create",
        "shop/data",
        "--directory",
        "--size",
        "16MiB",
        "--owner",
        "1000:1001",
        "--permissions",
        "0750",
    ];
    ensure!(done(&create)?.contains("is made"), "made");
    ensure!(done(&create)?.contains("was there already"), "again");
    done(&["volumes", "mount", "shop/data", "--directory", AT])?;
    let root = fs::metadata(AT).context("its root")?;
    ensure!((root.uid(), root.gid(), root.mode() & 0o7777) == (1000, 1001, 0o750), "{root:?}");
    fs::write(format!("{AT}/kept"), "kept").context("write")?;
    let full = fs::write(format!("{AT}/big"), vec![0; 32 << 20]).err().map(|error| error.kind());
    ensure!(full == Some(ErrorKind::StorageFull), "{full:?}");
    let stat = json(&["volumes", "stat", "shop/data", AT])?;
    ensure!(
        stat["trouble"].is_null() && stat["total_bytes"].as_u64().is_some_and(|all| all < 16 << 20),
        "{stat}"
    );
    ensure!(stat["available_bytes"].as_u64().is_some_and(|free| free < 64 << 10), "{stat}");
    fs::remove_file(format!("{AT}/big")).context("remove")?;
    done(&["volumes", "mount", "shop/data", "--directory", "--read-only", "/vol/look"])?;
    ensure!(fs::read_to_string("/vol/look/kept").context("read")? == "kept", "two mounts");
    let kind = fs::write("/vol/look/kept", "x").err().map(|error| error.kind());
    ensure!(kind == Some(ErrorKind::ReadOnlyFilesystem), "{kind:?}");
    refused(&["volumes", "rm", "shop/data"], &["shop/data", AT, "unmount it"])?;
    world.kill_capsuled()?;
    fs::write(format!("{AT}/meanwhile"), "too").context("write while capsuled is away")?;
    world.restart_capsuled()?;
    for at in [AT, "/vol/look"] {
        done(&["volumes", "umount", "shop/data", at])?;
    }
    // Nobody has it mounted, and it is there.
    let seen = volume("shop/data")?;
    ensure!(seen["paths"].as_array().is_some_and(Vec::is_empty) && seen["size"] == 16 << 20, "{seen}");
    ensure!(fs::metadata(format!("{FOLDER}/shop/data/about.json")).is_ok(), "where the documentation says");
    done(&["volumes", "mount", "shop/data", "--directory", AT])?;
    for file in ["kept", "meanwhile"] {
        fs::metadata(format!("{AT}/{file}")).with_context(|| format!("{file} is gone"))?;
    }
    done(&["volumes", "umount", "shop/data", AT])?;
    done(&["volumes", "rm", "shop/data"])?;
    refused(&["volumes", "mount", "shop/data", "--directory", AT], &["shop/data", "make it first"])?;
    Ok(stat.to_string())
}

fn over() -> Result<String> {
    let spec = ["--capsule", "tools@1", "--writable", "--size", "16MiB"];
    done(&[&["volumes", "create", "shop/tools"], &spec[..]].concat())?;
    done(&["volumes", "mount", "shop/tools", "--capsule", "tools", "--writable", AT])?;
    ensure!(version(AT)? == "1", "{}", version(AT)?);
    fs::write(format!("{AT}/mine"), "mine").context("write")?;
    refused(&["volumes", "upgrade", "shop/tools", "2"], &["shop/tools", AT, "mounted nowhere"])?;
    let committed = json(&["volumes", "commit", "shop/tools", "--version", "1-mine", "--tag", "mine"])?;
    ensure!(committed["from_version"] == "1" && committed["existed"] == false, "{committed}");
    let listed = done(&["inspect", "tools@1-mine"])?;
    ensure!(listed.contains("mine"), "{listed}");
    done(&["volumes", "mount", "look", "--capsule", "tools@mine", "/vol/look"])?;
    ensure!(fs::read_to_string("/vol/look/mine").context("read")? == "mine", "what was published");
    done(&["volumes", "umount", "look", "/vol/look"])?;
    done(&["volumes", "umount", "shop/tools", AT])?;
    let upgraded = json(&["volumes", "upgrade", "shop/tools", "2"])?;
    ensure!(upgraded["from_version"] == "1" && upgraded["mounts"] == 0, "{upgraded}");
    done(&["volumes", "mount", "shop/tools", "--capsule", "tools", "--writable", AT])?;
    ensure!(version(AT)? == "2" && fs::metadata(format!("{AT}/mine")).is_ok(), "over the other version");
    done(&["volumes", "umount", "shop/tools", AT])?;
    done(&["volumes", "rm", "shop/tools"])?;
    done(&["rm", "tools@1-mine"])?;
    Ok(String::new())
}

fn shared() -> Result<String> {
    done(&["volumes", "create", "shop/data", "--directory", "--size", "16MiB"])?;
    // What is only read at one path is written to at another.
    done(&["volumes", "mount", "shop/data", "--directory", "--read-only", AT])?;
    done(&["volumes", "mount", "shop/data", "--directory", "/vol/look"])?;
    fs::write("/vol/look/first", "1").context("write where it is written to")?;
    let kind = fs::write(format!("{AT}/first"), "2").err().map(|error| error.kind());
    ensure!(kind == Some(ErrorKind::ReadOnlyFilesystem), "{kind:?}");
    done(&["volumes", "umount", "shop/data", AT])?;
    done(&["volumes", "mount", "shop/data", "--directory", AT])?;
    let bind = ["--mount", "type=bind,src=/vol/data,dst=/data,options=rbind:rw"];
    let other = ["--mount", "type=bind,src=/vol/look,dst=/data,options=rbind:rw"];
    let (one, two) =
        (REFERENCE.start("one", &options(&bind), &SLEEP)?, REFERENCE.start("two", &options(&other), &SLEEP)?);
    one.sh("write", "echo told > /data/said")?;
    ensure!(two.sh("read", "cat /data/said")? == "told\n", "one file system");
    one.remove()?;
    two.remove()?;
    done(&["volumes", "umount", "shop/data", AT])?;
    done(&["volumes", "umount", "shop/data", "/vol/look"])?;
    done(&["volumes", "rm", "shop/data"])?;
    Ok(String::new())
}

fn mistakes() -> Result<String> {
    done(&["volumes", "create", "shop/data", "--directory", "--size", "16MiB"])?;
    for (args, words) in [
        (
            &["create", "shop/data", "--directory", "--size", "32MiB"][..],
            &["shop/data", "16777216 bytes"][..],
        ),
        (&["create", "shop/data", "--capsule", "tools", "--writable"], &["shop/data", "of no capsule"]),
        (&["create", "shop/big", "--directory", "--size", "1PiB"], &["volumes/shop", "bytes to spare"]),
        (&["create", "shop/small", "--directory", "--size", "1MiB"], &["1048576", "too few"]),
        (&["commit", "shop/data", "--version", "1"], &["shop/data", "no capsule"]),
        (&["upgrade", "shop/data", "1"], &["shop/data", "no capsule"]),
    ] {
        let line = capsulectl(&[&["volumes"], args].concat())?;
        ensure!(line.code == 1, "{args:?} succeeded");
        for word in words {
            ensure!(line.err.contains(word), "{args:?} does not say {word:?}: {}", line.err);
        }
    }
    let all = json(&["volumes"])?;
    ensure!(all["volumes"].as_array().is_some_and(|all| all.len() == 1), "{all}");
    done(&["volumes", "rm", "shop/data"])?;
    ensure!(volume("shop/data")? == Value::Null, "it is there");
    Ok(String::new())
}
