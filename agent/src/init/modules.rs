//! Loads kernel modules: by what devices say they are (`modalias`), or by name when the kernel
//! asks through `/sbin/modprobe`.
//!
//! Reads depmod's text indexes (`modules.dep`, `modules.alias`, `modules.softdep`; formats:
//! modules.dep(5), depmod.d(5)). Modules are stored uncompressed in the initramfs, so
//! `finit_module` takes the files as they are.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What depmod knows about the modules in one directory.
#[derive(Debug, Default)]
pub struct Index {
    dir: PathBuf,
    /// Module name -> its file and the files it needs, as in `modules.dep`.
    files: BTreeMap<String, (String, Vec<String>)>,
    /// Pattern and module name.
    aliases: Vec<(String, String)>,
    /// Module name -> names wanted before it.
    before: BTreeMap<String, Vec<String>>,
}

impl Index {
    /// Reads the indexes of one `lib/modules/<version>` directory.
    ///
    /// # Errors
    /// When `modules.dep` or `modules.alias` cannot be read.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            std::fs::read_to_string(dir.join(name))
                .map_err(|e| anyhow::anyhow!("cannot read {}: {e}", dir.join(name).display()))
        };
        Ok(Self {
            dir: dir.to_owned(),
            files: parse_dep(&read("modules.dep")?),
            aliases: parse_alias(&read("modules.alias")?),
            before: parse_softdep(&read("modules.softdep").unwrap_or_default()),
        })
    }

    /// Modules for a name or a modalias.
    fn resolve(&self, wanted: &str) -> Vec<String> {
        let name = normalise(wanted);
        if self.files.contains_key(&name) {
            return vec![name];
        }
        self.aliases
            .iter()
            .filter(|(pattern, _)| glob(pattern.as_bytes(), wanted.as_bytes()))
            .map(|(_, module)| module.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Files to load, in order, for one module: what it needs comes first.
    fn order(&self, module: &str, seen: &mut BTreeSet<String>, out: &mut Vec<String>) {
        if !seen.insert(module.to_owned()) {
            return;
        }
        for soft in self.before.get(module).into_iter().flatten() {
            for name in self.resolve(soft) {
                self.order(&name, seen, out);
            }
        }
        if let Some((file, needs)) = self.files.get(module) {
            // depmod lists what is needed first last.
            for need in needs.iter().rev().chain([file]) {
                if !out.contains(need) {
                    out.push(need.clone());
                }
            }
        }
    }

    /// Loads everything that answers to a name or modalias. Returns whether anything did.
    fn load(&self, wanted: &str) -> bool {
        let mut files = Vec::new();
        let mut seen = BTreeSet::new();
        for module in self.resolve(wanted) {
            self.order(&module, &mut seen, &mut files);
        }
        for file in &files {
            load_file(&self.dir.join(file));
        }
        !files.is_empty()
    }
}

/// A module that does not load is a missing device, not the end: say so and go on.
fn load_file(path: &Path) {
    static TRIED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let fresh = TRIED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(path.to_owned());
    if !fresh {
        return;
    }
    let no_parameters: &CStr = c"";
    let result = std::fs::File::open(path)
        .and_then(|file| Ok(rustix::system::finit_module(file, no_parameters, 0)?));
    match result {
        Ok(()) => tracing::debug!(module = %path.display(), "loaded"),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
        // No such device: the hardware this driver is for is absent.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
        Err(e) => tracing::warn!(module = %path.display(), error = %e, "module does not load"),
    }
}

fn index() -> Option<&'static Index> {
    static INDEX: OnceLock<Option<Index>> = OnceLock::new();
    INDEX
        .get_or_init(|| {
            let release = rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned();
            let dir = Path::new("/lib/modules").join(release);
            Index::read(&dir)
                .inspect_err(|error| tracing::warn!("no kernel modules: {error:#}"))
                .ok()
        })
        .as_ref()
}

/// Loads drivers for every device the kernel has found, until no new device turns up.
/// Cheap when nothing is new: call it again whenever something is awaited.
pub fn coldplug() {
    static SEEN: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let Some(index) = index() else { return };
    let mut guard = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = guard.get_or_insert_default();
    loop {
        let mut found = Vec::new();
        collect_modaliases(Path::new("/sys/devices"), &mut found);
        let fresh: Vec<String> = found
            .into_iter()
            .filter(|alias| seen.insert(alias.clone()))
            .collect();
        if fresh.is_empty() {
            return;
        }
        for alias in &fresh {
            index.load(alias);
        }
    }
}

fn collect_modaliases(dir: &Path, out: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            collect_modaliases(&entry.path(), out);
        } else if entry.file_name() == "modalias"
            && let Ok(text) = std::fs::read_to_string(entry.path())
            && !text.trim().is_empty()
        {
            out.push(text.trim().to_owned());
        }
    }
}

/// The kernel's helper: `/sbin/modprobe -q -- NAME`.
pub fn modprobe(args: impl Iterator<Item = String>) -> ExitCode {
    let name = args.filter(|arg| !arg.starts_with('-')).last();
    let loaded = match (name, index()) {
        (Some(name), Some(index)) => index.load(&name),
        _ => false,
    };
    if loaded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The kernel treats `-` and `_` in module names as the same.
fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    normalise(base.split(".ko").next().unwrap_or(base))
}

fn parse_dep(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| {
            let needs = needs.split_ascii_whitespace().map(str::to_owned).collect();
            (module_name(file), (file.to_owned(), needs))
        })
        .collect()
}

fn parse_alias(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| line.strip_prefix("alias "))
        .filter_map(|rest| rest.rsplit_once(' '))
        .map(|(pattern, module)| (pattern.trim().to_owned(), normalise(module)))
        .collect()
}

fn parse_softdep(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut before: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("softdep") {
            continue;
        }
        let Some(module) = words.next() else { continue };
        let mut pre = false;
        for word in words {
            match word {
                "pre:" => pre = true,
                "post:" => pre = false,
                name if pre => before
                    .entry(normalise(module))
                    .or_default()
                    .push(name.to_owned()),
                _ => {}
            }
        }
    }
    before
}

/// Shell pattern match as modalias patterns need it: `*`, `?` and `[...]`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star, one character further.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            None if t == text.len() => return true,
            None => None,
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(_) => text.get(t).and_then(|&c| match_one(&pattern[p..], c)),
        };
        match (step, retry) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            (None, Some((behind, from))) if from < text.len() => {
                retry = Some((behind, from + 1));
                p = behind;
                t = from + 1;
            }
            _ => return false,
        }
    }
}

/// Matches one character; returns how much of the pattern that took.
fn match_one(pattern: &[u8], c: u8) -> Option<usize> {
    match pattern[0] {
        b'?' => Some(1),
        b'[' => {
            let end = pattern.iter().skip(1).position(|&b| b == b']')? + 1;
            let mut set = &pattern[1..end];
            let mut hit = false;
            while let Some(&low) = set.first() {
                if set.len() >= 3 && set[1] == b'-' {
                    hit |= (low..=set[2]).contains(&c);
                    set = &set[3..];
                } else {
                    hit |= low == c;
                    set = &set[1..];
                }
            }
            hit.then_some(end + 1)
        }
        literal => (literal == c).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_like_modalias_patterns() {
        for (pattern, text, expected) in [
            (
                "pci:v00001AF4d*sv*sd*bc*sc*i*",
                "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00",
                true,
            ),
            (
                "pci:v00008086d*",
                "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00",
                false,
            ),
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            ("usb:v*ic08isc0[26]ip50in*", "usb:v1ic08isc06ip50in00", true),
            (
                "usb:v*ic08isc0[26]ip50in*",
                "usb:v1ic08isc05ip50in00",
                false,
            ),
            ("x[0-9]y", "x7y", true),
            ("x[0-9]y", "xay", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("x[0-9", "x1", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} against {text}"
            );
        }
    }

    // Lines in the form depmod of kmod 30 writes for a Debian 6.1 kernel, shortened by hand.
    const DEP: &str = "\
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko
kernel/net/core/failover.ko:
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/drivers/virtio/virtio.ko:
kernel/fs/btrfs/btrfs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
kernel/crypto/crc32c_generic.ko:
";

    fn index() -> Index {
        Index {
            dir: "/m".into(),
            files: parse_dep(DEP),
            aliases: parse_alias(
                "# Aliases\nalias virtio:d00000001v* virtio_net\nalias crypto-crc32c crc32c-generic\nalias fs-btrfs btrfs\n",
            ),
            before: parse_softdep("softdep btrfs pre: crc32c_generic post: nothing\n"),
        }
    }

    #[test]
    fn what_is_needed_loads_first() {
        let index = index();
        let mut files = Vec::new();
        for module in index.resolve("virtio:d00000001v00001AF4") {
            index.order(&module, &mut BTreeSet::new(), &mut files);
        }
        assert_eq!(
            files,
            [
                "kernel/drivers/virtio/virtio.ko",
                "kernel/net/core/failover.ko",
                "kernel/drivers/net/net_failover.ko",
                "kernel/drivers/net/virtio_net.ko",
            ]
        );
    }

    #[test]
    fn soft_dependencies_and_alias_names_count() {
        let index = index();
        assert_eq!(index.resolve("crypto-crc32c"), ["crc32c_generic"]);
        let mut files = Vec::new();
        for module in index.resolve("fs-btrfs") {
            index.order(&module, &mut BTreeSet::new(), &mut files);
        }
        assert_eq!(
            files,
            [
                "kernel/crypto/crc32c_generic.ko",
                "kernel/lib/libcrc32c.ko",
                "kernel/fs/btrfs/btrfs.ko",
            ]
        );
        assert!(index.resolve("no-such-thing").is_empty());
    }
}
