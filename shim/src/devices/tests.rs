//! Programs against the evaluator, in two machines that are not the kernel; plans; and the kernel itself.

mod kernel;
mod plans;
mod programs;
