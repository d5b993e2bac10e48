//! Images from Debian's `docker-registry`.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::lab::{Lab, disk, made, sha256, text, until};

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
    let hex = layer["digest"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    let blob = lab.path(&format!(
        "registry/docker/registry/v2/blobs/sha256/{}/{hex}/data",
        &hex[..2]
    ));
    let mut bytes = std::fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last / 2] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let before = lab.stored();
    lab.add_fails(
        "debian@bad",
        &oci(":artefact"),
        &[&args[..], &["--unproven"]].concat(),
    );
    assert_eq!(lab.stored(), before);
}
