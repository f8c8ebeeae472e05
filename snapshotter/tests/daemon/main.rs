//! capsuled as a program: replaced while clients call it, on disks that are full, read-only or damaged.
//!
//! These tests run the program, which needs root to probe the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed
#![allow(clippy::print_stdout)] // how much was tried is a result

mod damage;
mod disks;
mod load;
mod passed;
mod replaced;
mod site;
