//! Looks for secrets where none may be: as they are, in hex, and in base64 however they lie in it.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// What to look for, and what was found.
#[derive(Default)]
pub struct Scan {
    /// Name and forms of each.
    needles: Vec<(String, Vec<Vec<u8>>)>,
    allowed: Vec<(PathBuf, String)>,
    found: Vec<String>,
    bytes: usize,
}

impl Scan {
    /// Looks for a text; a short one would be found by chance.
    pub fn add(&mut self, name: &str, secret: &str) {
        self.add_bytes(name, secret.as_bytes());
    }

    pub fn add_bytes(&mut self, name: &str, secret: &[u8]) {
        assert!(secret.len() >= 12, "{name} is too short to be looked for");
        let hex = hex::encode(secret);
        let mut forms = vec![
            secret.to_vec(),
            hex.to_uppercase().into_bytes(),
            hex.into_bytes(),
        ];
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            // Whatever stands before it in what was encoded: the characters that are its alone.
            forms.extend((0..3).map(|skip| {
                engine
                    .encode(&secret[skip..][..(secret.len() - skip) / 3 * 3])
                    .into_bytes()
            }));
        }
        self.needles.push((name.to_owned(), forms));
    }

    /// A file may hold this one.
    pub fn allow(&mut self, path: &Path, name: &str) {
        self.allowed.push((path.to_owned(), name.to_owned()));
    }

    /// Looks into a text.
    pub fn text(&mut self, place: &str, text: &[u8]) {
        self.bytes += text.len();
        for (name, forms) in &self.needles {
            let allowed =
                |(path, what): &(PathBuf, String)| path.to_string_lossy() == place && what == name;
            let there = forms.iter().any(|form| holds(text, form));
            if there && !self.allowed.iter().any(allowed) {
                self.found.push(format!("{name} in {place}"));
            }
        }
    }

    /// Looks into every file below a folder.
    pub fn folder(&mut self, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.folder(&path);
            } else if path.is_file() {
                self.text(&path.to_string_lossy(), &std::fs::read(&path).unwrap());
            }
        }
    }

    pub fn found(&self) -> Vec<String> {
        self.found.clone()
    }

    pub fn looked_at(&self) -> usize {
        self.bytes
    }
}

/// Whether a text holds another; the first byte is looked for fast.
fn holds(text: &[u8], needle: &[u8]) -> bool {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[test]
fn finds_what_is_planted_in_any_form() {
    let secret = "abcdef.0123456789abcdef";
    let plants = [
        secret.to_owned(),
        hex::encode(secret),
        base64::engine::general_purpose::STANDARD.encode(format!("join {secret} now")),
        URL_SAFE_NO_PAD.encode(format!("a{secret}")),
        STANDARD_NO_PAD.encode(secret),
    ];
    for plant in plants {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/er/file");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, format!("\0\0{plant}\0")).unwrap();
        let mut scan = Scan::default();
        scan.add("token", secret);
        scan.folder(dir.path());
        assert_eq!(scan.found(), [format!("token in {}", file.display())]);
        let mut scan = Scan::default();
        scan.add("token", secret);
        scan.allow(&file, "token");
        scan.allow(&dir.path().join("deep"), "other");
        scan.folder(dir.path());
        assert_eq!(scan.found(), Vec::<String>::new(), "allowed");
        let mut scan = Scan::default();
        scan.add("token", "abcdeX.0123456789abcdef");
        scan.folder(dir.path());
        assert_eq!(scan.found(), Vec::<String>::new(), "another secret");
    }
}

/// The scan of a run must see what a daemon would write into its database.
#[tokio::test]
async fn finds_what_is_planted_in_a_database() {
    let dir = tempfile::tempdir().unwrap();
    let store = provisioner::store::Store::open(&dir.path().join("db"))
        .await
        .unwrap();
    let secret = "abcdef.0123456789abcdef";
    let event = provisioner::event::Event::new("test", format!("oops {secret}"));
    let at = anneal_protocol::time::Millis(1);
    store.append_events(&[(at, event)]).await.unwrap();
    let mut scan = Scan::default();
    scan.add("token", secret);
    scan.folder(dir.path());
    let wal = dir.path().join("db-wal");
    assert_eq!(scan.found(), [format!("token in {}", wal.display())]);
}
