//! Where things are in the source tree, and where a rack keeps its files.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// What `make` has put where.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The source tree.
    pub root: PathBuf,
    /// The daemon and CLI.
    pub anneal: PathBuf,
    /// Boot files, kernel and initramfs.
    pub netboot: PathBuf,
    /// The Debian image, raw.
    pub image: PathBuf,
    /// Debian's systemd-boot, unpacked.
    pub systemd_boot: PathBuf,
    /// Python environment with sushy-tools.
    pub venv: PathBuf,
}

impl Paths {
    /// Finds them from where this program is.
    ///
    /// # Errors
    /// When this program is not in a cargo target directory.
    pub fn find() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the package has no parent directory")?;
        let own = std::env::current_exe()?;
        let mut bin = own.parent().context("this program has no directory")?;
        if bin.ends_with("deps") {
            bin = bin.parent().context("target directory")?;
        }
        let cache = root.join(".cache");
        Ok(Self {
            anneal: bin.join("anneal"),
            netboot: cache.join("netboot"),
            image: cache.join("debian.raw"),
            systemd_boot: cache.join("systemd-boot"),
            venv: cache.join("venv"),
            root: root.to_owned(),
        })
    }

    /// Refuses early when something is not there.
    ///
    /// # Errors
    /// Names the file and the target of make that produces it.
    pub fn ensure(&self, wanted: &[(&Path, &str)]) -> anyhow::Result<()> {
        for (path, target) in wanted {
            anyhow::ensure!(
                path.exists(),
                "{} is missing: run `make {target}`",
                path.display()
            );
        }
        Ok(())
    }

    /// Makes the working directory of a new rack, named after this process, and removes those of processes
    /// that are gone.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new_work(&self, kind: &str) -> anyhow::Result<PathBuf> {
        let parent = self.root.join(".cache").join(kind);
        std::fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
        for entry in std::fs::read_dir(&parent)? {
            let entry = entry?;
            let name = entry.file_name();
            let alive = Path::new("/proc").join(&name).exists();
            if !alive {
                std::fs::remove_dir_all(entry.path())
                    .with_context(|| format!("removing {}", entry.path().display()))?;
            }
        }
        let work = parent.join(std::process::id().to_string());
        std::fs::create_dir_all(&work)?;
        Ok(work)
    }
}

/// The directory of a rack's logs and consoles.
///
/// # Errors
/// When it cannot be made.
pub fn logs(work: &Path) -> anyhow::Result<PathBuf> {
    let logs = work.join("logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    Ok(logs)
}
