//! Redis under a budget: the door of `request_budget::db` for a store that this crate does not know.
//!
//! `cargo run --example redis [redis://host:port]` needs a server. It is named by the argument or by
//! `REQUEST_BUDGET_REDIS_URL`; else it is sought at `redis://127.0.0.1:6379`.

use std::process::ExitCode;
use std::{env, io};

use redis::aio::ConnectionLike;
use redis::{Arg, AsyncCommands, Cmd, Pipeline, RedisFuture, RedisResult, Value};
use request_budget::db::Query;
use request_budget::report::{Report, Reporter};
use request_budget::{Budget, BudgetExt, Violation};

/// A connection whose commands are counted. Code that uses it stays as it is: it is one itself.
struct Metered<C>(C);

impl<C: ConnectionLike + Send> ConnectionLike for Metered<C> {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            // Past a hard limit this is an error, and the command is not sent.
            let mut query = Query::start(&shape(command)).map_err(io::Error::other)?;
            let value = self.0.req_packed_command(command).await?;
            query.add_rows(values(&value));
            Ok(value)
        })
    }

    /// One round trip, so one query, whatever is in it.
    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut query = Query::start("pipeline").map_err(io::Error::other)?;
            let all = self.0.req_packed_commands(pipeline, offset, count).await?;
            query.add_rows(all.iter().map(values).sum());
            Ok(all)
        })
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

/// "GET author:*": what tells repeated commands is their kind, and no value belongs in a report.
fn shape(command: &Cmd) -> String {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(word) => String::from_utf8_lossy(word),
        _ => "?".into(),
    });
    let name = words.next().unwrap_or_default();
    match words.next().as_deref().and_then(|key| key.rsplit_once(':')) {
        Some((kind, _)) => format!("{name} {kind}:*"),
        None => name.into_owned(),
    }
}

fn values(value: &Value) -> u64 {
    match value {
        Value::Nil | Value::Okay => 0,
        Value::Array(all) => all.iter().map(values).sum(),
        _ => 1,
    }
}

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
    let mut redis = Metered(client.get_multiplexed_async_connection().await?);
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
    let budget = Budget::new().queries(10).repeated_queries(5);
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
