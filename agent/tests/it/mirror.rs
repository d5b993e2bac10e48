//! A plain HTTP server for image data that can misbehave in every way a server can.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What it does with a request for a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Good,
    /// Closes the connection after so many bytes of the body.
    Cuts(usize),
    /// Has only so much of the file, and says so.
    Short(usize),
    /// Sends so many bytes of the body, then nothing.
    Stalls(usize),
    /// Every byte a thousand bytes apart is another one.
    Flips,
    /// Promises a body longer than the range, and sends it.
    Longer,
    /// Promises a body shorter than the range, and sends that.
    Shorter,
    /// 200 and the whole file.
    IgnoresRange,
    /// 200, though the body is the range.
    SaysOk,
    /// 206 with another range.
    OtherRange,
    Status(u16),
    /// 503 to so many requests, then well.
    BusyFirst(usize),
    /// Does not say how long the body is, but sends it.
    Chunked,
    /// Goes on after the body it promised.
    Overlong,
    /// A byte now and then.
    Trickles,
    /// Redirects to itself.
    Circles,
    /// Accepts connections and never answers.
    Silent,
}

pub struct Mirror {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    ranges: Arc<Mutex<Vec<Range<usize>>>>,
}

impl Mirror {
    /// Serves until the test process ends.
    pub fn start(data: Arc<Vec<u8>>, mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mirror = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            ranges: Arc::default(),
        };
        let (requests, ranges) = (mirror.requests.clone(), mirror.ranges.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (data, requests, ranges) = (data.clone(), requests.clone(), ranges.clone());
                std::thread::spawn(move || serve(stream, &data, mood, &requests, &ranges));
            }
        });
        mirror
    }

    pub fn url(&self) -> String {
        format!("http://{}/images/x/", self.address)
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn ranges(&self) -> Vec<Range<usize>> {
        self.ranges.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    data: &[u8],
    mood: Mood,
    requests: &AtomicUsize,
    ranges: &Mutex<Vec<Range<usize>>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(range) = read_range(&mut reader)? {
        let before = requests.fetch_add(1, Ordering::SeqCst);
        ranges.lock().unwrap().push(range.clone());
        let file = match mood {
            Mood::Short(length) => &data[..length],
            _ => data,
        };
        if range.start >= file.len() {
            write!(stream, "HTTP/1.1 416 No\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        }
        let range = range.start..range.end.min(file.len());
        let mut body = file[range.clone()].to_vec();
        let (mut status, mut promised, mut shown) = (206, body.len(), range.clone());
        let mut sent = usize::MAX;
        let mut header = String::new();
        match mood {
            Mood::Good | Mood::Short(_) | Mood::Trickles => {}
            Mood::BusyFirst(requests) if before < requests => {
                (status, promised) = (503, 0);
                body.clear();
            }
            Mood::BusyFirst(_) => {}
            Mood::Chunked => {
                header = "transfer-encoding: chunked\r\n".to_owned();
                let start = format!("{:x}\r\n", body.len());
                body = [start.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
            }
            Mood::Overlong => body.extend([0x5a; 1000]),
            Mood::Circles => {
                (status, promised) = (302, 0);
                header = "location: /images/x/data.zst\r\n".to_owned();
                body.clear();
            }
            Mood::Cuts(bytes) | Mood::Stalls(bytes) => sent = bytes,
            Mood::Flips => body.iter_mut().step_by(1000).for_each(|byte| *byte ^= 8),
            Mood::Longer => {
                promised += 5;
                body.extend([0; 5]);
            }
            Mood::Shorter => {
                promised -= 5;
                body.truncate(promised);
            }
            Mood::IgnoresRange => {
                (status, promised) = (200, file.len());
                body = file.to_vec();
            }
            Mood::SaysOk => status = 200,
            Mood::OtherRange => shown = range.start + 512..range.end + 512,
            Mood::Status(code) => {
                (status, promised) = (code, 0);
                body.clear();
            }
            Mood::Silent => sent = 0,
        }
        if mood != Mood::Chunked {
            header += &format!("content-length: {promised}\r\n");
        }
        if mood != Mood::Silent {
            write!(
                stream,
                "HTTP/1.1 {status} X\r\n{header}content-range: bytes {}-{}/{}\r\n\r\n",
                shown.start,
                shown.end - 1,
                file.len()
            )?;
        }
        if mood == Mood::Trickles {
            // Ends when the client goes away.
            for byte in &body {
                stream.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        stream.write_all(&body[..body.len().min(sent)])?;
        if sent < body.len() {
            if !matches!(mood, Mood::Cuts(_)) {
                // Until the client gives up on us.
                let _ = stream.read(&mut [0]);
            }
            return Ok(());
        }
    }
    Ok(())
}

/// The range that the next request asks for.
fn read_range(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Range<usize>>> {
    let mut range = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim().to_lowercase();
        if line.starts_with("get ") {
            assert!(line.starts_with("get /images/x/data.zst "), "{line}");
        }
        if let Some(value) = line.strip_prefix("range: bytes=") {
            let (first, last) = value.split_once('-').unwrap();
            range = Some(first.parse().unwrap()..last.parse::<usize>().unwrap() + 1);
        }
        if line.is_empty() {
            return Ok(Some(range.expect("a request without a range")));
        }
    }
}
