//! Metrics, printed and served.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::fake::Fake;

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    write!(stream, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn metrics_are_printed_once() {
    let ran = Fake::start().run(&["metrics"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "capsuled_versions 3\n# EOF\n"));
}

#[test]
fn metrics_are_served_while_capsuled_comes_and_goes() {
    let fake = Fake::start();
    let mut server = Command::new(env!("CARGO_BIN_EXE_capsulectl"))
        .args(["metrics", "--listen", "127.0.0.1:0", "--address"])
        .arg(fake.socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a server");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let address = line.trim().strip_prefix("serving on http://").and_then(|l| l.strip_suffix("/metrics"));
    let address = address.expect("an address").to_owned();
    let metrics = ask(&address, "GET /metrics");
    assert!(
        metrics.starts_with("HTTP/1.1 200 OK") && metrics.ends_with("\r\n\r\ncapsuled_versions 3\n# EOF\n")
    );
    assert!(metrics.to_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0"));
    for (request, begin) in [
        ("GET /readyz", "HTTP/1.1 200"),
        ("HEAD /livez", "HTTP/1.1 200"),
        ("GET /", "HTTP/1.1 404"),
        ("POST /metrics", "HTTP/1.1 405"),
    ] {
        let answer = ask(&address, request);
        assert!(answer.starts_with(begin), "{request}: {answer}");
    }
    fake.follow(false);
    let answer = ask(&address, "GET /readyz");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("does not follow containerd"), "{answer}");
    assert!(ask(&address, "GET /healthz").starts_with("HTTP/1.1 200"));
    std::fs::remove_file(fake.socket()).expect("capsuled goes");
    let answer = ask(&address, "GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("capsuled"), "{answer}");
    assert!(ask(&address, "GET /healthz").starts_with("HTTP/1.1 503"));
    assert!(ask(&address, "GET /livez").starts_with("HTTP/1.1 200"));
    server.kill().expect("ended");
    server.wait().expect("its end");
}
