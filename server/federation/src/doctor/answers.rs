//! What a server answers.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::http::{Request, header};
use bytes::Bytes;
use ruma::ServerName;
use serde_json::Value;

use super::{Doctor, Report, Verdict, unanswered};
use crate::{
    discovery::Route,
    http::{Answer, HttpError, Limits, Pool, USER_AGENT},
    keys::{document, now_ms},
};

const LIMITS: Limits = Limits { deadline: Duration::from_secs(20), answer_bytes_max: 1024 * 1024 };
/// A clock that differs by more than this disturbs nobody yet.
const SKEW_WARNING: Duration = Duration::from_secs(60);
/// Documents should not end so soon that everybody comes back at once, in milliseconds.
const VALID_MIN_MS: i64 = 60 * 60 * 1000;

impl Doctor {
    /// Asks for the key document and the version, and looks at the clock.
    pub(super) async fn answers(&self, server: &ServerName, route: &Route, report: &mut Report) {
        let pool = Pool::new(self.dialer.clone(), self.tls.federation.clone(), 1, 1, Duration::from_secs(10));
        let route = Arc::new(route.clone());
        let ask = async |path: &'static str| {
            let mut request = Request::new(Bytes::new());
            *request.uri_mut() = path.parse().map_err(|_| HttpError::Crowded)?;
            request.headers_mut().insert(header::USER_AGENT, ::http::HeaderValue::from_static(USER_AGENT));
            let route = async || Ok(Arc::clone(&route));
            pool.request(server, request, LIMITS, || Box::pin(route())).await
        };
        let keys = ask("/_matrix/key/v2/server").await;
        keys_check(server, &keys, report);
        version_check(&ask("/_matrix/federation/v1/version").await, report);
        clock_check(&keys, report);
    }
}

fn keys_check(server: &ServerName, answer: &Result<Answer, HttpError>, report: &mut Report) {
    const NAME: &str = "keys";
    let answer = match answer {
        Ok(answer) if answer.status.is_success() => answer,
        Ok(answer) => {
            let advice = "Whatever stands before the server must hand on /_matrix/key and /_matrix/federation.";
            return report.advise(NAME, Verdict::Bad, format!("status {} instead of keys", answer.status), advice);
        }
        Err(error) => {
            let advice = "The server, or what stands before it, takes the connection and does not answer.";
            return report.advise(NAME, Verdict::Bad, unanswered(error), advice);
        }
    };
    let text = String::from_utf8_lossy(&answer.body);
    let document = match document::check(&text, server) {
        Ok(document) => document,
        Err(error) => {
            let advice = format!(
                "The document must be of {server}, as others call it, and signed by the key in it. Often another server \
                 answers there: see that its server_name is {server}."
            );
            return report.advise(NAME, Verdict::Bad, format!("the key document is refused: {error}"), advice);
        }
    };
    let left = document.valid_until_ts.saturating_sub(now_ms());
    let ids: Vec<_> =
        document.keys.iter().filter(|key| key.expired_ts.is_none()).map(|key| key.key_id.as_str()).collect();
    let found = format!("{}, valid for {} hours", ids.join(", "), left / VALID_MIN_MS);
    if left <= 0 {
        let advice = "Requests of this server are refused everywhere: correct its clock, or that of this machine.";
        return report.advise(NAME, Verdict::Bad, format!("{}, which are valid no more", ids.join(", ")), advice);
    }
    if left < VALID_MIN_MS {
        return report.advise(NAME, Verdict::Warning, found, "A document should be valid for an hour at the least.");
    }
    report.add(NAME, Verdict::Ok, found);
}

fn version_check(answer: &Result<Answer, HttpError>, report: &mut Report) {
    const NAME: &str = "version";
    let advice = "Whatever stands before the server must hand on /_matrix/federation.";
    let answer = match answer {
        Ok(answer) if answer.status.is_success() => answer,
        Ok(answer) => {
            return report.advise(NAME, Verdict::Bad, format!("status {} instead of a version", answer.status), advice);
        }
        Err(error) => return report.advise(NAME, Verdict::Bad, unanswered(error), advice),
    };
    let Ok(body) = serde_json::from_slice::<Value>(&answer.body) else {
        return report.advise(NAME, Verdict::Bad, "the answer is no JSON", advice);
    };
    let text = |key: &str| {
        let text = body["server"][key].as_str().unwrap_or("unknown");
        text.chars().filter(|c| !c.is_control()).take(100).collect::<String>()
    };
    report.add(NAME, Verdict::Ok, format!("{} {}", text("name"), text("version")));
}

fn clock_check(answer: &Result<Answer, HttpError>, report: &mut Report) {
    const NAME: &str = "clock";
    let date = answer.as_ref().ok().and_then(|answer| answer.headers.get(header::DATE));
    let Some(date) = date.and_then(|date| date.to_str().ok()).and_then(|date| httpdate::parse_http_date(date).ok())
    else {
        return report.add(NAME, Verdict::Skipped, "the answer has no date");
    };
    let now = SystemTime::now();
    let skew = now.duration_since(date).unwrap_or_else(|earlier| earlier.duration());
    let found = format!("{} seconds from this machine's", skew.as_secs());
    if skew > SKEW_WARNING {
        let advice = "Let both machines set their clocks by the network: keys and events carry times.";
        return report.advise(NAME, Verdict::Warning, found, advice);
    }
    report.add(NAME, Verdict::Ok, found);
}
