//! The ephemeral messages of a transaction. Each stands for itself: a bad one is counted, and the next is looked at.

use myelin_encryption::EduOutcome;
use ruma::{ServerName, api::federation::transactions::edu::Edu, serde::Raw};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{presence, receipts, typing};
use crate::{Services, errors::Result, metrics::EDUS};

/// Receipts and states of presence of one transaction at the most: each may be a write.
const ITEMS_MAX: usize = 1000;

/// What became of a message, or of a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// It says nothing that we could use: of rooms, users and events that we do not know, or of a type that we do not.
    Ignored,
    /// It speaks for those whom its sender does not speak for.
    Refused,
    /// It is not of the form that its type has.
    Malformed,
    /// Our fault.
    Failed,
    /// Told.
    Accepted,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Ignored => "ignored",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
            Self::Accepted => "accepted",
        }
    }
}

/// How many parts may still be looked at.
pub(super) struct Budget(usize);

impl Budget {
    pub(super) fn take(&mut self) -> bool {
        let is_left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        is_left
    }
}

#[derive(Deserialize)]
struct Header<'a> {
    edu_type: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

/// Takes all of them, in order.
///
/// # Errors
///
/// When what must not be lost could not be written down: the whole transaction has to come again.
pub(super) async fn take(services: &Services, origin: &ServerName, edus: &[Raw<Edu>]) -> Result<()> {
    let mut budget = Budget(ITEMS_MAX);
    for edu in edus {
        let Ok(Header { edu_type, content }) = serde_json::from_str(edu.json().get()) else {
            EDUS.with_label_values(&["other", Outcome::Malformed.label()]).inc();
            continue;
        };
        let content = content.get();
        let (label, outcome) = match edu_type.as_str() {
            "m.typing" => ("m.typing", typing::take(services, origin, content).await),
            "m.receipt" => ("m.receipt", receipts::take(services, origin, content, &mut budget).await),
            "m.presence" => ("m.presence", presence::take(services, origin, content, &mut budget).await),
            "m.device_list_update" => ("m.device_list_update", of_devices(services, origin, edu).await?),
            "m.signing_key_update" => ("m.signing_key_update", of_devices(services, origin, edu).await?),
            "m.direct_to_device" => ("m.direct_to_device", of_devices(services, origin, edu).await?),
            _ => ("other", Outcome::Ignored),
        };
        EDUS.with_label_values(&[label, outcome.label()]).inc();
    }
    Ok(())
}

async fn of_devices(services: &Services, origin: &ServerName, edu: &Raw<Edu>) -> Result<Outcome> {
    let Ok(edu) = edu.deserialize() else { return Ok(Outcome::Malformed) };
    Ok(match Box::pin(services.encryption.receive_edu(origin, &edu)).await? {
        EduOutcome::Accepted => Outcome::Accepted,
        EduOutcome::Ignored => Outcome::Ignored,
        EduOutcome::Refused => Outcome::Refused,
        EduOutcome::Malformed => Outcome::Malformed,
    })
}

/// The outcome of telling clients.
pub(super) fn told(result: Result<(), myelin_sync::Error>) -> Outcome {
    use myelin_sync::Error;
    match result {
        Ok(()) => Outcome::Accepted,
        Err(Error::Forbidden(_)) => Outcome::Refused,
        Err(Error::NotFound(_)) => Outcome::Ignored,
        Err(Error::InvalidParam(_) | Error::BadJson(_)) => Outcome::Malformed,
        // What else can go wrong is nothing that another server has a part in.
        Err(error) => failed(&error),
    }
}

/// Logs a fault of ours.
pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> Outcome {
    tracing::warn!(error, "an ephemeral message of another server was lost");
    Outcome::Failed
}
