//! What the service manager is told. Nothing happens where there is none.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::shutdown::Shutdown;

/// The server answers requests.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The server finishes what is under way and ends.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// The server reads its configuration again; [`ready`] tells when it has.
pub fn reloading() {
    // The manager must know which of its requests this answers.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock: the service manager is not told of the reload"),
    }
}

/// A sentence for who asks the service manager.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Tells the service manager that the process is alive, as often as it asked to be told, until the process stops.
///
/// The signs of life come from the runtime that answers requests: if that stands still, they stay away.
pub fn watchdog(shutdown: &Shutdown) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((period / 2).max(Duration::from_millis(10)));
    let stop = shutdown.clone();
    shutdown.spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => send(&[NotifyState::Watchdog]),
            }
        }
    });
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
