//! Pages of a database that are damaged past its header: redb trusts what it does not check, and panics.
//!
//! A panic of redb's is an end of the process (`panic = "abort"`), with a backtrace that names no file. What is known here is on
//! which store a thread is at work.

use std::{
    cell::RefCell,
    fmt,
    panic::{self, PanicHookInfo},
    path::Path,
    sync::Arc,
};

thread_local! {
    static AT_WORK_ON: RefCell<Option<Arc<Path>>> = const { RefCell::new(None) };
}

/// Notes on which store the thread is at work; on which it was.
fn note(store: Option<Arc<Path>>) -> Option<Arc<Path>> {
    // A thread that is ending has nothing to note it in any more.
    AT_WORK_ON.try_with(|noted| noted.replace(store)).unwrap_or_default()
}

/// While this lives, its thread is at work on a store.
pub(super) struct Work(Option<Arc<Path>>);

impl Work {
    pub(super) fn on(path: &Arc<Path>) -> Self {
        Self(note(Some(path.clone())))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        note(self.0.take());
    }
}

/// The first field of what has a database: closing that reads pages too.
#[derive(Debug)]
pub(super) struct Closing(pub(super) Arc<Path>);

impl Drop for Closing {
    fn drop(&mut self) {
        note(Some(self.0.clone()));
    }
}

/// The last field of what has a database, after [`Closing`].
#[derive(Debug)]
pub(super) struct Closed;

impl Drop for Closed {
    fn drop(&mut self) {
        note(None);
    }
}

/// What redb has found.
struct Damage<'a> {
    store: &'a Path,
    panic: &'a PanicHookInfo<'a>,
}

impl fmt::Display for Damage<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "metadata store {} is damaged: redb panicked", self.store.display())?;
        if let Some(location) = self.panic.location() {
            let file = Path::new(location.file()).file_name().unwrap_or_default();
            write!(out, " at {}:{}", file.display(), location.line())?;
        }
        let payload = self.panic.payload();
        let message = payload.downcast_ref::<String>().map(String::as_str);
        if let Some(message) = message.or_else(|| payload.downcast_ref::<&str>().copied()) {
            write!(out, " ({})", message.lines().next().unwrap_or_default())?;
        }
        write!(
            out,
            ": restore it, or move it away, as docs/operations.md says (\"When the store is damaged\")"
        )
    }
}

/// From now on a panic of redb's over a store ends the process by `end`, which is told which file is damaged and what to do.
/// Other panics, those of this crate among them, are what they were.
pub fn ends_by(end: fn(&dyn fmt::Display) -> !) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let store = AT_WORK_ON.try_with(|store| store.borrow().clone()).ok().flatten();
        match store.filter(|_| !is_own(panic)) {
            Some(store) => end(&Damage { store: &store, panic }),
            None => before(panic),
        }
    }));
}

/// Whether it is of this crate: what is done within a transaction is its own.
fn is_own(panic: &PanicHookInfo<'_>) -> bool {
    let sources = file!().strip_suffix("store/damage.rs").unwrap_or(file!());
    panic.location().is_some_and(|location| location.file().starts_with(sources))
}
