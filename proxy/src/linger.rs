//! Closing a connection on which the client may still be sending.
//!
//! A request may be answered before its body is read, say with 413 since it is too large. Closing with bytes unread
//! resets the connection, and the reset takes the answer away from the client (RFC 9112, section 9.6). So the sending
//! side is closed first, and what still comes is thrown away for a while.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use myelin_process::shutdown::Shutdown;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// How long a client may say nothing and not close either.
const SILENCE_TIME: Duration = Duration::from_secs(3);
/// How long it may go on sending.
const WHOLE_TIME: Duration = Duration::from_secs(30);
/// Bytes that are thrown away at once.
const CHUNK_BYTES: usize = 8 * 1024;
/// Bytes that are thrown away before others have their turn.
const TURN_BYTES: usize = 16 * CHUNK_BYTES;

/// A stream whose end is as the module says. Until then it is the stream itself.
pub(crate) struct Lingering<I> {
    io: I,
    shutdown: Shutdown,
    /// There once the sending side is closed.
    end: Option<Box<End>>,
}

struct End {
    until: Instant,
    silence: Pin<Box<Sleep>>,
}

impl<I> Lingering<I> {
    pub(crate) fn new(io: I, shutdown: Shutdown) -> Self {
        Self { io, shutdown, end: None }
    }
}

impl<I: AsyncRead + Unpin> Lingering<I> {
    /// Throws away what comes until the client closes, or has had its time.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // Who waits for us to stop does not wait for clients that do not let go.
        if self.shutdown.is_draining() {
            return Poll::Ready(());
        }
        let Some(end) = &mut self.end else { return Poll::Ready(()) };
        let mut bytes = [0; CHUNK_BYTES];
        let mut taken = 0;
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.io).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => taken += buffer.filled().len(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return end.silence.as_mut().poll(context),
            }
            let now = Instant::now();
            if now >= end.until {
                return Poll::Ready(());
            }
            end.silence.as_mut().reset(now + SILENCE_TIME);
            if taken >= TURN_BYTES {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Lingering<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(context))?;
            let until = Instant::now() + WHOLE_TIME;
            self.end = Some(Box::new(End { until, silence: Box::pin(sleep(SILENCE_TIME)) }));
        }
        self.poll_rest(context).map(Ok)
    }
}
