//! Clients on sockets of their own: some read whole answers, some hang up at any byte or moment.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::ledger::Ledger;
use crate::random::Random;
use crate::server::{EXTERNAL, MEMORY, PACE, PLAN, QUERIES, Stop, TOTAL, WORK};

/// No answer takes longer, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(30);

/// What clients have seen in all.
#[derive(Debug, Default)]
pub struct Seen {
    pub sent: AtomicU64,
    pub ok: AtomicU64,
    pub errors: AtomicU64,
    pub cut: AtomicU64,
    pub torn: AtomicU64,
    pub hung_up: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
enum HangUp {
    Never,
    /// After so many bytes of the request are written.
    InRequest(usize),
    /// After so many bytes of the answer are read.
    InAnswer(usize),
    /// So long after the request.
    After(Duration),
}

struct Plan {
    request: Vec<u8>,
    hang_up: HangUp,
    resets: bool,
}

fn plan(path: &str, random: &Random) -> Plan {
    let mut headers = vec![(PACE, random.below(5_000))];
    let mut hang_up = HangUp::Never;
    let mut fault = "none";
    match random.below(100) {
        0..30 => {}
        30..56 => {
            fault = "time";
            headers.push((TOTAL, 1 + random.below(40)));
        }
        56..66 => {
            fault = "queries";
            headers.push((QUERIES, random.below(5)));
        }
        66..74 => {
            fault = "hangs up in the request";
            hang_up = HangUp::InRequest(0);
        }
        74..84 => {
            fault = "hangs up in the answer";
            hang_up = HangUp::InAnswer(random.below(400) as usize);
        }
        _ => {
            fault = "hangs up";
            hang_up = HangUp::After(Duration::from_micros(random.below(30_000)));
        }
    }
    // These end by nothing else.
    if path.contains("retry") {
        headers.retain(|(name, _)| *name == PACE);
        headers.push((QUERIES, random.below(4)));
        headers.push((TOTAL, 200));
        headers.push((EXTERNAL, 50));
    }
    if path.ends_with("/memory") {
        headers.push((MEMORY, 1 << 20));
    }
    if path.ends_with("/external") {
        headers.push((EXTERNAL, 1 + random.below(20)));
    }
    let listed: Vec<_> = headers.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let plan = format!("{fault}; {}", listed.join(", "));
    let body = vec![b'b'; random.below(3_000) as usize];
    let mut request = format!("POST {path} HTTP/1.1\r\nhost: soak\r\n{PLAN}: {plan}\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n", body.len());
    let mut request = request.into_bytes();
    request.extend(body);
    if let HangUp::InRequest(at) = &mut hang_up {
        *at = random.below(request.len() as u64) as usize;
    }
    Plan { request, hang_up, resets: random.one_in(2) }
}

/// Asks for one thing after the other until told to stop.
pub async fn run(
    number: u64,
    address: SocketAddr,
    paths: Arc<[String]>,
    ledger: Arc<Ledger>,
    seen: Arc<Seen>,
    stop: Stop,
) {
    let random = Random::new(u64::MAX - 1 - number - 1_000 * ledger.round() as u64);
    let mut kept = None;
    while !stop.is_set() && !paths.is_empty() {
        let path: &String = random.pick(&paths);
        let plan = plan(path, &random);
        let stream = match kept.take() {
            Some(stream) => Ok(stream),
            None => TcpStream::connect(address).await,
        };
        let Ok(mut stream) = stream else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        seen.sent.fetch_add(1, Relaxed);
        match timeout(PATIENCE, ask(&mut stream, &plan)).await {
            Ok(Ok(Some(answer))) => {
                let count = match answer.status {
                    200 => &seen.ok,
                    503 => &seen.cut,
                    _ => &seen.errors,
                };
                count.fetch_add(1, Relaxed);
                match answer.work {
                    Some(work) => ledger.answered(work, answer.status),
                    None => ledger.fail("answers", || format!("status {}", answer.status)),
                }
                if !answer.closes {
                    kept = Some(stream);
                }
            }
            Ok(Ok(None)) => {
                seen.hung_up.fetch_add(1, Relaxed);
                if plan.resets {
                    drop(stream.set_zero_linger());
                }
            }
            Ok(Err(_)) => {
                seen.torn.fetch_add(1, Relaxed);
            }
            Err(_) => {
                let request = String::from_utf8_lossy(&plan.request);
                let first = request.lines().next().unwrap_or_default();
                ledger.fail("an answer within 30 seconds", || first.to_owned());
            }
        }
    }
}

struct Answer {
    status: u16,
    work: Option<u64>,
    closes: bool,
}

/// `None` where the client has hung up.
async fn ask(stream: &mut TcpStream, plan: &Plan) -> Result<Option<Answer>> {
    if let HangUp::InRequest(at) = plan.hang_up {
        stream.write_all(&plan.request[..at]).await?;
        return Ok(None);
    }
    stream.write_all(&plan.request).await?;
    match plan.hang_up {
        HangUp::After(time) => {
            sleep(time).await;
            Ok(None)
        }
        HangUp::InAnswer(bytes) => {
            let mut answer = vec![0; bytes];
            // The answer may be shorter, and the connection stays open behind it.
            let read = timeout(Duration::from_millis(300), stream.read_exact(&mut answer));
            drop(read.await);
            Ok(None)
        }
        _ => read_answer(stream).await.map(Some),
    }
}

async fn read_answer(stream: &mut TcpStream) -> Result<Answer> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = find(&read, b"\r\n\r\n") {
            break end + 4;
        }
        more(stream, &mut read).await?;
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let bad = || Error::new(ErrorKind::InvalidData, "no HTTP");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    if let Some(length) = header("content-length") {
        let length: usize = length.parse().map_err(|_| bad())?;
        while read.len() < end + length {
            more(stream, &mut read).await?;
        }
    } else {
        // No piece of ours holds these bytes.
        while !read[end..].ends_with(b"0\r\n\r\n") {
            more(stream, &mut read).await?;
        }
    }
    let work = header(WORK).and_then(|work| work.parse().ok());
    Ok(Answer { status, work, closes: header("connection") == Some("close") })
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

async fn more(stream: &mut TcpStream, read: &mut Vec<u8>) -> Result<()> {
    match stream.read_buf(read).await? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Whether the server answers at all: it does not if its threads never come back from a poll.
pub async fn is_alive(address: SocketAddr, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("POST {path} HTTP/1.1\r\nhost: soak\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    read_answer(&mut stream).await.map(drop)
}
