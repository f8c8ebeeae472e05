//! Power cuts while capsules are published, attached, moved, written to and taken away.
//!
//! As the campaign of snapshots, with containerd and containers beside capsuled: its root alone is on the disk whose power is
//! cut. After the cut capsuled lists what waits for the containers' next tasks, which needs no containerd.
//!
//! | room | what lives there | what it may touch |
//! | --- | --- | --- |
//! | [`model`] | what must be there: pure | nothing |
//! | [`work`] | clients inside the VM | the VM |
//! | [`check`] | what is there after a cut | mounts in the worker's namespace |

pub mod check;
pub mod model;
pub mod work;
