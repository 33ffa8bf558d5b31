//! GET /_matrix/client/versions
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientversions>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::discovery::get_supported_versions::{Request, Response};

use crate::{Services, errors::Result};

/// Every released version.
const VERSIONS: &[&str] = &[
    "r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4",
    "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16", "v1.17",
    "v1.18", "v1.19",
];

/// What clients in use still ask for by its name before it was released.
const FEATURES: &[&str] = &[
    // `state_after` in /sync, released with v1.16.
    "org.matrix.msc4222",
    // Profile fields of any name, released with v1.16.
    "uk.tcpip.msc4133",
    "uk.tcpip.msc4133.stable",
    // Simplified sliding sync, before it is released.
    "org.matrix.simplified_msc3575",
    // Authenticated media, released with v1.11.
    "org.matrix.msc3916.stable",
    // Rendezvous sessions, for signing in by a QR code.
    "org.matrix.msc4108",
];

pub(crate) async fn list(_: State<Services>, _: Matrix<Request>) -> Result<Reply<Response>> {
    let mut response = Response::new(VERSIONS.iter().map(|&version| version.to_owned()).collect());
    response.unstable_features = FEATURES.iter().map(|&feature| (feature.to_owned(), true)).collect();
    Ok(Reply(response))
}
