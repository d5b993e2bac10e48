//! Who serves and who writes: daemons on the server's side, command lines on the client's.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::image::Image;
use super::world::{SERVER, SERVER_LINK, World};
use crate::sim::process::Process;
use crate::sim::tool;
use crate::sim::wait::wait_for;

const NGINX_PORT: u16 = 80;
const IMAGE_PORT: u16 = 8081;
const READY: Duration = Duration::from_secs(60);

/// nginx, as its documentation sets it up for large files.
#[derive(Debug)]
pub struct Nginx(Process);

/// `anneal serve` with the image in its store.
#[derive(Debug)]
pub struct Anneal {
    process: Process,
    /// The sealed image: `data.zst`, `manifest.json`.
    pub folder: PathBuf,
    /// Hex digits of its id.
    pub hex: String,
    /// Public key of its signature, hex.
    pub key: String,
}

impl Nginx {
    /// Starts it on `root`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(world: &World, root: &Path) -> anyhow::Result<Self> {
        let dir = world.work.join("nginx");
        std::fs::create_dir_all(&dir)?;
        let conf = dir.join("nginx.conf");
        let at = dir.display();
        std::fs::write(
            &conf,
            format!(
                "daemon off; user root; worker_processes auto; pid {at}/pid; error_log {at}/error.log;\n\
                 events {{ worker_connections 1024; }}\n\
                 http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
                 server {{ listen {SERVER}:{NGINX_PORT}; root {}; }} }}\n",
                root.display()
            ),
        )?;
        let mut command = world.on_server(&tool::find("nginx")?)?;
        command.arg("-p").arg(&dir).arg("-c").arg(&conf);
        let mut process = Process::start("nginx", command, &dir.join("log"))?;
        wait_for_port(&mut process, Self::address())?;
        Ok(Self(process))
    }

    /// Where it listens.
    #[must_use]
    pub fn address() -> SocketAddr {
        (SERVER, NGINX_PORT).into()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Anneal {
    /// Starts the daemon and adds the image.
    ///
    /// # Errors
    /// When it does not come up, or refuses the image.
    pub fn start(world: &World, program: &Path, image: &Image) -> anyhow::Result<Self> {
        let state = world.work.join("state");
        let netboot = world.work.join("netboot");
        std::fs::create_dir_all(&netboot)?;
        // Nothing boots here.
        for name in [
            "undionly.kpxe",
            "snponly.efi",
            "ipxe.efi",
            "ipxe-arm64.efi",
            "vmlinuz",
            "initramfs.img",
        ] {
            std::fs::write(netboot.join(name), name)?;
        }
        let mut command = world.on_server(program)?;
        command
            .args([
                "serve",
                "--interface",
                SERVER_LINK,
                "--no-dhcp",
                "--no-tftp",
            ])
            .args(["--log-level", "warn", "--state-dir"])
            .arg(&state)
            .arg("--netboot-dir")
            .arg(&netboot);
        let mut process = Process::start("anneal serve", command, &world.work.join("anneal.log"))?;
        wait_for_port(&mut process, Self::address())?;
        wait_for_port(&mut process, (SERVER, 8443).into())?;
        let disk = image.file("disk.raw").to_string_lossy().into_owned();
        let context = state.join("admin.context.json");
        let cli = |args: &[&str]| {
            let mut command = std::process::Command::new(program);
            tool::run(command.env("ANNEAL_CONTEXT", &context).args(args))
        };
        let digest = tool::run(tool::command("sha256sum")?.arg(&disk))?.stdout;
        let digest = String::from_utf8_lossy(&digest);
        cli(&[
            "image",
            "add",
            "bench@1",
            &disk,
            "--os",
            "debian",
            "--sha256",
            digest.split(' ').next().unwrap_or_default(),
        ])?;
        let shown = cli(&["image", "show", "bench@1", "-o", "json"])?.stdout;
        let shown: serde_json::Value = serde_json::from_slice(&shown)?;
        let id = shown["id"].as_str().context("an image has an id")?;
        let hex = id.trim_start_matches("blake3:").to_owned();
        Ok(Self {
            folder: state.join("images").join(&hex),
            key: public_key(&state.join("image-key.pem"))?,
            process,
            hex,
        })
    }

    /// Where its image port listens.
    #[must_use]
    pub fn address() -> SocketAddr {
        (SERVER, IMAGE_PORT).into()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Path of the image's data on the image port.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/images/{}/data.zst", self.hex)
    }

    /// The agent's command line for a device; `more` are further options.
    ///
    /// # Errors
    /// When the agent is missing.
    pub fn agent(&self, agent: &Path, device: &Path, more: &str) -> anyhow::Result<String> {
        let executable = std::fs::metadata(agent).is_ok_and(|m| m.permissions().mode() & 1 != 0);
        anyhow::ensure!(
            executable,
            "{} is missing: run `make bench`",
            agent.display()
        );
        Ok(format!(
            "{} write --manifest {} --key {} --source http://{}{} --disk {} {more}",
            agent.display(),
            self.folder.join("manifest.json").display(),
            self.key,
            Self::address(),
            self.path(),
            device.display()
        ))
    }
}

/// The raw public key of a private one: the last 32 bytes of its DER form (RFC 8410).
fn public_key(private: &Path) -> anyhow::Result<String> {
    let mut openssl = tool::command("openssl")?;
    openssl
        .args(["pkey", "-pubout", "-outform", "DER", "-in"])
        .arg(private);
    let der = tool::run(&mut openssl)?.stdout;
    let raw = der.len().checked_sub(32).and_then(|from| der.get(from..));
    Ok(hex::encode(raw.context("openssl gives a key")?))
}

fn wait_for_port(process: &mut Process, address: SocketAddr) -> anyhow::Result<()> {
    wait_for(READY, &format!("{address} to be served"), || {
        process.ensure_running()?;
        Ok(std::net::TcpStream::connect(address).ok())
    })
    .map(drop)
}
