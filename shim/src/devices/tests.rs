//! Programs against the evaluator, in two machines that are not the kernel; plans; and the kernel itself.

pub mod kernel;
mod plans;
mod programs;
mod random;
