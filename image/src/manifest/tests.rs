//! The canonical form, and manifests that must not be accepted.

use super::*;

fn json(changes: &[(&str, &str)]) -> String {
    let mut text = format!(
        r#"{{"format":1,"os":"debian","size":131072,"frame_size":65536,"sha256":"{a}","frames":[{{"offset":0,"length":100,"digest":"{a}"}},{{"offset":100,"length":20,"zero":true}}]}}"#,
        a = "ab".repeat(32)
    );
    for (from, to) in changes {
        assert!(text.contains(from), "the case changes nothing: {from}");
        text = text.replacen(from, to, 1);
    }
    text
}

/// With everything that is optional.
fn full(changes: &[(&str, &str)]) -> String {
    const TYPE: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
    const UUID: &str = "11111111-2222-3333-4444-555555555555";
    let facts = format!(
        r#""table":{{"kind":"gpt","sector_size":512,"partitions":[{{"number":1,"label":"ROOT","type":"{TYPE}","uuid":"{UUID}","start":4096,"size":61440}},{{"number":3,"type":"{TYPE}","start":65536,"size":32768,"mutable":true}}]}},"proof":{{"method":"openpgp","signer":"ABCD","source":"SHA256SUMS","detail":"sha256 12"}},"frames""#
    );
    let mut text = json(&[
        (r#""os":"debian""#, r#""os":"debian","os_version":"12.9""#),
        (r#""frames""#, &facts),
    ]);
    for (from, to) in changes {
        assert!(text.contains(from), "the case changes nothing: {from}");
        text = text.replacen(from, to, 1);
    }
    text
}

#[test]
fn canonical_form_is_what_was_parsed() {
    let text = json(&[]);
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    assert_eq!(manifest.canonical(), text.as_bytes());
    assert_eq!(
        manifest.id(),
        format!("blake3:{}", blake3::hash(text.as_bytes()).to_hex())
    );
    let spaced = text.replace(',', " ,\n");
    assert_eq!(Manifest::parse(spaced.as_bytes()).unwrap(), manifest);
    assert_eq!(manifest.data_size(), 120);
    assert_eq!(manifest.data_range(1..2), 100..120);
    assert_eq!(manifest.raw_range(1), 65536..131_072);
}

#[test]
fn canonical_form_has_what_is_optional_in_its_place() {
    let text = full(&[]);
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(manifest.canonical()).unwrap(), text);
    assert_eq!(manifest.os_version(), Some("12.9"));
    let proof = manifest.proof().unwrap();
    assert_eq!(
        (proof.method.as_str(), proof.signer.as_deref()),
        ("openpgp", Some("ABCD"))
    );
    let table = manifest.table().unwrap();
    assert_eq!(table.find("ROOT").unwrap().number, 1);
    assert_eq!(table.find("3").unwrap().end(), 98304);
    assert!(table.partition(3).unwrap().mutable && !table.partition(1).unwrap().mutable);
    // 2 frames of 8 bytes each, header 8, footer 9.
    assert_eq!(manifest.file_size(), 120 + 33);
    assert_eq!(manifest.seek_table().len(), 33);
}

#[test]
fn refuses_hostile_facts() {
    let long = format!("\"label\":\"{}\"", "x".repeat(37));
    let wide = format!("\"signer\":\"{}\"", "x".repeat(1025));
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("\"12.9\"", "\"\"")], "os_version must be"),
        (&[("\"12.9\"", "\"1 2\"")], "os_version must be"),
        (
            &[("\"sector_size\":512", "\"sector_size\":513")],
            "sector size 513",
        ),
        (
            &[("\"number\":1", "\"number\":3")],
            "partition number 3 after 3",
        ),
        (
            &[("\"number\":1", "\"number\":0")],
            "partition number 0 after 0",
        ),
        (
            &[("\"number\":3", "\"number\":1025")],
            "partition number 1025",
        ),
        (
            &[("\"size\":61440", "\"size\":61952")],
            "partitions 1 and 3 overlap",
        ),
        (
            &[("\"size\":61440", "\"size\":61441")],
            "partition 1 has 61441 bytes",
        ),
        (
            &[("\"size\":61440", "\"size\":0")],
            "partition 1 has 0 bytes",
        ),
        (
            &[("\"start\":4096", "\"start\":0")],
            "partition 1 has 61440 bytes from byte 0",
        ),
        (&[("\"size\":32768", "\"size\":66048")], "beyond the 131072"),
        (
            &[("\"start\":65536", "\"start\":18446744073709551104")],
            "beyond the 131072",
        ),
        (
            &[("\"type\":\"0fc6", "\"type\":\"0FC6")],
            "partition 1 has the type",
        ),
        (
            &[("\"type\":\"0fc63daf-", "\"type\":\"0fc63daf")],
            "partition 1 has the type",
        ),
        (
            &[("\"kind\":\"gpt\"", "\"kind\":\"mbr\"")],
            "partition 1 has the type",
        ),
        (
            &[("\"uuid\":\"1111", "\"uuid\":\"x111")],
            "partition 1 has the uuid",
        ),
        (&[("\"ROOT\"", "\"\"")], "label"),
        (&[("\"ROOT\"", "\"a\\nb\"")], "label"),
        (&[("\"label\":\"ROOT\"", &long)], "label"),
        (&[("\"signer\":\"ABCD\"", &wide)], "signer of the proof"),
        (&[("\"SHA256SUMS\"", "\"\"")], "source of the proof"),
        (&[("sha256 12", "\\u001b[31m")], "detail of the proof"),
        (&[("\"openpgp\"", "\"trust-me\"")], "unknown variant"),
        (&[("\"method\":\"openpgp\",", "")], "missing field `method`"),
        (&[("\"kind\":\"gpt\",", "")], "missing field `kind`"),
        (
            &[("\"sector_size\"", "\"more\":1,\"sector_size\"")],
            "unknown field",
        ),
    ];
    for (changes, expected) in cases {
        let error = Manifest::parse(full(changes).as_bytes()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} / {expected}");
    }
}

/// A list that is far too long is not even read to its end.
#[test]
fn long_lists_stop_early() {
    let frame = r#"{"offset":0,"length":1,"zero":true},"#;
    let frames = frame.repeat(usize::try_from(MAX_FRAMES).unwrap() + 1);
    // What follows is not JSON: nobody gets there.
    let text = json(&[]);
    let (head, _) = text.split_once(r#"{"offset""#).unwrap();
    let error = Manifest::parse(format!("{head}{frames}!!").as_bytes()).unwrap_err();
    assert!(
        error.to_string().contains("more than the 262144 frames"),
        "{error}"
    );

    let text = full(&[]);
    let (head, _) = text.split_once(r#"{"number""#).unwrap();
    let partition = r#"{"number":1,"type":"0x83","start":512,"size":512},"#;
    let text = format!("{head}{}!!", partition.repeat(129));
    let error = Manifest::parse(text.as_bytes()).unwrap_err();
    assert!(
        error.to_string().contains("more than the 128 partitions"),
        "{error}"
    );

    let error = Manifest::parse(&vec![b' '; MAX_MANIFEST_BYTES as usize + 1]).unwrap_err();
    assert!(matches!(error, ManifestError::TooLong(_)), "{error}");
}

#[test]
fn refuses_hostile_manifests() {
    let cases: &[(&[(&str, &str)], &str)] = &[
        (
            &[("\"format\":1", "\"format\":2")],
            "format 2 is not supported",
        ),
        (&[("\"os\":\"debian\"", "\"os\":\"../etc\"")], "os must be"),
        (&[("\"os\":\"debian\"", "\"os\":\"\"")], "os must be"),
        (&[("65536", "65537")], "frame size 65537"),
        (&[("65536", "1")], "frame size 1"),
        (&[("65536", "2147483648")], "frame size 2147483648"),
        (&[("131072", "0")], "size 0"),
        (&[("131072", "131073")], "size 131073"),
        (&[("131072", "131584")], "2 frames, but the size needs 3"),
        (&[("131072", "65536")], "2 frames, but the size needs 1"),
        (
            &[("131072", "18446744073709551104")],
            "more than the 262144",
        ),
        (
            &[("\"offset\":100", "\"offset\":99")],
            "frame 1 begins at 99",
        ),
        (
            &[("\"offset\":100", "\"offset\":101")],
            "frame 1 begins at 101",
        ),
        (&[("\"offset\":0", "\"offset\":1")], "frame 0 begins at 1"),
        (&[("\"length\":20", "\"length\":0")], "frame 1 has 0 bytes"),
        (
            &[("\"length\":20", "\"length\":4294967295")],
            "frame 1 has 4294967295",
        ),
        (&[(",\"zero\":true", "")], "frame 1 must have either"),
        (
            &[("\"length\":100,", "\"length\":100,\"zero\":true,")],
            "frame 0 must have",
        ),
        (
            &[("\"digest\":\"ab", "\"digest\":\"AB")],
            "digest of frame 0",
        ),
        (&[("\"sha256\":\"ab", "\"sha256\":\"")], "sha256 is not"),
    ];
    for (changes, expected) in cases {
        let error = Manifest::parse(json(changes).as_bytes()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} / {expected}");
    }
    for changes in [
        [("\"os\"", "\"system\"")],
        [("\"format\":1", "\"format\":1,\"more\":1")],
        [("\"format\":1", "\"format\":1,\"format\":1")],
        [("\"zero\":true", "\"zero\":true,\"offset\":100")],
        [("131072", "-1")],
    ] {
        let error = Manifest::parse(json(&changes).as_bytes()).unwrap_err();
        assert!(matches!(error, ManifestError::Syntax(_)), "{error}");
    }
}
