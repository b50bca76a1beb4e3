//! What can only be tried against real servers; `tests/run` starts them.
//!
//! A server is named by a variable. Without it the tests that need it are shown as ignored, and why is
//! said at the top.

mod mongo;

use std::env;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let mut suite = Suite::default();
    mongo::tests(&mut suite);
    libtest_mimic::run(&arguments, suite.trials).exit();
}

#[derive(Default)]
struct Suite {
    trials: Vec<Trial>,
}

impl Suite {
    /// The tests that need the server which this variable names.
    fn with_server(&mut self, variable: &'static str, tests: &[(&str, fn(&str))]) {
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

/// Runs a future on a runtime of its own, with as many worker threads, or on this thread with none.
fn block_on<F: Future>(workers: usize, future: F) -> F::Output {
    let mut builder = match workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(workers.max(1)).enable_all().build();
    runtime.expect("a runtime can be made").block_on(future)
}
