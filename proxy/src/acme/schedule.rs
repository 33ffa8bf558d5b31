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
    let not_before = if record.wanted.as_ref().is_none_or(|wanted| *wanted == settings.wanted()) {
        time(record.next_attempt_ts)
    } else {
        UNIX_EPOCH
    };
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{due, pause};
    use crate::{
        Certificate,
        acme::{AcmeSettings, ChallengeKind, Issued, Pace, Record, storage::millis},
    };

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn settings() -> AcmeSettings {
        AcmeSettings {
            directory: "https://acme.example/directory".to_owned(),
            staging: None,
            contact: None,
            names: vec!["a.example".to_owned(), "b.example".to_owned()],
            challenges: vec![ChallengeKind::Http01],
            external_account: None,
            trusted: None,
            profile: None,
            dns: None,
            pace: Pace::default(),
        }
    }

    fn issued(settings: &AcmeSettings, at: SystemTime) -> Record {
        let issued = Issued {
            names: vec!["b.example".to_owned(), "a.example".to_owned()],
            directory: settings.directory.clone(),
            chain: String::new(),
            private_key: String::new(),
            issued_ts: millis(at),
        };
        Record { issued: Some(issued), ..Record::default() }
    }

    /// A year's certificate is renewed after about two thirds, or when the authority wants it.
    #[test]
    fn renews_by_age_and_by_wish() {
        let (settings, now) = (settings(), SystemTime::now());
        let certificate = Certificate::self_signed(&settings.names).unwrap();
        let record = issued(&settings, now);
        let by_age = due(&settings, &record, Some(&certificate), None).duration_since(now).unwrap();
        assert!(by_age > 220 * DAY && by_age < 245 * DAY, "{by_age:?}");
        let window = (now + 10 * DAY, now + 12 * DAY);
        let by_wish = due(&settings, &record, Some(&certificate), Some(window));
        assert!(by_wish >= window.0 && by_wish <= window.1);
        assert_eq!(by_wish, due(&settings, &record, Some(&certificate), Some(window)), "chance stays the same");
        // A window in the past means now, but not again and again.
        let past = (now - 2 * DAY, now - DAY);
        let soon = due(&settings, &record, Some(&certificate), Some(past));
        assert!(soon > now && soon <= now + settings.pace.renew_min);
        assert!(due(&settings, &issued(&settings, now - 3 * DAY), Some(&certificate), Some(past)) < now);
    }

    /// Without a certificate, with another one than is wanted, or when somebody asks, it is due at once; after a
    /// failure not before its time.
    #[test]
    fn what_is_wanted_is_due() {
        let (settings, now) = (settings(), SystemTime::now());
        let certificate = Certificate::self_signed(&settings.names).unwrap();
        let record = issued(&settings, now);
        assert!(due(&settings, &Record::default(), None, None) < now);
        assert!(due(&settings, &Record { renewal_asked: true, ..record.clone() }, Some(&certificate), None) < now);
        let more = AcmeSettings { names: vec!["a.example".to_owned()], ..settings.clone() };
        assert!(due(&more, &record, Some(&certificate), None) < now);
        let elsewhere = AcmeSettings { directory: "https://other.example/".to_owned(), ..settings.clone() };
        assert!(due(&elsewhere, &record, Some(&certificate), None) < now);
        let later = now + 5 * DAY;
        let failed = Record { next_attempt_ts: millis(later), failures: 3, ..Record::default() };
        let corrected = Record { wanted: Some("something else".to_owned()), ..failed.clone() };
        assert!(due(&settings, &corrected, None, None) < now, "it was corrected, and need not wait");
        let due = due(&settings, &failed, None, None);
        assert!(due > later - Duration::from_secs(1) && due < later + Duration::from_secs(1));
    }

    /// Pauses double up to their bound.
    #[test]
    fn pauses_grow() {
        let pace = Pace::default();
        assert_eq!(pause(&pace, 1, 0.0), pace.retry_first);
        assert_eq!(pause(&pace, 3, 0.0), pace.retry_first * 4);
        assert_eq!(pause(&pace, 3, 1.0), pace.retry_first * 5);
        for failures in [20, 33, 40, u32::MAX] {
            assert_eq!(pause(&pace, failures, 0.0), pace.retry_max, "{failures}");
        }
    }
}
