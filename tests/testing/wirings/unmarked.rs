//! Calls of other systems that nothing counts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use request_budget::testing::measure;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{metered, warns};

/// A server of one connection, which answers by this.
fn server(answer: fn(&[u8]) -> Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut bytes = [0; 1 << 12];
        while let Ok(n @ 1..) = socket.read(&mut bytes) {
            socket.write_all(&answer(&bytes[..n])).unwrap();
        }
    });
    address
}

#[tokio::test]
async fn plain_redis() {
    let words =
        ["the work waited for `redis`, which nothing measures", "request_budget::db::Query"];
    warns("unmarked::plain_redis", &words, async {
        let _pool = metered().await;
        let ok = |bytes: &[u8]| b"+OK\r\n".repeat(bytes.iter().filter(|b| **b == b'*').count());
        let client = redis::Client::open(format!("redis://{}", server(ok))).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let record = measure(async {
            let mut set = redis::cmd("SET");
            let answer = set.arg("key").arg(1).query_async::<String>(&mut connection).await;
            assert_eq!(answer.unwrap(), "OK");
        });
        record.await.assert_queries(0);
    })
    .await;
}

#[tokio::test]
async fn an_external_call_that_is_not_marked() {
    let words = ["the work waited for a socket, which nothing measures", "`.external(\"name\")`"];
    warns("unmarked::an_external_call_that_is_not_marked", &words, async {
        let address = server(|bytes| bytes.to_vec());
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let record = measure(async {
            socket.write_all(b"ping").await.unwrap();
            assert_eq!(socket.read_u32().await.unwrap().to_be_bytes(), *b"ping");
        });
        record.await.assert_no_external_calls();
    })
    .await;
}

#[tokio::test]
async fn a_client_of_http_that_is_not_marked() {
    let words = ["the work waited for `hyper`, which nothing measures", "`.external(\"name\")`"];
    warns("unmarked::a_client_of_http_that_is_not_marked", &words, async {
        let answer = |_: &[u8]| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec();
        let url = format!("http://{}/", server(answer));
        let record = measure(async { reqwest::get(url).await.unwrap().text().await.unwrap() });
        let record = record.await;
        record.assert_no_external_calls();
        assert_eq!(record.into_output(), "ok");
    })
    .await;
}
