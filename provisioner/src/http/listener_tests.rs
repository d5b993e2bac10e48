//! Clients that stop in the middle, and those that are merely slow.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const SHORT: Patience = Patience {
    head: Duration::from_millis(1500),
    stall: Duration::from_millis(1500),
};
/// Far longer than [`SHORT`], for what must happen at last.
const BOUND: Duration = Duration::from_secs(60);

/// An answer that is being made.
struct Answer(Arc<AtomicUsize>);

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A listener with little patience, and how many endless answers are being made.
async fn serve_short() -> (SocketAddr, Arc<AtomicUsize>, tokio_util::sync::DropGuard) {
    let alive = Arc::new(AtomicUsize::new(0));
    let count = alive.clone();
    let endless = move || {
        count.fetch_add(1, Ordering::SeqCst);
        let answer = Answer(count.clone());
        async move {
            let pieces = futures_util::stream::repeat_with(move || {
                let _ = &answer;
                Ok::<_, std::io::Error>(axum::body::Bytes::from(vec![0; 1 << 16]))
            });
            axum::body::Body::from_stream(pieces)
        }
    };
    let late = || async {
        tokio::time::sleep(3 * SHORT.stall).await;
        "late"
    };
    let router = Router::new()
        .route("/endless", get(endless))
        .route("/late", get(late))
        .route("/body", post(|body: String| async { body }));
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), None)
        .await
        .unwrap();
    let listener = listener.with_patience(SHORT);
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(listener.run(router, stop.clone()));
    (address, alive, stop.drop_guard())
}

async fn ask(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// What comes until the other side closes the connection, or breaks it.
async fn until_closed(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let reading = tokio::time::timeout(BOUND, stream.read_to_end(&mut bytes));
    let _ = reading.await.expect("the connection stays open");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn who_takes_nothing_is_cut_off_and_who_takes_little_is_not() {
    let (address, alive, _stop) = serve_short().await;
    let request = "GET /endless HTTP/1.1\r\nhost: x\r\n\r\n";
    let idle = ask(address, request).await;
    let mut slow = ask(address, request).await;
    let answers = || alive.load(Ordering::SeqCst);
    let mut bytes = vec![0; 1 << 20];
    let both = async {
        while answers() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // One takes a little now and then, the other nothing at all.
        while answers() == 2 {
            slow.read_exact(&mut bytes)
                .await
                .expect("cut off while reading");
            tokio::time::sleep(SHORT.stall / 60).await;
        }
    };
    tokio::time::timeout(BOUND, both)
        .await
        .expect("the silent reader is kept");
    slow.read_exact(&mut bytes)
        .await
        .expect("cut off while reading");
    assert_eq!(answers(), 1);
    drop(idle);
}

#[tokio::test]
async fn an_answer_may_take_its_time_and_the_next_request_may_not() {
    let (address, _, _stop) = serve_short().await;
    let stream = ask(address, "GET /late HTTP/1.1\r\nhost: x\r\n\r\n").await;
    // Kept alive after the answer, and closed when no other request comes.
    let told = until_closed(stream).await;
    assert!(
        told.starts_with("HTTP/1.1 200") && told.ends_with("late"),
        "{told}"
    );
    for half in ["", "GET /late HTTP/1.1\r\nhost:"] {
        let told = until_closed(ask(address, half).await).await;
        assert!(!told.contains("200"), "{told}");
    }
}

#[tokio::test]
async fn who_opens_a_grpc_port_must_speak() {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), None);
    let listener = listener.await.unwrap().for_grpc();
    let listener = listener.with_patience(Patience {
        stall: BOUND,
        ..SHORT
    });
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(listener.run(Router::new(), stop.clone()));
    let _stop = stop.drop_guard();
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut client = ask(address, preface).await;
    let settings = [0_u8, 0, 0, 4, 0, 0, 0, 0, 0];
    client.write_all(&settings).await.unwrap();
    for silent in ["", &preface[..10], "GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let told = until_closed(ask(address, silent).await).await;
        assert_eq!(told, "", "{silent}");
    }
    // Longer than that, who did speak is still heard.
    let ping = |flags: u8| [0_u8, 0, 8, 6, flags, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    client.write_all(&ping(0)).await.unwrap();
    let mut bytes: Vec<u8> = Vec::new();
    let answered = async {
        while !bytes.windows(17).any(|frame| frame == ping(1)) {
            assert_ne!(client.read_buf(&mut bytes).await.unwrap(), 0, "closed");
        }
    };
    tokio::time::timeout(BOUND, answered)
        .await
        .expect("no answer");
}

#[tokio::test]
async fn a_body_must_go_on() {
    let (address, _, _stop) = serve_short().await;
    let head = "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n";
    let told = until_closed(ask(address, &format!("{head}12345")).await).await;
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
    let mut stream = ask(address, head).await;
    for piece in ["12345", "67890"] {
        tokio::time::sleep(SHORT.stall / 60).await;
        stream.write_all(piece.as_bytes()).await.unwrap();
    }
    assert!(until_closed(stream).await.ends_with("1234567890"));
    // Each byte comes in time, but all of them together do not.
    let mut stream = ask(address, head).await;
    let trickle = async {
        for byte in b"123456789" {
            tokio::time::sleep(SHORT.stall / 4).await;
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    };
    trickle.await;
    let told = until_closed(stream).await;
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
}
