//! What is counted, in the form that Prometheus reads.
//!
//! `meters` are counted as things happen, over capsuled's life; `present` is how things are when somebody asks.

mod meters;
mod present;

pub use self::{
    meters::{Meters, Step, Timer, Transfer},
    present::{Disk, Present},
};
