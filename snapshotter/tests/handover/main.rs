//! capsuled is replaced while clients call it: no call is lost.
//!
//! These tests run the program, which needs root to probe the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed
#![allow(clippy::print_stdout)] // how much was tried is a result

mod daemon;
mod load;
mod passed;
mod replaced;
