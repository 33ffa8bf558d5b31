//! What clients keep with their account: global and by room.

use std::{sync::Arc, time::Duration};

use crate::{
    Batch, Change, Error, Result, Store,
    committer::advance_stream,
    sql::{Ids, execute, listed, optional, rows},
};

/// How long a change may hold up the stream: longer than any that is not stuck.
const CHANGE_TIME: Duration = Duration::from_secs(20);

/// A piece of a user's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountData {
    /// The user.
    pub user_nid: i64,
    /// The room, or 0 for global data.
    pub room_nid: i64,
    /// The event type.
    pub data_type: Box<str>,
    /// The content: a JSON object.
    pub content: Box<str>,
    /// The place in the stream; given at the commit.
    pub pos: i64,
}

pub(crate) type AccountDataRow = (i64, i64, String, String, i64);

impl From<AccountDataRow> for AccountData {
    fn from((user_nid, room_nid, data_type, content, pos): AccountDataRow) -> Self {
        Self { user_nid, room_nid, data_type: data_type.into(), content: content.into(), pos }
    }
}

impl Store {
    /// A piece of a user's data.
    pub async fn account_data(&self, user_nid: i64, room_nid: i64, data_type: &str) -> Result<Option<AccountData>> {
        let mut reader = self.database.reader().await?;
        let found: Option<AccountDataRow> = optional!(
            reader,
            "SELECT user_nid, room_nid, type, content, pos FROM account_data
             WHERE user_nid = $1 AND room_nid = $2 AND type = $3",
            user_nid,
            room_nid,
            data_type
        )?;
        Ok(found.map(AccountData::from))
    }

    /// A user's data, global (room 0) and of all rooms, with a position in `(after, to]`, in the stream's order.
    pub async fn account_data_since(&self, user_nid: i64, after: i64, to: i64) -> Result<Vec<AccountData>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<AccountDataRow> = rows!(
            reader,
            "SELECT user_nid, room_nid, type, content, pos FROM account_data
             WHERE user_nid = $1 AND pos > $2 AND pos <= $3 ORDER BY pos",
            user_nid,
            after,
            to
        )?;
        Ok(found.into_iter().map(AccountData::from).collect())
    }

    /// A user's data of some rooms.
    pub async fn account_data_in(&self, user_nid: i64, room_nids: &[i64]) -> Result<Vec<AccountData>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<AccountDataRow> = rows!(
            reader,
            listed!(
                "SELECT user_nid, room_nid, type, content, pos FROM account_data WHERE room_nid ",
                "$2",
                " AND user_nid = $1 ORDER BY pos"
            ),
            user_nid,
            Ids(room_nids)
        )?;
        Ok(found.into_iter().map(AccountData::from).collect())
    }

    /// Changes a piece of a user's data to what `change` makes of it, or leaves it if that is `None`. Nobody else, on any
    /// replica, writes it in between.
    pub async fn change_account_data(
        self: &Arc<Self>,
        user_nid: i64,
        room_nid: i64,
        data_type: &str,
        change: impl FnOnce(Option<&str>) -> Option<String> + Send + 'static,
    ) -> Result<()> {
        let (store, data_type) = (self.clone(), Box::from(data_type));
        // In a task: a caller that goes away between the commit and the news of it would leave readers waiting.
        let changing = tokio::spawn(async move { store.change_locked(user_nid, room_nid, data_type, change).await });
        changing.await.map_err(|_| Error::Closed)?
    }

    async fn change_locked(
        &self,
        user_nid: i64,
        room_nid: i64,
        data_type: Box<str>,
        change: impl FnOnce(Option<&str>) -> Option<String> + Send,
    ) -> Result<()> {
        // In the committer's order: the tail, then the stream's row, which stays locked until the commit.
        let mut tail = self.tail.lock().await;
        let writing = self.write_changed(user_nid, room_nid, data_type, change);
        let Ok(written) = tokio::time::timeout(CHANGE_TIME, writing).await else {
            self.database.distrust_connections();
            return Err(Error::Timeout);
        };
        let Some(data) = written? else { return Ok(()) };
        let (from, to) = (data.pos - 1, data.pos);
        let batch = Batch { from, to, changes: vec![Change::AccountData(Arc::new(data))] };
        if let Err(error) = self.advance(&mut tail, batch).await {
            // The write stands. Whoever reads the stream next closes the gap.
            tracing::warn!(error = &error as &dyn std::error::Error, "could not read what other replicas wrote");
        }
        Ok(())
    }

    async fn write_changed(
        &self,
        user_nid: i64,
        room_nid: i64,
        data_type: Box<str>,
        change: impl FnOnce(Option<&str>) -> Option<String> + Send,
    ) -> Result<Option<AccountData>> {
        let mut transaction = self.database.begin().await?;
        let pos = advance_stream(&mut transaction, 1).await? + 1;
        let found: Option<(String,)> = optional!(
            transaction,
            "SELECT content FROM account_data WHERE user_nid = $1 AND room_nid = $2 AND type = $3",
            user_nid,
            room_nid,
            &*data_type
        )?;
        let Some(content) = change(found.as_ref().map(|(content,)| content.as_str())) else { return Ok(None) };
        execute!(
            transaction,
            "INSERT INTO account_data (user_nid, room_nid, type, content, pos) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (user_nid, room_nid, type) DO UPDATE SET content = excluded.content, pos = excluded.pos",
            user_nid,
            room_nid,
            &*data_type,
            &*content,
            pos
        )?;
        transaction.commit().await?;
        Ok(Some(AccountData { user_nid, room_nid, data_type, content: content.into(), pos }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use ruma::user_id;

    use crate::{
        Batch, Change, Observer,
        testing::{Fresh, on_both},
    };

    /// What an observer was told of: the position and the content of each piece of data.
    #[derive(Default)]
    struct Told(Mutex<Vec<(i64, String)>>);

    impl Observer for Told {
        fn committed(&self, batch: &Batch) {
            for change in &batch.changes {
                if let Change::AccountData(data) = change {
                    self.0.lock().push((data.pos, data.content.to_string()));
                }
            }
        }
    }

    /// Changes at once, from two replicas where there can be two, all come through, and are told in their order.
    #[tokio::test]
    async fn changes_at_once_are_all_kept() {
        const EACH: usize = 20;
        on_both(async |fresh: &Fresh| {
            let mut stores = vec![fresh.open().await];
            if stores[0].database().engine_name() == "postgres" {
                stores.push(fresh.open().await);
            }
            let told = Arc::new(Told::default());
            stores[0].observe(told.clone());
            let nid = stores[0].user_nid(user_id!("@alice:example.org")).await.unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            for store in &stores {
                for _ in 0..EACH {
                    let store = store.clone();
                    let more = |old: Option<&str>| Some(format!("{}x", old.unwrap_or_default()));
                    tasks.spawn(async move { store.change_account_data(nid, 0, "org.example", more).await.unwrap() });
                }
            }
            tasks.join_all().await;
            let count = EACH * stores.len();
            let kept = stores[0].account_data(nid, 0, "org.example").await.unwrap().unwrap();
            assert_eq!(kept.content.len(), count);
            let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
            while stores[0].position() < kept.pos {
                assert!(tokio::time::Instant::now() < end, "the stream stands still");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            let told = std::mem::take(&mut *told.0.lock());
            assert_eq!(told.last().unwrap(), &(kept.pos, "x".repeat(count)));
            assert!(told.is_sorted_by(|one, next| one.0 < next.0 && one.1.len() < next.1.len()));
            let before = stores[0].position();
            stores[0].change_account_data(nid, 0, "org.example", |_| None).await.unwrap();
            let unchanged = stores[0].account_data(nid, 0, "org.example").await.unwrap().unwrap();
            assert_eq!((unchanged, stores[0].position()), (kept, before), "no change takes no position");
            for store in stores {
                store.close().await;
            }
        })
        .await;
    }
}
