//! Images as they are published: qcow2 and xz, signed with cosign and OpenPGP. They become the
//! same bytes on a disk, and a machine gets them from mirrors that are not the daemon: a web server
//! and a registry.

use std::path::Path;
use std::process::Command;

use anneal_protocol::agent::StreamResult;
use anneal_protocol::api::ProvisionRequest;
use anneal_tests::sim::net;
use anneal_tests::sim::process::Process;
use anneal_tests::sim::tool;
use anneal_tests::sim::wait::wait_for;
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::bench::{Bench, MACHINE, SHORT, step_named};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "a_signed_qcow2_and_a_signed_xz_are_the_same_disk_and_come_from_mirrors",
    published,
)];

/// Keys of the publisher; a scenario has a `/run` of its own.
const GNUPG: &str = "/run/anneal-gnupg";
/// Where the mirrors listen: on the wire, not the daemon.
const MIRROR: &str = "10.77.0.2";
const NGINX: &str = "http://10.77.0.2:8090/data.zst";
const REGISTRY: &str = "10.77.0.2:5000";

fn run(program: &str, args: &[&str], dir: &Path) -> anyhow::Result<Vec<u8>> {
    let mut command = tool::command(program)?;
    command.args(args).current_dir(dir);
    // GnuPG keeps its keys there, and its agent's socket, whose path must be short.
    command.env("GNUPGHOME", GNUPG);
    Ok(tool::run(&mut command)?.stdout)
}

/// The raw disk as an xz file with a detached OpenPGP signature: `disk.xz`, its `.sig`, `pgp.key`.
fn sign_with_openpgp(dir: &Path, raw: &Path) -> anyhow::Result<()> {
    let home = Path::new(GNUPG);
    std::fs::create_dir_all(home)?;
    std::fs::set_permissions(home, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let raw = raw.to_string_lossy();
    std::fs::write(dir.join("disk.xz"), run("xz", &["-0", "-c", &raw], dir)?)?;
    let quiet = [
        "--batch",
        "--quiet",
        "--pinentry-mode",
        "loopback",
        "--passphrase",
        "",
    ];
    let gpg = |args: &[&str]| run("gpg", &[&quiet, args].concat(), dir);
    gpg(&[
        "--quick-gen-key",
        "Publisher <p@example.org>",
        "ed25519",
        "sign",
        "never",
    ])?;
    gpg(&["--output", "disk.xz.sig", "--detach-sign", "disk.xz"])?;
    std::fs::write(dir.join("pgp.key"), gpg(&["--armor", "--export"])?)?;
    run("gpgconf", &["--kill", "all"], dir).map(drop)
}

/// The raw disk as qcow2 with a signature as `cosign sign-blob --key` makes it: the ECDSA
/// signature of the file's SHA-256, base64.
fn sign_like_cosign(dir: &Path, raw: &Path) -> anyhow::Result<()> {
    let raw = raw.to_string_lossy();
    let convert = [
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        &raw,
        "disk.qcow2",
    ];
    run("qemu-img", &convert, dir)?;
    let key = "ecparam -genkey -name prime256v1 -noout -out cosign.key";
    run("openssl", &key.split(' ').collect::<Vec<_>>(), dir)?;
    run(
        "openssl",
        &["ec", "-in", "cosign.key", "-pubout", "-out", "cosign.pub"],
        dir,
    )?;
    let sign = [
        "dgst",
        "-sha256",
        "-sign",
        "cosign.key",
        "-out",
        "signature",
        "disk.qcow2",
    ];
    run("openssl", &sign, dir)?;
    let text = run("base64", &["-w0", "signature"], dir)?;
    Ok(std::fs::write(dir.join("disk.qcow2.sig"), text)?)
}

fn published(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 32)?;
    let raw = work.join("tiny.raw");
    sign_with_openpgp(work, &raw)?;
    sign_like_cosign(work, &raw)?;
    let path = |name: &str| work.join(name).to_string_lossy().into_owned();
    let add = |reference: &str, file: &str, key: &str, flag: &str| {
        let (image, signature, key) = (path(file), path(&format!("{file}.sig")), path(key));
        let words = ["image", "add", reference, &image, "--os", "debian"];
        bench
            .daemon
            .anneal(&[&words[..], &["--signature", &signature, flag, &key]].concat())
    };
    add("tiny@xz", "disk.xz", "pgp.key", "--key")?;
    add("tiny@qcow2", "disk.qcow2", "cosign.pub", "--cosign-key")?;
    // The other signature is not good for it, and nothing is left of the try.
    std::fs::copy(work.join("disk.xz.sig"), work.join("disk.qcow2.sig"))?;
    anyhow::ensure!(
        add("tiny@forged", "disk.qcow2", "pgp.key", "--key").is_err(),
        "an image was added with the signature of another"
    );
    let list = bench.daemon.anneal(&["-o", "json", "image", "list"])?;
    let list: Vec<serde_json::Value> = serde_json::from_str(&list)?;
    let methods: Vec<_> = ["tiny@xz", "tiny@qcow2"]
        .iter()
        .map(|name| list.iter().find(|image| image["name"] == *name))
        .map(|image| image.map(|image| image["proof"]["method"].to_string()))
        .collect();
    let expected = ["\"openpgp\"", "\"cosign\""].map(|word| Some(word.to_owned()));
    anyhow::ensure!(methods == expected && list.len() == 3, "{list:?}");

    let dir = work.join("mirror");
    let words = ["image", "export", "tiny@qcow2", &dir.to_string_lossy()];
    bench.daemon.anneal(&words)?;
    let address = format!("{MIRROR}/24");
    tool::run(tool::command("ip")?.args(["address", "add", &address, "dev", net::BRIDGE]))?;
    let _nginx = nginx(work, &dir)?;
    let _registry = registry(work, &dir)?;
    for url in [NGINX.to_owned(), format!("oci+http://{REGISTRY}/os:tiny")] {
        bench
            .daemon
            .anneal(&["image", "mirror", "add", "tiny@qcow2", &url])?;
    }
    let request = ProvisionRequest {
        workflow: Some("write-only".to_owned()),
        image: Some("tiny@qcow2".to_owned()),
        plan: false,
    };
    let id = bench.api.provision(MACHINE, &request)?.id;
    bench.power_on()?;
    let view = bench.expect_success(&id)?;
    let output = step_named(&view, "write the image")?.output.clone();
    let result: StreamResult = serde_json::from_value(output.unwrap_or_default())?;
    let mut from_mirrors = 0;
    for mirror in [NGINX, REGISTRY] {
        let mut sources = result.sources.iter();
        let source = sources.find(|source| source.url.contains(mirror));
        let source = source.with_context(|| format!("{mirror} is no source: {result:?}"))?;
        anyhow::ensure!(source.bytes > 0, "{mirror} sent nothing: {result:?}");
        from_mirrors += source.bytes;
    }
    anyhow::ensure!(from_mirrors == result.transferred, "{:?}", result.sources);
    Ok(())
}

/// nginx with the exported data.
fn nginx(work: &Path, dir: &Path) -> anyhow::Result<Process> {
    let shown = dir.display();
    let config = format!(
        "daemon off; pid {shown}/nginx.pid; error_log {shown}/error.log;\nuser root;\nevents {{}}\n\
         http {{ access_log {shown}/access.log; client_body_temp_path {shown}/body; proxy_temp_path {shown}/proxy; \
         fastcgi_temp_path {shown}/fastcgi; uwsgi_temp_path {shown}/uwsgi; scgi_temp_path {shown}/scgi;\n\
         server {{ listen {MIRROR}:8090; root {shown}; }} }}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config)?;
    let mut nginx = tool::command("nginx")?;
    nginx.arg("-c").arg(&file);
    started("nginx", nginx, work, NGINX)
}

/// Debian's registry, with the exported data as the layer of `os:tiny`.
fn registry(work: &Path, dir: &Path) -> anyhow::Result<Process> {
    let store = dir.join("registry");
    let config = format!(
        "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: {REGISTRY} }}\n",
        store.display()
    );
    let file = dir.join("registry.yml");
    std::fs::write(&file, config)?;
    let mut command = tool::command("docker-registry")?;
    command.arg("serve").arg(&file);
    let base = format!("http://{REGISTRY}/v2/");
    let process = started("docker-registry", command, work, &base)?;
    let layer = push(dir, "data.zst")?;
    std::fs::write(dir.join("config"), "{}")?;
    let config = push(dir, "config")?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer],
    });
    std::fs::write(dir.join("manifest"), manifest.to_string())?;
    let kind = format!("Content-Type: {kind}");
    let url = format!("{base}os/manifests/tiny");
    let put = ["-sSf", "-X", "PUT", "-H", &kind, "-T", "manifest", &url];
    run("curl", &put, dir)?;
    Ok(process)
}

/// Pushes a file as a blob of `os`; its descriptor.
fn push(dir: &Path, file: &str) -> anyhow::Result<serde_json::Value> {
    let uploads = format!("http://{REGISTRY}/v2/os/blobs/uploads/");
    let begin = ["-sSf", "-X", "POST", "-o", "/dev/null", "-D", "-"];
    let head = String::from_utf8(run("curl", &[&begin[..], &[&uploads]].concat(), dir)?)?;
    let place = head
        .lines()
        .find_map(|line| {
            line.split_once(": ")
                .filter(|(name, _)| name.eq_ignore_ascii_case("location"))
        })
        .map(|(_, value)| value.trim())
        .with_context(|| format!("the registry names no place for the upload: {head}"))?;
    let bytes = std::fs::read(dir.join(file))?;
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    let url = format!("{place}&digest={digest}");
    let kind = "Content-Type: application/octet-stream";
    run("curl", &["-sSf", "-H", kind, "-T", file, &url], dir)?;
    Ok(serde_json::json!({
        "mediaType": "application/zstd", "digest": digest, "size": bytes.len(),
    }))
}

/// Starts a server, and waits until it answers at `url`.
fn started(name: &str, command: Command, work: &Path, url: &str) -> anyhow::Result<Process> {
    let process = Process::start(name, command, &work.join(format!("{name}.log")))?;
    wait_for(SHORT, &format!("{name} to answer"), || {
        let mut curl = Command::new("curl");
        let done = curl.args(["-sfI", url]).output()?.status.success();
        Ok(done.then_some(()))
    })?;
    Ok(process)
}
