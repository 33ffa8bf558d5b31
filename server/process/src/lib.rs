//! Configuration, logging, metrics, limits and the life cycle of a Myelin process.
//!
//! What every crate may lean on and what leans on nothing of Myelin: [`config`] says what the operator wants,
//! [`logs`] and [`metrics`] say what happens, [`limits`] makes room, [`shutdown`] ends every task in order and
//! [`notify`] tells the service manager.

pub mod address;
pub mod config;
pub mod limits;
pub mod logs;
pub mod metrics;
pub mod notify;
pub mod shutdown;
