//! The image that is measured with, and the forms the peers want it in. Kept in `.cache/bench`.
//!
//! The demo's Debian, its disk grown, and in the room so gained a file system with files of this host's
//! `/usr`, until the disk is 60 % full: programs and libraries compress as those of any
//! system do. Which files is decided by their names alone, so one host makes one image.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::sim::tool;

/// How full the disk is, in percent.
const FULL: u64 = 60;

/// The raw disk and what was made of it.
#[derive(Debug, Clone)]
pub struct Image {
    /// Folder of all of it: what nginx serves.
    pub dir: PathBuf,
    /// Bytes of the raw disk.
    pub size: u64,
}

impl Image {
    /// Makes what is missing.
    ///
    /// # Errors
    /// When a program is missing or there is no room.
    pub fn prepare(dir: &Path, debian: &Path, size: u64) -> anyhow::Result<Self> {
        let dir = dir.join(format!("{}M", size >> 20));
        let key = key(debian, size)?;
        let mark = dir.join("made-from");
        let image = Self { dir, size };
        if std::fs::read_to_string(&mark).is_ok_and(|made| made == key) {
            return Ok(image);
        }
        if image.dir.exists() {
            std::fs::remove_dir_all(&image.dir)?;
        }
        std::fs::create_dir_all(&image.dir)?;
        println!("making the image in {}, once", image.dir.display());
        image.make_disk(debian)?;
        image.make_forms()?;
        std::fs::write(mark, key)?;
        Ok(image)
    }

    /// One of its files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn make_disk(&self, debian: &Path) -> anyhow::Result<()> {
        let disk = self.file("disk.raw");
        let shell = |script: String| sh(&self.dir, &script);
        shell(format!(
            "cp --sparse=always '{}' disk.raw && truncate -s {} disk.raw",
            debian.display(),
            self.size
        ))?;
        let guid = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        shell(format!(
            "sgdisk -e disk.raw && sgdisk -n 0:0:0 -t 0:{guid} -u 0:5d1f0b0e-0000-4000-8000-000000000001 -c 0:bench disk.raw"
        ))?;
        let json = tool::run(tool::command("sfdisk")?.arg("--json").arg(&disk))?.stdout;
        let table: serde_json::Value = serde_json::from_slice(&json)?;
        let last = table["partitiontable"]["partitions"]
            .as_array()
            .and_then(|partitions| partitions.last())
            .context("sfdisk tells no partitions")?;
        let sectors = |name: &str| last[name].as_u64().context("sfdisk tells no numbers");
        let (start, length) = (sectors("start")? * 512, sectors("size")? * 512);
        let used = std::fs::metadata(debian)?.blocks() * 512;
        let wanted = (self.size * FULL / 100)
            .saturating_sub(used)
            .min(length / 10 * 9);
        let tree = self.dir.join("tree");
        copy_files(Path::new("/usr"), &tree, wanted)?;
        shell(format!(
            "truncate -s {length} fs && E2FSPROGS_FAKE_TIME=1 mke2fs -q -F -t ext4 \
             -U 5d1f0b0e-0000-4000-8000-000000000002 -E hash_seed=5d1f0b0e-0000-4000-8000-000000000003,lazy_itable_init=0 \
             -O ^has_journal -m 0 -d tree fs && \
             dd if=fs of=disk.raw bs=1M oflag=seek_bytes seek={start} conv=notrunc,sparse status=none && rm -rf tree fs"
        ))
    }

    fn make_forms(&self) -> anyhow::Result<()> {
        for script in [
            "gzip -6 -k -c disk.raw > disk.raw.gz",
            "qemu-img convert -O qcow2 -c -o compression_type=zstd disk.raw disk.qcow2",
            "bmaptool create -o disk.bmap disk.raw",
            "mkdir castr && casync make --store=castr disk.caibx disk.raw",
        ] {
            println!("  {script}");
            sh(&self.dir, script)?;
        }
        Ok(())
    }
}

/// Runs a script in a folder.
fn sh(dir: &Path, script: &str) -> anyhow::Result<()> {
    let mut bash = tool::command("bash")?;
    bash.args(["-e", "-o", "pipefail", "-c", script])
        .current_dir(dir);
    bash.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    tool::run(&mut bash).map(drop)
}

/// What decides how the image comes out, as far as one host can tell it.
fn key(debian: &Path, size: u64) -> anyhow::Result<String> {
    let digest = std::fs::read_to_string(debian.with_extension("raw.key")).unwrap_or_default();
    let length = std::fs::metadata(debian)
        .with_context(|| format!("{} is missing: run `make image`", debian.display()))?
        .len();
    Ok(format!("2 {size} {length} {}", digest.trim()))
}

/// Copies regular files in the order of their paths until they have `wanted` bytes.
fn copy_files(from: &Path, to: &Path, wanted: u64) -> anyhow::Result<()> {
    let mut left = wanted;
    let mut folders = vec![from.to_owned()];
    std::fs::create_dir_all(to)?;
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
        // The stack gives the last one first.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
        for entry in entries {
            let kind = entry.file_type()?;
            let path = entry.path();
            if kind.is_dir() && path != Path::new("/usr/local") {
                folders.push(path);
            } else if kind.is_file() {
                let length = entry.metadata()?.len();
                if length > left {
                    continue;
                }
                left -= length;
                let target = to.join(path.strip_prefix(from)?);
                let parent = target.parent().context("a file has a folder")?;
                std::fs::create_dir_all(parent)?;
                std::fs::copy(&path, &target)
                    .with_context(|| format!("copying {}", path.display()))?;
            }
        }
        if left < 4096 {
            break;
        }
    }
    anyhow::ensure!(
        left < wanted / 4,
        "{} has too few files for a disk that is {FULL} % full",
        from.display()
    );
    Ok(())
}
