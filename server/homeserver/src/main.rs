//! The Matrix homeserver Myelin.
fn main() {}
