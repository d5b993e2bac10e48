//! A web server that can misbehave.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::lab::ADDRESS;

/// How the server answers a request.
#[derive(Debug, Clone, Copy)]
pub enum How {
    /// As it should.
    Well,
    /// Ends the connection after so many bytes of the file.
    CutAt(usize),
    /// With one bit of the file flipped.
    Flip(usize),
    /// 503.
    Unavailable,
    /// Sends so many bytes and then nothing, until it is told to go on.
    HoldAt(usize),
}

pub struct Web {
    pub url: String,
    /// The `Range` headers that came.
    pub ranges: Arc<Mutex<Vec<String>>>,
    /// Lets those who are held go on.
    pub go_on: Arc<AtomicBool>,
}

/// Serves `content` under any path; each answer is used once, then the last for ever.
pub fn serve(content: Vec<u8>, answers: Vec<How>) -> Web {
    let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (ranges, go_on): (Arc<Mutex<Vec<String>>>, Arc<AtomicBool>) = Default::default();
    let (seen, go) = (ranges.clone(), go_on.clone());
    std::thread::spawn(move || {
        for (count, stream) in listener.incoming().enumerate() {
            let how = answers[count.min(answers.len() - 1)];
            let (content, seen, go) = (content.clone(), seen.clone(), go.clone());
            // The client may go away at any time: that is its business.
            std::thread::spawn(move || answer(stream?, content, how, &seen, &go));
        }
    });
    Web { url, ranges, go_on }
}

fn answer(
    mut stream: TcpStream,
    mut content: Vec<u8>,
    how: How,
    seen: &Mutex<Vec<String>>,
    go_on: &AtomicBool,
) -> std::io::Result<()> {
    let mut from = 0;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            seen.lock().unwrap().push(range.to_owned());
            from = range.trim_end_matches('-').parse().unwrap();
        }
    }
    let all = content.len();
    let mut end = all;
    match how {
        How::Well => {}
        How::CutAt(at) | How::HoldAt(at) => end = at.max(from),
        How::Flip(at) => content[at] ^= 4,
        How::Unavailable => {
            return stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    }
    let status = match from {
        0 => "200 OK".to_owned(),
        _ => format!(
            "206 Partial Content\r\nContent-Range: bytes {from}-{}/{all}",
            all - 1
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"v1\"\r\nConnection: close\r\n\r\n",
        all - from
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&content[from..end])?;
    if let How::HoldAt(_) = how {
        while !go_on.load(Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        stream.write_all(&content[end..])?;
    }
    stream.flush()
}
