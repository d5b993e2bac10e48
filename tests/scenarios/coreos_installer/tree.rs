//! Everything in a file system, but the times.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anneal_tests::sim::tool;
use rustix::io::Errno;

use super::LABEL;
use super::image::BOOT;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Type and permission bits, as `stat` has them.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// The bytes of a file, the target of a link.
    pub contents: Vec<u8>,
    /// SELinux's label, if any.
    pub label: Option<Vec<u8>>,
}

/// All paths, relative to the root.
pub type Tree = BTreeMap<String, Item>;

/// What is on the boot partition of a disk. It must be unmounted as it should be, and be right.
pub fn boot(disk: &Path, work: &Path) -> anyhow::Result<Tree> {
    let mut fsck = tool::command("e2fsck")?;
    fsck.arg("-fn");
    tool::run(fsck.arg(format!("{}?offset={}", disk.display(), BOOT.0)))?;
    let at = work.join("mounted");
    std::fs::create_dir_all(&at)?;
    let mut mount = tool::command("mount")?;
    mount.args(["-t", "ext4", "-o"]);
    mount.arg(format!("ro,loop,offset={},sizelimit={}", BOOT.0, BOOT.1));
    tool::run(mount.arg(disk).arg(&at))?;
    let mut tree = Tree::new();
    let read = read(&at, &at, &mut tree);
    tool::run(tool::command("umount")?.arg(&at))?;
    read.map(|()| tree)
}

fn read(root: &Path, folder: &Path, tree: &mut Tree) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let known = std::fs::symlink_metadata(&path)?;
        let contents = if known.is_symlink() {
            std::fs::read_link(&path)?
                .into_os_string()
                .into_encoded_bytes()
        } else if known.is_file() {
            std::fs::read(&path)?
        } else {
            read(root, &path, tree)?;
            Vec::new()
        };
        let item = Item {
            mode: known.mode(),
            owner: (known.uid(), known.gid()),
            contents,
            label: label(&path)?,
        };
        let name = path.strip_prefix(root)?.display().to_string();
        tree.insert(name, item);
    }
    Ok(())
}

fn label(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 256];
    match rustix::fs::lgetxattr(path, LABEL, &mut value[..]) {
        Ok(length) => Ok(Some(value[..length].to_vec())),
        Err(Errno::NODATA) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Paths that are not the same in both, with what is.
pub fn differences(one: &Tree, two: &Tree) -> Vec<(String, String)> {
    let mut paths: Vec<&String> = one.keys().chain(two.keys()).collect();
    paths.sort();
    paths.dedup();
    let differ = |path: &&String| one.get(*path) != two.get(*path);
    paths
        .into_iter()
        .filter(differ)
        .map(|path| {
            let mut text = String::new();
            for item in [one.get(path), two.get(path)] {
                let _ = match item {
                    None => write!(text, "absent; "),
                    Some(item) => write!(
                        text,
                        "{:o} {:?} {:?} {:?}; ",
                        item.mode,
                        item.owner,
                        item.label.as_deref().map(String::from_utf8_lossy),
                        String::from_utf8_lossy(&item.contents[..item.contents.len().min(200)])
                    ),
                };
            }
            (path.clone(), text)
        })
        .collect()
}
