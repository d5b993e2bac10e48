//! Archives that the real `tar` made.

use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use super::*;

fn archive(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(["-cf", "-"])
        .args(arguments)
        .output();
    let output = output.expect("tar");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn read(bytes: &[u8]) -> Result<(String, Vec<u8>), IngestError> {
    let mut disk = DiskInTar::open(Box::new(Cursor::new(bytes.to_vec())))?;
    let mut raw = Vec::new();
    disk.read_to_end(&mut raw)
        .map_err(|error| IngestError::from_io("reading", error))?;
    Ok((disk.name().to_owned(), raw))
}

#[test]
fn the_disk_of_a_container_layer_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("disk/{}", "a-long-name-".repeat(12));
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    std::fs::write(dir.path().join(&long), b"the disk").unwrap();
    std::fs::write(dir.path().join("README"), b"hello").unwrap();
    std::fs::write(dir.path().join("other.img"), b"another").unwrap();
    for format in ["--format=gnu", "--format=pax"] {
        let bytes = archive(dir.path(), &[format, "README", "disk"]);
        assert_eq!(
            read(&bytes).unwrap(),
            (long.clone(), b"the disk".to_vec()),
            "{format}"
        );
    }
    let bytes = archive(dir.path(), &["--format=ustar", "README", "other.img"]);
    assert_eq!(read(&bytes).unwrap().1, b"another");

    let text = read(&archive(dir.path(), &["README"]))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("no disk image") && text.contains("README"),
        "{text}"
    );
    let text = read(&archive(dir.path(), &["disk", "other.img"]))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("several disk images") && text.contains("other.img"),
        "{text}"
    );
}

#[test]
fn cuts_flips_and_garbage_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.raw"), vec![7; 3000]).unwrap();
    let whole = archive(dir.path(), &["--format=ustar", "a.raw"]);
    for length in [100, 512, 1000, 3000, 3550, 3600, 4000] {
        let error = read(&whole[..length]).unwrap_err();
        assert!(
            matches!(error, IngestError::CutShort { .. }),
            "{length}: {error}"
        );
    }
    let mut bad = whole.clone();
    bad[3] ^= 1;
    assert!(matches!(
        read(&bad).unwrap_err(),
        IngestError::Damaged { .. }
    ));
    let error = read(&[&whole[..], b"more"].concat()).unwrap_err();
    assert!(matches!(error, IngestError::Trailing { .. }), "{error}");
}
