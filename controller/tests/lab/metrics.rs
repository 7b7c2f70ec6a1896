//! What a controller shows to Prometheus.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// All of it. It is there at once, whatever the controller waits for.
pub async fn scrape(address: SocketAddr) -> String {
    let started = Instant::now();
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    tcp.write_all(request).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "a scrape took {:?}", started.elapsed());
    answer
}

/// A number without labels.
pub fn number(text: &str, name: &str) -> Option<i64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok())
}
