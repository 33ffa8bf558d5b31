//! What users have reported to the administrators.

use ruma::{OwnedUserId, UserId};

use crate::{
    Error, Result, Store,
    sql::{execute, rows},
};

/// Reports of one user that are kept: the newest ones.
pub const REPORTS_MAX: i64 = 1_000;

/// What is reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// The room, or the room of the event.
    pub room_id: Option<String>,
    /// The event.
    pub event_id: Option<String>,
    /// The user, or the sender of the event.
    pub user_id: Option<String>,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its number; later ones have greater ones.
    pub nid: i64,
    /// Who reported.
    pub reporter: OwnedUserId,
    /// What was reported.
    pub reported: Reported,
    /// Why.
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub received_ts: i64,
}

/// The columns of [`Report`], in their order.
type ReportRow = (i64, String, Option<String>, Option<String>, Option<String>, String, i64);

impl Store {
    /// Keeps a report, and the newest ones of its reporter.
    pub async fn keep_report(&self, reporter_nid: i64, reported: &Reported, reason: &str, now_ms: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO reports (reporter_nid, room_id, event_id, user_id, reason, received_ts)
             VALUES ($1, $2, $3, $4, $5, $6)",
            reporter_nid,
            reported.room_id.as_deref(),
            reported.event_id.as_deref(),
            reported.user_id.as_deref(),
            reason,
            now_ms
        )?;
        execute!(
            transaction,
            "DELETE FROM reports WHERE report_nid IN (SELECT report_nid FROM reports WHERE reporter_nid = $1
             ORDER BY report_nid DESC LIMIT 1000 OFFSET $2)",
            reporter_nid,
            REPORTS_MAX
        )?;
        transaction.commit().await
    }

    /// The reports before a number, the newest first.
    pub async fn reports(&self, before: i64, limit: usize) -> Result<Vec<Report>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<ReportRow> = rows!(
            reader,
            "SELECT r.report_nid, u.user_id, r.room_id, r.event_id, r.user_id, r.reason, r.received_ts
             FROM reports AS r JOIN users AS u ON u.user_nid = r.reporter_nid
             WHERE r.report_nid < $1 ORDER BY r.report_nid DESC LIMIT $2",
            before,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )?;
        found
            .into_iter()
            .map(|(nid, reporter, room_id, event_id, user_id, reason, received_ts)| {
                let reporter = UserId::parse(reporter).map_err(|_| Error::Corrupt { what: "user id" })?;
                Ok(Report { nid, reporter, reported: Reported { room_id, event_id, user_id }, reason, received_ts })
            })
            .collect()
    }

    /// Removes a report; false if there was none.
    pub async fn delete_report(&self, nid: i64) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let hit = execute!(transaction, "DELETE FROM reports WHERE report_nid = $1", nid)?;
        transaction.commit().await?;
        Ok(hit == 1)
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::Reported;
    use crate::testing::{Fresh, on_both};

    /// Reports come back in pages, the newest first, until they are removed.
    #[tokio::test]
    async fn reports_are_kept() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let alice = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
            for number in 0..5 {
                let reported = Reported { room_id: Some(format!("!{number}")), ..Reported::default() };
                store.keep_report(alice, &reported, "spam", number).await.unwrap();
            }
            let page = store.reports(i64::MAX, 3).await.unwrap();
            let rooms: Vec<_> = page.iter().filter_map(|report| report.reported.room_id.as_deref()).collect();
            assert_eq!(rooms, ["!4", "!3", "!2"]);
            assert_eq!((page[0].reporter.as_str(), page[0].received_ts), ("@alice:example.org", 4));
            let rest = store.reports(page[2].nid, 3).await.unwrap();
            assert_eq!(rest.len(), 2);
            assert!(store.delete_report(rest[0].nid).await.unwrap());
            assert!(!store.delete_report(rest[0].nid).await.unwrap());
            assert_eq!(store.reports(page[2].nid, 3).await.unwrap(), rest[1..]);
            store.close().await;
        })
        .await;
    }
}
