//! A client of HTTP that sends exactly the headers it is given.

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

#[derive(Clone)]
pub(super) struct Client<'a> {
    address: &'a str,
    headers: Vec<(String, String)>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    /// In lower case, one on each line.
    pub(super) headers: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl<'a> Client<'a> {
    pub(super) fn new(address: &'a str) -> Self {
        Self { address, headers: Vec::new() }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path}"), "").await
    }

    /// Sends a form as a browser does from a page of the console.
    pub(super) async fn post(&self, path: &str, form: &str) -> Answer {
        self.clone().with("Sec-Fetch-Site", "same-origin").send(&format!("POST {path}"), form).await
    }

    pub(super) async fn send(&self, line: &str, body: &str) -> Answer {
        self.try_send(line, body).await.expect("the server answers")
    }

    /// Returns none if the server ends before it answers.
    pub(super) async fn try_send(&self, line: &str, body: &str) -> Option<Answer> {
        let mut request = format!("{line} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in &self.headers {
            request.extend([name, ": ", value, "\r\n"]);
        }
        if !body.is_empty() {
            request += "Content-Type: application/x-www-form-urlencoded\r\n";
        }
        request.extend([format!("Content-Length: {}\r\n\r\n{body}", body.len())]);
        let mut stream = TcpStream::connect(self.address).await.expect("the daemon listens");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let (headers, body) = text.split_once("\r\n\r\n")?;
        let status = headers.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        // Values keep their case: a cookie is one.
        let lines: Vec<_> = headers
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| format!("{}: {value}", name.to_ascii_lowercase()))
            .collect();
        Some(Answer { status, headers: lines.join("\n"), body: body.to_owned() })
    }
}
