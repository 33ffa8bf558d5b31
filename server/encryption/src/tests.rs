//! The whole over a store, on each engine that is there.
