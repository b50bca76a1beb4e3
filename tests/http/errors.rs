//! Errors keep their causes, and a cut is found in whatever carries it.

#![expect(clippy::unwrap_used, reason = "what is not there fails the test")]

use std::error::Error;
use std::future::ready;
use std::io;
use std::iter::successors;
use std::net::TcpListener;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use request_budget::http::{BodyError, ExternalError, ExternalLayer};
use request_budget::{Budget, BudgetExt, Cut, ExternalExt, Limit};
use tower::{BoxError, Layer, ServiceExt};

use crate::support::{Failure, Ledger, Script, Step, body, ms};

fn chain<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    successors(Some(error), |error| (*error).source()).collect()
}

fn holds<T: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    chain(error).iter().any(|error| error.is::<T>())
}

fn is_refused(error: &(dyn Error + 'static)) -> bool {
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    chain(error).iter().any(|error| error.downcast_ref().is_some_and(refused))
}

/// The address of a port that nothing listens on.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/", listener.local_addr().unwrap())
}

/// A cut, as work that is refused an external call sees it.
fn cut() -> Cut {
    let call = async { ready(()).external("payments").await };
    let budget = Budget::new().external_calls(Limit::hard(0));
    call.budgeted("order", budget).now_or_never().unwrap().unwrap_err()
}

#[tokio::test]
async fn the_causes_of_a_client_s_error_are_found_through_the_layer() {
    let url: reqwest::Url = closed().parse().unwrap();
    let request = || reqwest::Request::new(reqwest::Method::GET, url.clone());
    let client = reqwest::Client::new();
    let plain = client.clone().oneshot(request()).await.unwrap_err();
    let ours = ExternalLayer::new("quotes").layer(client.clone()).oneshot(request()).await;
    let ours = ours.unwrap_err();
    assert!(is_refused(&plain) && is_refused(&ours));
    let texts = |error| chain(error).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&ours), texts(&plain));
    assert_eq!(
        format!("{:#}", anyhow::Error::from(ours)),
        format!("{:#}", anyhow::Error::from(plain))
    );

    // Of a stack of tower's that boxes its errors, and boxed again on the way out.
    let boxed = client.map_err(|error| -> BoxError { error.into() });
    let ours = ExternalLayer::new("quotes").layer(boxed).oneshot(request()).await.unwrap_err();
    assert!(is_refused(&ours));
    let ExternalError::Inner(inner) = &ours else { panic!("{ours}") };
    assert!(inner.downcast_ref::<reqwest::Error>().unwrap().is_connect());
    let again: BoxError = ours.into();
    assert!(is_refused(&*again));
}

#[test]
fn an_error_without_a_cause_is_its_own() {
    let call = ExternalError::Inner(Failure.into());
    assert_eq!((call.to_string(), chain(&call).len()), (Failure.to_string(), 2));
    assert!(holds::<Failure>(&call));
    let body = BodyError::Inner(Failure.into());
    assert_eq!((body.to_string(), chain(&body).len()), (Failure.to_string(), 2));
    assert!(holds::<Failure>(&body));
}

#[test]
fn a_cut_is_found_in_whatever_carries_it() {
    let cut = cut();
    let found = |error: &(dyn Error + 'static)| Cut::find(error) == Some(&cut);
    assert!(found(&cut));
    assert!(found(&io::Error::other(cut.clone())), "whose source is that of the cut");
    assert!(found(&sqlx::Error::Configuration(Box::new(cut.clone()))));
    assert!(found(&sqlx::Error::Io(io::Error::other(cut.clone()))));
    assert!(found(&ExternalError::Cut(cut.clone())));
    assert!(found(&BodyError::Cut(cut.clone())));
    assert!(found(&ExternalError::Inner(io::Error::other(cut.clone()).into())));
    assert!(found(&BodyError::Inner(Box::new(ExternalError::Cut(cut.clone())))));
    let boxed: BoxError = Box::new(cut.clone());
    assert!(found(&*boxed));
    assert!(found(&axum::Error::new(BodyError::Cut(cut.clone()))));
    let error = anyhow::Error::new(io::Error::other(cut.clone())).context("the order failed");
    assert!(found(error.as_ref()));
    assert!(found(&*Box::<dyn Error + Send + Sync>::from(error)));
    assert!(found(&tonic::Status::from_error(Box::new(cut.clone()))));
    assert!(found(&tonic::Status::from_error(Box::new(ExternalError::Cut(cut.clone())))));

    for without in [io::Error::other("full"), io::ErrorKind::TimedOut.into()] {
        assert_eq!(Cut::find(&without), None);
    }
    assert_eq!(Cut::find(&ExternalError::Inner("declined".into())), None);
}

#[test]
fn a_cut_is_in_the_chain_of_our_own_errors() {
    assert!(holds::<Cut>(&ExternalError::Cut(cut())));
    assert!(holds::<Cut>(&BodyError::Cut(cut())));
    assert!(holds::<Cut>(&sqlx::Error::Configuration(Box::new(cut()))));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_cut_resets_its_stream_with_cancel() {
    let budget = Budget::new().total_time(ms(100));
    let script = Script::new([Step::Data("a"), Step::Pass(ms(100)), Step::Wait]);
    let mut body = body(budget, &Ledger::default(), script);
    assert!(body.frame().now_or_never().unwrap().unwrap().is_ok());
    let error = body.frame().now_or_never().unwrap().unwrap().unwrap_err();
    assert!(Cut::find(&error).is_some());
    let h2 = chain(&error).into_iter().find_map(|error| error.downcast_ref::<h2::Error>());
    assert_eq!(h2.unwrap().reason(), Some(h2::Reason::CANCEL));
}

#[test]
fn a_body_is_empty_by_default() {
    use http_body::Body;
    let body = request_budget::http::ResponseBody::<Script>::default();
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert_eq!(body.collect().now_or_never().unwrap().unwrap().to_bytes(), Bytes::new());
}
