//! Pushers: telling push gateways of what people's push rules notify of.
//!
//! One replica pushes, the one that holds the lease. It follows the stream, asks for the events of rooms in which
//! someone with a pusher is whom they notify, and sends to the gateways. What is on its way is in memory; a pusher that
//! does not keep up is written down with the position from which on it lacks events, and is told later what is still
//! unread then.
//!
//! - [`Pushers`]: what clients set and list.
//! - [`Duty`]: the one that pushes.
//! - [`Gateway`]: how gateways are asked.
//!
//! [Specification](https://spec.matrix.org/v1.19/push-gateway-api/)

mod delivery;
mod duty;
mod gateway;
mod metrics;
mod payload;
mod people;
mod pushers;
mod scan;
mod send;
mod tail;
mod term;
#[cfg(test)]
mod tests;

pub use self::{
    duty::Duty,
    gateway::{DialError, Gateway, GatewayError, HttpGateways, SetupError},
    pushers::{Error, Pushers},
};
