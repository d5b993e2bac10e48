//! Memory does not grow with images.

use std::process::Command;

use super::lab::{Lab, made};

#[test]
fn a_large_sparse_image_takes_little_memory() {
    let lab = Lab::new("");
    let raw = lab.path("large.raw");
    let file = std::fs::File::create(&raw).unwrap();
    file.set_len(3 << 30).unwrap();
    let qcow2 = lab.path("large.qcow2");
    let (from, to) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    made(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", from, to],
    );
    let zst = lab.path("large.zst");
    let zstd = ["-q", "--long=27", from, "-o", zst.to_str().unwrap()];
    assert!(Command::new("zstd").args(zstd).status().unwrap().success());
    for (name, source) in [("a@1", &qcow2), ("a@2", &zst)] {
        let image = lab.add(name, source.to_str().unwrap(), &["--os", "debian"]);
        assert_eq!(image["size"], 3_u64 << 30);
    }
    let peak = lab.peak_memory();
    assert!(peak < 256 << 20, "{} MiB resident at most", peak >> 20);
}
