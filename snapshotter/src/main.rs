//! capsuled.
fn main() {}
