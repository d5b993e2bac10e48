//! Adding, removing, and dying in between.

use std::io;
use std::path::Path;

use anneal_image::{SignedManifest, verify_store};

use super::*;

const MIB: usize = 1 << 20;

pub(super) struct Lab {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Lab {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        Self { dir, store }
    }

    pub fn keys(&self) -> Keyring {
        Keyring::open(&self.dir.path().join("image-key.pem")).unwrap()
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    pub async fn catalog(&self) -> Catalog {
        Catalog::open(self.store.clone(), self.images(), self.keys())
            .await
            .unwrap()
    }

    pub fn folders(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.images())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub async fn execute(&self, text: &str) {
        let query = sqlx::query(sqlx::AssertSqlSafe(text.to_owned()));
        query.execute(&self.store.writer).await.unwrap();
    }
}

pub(super) fn disk(seed: u8) -> Vec<u8> {
    let mut raw = vec![0; 9 * MIB];
    for (index, byte) in raw[..MIB].iter_mut().enumerate() {
        *byte = seed.wrapping_add((index / 7) as u8);
    }
    raw
}

pub(super) async fn seal(
    catalog: &Catalog,
    name: &str,
    version: &str,
    source: impl io::Read + Send + 'static,
) -> Result<ImageRecord, ImageError> {
    let request = SealRequest {
        name: name.to_owned(),
        version: version.to_owned(),
        os: Some("debian".to_owned()),
        ..SealRequest::default()
    };
    let finish = || Ok::<_, ImageError>(Findings::default());
    catalog.seal(request, source, finish, |_| {}).await
}

pub(super) async fn add(
    catalog: &Catalog,
    reference: &str,
    raw: Vec<u8>,
) -> Result<ImageRecord, ImageError> {
    let (name, version) = reference.split_once('@').unwrap();
    let source = io::Cursor::new(raw);
    seal(catalog, name, version, source).await
}

pub(super) fn hex_of(image: &ImageRecord) -> String {
    image.id.strip_prefix("blake3:").unwrap().to_owned()
}

#[tokio::test]
async fn an_added_image_is_sealed_and_found() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let raw = disk(1);
    let added = add(&catalog, "debian@12.9", raw.clone()).await.unwrap();
    assert_eq!(added.size, raw.len() as u64);
    assert_eq!(catalog.resolve("debian@12.9").await.unwrap(), added);
    assert_eq!(catalog.list().await.unwrap(), std::slice::from_ref(&added));
    assert_eq!(lab.folders(), [hex_of(&added)]);

    let json = std::fs::read(catalog.manifest_path(&added.id).unwrap()).unwrap();
    let manifest = SignedManifest::open(&json, &catalog.public_keys(), &added.id).unwrap();
    let data = std::fs::File::open(catalog.data_path(&added.id).unwrap()).unwrap();
    assert_eq!(data.metadata().unwrap().len(), added.stored);
    verify_store(data, &manifest, &mut |_| {}).unwrap();

    let error = catalog.resolve("debian@13").await.unwrap_err().to_string();
    assert!(error.contains("debian@13 is not in the catalog"), "{error}");
    std::fs::remove_file(catalog.data_path(&added.id).unwrap()).unwrap();
    let error = catalog
        .resolve("debian@12.9")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("debian@12.9 has no data in"), "{error}");
}

#[tokio::test]
async fn one_content_under_two_names_is_stored_once() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let raw = disk(1);
    let one = add(&catalog, "debian@1", raw.clone()).await.unwrap();
    let two = add(&catalog, "other@2", raw.clone()).await.unwrap();
    assert_eq!(one.id, two.id);
    assert_eq!(lab.folders(), [hex_of(&one)]);
    let again = add(&catalog, "debian@1", raw).await.unwrap();
    assert_eq!(again.id, one.id);
    let error = add(&catalog, "debian@1", disk(2)).await.unwrap_err();
    assert!(matches!(error, ImageError::Exists(_)), "{error}");
    assert_eq!(lab.folders(), [hex_of(&one)]);

    catalog.remove("debian@1").await.unwrap();
    assert_eq!(lab.folders(), [hex_of(&one)]);
    assert_eq!(catalog.resolve("other@2").await.unwrap().id, one.id);
    catalog.remove("other@2").await.unwrap();
    assert_eq!(lab.folders(), [""; 0]);
}

#[tokio::test]
async fn refuses_names_it_cannot_use_and_disks_cut_short() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    for reference in [
        "../x@1",
        "x@",
        "@1",
        "a b@1",
        "x@../../etc",
        "x@1@2",
        "-x@1",
    ] {
        let error = add(&catalog, reference, disk(1)).await.unwrap_err();
        assert!(
            matches!(error, ImageError::Invalid(_)),
            "{reference}: {error}"
        );
    }
    let mut table = disk(1);
    table[512..520].copy_from_slice(b"EFI PART");
    let beyond = table.len() as u64 / 512;
    table[544..552].copy_from_slice(&beyond.to_le_bytes());
    let error = add(&catalog, "x@1", table).await.unwrap_err();
    assert!(matches!(error, ImageError::CutShort { .. }), "{error}");
    assert_eq!(lab.folders(), [""; 0]);
    assert_eq!(catalog.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_source_that_fails_leaves_nothing() {
    struct Fails(io::Cursor<Vec<u8>>);
    impl io::Read for Fails {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                n => Ok(n),
            }
        }
    }
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let source = Fails(io::Cursor::new(disk(1)));
    let result = seal(&catalog, "x", "1", source).await;
    assert!(matches!(result, Err(ImageError::Pack(_))), "{result:?}");
    assert_eq!(lab.folders(), [""; 0]);
}

/// What a process that dies between two steps leaves is gone when the next one opens.
#[tokio::test]
async fn the_next_start_cleans_up_after_a_crash() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let kept = add(&catalog, "debian@1", disk(1)).await.unwrap();
    let copy = |from: &Path, to: &str| {
        let target = lab.images().join(to);
        std::fs::create_dir(&target).unwrap();
        for name in [folder::DATA, folder::MANIFEST] {
            std::fs::copy(from.join(name), target.join(name)).unwrap();
        }
    };
    // Died while writing; died before the row; died after the row of a removal was gone.
    std::fs::create_dir(lab.images().join(".draft-abc")).unwrap();
    std::fs::write(lab.images().join(".draft-abc/data.zst"), b"half").unwrap();
    copy(&lab.images().join(hex_of(&kept)), &"ab".repeat(32));
    copy(
        &lab.images().join(hex_of(&kept)),
        &format!(".draft-{}", "cd".repeat(32)),
    );
    std::fs::write(lab.images().join("a person's file"), b"stays").unwrap();
    drop(catalog);

    let catalog = lab.catalog().await;
    let mut expected = vec![hex_of(&kept), "a person's file".to_owned()];
    expected.sort();
    assert_eq!(lab.folders(), expected);
    assert_eq!(catalog.resolve("debian@1").await.unwrap(), kept);
}

/// Seals, then dies at each step of the publication; each time the next start has all or
/// nothing, and adding again works.
#[tokio::test]
async fn dying_at_any_step_of_an_addition_is_harmless() {
    for published in [false, true] {
        let lab = Lab::new().await;
        let keys = lab.keys();
        drop(lab.catalog().await);
        let folder = Folder::open(lab.images()).unwrap();
        let mut draft = folder.draft().unwrap();
        let options = PackOptions::default();
        let packed = pack(&mut &disk(1)[..], draft.data(), &options, &mut |_| {}).unwrap();
        let facts = Facts {
            os: "debian".into(),
            ..Facts::default()
        };
        let manifest = packed.into_manifest(facts).unwrap();
        let sealed = draft.finish(manifest).unwrap();
        if published {
            sealed.publish(&keys).unwrap();
        } else {
            // A killed process drops nothing.
            std::mem::forget(sealed);
        }
        assert_eq!(lab.folders().len(), 1);
        let catalog = lab.catalog().await;
        assert_eq!(lab.folders(), [""; 0]);
        let added = add(&catalog, "debian@1", disk(1)).await.unwrap();
        assert_eq!(lab.folders(), [hex_of(&added)]);
    }
}

#[tokio::test]
async fn a_removal_waits_for_whoever_needs_the_image() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    let image = add(&catalog, "debian@1", disk(1)).await.unwrap();
    lab.execute(
        "INSERT INTO machines (name, spec, state, created_at, updated_at) \
         VALUES ('r1n1', '{\"image\":\"debian@1\"}', 'ready', 0, 0)",
    )
    .await;
    let error = catalog.remove("debian@1").await.unwrap_err().to_string();
    assert_eq!(
        error,
        "image debian@1 is in use by machine r1n1: give it another image first"
    );
    lab.execute("DELETE FROM machines").await;
    sqlx::query(
        "INSERT INTO runs (id, machine, workflow, plan, image, state, requested_by, created_at, deadline) \
         VALUES ('run1', 'r1n1', 'install-image', '{}', $1, 'running', 'test', 0, 0)",
    )
    .bind(&image.id)
    .execute(&lab.store.writer)
    .await
    .unwrap();
    let error = catalog.remove("debian@1").await.unwrap_err().to_string();
    assert!(
        error.contains("in use by run run1 of machine r1n1"),
        "{error}"
    );
    assert_eq!(catalog.resolve("debian@1").await.unwrap(), image);

    // With a second name the data stays, so the first name may go.
    add(&catalog, "debian@again", disk(1)).await.unwrap();
    catalog.remove("debian@1").await.unwrap();
    assert_eq!(lab.folders(), [hex_of(&image)]);
    catalog.remove("debian@again").await.unwrap_err();
    lab.execute("UPDATE runs SET state = 'succeeded'").await;
    catalog.remove("debian@again").await.unwrap();
    assert_eq!(lab.folders(), [""; 0]);
    let error = catalog.remove("debian@1").await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound(_)), "{error}");
}

#[tokio::test]
async fn an_image_of_an_earlier_key_is_sealed_again() {
    let lab = Lab::new().await;
    let image = add(&lab.catalog().await, "debian@1", disk(1))
        .await
        .unwrap();
    std::fs::remove_file(lab.dir.path().join("image-key.pem")).unwrap();
    let catalog = lab.catalog().await;
    let open = || {
        let json = std::fs::read(catalog.manifest_path(&image.id).unwrap()).unwrap();
        SignedManifest::open(&json, &catalog.public_keys(), &image.id)
    };
    assert!(open().is_err());
    add(&catalog, "debian@1", disk(1)).await.unwrap();
    open().unwrap();
    assert_eq!(lab.folders(), [hex_of(&image)]);
}

#[tokio::test]
async fn ids_cannot_leave_the_folder() {
    let lab = Lab::new().await;
    let catalog = lab.catalog().await;
    std::fs::write(lab.dir.path().join("data.zst"), b"secret").unwrap();
    for id in [
        "blake3:..",
        "..",
        "blake3:",
        "blake3:/etc",
        &format!("blake3:{}", "AB".repeat(32)),
    ] {
        assert_eq!(catalog.data_path(id), None, "{id}");
    }
}
