//! Disks: finding them, choosing one, and everything that is done to it.

pub mod adv;
pub mod audit;
pub mod bls;
pub mod body;
pub mod boot_arguments;
pub mod compare;
pub mod crew;
pub mod device;
pub mod files;
pub mod gpt;
pub mod grow;
mod grub;
#[cfg(test)]
mod loops;
mod mount;
pub mod order;
pub mod partition;
pub mod probe;
pub mod safety;
pub mod select;
pub mod stream;
pub mod talos_meta;
#[cfg(test)]
mod testing;
pub mod unique;
pub mod wipe;
pub mod write;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anneal_protocol::agent::{FailureCode, StepFailure};
use anneal_protocol::disk::{DiskInfo, DiskSelector};

use self::partition::Contents;
use crate::cmdline::Options;
use crate::init::modules;
use crate::inventory::disks;

/// Disks that are still spinning up may be late.
const WAIT_FOR_DISK: Duration = Duration::from_secs(20);
/// The list of disks must stay the same this long before anything is chosen from it.
const QUIET: Duration = Duration::from_secs(2);
const LONGEST_SETTLE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A disk and how to reach it.
#[derive(Debug, Clone)]
pub struct Found {
    /// What is known about it.
    pub info: DiskInfo,
    /// Device node.
    pub node: PathBuf,
    /// What is on it, or why nobody can say.
    contents: Result<Contents, String>,
}

impl Found {
    fn new(mut info: DiskInfo) -> Self {
        let node = Path::new("/dev").join(&info.name);
        let contents = Contents::read(&node, info.sector_size).map_err(|e| e.to_string());
        match &contents {
            Ok(contents) => info.labels = contents.labels(),
            Err(error) => {
                tracing::warn!(disk = info.name, error, "cannot read the labels");
                info.labels_unreadable = true;
            }
        }
        Self {
            info,
            node,
            contents,
        }
    }
}

/// A disk that was chosen, and by what: its name may stand for another one by the time it is
/// opened.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The disk as it was then.
    pub disk: Found,
    selector: DiskSelector,
    loops: Vec<PathBuf>,
}

impl Chosen {
    /// Looks at the disk again: what is known about it now.
    ///
    /// # Errors
    /// `DiskRefused` when it is another disk, or one that must not be written.
    fn confirm(&self) -> Result<DiskInfo, StepFailure> {
        let name = &self.disk.info.name;
        let now = disks::disk(&Path::new("/sys/block").join(name), &self.loops)
            .map(|info| Found::new(info).info)
            .ok_or_else(|| {
                let text = format!("{name} has disappeared since it was chosen");
                crate::step::fail(FailureCode::DiskRefused, text)
            })?;
        select::confirm(&self.disk.info, &now, &self.selector)?;
        Ok(now)
    }
}

/// Every disk of the machine, labels included.
#[must_use]
pub fn list(options: &Options) -> Vec<Found> {
    disks::read(Path::new("/sys/block"), &options.allow_loop)
        .into_iter()
        .map(Found::new)
        .collect()
}

/// Waits until drivers are loaded and no more disks turn up: what appears later could make a
/// unique match ambiguous.
pub fn settle() {
    let begin = Instant::now();
    let names = || -> Vec<String> {
        let block = Path::new("/sys/block");
        let disks = disks::read(block, &[]).into_iter().map(|d| d.name);
        disks.chain(disks::discs(block)).collect()
    };
    let (mut seen, mut since) = (names(), Instant::now());
    while since.elapsed() < QUIET && begin.elapsed() < LONGEST_SETTLE {
        std::thread::sleep(LOOK_AGAIN);
        modules::coldplug();
        let now = names();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// The one disk that a step may use.
///
/// # Errors
/// See [`select::select`]; `NoDisk` only after waiting for late ones.
pub fn choose(options: &Options, selector: &DiskSelector) -> Result<Chosen, StepFailure> {
    let deadline = Instant::now() + WAIT_FOR_DISK;
    loop {
        let found = list(options);
        let infos: Vec<DiskInfo> = found.iter().map(|d| d.info.clone()).collect();
        let chosen = select::select(&infos, selector).map(|disk| disk.name.clone());
        match chosen {
            Err(failure)
                if failure.code == FailureCode::NoDisk
                    && options.pid1
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(LOOK_AGAIN);
                modules::coldplug();
            }
            Err(failure) => return Err(failure),
            Ok(name) => {
                let chosen = found.into_iter().find(|d| d.info.name == name);
                let disk = chosen.ok_or_else(|| {
                    crate::step::fail_for_now(
                        FailureCode::NoDisk,
                        format!("{name} has just disappeared"),
                    )
                })?;
                return Ok(Chosen {
                    disk,
                    selector: selector.clone(),
                    loops: options.allow_loop.clone(),
                });
            }
        }
    }
}

/// A disk that somebody names by its device node: no hints, no protection, and loop devices
/// count.
///
/// # Errors
/// `NoDisk` when it is not a whole disk.
pub fn named(node: &Path) -> Result<Chosen, StepFailure> {
    let missing = |why: &str| {
        let text = format!("{}: {why}", node.display());
        crate::step::fail(FailureCode::NoDisk, text)
    };
    let node = std::fs::canonicalize(node).map_err(|e| missing(&e.to_string()))?;
    let name = node.file_name().unwrap_or_default();
    let loops = vec![node.clone()];
    let info = disks::disk(&Path::new("/sys/block").join(name), &loops)
        .filter(|info| Path::new("/dev").join(&info.name) == node)
        .ok_or_else(|| missing("not a whole disk"))?;
    let selector = DiskSelector::default();
    select::select(std::slice::from_ref(&info), &selector)?;
    Ok(Chosen {
        disk: Found::new(info),
        selector,
        loops,
    })
}

/// A failure of the disk itself.
pub(crate) fn io_failure(what: &str, node: &Path, error: &std::io::Error) -> StepFailure {
    crate::step::fail_for_now(
        FailureCode::DiskIo,
        format!("cannot {what} {}: {error}", node.display()),
    )
}
