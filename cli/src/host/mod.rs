//! The machine that capsulectl runs on, as `doctor` and `setup` look at it: programs, processes, containerd and the settings of
//! capsuled. Nothing is changed here.

pub mod cgroups;
pub mod containerd;
mod program;
mod release;
mod settings;

pub use self::program::{Ran, find, judged, own_path, run};
pub use self::release::Release;
pub use self::settings::{DEFAULT_SETTINGS, Settings};
