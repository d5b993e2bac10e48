//! `anneal-agent write` onto loop devices, from servers that misbehave.

use std::process::{Command, Output};
use std::sync::Arc;

use anneal_image::{Facts, FrameReader, PackOptions, SignedManifest, SigningKey, pack};
use anneal_protocol::agent::{FailureCode, StreamResult};

use crate::mirror::{Mirror, Mood};
use crate::support::{Loop, eventually};

const MIB: usize = 1 << 20;
const FRAME: u32 = 256 << 10;

/// 24 MiB that do not compress, but for a hole; with the mark of an MBR.
fn raw() -> Vec<u8> {
    let mut state = 1_u64;
    let mut raw: Vec<u8> = (0..24 * MIB / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    raw[8 * MIB..11 * MIB].fill(0);
    raw[510..512].copy_from_slice(&[0x55, 0xaa]);
    raw
}

struct Image {
    raw: Vec<u8>,
    data: Arc<Vec<u8>>,
    key: String,
    dir: tempfile::TempDir,
}

impl Image {
    fn new(raw: Vec<u8>) -> Self {
        let options = PackOptions {
            frame_size: FRAME,
            ..PackOptions::default()
        };
        let mut data = Vec::new();
        let packed = pack(&mut &raw[..], &mut data, &options, &mut |_| ()).unwrap();
        let facts = Facts {
            os: "test".into(),
            ..Facts::default()
        };
        let key = SigningKey::from_seed(&[7; 32]);
        let signed = SignedManifest::sign(packed.into_manifest(facts).unwrap(), &key);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("manifest.json"), signed.to_json()).unwrap();
        Self {
            raw,
            data: Arc::new(data),
            key: key.public().to_hex(),
            dir,
        }
    }

    fn mirror(&self, mood: Mood) -> Mirror {
        Mirror::start(self.data.clone(), mood)
    }

    fn write(&self, disk: &Loop, sources: &[&Mirror], more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anneal-agent"));
        command
            .arg("write")
            .arg("--manifest")
            .arg(self.dir.path().join("manifest.json"));
        command.args(["--key", &self.key, "--disk", &disk.node]);
        for source in sources {
            command.args(["--source", &source.url()]);
        }
        command.args(more).output().unwrap()
    }
}

fn result(output: &Output) -> StreamResult {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// How many seconds without data are taken for a stall. Mirrors that do stall are awaited that long;
/// beside the others it must not happen that a busy host's good mirror is taken for one.
fn stall(mood: Mood, awaited: &'static str) -> [&'static str; 2] {
    let seconds = if stalls(mood) { awaited } else { "20" };
    ["--stall-timeout", seconds]
}

fn stalls(mood: Mood) -> bool {
    matches!(mood, Mood::Stalls(_) | Mood::Silent | Mood::Trickles)
}

/// Exit code, and what it says.
fn failure(output: &Output) -> (i32, FailureCode, String) {
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed = &value["failed"];
    (
        output.status.code().unwrap(),
        serde_json::from_value(failed["code"].clone()).unwrap(),
        failed["message"].as_str().unwrap().to_owned(),
    )
}

fn contents(disk: &Loop) -> Vec<u8> {
    std::fs::read(&disk.file).unwrap()
}

/// Full, again, and drifted; sectors of 512 and of 4096 bytes; little memory.
#[test]
fn writes_all_then_nothing_then_what_differs() {
    let image = Image::new(raw());
    let (one, two) = (image.mirror(Mood::Good), image.mirror(Mood::Good));
    for sector in [512, 4096] {
        let disk = Loop::with_sector("an-agent-write.img", 32 * MIB as u64, sector);
        let full = result(&image.write(&disk, &[&one, &two], &["--memory", "48"]));
        assert!(contents(&disk)[..image.raw.len()] == image.raw, "{sector}");
        assert_eq!((full.written.frames, full.zeroed.frames), (84, 12));
        assert_eq!(full.read_back.unwrap().frames, 96);
        assert!(
            full.sources.iter().all(|source| source.bytes > 0),
            "{full:?}"
        );
        assert!(full.peak_memory < 96 << 20, "{} bytes", full.peak_memory);

        let ranges = [one.ranges(), two.ranges()].concat();
        assert!(ranges.len() > 5, "{ranges:?}");
        assert!(
            ranges.iter().all(|range| range.len() < 5 * MIB),
            "{ranges:?}"
        );

        let again = result(&image.write(&disk, &[&one], &[]));
        assert_eq!((again.transferred, again.written.frames), (0, 0));
        assert_eq!(again.unchanged.frames, 96);

        let mut bytes = contents(&disk);
        for at in [3 * MIB, 9 * MIB, 20 * MIB] {
            bytes[at] ^= 1;
        }
        // Through the device: the kernel may have parts of it in memory.
        let file = std::fs::File::options()
            .write(true)
            .open(&disk.node)
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        let delta = result(&image.write(&disk, &[&one], &["--verify", "changed"]));
        assert!(contents(&disk)[..image.raw.len()] == image.raw, "{sector}");
        // Two of data, one of zeros, and the first, which was in memory.
        assert_eq!((delta.written.frames, delta.zeroed.frames), (3, 1));
        assert!(delta.transferred < 3 * u64::from(FRAME), "{delta:?}");
    }
}

/// The kernel goes on showing a partition that somebody has open: the step fails, so the disk must
/// not boot.
#[test]
fn a_partition_that_stays_open() {
    let image = Image::new(raw());
    let mirror = image.mirror(Mood::Good);
    let disk = Loop::new("an-agent-open.img", 24 * MIB as u64);
    let added = Command::new("addpart")
        .args([disk.node.as_str(), "1", "2048", "2048"])
        .status();
    let added = added.expect("addpart: install the package util-linux");
    assert!(added.success(), "{added}");
    let node = format!("{}p1", disk.node);
    let open = eventually("partition node", || std::fs::File::open(&node).ok());
    let (exit, code, message) = failure(&image.write(&disk, &[&mirror], &[]));
    assert_eq!((exit, code), (1, FailureCode::DiskIo), "{message}");
    assert!(message.contains("reread"), "{message}");
    assert!(contents(&disk)[..512].iter().all(|byte| *byte == 0));
    drop(open);
    result(&image.write(&disk, &[&mirror], &[]));
    assert!(contents(&disk) == image.raw);
}

/// Whatever one source does, the other one makes up for it, and the result names the culprit.
#[test]
fn a_bad_mirror_beside_a_good_one() {
    let image = Image::new(raw());
    let half = image.data.len() / 2;
    for (mood, dropped, said) in [
        (Mood::Cuts(100_000), false, "truncated"),
        (Mood::Short(half), true, "ends"),
        (Mood::Stalls(50_000), false, "stalled"),
        (Mood::Flips, true, "wrong bytes"),
        (Mood::Longer, true, "promises"),
        (Mood::Shorter, true, "promises"),
        (Mood::IgnoresRange, true, "does not answer with the range"),
        (Mood::SaysOk, true, "does not answer with the range"),
        (Mood::OtherRange, true, "does not answer with the range"),
        (Mood::Status(503), false, "503"),
        (Mood::Status(404), true, "404"),
        (Mood::Silent, false, "stalled"),
        (Mood::Trickles, false, "stalled"),
        (Mood::Circles, false, "redirect"),
    ] {
        let disk = Loop::new("an-agent-mixed.img", 24 * MIB as u64);
        let (bad, good) = (image.mirror(mood), image.mirror(Mood::Good));
        let done = result(&image.write(&disk, &[&bad, &good], &stall(mood, "6")));
        assert!(contents(&disk) == image.raw, "{mood:?}");
        let source = &done.sources[0];
        assert!(
            bad.requests() > 0 && source.faults > 0,
            "{mood:?}: {done:?}"
        );
        let fault = source.last_fault.as_deref().unwrap_or_default();
        assert!(fault.contains(said), "{mood:?}: {fault}");
        if mood == Mood::Flips {
            assert!(source.dropped);
        }
        assert!(!source.dropped || dropped, "{mood:?}: {done:?}");
        let good = &done.sources[1];
        assert!(!good.dropped, "{mood:?}: {done:?}");
        // In two seconds a busy host may not send a thing.
        assert!(good.faults == 0 || stalls(mood), "{mood:?}: {done:?}");
    }
}

/// What is unusual, but gives every byte in the end, is enough.
#[test]
fn an_odd_mirror_alone_serves() {
    let image = Image::new(raw());
    for (mood, faults) in [
        (Mood::BusyFirst(3), true),
        (Mood::Chunked, false),
        (Mood::Overlong, false),
    ] {
        let disk = Loop::new("an-agent-odd.img", 24 * MIB as u64);
        let mirror = image.mirror(mood);
        let done = result(&image.write(&disk, &[&mirror], &["--stall-timeout", "20"]));
        assert!(contents(&disk) == image.raw, "{mood:?}");
        let source = &done.sources[0];
        assert_eq!(source.faults > 0, faults, "{mood:?}: {source:?}");
        assert!(!source.dropped, "{mood:?}");
    }
}

/// Alone, each ends in its own word; the disk is as it was, or does not boot.
#[test]
fn a_bad_mirror_alone() {
    let image = Image::new(raw());
    for (mood, code, untouched) in [
        (Mood::Cuts(10), FailureCode::ImageTruncated, true),
        (Mood::Short(5 * MIB), FailureCode::ImageTruncated, true),
        (Mood::Stalls(300_000), FailureCode::ImageStalled, false),
        (Mood::Flips, FailureCode::ImageCorrupt, true),
        (Mood::IgnoresRange, FailureCode::Server, true),
        (Mood::Status(503), FailureCode::Server, true),
        (Mood::Silent, FailureCode::ImageStalled, true),
        (Mood::Trickles, FailureCode::ImageStalled, true),
        (Mood::Circles, FailureCode::Server, true),
    ] {
        let disk = Loop::new("an-agent-alone.img", 24 * MIB as u64);
        let mut before = vec![0xa5; 24 * MIB];
        before[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&disk.file, &before).unwrap();
        let mirror = image.mirror(mood);
        let output = image.write(&disk, &[&mirror], &stall(mood, "4"));
        let (exit, found, message) = failure(&output);
        assert_eq!((exit, found), (1, code), "{mood:?}: {message}");
        assert!(message.contains(&mirror.address.to_string()), "{message}");
        let now = contents(&disk);
        if untouched {
            assert!(now == before, "{mood:?} cost the earlier system");
        } else {
            assert!(now[..512] == [0; 512], "{mood:?}");
        }
    }
}

/// nginx on a socket of its own, with TLS and HTTP/2, and a certificate that nobody knows.
struct Nginx {
    child: std::process::Child,
    url: String,
    log: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

/// The address of nginx, one of this host's own.
const HOST: &str = "127.77.0.1";

impl Nginx {
    fn start(data: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A port that nobody has right now; nor later, because nobody else is at this address.
        let port = std::net::TcpListener::bind((HOST, 0)).unwrap();
        let port = port.local_addr().unwrap().port();
        let cert = rcgen::generate_simple_self_signed(["nobody.example".to_owned()]).unwrap();
        let at = dir.path().display();
        let file = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
        file("data.zst", data);
        file("cert.pem", cert.cert.pem().as_bytes());
        file("key.pem", cert.signing_key.serialize_pem().as_bytes());
        file(
            "nginx.conf",
            format!(
                "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
                 user root;\nevents {{}}\nhttp {{ log_format p '$server_protocol $status';\n\
                 access_log {at}/access.log p; server {{ listen {HOST}:{port} ssl http2;\n\
                 ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;\n\
                 root {at}; }} }}\n"
            )
            .as_bytes(),
        );
        // It ends with the test, also when that is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "/usr/sbin/nginx", "-c"])
            .arg(dir.path().join("nginx.conf"))
            .spawn()
            .expect("setpriv: install the packages util-linux and nginx-light");
        eventually("nginx listens", || {
            std::net::TcpStream::connect((HOST, port)).ok()
        });
        Self {
            child,
            url: format!("https://{HOST}:{port}/"),
            log: dir.path().join("access.log"),
            _dir: dir,
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Transport is not trusted, so any certificate will do; several ranges share one connection.
#[test]
fn an_https_mirror_is_asked_by_http_2() {
    let image = Image::new(raw());
    let nginx = Nginx::start(&image.data);
    let disk = Loop::new("an-agent-http2.img", 24 * MIB as u64);
    let done = result(&image.write(&disk, &[], &["--source", &nginx.url]));
    assert!(contents(&disk) == image.raw);
    // On a busy host a connection may take more than the ten seconds that it is given.
    let source = &done.sources[0];
    let fault = source.last_fault.as_deref().unwrap_or_default();
    assert!(
        source.faults == 0 || fault.starts_with("cannot be reached"),
        "{done:?}"
    );
    let log = std::fs::read_to_string(&nginx.log).unwrap();
    assert!(log.lines().count() > 3, "{log}");
    assert!(log.lines().all(|line| line == "HTTP/2.0 206"), "{log}");
}

/// A frame of the image in the place of another one is as wrong as noise.
#[test]
fn a_frame_in_the_wrong_place() {
    let image = Image::new(raw());
    let json = std::fs::read(image.dir.path().join("manifest.json")).unwrap();
    let manifest = SignedManifest::parse(&json).unwrap().manifest;
    let mut frames = Vec::new();
    let count = manifest.frames().len();
    let data = &image.data[..manifest.data_size() as usize];
    let mut reader = FrameReader::new(&manifest, 0..count, data);
    while let Some(frame) = reader.next_encoded().unwrap() {
        frames.push(frame.bytes);
    }
    let same = (1..count)
        .find(|n| *n != 20 && frames[*n].len() == frames[20].len())
        .expect("two frames of one length");
    frames.swap(20, same);
    let swapped = Mirror::start(Arc::new(frames.concat()), Mood::Good);
    let disk = Loop::new("an-agent-swap.img", 24 * MIB as u64);
    let (exit, code, message) = failure(&image.write(&disk, &[&swapped], &[]));
    assert_eq!((exit, code), (1, FailureCode::ImageCorrupt), "{message}");
    assert!(contents(&disk)[..512] == [0; 512]);
    let good = image.mirror(Mood::Good);
    let done = result(&image.write(&disk, &[&swapped, &good], &[]));
    assert!(contents(&disk) == image.raw);
    assert!(done.sources[0].dropped && !done.sources[1].dropped);
}

/// What must be refused is, before anything is changed, with an exit code of its own.
#[test]
fn refusals_change_nothing() {
    let image = Image::new(raw());
    let good = image.mirror(Mood::Good);
    let refused = |output: Output, expected: FailureCode, disk: &Loop| {
        let (exit, code, message) = failure(&output);
        assert_eq!((exit, code), (3, expected), "{message}");
        assert!(contents(disk).iter().all(|byte| *byte == 0), "{message}");
    };
    let small = Loop::new("an-agent-small2.img", 23 * MIB as u64);
    refused(
        image.write(&small, &[&good], &[]),
        FailureCode::DiskTooSmall,
        &small,
    );

    let disk = Loop::new("an-agent-refused.img", 24 * MIB as u64);
    let other = SigningKey::from_seed(&[8; 32]).public().to_hex();
    let output = image.write(&disk, &[&good], &["--key", &other]);
    refused(output, FailureCode::ManifestInvalid, &disk);

    let tampered = image.dir.path().join("tampered.json");
    let text = std::fs::read_to_string(image.dir.path().join("manifest.json")).unwrap();
    std::fs::write(
        &tampered,
        text.replacen("\"os\":\"test\"", "\"os\":\"tset\"", 1),
    )
    .unwrap();
    let output = image.write(&disk, &[&good], &["--manifest", tampered.to_str().unwrap()]);
    refused(output, FailureCode::ManifestInvalid, &disk);

    use std::os::unix::fs::OpenOptionsExt as _;
    let user = std::fs::File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed())
        .open(&disk.node)
        .unwrap();
    refused(
        image.write(&disk, &[&good], &[]),
        FailureCode::DiskRefused,
        &disk,
    );
    drop(user);
    result(&image.write(&disk, &[&good], &[]));
    assert_eq!(image.write(&disk, &[], &[]).status.code(), Some(2));
}
