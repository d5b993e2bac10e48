//! Sockets of the mock: one request in, one answer or fault out.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::What;
use super::service::{Answer, State};

/// A parsed request.
pub struct Incoming {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Incoming {
    pub fn header(&self, name: &str) -> Option<&str> {
        let same = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers
            .iter()
            .find(same)
            .map(|(_, value)| value.as_str())
    }
}

pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), state.clone());
        connections.spawn(async move {
            match tls {
                // A client that does not trust the certificate ends the handshake.
                Some(tls) => {
                    if let Ok(mut stream) = tls.accept(stream).await {
                        exchange(&mut stream, &state).await;
                    }
                }
                None => plain(stream, &state).await,
            }
        });
    }
}

async fn plain(mut stream: TcpStream, state: &Mutex<State>) {
    if exchange(&mut stream, state).await == Ending::Reset {
        // Closing with this option sends RST instead of FIN.
        stream.set_zero_linger().unwrap();
    }
}

#[derive(PartialEq, Eq)]
enum Ending {
    Close,
    Reset,
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    state: &Mutex<State>,
) -> Ending {
    let Some(request) = read(stream).await else {
        return Ending::Close;
    };
    let (fault, answer) = state.lock().unwrap().handle(&request);
    let mut text = answer.text();
    match fault {
        Some(What::Reset) => return Ending::Reset,
        Some(What::Hang) => std::future::pending::<()>().await,
        Some(What::Cut) => text.truncate(text.len() - 10),
        _ => {}
    }
    // The client may be gone.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
    Ending::Close
}

/// Reads a request; none when the client goes away first.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Incoming> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        let more = stream.read_buf(&mut bytes);
        if tokio::time::timeout(Duration::from_secs(30), more)
            .await
            .ok()?
            .ok()?
            == 0
        {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ').map(str::to_owned);
    let mut request = Incoming {
        method: first.next()?,
        path: first.next()?,
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        body: Value::Null,
    };
    let length = request
        .header("content-length")
        .map_or(0, |n| n.parse().unwrap());
    while bytes.len() < head_end + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    if length > 0 {
        request.body = serde_json::from_slice(&bytes[head_end + 4..]).unwrap();
    }
    Some(request)
}

impl Answer {
    fn text(&self) -> String {
        let mut text = format!("HTTP/1.1 {} Mock\r\nConnection: close\r\n", self.status);
        for (key, value) in &self.headers {
            text.push_str(&format!("{key}: {value}\r\n"));
        }
        if self.status != 204 {
            text.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        text + "\r\n" + &self.body
    }
}

/// A server with a fresh self-signed certificate (DER), as BMCs have them.
pub fn tls() -> (TlsAcceptor, Vec<u8>) {
    super::install_provider();
    let made = rcgen::generate_simple_self_signed(["bmc".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), certificate.to_vec())
}
