//! The Matrix homeserver Myelin.

mod acme;
mod cli;
mod exit;
mod front_door;
mod gauges;
mod health;
mod landing;
mod parts;
mod serve;
mod well_known;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::run()
}
