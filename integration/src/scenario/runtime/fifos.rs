//! Standard streams through FIFOs, and clients that do not behave: that stall, leave, come back, or never come.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::fs::OFlags;

use super::Case;
use super::bed::{Bed, SLEEP};
use super::events::{Log, lines};
use super::task::{Stdio, Task, read_all, text_of};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("input, output and errors of an init", init_streams),
    Case::new("CloseIO ends the input of an exec, before and after its start", close_io),
    Case::new("a process that ends without reading its input", unread_input),
    Case::new("input that no client ever opens", unopened_input),
    Case::new("an exec without output: its streams end", no_output),
    Case::new("what a child writes after the exit of its exec", late_output),
    Case::new("an exec's exit is told while its child writes without end", flood),
    Case::new("a reader that stalls delays neither kill, nor wait, nor delete", stalled_init).in_vm(),
    Case::new("the same for an exec", stalled_exec),
    Case::new("a reader that is slow keeps no exit, and an exec's comes before its init's", slow_reader),
    Case::new("a reader that leaves breaks nothing, and the next one reads on", next_reader),
    Case::new("a hundred execs at once, with all their output", hundred_execs).needs(&[super::Need::Native]),
];

fn init_streams(bed: &Bed) -> Result<String> {
    let stdio = Stdio::fifos(bed, &["stdin", "stdout", "stderr"])?;
    let (out, err) = (read_all(&stdio.stdout), read_all(&stdio.stderr));
    let task = Task::started(bed, "streams", &stdio, &["/bin/sh", "-c", "cat; echo oops >&2"])?;
    let mut input = File::options().write(true).open(&stdio.stdin).context("open the input")?;
    input.write_all(b"one\ntwo\n").context("write the input")?;
    drop(input);
    task.close_stdin("")?;
    ensure!(task.wait("")?.exit_status == 0, "it failed");
    // Clients read to the end before they delete the task.
    let (out, err) = (text_of(out)?, text_of(err)?);
    task.remove()?;
    ensure!(out == "one\ntwo\n" && err == "oops\n", "{out:?} {err:?}");
    Ok(String::new())
}

fn close_io(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "close", &Stdio::default(), &SLEEP)?;
    for (exec, early) in [("late", false), ("early", true)] {
        let stdio = Stdio::fifos(bed, &["stdin", "stdout"])?;
        let out = read_all(&stdio.stdout);
        task.exec(exec, &stdio, &["/bin/sh", "-c", "cat; echo end"])?;
        if early {
            task.close_stdin(exec)?;
        }
        task.start(exec)?;
        if !early {
            let mut input = File::options().write(true).open(&stdio.stdin).context("open the input")?;
            input.write_all(b"x").context("write the input")?;
            drop(input);
            task.close_stdin(exec)?;
        }
        if early {
            // containerd's own shim knows of no input to close before the start.
            task.close_stdin(exec)?;
        }
        ensure!(task.wait(exec)?.exit_status == 0, "{exec} failed");
        task.delete_exec(exec)?;
        let out = text_of(out)?;
        ensure!(out.ends_with("end\n") && (early || out == "xend\n"), "{exec}: {out:?}");
    }
    task.remove().map(|()| String::new())
}

fn unread_input(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "unread", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::fifos(bed, &["stdin", "stdout"])?;
    let out = read_all(&stdio.stdout);
    task.run_exec("e1", &stdio, &["/bin/head", "-c", "2"])?;
    let stdin = stdio.stdin.clone();
    let writer = std::thread::spawn(move || -> Result<bool> {
        let mut input = File::options().write(true).open(stdin).context("open the input")?;
        Ok((0..64).any(|_| input.write_all(&[b'x'; 64 << 10]).is_err()))
    });
    ensure!(task.wait("e1")?.exit_status == 0, "it failed");
    task.delete_exec("e1")?;
    ensure!(text_of(out)? == "xx", "other output");
    // Nobody reads any more: the client is told, and does not wait for ever.
    let broken = writer.join().map_err(|_| anyhow!("the writer panicked"))??;
    ensure!(broken, "4 MiB were taken that nobody reads");
    task.remove().map(|()| String::new())
}

fn unopened_input(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "unopened", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::fifos(bed, &["stdin"])?;
    task.run_exec("e1", &stdio, &["/bin/cat"])?;
    task.kill("e1", 9, false)?;
    ensure!(task.wait("e1")?.exit_status == 137, "not by SIGKILL");
    task.delete_exec("e1")?;
    task.remove().map(|()| String::new())
}

fn no_output(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "silent", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::fifos(bed, &["stdout", "stderr"])?;
    let (out, err) = (read_all(&stdio.stdout), read_all(&stdio.stderr));
    task.run_exec("e1", &stdio, &["/bin/true"])?;
    ensure!(task.wait("e1")?.exit_status == 0, "it failed");
    task.delete_exec("e1")?;
    ensure!(text_of(out)?.is_empty() && text_of(err)?.is_empty(), "output of nothing");
    task.remove().map(|()| String::new())
}

fn late_output(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "late", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::fifos(bed, &["stdout"])?;
    let out = read_all(&stdio.stdout);
    let child = "(while [ ! -e /tmp/told ]; do sleep 0.1; done; echo late) & echo first";
    task.run_exec("e1", &stdio, &["/bin/sh", "-c", child])?;
    ensure!(task.wait("e1")?.exit_status == 0, "it failed");
    // That is told while a child of it has its output still.
    task.run_exec("e2", &Stdio::default(), &["/bin/touch", "/tmp/told"])?;
    let out = text_of(out)?;
    ensure!(out == "first\nlate\n", "{out:?}");
    ensure!(task.wait("e2")?.exit_status == 0, "touch failed");
    for exec in ["e1", "e2"] {
        task.delete_exec(exec)?;
    }
    task.remove().map(|()| String::new())
}

fn flood(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "flood", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::fifos(bed, &["stdout"])?;
    let fifo = stdio.stdout.clone();
    let reading = std::thread::spawn(move || std::io::copy(&mut File::open(fifo)?, &mut std::io::sink()));
    task.run_exec("e1", &stdio, &["/bin/sh", "-c", "yes & exit 3"])?;
    ensure!(task.wait("e1")?.exit_status == 3, "another exit status");
    task.delete_exec("e1")?;
    task.remove()?;
    let read = reading.join().map_err(|_| anyhow!("the reader panicked"))?.context("read")?;
    Ok(format!("{} MiB", read >> 20))
}

/// A client that has opened a FIFO and does not read it.
fn stall(fifo: &str) -> Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).context("a flag")?;
    File::options().read(true).custom_flags(flags).open(fifo).with_context(|| format!("open {fifo}"))
}

/// A reader that stalls keeps nothing for ever. containerd's own shim gives one ten seconds.
fn in_time(bed: &Bed, took: Duration) -> Result<()> {
    ensure!(took < Duration::from_secs(60) || bed.facts().systemd, "it took {took:.1?}");
    Ok(())
}

fn stalled_init(bed: &Bed) -> Result<String> {
    let stdio = Stdio::fifos(bed, &["stdout"])?;
    let reader = stall(&stdio.stdout)?;
    let task = Task::started(bed, "stalled", &stdio, &["/bin/yes"])?;
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    ensure!(task.end()? == 137, "not by SIGKILL");
    let waited = began.elapsed();
    task.delete()?;
    let deleted = began.elapsed();
    in_time(bed, deleted)?;
    drop(reader);
    task.forget().map(|()| format!("waited {waited:.1?}, deleted after {deleted:.1?}"))
}

fn stalled_exec(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "stalled", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::fifos(bed, &["stdout"])?;
    let reader = stall(&stdio.stdout)?;
    task.run_exec("e1", &stdio, &["/bin/yes"])?;
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    task.kill("e1", 9, false)?;
    ensure!(task.wait("e1")?.exit_status == 137, "not by SIGKILL");
    let waited = began.elapsed();
    task.delete_exec("e1")?;
    let deleted = began.elapsed();
    in_time(bed, deleted)?;
    drop(reader);
    task.remove().map(|()| format!("waited {waited:.1?}, deleted after {deleted:.1?}"))
}

/// Reads a FIFO to its end, 50 KiB each second until it is told to hurry.
fn read_slowly(fifo: &str, hurry: Arc<AtomicBool>) -> JoinHandle<Result<()>> {
    let fifo = fifo.to_owned();
    std::thread::spawn(move || {
        let mut file = File::open(&fifo).with_context(|| format!("open {fifo}"))?;
        while file.read(&mut [0; 1024]).with_context(|| format!("read {fifo}"))? > 0 {
            if !hurry.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        Ok(())
    })
}

fn slow_reader(bed: &Bed) -> Result<String> {
    /// Less than what is in the pipes takes at that pace, than an init waits for its execs, and than it takes for one after the
    /// other.
    const LONG: Duration = Duration::from_secs(20);
    const WRITES: [&str; 3] = ["/bin/dd", "if=/dev/zero", "bs=64k"];
    let (of_init, of_exec) = (Stdio::fifos(bed, &["stdout"])?, Stdio::fifos(bed, &["stdout"])?);
    let hurry = Arc::new(AtomicBool::new(false));
    let reading = [&of_init, &of_exec].map(|stdio| read_slowly(&stdio.stdout, hurry.clone()));
    let task = Task::created(bed, "slow", &of_init, &WRITES)?;
    let log = Log::of(bed.client(), &task.id)?;
    task.start("")?;
    task.run_exec("e1", &of_exec, &WRITES)?;
    log.until("exec-started")?;
    std::thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    ensure!(task.end()? == 137, "not by SIGKILL");
    let told = lines(&[log.next()?, log.next()?]);
    let took = began.elapsed();
    hurry.store(true, Ordering::Relaxed);
    ensure!(told == ["exit e1".to_owned(), format!("exit {}", task.id)], "{told:?}");
    ensure!(took < LONG || bed.facts().systemd, "told after {took:?}");
    task.delete_exec("e1")?;
    task.delete()?;
    for reading in reading {
        reading.join().map_err(|_| anyhow!("a reader panicked"))??;
    }
    task.forget().map(|()| format!("told after {took:.1?}"))
}

fn next_reader(bed: &Bed) -> Result<String> {
    let stdio = Stdio::fifos(bed, &["stdout"])?;
    let fifo = stdio.stdout.clone();
    let first = std::thread::spawn(move || -> Result<u64> {
        let mut line = String::new();
        BufReader::new(File::open(fifo).context("open the output")?).read_line(&mut line).context("read")?;
        line.trim().parse().with_context(|| format!("{line:?}"))
    });
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done";
    let task = Task::started(bed, "readers", &stdio, &["/bin/sh", "-c", script])?;
    let first = first.join().map_err(|_| anyhow!("the reader panicked"))??;
    std::thread::sleep(Duration::from_millis(300));
    let mut next = BufReader::new(File::open(&stdio.stdout).context("open the output again")?);
    let mut numbers: Vec<u64> = Vec::new();
    for _ in 0..50 {
        let mut line = String::new();
        next.read_line(&mut line).context("read")?;
        numbers.push(line.trim().parse().with_context(|| format!("{line:?} after {numbers:?}"))?);
    }
    let rising = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    ensure!(rising && numbers[0] > first, "{first}, then {numbers:?}");
    task.kill("", 9, false)?;
    let mut rest = Vec::new();
    next.read_to_end(&mut rest).context("read the rest").map(drop)?;
    ensure!(task.wait("")?.exit_status == 137, "not by SIGKILL");
    task.remove().map(|()| format!("{first}, then from {}", numbers[0]))
}

fn hundred_execs(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "hundred", &Stdio::default(), &SLEEP)?;
    let stdios = (0..100).map(|_| Stdio::fifos(bed, &["stdout"])).collect::<Result<Vec<_>>>()?;
    let lost: Vec<String> = std::thread::scope(|scope| {
        let execs = stdios.iter().enumerate().map(|(n, stdio)| {
            let task = &task;
            scope.spawn(move || -> Result<()> {
                let (exec, out) = (format!("e{n}"), read_all(&stdio.stdout));
                task.run_exec(&exec, stdio, &["/bin/sh", "-c", &format!("seq 1 2000; echo {n}")])?;
                ensure!(task.wait(&exec)?.exit_status == 0, "{exec} failed");
                task.delete_exec(&exec)?;
                let out = text_of(out)?;
                ensure!(
                    out.lines().count() == 2001 && out.ends_with(&format!("\n{n}\n")),
                    "{exec}: {} bytes",
                    out.len()
                );
                Ok(())
            })
        });
        let execs: Vec<_> = execs.collect();
        let outcomes = execs.into_iter().map(|exec| exec.join().unwrap_or_else(|_| Err(anyhow!("panicked"))));
        outcomes.filter_map(Result::err).map(|error| format!("{error:#}")).collect()
    });
    ensure!(lost.is_empty(), "{} of 100: {}", lost.len(), lost.join("; "));
    for stdio in stdios {
        fs::remove_file(&stdio.stdout).with_context(|| format!("remove {}", stdio.stdout))?;
    }
    task.remove().map(|()| String::new())
}
