//! Leases: duties that one replica has at a time, such as the outgoing queues, pushers and clean-up.
//!
//! Whoever holds a lease does its duty and renews the lease meanwhile. A holder that was slow may not know that it is
//! the holder no more; so every durable write of a duty compares the lease's *fence*, a number that grows with every
//! change of holder, in the transaction that writes ([`Store::is_held`] does).

use std::{
    future::Future,
    pin::pin,
    sync::LazyLock,
    time::{Duration, Instant},
};

use prometheus::{IntCounterVec, IntGaugeVec, register_int_counter_vec, register_int_gauge_vec};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    Result, Store,
    database::Transaction,
    sql::{Sql, execute, optional},
};

static HELD: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!("myelin_store_lease_held", "1 while this replica has the duty.", &["lease"])
        .expect("metric names are unique")
});
static LOST: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_store_leases_lost_total",
        "Times that this replica lost a duty to another one, or could not renew it in time.",
        &["lease"]
    )
    .expect("metric names are unique")
});

/// A lease that is held, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The duty.
    pub name: String,
    /// Who holds it: different for every process.
    pub holder: String,
    /// Grows with every change of holder.
    pub fence: i64,
}

/// What is asked for when a lease is taken.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The duty.
    pub name: &'static str,
    /// Who would hold it: different for every process.
    pub holder: String,
    /// How long a lease lasts that is not renewed. It is renewed after a third of it.
    pub ttl: Duration,
}

impl Store {
    /// Takes a lease that nobody holds, or that the same holder holds already. `None` while another one holds it.
    ///
    /// Times are those of the database, not of the replicas, whose clocks may differ.
    pub async fn take_lease(&self, candidate: &Candidate) -> Result<Option<Lease>> {
        let sql = Sql {
            sqlite: "INSERT INTO leases (name, holder, fence, expires_ts)
                     VALUES ($1, $2, 1, CAST(unixepoch('subsec') * 1000 AS INTEGER) + $3)
                     ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_ts = excluded.expires_ts,
                         fence = leases.fence + CASE WHEN leases.holder = excluded.holder THEN 0 ELSE 1 END
                     WHERE leases.holder = excluded.holder
                        OR leases.expires_ts <= CAST(unixepoch('subsec') * 1000 AS INTEGER)
                     RETURNING fence",
            postgres: "INSERT INTO leases (name, holder, fence, expires_ts)
                       VALUES ($1, $2, 1, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint + $3)
                       ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_ts = excluded.expires_ts,
                           fence = leases.fence + CASE WHEN leases.holder = excluded.holder THEN 0 ELSE 1 END
                       WHERE leases.holder = excluded.holder
                          OR leases.expires_ts <= (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint
                       RETURNING fence",
        };
        let mut transaction = self.database.begin().await?;
        let taken: Option<(i64,)> =
            optional!(transaction, sql, candidate.name, candidate.holder.as_str(), millis(candidate.ttl))?;
        transaction.commit().await?;
        Ok(taken.map(|(fence,)| Lease { name: candidate.name.to_owned(), holder: candidate.holder.clone(), fence }))
    }

    /// Holds a lease for longer; false when another one has taken it.
    pub async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<bool> {
        let sql = Sql {
            sqlite: "UPDATE leases SET expires_ts = CAST(unixepoch('subsec') * 1000 AS INTEGER) + $4
                     WHERE name = $1 AND holder = $2 AND fence = $3",
            postgres: "UPDATE leases SET expires_ts = (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint + $4
                       WHERE name = $1 AND holder = $2 AND fence = $3",
        };
        let mut transaction = self.database.begin().await?;
        let hit = execute!(transaction, sql, lease.name.as_str(), lease.holder.as_str(), lease.fence, millis(ttl))?;
        transaction.commit().await?;
        Ok(hit == 1)
    }

    /// Lets go of a lease, so that another one need not wait for its end; false when it was held no more.
    pub async fn release_lease(&self, lease: &Lease) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let hit = execute!(
            transaction,
            "UPDATE leases SET holder = '', expires_ts = 0 WHERE name = $1 AND holder = $2 AND fence = $3",
            lease.name.as_str(),
            lease.holder.as_str(),
            lease.fence
        )?;
        transaction.commit().await?;
        Ok(hit == 1)
    }

    /// Whether a lease is still held by whom it was given to. Until the transaction ends, nobody else can take it: a
    /// write in it is the holder's.
    pub(crate) async fn is_held(transaction: &mut Transaction, lease: &Lease) -> Result<bool> {
        let sql = Sql {
            sqlite: "SELECT fence FROM leases WHERE name = $1 AND holder = $2 AND fence = $3",
            postgres: "SELECT fence FROM leases WHERE name = $1 AND holder = $2 AND fence = $3 FOR SHARE",
        };
        let held: Option<(i64,)> =
            optional!(transaction, sql, lease.name.as_str(), lease.holder.as_str(), lease.fence)?;
        Ok(held.is_some())
    }

    /// Does a duty whenever this replica holds its lease, until `stop` is true.
    ///
    /// The duty's future is dropped at once when the lease is lost: what it has spawned must end with it (a
    /// [`tokio::task::JoinSet`] does). When `stop` becomes true the duty is to end by itself, still under the lease,
    /// which is then released. A duty that ends earlier is started anew after a while.
    pub async fn lead<D, F>(&self, candidate: &Candidate, mut stop: watch::Receiver<bool>, mut duty: D)
    where
        D: FnMut(Lease) -> F,
        F: Future<Output = ()>,
    {
        let held = HELD.with_label_values(&[candidate.name]);
        held.set(0);
        while !*stop.borrow() {
            let asked = Instant::now();
            match self.take_lease(candidate).await {
                Ok(Some(lease)) => {
                    info!(lease.name = %lease.name, lease.fence, "this replica has the duty {}", lease.name);
                    held.set(1);
                    let is_ours = self.hold(&lease, candidate.ttl, asked, duty(lease.clone())).await;
                    held.set(0);
                    if is_ours {
                        self.let_go(&lease).await;
                    } else {
                        LOST.with_label_values(&[candidate.name]).inc();
                        warn!(lease.name = %lease.name, "lost the duty {}", lease.name);
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    let name = candidate.name;
                    warn!(error = &error as &dyn std::error::Error, "could not take the lease {name}; will try again");
                }
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(candidate.ttl / 4) => {}
            }
        }
    }

    /// Renews a lease while its duty is done; false when the lease was lost first, and the duty dropped.
    async fn hold(&self, lease: &Lease, ttl: Duration, taken: Instant, duty: impl Future<Output = ()>) -> bool {
        let mut duty = pin!(duty);
        // The database counts from a moment after the one when it was asked.
        let mut ours_until = taken + ttl;
        let mut pause = ttl / 3;
        loop {
            tokio::select! {
                biased;
                () = &mut duty => return true,
                () = tokio::time::sleep(pause) => {}
            }
            let asked = Instant::now();
            let renewal = tokio::time::timeout_at(ours_until.into(), self.renew_lease(lease, ttl));
            let renewed = tokio::select! {
                biased;
                () = &mut duty => return true,
                renewed = renewal => renewed,
            };
            match renewed {
                Ok(Ok(true)) => {
                    ours_until = asked + ttl;
                    pause = ttl / 3;
                }
                Ok(Ok(false)) | Err(_) => return false,
                Ok(Err(error)) => {
                    let name = &lease.name;
                    warn!(error = &error as &dyn std::error::Error, "could not renew the lease {name}; will try again");
                    pause = (ttl / 12).min(ours_until.saturating_duration_since(Instant::now()));
                    if pause.is_zero() {
                        return false;
                    }
                }
            }
        }
    }

    async fn let_go(&self, lease: &Lease) {
        if let Err(error) = self.release_lease(lease).await {
            let name = &lease.name;
            warn!(error = &error as &dyn std::error::Error, "could not release the lease {name}; it will run out");
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::sync::{Notify, watch};

    use super::Candidate;
    use crate::testing::{Fresh, on_both};

    const LONG: Duration = Duration::from_secs(600);

    fn candidate(holder: &str, ttl: Duration) -> Candidate {
        Candidate { name: "test", holder: holder.to_owned(), ttl }
    }

    /// One holder at a time; each change of holder has a greater fence; a former holder can do nothing.
    #[tokio::test]
    async fn moves_from_holder_to_holder() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let first = store.take_lease(&candidate("a", LONG)).await.unwrap().unwrap();
            assert!(store.take_lease(&candidate("b", LONG)).await.unwrap().is_none());
            assert_eq!(store.take_lease(&candidate("a", LONG)).await.unwrap().as_ref(), Some(&first));
            assert!(store.renew_lease(&first, LONG).await.unwrap());
            assert!(store.release_lease(&first).await.unwrap());
            assert!(!store.renew_lease(&first, LONG).await.unwrap(), "what was released is not held");
            let second = store.take_lease(&candidate("b", Duration::ZERO)).await.unwrap().unwrap();
            assert!(second.fence > first.fence);
            // The second one has run out.
            let third = store.take_lease(&candidate("a", LONG)).await.unwrap().unwrap();
            assert!(third.fence > second.fence);
            assert!(!store.renew_lease(&second, LONG).await.unwrap());
            assert!(!store.release_lease(&second).await.unwrap());
            assert!(!store.renew_lease(&first, LONG).await.unwrap(), "the same holder, and an older fence");
            let mut transaction = store.database.begin().await.unwrap();
            assert!(!crate::Store::is_held(&mut transaction, &second).await.unwrap());
            assert!(crate::Store::is_held(&mut transaction, &third).await.unwrap());
            drop(transaction);
            store.close().await;
        })
        .await;
    }

    /// A duty is done by one replica at a time, ends in order when it is told to stop, and is then done by another.
    #[tokio::test]
    async fn a_duty_ends_before_the_next_begins() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let begun = Arc::new(Notify::new());
            let mut ends = Vec::new();
            for holder in ["a", "b"] {
                let (stop, stopped) = watch::channel(false);
                let (store, begins) = (store.clone(), begun.clone());
                let told = stopped.clone();
                let task = tokio::spawn(async move {
                    let candidate = candidate(holder, Duration::from_secs(2));
                    let mut fences = Vec::new();
                    store
                        .lead(&candidate, stopped, |lease| {
                            fences.push(lease.fence);
                            begins.notify_one();
                            let mut told = told.clone();
                            async move { drop(told.wait_for(|stop| *stop).await) }
                        })
                        .await;
                    fences
                });
                ends.push((stop, task));
                if holder == "a" {
                    begun.notified().await;
                }
            }
            let (stop, task) = ends.remove(0);
            stop.send_replace(true);
            assert_eq!(task.await.unwrap(), [1]);
            begun.notified().await;
            let (stop, task) = ends.remove(0);
            stop.send_replace(true);
            assert_eq!(task.await.unwrap(), [2]);
            store.close().await;
        })
        .await;
    }

    /// A duty whose lease was taken away is dropped, without being asked.
    #[tokio::test]
    async fn a_lost_duty_is_dropped() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let (stop, stopped) = watch::channel(false);
            let begun = Arc::new(Notify::new());
            let dropped = Arc::new(Notify::new());
            struct Drops(Arc<Notify>);
            impl Drop for Drops {
                fn drop(&mut self) {
                    self.0.notify_one();
                }
            }
            let task = tokio::spawn({
                let (store, begun, dropped) = (store.clone(), begun.clone(), dropped.clone());
                async move {
                    let candidate = candidate("a", Duration::from_secs(1));
                    store
                        .lead(&candidate, stopped, |_| {
                            let drops = Drops(dropped.clone());
                            begun.notify_one();
                            async move {
                                let _drops = drops;
                                std::future::pending::<()>().await;
                            }
                        })
                        .await;
                }
            });
            begun.notified().await;
            let mut transaction = store.database.begin().await.unwrap();
            crate::sql::execute!(transaction, "UPDATE leases SET holder = 'b', fence = 9, expires_ts = expires_ts * 2")
                .unwrap();
            transaction.commit().await.unwrap();
            dropped.notified().await;
            stop.send_replace(true);
            task.await.unwrap();
            store.close().await;
        })
        .await;
    }
}
