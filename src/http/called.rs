//! The body of a response, which is part of the call that it answers.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::deadline::LongCall;
use crate::error::http::{BoxError, ExternalError};

/// Ends its call when it has ended, is dropped, or is cut.
pub(super) struct CalledBody<B> {
    // None where it was cut.
    body: Option<B>,
    call: LongCall,
}

impl<B> CalledBody<B> {
    pub(super) fn new(body: B, call: LongCall) -> Self {
        Self { body: Some(body), call }
    }
}

impl<B> Body for CalledBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = ExternalError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExternalError>>> {
        let Self { body: inner, call } = &mut *self;
        let Some(body) = inner else { return Poll::Ready(None) };
        let polled = ready!(call.poll(cx, |cx| Pin::new(&mut *body).poll_frame(cx)));
        Poll::Ready(match polled {
            Ok(Some(Ok(frame))) => {
                if body.is_end_stream() {
                    call.end();
                }
                Some(Ok(frame))
            }
            Ok(Some(Err(error))) => {
                call.end();
                Some(Err(ExternalError::inner(error)))
            }
            Ok(None) => {
                call.end();
                None
            }
            Err(cut) => {
                *inner = None;
                Some(Err(ExternalError::cut(cut)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl<B> fmt::Debug for CalledBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CalledBody").finish_non_exhaustive()
    }
}
