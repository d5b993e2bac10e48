//! Images from Debian's `docker-registry`.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::lab::{Lab, disk, made, sha256, text, until};
use super::proofs::{cosign_keys, cosign_sign};

const REGISTRY: &str = "127.0.0.1:5000";
const DISK: &str = "application/vnd.example.disk.v1+xz";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Registry {
    fn start(lab: &Lab) -> Self {
        let root = lab.path("registry");
        let config = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: {REGISTRY} }}\n",
            root.display()
        );
        let config = lab.file("registry.yml", config.as_bytes());
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve", &config])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry (package docker-registry)");
        until("the registry to listen", || {
            TcpStream::connect(REGISTRY).ok()
        });
        Self(child)
    }

    fn curl(&self, args: &[&str]) -> String {
        text(&made("curl", &[&["-sS", "-f", "-i"], args].concat()))
    }

    /// Pushes a blob; its descriptor.
    fn blob(&self, lab: &Lab, bytes: &[u8], media_type: &str) -> serde_json::Value {
        let started = self.curl(&[
            "-X",
            "POST",
            &format!("http://{REGISTRY}/v2/os/test/blobs/uploads/"),
        ]);
        let place = started
            .lines()
            .find_map(|line| {
                line.to_lowercase()
                    .starts_with("location:")
                    .then(|| line[9..].trim().to_owned())
            })
            .unwrap();
        let digest = format!("sha256:{}", sha256(bytes));
        let separator = if place.contains('?') { '&' } else { '?' };
        let file = lab.file("blob", bytes);
        let kind = "Content-Type: application/octet-stream";
        let url = format!("{place}{separator}digest={digest}");
        self.curl(&[
            "-X",
            "PUT",
            "-H",
            kind,
            "--data-binary",
            &format!("@{file}"),
            &url,
        ]);
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Pushes a manifest or an index under a tag; its digest.
    fn manifest(
        &self,
        lab: &Lab,
        tag: &str,
        media_type: &str,
        value: &serde_json::Value,
    ) -> String {
        let bytes = serde_json::to_vec(value).unwrap();
        let file = lab.file("manifest", &bytes);
        let url = format!("http://{REGISTRY}/v2/os/test/manifests/{tag}");
        let kind = format!("Content-Type: {media_type}");
        self.curl(&[
            "-X",
            "PUT",
            "-H",
            &kind,
            "--data-binary",
            &format!("@{file}"),
            &url,
        ]);
        format!("sha256:{}", sha256(&bytes))
    }

    /// Flips a bit of a blob, in the registry's own folder.
    fn damage(&self, lab: &Lab, blob: &serde_json::Value) {
        let digest = blob["digest"].as_str().unwrap();
        let hex = digest.trim_start_matches("sha256:");
        let path = lab.path(&format!(
            "registry/docker/registry/v2/blobs/sha256/{}/{hex}/data",
            &hex[..2]
        ));
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }

    fn image(&self, lab: &Lab, tag: &str, layers: &[serde_json::Value]) -> String {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let config = self.blob(lab, b"{}", "application/vnd.oci.image.config.v1+json");
        let value = json!({
            "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers,
            "annotations": { "org.opencontainers.image.version": "12.9" },
        });
        self.manifest(lab, tag, kind, &value)
    }
}

#[test]
fn artefacts_container_disks_and_indexes_of_a_real_registry() {
    let lab = Lab::new("");
    let registry = Registry::start(&lab);
    let raw = disk(&lab, "raw", 8, &[]);
    let xz = made("xz", &["-0", "-c", lab.path("raw").to_str().unwrap()]);
    let layer = registry.blob(&lab, &xz, DISK);
    let digest = registry.image(&lab, "artefact", std::slice::from_ref(&layer));
    let oci = |reference: &str| format!("oci://{REGISTRY}/os/test{reference}");
    let args = ["--plain-http", "--os", "debian"];
    let image = lab.add("debian@tag", &oci(":artefact"), &args);
    assert_eq!(image["sha256"], sha256(&raw));
    assert_eq!(image["os_version"], "12.9");
    let same = lab.add("debian@digest", &oci(&format!("@{digest}")), &args);
    assert_eq!(same["id"], image["id"]);

    // The sealed data in the same registry is a mirror; the image as it was published is none.
    let out = lab.path("exported").to_str().unwrap().to_owned();
    let exported = lab.anneal(&["image", "export", "debian@tag", &out]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let data = std::fs::read(lab.path("exported/data.zst")).unwrap();
    registry.image(
        &lab,
        "sealed",
        &[registry.blob(&lab, &data, "application/zstd")],
    );
    let mirror = |tag: &str| {
        let url = format!("oci+http://{REGISTRY}/os/test:{tag}");
        lab.anneal(&["image", "mirror", "add", "debian@tag", &url])
    };
    let refused = mirror("artefact");
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
    let told = text(&refused.stderr);
    assert!(
        told.contains(&format!("no layer of {} bytes", data.len())),
        "{told}"
    );
    let added = mirror("sealed");
    assert!(added.status.success(), "{}", text(&added.stderr));
    let image = lab.get("images/debian@tag");
    let url = image["mirrors"][0].as_str().unwrap();
    assert_eq!(made("curl", &["-sSf", "-r", "7-4006", url]), data[7..4007]);

    // A disk in a layer, as KubeVirt has them: a tar with disk/ in it, here with a qcow2 image.
    std::fs::create_dir(lab.path("disk")).unwrap();
    let (from, to) = (lab.path("raw"), lab.path("disk/disk.img"));
    made(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            from.to_str().unwrap(),
            to.to_str().unwrap(),
        ],
    );
    let tar = made(
        "tar",
        &["-C", lab.dir.path().to_str().unwrap(), "-czf", "-", "disk"],
    );
    let boxed = registry.blob(&lab, &tar, TAR);
    let amd64 = registry.image(&lab, "box", std::slice::from_ref(&boxed));
    let boxed_image = lab.add("debian@box", &oci(":box"), &args);
    assert_eq!(boxed_image["id"], image["id"]);
    assert_eq!(lab.until_ingest(|_| true)["format"], "qcow2 in tar in gzip");

    // An index: the platform decides.
    let arm = registry.image(
        &lab,
        "arm",
        &[registry.blob(&lab, &vec![5; 4096], "application/vnd.example.raw")],
    );
    let kind = "application/vnd.oci.image.index.v1+json";
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let entry = |digest: &str, architecture: &str| json!({ "mediaType": manifest, "digest": digest, "size": 1, "platform": { "os": "linux", "architecture": architecture } });
    let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [entry(&amd64, "amd64"), entry(&arm, "arm64")] });
    registry.manifest(&lab, "index", kind, &index);
    assert_eq!(
        lab.add("debian@amd64", &oci(":index"), &args)["id"],
        image["id"]
    );
    let other = lab.add(
        "debian@arm64",
        &oci(":index"),
        &[&args[..], &["--platform", "linux/arm64"]].concat(),
    );
    assert_eq!(other["size"], 4096);
    let told = lab.add_fails(
        "debian@x",
        &oci(":index"),
        &[&args[..], &["--unproven", "--platform", "linux/riscv64"]].concat(),
    );
    assert!(told.contains("linux/arm64 (sha256:"), "{told}");

    // Two layers of one size: the operator decides.
    let second = registry.blob(&lab, &[&xz[..], &xz].concat(), DISK);
    registry.image(&lab, "two", &[layer.clone(), second]);
    let told = lab.add_fails(
        "debian@x",
        &oci(":two"),
        &[&args[..], &["--unproven"]].concat(),
    );
    assert!(
        told.contains("--layer") && told.contains(layer["digest"].as_str().unwrap()),
        "{told}"
    );
    let chosen = lab.add(
        "debian@two",
        &oci(":two"),
        &[&args[..], &["--layer", layer["digest"].as_str().unwrap()]].concat(),
    );
    assert_eq!(chosen["id"], image["id"]);

    let told = lab.add_fails(
        "debian@x",
        &oci(":nosuch"),
        &[&args[..], &["--unproven"]].concat(),
    );
    assert!(told.contains("no manifest nosuch"), "{told}");

    // Bytes that are not those of the digest: damaged in the registry's own folder.
    registry.damage(&lab, &layer);
    let before = lab.stored();
    lab.add_fails(
        "debian@bad",
        &oci(":artefact"),
        &[&args[..], &["--unproven"]].concat(),
    );
    assert_eq!(lab.stored(), before);
}

/// What `cosign sign --key` puts beside an image: an artefact whose layer is the statement that
/// was signed, with the signature as annotation.
fn cosign(registry: &Registry, lab: &Lab, secret: &str, digest: &str) {
    let statement = json!({
        "critical": {
            "identity": { "docker-reference": "registry.example.org/os" },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    let statement = serde_json::to_vec(&statement).unwrap();
    let file = lab.file("statement", &statement);
    let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
    let mut layer = registry.blob(lab, &statement, kind);
    layer["annotations"] =
        json!({ "dev.cosignproject.cosign/signature": cosign_sign(lab, secret, &file) });
    let tag = format!("{}.sig", digest.replace(':', "-"));
    registry.image(lab, &tag, &[layer]);
}

#[test]
fn a_cosign_signature_beside_an_image_proves_it() {
    let lab = Lab::new("");
    let registry = Registry::start(&lab);
    let raw = disk(&lab, "raw", 4, &[]);
    let layer = registry.blob(&lab, &raw, DISK);
    let digest = registry.image(&lab, "signed", std::slice::from_ref(&layer));
    let (secret, public) = cosign_keys(&lab, "publisher");
    let (thiefs, thiefs_public) = cosign_keys(&lab, "thief");
    let source = format!("oci://{REGISTRY}/os/test:signed");
    let args = |key| ["--plain-http", "--os", "debian", "--cosign-key", key];

    let told = lab.add_fails("x@1", &source, &args(&public));
    let tag = format!("{}.sig", digest.replace(':', "-"));
    assert!(
        told.contains("there is no ") && told.contains(&tag),
        "{told}"
    );
    // By somebody else, and about another image.
    cosign(&registry, &lab, &thiefs, &digest);
    let told = lab.add_fails("x@1", &source, &args(&public));
    assert!(told.contains("not by the key"), "{told}");
    assert_eq!(lab.stored(), [""; 0]);

    cosign(&registry, &lab, &secret, &digest);
    let image = lab.add_with("debian@signed", &source, &args(&public));
    assert_eq!(image["sha256"], sha256(&raw));
    assert_eq!(image["proof"]["method"], "cosign", "{image}");
    let detail = image["proof"]["detail"].as_str().unwrap();
    assert!(
        detail.contains(&digest) && detail.contains("registry.example.org/os"),
        "{detail}"
    );
    let told = lab.add_fails("x@1", &source, &args(&thiefs_public));
    assert!(told.contains("not by the key"), "{told}");

    // A signed manifest whose layer the registry exchanged.
    registry.damage(&lab, &layer);
    let before = lab.stored();
    let told = lab.add_fails("x@1", &source, &args(&public));
    assert!(
        told.contains("other bytes") || told.contains("proof"),
        "{told}"
    );
    assert_eq!(lab.stored(), before);
}
