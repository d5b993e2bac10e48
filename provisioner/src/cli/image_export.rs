//! `anneal image export`: an image out of the store, verified on its way by the manifest's
//! signature and the digest of every frame. What is not verified gets no name.

use std::io::{Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anneal_image::{Manifest, PublicKey, SignedManifest, decode_frame};
use anneal_protocol::api::{ImageKeyView, ImageView};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Response;
use tempfile::NamedTempFile;

use super::client::Client;

/// Holes in a sparse file are whole multiples of this.
const HOLE: usize = 64 << 10;

/// `anneal image export …`
#[derive(Debug, Args)]
pub struct Export {
    /// `name@version`.
    name: String,
    /// Folder for data.zst and manifest.json; with --raw a file, or `-` for standard output.
    target: PathBuf,
    /// Write the disk itself instead, with holes where it is zero.
    #[arg(long)]
    raw: bool,
}

/// Where the data goes.
enum Sink {
    /// As it is stored.
    Packed(NamedTempFile),
    /// The disk, with holes.
    Sparse(NamedTempFile),
    /// The disk, every byte.
    Stream(Box<dyn Write>),
}

/// Carries out `anneal image export`.
///
/// # Errors
/// When the image is unknown, what comes is not the image, or the target cannot be written.
pub async fn export(client: &Client, arguments: Export) -> anyhow::Result<()> {
    let Export { name, target, raw } = arguments;
    let image: ImageView = client.get(&["images", &name], &[]).await?;
    let keys: Vec<ImageKeyView> = client.list(&["image-keys"], &[], usize::MAX).await?;
    let keys = keys
        .iter()
        .map(|key| PublicKey::from_hex(&key.key))
        .collect::<Result<Vec<_>, _>>()?;
    let response = client.open(&["images", &name, "manifest"]).await?;
    let json = all(response, anneal_image::MAX_MANIFEST_BYTES).await?;
    let manifest = SignedManifest::open(&json, &keys, &image.id)
        .with_context(|| format!("checking the manifest of {name}"))?;

    let to_stdout = raw && target == Path::new("-");
    let mut sink = match (raw, to_stdout) {
        (true, true) => Sink::Stream(Box::new(std::io::stdout().lock())),
        (true, false) => Sink::Sparse(beside(&target)?),
        (false, _) => {
            std::fs::create_dir_all(&target)
                .with_context(|| format!("creating {}", target.display()))?;
            for name in ["data.zst", "manifest.json"] {
                refuse_existing(&target.join(name))?;
            }
            Sink::Packed(beside(&target.join("data.zst"))?)
        }
    };
    let data = client.open(&["images", &name, "data"]).await?;
    transfer(&manifest, data, &mut sink)
        .await
        .with_context(|| format!("exporting {name}"))?;
    match sink {
        Sink::Stream(mut stream) => stream.flush().context("writing standard output"),
        Sink::Sparse(file) => keep(file, &target),
        Sink::Packed(file) => {
            let mut text = beside(&target.join("manifest.json"))?;
            text.write_all(&json).context("writing manifest.json")?;
            keep(file, &target.join("data.zst"))?;
            keep(text, &target.join("manifest.json"))
        }
    }
}

/// A file that gets its name only when it is complete.
fn beside(target: &Path) -> anyhow::Result<NamedTempFile> {
    refuse_existing(target)?;
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    NamedTempFile::with_prefix_in(".anneal-export-", folder)
        .with_context(|| format!("creating a file in {}", folder.display()))
}

fn refuse_existing(target: &Path) -> anyhow::Result<()> {
    ensure!(
        target.symlink_metadata().is_err(),
        "{} exists: remove it or name another target",
        target.display()
    );
    Ok(())
}

fn keep(file: NamedTempFile, target: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let writing = || format!("writing {}", target.display());
    // Temporary files are private; an exported image is as public as any file.
    let permissions = std::fs::Permissions::from_mode(0o644);
    file.as_file()
        .set_permissions(permissions)
        .and_then(|()| file.as_file().sync_all())
        .with_context(writing)?;
    file.persist_noclobber(target)
        .map(drop)
        .map_err(|error| error.error)
        .with_context(writing)
}

async fn all(mut response: Response, most: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.context("reading the answer")? {
        ensure!(
            (bytes.len() + chunk.len()) as u64 <= most,
            "the daemon sends more than {most} bytes"
        );
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Bytes of a response, in pieces of the length asked for.
struct Pieces {
    response: Response,
    buffer: Vec<u8>,
}

impl Pieces {
    /// The next `length` bytes.
    async fn next(&mut self, length: usize) -> anyhow::Result<Vec<u8>> {
        while self.buffer.len() < length {
            match self.response.chunk().await.context("reading the data")? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => bail!("the data ends early"),
            }
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    async fn expect_end(mut self) -> anyhow::Result<()> {
        let more = self.response.chunk().await.context("reading the data")?;
        ensure!(
            self.buffer.is_empty() && more.is_none_or(|chunk| chunk.is_empty()),
            "the data goes on after its end"
        );
        Ok(())
    }
}

async fn transfer(manifest: &Manifest, data: Response, sink: &mut Sink) -> anyhow::Result<()> {
    let bar = ProgressBar::new(manifest.file_size());
    bar.set_style(ProgressStyle::with_template(
        "exporting [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )?);
    let mut data = Pieces {
        response: data,
        buffer: Vec::new(),
    };
    let mut raw = Vec::new();
    for (index, frame) in manifest.frames().iter().enumerate() {
        let encoded = data.next(frame.length as usize).await?;
        decode_frame(manifest, index, &encoded, &mut raw)?;
        sink.frame(&encoded, &raw).context("writing")?;
        bar.inc(encoded.len() as u64);
    }
    let table = manifest.seek_table();
    let came = data.next(table.len()).await?;
    ensure!(came == table, "the data does not end with its seek table");
    data.expect_end().await?;
    bar.finish_and_clear();
    sink.finish(&table, manifest.size()).context("writing")
}

impl Sink {
    fn frame(&mut self, encoded: &[u8], raw: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Packed(file) => file.write_all(encoded),
            Self::Stream(stream) => stream.write_all(raw),
            Self::Sparse(file) => {
                for part in raw.chunks(HOLE) {
                    if part.iter().all(|&byte| byte == 0) {
                        file.seek(SeekFrom::Current(part.len() as i64))?;
                    } else {
                        file.write_all(part)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn finish(&mut self, table: &[u8], size: u64) -> std::io::Result<()> {
        match self {
            Self::Packed(file) => file.write_all(table),
            Self::Stream(_) => Ok(()),
            Self::Sparse(file) => file.as_file().set_len(size),
        }
    }
}

#[cfg(test)]
mod tests;
