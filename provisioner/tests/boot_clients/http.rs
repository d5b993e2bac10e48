//! curl as an HTTP boot client.

use provisioner::event::kind;
use serde_json::json;

use super::rack::{MACHINE, Rack, noise, run};

async fn curl(args: &[&str]) -> super::rack::Ran {
    let mut all = vec!["--silent", "--show-error", "--include"];
    all.extend(args);
    run("curl", "curl", &all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_sees_what_firmware_needs() {
    let mut rack = Rack::on_loopback(vec![("snponly.efi", noise(284_672))]).await;
    let url = format!("http://{}/boot/snponly.efi", rack.http);
    let head = curl(&["--head", &url]).await.output.to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("content-length: 284672\r\n"), "{head}");
    assert!(head.contains("content-type: application/efi\r\n"), "{head}");
    assert!(head.contains("accept-ranges: bytes\r\n"), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
    let etag = head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .unwrap()
        .to_owned();
    assert!(etag.starts_with('"'), "{etag}");

    let to = rack.path("fetched");
    let to = to.to_str().unwrap();
    assert!(run("curl", "curl", &["-sSf", "-o", to, &url]).await.ok);
    assert!(std::fs::read(to).unwrap() == noise(284_672));
    let event = rack.event(kind::HTTP).await;
    assert_eq!(event.machine.as_deref(), Some(MACHINE));
    assert_eq!(event.data["file"], json!("snponly.efi"));
    assert_eq!(event.data["bytes"], json!(284_672), "HEAD is not recorded");

    // A broken download goes on: what EDK2 and `curl -C -` do.
    std::fs::write(to, &noise(284_672)[..100_000]).unwrap();
    let resume = [
        "-sSf",
        "-C",
        "-",
        "-H",
        &format!("If-Match: {etag}"),
        "-o",
        to,
        &url,
    ];
    let ran = run("curl", "curl", &resume).await;
    assert!(ran.ok, "{}", ran.output);
    assert!(std::fs::read(to).unwrap() == noise(284_672));
    let event = rack.event(kind::HTTP).await;
    assert_eq!(event.data["bytes"], json!(184_672));

    let changed = curl(&["-r", "5-", "-H", "If-Match: \"old\"", &url]).await;
    assert!(
        changed.output.starts_with("HTTP/1.1 412"),
        "{}",
        changed.output
    );
    let suffix = run("curl", "curl", &["-sSf", "-r", "-10", &url]).await;
    assert!(suffix.stdout == noise(284_672)[284_662..]);
    let beyond = curl(&["-r", "999999-", &url]).await.output.to_lowercase();
    assert!(beyond.starts_with("http/1.1 416"), "{beyond}");
    assert!(
        beyond.contains("content-range: bytes */284672\r\n"),
        "{beyond}"
    );
    rack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_boot_files_is_there() {
    let rack = Rack::on_loopback(vec![("snponly.efi", noise(10))]).await;
    let paths = [
        "boot/autoexec.ipxe",
        "autoexec.ipxe",
        "boot/../state.db",
        "boot/..%2fstate.db",
        "boot/script/nonsense",
        "boot/",
    ];
    for path in paths {
        let ran = curl(&["--path-as-is", &format!("http://{}/{path}", rack.http)]).await;
        assert!(
            ran.output.starts_with("HTTP/1.1 404"),
            "{path}: {}",
            ran.output
        );
    }
    let put = curl(&[
        "-X",
        "PUT",
        &format!("http://{}/boot/snponly.efi", rack.http),
    ])
    .await;
    assert!(put.output.starts_with("HTTP/1.1 405"), "{}", put.output);
    rack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_are_recorded_with_what_they_start() {
    let mut rack = Rack::on_loopback(vec![]).await;
    let url = |mac: &str| format!("http://{}/boot/script/{mac}", rack.http);
    let (ours, other) = (url("52-54-00-aa-00-01"), url("52:54:00:ff:ff:ff"));
    let head = curl(&["--head", &ours]).await.output;
    assert!(
        head.starts_with("HTTP/1.1 405"),
        "HEAD mints no token: {head}"
    );
    let disk = curl(&[&ours]).await.output;
    assert!(disk.contains("content-type: text/plain\r\n"), "{disk}");
    assert!(disk.contains("r1n1 boots its own disk"), "{disk}");
    let event = rack.event(kind::BOOT_SCRIPT).await;
    assert_eq!(event.machine.as_deref(), Some(MACHINE));
    assert_eq!(event.data["target"], json!("disk"));
    let unknown = curl(&[&other]).await.output;
    assert!(
        unknown.contains("52:54:00:ff:ff:ff is not in the inventory"),
        "{unknown}"
    );
    let event = rack.event(kind::BOOT_SCRIPT).await;
    assert_eq!(event.machine, None);
    rack.stop().await;
}
