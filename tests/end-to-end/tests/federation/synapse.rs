//! Myelin with Synapse.
