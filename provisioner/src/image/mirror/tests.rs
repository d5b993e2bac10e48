//! Mirrors that have the data, and those that only say so.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use anneal_image::{Facts, PackOptions, pack};

use super::*;

/// Answers each request by its path and range with head and body, one connection a request.
fn server(
    answer: impl Fn(&str, Option<(usize, usize)>) -> (String, Vec<u8>) + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test process; each test has its own.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let _ = respond(stream, &answer);
        }
    });
    format!("127.0.0.1:{}", address.port())
}

fn respond(
    stream: TcpStream,
    answer: &impl Fn(&str, Option<(usize, usize)>) -> (String, Vec<u8>),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = None;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        let lower = header.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("range: bytes=") {
            let (first, last) = value.trim().split_once('-').unwrap();
            range = Some((first.parse().unwrap(), last.parse().unwrap()));
        }
    }
    let (head, body) = answer(&path, range);
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}

fn part(data: &[u8], range: Option<(usize, usize)>) -> (String, Vec<u8>) {
    let (first, last) = range.unwrap();
    if first >= data.len() {
        return ("416 Range Not Satisfiable".into(), Vec::new());
    }
    let last = last.min(data.len() - 1);
    let head = format!(
        "206 Partial Content\r\ncontent-range: bytes {first}-{last}/{}",
        data.len()
    );
    (head, data[first..=last].to_vec())
}

fn image() -> (Manifest, Arc<Vec<u8>>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut raw = vec![0; 9 << 20];
    raw[..4096].fill(7);
    raw[8 << 20..].fill(9);
    let mut data = Vec::new();
    let packed = pack(
        &mut &raw[..],
        &mut data,
        &PackOptions::default(),
        &mut |_| {},
    )
    .unwrap();
    let facts = Facts {
        os: "test".into(),
        ..Facts::default()
    };
    (packed.into_manifest(facts).unwrap(), Arc::new(data))
}

const LAB: Guard = Guard { allow_local: true };

async fn problem(url: &str, manifest: &Manifest) -> String {
    check(url, manifest, LAB).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_server_with_the_data_is_a_mirror() {
    let (manifest, data) = image();
    let host = server(move |_, range| part(&data, range));
    let url = format!("http://{host}/data.zst");
    assert_eq!(check(&url, &manifest, LAB).await.unwrap(), url);
}

#[tokio::test]
async fn what_has_other_data_is_not() {
    let (manifest, data) = image();
    let last = manifest.data_range(manifest.frames().len() - 1..manifest.frames().len());
    let mut cases: Vec<(Vec<u8>, &str)> = vec![
        (data[..data.len() - 1].to_vec(), "has other data: it has"),
        ([&data[..], b"x"].concat(), "has other data: it has"),
        (Vec::new(), "is too short"),
    ];
    for at in [0, last.start as usize] {
        let mut bad = data.to_vec();
        bad[at] ^= 0xff;
        cases.push((bad, "is not that of the image"));
    }
    for (bad, expected) in cases {
        let host = server(move |_, range| part(&bad, range));
        let said = problem(&format!("http://{host}/x"), &manifest).await;
        assert!(said.contains(expected), "{said} / {expected}");
    }
}

#[tokio::test]
async fn servers_that_misbehave_are_told_apart() {
    let (manifest, data) = image();
    let whole = data.clone();
    let long = data.clone();
    type Answer = Box<dyn Fn(&str, Option<(usize, usize)>) -> (String, Vec<u8>) + Send>;
    let cases: Vec<(Answer, &str)> = vec![
        (
            Box::new(move |_, _| ("200 OK".into(), whole.to_vec())),
            "does not answer ranges",
        ),
        (
            Box::new(|_, _| ("404 Not Found".into(), Vec::new())),
            "answers 404",
        ),
        (
            Box::new(|_, _| ("401 Unauthorized".into(), Vec::new())),
            "without credentials",
        ),
        (
            Box::new(move |_, range| {
                let (head, mut body) = part(&long, range);
                body.push(0);
                (head, body)
            }),
            "sent more than the",
        ),
        (
            Box::new(|_, _| ("206 Partial Content".into(), Vec::new())),
            "not said how many",
        ),
    ];
    for (answer, expected) in cases {
        let host = server(answer);
        let said = problem(&format!("http://{host}/x"), &manifest).await;
        assert!(said.contains(expected), "{said} / {expected}");
    }
    // Bound, then closed: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let said = problem(&format!("http://{port}/x"), &manifest).await;
    assert!(said.contains("does not answer"), "{said}");
}

#[tokio::test]
async fn an_oci_reference_becomes_the_url_of_its_blob() {
    let (manifest, data) = image();
    let digest = format!("sha256:{}", "ab".repeat(32));
    let json = serde_json::json!({"schemaVersion": 2, "layers": [
        {"digest": format!("sha256:{}", "cd".repeat(32)), "size": 5},
        {"digest": digest, "size": data.len()},
    ]});
    let blob = format!("/v2/os/debian/blobs/{digest}");
    let expected = blob.clone();
    let host = server(move |path, range| match path {
        "/v2/os/debian/manifests/12" => ("200 OK".into(), json.to_string().into_bytes()),
        path if path == blob => part(&data, range),
        _ => ("404 Not Found".into(), Vec::new()),
    });
    let url = format!("oci+http://{host}/os/debian:12");
    assert_eq!(
        check(&url, &manifest, LAB).await.unwrap(),
        format!("http://{host}{expected}")
    );
    let said = problem(&format!("oci+http://{host}/os/debian:13"), &manifest).await;
    assert!(said.contains("answers 404"), "{said}");

    let other = server(|_, _| {
        (
            "200 OK".into(),
            br#"{"layers":[{"digest":"x","size":3}]}"#.to_vec(),
        )
    });
    let said = problem(&format!("oci+http://{other}/a"), &manifest).await;
    assert!(said.contains("its layers have [3]"), "{said}");
}

#[tokio::test]
async fn the_daemons_own_host_is_no_mirror() {
    let (manifest, data) = image();
    let host = server(move |_, range| part(&data, range));
    let strict = Guard { allow_local: false };
    let port = host.rsplit_once(':').unwrap().1;
    for url in [
        format!("http://{host}/x"),
        format!("http://localhost:{port}/x"),
        format!("oci+http://{host}/a:1"),
    ] {
        let said = check(&url, &manifest, strict)
            .await
            .unwrap_err()
            .to_string();
        assert!(said.contains("mirror"), "{said}");
    }
}

#[test]
fn urls_that_are_none() {
    for (url, expected) in [
        ("ftp://a/b", "is not an http, https or oci URL"),
        ("/etc/passwd", "is not an http, https or oci URL"),
        ("http://", "cannot be read"),
        ("https://user:secret@a/b", "user name or password"),
        ("https://a/b#c", "fragment"),
        ("oci://registry", "is not oci://registry/"),
        ("oci:///a:b", "is not oci://registry/"),
        ("oci://r/../x:1", "is not oci://registry/"),
        ("oci://r/a b:1", "is not oci://registry/"),
        ("oci://r/a:x/../y", "is not oci://registry/"),
    ] {
        let said = Place::parse(url).unwrap_err();
        assert!(said.contains(expected), "{url}: {said}");
    }
    let digest = format!("sha256:{}", "ab".repeat(32));
    let Place::Oci(oci) = Place::parse(&format!("oci://r:5000/a/b@{digest}")).unwrap() else {
        panic!("not oci");
    };
    assert_eq!(oci.base.as_str(), "https://r:5000/v2/a/b/");
    assert_eq!(oci.reference, digest);
}
