//! The Task API's answers through the life of a task and its execs: states, pids, exits, and who is told.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use capsule_proto::containerd::v1::types::Status as TaskStatus;
use prost_types::Any;

use super::bed::{Bed, SLEEP, eventually};
use super::faulty::{Faulty, How};
use super::kills::kill;
use super::shim::Shim;
use super::task::{NO_TIME, Stdio, Task, read_all, text_of};
use super::{Case, Need};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("the state of an init, from its creation to its end", init_states).in_vm(),
    Case::new("the state of an exec, from its addition to its end", exec_states),
    Case::new("all who wait are told the same, before, after, and beside the deletion", waiters),
    Case::new("pids name their execs", pids).needs(CGROUPS),
    Case::new("kill of an exec ends the exec, kill of all ends all", kill_all).needs(CGROUPS),
    Case::new("what outlives an init in the node's PID namespace is killed", host_pids).needs(CGROUPS),
    Case::new("a paused task stands still and can be killed", paused).needs(CGROUPS),
    Case::new("execs of a paused task are paused, whatever they were", paused_execs).needs(CGROUPS),
    Case::new("a task that is being paused says so, and so do its execs", pausing)
        .needs(&[Need::Containerd2, Need::Cgroups]),
    Case::new("a task can be made again", again).in_vm(),
    Case::new("an exec's id can be used again", exec_again),
    Case::new("an exec's user, directory and environment", exec_process),
    Case::new("an exec that cannot be started names its program, and is as if it had not been", exec_fails),
    Case::new("the shim itself: Connect, State, and a Shutdown that waits for its task", shim_itself)
        .needs(&[Need::Containerd2]),
];

const CGROUPS: &[Need] = &[Need::Cgroups];

fn init_states(bed: &Bed) -> Result<String> {
    let stdio = Stdio::fifos(bed, &["stdin", "stdout", "stderr"])?;
    let readers = (read_all(&stdio.stdout), read_all(&stdio.stderr));
    let task = Task::container(bed, "states", &[], &["/bin/sh", "-c", "cat; exit 3"])?;
    let pid = task.create(&stdio)?;
    let created = task.expect("", TaskStatus::Created)?;
    ensure!(created.pid == pid && pid > 0, "{created:?}, not {pid}");
    ensure!(
        created.stdin == stdio.stdin && created.stdout == stdio.stdout && created.stderr == stdio.stderr,
        "{created:?}"
    );
    ensure!(fs::exists(format!("/proc/{pid}"))?, "there is no process {pid}");
    task.start("")?;
    let running = task.expect("", TaskStatus::Running)?;
    ensure!(running.pid == pid && running.exit_status == 0, "{running:?}");
    ensure!(created.exited_at == NO_TIME && running.exited_at == NO_TIME, "{created:?} {running:?}");
    drop(fs::File::options().write(true).open(&stdio.stdin).context("open the input")?);
    task.close_stdin("")?;
    let waited = task.wait("")?;
    let stopped = task.expect("", TaskStatus::Stopped)?;
    ensure!(
        stopped.pid == pid && stopped.exit_status == 3 && waited.exit_status == 3,
        "{stopped:?} {waited:?}"
    );
    ensure!(stopped.exited_at == waited.exited_at && waited.exited_at.is_some(), "{stopped:?} {waited:?}");
    task.remove()?;
    ensure!(text_of(readers.0)?.is_empty() && text_of(readers.1)?.is_empty(), "output of nothing");
    Ok(String::new())
}

fn exec_states(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "states", &Stdio::default(), &SLEEP)?;
    task.exec("e1", &Stdio::default(), &["/bin/sh", "-c", "exit 4"])?;
    let added = task.expect("e1", TaskStatus::Created)?;
    ensure!(added.pid == 0 && added.exit_status == 0 && added.exited_at == NO_TIME, "{added:?}");
    let pid = task.start("e1")?;
    let waited = task.wait("e1")?;
    let stopped = task.expect("e1", TaskStatus::Stopped)?;
    ensure!(
        stopped.pid == pid && stopped.exit_status == 4 && waited.exit_status == 4,
        "{stopped:?} {waited:?}"
    );
    let deleted = task.delete_exec("e1")?;
    ensure!(deleted.id == "e1" && deleted.pid == pid && deleted.exit_status == 4, "{deleted:?}");
    ensure!(deleted.exited_at == waited.exited_at && waited.exited_at.is_some(), "{deleted:?} {waited:?}");
    task.expect("", TaskStatus::Running)?;
    task.exec("e2", &Stdio::default(), &SLEEP)?;
    let deleted = task.delete_exec("e2")?;
    ensure!(deleted.pid == 0 && deleted.exit_status == 0 && deleted.exited_at == NO_TIME, "{deleted:?}");
    task.remove().map(|()| String::new())
}

fn waiters(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "waiters", &Stdio::default(), &SLEEP)?;
    task.run_exec("e1", &Stdio::default(), &SLEEP)?;
    let told = std::thread::scope(|scope| {
        let (init, exec) = (|| task.wait(""), || task.wait("e1"));
        let waiting: Vec<_> = (0..4).flat_map(|_| [scope.spawn(init), scope.spawn(exec)]).collect();
        std::thread::sleep(Duration::from_secs(1));
        task.end()?;
        // Those who still wait are told, although there is nothing more to ask about.
        task.delete()?;
        let told =
            waiting.into_iter().map(|one| Ok(one.join().map_err(|_| anyhow!("a waiter panicked"))??));
        told.collect::<Result<Vec<_>>>()
    })?;
    ensure!(told.iter().all(|answer| answer.exit_status == 137), "{told:?}");
    for one in [0, 1] {
        let times: Vec<_> = told.iter().skip(one).step_by(2).map(|answer| answer.exited_at).collect();
        ensure!(times.iter().all(|at| at.is_some() && *at == times[0]), "{told:?}");
    }
    task.forget().map(|()| String::new())
}

fn pids(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "pids", &Stdio::default(), &SLEEP)?;
    let init = task.get("")?.pid;
    let exec = task.run_exec("e1", &Stdio::default(), &SLEEP)?;
    let listed = task.pids()?;
    ensure!(listed.len() == 2, "{listed:?}");
    let find =
        |pid| listed.iter().find(|info| info.pid == pid).with_context(|| format!("no {pid}: {listed:?}"));
    ensure!(find(init)?.info.is_none(), "{listed:?}");
    // The first field of runc's `ProcessDetails`: a string.
    let info = find(exec)?.info.clone().context("an exec without a name")?;
    ensure!(info.type_url.ends_with("containerd.runc.v1.ProcessDetails"), "{info:?}");
    ensure!(info.value == b"\x0a\x02e1", "{info:?}");
    task.remove().map(|()| String::new())
}

fn kill_all(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "kill", &Stdio::default(), &SLEEP)?;
    task.run_exec("e1", &Stdio::default(), &SLEEP)?;
    task.run_exec("e2", &Stdio::default(), &SLEEP)?;
    task.kill("e1", 15, false)?;
    ensure!(task.wait("e1")?.exit_status == 143, "not by SIGTERM");
    task.expect("e2", TaskStatus::Running)?;
    task.expect("", TaskStatus::Running)?;
    task.kill("", 9, true)?;
    ensure!(task.wait("e2")?.exit_status == 137 && task.wait("")?.exit_status == 137, "not by SIGKILL");
    task.remove().map(|()| String::new())
}

fn host_pids(bed: &Bed) -> Result<String> {
    let options = ["--with-ns", "pid:/proc/1/ns/pid"];
    let task =
        Task::container(bed, "host", &options, &["/bin/sh", "-c", "sleep 100000 & exec sleep 100000"])?;
    let init = task.create(&Stdio::default())?;
    task.start("")?;
    let other = eventually("the init's child", || {
        let listed = task.pids()?;
        let other = listed.iter().find(|info| info.pid != init);
        other.map(|info| info.pid).with_context(|| format!("{listed:?}"))
    })?;
    task.kill("", 9, false)?;
    ensure!(task.wait("")?.exit_status == 137, "not by SIGKILL");
    eventually("the child's end", || {
        ensure!(!fs::exists(format!("/proc/{other}/root/bin"))?, "process {other} lives");
        Ok(())
    })?;
    task.remove().map(|()| String::new())
}

fn paused(bed: &Bed) -> Result<String> {
    let script = "i=0; while :; do i=$((i+1)); echo $i > /count; done";
    let task = Task::started(bed, "paused", &Stdio::default(), &["/bin/sh", "-c", script])?;
    let file = format!("/proc/{}/root/count", task.get("")?.pid);
    let count = || fs::read_to_string(&file).with_context(|| format!("read {file}"));
    eventually("the first count", || ensure_longer(&count()?, 1))?;
    task.pause()?;
    task.expect("", TaskStatus::Paused)?;
    let first = count()?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(count()? == first, "it goes on");
    task.resume()?;
    task.expect("", TaskStatus::Running)?;
    eventually("the next count", || {
        let now = count()?;
        ensure!(now != first && !now.is_empty(), "still {now:?}");
        Ok(())
    })?;
    task.pause()?;
    ensure!(task.end()? == 137, "not by SIGKILL");
    task.remove().map(|()| String::new())
}

fn ensure_longer(text: &str, length: usize) -> Result<()> {
    ensure!(text.len() > length, "{text:?}");
    Ok(())
}

fn paused_execs(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "paused", &Stdio::default(), &SLEEP)?;
    task.exec("added", &Stdio::default(), &SLEEP)?;
    let pid = task.run_exec("running", &Stdio::default(), &SLEEP)?;
    task.run_exec("ended", &Stdio::default(), &["/bin/sh", "-c", "exit 5"])?;
    task.wait("ended")?;
    task.pause()?;
    for exec in ["added", "ended"] {
        task.expect(exec, TaskStatus::Paused)?;
    }
    ensure!(task.expect("running", TaskStatus::Paused)?.pid == pid, "another process");
    ensure!(task.get("ended")?.exit_status == 5, "another exit");
    task.resume()?;
    task.expect("added", TaskStatus::Created)?;
    task.expect("running", TaskStatus::Running)?;
    task.expect("ended", TaskStatus::Stopped)?;
    task.remove().map(|()| String::new())
}

fn pausing(bed: &Bed) -> Result<String> {
    let faulty = Faulty::new(&bed.id("pausing"), "runc")?;
    let options = faulty.options(bed.stack)?;
    let options = options.each_ref().map(String::as_str);
    let task = Task::container(bed, "pausing", &options, &SLEEP)?;
    task.create(&Stdio::default())?;
    task.start("")?;
    task.run_exec("e1", &Stdio::default(), &SLEEP)?;
    faulty.plan("pause", How::Hang)?;
    let (seen, paused) = std::thread::scope(|scope| -> Result<_> {
        let pause = scope.spawn(|| task.pause());
        let hung = faulty.hung()?;
        let task = &task;
        let ask = |process| scope.spawn(move || task.get(process).map(|process| process.status()));
        let init = ask("");
        eventually("the exec to be said to pause", || task.expect("e1", TaskStatus::Pausing))?;
        let asked = [init, ask("e1")];
        // containerd's own shim answers for the init when the step is done, but with what it saw before.
        std::thread::sleep(Duration::from_millis(500));
        kill(hung)?;
        let panicked = |_| anyhow!("a call panicked");
        let seen = asked.map(|answer| answer.join().map_err(panicked));
        Ok((seen, pause.join().map_err(panicked)?))
    })?;
    ensure!(paused.is_err(), "it is paused although the runtime's command was killed");
    for (process, status) in ["", "e1"].into_iter().zip(seen) {
        let status = status??;
        // containerd waits two seconds for an answer of the init.
        let is_late = process.is_empty() && bed.is_reference() && status == TaskStatus::Unknown;
        ensure!(status == TaskStatus::Pausing || is_late, "{process:?} {status:?}");
    }
    for process in ["", "e1"] {
        task.expect(process, TaskStatus::Running)?;
    }
    task.remove().map(|()| String::new())
}

fn again(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "again", &[], &["/bin/sh", "-c", "exit 6"])?;
    for _ in 0..3 {
        task.create(&Stdio::default())?;
        task.start("")?;
        ensure!(task.wait("")?.exit_status == 6, "another exit");
        ensure!(task.delete()?.exit_status == 6, "another exit");
    }
    task.forget().map(|()| String::new())
}

fn exec_again(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "reuse", &Stdio::default(), &SLEEP)?;
    for code in 0..3 {
        task.run_exec("e1", &Stdio::default(), &["/bin/sh", "-c", &format!("exit {code}")])?;
        ensure!(task.wait("e1")?.exit_status == code, "another exit");
        ensure!(task.delete_exec("e1")?.exit_status == code, "another exit");
    }
    task.remove().map(|()| String::new())
}

fn exec_process(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "process", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::fifos(bed, &["stdout"])?;
    let reader = read_all(&stdio.stdout);
    let spec = serde_json::json!({
        "user": { "uid": 1000, "gid": 1001, "additionalGids": [1002] },
        "args": ["/bin/sh", "-c", "id -u; id -G; pwd; echo $WORD; ulimit -n; grep NoNewPrivs /proc/self/status"],
        "env": ["PATH=/bin", "WORD=a b"],
        "cwd": "/usr/share",
        "noNewPrivileges": true,
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 100, "soft": 99 }],
    });
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
    task.exec_spec("e1", &stdio, Any { type_url, value: spec.to_string().into_bytes() })?;
    task.start("e1")?;
    ensure!(task.wait("e1")?.exit_status == 0, "it failed");
    task.delete_exec("e1")?;
    let text = text_of(reader)?;
    ensure!(text == "1000\n1001 1002\n/usr/share\na b\n99\nNoNewPrivs:\t1\n", "{text:?}");
    task.remove().map(|()| String::new())
}

fn exec_fails(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "fails", &Stdio::default(), &SLEEP)?;
    task.exec("e1", &Stdio::default(), &["/no/such/program"])?;
    let (refused, early) = std::thread::scope(|scope| -> Result<_> {
        let waiting = scope.spawn(|| task.wait("e1"));
        std::thread::sleep(Duration::from_millis(100));
        let refused = task.start("e1").err().context("it was started")?;
        Ok((refused, waiting.join().map_err(|_| anyhow!("the call panicked"))??))
    })?;
    ensure!(refused.code() == tonic::Code::Unknown, "{refused}");
    ensure!(refused.message().contains("/no/such/program"), "does not name the program: {refused}");
    for waited in [early, task.wait("e1")?] {
        ensure!(waited.exit_status == 0 && waited.exited_at == NO_TIME, "{waited:?}");
    }
    let failed = task.expect("e1", TaskStatus::Created)?;
    ensure!(failed.pid == 0 && failed.exit_status == 0 && failed.exited_at == NO_TIME, "{failed:?}");
    let deleted = task.delete_exec("e1")?;
    ensure!(deleted.pid == 0 && deleted.exit_status == 0 && deleted.exited_at == NO_TIME, "{deleted:?}");
    task.run_exec("e1", &Stdio::default(), &["/bin/true"])?;
    ensure!(task.wait("e1")?.exit_status == 0, "the id is spoilt");
    task.remove().map(|()| refused.message().to_owned())
}

fn shim_itself(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "shim", &Stdio::default(), &SLEEP)?;
    let shim = Shim::of(&task.id)?;
    let (shim_pid, task_pid) = shim.connect(&task.id)?;
    ensure!(task_pid == task.get("")?.pid, "Connect answers {task_pid} as the task");
    let program = fs::read_link(format!("/proc/{shim_pid}/exe")).context("Connect's shim is no process")?;
    ensure!(program.to_string_lossy().contains("containerd-shim"), "{}", program.display());
    let state = shim.state(&task.id, "")?;
    ensure!(state.pid == task_pid && state.id == task.id, "{state:?}");
    ensure!(state.bundle.ends_with(&format!("/default/{}", task.id)), "{state:?}");
    shim.shutdown(&task.id)?;
    task.expect("", TaskStatus::Running)?;
    task.end()?;
    task.delete()?;
    eventually("the shim's end", || {
        ensure!(!fs::exists(format!("/proc/{shim_pid}"))?, "process {shim_pid} lives");
        Ok(())
    })?;
    task.forget().map(|()| program.display().to_string())
}
