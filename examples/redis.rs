//! Redis under a budget: an N+1 in the cache, and the same in one round trip.
//!
//! `cargo run --example redis [redis://host:port]` needs a server. It is named by the argument or
//! by `REQUEST_BUDGET_REDIS_URL`; else it is sought at `redis://127.0.0.1:6379`.

use std::process::ExitCode;
use std::{env, io};

use redis::{AsyncCommands, RedisFuture, RedisResult};
use request_budget::redis::Connection;
use request_budget::report::{Report, Reporter};
use request_budget::{Budget, BudgetExt, Violation};

/// Prints what a service would have in its log.
struct Print;

impl Reporter for Print {
    fn violation(&self, violation: &Violation) {
        println!("over: {violation}");
    }

    fn finished(&self, report: &Report<'_>) {
        println!("used: {}, by {}", report.usage(), report.work());
    }
}

async fn compare(client: &redis::Client) -> RedisResult<()> {
    let mut redis = Connection::new(client.get_multiplexed_async_connection().await?);
    let keys: Vec<_> = (1..=20).map(|n| format!("request-budget:author:{n}")).collect();
    for key in &keys {
        () = redis.set_ex(key, "somebody", 60).await?;
    }
    let one_by_one = async {
        for key in &keys {
            redis.get::<_, String>(key).await?;
        }
        Ok(())
    };
    show("a GET for each of 20 authors", Box::pin(one_by_one)).await?;
    show("one MGET for all of them", redis.mget::<_, Vec<String>>(&keys)).await
}

async fn show<T>(name: &'static str, work: RedisFuture<'_, T>) -> RedisResult<()> {
    let budget = Budget::new().cache_calls(10).repeated_cache_calls(5);
    let result = work.budgeted(name, budget).with_reporter(Print).await;
    result.map_err(io::Error::other)?.map(drop)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let named = env::args().nth(1).or_else(|| env::var("REQUEST_BUDGET_REDIS_URL").ok());
    let url = named.unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
    let error = match redis::Client::open(url) {
        Ok(client) => match compare(&client).await {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => format!("Redis at {}: {error}", client.get_connection_info().addr()),
        },
        Err(error) => format!("the address of Redis: {error}"),
    };
    // Not a success: who runs this to see something, or to check it, has seen and checked nothing.
    eprintln!("error: {error}\nName a server as an argument, or in REQUEST_BUDGET_REDIS_URL.");
    ExitCode::FAILURE
}
