//! The whole agent as an ordinary process against a daemon that follows a script: enrolment,
//! orders, faults on the wire, a loop device as its disk.

use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anneal_image::SigningKey;
use anneal_protocol::agent::{
    AgentAction, FailureCode, NextRequest, Outcome, PartitionRef, StreamOptions, Verify,
    WriteFileResult,
};
use anneal_protocol::disk::DiskSelector;
use base64::Engine as _;
use serde_json::json;

use crate::daemon::{
    Daemon, MIB, Sealed, by_serial, code, daemon, no_images, output, raw_disk, seal,
};
use crate::support::{Answer, Authority, Loop, Server, Then, eventually, own_mounts};

/// An agent that is stopped when the test ends.
struct Agent(Child);

impl Agent {
    fn start(server: &Server, ca_sha256: &str, extra: &[&str]) -> Self {
        let cmdline = format!(
            "quiet anneal.server={} anneal.ca={ca_sha256} anneal.token={} anneal.machine=r1n1 anneal.run=run-1 anneal.time=1795000000 anneal.mac=52:54:00:aa:00:01",
            server.url(),
            "ab".repeat(32),
        );
        let child = Command::new(env!("CARGO_BIN_EXE_anneal-agent"))
            .args(["--no-net", "--cmdline", &cmdline])
            .args(extra)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn end(mut self) -> (bool, String) {
        use std::io::Read as _;
        let mut text = String::new();
        self.0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        (self.0.wait().unwrap().success(), text)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(daemon: &Daemon, disk: &Loop) -> Agent {
    Agent::start(&daemon.server, &daemon.ca, &["--allow-loop", &disk.node])
}

fn head_boots(disk: &Loop) -> bool {
    let mut head = [0; 1024];
    let file = std::fs::File::open(&disk.file).unwrap();
    file.read_exact_at(&mut head, 0).unwrap();
    head[510..512] == [0x55, 0xaa] || head[512..520] == *b"EFI PART"
}

fn bootable_before(disk: &Loop) {
    let file = std::fs::File::options()
        .write(true)
        .open(&disk.file)
        .unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    file.sync_all().unwrap();
}

/// The main road: over three broken connections an image is written, read back, and a file is
/// put into its file system; then the agent leaves by the command it was given.
#[test]
fn installs_an_image_and_a_file_and_leaves() {
    let raw = raw_disk();
    let sealed = seal(&raw);
    let disk = Loop::new("an-agent-main.img", 64 * MIB);
    let marker = tempfile::tempdir().unwrap();
    let left = marker.path().join("left");
    let secret = "s3cret-join-token";
    let part = 60_000;
    let daemon = daemon(
        vec![
            AgentAction::Inventory,
            sealed.stream("an-agent-main.img", Verify::Full),
            AgentAction::WriteFile {
                disk: by_serial("an-agent-main.img"),
                partition: PartitionRef {
                    label: Some("root".into()),
                    ..PartitionRef::default()
                },
                path: "/etc/anneal/config".into(),
                contents_base64: base64::engine::general_purpose::STANDARD.encode(secret),
                mode: "0640".into(),
                directory_mode: Some("0750".into()),
                uid: 12,
                gid: 34,
            },
            AgentAction::CollectEvidence,
            AgentAction::Reboot,
        ],
        sealed.key.clone(),
        sealed.serve(move |n| (if n < 3 { part } else { u64::MAX }, Then::Cut)),
    );
    let command = format!("printf %s $ANNEAL_LEAVE > {}", left.display());
    let agent = Agent::start(
        &daemon.server,
        &daemon.ca,
        &["--allow-loop", &disk.node, "--reboot-command", &command],
    );
    let (success, log) = agent.end();
    assert!(success, "{log}");
    assert!(
        !log.contains(secret) && !log.contains(&"ab".repeat(32)),
        "a secret was logged: {log}"
    );
    let outcomes = daemon.outcomes(5);

    let streamed: anneal_protocol::agent::StreamResult = output(&outcomes[1]);
    assert_eq!(streamed.serial.as_deref(), Some("an-agent-main.img"));
    assert_eq!(streamed.bytes, raw.len() as u64);
    let amounts = [streamed.written, streamed.zeroed, streamed.unchanged];
    let accounted: u64 = amounts.iter().map(|amount| amount.bytes).sum();
    assert_eq!(accounted, streamed.bytes);
    assert!(
        streamed.written.bytes < streamed.bytes / 2,
        "zeros were written as data: {streamed:?}"
    );
    assert!(streamed.transferred <= sealed.data.len() as u64);
    assert_eq!(
        streamed.read_back.map(|amount| amount.bytes),
        Some(streamed.bytes)
    );
    assert_eq!(streamed.sources.len(), 1);
    assert!(streamed.sources[0].faults >= 2, "{streamed:?}");
    assert!(!streamed.sources[0].dropped && streamed.peak_memory > 0);
    // It goes on at the frame where the connection broke: no frame travels twice.
    assert_eq!(streamed.sources[0].bytes, streamed.transferred);
    let bytes = std::fs::read(&disk.file).unwrap();
    // The file that was written into it is behind the partition table.
    assert!(bytes[..MIB as usize] == raw[..MIB as usize]);

    let written: WriteFileResult = output(&outcomes[2]);
    assert_eq!(written.bytes, secret.len() as u64);
    assert!(matches!(outcomes[3], Outcome::Succeeded { .. }));
    assert_eq!(outcomes[4], Outcome::Leaving);
    assert_eq!(std::fs::read_to_string(left).unwrap(), "reboot");
    let part = tempfile::NamedTempFile::new().unwrap();
    let bytes = std::fs::read(&disk.file).unwrap();
    std::fs::write(part.path(), &bytes[MIB as usize..25 * MIB as usize]).unwrap();
    let debugfs = |request: &str| {
        let output = Command::new("/usr/sbin/debugfs")
            .args(["-R", request, part.path().to_str().unwrap()])
            .output()
            .expect("debugfs: install e2fsprogs");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(debugfs("cat /etc/anneal/config"), secret);
    let stat = debugfs("stat /etc/anneal/config");
    assert!(
        stat.contains("Mode:  0640")
            && stat.contains("User:    12")
            && stat.contains("Group:    34"),
        "{stat}"
    );

    let stat = debugfs("stat /etc/anneal");
    assert!(stat.contains("Mode:  0750"), "{stat}");

    let first: NextRequest = daemon.server.requests("/next")[0].json();
    let inventory = first
        .inventory
        .expect("the first question carries the inventory");
    assert!(
        inventory
            .disks
            .iter()
            .any(|d| d.serial.as_deref() == Some("an-agent-main.img"))
    );
    assert!(
        inventory
            .disks
            .iter()
            .filter(|d| d.name.starts_with("loop"))
            .count()
            == 1
    );
    let reports = daemon.server.requests("/report");
    let end = reports
        .iter()
        .filter_map(|r| r.json::<anneal_protocol::agent::Report>().progress)
        .max_by_key(|progress| progress.done)
        .unwrap();
    assert_eq!(end.done, end.total);
    // Written and read back, besides what was compared.
    assert!(end.total > 2 * raw.len() as u64, "{end:?}");
}

/// Each fault of the image has its own name, and none leaves a disk that boots.
#[test]
fn faulty_images_are_told_apart() {
    let sealed = seal(&raw_disk());
    let mut flipped = sealed.data.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    let with_data = |data: Vec<u8>| Sealed {
        data: Arc::new(data),
        id: sealed.id.clone(),
        key: sealed.key.clone(),
        manifest: sealed.manifest.clone(),
    };
    let whole = |_: usize| (u64::MAX, Then::Cut);
    let short = with_data(sealed.data[..middle].to_vec());
    let forged = Sealed {
        manifest: sealed.manifest.iter().rev().copied().collect(),
        ..with_data(Vec::new())
    };
    for (name, image, expected) in [
        ("corrupt", with_data(flipped), FailureCode::ImageCorrupt),
        ("short", short, FailureCode::ImageTruncated),
        ("forged", forged, FailureCode::ManifestInvalid),
    ] {
        let serial = format!("an-agent-{name}.img");
        let disk = Loop::new(&serial, 64 * MIB);
        let daemon = daemon(
            vec![image.stream(&serial, Verify::None)],
            image.key.clone(),
            image.serve(whole),
        );
        let _agent = start(&daemon, &disk);
        assert_eq!(code(&daemon.outcomes(1)[0]), expected, "{name}");
        assert!(!head_boots(&disk), "{name}");
    }
}

#[test]
fn another_key_or_another_image_is_not_written() {
    let sealed = seal(&raw_disk());
    let other = SigningKey::from_seed(&[8; 32]).public().to_hex();
    let wrong_id = Sealed {
        id: format!("blake3:{}", "00".repeat(32)),
        key: sealed.key.clone(),
        manifest: sealed.manifest.clone(),
        data: sealed.data.clone(),
    };
    for (image, key) in [(&sealed, other), (&wrong_id, sealed.key.clone())] {
        let disk = Loop::new("an-agent-keys.img", 64 * MIB);
        bootable_before(&disk);
        let action = image.stream("an-agent-keys.img", Verify::None);
        let daemon = daemon(vec![action], key, image.serve(|_| (u64::MAX, Then::Cut)));
        let _agent = start(&daemon, &disk);
        assert_eq!(code(&daemon.outcomes(1)[0]), FailureCode::ManifestInvalid);
        assert!(head_boots(&disk), "the disk was touched");
    }
}

/// What must not be written is not: too small, mounted, protected, or simply not there.
#[test]
fn disks_are_refused() {
    let sealed = seal(&raw_disk());
    let small = Loop::new("an-agent-small.img", 32 * MIB);
    bootable_before(&small);
    let protected = AgentAction::StreamImage {
        image: sealed.id.clone(),
        disk: DiskSelector {
            protected: vec![anneal_protocol::disk::ProtectedDisk {
                serial: Some("an-agent-small.img".into()),
                ..Default::default()
            }],
            ..by_serial("an-agent-small.img")
        },
        verify: Verify::None,
        stall_timeout_ms: anneal_protocol::agent::stall_timeout_ms(),
        options: StreamOptions::default(),
    };
    let daemon = daemon(
        vec![
            sealed.stream("an-agent-small.img", Verify::None),
            sealed.stream("no-such-disk", Verify::None),
            protected,
            AgentAction::Reboot,
        ],
        sealed.key.clone(),
        sealed.serve(|_| (u64::MAX, Then::Cut)),
    );
    let _agent = start(&daemon, &small);
    let codes: Vec<_> = daemon.outcomes(4).iter().map(code).collect();
    assert_eq!(
        codes,
        [
            FailureCode::DiskTooSmall,
            FailureCode::NoDisk,
            FailureCode::DiskRefused,
            // Neither PID 1 nor a command: this machine is left alone.
            FailureCode::BadOrder,
        ]
    );
    assert!(head_boots(&small), "the disk was touched");
}

#[test]
fn a_mounted_disk_is_refused() {
    own_mounts();
    let raw = raw_disk();
    let sealed = seal(&raw);
    let disk = Loop::new("an-agent-mounted.img", 64 * MIB);
    // Through the device: the kernel may have parts of it in memory.
    let file = std::fs::File::options()
        .write(true)
        .open(&disk.node)
        .unwrap();
    file.write_all_at(&raw, 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    // Whether or not the kernel knows GPT.
    let _ = Command::new("partx")
        .args(["-a", &disk.node])
        .stderr(Stdio::null())
        .status();
    let at = tempfile::tempdir().unwrap();
    let partition = format!("{}p1", disk.node);
    eventually("partition node", || {
        std::path::Path::new(&partition).exists().then_some(())
    });
    let mounted = Command::new("mount")
        .arg(&partition)
        .arg(at.path())
        .status()
        .unwrap();
    assert!(mounted.success());
    let daemon = daemon(
        vec![
            sealed.stream("an-agent-mounted.img", Verify::None),
            AgentAction::WipeDisk {
                disk: by_serial("an-agent-mounted.img"),
            },
        ],
        sealed.key.clone(),
        sealed.serve(|_| (u64::MAX, Then::Cut)),
    );
    let agent = start(&daemon, &disk);
    let outcomes = daemon.outcomes(2);
    drop(agent);
    let unmounted = Command::new("umount").arg(at.path()).status().unwrap();
    assert!(unmounted.success());
    for outcome in &outcomes {
        assert_eq!(code(outcome), FailureCode::DiskRefused);
        assert!(
            format!("{outcome:?}").contains("is mounted on"),
            "{outcome:?}"
        );
    }
    assert!(head_boots(&disk));
}

#[test]
fn wiping_leaves_nothing_to_recognise() {
    let raw = raw_disk();
    let disk = Loop::new("an-agent-wipe.img", 48 * MIB);
    let file = std::fs::File::options()
        .write(true)
        .open(&disk.file)
        .unwrap();
    file.write_all_at(&raw, 0).unwrap();
    drop(file);
    let action = AgentAction::WipeDisk {
        disk: by_serial("an-agent-wipe.img"),
    };
    let daemon = daemon(vec![action], "00".repeat(32), no_images());
    let _agent = start(&daemon, &disk);
    let _: anneal_protocol::agent::WipeResult = output(&daemon.outcomes(1)[0]);
    assert!(!head_boots(&disk));
    let found = Command::new("wipefs")
        .args(["-n", &disk.node])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

/// A server whose authority has another fingerprint never sees the token.
#[test]
fn an_impostor_gets_nothing() {
    let impostor = daemon(Vec::new(), String::new(), no_images());
    let real = Authority::new();
    let mut agent = Agent::start(&impostor.server, &real.sha256(), &[]);
    let stderr = agent.0.stderr.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr)).map_while(Result::ok);
    let complaint = lines.find(|line| line.contains("cannot enroll")).unwrap();
    assert!(complaint.contains("UnknownIssuer"), "{complaint}");
    assert!(impostor.server.requests("enroll").is_empty());
}

/// A token that is refused ends this boot with the reason on the console.
#[test]
fn a_refused_token_is_told() {
    let authority = Authority::new();
    let server = Server::start(
        &authority,
        Box::new(|_| {
            Answer::Json(
                403,
                json!({"title": "refused", "detail": "boot token was used before"}),
            )
        }),
    );
    let (success, text) = Agent::start(&server, &authority.sha256(), &[]).end();
    assert!(!success);
    assert!(text.contains("boot token was used before"), "{text}");
    assert_eq!(server.requests("enroll").len(), 1);
}
