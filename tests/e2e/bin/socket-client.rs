//! Sends a GET request over a Unix socket and prints the first line of the response: `socket-client SOCKET PATH`.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

fn main() -> io::Result<()> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "usage: socket-client SOCKET PATH");
    let mut arguments = env::args_os().skip(1);
    let socket = arguments.next().ok_or_else(usage)?;
    let path = arguments.next().and_then(|path| path.into_string().ok()).ok_or_else(usage)?;
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    writeln!(io::stdout(), "{}", line.trim_end())
}
