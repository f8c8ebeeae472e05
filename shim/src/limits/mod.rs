//! A live container's limits (cgroup v2): its own, and what attachments do to them, kept apart.
//!
//! A limit in force is the container's own with all grants added, and not above the lowest cap ([`change::effective`]). So attachments
//! overlap and end in any order, and an update of the task changes what is the container's own, and neither loses a grant nor is lost.
//!
//! Everything goes through the runtime's own update, with the effective limits in the place of the container's own (`request`). What
//! was found out about runtimes, and is why the rest is as it is:
//!
//! - runc writes all of its state again with each update: memory, swap, reservation, weight. What OCI has a field for is told by that field,
//!   and so is in the state. `unified` is not: it goes with the next update.
//! - crun keeps no state, and writes what it is told.
//! - Both take `""` for "not named" where CPUs are listed: the list is emptied by a write to the file. (runc also takes 0 so, but in `unified`.)
//! - Neither keeps `io.max` and `hugetlb.SIZE.max`, and systemd is told of neither: they are written to the file, after the update.
//! - runc with systemd rounds a quota up to full percents of a CPU, as systemd does: that is no difference.
//! - crun with systemd has a control group in systemd's scope, and limits in both. A quota of -1 does not reach the scope, nor systemd: it is
//!   told one that nobody reaches, and `max` is written. As the scope's swap limit it takes the sum with memory; `unified` puts that right.
//! - systemd has `io.weight` of runc's containers at 100 after `daemon-reload`: nobody tells it of that one.
//! - With BFQ in the kernel, both write OCI's weight of I/O to `io.bfq.weight`, and to `io.weight` without: so that is the limit then.
//! - The kernel rounds bytes down to pages.
//!
//! Whatever the runtime has made of it, the files are read afterwards, and written where they do not hold what they should.
//!
//! A limit above the container's (a pod's) is not touched: memory beyond it is refused, other grants have no effect then, which is logged.
//!
//! Memory and processes in use are not cut: a limit that would be below what is in use is refused, after the kernel was asked to reclaim the
//! difference. A lazy detach goes on: the kernel then reclaims, and kills in the container when that does not do.
//!
//! Rooms: `file`, `throttles`, `value`, `change`, `request`, `error` (pure) ← `files` (the control group).

mod change;
mod error;
mod file;
mod files;
mod request;
mod throttles;
mod value;

pub use change::{Amounts, Change, effective};
pub use error::LimitError;
pub use file::File;
pub use files::Groups;
pub use request::{Request, Words, indirect, is_told, merge, patch};
pub use value::Value;
