//! Compiles the data folders in: lists `workflows/*.yaml`, `templates/**` and `migrations/*.sql` as constants.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    let root = PathBuf::from(env("CARGO_MANIFEST_DIR")).join("..");
    let mut code = String::new();
    list(
        &mut code,
        "WORKFLOWS",
        &root.join("workflows"),
        Some("yaml"),
    );
    list(&mut code, "TEMPLATES", &root.join("templates"), None);
    write("data.rs", &code);

    let mut code = String::new();
    let folder = PathBuf::from(env("CARGO_MANIFEST_DIR")).join("migrations");
    list(&mut code, "MIGRATIONS", &folder, Some("sql"));
    write("migrations.rs", &code);
}

fn write(name: &str, code: &str) {
    let out = PathBuf::from(env("OUT_DIR")).join(name);
    if let Err(error) = std::fs::write(&out, code) {
        panic!("writing {}: {error}", out.display());
    }
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn list(code: &mut String, constant: &str, folder: &Path, extension: Option<&str>) {
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut files = Vec::new();
    collect(folder, &mut files);
    files.sort();
    let _ = writeln!(
        code,
        "/// Files of `{constant}`, by path relative to their folder.\n\
         pub static {constant}: &[(&str, &str)] = &["
    );
    for file in files {
        let is_readme = file.extension().is_some_and(|e| e == "md");
        let wanted = extension.is_none_or(|e| file.extension().is_some_and(|f| f == e));
        if is_readme || !wanted {
            continue;
        }
        let name = file
            .strip_prefix(folder)
            .unwrap_or(&file)
            .display()
            .to_string();
        let path = file.display().to_string();
        let _ = writeln!(code, "    ({name:?}, include_str!({path:?})),");
    }
    code.push_str("];\n");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            println!("cargo:rerun-if-changed={}", path.display());
            collect(&path, files);
        } else {
            println!("cargo:rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
}
