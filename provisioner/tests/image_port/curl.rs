//! curl, and what nginx answers to the same requests.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::port::{HEX, PATIENCE, Port, noise};

/// Runs curl; its standard output.
fn curl(args: &[&str]) -> Vec<u8> {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "60"])
        .args(args)
        .output()
        .expect("install the package curl");
    assert!(
        output.status.success(),
        "curl {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn head(args: &[&str]) -> String {
    let text = String::from_utf8(curl(&[&["--head"], args].concat())).unwrap();
    text.to_lowercase()
}

#[test]
fn curl_fetches_resumes_and_is_told_what_it_has() {
    let data = noise(5_000_000);
    let port = Port::start(&data);
    let url = port.url();
    let text = head(&[&url]);
    for line in [
        "http/1.1 200 ok\r\n",
        "content-length: 5000000\r\n",
        "content-type: application/zstd\r\n",
        "accept-ranges: bytes\r\n",
        &format!("etag: \"{HEX}\"\r\n"),
        "cache-control: public, max-age=31536000, immutable\r\n",
        "gmt\r\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(curl(&[&url]) == data);
    assert!(curl(&["-r", "4999990-", &url]) == data[4_999_990..]);
    // Two requests, one connection.
    let two = curl(&[&url, &url, "-w", "%{num_connects} "]);
    assert!(two.ends_with(b"0 "), "the second fetch opened a connection");

    let part = port.dir.path().join("part");
    std::fs::write(&part, &data[..1_234_567]).unwrap();
    curl(&["-C", "-", "-o", part.to_str().unwrap(), &url]);
    assert!(std::fs::read(&part).unwrap() == data);

    let same = format!("If-None-Match: \"{HEX}\"");
    assert!(head(&["-H", &same, &url]).starts_with("http/1.1 304"));
    let manifest = url.replace("data.zst", "manifest.json");
    assert_eq!(curl(&[&manifest]), b"{}");
    assert!(head(&[&manifest]).contains("cache-control: no-cache\r\n"));
}

#[test]
fn a_manifest_that_is_signed_anew_has_another_tag() {
    let port = Port::start(b"data");
    let url = port.url().replace("data.zst", "manifest.json");
    let tag = |text: String| {
        let line = text.lines().find(|line| line.starts_with("etag: "));
        line.unwrap().to_owned()
    };
    let before = tag(head(&[&url]));
    let path = port.image_dir().join("manifest.json");
    std::fs::write(path.with_extension("new"), b"{}").unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    assert_ne!(before, tag(head(&[&url])));
}

#[test]
fn everything_else_is_a_problem_document() {
    let port = Port::start(b"data");
    let base = format!("http://{}", port.address);
    for path in [
        "/",
        "/images/",
        "/metrics",
        &format!("/images/{HEX}"),
        &format!("/images/{}/data.zst", "0".repeat(64)),
        &format!("/images/{HEX}/../{HEX}/data.zst"),
        &format!("/images/{HEX}/%2e%2e/db"),
    ] {
        let url = format!("{base}{path}");
        let answer = String::from_utf8(curl(&["-i", "--path-as-is", &url])).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        assert!(
            answer.contains("content-type: application/problem+json\r\n"),
            "{answer}"
        );
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["status"], 404);
    }
    for method in ["PUT", "DELETE", "OPTIONS"] {
        let answer = String::from_utf8(curl(&["-i", "-X", method, &port.url()])).unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
    }
    let upload = String::from_utf8(curl(&["-i", "-d", "body", &port.url()])).unwrap();
    assert!(upload.starts_with("HTTP/1.1 405 "), "{upload}");
    assert!(upload.contains("connection: close\r\n"), "{upload}");
}

/// nginx with the same folder, on a socket in it.
struct Nginx(Child);

impl Nginx {
    fn start(dir: &Path) -> Self {
        let root = dir.join("root");
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink(dir.join(HEX), root.join(HEX)).unwrap();
        std::os::unix::fs::symlink(&root, root.join("images")).unwrap();
        let conf = dir.join("nginx.conf");
        let at = dir.display();
        let text = format!(
            "daemon off; master_process off; user root; pid {at}/pid; error_log stderr;\n\
             events {{ }}\n\
             http {{ access_log off; sendfile on; client_body_temp_path {at}/t1; \
             proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3; uwsgi_temp_path {at}/t4; \
             scgi_temp_path {at}/t5; default_type application/zstd;\n\
             server {{ listen unix:{at}/nginx.sock; root {at}/root; }} }}\n"
        );
        std::fs::write(&conf, text).unwrap();
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("install the package nginx-light");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program, "-p"]);
        command.arg(dir).arg("-c").arg(&conf).stdin(Stdio::null());
        let nginx = Self(command.spawn().expect("install the package util-linux"));
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(dir.join("nginx.sock")).is_err() {
            assert!(begin.elapsed() < PATIENCE, "nginx does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nginx_answers_the_same() {
    let port = Port::start(&noise(100_000));
    let nginx = Nginx::start(port.dir.path());
    let socket = port.dir.path().join("nginx.sock");
    let theirs = ["--unix-socket", socket.to_str().unwrap()];
    let path = format!("images/{HEX}/data.zst");
    let (our_url, their_url) = (port.url(), format!("http://localhost/{path}"));
    let etag = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("etag: "));
        line.unwrap().to_owned()
    };
    let our_tag = etag(&head(&[&our_url]));
    let their_tag = etag(&head(&[&theirs[..], &[&their_url]].concat()));
    let cases: [&[&str]; 13] = [
        &[],
        &["Range: bytes=0-0"],
        &["Range: bytes=10-19"],
        &["Range: bytes=99990-"],
        &["Range: bytes=-5"],
        &["Range: bytes=-200000"],
        &["Range: bytes=99999-100005"],
        &["Range: bytes=100000-"],
        &["Range: bytes=5-9", "If-Range: TAG"],
        &["Range: bytes=5-9", "If-Range: \"other\""],
        &["Range: bytes=5-9", "If-Match: \"other\""],
        &["If-None-Match: TAG"],
        &["If-None-Match: \"other\", TAG"],
    ];
    for method in ["GET", "HEAD"] {
        for case in cases {
            let seen = |more: &[&str], url: &str, tag: &str| {
                let mut args = vec!["-i".to_owned()];
                if method == "HEAD" {
                    args.push("--head".to_owned());
                }
                for header in case {
                    args.extend(["-H".to_owned(), header.replace("TAG", tag)]);
                }
                args.extend(more.iter().chain([&url]).map(ToString::to_string));
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                what_counts(&curl(&args))
            };
            let ours = seen(&[], &our_url, &our_tag);
            let nginx = seen(&theirs, &their_url, &their_tag);
            assert!(
                ours == nginx,
                "{method} {case:?}:\n{ours:.600?}\n{nginx:.600?}"
            );
        }
    }
    drop(nginx);
}

/// Status, the headers about the body, and the body unless it is an error's.
fn what_counts(answer: &[u8]) -> (String, Vec<String>, Vec<u8>) {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).unwrap().to_owned();
    let ok = status.starts_with('2');
    let mut headers: Vec<String> = head
        .lines()
        .filter(|line| {
            line.starts_with("content-range:") || (ok && line.starts_with("content-length:"))
        })
        .map(str::to_owned)
        .collect();
    headers.sort();
    let body = if ok {
        answer[end..].to_vec()
    } else {
        Vec::new()
    };
    (status, headers, body)
}
