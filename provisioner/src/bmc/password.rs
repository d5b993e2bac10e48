//! Files with passwords, and with secrets of clusters: which ones may be read, and reading them.
//!
//! Owns: the rule that keeps an inventory, which operators write, from naming any file that the
//! daemon can read: a password file lies in one of the configured directories, is a regular file
//! and short.
//!
//! Invariants: what counts is where a path leads, symbolic links followed; the file that was
//! opened is looked at, not its name, so nothing can be swapped in between. A refusal is the same
//! whether a file outside the directories exists or not.
//!
//! Not here: who may apply an inventory. An operator can have any password of these directories
//! sent to a host of their choice: keep nothing else in them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use zeroize::Zeroizing;

/// Longest password file that is read, bytes.
const LONGEST_PASSWORD: u64 = 4096;

/// The directories that files with secrets may be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasswordDirs {
    dirs: Vec<PathBuf>,
    words: Words,
}

/// What the files hold and where their directories are set, for refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    what: &'static str,
    setting: &'static str,
}

const PASSWORDS: Words = Words {
    what: "password",
    setting: "password_dirs",
};
const CLUSTERS: Words = Words {
    what: "cluster secret",
    setting: "join_tokens.secret_dirs",
};

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The path leads out of the directories.
    #[error(
        "{} is not in a directory for {}s: expected a file in {dirs}; move it there, or see \
         `{}` in anneal.yaml",
        path.display(), words.what, words.setting
    )]
    Outside {
        /// The path as it was given.
        path: PathBuf,
        /// The directories, for people.
        dirs: String,
        /// What it should hold.
        words: Words,
    },
    /// The file cannot be opened or read.
    #[error("cannot read the {} from {}; create the file, readable for the daemon", words.what, path.display())]
    Unreadable {
        /// The path as it was given.
        path: PathBuf,
        /// What it should hold.
        words: Words,
        /// Why.
        source: io::Error,
    },
    /// The file does not hold a password.
    #[error("{} file {} is {problem}", words.what, path.display())]
    Bad {
        /// The path as it was given.
        path: PathBuf,
        /// What it should hold.
        words: Words,
        /// What it is instead.
        problem: String,
    },
}

impl Default for PasswordDirs {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl PasswordDirs {
    /// Exactly these directories for passwords; they need not exist yet.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self {
            dirs,
            words: PASSWORDS,
        }
    }

    /// Exactly these directories for secrets of clusters; they need not exist yet.
    #[must_use]
    pub fn for_clusters(dirs: Vec<PathBuf>) -> Self {
        Self {
            dirs,
            words: CLUSTERS,
        }
    }

    /// Refuses a path that leads out of the directories. The file itself may not exist yet.
    ///
    /// # Errors
    /// [`PasswordError::Outside`].
    pub fn check(&self, path: &Path) -> Result<(), PasswordError> {
        if self.hold(&destination(path)) {
            return Ok(());
        }
        Err(self.outside(path))
    }

    /// Reads the password at the moment it is needed, so that a rotated one counts at once. One
    /// line; the line break at its end is not part of it.
    ///
    /// # Errors
    /// When the path leads out of the directories, or the file cannot be read or holds something
    /// else than one line.
    pub async fn read(&self, path: &Path) -> Result<Zeroizing<String>, PasswordError> {
        let text = self.read_text(path, LONGEST_PASSWORD).await?;
        let bad = |problem| self.bad(path, problem);
        let password = text.strip_suffix('\n').unwrap_or(&text);
        let password = password.strip_suffix('\r').unwrap_or(password);
        if password.is_empty() {
            return Err(bad("empty".to_owned()));
        }
        if password.contains(['\n', '\r', '\0']) {
            return Err(bad("not a single line".to_owned()));
        }
        Ok(Zeroizing::new(password.to_owned()))
    }

    /// Reads a text of at most `longest` bytes, at the moment it is needed.
    ///
    /// # Errors
    /// When the path leads out of the directories, or the file cannot be read, is longer or is
    /// not text.
    pub async fn read_text(
        &self,
        path: &Path,
        longest: u64,
    ) -> Result<Zeroizing<String>, PasswordError> {
        let (dirs, owned) = (self.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || dirs.read_now(&owned, longest))
            .await
            .map_err(|error| self.unreadable(path, io::Error::other(error)))?
    }

    fn read_now(&self, path: &Path, longest: u64) -> Result<Zeroizing<String>, PasswordError> {
        self.check(path)?;
        let unreadable = |source| self.unreadable(path, source);
        let bad = |problem| self.bad(path, problem);
        // Non-blocking: a pipe in the place of a file must not hold us up.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(unreadable)?;
        let opened = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if !self.hold(&opened.map_err(unreadable)?) {
            return Err(self.outside(path));
        }
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(bad("not a regular file".to_owned()));
        }
        // Room for all of it: what a growing buffer leaves behind is not wiped.
        let room = usize::try_from(longest).unwrap_or(usize::MAX - 1) + 1;
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        file.take(longest + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 > longest {
            return Err(bad(format!("longer than {longest} bytes")));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| bad("not text".to_owned()))?;
        Ok(Zeroizing::new(text.to_owned()))
    }

    fn outside(&self, path: &Path) -> PasswordError {
        PasswordError::Outside {
            path: path.to_owned(),
            dirs: self.to_string(),
            words: self.words,
        }
    }

    fn unreadable(&self, path: &Path, source: io::Error) -> PasswordError {
        PasswordError::Unreadable {
            path: path.to_owned(),
            words: self.words,
            source,
        }
    }

    fn bad(&self, path: &Path, problem: String) -> PasswordError {
        PasswordError::Bad {
            path: path.to_owned(),
            words: self.words,
            problem,
        }
    }

    /// Whether a path without links and `..` is below one of the directories.
    fn hold(&self, path: &Path) -> bool {
        path.is_absolute()
            && !path.components().any(|part| part == Component::ParentDir)
            && self
                .dirs
                .iter()
                .map(|dir| dir.canonicalize().unwrap_or_else(|_| dir.clone()))
                .any(|dir| path != dir && path.starts_with(dir))
    }
}

impl std::fmt::Display for PasswordDirs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, dir) in self.dirs.iter().enumerate() {
            let before = if n == 0 { "" } else { " or " };
            write!(f, "{before}{}", dir.display())?;
        }
        Ok(())
    }
}

/// Where a path leads: links followed as far as the file, or else its directory, exists.
fn destination(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory for passwords, and beside it one with a secret that is none.
    fn place() -> (tempfile::TempDir, PasswordDirs, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("secrets");
        std::fs::create_dir(&secrets).unwrap();
        let key = dir.path().join("ca.key");
        std::fs::write(&key, "PRIVATE").unwrap();
        let dirs = PasswordDirs::new(vec!["/nowhere/else".into(), secrets.clone()]);
        (dir, dirs, secrets, key)
    }

    #[tokio::test]
    async fn nothing_outside_of_the_directories_is_read() {
        let (dir, dirs, secrets, key) = place();
        std::os::unix::fs::symlink(&key, secrets.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), secrets.join("up")).unwrap();
        for path in [
            key.clone(),
            secrets.join("../ca.key"),
            secrets.join("link"),
            secrets.join("up/ca.key"),
            secrets.join("missing/../../ca.key"),
            secrets.clone(),
            dir.path().join("secrets-of-others"),
            PathBuf::from("relative"),
            PathBuf::from("/etc/shadow"),
            PathBuf::from("/etc/no-such-file"),
        ] {
            let error = dirs.read(&path).await.unwrap_err();
            assert!(
                matches!(error, PasswordError::Outside { .. }),
                "{path:?}: {error}"
            );
            let told = error.to_string();
            let want = format!("a file in /nowhere/else or {}", secrets.display());
            assert!(told.contains(&want), "{told}");
            assert!(dirs.check(&path).is_err());
        }
    }

    #[tokio::test]
    async fn a_link_within_the_directories_is_followed() {
        let (_dir, dirs, secrets, _) = place();
        std::fs::create_dir(secrets.join("v2")).unwrap();
        std::fs::write(secrets.join("v2/r1n1"), "pw\n").unwrap();
        std::os::unix::fs::symlink("v2/r1n1", secrets.join("r1n1")).unwrap();
        let got = dirs.read(&secrets.join("r1n1")).await.unwrap();
        assert_eq!(got.as_str(), "pw");
        dirs.check(&secrets.join("not-made-yet")).unwrap();
    }

    #[tokio::test]
    async fn only_short_regular_files_are_read() {
        let (_dir, dirs, secrets, _) = place();
        let pipe = secrets.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::create_dir(secrets.join("folder")).unwrap();
        std::fs::write(secrets.join("long"), "x".repeat(4097)).unwrap();
        std::fs::write(secrets.join("binary"), [0xff, 0xfe]).unwrap();
        for (name, problem) in [
            ("pipe", "not a regular file"),
            ("folder", "not a regular file"),
            ("long", "longer than 4096 bytes"),
            ("binary", "not text"),
        ] {
            let error = dirs.read(&secrets.join(name)).await.unwrap_err();
            assert!(error.to_string().ends_with(problem), "{error}");
        }
        std::fs::write(secrets.join("longest"), "x".repeat(4096)).unwrap();
        let got = dirs.read(&secrets.join("longest")).await.unwrap();
        assert_eq!(got.len(), 4096);
    }

    #[tokio::test]
    async fn a_password_comes_without_its_line_break() {
        let (_dir, dirs, secrets, _) = place();
        let file = secrets.join("password");
        for (contents, want) in [
            ("pw", "pw"),
            ("pw\n", "pw"),
            ("pw\r\n", "pw"),
            (" p w \n", " p w "),
        ] {
            std::fs::write(&file, contents).unwrap();
            assert_eq!(dirs.read(&file).await.unwrap().as_str(), want);
        }
    }
}
