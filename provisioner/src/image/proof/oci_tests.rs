//! Signatures beside an image in a real registry (Debian's docker-registry), made as cosign makes
//! them, with openssl's keys: the artefact and the statement are plain, there is no tool to need.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use anneal_protocol::api::ProofRequest;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::OciManifest;

use super::super::cosign::tests::{P256, key_pair, sign};
use super::super::testing::{Publisher, policy, tool};
use super::super::{Checker, Published};
use super::*;

const LAYER: &[u8] = b"the bytes of a disk";

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn statement(digest: &str, kind: &str) -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"example.org/os"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{kind}"}},"optional":null}}"#
    )
}

const KIND: &str = "cosign container image signature";

#[test]
fn a_statement_must_be_about_this_image() {
    let publisher = Publisher::new();
    let pem = key_pair(&publisher, "a", P256);
    let key = cosign::Key::parse(&pem).unwrap();
    let told = |payload: &str, digest: &str| {
        publisher.write("payload", payload);
        let signature = sign(&publisher, "a", "payload", P256);
        judge(payload.as_bytes(), &signature, digest, &key)
    };
    let (mine, other) = (digest_of(b"mine"), digest_of(b"other"));
    let good = statement(&mine, KIND);
    assert_eq!(
        told(&good, &mine).unwrap().as_deref(),
        Some("example.org/os")
    );
    let text = told(&good, &other).unwrap_err();
    assert!(text.contains(&mine) && text.contains("expected"), "{text}");
    let text = told(&statement(&mine, "something else"), &mine).unwrap_err();
    assert!(text.contains("something else"), "{text}");
    let text = told("{}", &mine).unwrap_err();
    assert!(text.contains("not about an image"), "{text}");
    let text = judge(good.as_bytes(), "MEUC", &mine, &key).unwrap_err();
    assert!(text.contains("not by the key"), "{text}");
    assert!(tag("sha256:abc").is_err() && tag("sha512:00").is_err());
}

/// A registry on the loopback, in a folder of its own; ends with the test, and with this process.
struct Registry {
    child: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn start(publisher: &Publisher) -> Self {
        let store = publisher.path("registry");
        publisher.write(
            "registry.yml",
            format!(
                "version: 0.1\nlog: {{ level: info, formatter: text }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: 127.0.0.1:0 }}\n",
                store.display()
            ),
        );
        // setpriv: the registry ends when this process does, killed or not.
        let mut child = tool("setpriv", publisher.dir.path())
            .args([
                "--pdeathsig",
                "KILL",
                "docker-registry",
                "serve",
                "registry.yml",
            ])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines.by_ref().find_map(|line| {
            let line = line.unwrap();
            let (_, rest) = line.split_once("listening on ")?;
            Some(
                rest.split(['"', ' ', ','])
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            )
        });
        // Read on, or the registry stops at a full pipe; ends with it.
        std::thread::spawn(move || lines.for_each(drop));
        let address = address.expect("docker-registry says where it listens");
        Self { child, address }
    }

    async fn push(
        &self,
        client: &Client,
        tag: &str,
        manifest: OciImageManifest,
        blobs: &[&[u8]],
    ) -> String {
        let reference = self.reference(tag);
        client
            .store_auth_if_needed(&self.address, &RegistryAuth::Anonymous)
            .await;
        for blob in blobs {
            client
                .push_blob(&reference, blob.to_vec(), &digest_of(blob))
                .await
                .unwrap();
        }
        let manifest = OciManifest::Image(manifest);
        client.push_manifest(&reference, &manifest).await.unwrap();
        client
            .fetch_manifest_digest(&reference, &RegistryAuth::Anonymous)
            .await
            .unwrap()
    }

    fn reference(&self, tag: &str) -> Reference {
        Reference::with_tag(self.address.clone(), "os".to_owned(), tag.to_owned())
    }
}

fn manifest(layers: Vec<OciDescriptor>) -> OciImageManifest {
    OciImageManifest {
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        config: descriptor("application/vnd.oci.image.config.v1+json", b"{}"),
        layers,
        ..OciImageManifest::default()
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> OciDescriptor {
    OciDescriptor {
        media_type: kind.to_owned(),
        digest: digest_of(bytes),
        size: i64::try_from(bytes.len()).unwrap(),
        ..OciDescriptor::default()
    }
}

#[tokio::test]
async fn a_signature_in_a_registry_covers_the_layer_through_the_manifest() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let publisher = Publisher::new();
    let registry = Registry::start(&publisher);
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    });
    let layer = descriptor("application/octet-stream", LAYER);
    let digest = registry
        .push(&client, "1", manifest(vec![layer]), &[LAYER, b"{}"])
        .await;
    let reference = registry.reference("1");
    let pem = key_pair(&publisher, "a", P256);
    let check = async |pem: &str, bytes: &[u8]| {
        let request = ProofRequest::Cosign {
            signature: None,
            key: pem.to_owned(),
            source: None,
        };
        let published = Published {
            oci: Some(OciImage {
                client: &client,
                auth: &RegistryAuth::Anonymous,
                reference: &reference,
                digests: vec![digest.clone()],
                layer: digest_of(LAYER),
            }),
        };
        let policy = policy(publisher.dir.path(), &[]);
        let mut checker = Checker::new(&request, &policy, &published).await?;
        checker.update(bytes);
        checker.finish()
    };
    let told = check(&pem, LAYER).await.unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");
    assert!(told.to_string().contains("there is no "), "{told}");

    let payload = statement(&digest, KIND);
    publisher.write("payload", &payload);
    let mut signed = descriptor(
        "application/vnd.dev.cosign.simplesigning.v1+json",
        payload.as_bytes(),
    );
    let signature = sign(&publisher, "a", "payload", P256);
    signed.annotations = Some(BTreeMap::from([(SIGNATURE.to_owned(), signature)]));
    let tag = tag(&digest).unwrap();
    registry
        .push(
            &client,
            &tag,
            manifest(vec![signed]),
            &[payload.as_bytes(), b"{}"],
        )
        .await;
    let proof = check(&pem, LAYER).await.unwrap();
    assert_eq!(proof.method, ProofMethod::Cosign);
    assert!(proof.signer.unwrap().starts_with("sha256:"));
    assert!(proof.detail.unwrap().contains("signed as example.org/os"));
    let told = check(&pem, b"other bytes").await.unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");
    let other = key_pair(&publisher, "b", P256);
    let told = check(&other, LAYER).await.unwrap_err();
    assert!(told.to_string().contains("not by the key"), "{told}");
}
