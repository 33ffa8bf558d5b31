//! The body of a request, and whether it was read.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// Bytes of a body that are read only so that the connection can be used again. They are here already.
const REST_BYTES: usize = 64 * 1024;

/// The body of a request.
///
/// Where a request is answered before its body was read, the connection has to be closed, and the client must be told so
/// with the answer: it would send its next request on it.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Incoming,
    /// None where there is nothing to read.
    is_read: Option<Arc<AtomicBool>>,
}

/// Tells whether a body was read.
pub(crate) struct BodyRead(Option<Arc<AtomicBool>>);

impl BodyRead {
    /// Whether nothing of it is left.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|is_read| is_read.load(Ordering::Acquire))
    }
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming) -> (Self, BodyRead) {
        let is_read = (!incoming.is_end_stream()).then(Arc::default);
        let told = BodyRead(is_read.clone());
        (Self { incoming, is_read }, told)
    }

    fn note(&self, frame: &Poll<Option<hyper::Result<Frame<Bytes>>>>) {
        if let Some(is_read) = &self.is_read
            && (matches!(frame, Poll::Ready(None)) || self.incoming.is_end_stream())
        {
            is_read.store(true, Ordering::Release);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(context);
        self.note(&frame);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(is_read) = self.is_read.clone() else { return };
        let mut context = Context::from_waker(Waker::noop());
        let mut bytes = 0;
        while !is_read.load(Ordering::Acquire) && bytes < REST_BYTES {
            let frame = Pin::new(&mut self.incoming).poll_frame(&mut context);
            self.note(&frame);
            match frame {
                Poll::Ready(Some(Ok(frame))) => bytes += frame.data_ref().map_or(0, Bytes::len),
                Poll::Ready(_) | Poll::Pending => return,
            }
        }
    }
}
