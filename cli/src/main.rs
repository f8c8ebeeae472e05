//! capsulectl.
fn main() {}
