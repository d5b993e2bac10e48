//! Downloads from a server that does everything wrong that servers do.

use std::io::Read as _;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::image::ingest::decode::tests::sample;
use crate::image::ingest::pipe::pipe;

/// Longer than what counts as progress.
const LENGTH: usize = 3 << 20;

fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        stall: Duration::from_secs(5),
        pause: Duration::from_millis(5),
        tries: 3,
    }
}

/// What the server does on one connection.
#[derive(Debug, Clone)]
enum Answer {
    /// Status line, headers and this many bytes of the asked range; then the connection ends.
    /// `{range}` and `{left}` in the headers are filled in.
    Send(&'static str, usize),
    /// The same, and then silence.
    Stall(&'static str, usize),
    /// These bytes instead of the content.
    Exactly(String, Vec<u8>),
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: {all}\r\nETag: \"one\"\r\n";
const PART: &str = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{last}/{all}\r\nContent-Length: {left}\r\nETag: \"one\"\r\n";

/// The `Range` of each request, and its `If-Range`.
type Asked = Vec<(Option<usize>, Option<String>)>;

struct Server {
    url: String,
    asked: Arc<Mutex<Asked>>,
}

/// Answers one connection after the other as told, the last answer for all that follow.
async fn serve(content: Vec<u8>, answers: Vec<Answer>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/disk.raw", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Asked>> = Arc::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        let mut count = 0;
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answers[count.min(answers.len() - 1)].clone();
            count += 1;
            let (content, seen) = (content.clone(), seen.clone());
            tokio::spawn(async move { reply(stream, &content, answer, &seen).await });
        }
    });
    Server { url, asked }
}

async fn reply(mut stream: TcpStream, content: &[u8], answer: Answer, seen: &Mutex<Asked>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let field = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
    };
    let range = field("range:").map(|value| {
        value
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap()
    });
    seen.lock().unwrap().push((range, field("if-range:")));
    let from = range.unwrap_or(0);
    let fill = |text: &str| {
        text.replace("{all}", &content.len().to_string())
            .replace("{from}", &from.to_string())
            .replace("{last}", &(content.len() - 1).to_string())
            .replace("{left}", &(content.len() - from).to_string())
    };
    let body = |text: &str, count: usize| {
        let start = if text.contains(" 206 ") { from } else { 0 };
        content[start..content.len().min(start + count)].to_vec()
    };
    let (head, bytes, stall) = match answer {
        Answer::Send(text, count) => (fill(text), body(text, count), false),
        Answer::Stall(text, count) => (fill(text), body(text, count), true),
        Answer::Exactly(text, bytes) => (text, bytes, false),
    };
    // The client may have gone: that is its business.
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).await;
    let _ = stream.write_all(&bytes).await;
    let _ = stream.flush().await;
    if stall {
        // Until the client gives up.
        let _ = stream.read(&mut [0; 1]).await;
    }
}

/// What came out, and how it ended.
async fn download(server: &Server, allow_local: bool) -> (Vec<u8>, Result<Outcome, IngestError>) {
    // Several tests share the process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let web = client(Guard { allow_local }, patience(), None).unwrap();
    let url = Url::parse(&server.url).unwrap();
    let target = Target::Url { web, url };
    let (sender, mut receiver) = pipe();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        // An interrupted pipe ends with an error; what came before is in `all`.
        let _ = receiver.read_to_end(&mut all);
        all
    });
    let progress = Progress::default();
    let outcome = Download::new(&target, patience(), &sender, &progress)
        .run()
        .await;
    match outcome {
        Ok(_) => sender.finish().await,
        Err(_) => drop(sender),
    }
    let all = tokio::task::spawn_blocking(|| reader.join().unwrap())
        .await
        .unwrap();
    (all, outcome)
}

#[tokio::test]
async fn a_whole_download_is_the_content() {
    let content = sample(LENGTH);
    for answer in [
        Answer::Send(OK, LENGTH),
        Answer::Exactly(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n".to_owned(),
            [
                format!("{LENGTH:x}\r\n").as_bytes(),
                &content,
                b"\r\n0\r\n\r\n",
            ]
            .concat(),
        ),
    ] {
        let server = serve(content.clone(), vec![answer]).await;
        let (all, outcome) = download(&server, true).await;
        assert_eq!(outcome.unwrap(), Outcome::Complete);
        assert!(all == content);
        assert_eq!(server.asked.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn what_broke_off_goes_on_by_range() {
    let content = sample(LENGTH);
    let answers = vec![
        Answer::Send(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n",
            0,
        ),
        Answer::Send(OK, 1_500_000),
        Answer::Stall(PART, 1_200_000),
        Answer::Send("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n", 0),
        Answer::Send(PART, LENGTH),
    ];
    let server = serve(content.clone(), answers).await;
    let (all, outcome) = download(&server, true).await;
    assert_eq!(outcome.unwrap(), Outcome::Complete);
    assert!(all == content);
    let asked = server.asked.lock().unwrap();
    assert_eq!(asked.len(), 5);
    assert_eq!(asked[1].0, None);
    assert!(asked[2].0.is_some_and(|from| from > 0 && from <= 1_500_000));
    assert_eq!(asked[2].1.as_deref(), Some("\"one\""));
    assert!(asked[4].0 > asked[2].0, "{asked:?}");
}

#[tokio::test]
async fn a_server_without_ranges_is_read_again_and_compared() {
    let content = sample(LENGTH);
    // It answers 200 to a range; and one without a validator, which is not even asked for one.
    for head in [OK, "HTTP/1.1 200 OK\r\nContent-Length: {all}\r\n"] {
        let answers = vec![Answer::Send(head, 2_000_000), Answer::Send(head, LENGTH)];
        let server = serve(content.clone(), answers).await;
        let (all, outcome) = download(&server, true).await;
        assert_eq!(outcome.unwrap(), Outcome::Complete);
        assert!(all == content, "each byte once");
        let asked = server.asked.lock().unwrap();
        assert_eq!(asked[1].0.is_some(), head == OK);
    }
}

#[tokio::test]
async fn content_that_changed_meanwhile_is_refused() {
    let content = sample(LENGTH);
    let mut other = content.clone();
    other[77] ^= 1;
    let length = |tag: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n{tag}");
    for second in [
        // Another tag; the same tag or none and other bytes; another size.
        Answer::Exactly(length("ETag: \"two\"\r\n"), content.clone()),
        Answer::Exactly(length("ETag: \"one\"\r\n"), other.clone()),
        Answer::Exactly(length(""), other),
        Answer::Exactly(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n".to_owned(),
            vec![0; 5],
        ),
        Answer::Send(
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n",
            0,
        ),
        Answer::Send(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{last}/{all}\r\nContent-Length: {left}\r\nETag: \"two\"\r\n",
            LENGTH,
        ),
    ] {
        let server = serve(
            content.clone(),
            vec![Answer::Send(OK, 2_000_000), second.clone()],
        )
        .await;
        let (_, outcome) = download(&server, true).await;
        assert!(
            matches!(outcome, Err(IngestError::Changed(_))),
            "{second:.80?}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_truncated_download_is_never_a_success() {
    let content = sample(100_000);
    for (answer, word) in [
        (Answer::Send(OK, 99_999), "failed 3 times"),
        (Answer::Stall(OK, 99_999), "nothing came for"),
        (Answer::Stall("", 0), "nothing came for"),
        (
            Answer::Send(
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n",
                0,
            ),
            "503",
        ),
        // Chunked, cut in a chunk and between two.
        (
            Answer::Exactly(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n".to_owned(),
                b"5\r\nab".to_vec(),
            ),
            "failed 3 times",
        ),
        (
            Answer::Exactly(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n".to_owned(),
                b"2\r\nab\r\n".to_vec(),
            ),
            "failed 3 times",
        ),
        // Says nothing about its length: its end could be anything.
        (
            Answer::Send("HTTP/1.1 200 OK\r\nConnection: close\r\n", 100_000),
            "does not say how much",
        ),
        (
            Answer::Send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n", 0),
            "404",
        ),
        (
            Answer::Send(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/5\r\n",
                5,
            ),
            "206",
        ),
    ] {
        let server = serve(content.clone(), vec![answer.clone()]).await;
        let (_, outcome) = download(&server, true).await;
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains(word), "{answer:.80?}: {text}");
        assert!(text.contains("/disk.raw"), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_range_is_refused() {
    let content = sample(LENGTH);
    for head in [
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-{last}/{all}\r\nContent-Length: {all}\r\nETag: \"one\"\r\n",
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {left}\r\nETag: \"one\"\r\n",
    ] {
        let answers = vec![Answer::Send(OK, 2_000_000), Answer::Send(head, LENGTH)];
        let server = serve(content.clone(), answers).await;
        let text = download(&server, true).await.1.unwrap_err().to_string();
        assert!(text.contains("with another one"), "{text}");
    }
}

#[tokio::test]
async fn addresses_of_the_own_host_are_refused_also_by_redirect() {
    let server = serve(sample(10), vec![Answer::Send(OK, 10)]).await;
    let named = Server {
        url: server.url.replace("127.0.0.1", "localhost"),
        asked: Arc::default(),
    };
    let (_, outcome) = download(&named, false).await;
    assert!(
        matches!(outcome, Err(IngestError::Refused(_))),
        "{outcome:?}"
    );
    let endless = serve(
        Vec::from([0]),
        vec![Answer::Send(
            "HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n",
            0,
        )],
    )
    .await;
    let text = download(&endless, true).await.1.unwrap_err().to_string();
    assert!(text.contains("redirects"), "{text}");
    let file = serve(
        Vec::from([0]),
        vec![Answer::Send(
            "HTTP/1.1 302 Found\r\nLocation: ftp://example.org/x\r\nContent-Length: 0\r\n",
            0,
        )],
    )
    .await;
    let (_, outcome) = download(&file, true).await;
    assert!(outcome.is_err(), "{outcome:?}");
    assert!(server.asked.lock().unwrap().is_empty());
}
