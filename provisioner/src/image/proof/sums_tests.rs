//! Lists as publishers write them. The shapes are those of the publishers; names and digests are
//! made up here.

use super::*;

fn hex_of(byte: &str, algorithm: Algorithm) -> String {
    byte.repeat(algorithm.digits() / 2)
}

fn found(text: &str, name: &str) -> (Algorithm, String) {
    let entry = find(text, name).unwrap();
    (entry.algorithm, hex::encode(&entry.digest[..1]))
}

#[test]
fn reads_gnu_lines() {
    let (a, b) = (
        hex_of("aa", Algorithm::Sha256),
        hex_of("bb", Algorithm::Sha256),
    );
    let text = format!("{a}  disk.raw\n{b} *other.raw\n\\{b}  back\\\\slash.raw\n");
    assert_eq!(found(&text, "disk.raw"), (Algorithm::Sha256, "aa".into()));
    assert_eq!(found(&text, "other.raw").1, "bb");
    assert_eq!(found(&text, "back\\slash.raw").1, "bb");
    // Windows line ends, a path in front.
    let text = format!("{a}  ./out/disk.raw\r\n");
    assert_eq!(found(&text, "disk.raw").1, "aa");
}

#[test]
fn reads_bsd_lines_and_passes_over_weak_ones() {
    let (a, b) = (
        hex_of("aa", Algorithm::Sha256),
        hex_of("bb", Algorithm::Sha512),
    );
    let md5 = "cc".repeat(16);
    let text = format!(
        "MD5 (d (1).raw) = {md5}\nSHA256 (d (1).raw) = {a}\nSHA512 (d (1).raw) = {b}\nBLAKE2b (x.raw) = {b}\n"
    );
    assert_eq!(found(&text, "d (1).raw"), (Algorithm::Sha512, "bb".into()));
    assert!(
        find(&text, "x.raw")
            .unwrap_err()
            .contains("does not name \"x.raw\"")
    );
}

#[test]
fn a_section_says_what_its_digests_are() {
    // The shape of Flatcar's .DIGESTS.
    let (good, blake) = (
        hex_of("aa", Algorithm::Sha512),
        hex_of("bb", Algorithm::Sha512),
    );
    let (md5, sha1) = ("cc".repeat(16), "dd".repeat(20));
    let image = "flatcar_production_image.bin.bz2";
    let text = format!(
        "# MD5 HASH\n{md5}  {image}\n# SHA1 HASH\n{sha1}  {image}\n# BLAKE2B HASH\n{blake}  {image}\n# SHA512 HASH\n{good}  {image}\n"
    );
    assert_eq!(found(&text, image), (Algorithm::Sha512, "aa".into()));
}

#[test]
fn reads_between_the_armor_of_a_signed_list() {
    // The shape of Fedora's CHECKSUM.
    let (a, b) = (
        hex_of("aa", Algorithm::Sha256),
        hex_of("bb", Algorithm::Sha256),
    );
    let text = format!(
        "SHA256 (i.raw.xz) = {b}\n-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# i.raw.xz: 12 bytes\nSHA256 (i.raw.xz) = {a}\n-----BEGIN PGP SIGNATURE-----\n\nSHA256 (i.raw.xz) = {b}\n"
    );
    assert_eq!(found(&text, "i.raw.xz").1, "aa");
}

#[test]
fn names_what_the_list_has_when_the_file_is_absent() {
    let a = hex_of("aa", Algorithm::Sha256);
    let text = format!("{a}  one.raw\n{a}  two.raw\n");
    assert_eq!(
        find(&text, "three.raw").unwrap_err(),
        "the list of digests does not name \"three.raw\" (--published-name): it has one.raw, two.raw"
    );
    let many: String = (0..30).map(|n| format!("{a}  f{n:02}\n")).collect();
    assert!(find(&many, "x").unwrap_err().ends_with("f09 and 20 more"));
    let page = "<html>404 not found</html>";
    assert!(
        find(page, "x")
            .unwrap_err()
            .ends_with("no sha256 or sha512 at all")
    );
}

#[test]
fn two_answers_are_none() {
    let (a, b) = (
        hex_of("aa", Algorithm::Sha256),
        hex_of("bb", Algorithm::Sha256),
    );
    let text = format!("{a}  amd64/disk.raw\n{b}  arm64/disk.raw\n");
    let told = find(&text, "disk.raw").unwrap_err();
    assert!(
        told.contains("amd64/disk.raw") || told.contains("arm64/disk.raw"),
        "{told}"
    );
    assert!(told.contains("differ"), "{told}");
    assert_eq!(found(&text, "arm64/disk.raw").1, "bb");
    // The same digest twice is one answer.
    assert_eq!(found(&format!("{a}  d\n{a} *d\n"), "d").1, "aa");
}

#[test]
fn a_digest_alone_is_told_from_a_list() {
    let a = hex_of("aa", Algorithm::Sha256);
    assert_eq!(lone(&format!("{a}\n")).unwrap().0, Algorithm::Sha256);
    assert_eq!(lone(&format!("{a}  disk.raw\n")), None);
    assert_eq!(lone("zz"), None);
    assert!(
        value(Algorithm::Sha512, &a)
            .unwrap_err()
            .contains("expected 128 hex digits")
    );
}
