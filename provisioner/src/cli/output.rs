//! What commands print: tables for people, JSON and YAML for programs.

use std::fmt;
use std::io::Write as _;

use serde::Serialize;

use crate::yaml;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// What the API said.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Prints `value` in the wanted format; `table` is how people see it.
///
/// # Errors
/// When standard output cannot be written.
pub fn show<T: Serialize + ?Sized>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match format {
        Format::Table => table(value),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => yaml::to_string(&serde_json::to_value(value)?)?,
    };
    print(&text)
}

/// Prints a line a value: what a stream of values looks like.
///
/// # Errors
/// When standard output cannot be written.
pub fn show_one<T: Serialize>(
    format: Format,
    value: &T,
    line: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match format {
        Format::Table => line(value),
        Format::Json => serde_json::to_string(value)? + "\n",
        Format::Yaml => format!("---\n{}", yaml::to_string(&serde_json::to_value(value)?)?),
    };
    print(&text)
}

/// Writes text to standard output.
///
/// # Errors
/// When it cannot be written; see [`is_broken_pipe`].
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Whether the reader of our output went away, as `head` does: that is no failure.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Columns that line up.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self {
            rows: vec![headings.map(str::to_owned).to_vec()],
        }
    }

    /// Columns without headings.
    pub fn plain() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row; empty cells print as `-` below a heading.
    pub fn row<const N: usize, S: AsRef<str>>(&mut self, cells: [S; N]) {
        self.rows
            .push(cells.iter().map(|cell| printable(cell.as_ref())).collect());
    }
}

/// Control characters of texts from machines must not reach the terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// An optional cell.
pub fn cell(value: Option<&str>) -> &str {
    value.unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["r1n1", "registered"]);
        table.row(["a-long-name", "\u{1b}[31mbad\n"]);
        assert_eq!(
            table.to_string(),
            "NAME         STATE\nr1n1         registered\na-long-name   [31mbad\n"
        );
    }
}
