//! Who a request comes from: <https://spec.matrix.org/v1.19/server-server-api/#request-authentication>.

use std::sync::LazyLock;

use ::http::Request;
use bytes::Bytes;
use myelin_process::metrics::{self, IntCounterVec};
use ruma::{
    OwnedServerName,
    api::federation::authentication::{XMatrix, XMatrixExtractError, XMatrixVerificationError},
    signatures::PublicKeyMap,
};

use crate::Client;

static AUTHENTICATIONS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_authentications_total",
    "Requests of other servers whose signature was checked, by what came of it.",
    ["outcome"]
);

/// Bodies larger than this are hashed off the threads that wait for others, in bytes.
const VERIFY_HERE_MAX: usize = 64 * 1024;

/// Why a request is not believed to come from whom it says. The first two are answered with 401, the third with 403.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// It says nothing, or nothing that can be understood.
    #[error("{0}")]
    Header(#[from] XMatrixExtractError),
    /// The signature is not good, or meant for another server.
    #[error("the request of {origin} is not authentic: {source}")]
    Signature {
        /// Whom it says it comes from.
        origin: OwnedServerName,
        /// What is wrong.
        #[source]
        source: XMatrixVerificationError,
    },
    /// The configuration does not let us talk with the server.
    #[error("federation with {0} is not allowed here")]
    NotAllowed(OwnedServerName),
    /// The key cannot be had, or the server says that it does not sign with it any more.
    #[error("{origin} is not known to sign with {key_id} now")]
    UnknownKey {
        /// Whom it says it comes from.
        origin: OwnedServerName,
        /// The key by which it is said to be signed.
        key_id: String,
    },
}

impl Client {
    /// Checks the signature of a request whose URI is the path and query as they came. The answer is who sent it, who
    /// counts as heard from.
    ///
    /// # Errors
    ///
    /// All of [`AuthenticationError`].
    pub async fn authenticate(&self, request: &Request<Bytes>) -> Result<OwnedServerName, AuthenticationError> {
        let result = Box::pin(self.authenticate_unobserved(request)).await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(AuthenticationError::Header(_)) => "header",
            Err(AuthenticationError::Signature { .. }) => "signature",
            Err(AuthenticationError::NotAllowed(_)) => "not_allowed",
            Err(AuthenticationError::UnknownKey { .. }) => "unknown_key",
        };
        AUTHENTICATIONS.with_label_values(&[outcome]).inc();
        if let Ok(origin) = &result {
            self.heard_from(origin);
        }
        result
    }

    async fn authenticate_unobserved(&self, request: &Request<Bytes>) -> Result<OwnedServerName, AuthenticationError> {
        let claim = XMatrix::extract_from_http_headers(request.headers())?;
        let origin = claim.origin.clone();
        // Before anything is asked of anybody.
        if claim.destination.as_ref().is_some_and(|destination| *destination != self.options.server_name) {
            let source = XMatrixVerificationError::DestinationMismatch;
            return Err(AuthenticationError::Signature { origin, source });
        }
        if !self.is_allowed(&origin) || origin == self.options.server_name {
            return Err(AuthenticationError::NotAllowed(origin));
        }
        let key_id = claim.key.to_string();
        let Some(key) = self.current_key(&origin, &key_id).await else {
            return Err(AuthenticationError::UnknownKey { origin, key_id });
        };
        let keys = PublicKeyMap::from([(origin.to_string(), [(key_id, key)].into())]);
        let verified = self.verified(claim, request, keys).await;
        verified.map_err(|source| AuthenticationError::Signature { origin: origin.clone(), source })?;
        Ok(origin)
    }

    async fn verified(
        &self,
        claim: XMatrix,
        request: &Request<Bytes>,
        keys: PublicKeyMap,
    ) -> Result<(), XMatrixVerificationError> {
        let own = self.options.server_name.clone();
        if request.body().len() <= VERIFY_HERE_MAX {
            return claim.verify_http_request(request, &own, &keys);
        }
        let mut copy = Request::new(request.body().clone());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        let verifying = tokio::task::spawn_blocking(move || claim.verify_http_request(&copy, &own, &keys));
        // It ends early only when the process does.
        verifying.await.unwrap_or(Err(XMatrixVerificationError::DestinationMismatch))
    }
}
