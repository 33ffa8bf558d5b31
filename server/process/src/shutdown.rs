//! The end of the process, in order: no new work, then requests finish, then background tasks stop.
//!
//! A request may need a background task (a commit needs the committer), so requests end first. [`Shutdown::draining`]
//! is for what waits for something that may never come (a long poll answers at once), [`Shutdown::cancelled`] for
//! background tasks.

use std::{fmt, io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFuture},
    task::TaskTracker,
};

/// How long background tasks have at least to stop, once requests are done or given up.
const TASKS_TIME_MIN: Duration = Duration::from_secs(5);

/// Owner of every task of the process. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    stop: CancellationToken,
    connections: TaskTracker,
    tasks: TaskTracker,
}

/// What had not finished in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{connections} connections and {tasks} background tasks did not finish in time")]
pub struct Unfinished {
    /// Connections with a request under way.
    pub connections: usize,
    /// Background tasks.
    pub tasks: usize,
}

impl Shutdown {
    /// A process that runs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a background task. It must end when [`Shutdown::cancelled`] does.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Runs what serves a connection or accepts them. It must end soon after [`Shutdown::draining`] does, once the
    /// request under way is answered.
    pub fn spawn_connection<F>(&self, connection: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.connections.spawn(connection)
    }

    /// How many connections are open (listeners count as one each).
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Waits until the process takes no new work.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.drain.cancelled()
    }

    /// Whether the process takes no new work.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Waits until background tasks must stop.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.stop.cancelled()
    }

    /// Whether background tasks must stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The token behind [`Shutdown::cancelled`], for a library that wants one.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Takes no new work from now on.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends everything in order, and waits for it: `time` for requests, what is left of it (at least some seconds)
    /// for background tasks.
    ///
    /// # Errors
    /// If something did not finish in time; it then ends with the process.
    pub async fn close(&self, time: Duration) -> Result<(), Unfinished> {
        let deadline = Instant::now() + time;
        self.drain();
        self.connections.close();
        let drained = tokio::time::timeout_at(deadline, self.connections.wait()).await;
        let connections = if drained.is_ok() { 0 } else { self.connections.len() };

        self.stop.cancel();
        self.tasks.close();
        let deadline = deadline.max(Instant::now() + TASKS_TIME_MIN);
        let stopped = tokio::time::timeout_at(deadline, self.tasks.wait()).await;
        let tasks = if stopped.is_ok() { 0 } else { self.tasks.len() };

        if connections + tasks == 0 { Ok(()) } else { Err(Unfinished { connections, tasks }) }
    }
}

/// What the operating system asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: end.
    Terminate,
    /// SIGINT, from the keyboard: end.
    Interrupt,
    /// SIGHUP: read the configuration again.
    Reload,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Reload => "SIGHUP",
        })
    }
}

/// The signals that a server heeds. From its making on, they no longer end the process by themselves.
#[derive(Debug)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    /// Starts to listen for signals.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.hangup.recv() => Signal::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };

    use super::{Shutdown, Signal, Signals, Unfinished};

    /// A request that needs a background task gets its answer: tasks stop only after requests.
    #[tokio::test]
    async fn requests_end_before_tasks() {
        let shutdown = Shutdown::new();
        let (ask, mut asked) = tokio::sync::mpsc::channel::<tokio::sync::oneshot::Sender<()>>(1);
        let stop = shutdown.clone();
        shutdown.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    Some(answer) = asked.recv() => { let _ = answer.send(()); }
                }
            }
        });
        let answered = Arc::new(AtomicBool::new(false));
        let (drain, done) = (shutdown.clone(), Arc::clone(&answered));
        shutdown.spawn_connection(async move {
            drain.draining().await;
            let (sender, receiver) = tokio::sync::oneshot::channel();
            ask.send(sender).await.unwrap();
            receiver.await.unwrap();
            done.store(true, Ordering::SeqCst);
        });
        shutdown.close(Duration::from_secs(5)).await.unwrap();
        assert!(answered.load(Ordering::SeqCst));
    }

    /// What does not end is named, and does not hold the process for longer than it was given.
    #[tokio::test(start_paused = true)]
    async fn gives_up_in_time() {
        let shutdown = Shutdown::new();
        shutdown.spawn_connection(std::future::pending::<()>());
        shutdown.spawn(std::future::pending::<()>());
        shutdown.spawn(async {});
        let left = shutdown.close(Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(left, Unfinished { connections: 1, tasks: 1 });
        assert!(shutdown.is_draining() && shutdown.is_cancelled());
    }

    /// A hang-up is a request to reload, and does not end the process.
    #[tokio::test]
    async fn hears_a_hangup() {
        let mut signals = Signals::listen().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
        assert_eq!(signals.next().await, Signal::Reload);
    }
}
