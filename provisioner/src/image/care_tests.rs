//! What happens to images after they were added, and adding under bad luck.

use std::io;
use std::process::Command;

use anneal_image::{Proof, ProofMethod, SignedManifest};

use super::tests::{Lab, add, disk, hex_of};
use super::*;

fn request(reference: &str) -> SealRequest {
    let (name, version) = reference.split_once('@').unwrap();
    SealRequest {
        name: name.into(),
        version: version.into(),
        os: Some("debian".into()),
        ..SealRequest::default()
    }
}

/// A disk with a GPT: 1 `ROOT`, 2 `STATE`.
fn partitioned() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let script = "label: gpt\nsize=4M, name=ROOT\nsize=4M, name=STATE\n";
    let mut child = Command::new("/usr/sbin/sfdisk")
        .arg("-q")
        .arg(file.path())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("sfdisk is needed ({error}): apt-get install fdisk"));
    io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    std::fs::read(file.path()).unwrap()
}

async fn seal(
    catalog: &Catalog,
    request: SealRequest,
    raw: Vec<u8>,
    finish: impl FnOnce() -> Result<Findings, ImageError> + Send + 'static,
) -> Result<ImageRecord, ImageError> {
    catalog
        .seal(request, io::Cursor::new(raw), finish, |_| {})
        .await
}

#[tokio::test]
async fn what_the_source_says_last_becomes_part_of_the_image() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let proof = Proof {
        method: ProofMethod::Openpgp,
        signer: Some("F88CFEDE".into()),
        source: None,
        detail: None,
    };
    let findings = Findings {
        proof: Some(proof.clone()),
        os: Some("flatcar".into()),
        os_version: Some("4230.2.1".into()),
    };
    let request = SealRequest {
        os: None,
        mutable: vec!["STATE".into()],
        ..request("f@1")
    };
    let again = findings.clone();
    let image = seal(&catalog, request.clone(), partitioned(), || Ok(findings))
        .await
        .unwrap();
    assert_eq!(image.proof.as_ref(), Some(&proof));
    assert_eq!(
        (image.os.as_str(), image.os_version.as_deref()),
        ("flatcar", Some("4230.2.1"))
    );
    assert_eq!(catalog.resolve("f@1").await.unwrap(), image);
    let json = std::fs::read(catalog.manifest_path(&image.id).unwrap()).unwrap();
    let manifest = SignedManifest::open(&json, &catalog.public_keys(), &image.id).unwrap();
    assert_eq!(manifest.proof(), Some(&proof));
    let table = manifest.table().unwrap();
    assert!(table.find("STATE").unwrap().mutable && !table.find("ROOT").unwrap().mutable);

    // What the request says goes before what the content says.
    let named = SealRequest {
        os: Some("debian".into()),
        ..request.clone()
    };
    let error = seal(&catalog, named, partitioned(), || Ok(again)).await;
    let error = error.unwrap_err();
    // The disk is the same but for its random ids: other content.
    assert!(matches!(error, ImageError::Exists(_)), "{error}");

    let unknown = SealRequest {
        mutable: vec!["OEM".into()],
        ..request
    };
    let error = seal(&catalog, unknown, partitioned(), || {
        Ok(Findings {
            os: Some("flatcar".into()),
            ..Findings::default()
        })
    })
    .await
    .unwrap_err()
    .to_string();
    assert!(error.contains("there are 1 \"ROOT\""), "{error}");
    assert_eq!(lab.folders(), [hex_of(&image)]);
}

#[tokio::test]
async fn the_same_disk_with_other_facts_is_told_apart_from_another_disk() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let image = add(&catalog, "debian@1", disk(1)).await.unwrap();
    let proven = || {
        Ok(Findings {
            proof: Some(Proof {
                method: ProofMethod::Sha256,
                signer: None,
                source: None,
                detail: None,
            }),
            ..Findings::default()
        })
    };
    let error = seal(&catalog, request("debian@1"), disk(1), proven).await;
    let error = error.unwrap_err();
    assert!(matches!(error, ImageError::ExistsOtherwise(_)), "{error}");
    assert_eq!(lab.folders(), [hex_of(&image)]);
}

#[tokio::test]
async fn a_refusal_at_the_end_leaves_nothing() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let refuse = || Err(ImageError::Invalid("wrong signature".into()));
    let error = seal(&catalog, request("x@1"), disk(1), refuse).await;
    assert_eq!(error.unwrap_err().to_string(), "wrong signature");
    let nothing = || Ok(Findings::default());
    let unnamed = SealRequest {
        os: None,
        ..request("x@1")
    };
    let error = seal(&catalog, unnamed, disk(1), nothing).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("give it with --os"), "{error}");
    let mirrored = SealRequest {
        mirrors: vec!["ftp://nowhere".into()],
        ..request("x@1")
    };
    let error = seal(&catalog, mirrored, disk(1), nothing).await;
    assert!(matches!(error, Err(ImageError::Mirror(_))), "{error:?}");
    assert_eq!(lab.folders(), [""; 0]);
    assert_eq!(catalog.list().await.unwrap(), []);
}

#[tokio::test]
async fn rereading_finds_the_first_damaged_frame() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let image = add(&catalog, "debian@1", disk(1)).await.unwrap();
    let result = catalog.verify("debian@1").await.unwrap();
    assert_eq!((result.problem, result.verified), (None, image.size));

    let data = catalog.data_path(&image.id).unwrap();
    let json = std::fs::read(catalog.manifest_path(&image.id).unwrap()).unwrap();
    let manifest = SignedManifest::parse(&json).unwrap().manifest;
    let good = std::fs::read(&data).unwrap();
    let last = manifest.frames().len() - 1;
    let mut bad = good.clone();
    let range = manifest.data_range(last..last + 1);
    bad[range.start as usize..range.end as usize].fill(0);
    std::fs::write(&data, &bad).unwrap();
    let result = catalog.verify("debian@1").await.unwrap();
    assert_eq!(result.frame, Some(last as u64));
    assert_eq!(result.verified, manifest.raw_range(last).start);
    assert!(
        result
            .problem
            .unwrap()
            .contains("does not match the manifest")
    );

    std::fs::write(&data, &good[..good.len() - 1]).unwrap();
    let result = catalog.verify("debian@1").await.unwrap();
    assert!(result.problem.unwrap().contains("seek table"));

    std::fs::write(&data, &good).unwrap();
    let manifest = catalog.manifest_path(&image.id).unwrap();
    std::fs::write(&manifest, json.to_ascii_uppercase()).unwrap();
    let result = catalog.verify("debian@1").await.unwrap();
    assert_eq!((result.frame, result.verified), (None, 0));
    assert!(result.problem.unwrap().contains("manifest"));
}

#[tokio::test]
async fn garbage_is_what_nobody_needs() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    for (version, seed) in [
        ("named", 1),
        ("installed", 2),
        ("running", 3),
        ("pinned", 4),
        ("free", 5),
    ] {
        add(&catalog, &format!("x@{version}"), disk(seed))
            .await
            .unwrap();
    }
    // A second name for content that is needed: the name goes, the data stays.
    let alias = add(&catalog, "x@alias", disk(4)).await.unwrap();
    catalog.pin("x@pinned", true).await.unwrap();
    for (machine, image, version, state) in [
        ("a", "'{\"image\":\"x@named\"}'", "installed", "succeeded"),
        ("b", "'{}'", "running", "running"),
    ] {
        let id = catalog.resolve(&format!("x@{version}")).await.unwrap().id;
        lab.execute(&format!(
            "INSERT INTO machines (name, spec, state, last_run, created_at, updated_at) \
             VALUES ('{machine}', {image}, 'ready', 'run-{machine}', 0, 0)"
        ))
        .await;
        lab.execute(&format!(
            "INSERT INTO runs (id, machine, workflow, plan, image, state, requested_by, created_at, deadline) \
             VALUES ('run-{machine}', '{machine}', 'w', '{{}}', '{id}', '{state}', 't', 0, 0)"
        ))
        .await;
    }
    let names = |collected: &[Collected]| -> Vec<String> {
        collected
            .iter()
            .map(|item| item.image.version.clone())
            .collect()
    };
    let hour = std::time::Duration::from_secs(3600);
    assert_eq!(catalog.gc(hour, false).await.unwrap(), []);
    lab.execute("UPDATE image_names SET added_at = 0").await;
    let before = lab.folders();
    let dry = catalog.gc(hour, true).await.unwrap();
    assert_eq!(lab.folders(), before);
    assert_eq!(catalog.list().await.unwrap().len(), 6);

    let collected = catalog.gc(hour, false).await.unwrap();
    assert_eq!(names(&dry), names(&collected));
    let mut gone = names(&collected);
    gone.sort();
    assert_eq!(gone, ["alias", "free"]);
    let freed: u64 = collected.iter().map(|item| item.freed).sum();
    let free = collected.iter().find(|item| item.image.version == "free");
    assert_eq!(freed, free.unwrap().image.stored);
    assert_eq!(lab.folders().len(), 4);
    assert_eq!(catalog.resolve("x@pinned").await.unwrap().id, alias.id);

    catalog.pin("x@pinned", false).await.unwrap();
    assert_eq!(names(&catalog.gc(hour, false).await.unwrap()), ["pinned"]);
    let error = catalog.pin("x@pinned", true).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound(_)), "{error}");
}

#[tokio::test]
async fn a_key_that_is_retired_while_an_image_is_sealed_does_not_sign_it() {
    let lab = Lab::new().await;
    let catalog = Arc::new(lab.catalog().await);
    let before = catalog.public_keys();
    let (changed, runtime) = (catalog.clone(), tokio::runtime::Handle::current());
    let finish = move || {
        runtime.block_on(async {
            changed.rotate_key().await?;
            changed.resign().await
        })?;
        Ok(Findings::default())
    };
    let image = seal(&catalog, request("a@1"), disk(1), finish)
        .await
        .unwrap();
    let keys = catalog.public_keys();
    assert!(keys.iter().all(|key| !before.contains(key)));
    let json = std::fs::read(catalog.manifest_path(&image.id).unwrap()).unwrap();
    SignedManifest::open(&json, &keys, &image.id).unwrap();
}

#[tokio::test]
async fn a_rotated_key_leaves_images_valid_until_they_are_signed_again() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let one = add(&catalog, "x@1", disk(1)).await.unwrap();
    let busy = add(&catalog, "x@busy", disk(2)).await.unwrap();
    let before = catalog.public_keys();
    let new = catalog.rotate_key().await.unwrap();
    assert_eq!(catalog.public_keys(), [new, before[0]]);
    let two = add(&catalog, "x@2", disk(3)).await.unwrap();
    let opens = |id: &str, keys: &[PublicKey]| {
        let json = std::fs::read(catalog.manifest_path(id).unwrap()).unwrap();
        SignedManifest::open(&json, keys, id).is_ok()
    };
    assert!(opens(&one.id, &before) && !opens(&one.id, &[new]));
    assert!(opens(&two.id, &[new]) && !opens(&two.id, &before));
    let uses = catalog.keys().await.unwrap();
    assert!(uses[0].signs && !uses[1].signs);
    assert_eq!(uses[0].images, ["x@2"]);
    assert_eq!(uses[1].images, ["x@1", "x@busy"]);

    // An agent that installs this one has been told of the first key only.
    let id = &busy.id;
    lab.execute(&format!(
        "INSERT INTO runs (id, machine, workflow, plan, image, state, requested_by, created_at, deadline) \
         VALUES ('r', 'm', 'w', '{{}}', '{id}', 'running', 't', 0, 0)"
    ))
    .await;
    let done = catalog.resign().await.unwrap();
    assert_eq!(done.images, ["x@1"]);
    assert_eq!((done.kept.len(), done.retired.len()), (1, 0));
    assert!(opens(&one.id, &[new]) && opens(&busy.id, &before));
    lab.execute("UPDATE runs SET state = 'failed'").await;
    let done = catalog.resign().await.unwrap();
    assert_eq!(
        (done.images, done.retired),
        (vec!["x@busy".to_owned()], before.clone())
    );
    assert_eq!(catalog.public_keys(), [new]);
    assert_eq!(catalog.resign().await.unwrap(), Resigned::default());

    // Ids are digests of manifests, not of signatures; nothing else has changed.
    assert_eq!(catalog.resolve("x@1").await.unwrap(), one);
    drop(catalog);
    let catalog = lab.catalog().await;
    assert_eq!(catalog.public_keys(), [new]);
    assert_eq!(catalog.verify("x@1").await.unwrap().problem, None);
}

/// A file system of 8 MiB that goes away with the test, also when that is killed: the mount is
/// private to a mount namespace of this thread's children.
#[test]
fn a_full_store_stays_as_it_was() {
    const IN_NAMESPACE: &str = "ANNEAL_TEST_FULL_STORE";
    let Some(dir) = std::env::var_os(IN_NAMESPACE) else {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount -t tmpfs -o size=8m tmpfs \"$1\" && exec \"$2\" --exact --nocapture image::care_tests::a_full_store_stays_as_it_was")
            .arg("sh")
            .arg(dir.path())
            .arg(std::env::current_exe().unwrap())
            .env(IN_NAMESPACE, dir.path())
            .output()
            .unwrap_or_else(|error| panic!("unshare is needed ({error}): apt-get install util-linux"));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{said}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(said.contains("1 passed"), "the test did not run: {said}");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let lab = Lab::new().await;
        let images = PathBuf::from(dir).join("images");
        let catalog = Catalog::open(lab.store.clone(), images.clone(), lab.keys())
            .await
            .unwrap();
        let image = add(&catalog, "small@1", disk(1)).await.unwrap();
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let big: Vec<u8> = noise.take(16 << 20).collect();
        let error = add(&catalog, "big@1", big).await.unwrap_err();
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains("No space left"), "{error}");
        assert_eq!(std::fs::read_dir(&images).unwrap().count(), 1);
        assert_eq!(catalog.list().await.unwrap(), std::slice::from_ref(&image));
        assert_eq!(catalog.verify("small@1").await.unwrap().problem, None);
        // There is room again.
        add(&catalog, "other@1", disk(9)).await.unwrap();
    });
}

/// Kills a process (SIGKILL) that adds one image after the other, at many points of an addition;
/// what is left is always whole images and nothing else.
#[test]
fn killed_additions_leave_nothing_behind() {
    use std::io::{BufRead as _, Write as _};
    const IN_CHILD: &str = "ANNEAL_TEST_KILLED";
    if let Some(dir) = std::env::var_os(IN_CHILD) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(async {
            let store = Store::open(&PathBuf::from(&dir).join("db")).await.unwrap();
            let keys = Keyring::open(&PathBuf::from(&dir).join("image-key.pem")).unwrap();
            let catalog = Catalog::open(store, PathBuf::from(&dir).join("images"), keys)
                .await
                .unwrap();
            let say = || {
                println!("step");
                std::io::stdout().flush().unwrap();
            };
            // Ends by being killed, or with its parent, whose pipe is gone then.
            for round in 0.. {
                let name = format!("{}.{round}", std::process::id());
                let raw = disk(round as u8);
                say();
                let source = io::Cursor::new(raw);
                let request = request(&format!("x@{name}"));
                let finish = || Ok::<_, ImageError>(Findings::default());
                let added = catalog.seal(request, source, finish, move |_| say());
                added.await.unwrap();
                say();
            }
        });
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lab = runtime.block_on(Lab::new());
    for steps in 1..=14 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("image::care_tests::killed_additions_leave_nothing_behind")
            .env(IN_CHILD, lab.dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let seen = lines
            .map_while(Result::ok)
            .filter(|line| line.ends_with("step"))
            .take(steps)
            .count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, steps, "the child ended by itself");
        runtime.block_on(async {
            let catalog = lab.catalog().await;
            let mut known: Vec<String> = catalog.list().await.unwrap().iter().map(hex_of).collect();
            known.sort();
            known.dedup();
            assert_eq!(lab.folders(), known, "after {steps} steps");
            for image in catalog.list().await.unwrap() {
                let result = catalog.verify(&image.reference()).await.unwrap();
                assert_eq!(result.problem, None);
            }
        });
    }
    let added = runtime.block_on(async { lab.catalog().await.list().await.unwrap().len() });
    assert!(
        added > 0,
        "nothing was ever added: the kills came too early"
    );
}
