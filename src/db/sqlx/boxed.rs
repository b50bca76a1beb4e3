//! Large futures and streams, made where they stay.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use pin_project_lite::pin_project;

pin_project! {
    /// What is boxed: the driver's futures hold kilobytes, which `Box::pin` would make on the stack
    /// and copy.
    pub(super) struct Boxed<T> {
        #[pin]
        inner: Option<T>,
    }
}

impl<T> Default for Boxed<T> {
    fn default() -> Self {
        Self { inner: None }
    }
}

impl<T> Boxed<T> {
    /// Boxes what this makes.
    #[inline]
    pub(super) fn pin(make: impl FnOnce() -> T) -> Pin<Box<Self>> {
        // In this order, so that the allocation exists before the value is moved into it.
        let mut place = Box::<Self>::default();
        place.inner = Some(make());
        Box::into_pin(place)
    }

    #[inline]
    fn inner(self: Pin<&mut Self>) -> Pin<&mut T> {
        self.project().inner.as_pin_mut().expect("made with it")
    }
}

impl<T: Future> Future for Boxed<T> {
    type Output = T::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        self.inner().poll(cx)
    }
}

impl<T: Stream> Stream for Boxed<T> {
    type Item = T::Item;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        self.inner().poll_next(cx)
    }
}
