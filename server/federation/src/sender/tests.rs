//! The outgoing queues on a network of their own, on both engines: what goes wrong there, and that nothing is lost.

mod catch_up;
mod edus;
mod lease;
mod order;
mod trouble;
mod world;
