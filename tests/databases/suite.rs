//! A suite of tests of which some need servers.

use std::env;

use libtest_mimic::{Failed, Trial};
use tokio::runtime::{self, Runtime};

/// A test that is told where its server is.
pub(crate) type Test = fn(&str);

#[derive(Default)]
pub(crate) struct Suite {
    pub(crate) trials: Vec<Trial>,
}

impl Suite {
    /// The tests that need none, beside those on servers that they are alike.
    pub(crate) fn without_server(&mut self, tests: &[(&str, fn())]) {
        for &(name, test) in tests {
            self.trials.push(Trial::test(name, move || {
                test();
                Ok(())
            }));
        }
    }

    /// The tests that need the server which this variable names.
    pub(crate) fn with_server(&mut self, variable: &'static str, tests: &[(&str, Test)]) {
        let url = env::var(variable).ok();
        if url.is_none() {
            eprintln!("skipped: {} tests, because {variable} is not set", tests.len());
        }
        for &(name, test) in tests {
            let (url, is_missing) = (url.clone(), url.is_none());
            let run = move || match url {
                Some(url) => {
                    test(&url);
                    Ok(())
                }
                None => Err(Failed::from(format!("{variable} is not set"))),
            };
            self.trials.push(Trial::test(name, run).with_ignored_flag(is_missing));
        }
    }
}

/// A runtime with as many worker threads, or on the calling thread with none.
pub(crate) fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        0 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(workers.max(1)).enable_all().build().expect("a runtime can be made")
}

pub(crate) fn with_runtime<F: Future>(workers: usize, test: F) -> F::Output {
    runtime(workers).block_on(test)
}
