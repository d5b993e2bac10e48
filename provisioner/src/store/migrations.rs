//! The steps of the schema: the files `provisioner/migrations/NNNN_name.sql`, in the order of their numbers.
//!
//! `build.rs` lists them. The macro of sqlx that could do it needs a second sqlx with a second SQLite, built for the
//! compiler: a minute of every build from nothing.

use anyhow::Context as _;
use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

mod files {
    include!(concat!(env!("OUT_DIR"), "/migrations.rs"));
}

/// All steps, ready to run.
///
/// # Errors
/// When a file is not named as it must be.
pub(super) fn all() -> anyhow::Result<Migrator> {
    let steps = files::MIGRATIONS.iter().map(|&(file, sql)| {
        let (version, name) = parse(file)
            .with_context(|| format!("migration {file}: expected a name like 0001_init.sql"))?;
        let sql = sql.into_sql_str();
        let kind = MigrationType::Simple;
        Ok(Migration::new(version, name.into(), kind, sql, false))
    });
    Ok(Migrator::with_migrations(
        steps.collect::<anyhow::Result<_>>()?,
    ))
}

/// Number and name from a file's name.
fn parse(file: &'static str) -> Option<(i64, &'static str)> {
    let (version, name) = file.strip_suffix(".sql")?.split_once('_')?;
    Some((version.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_step_and_numbers_differ() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let files = std::fs::read_dir(dir).unwrap().count();
        let mut versions: Vec<i64> = all().unwrap().iter().map(|step| step.version).collect();
        assert_eq!(versions.first(), Some(&1));
        versions.dedup();
        assert_eq!(versions.len(), files);
    }

    #[test]
    fn a_name_is_number_and_word() {
        assert_eq!(parse("0010_images.sql"), Some((10, "images")));
        assert_eq!(parse("images.sql"), None);
        assert_eq!(parse("a_images.sql"), None);
    }
}
