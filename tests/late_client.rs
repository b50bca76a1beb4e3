//! The first MongoDB client of a process, made in the middle of work. One test only: there is one
//! first client.

mod health;

use mongodb::options::ClientOptions;
use request_budget::mongodb::{Detail, instrument};
use request_budget::{Budget, BudgetExt};
use tracing::Level;

#[tokio::test]
async fn a_first_client_that_is_made_inside_a_unit_of_work_is_logged_once() {
    let health = health::listen();
    let work = async || instrument(&mut ClientOptions::default(), Detail::Commands);
    work().budgeted("first", Budget::new()).await.expect("no limit");
    let heard = health.heard();
    let [(Level::WARN, _, message)] = &heard[..] else { panic!("{heard:?}") };
    assert!(
        message.starts_with("the first MongoDB client of this process was made inside"),
        "{message}"
    );
    work().budgeted("second", Budget::new()).await.expect("no limit");
    work().await;
    assert_eq!(health.heard().len(), 1, "further clients can be made anywhere");
}
