//! What is asked of other servers.

use std::time::Duration;

use myelin_rooms::remote::{Answer, RemoteError};
use ruma::{
    ServerName,
    api::federation::{
        device::get_devices,
        keys::{claim_keys, get_keys},
    },
};

use crate::metrics::{REMOTE_FAILURES, REMOTE_SECONDS};

/// What is asked of other servers. Each request has its own deadline, and the answer a bound on its size.
pub trait RemoteDevices: Send + Sync {
    /// `GET /_matrix/federation/v1/user/devices/{userId}`
    fn user_devices<'a>(
        &'a self,
        server: &'a ServerName,
        request: get_devices::v1::Request,
    ) -> Answer<'a, get_devices::v1::Response>;

    /// `POST /_matrix/federation/v1/user/keys/query`
    fn keys_query<'a>(
        &'a self,
        server: &'a ServerName,
        request: get_keys::v1::Request,
    ) -> Answer<'a, get_keys::v1::Response>;

    /// `POST /_matrix/federation/v1/user/keys/claim`
    fn keys_claim<'a>(
        &'a self,
        server: &'a ServerName,
        request: claim_keys::v1::Request,
    ) -> Answer<'a, claim_keys::v1::Response>;
}

/// Implements [`RemoteDevices`] by a method that sends any of the requests:
/// `fn call<R>(&self, server: &ServerName, request: R) -> impl Future<Output = Result<Answer, RemoteError>>`.
#[macro_export]
macro_rules! remote_devices_by_call {
    () => {
        fn user_devices<'a>(
            &'a self,
            server: &'a ::ruma::ServerName,
            request: ::ruma::api::federation::device::get_devices::v1::Request,
        ) -> ::myelin_rooms::remote::Answer<'a, ::ruma::api::federation::device::get_devices::v1::Response> {
            ::std::boxed::Box::pin(self.call(server, request))
        }

        fn keys_query<'a>(
            &'a self,
            server: &'a ::ruma::ServerName,
            request: ::ruma::api::federation::keys::get_keys::v1::Request,
        ) -> ::myelin_rooms::remote::Answer<'a, ::ruma::api::federation::keys::get_keys::v1::Response> {
            ::std::boxed::Box::pin(self.call(server, request))
        }

        fn keys_claim<'a>(
            &'a self,
            server: &'a ::ruma::ServerName,
            request: ::ruma::api::federation::keys::claim_keys::v1::Request,
        ) -> ::myelin_rooms::remote::Answer<'a, ::ruma::api::federation::keys::claim_keys::v1::Response> {
            ::std::boxed::Box::pin(self.call(server, request))
        }
    };
}

/// Waits for another server no longer than this.
pub(crate) async fn within<T>(
    time: Duration,
    name: &'static str,
    server: &ServerName,
    answer: Answer<'_, T>,
) -> Result<T, RemoteError> {
    let timer = REMOTE_SECONDS.with_label_values(&[name]).start_timer();
    let answer = match tokio::time::timeout(time, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(RemoteError::Unreachable { server: server.to_owned(), reason: "no answer in time".to_owned() }),
    };
    timer.observe_duration();
    if let Err(error) = &answer {
        REMOTE_FAILURES.with_label_values(&[name]).inc();
        tracing::debug!(server.name = %server, %error, "{name} of {server} failed: {error}");
    }
    answer
}
