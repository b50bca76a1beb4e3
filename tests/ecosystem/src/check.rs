//! Units of work: one, fifty at once, and one for each of many random programs.

use futures_util::future::join_all;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use request_budget::report::{Report, Reporter};
use request_budget::{Budget, BudgetExt, Usage, Violation};

use crate::steps::{Program, programs};

/// The usage of a piece of work, as it is reported at its end.
pub(crate) async fn usage_of(work: impl Future<Output = ()>) -> Usage {
    #[derive(Clone)]
    struct Last(std::sync::mpsc::Sender<Usage>);

    impl Reporter for Last {
        fn violation(&self, _: &Violation) {}

        fn finished(&self, report: &Report<'_>) {
            self.0.send(report.usage()).expect("it is waited for");
        }
    }

    let (sender, last) = std::sync::mpsc::channel();
    work.budgeted("program", Budget::new()).with_reporter(Last(sender)).await.expect("no limit");
    last.recv().expect("it is reported")
}

/// Runs the test on so many random programs.
pub(crate) fn check(cases: u32, test: impl Fn(Program) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&programs(), test);
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Fifty requests at once, each of which selects all up to six times; how many times in all.
pub(crate) async fn fifty<F>(select_all: impl Fn() -> F) -> u64
where
    F: Future<Output = usize> + Send + 'static,
{
    let request = |n: usize| {
        let selects: Vec<_> = (0..n % 7).map(|_| select_all()).collect();
        let work = async move {
            for select in selects {
                assert_eq!(select.await, 20);
            }
        };
        tokio::spawn(usage_of(work))
    };
    let mut all = 0;
    for (n, request) in join_all((0..50).map(request)).await.into_iter().enumerate() {
        let usage = request.expect("no panic");
        assert_eq!((usage.queries, usage.observed), (n as u64 % 7, usage.queries), "{n}");
        assert_eq!(usage.rows, 20 * usage.queries);
        all += usage.queries;
    }
    all
}
