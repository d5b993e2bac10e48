//! Request heads as the image port reads them, and the paths in them.

use std::process::ExitCode;

#[path = "../../../provisioner/src/http/blob/head.rs"]
#[allow(dead_code, reason = "the port uses all of it")]
mod head;

fn main() -> ExitCode {
    let hex = "0123456789abcdef".repeat(4);
    let seeds = [
        format!("GET /images/{hex}/data.zst HTTP/1.1\r\nHost: a\r\nRange: bytes=0-9\r\n\r\n"),
        format!("HEAD http://a/images/{hex}/manifest.json HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n12345".to_owned(),
    ];
    anneal_fuzz::run(&seeds.map(String::into_bytes), look)
}

fn look(input: &[u8]) {
    match head::parse(input) {
        Ok(Some((length, request))) => {
            assert!(length <= input.len().min(head::MAX_HEAD));
            assert!(request.headers.len() <= head::MAX_HEADERS);
            if let Some((hex, part)) = head::route(request.path) {
                assert!(hex.len() == 64 && hex.bytes().all(|c| c.is_ascii_hexdigit()));
                assert_eq!(request.path, format!("/images/{hex}/{}", part.name()));
            }
            // A head does not depend on what follows it.
            assert_eq!(head::parse(&input[..length]), Ok(Some((length, request))));
        }
        Ok(None) => assert!(input.len() < head::MAX_HEAD),
        Err(bad) => assert!(!bad.to_string().is_empty()),
    }
}
