//! Rooms that are shared by several homeservers: by Myelins, and by Myelin and Synapse, which knows nothing of Myelin.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod course;
mod demo;
mod dispute;
mod guest;
mod hostile;
mod kill;
mod media;
mod myelins;
mod random;
mod synapse;
mod together;
