//! Memory does not grow with images.

use std::process::Command;

use super::lab::{Lab, made, text};

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

#[test]
fn four_images_at_once_take_little_memory_too() {
    let lab = Lab::new("");
    // Noise that fills a decoder's window of 128 MiB, and then repeats.
    let raw = lab.path("large.raw");
    let (noise, mut state) = (160_usize << 20, 7_u64);
    let mut bytes = vec![0_u8; noise];
    for chunk in bytes.chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        chunk.copy_from_slice(&(state ^ (state >> 33)).to_le_bytes());
    }
    std::fs::write(&raw, &bytes).unwrap();
    drop(bytes);
    let zst = lab.path("large.zst");
    let (from, to) = (raw.to_str().unwrap(), zst.to_str().unwrap());
    let zstd = ["-q", "-1", "--long=27", from, "-o", to];
    assert!(Command::new("zstd").args(zstd).status().unwrap().success());
    let before = lab.peak_memory();
    let children: Vec<_> = (1..=4)
        .map(|version| {
            let name = format!("a@{version}");
            let words = ["image", "add", &name, to, "--os", "debian", "--unproven"];
            lab.command(&words).spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let grown = lab.peak_memory() - before;
    assert!(grown < 256 << 20, "{} MiB more resident", grown >> 20);
}
