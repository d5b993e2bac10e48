//! A daemon that hands out given actions, and a small sealed image for it to serve.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anneal_image::{Facts, PackOptions, SignedManifest, SigningKey, pack};
use anneal_protocol::agent::{
    AgentAction, EnrollRequest, FailureCode, Next, Order, OrderId, Outcome, StepResult,
    StreamOptions, Verify,
};
use anneal_protocol::disk::{DiskHints, DiskSelector};
use serde_json::json;

use crate::support::{Answer, Authority, Request, Server, Then, eventually};

pub const MIB: u64 = 1 << 20;

/// Hands out these actions one after the other, then `Finished`; collects the outcomes.
pub struct Daemon {
    pub server: Server,
    pub ca: String,
    pub outcomes: Arc<Mutex<Vec<Outcome>>>,
}

pub type Images = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

pub fn daemon(actions: Vec<AgentAction>, image_key: String, images: Images) -> Daemon {
    let authority = Arc::new(Authority::new());
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let (ca, seen, signer) = (authority.sha256(), outcomes.clone(), authority.clone());
    let script = move |request: &Request| {
        let Some(path) = request.path.strip_prefix("/agent/v1/") else {
            return Answer::Json(404, json!({"detail": "no such place"}));
        };
        assert_eq!(request.authenticated, path != "enroll", "{path}");
        match path {
            "enroll" => {
                let body: EnrollRequest = request.json();
                Answer::Json(
                    200,
                    json!({
                        "certificate": signer.sign(&body.csr),
                        "ca": signer.pem,
                        "image_keys": [image_key],
                        "run": "run-1",
                    }),
                )
            }
            "next" => {
                let done = seen.lock().unwrap().len();
                let next = match actions.get(done) {
                    Some(action) => Next::Order(Box::new(order(done, action.clone()))),
                    None => Next::Finished {
                        reason: "test is over".into(),
                    },
                };
                Answer::Json(200, serde_json::to_value(next).unwrap())
            }
            "report" => Answer::Json(200, json!({"abandon": false})),
            "result" => {
                let result: StepResult = request.json();
                seen.lock().unwrap().push(result.outcome);
                Answer::Json(200, json!({}))
            }
            _ => images(request),
        }
    };
    Daemon {
        server: Server::start(&authority, Box::new(script)),
        ca,
        outcomes,
    }
}

fn order(done: usize, action: AgentAction) -> Order {
    Order {
        id: OrderId {
            run: "run-1".into(),
            step: done as u32,
            attempt: 1,
        },
        name: format!("step {done}"),
        action,
        timeout_ms: 600_000,
    }
}

impl Daemon {
    pub fn outcomes(&self, count: usize) -> Vec<Outcome> {
        eventually("all results", || {
            let outcomes = self.outcomes.lock().unwrap();
            (outcomes.len() >= count).then(|| outcomes.clone())
        })
    }
}

pub fn no_images() -> Images {
    Box::new(|request| panic!("nobody should ask for {}", request.path))
}

pub fn output<T: serde::de::DeserializeOwned>(outcome: &Outcome) -> T {
    match outcome {
        Outcome::Succeeded { output } => serde_json::from_value(output.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

pub fn code(outcome: &Outcome) -> FailureCode {
    match outcome {
        Outcome::Failed(failure) => failure.code,
        other => panic!("{other:?}"),
    }
}

pub fn by_serial(name: &str) -> DiskSelector {
    DiskSelector {
        hints: DiskHints {
            serial: Some(name.into()),
            ..DiskHints::default()
        },
        protected: Vec::new(),
    }
}

/// A raw disk of 48 MiB: GPT, an ext4 partition labelled `root`, noise, holes.
pub fn raw_disk() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (disk, part) = (dir.path().join("disk"), dir.path().join("part"));
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(48 * MIB)
        .unwrap();
    std::fs::File::create(&part)
        .unwrap()
        .set_len(24 * MIB)
        .unwrap();
    let run = |program: &str, args: &[&str]| {
        let status = Command::new(program)
            .args(args)
            .stdout(Stdio::null())
            .status();
        assert!(
            status
                .unwrap_or_else(|e| panic!("{program}: {e}; install gdisk and e2fsprogs"))
                .success(),
            "{program}"
        );
    };
    run(
        "/usr/sbin/sgdisk",
        &[
            "-n",
            "1:2048:+24M",
            "-c",
            "1:system",
            disk.to_str().unwrap(),
        ],
    );
    run(
        "/usr/sbin/mkfs.ext4",
        &["-q", "-L", "root", part.to_str().unwrap()],
    );
    let mut raw = std::fs::read(&disk).unwrap();
    let part = std::fs::read(&part).unwrap();
    raw[MIB as usize..][..part.len()].copy_from_slice(&part);
    let noise = 30 * MIB as usize;
    for (i, byte) in raw[noise..noise + 3_000_000].iter_mut().enumerate() {
        *byte = (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3];
    }
    raw
}

pub struct Sealed {
    pub id: String,
    pub key: String,
    pub manifest: Vec<u8>,
    pub data: Arc<Vec<u8>>,
}

pub fn seal(raw: &[u8]) -> Sealed {
    seal_frames(raw, 1 << 20)
}

pub fn seal_frames(raw: &[u8], frame_size: u32) -> Sealed {
    let key = SigningKey::from_seed(&[7; 32]);
    let options = PackOptions {
        frame_size,
        ..PackOptions::default()
    };
    let mut data = Vec::new();
    let packed = pack(&mut &raw[..], &mut data, &options, &mut |_| ()).unwrap();
    let facts = Facts {
        os: "test".into(),
        ..Facts::default()
    };
    let manifest = packed.into_manifest(facts).unwrap();
    Sealed {
        id: manifest.id(),
        key: key.public().to_hex(),
        manifest: SignedManifest::sign(manifest, &key).to_json(),
        data: Arc::new(data),
    }
}

impl Sealed {
    /// Serves the image; `fault` decides how much comes at the nth request for data, and then.
    pub fn serve(&self, fault: impl Fn(usize) -> (u64, Then) + Send + Sync + 'static) -> Images {
        let (manifest, data) = (self.manifest.clone(), self.data.clone());
        let count = AtomicUsize::new(0);
        Box::new(move |request| {
            if request.path.ends_with("/manifest") {
                return Answer::Bytes(manifest.clone());
            }
            let (after, then) = fault(count.fetch_add(1, Ordering::SeqCst));
            Answer::Data {
                data: data.clone(),
                after,
                then,
            }
        })
    }

    pub fn stream(&self, disk: &str, verify: Verify) -> AgentAction {
        AgentAction::StreamImage {
            image: self.id.clone(),
            disk: by_serial(disk),
            verify,
            stall_timeout_ms: 2_000,
            // One connection, so that faults come in order.
            options: StreamOptions {
                connections: Some(1),
                ..StreamOptions::default()
            },
        }
    }
}
