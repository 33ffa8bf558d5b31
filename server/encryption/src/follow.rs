//! Keeps device lists of other servers' users up to date, and tells what has to be sent to whom.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream};
use myelin_store::{Batch, Change, Membership, Observer};
use ruma::OwnedUserId;
use tokio::sync::Notify;

use crate::{
    Encryption, Result,
    metrics::{FOLLOW_FAILURES, RESYNCS},
    now_ms,
};

/// How often stale lists are looked for, besides when there is a new one.
const STALE_EVERY: Duration = Duration::from_secs(30);
/// Lists that are asked for in one round.
const LISTS: i64 = 50;
/// Lists that are asked for at the same time.
const LISTS_AT_ONCE: usize = 8;
/// How long a server may take for one.
const LIST_TIME: Duration = Duration::from_secs(20);
/// How long it is remembered what was sent, in milliseconds: longer than any client tries to send the same again.
const TRANSACTIONS_KEPT_MS: i64 = 6 * 3_600_000;
/// Rounds between two looks at what is remembered.
const FORGET_EVERY: u64 = 20;

/// What the stream tells of device lists and of those who leave.
#[derive(Debug)]
pub(crate) struct Follower {
    /// Up to where it was told what has to be sent.
    told: AtomicI64,
    /// Where a device list of ours changed last.
    changed: AtomicI64,
    /// Whether somebody has left a room.
    left: AtomicBool,
    wake: Notify,
}

impl Follower {
    pub(crate) fn new(pos: i64) -> Self {
        Self {
            told: AtomicI64::new(pos),
            changed: AtomicI64::new(pos),
            left: AtomicBool::new(true),
            wake: Notify::new(),
        }
    }
}

impl Observer for Follower {
    fn committed(&self, batch: &Batch) {
        for change in &batch.changes {
            match change {
                Change::DeviceList(change) if change.only_for.is_none() => {
                    self.changed.fetch_max(change.pos, Ordering::AcqRel);
                    self.wake.notify_one();
                }
                Change::Membership { member, .. }
                    if matches!(member.membership, Membership::Leave | Membership::Ban) =>
                {
                    self.left.store(true, Ordering::Release);
                }
                _ => {}
            }
        }
    }
}

impl Encryption {
    /// Does what has to be done beside requests, until the future is dropped: asks again for device lists that are
    /// stale, forgets those of users who are in no room with ours any more, and tells the outbox of changes of ours.
    pub async fn keep(self: Arc<Self>) {
        let mut rounds: u64 = 0;
        let mut interval = tokio::time::interval(STALE_EVERY);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let outcome = tokio::select! {
                () = self.follower.wake.notified() => self.tell_outbox().await,
                () = self.stale.notified() => self.resync().await,
                _ = interval.tick() => {
                    rounds = rounds.wrapping_add(1);
                    self.round(rounds).await
                }
            };
            if let Err(error) = outcome {
                FOLLOW_FAILURES.inc();
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "could not look after device lists; will try again"
                );
            }
        }
    }

    async fn round(&self, rounds: u64) -> Result<()> {
        if rounds % FORGET_EVERY == 1 {
            self.store.forget_to_device_transactions(now_ms() - TRANSACTIONS_KEPT_MS).await?;
        }
        if self.follower.left.swap(false, Ordering::AcqRel)
            && let Err(error) = self.store.forget_unshared_device_lists().await
        {
            self.follower.left.store(true, Ordering::Release);
            return Err(error.into());
        }
        self.tell_outbox().await?;
        self.resync().await
    }

    /// Tells of servers that have to be told of changes since the last time.
    async fn tell_outbox(&self) -> Result<()> {
        let to = self.follower.changed.load(Ordering::Acquire);
        let from = self.follower.told.load(Ordering::Acquire);
        if from >= to {
            return Ok(());
        }
        if self.outbox.get().is_some() {
            for server in self.store.edu_destinations_since(from, to).await? {
                self.notify(&server);
            }
        }
        self.follower.told.fetch_max(to, Ordering::AcqRel);
        Ok(())
    }

    /// Asks for the lists that are stale.
    pub(crate) async fn resync(&self) -> Result<()> {
        if self.remote.get().is_none() {
            return Ok(());
        }
        let stale = self.store.stale_device_lists(now_ms(), LISTS).await?;
        if stale.is_empty() {
            return Ok(());
        }
        let users = self.store.user_ids(&stale).await?;
        let mut asked: Vec<BoxFuture<'_, _>> = Vec::new();
        for (user_nid, user_id) in stale.into_iter().zip(users) {
            asked.push(Box::pin(self.resync_list(user_nid, user_id)));
        }
        let mut outcomes = stream::iter(asked).buffer_unordered(LISTS_AT_ONCE);
        while let Some(outcome) = outcomes.next().await {
            outcome?;
        }
        Ok(())
    }

    async fn resync_list(&self, user_nid: i64, user_id: OwnedUserId) -> Result<()> {
        match self.follow_list(&user_id, LIST_TIME).await {
            Ok(_) => RESYNCS.with_label_values(&["done"]).inc(),
            Err(_) => {
                RESYNCS.with_label_values(&["failed"]).inc();
                self.store.postpone_device_list(user_nid, now_ms()).await?;
            }
        }
        Ok(())
    }
}
