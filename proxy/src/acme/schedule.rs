//! When to ask for a certificate.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{AcmeSettings, Pace, Record};
use crate::Certificate;

/// When renewal begins if the authority does not say: after two thirds of the certificate's life, less a random part.
const AGE: f64 = 2.0 / 3.0;
/// The random part, of the certificate's life.
const JITTER: f64 = 0.05;

/// When the next attempt is due.
///
/// `window` is when the authority wants the certificate to be renewed.
pub(super) fn due(
    settings: &AcmeSettings,
    record: &Record,
    certificate: Option<&Certificate>,
    window: Option<(SystemTime, SystemTime)>,
) -> SystemTime {
    let not_before = time(record.next_attempt_ts);
    let (Some(issued), Some(certificate)) = (&record.issued, certificate) else { return not_before };
    let mut names = issued.names.clone();
    names.sort();
    let mut wanted = settings.names.clone();
    wanted.sort();
    if names != wanted || issued.directory != settings.directory || record.renewal_asked {
        return not_before;
    }
    let chance = chance(certificate);
    let renewal = match window {
        Some((start, end)) => start + end.duration_since(start).unwrap_or_default().mul_f64(chance),
        None => {
            let life = certificate.valid_until().duration_since(certificate.valid_from()).unwrap_or_default();
            certificate.valid_from() + life.mul_f64(AGE - JITTER * chance)
        }
    };
    // A wrong clock, or an authority that is mistaken, must not lead to one certificate after the other.
    renewal.max(time(issued.issued_ts) + settings.pace.renew_min).max(not_before)
}

/// The pause after the `failures`th failure in a row, with up to a quarter more, so that replicas and servers that
/// failed at the same moment do not come back at the same moment.
pub(super) fn pause(pace: &Pace, failures: u32, chance: f64) -> Duration {
    let doubled = pace.retry_first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(pace.retry_max).mul_f64(1.0 + chance / 4.0)
}

/// A number between 0 and 1 that is the same for a certificate on all replicas and after a restart.
fn chance(certificate: &Certificate) -> f64 {
    let mut hasher = DefaultHasher::new();
    certificate.chain().first().map(AsRef::as_ref).unwrap_or_default().hash(&mut hasher);
    f64::from(u32::try_from(hasher.finish() >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

fn time(timestamp: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(timestamp).unwrap_or(0))
}
