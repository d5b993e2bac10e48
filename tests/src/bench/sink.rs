//! Clients that cost next to nothing: they ask for ranges and throw the bytes away.
//!
//! With [`Take::Drop`] the kernel throws them away (MSG_TRUNC, tcp(7)), so that nearly all
//! processor time of a serving run is the server's; with [`Take::Copy`] they are read, as every
//! real client must: that is the limit of the network.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::{AddressFamily, RecvFlags, SocketType, recv};

/// Bytes that one request asks for.
const RANGE: u64 = 16 << 20;

/// What becomes of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// Read into memory.
    Copy,
    /// Dropped in the kernel.
    Drop,
}

/// Lets `clients` fetch `total` bytes together from a file of `size` bytes, over and over; client n
/// comes from `from[n % len]`. How long it took.
///
/// # Errors
/// When a request fails.
pub fn fetch(
    server: SocketAddr,
    path: &str,
    size: u64,
    total: u64,
    from: &[IpAddr],
    clients: usize,
    take: Take,
) -> anyhow::Result<Duration> {
    let each = total / clients as u64;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|n| {
                let address = from[n % from.len()];
                scope.spawn(move || one(server, address, path, size, each, n as u64, take))
            })
            .collect();
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(began.elapsed())
}

/// One client: ranges one after the other over one connection, beginning somewhere else than others.
fn one(
    server: SocketAddr,
    from: IpAddr,
    path: &str,
    size: u64,
    mut left: u64,
    n: u64,
    take: Take,
) -> anyhow::Result<()> {
    let mut stream = connect(from, server)?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = (n * 7 * RANGE) % size;
    while left > 0 {
        let want = RANGE.min(size - offset).min(left);
        let last = offset + want - 1;
        // In one piece: the kernel holds small pieces back until the first is acknowledged.
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: bench\r\nRange: bytes={offset}-{last}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let head = head(&mut stream)?;
        anyhow::ensure!(head.starts_with("HTTP/1.1 206 "), "{server}{path}: {head}");
        let mut body = want;
        while body > 0 {
            let most = usize::try_from(body).map_or(buffer.len(), |body| body.min(buffer.len()));
            let flags = match take {
                Take::Copy => RecvFlags::empty(),
                Take::Drop => RecvFlags::TRUNC,
            };
            let (_, read) = recv(&stream, &mut buffer[..most], flags)?;
            anyhow::ensure!(read > 0, "{server}{path}: the body ends early");
            body -= read as u64;
        }
        left -= want;
        offset = (offset + want) % size;
    }
    Ok(())
}

fn connect(from: IpAddr, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    rustix::net::connect(&socket, &to).with_context(|| format!("connecting to {to}"))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

fn head(stream: &mut TcpStream) -> anyhow::Result<String> {
    let mut head = Vec::with_capacity(512);
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(head.len() < 8192, "the head of an answer does not end");
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head)?)
}
