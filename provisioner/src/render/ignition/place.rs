//! From a line of a rendered text back to the line of the template that made it.
//!
//! A template's loops and conditions move lines, so a line is found by its looks: what is between
//! the `{{ … }}` of a template's line must be in the rendered line, in order. Only an unambiguous
//! find is told as the template's line.

use crate::yaml::YamlError;

/// Tells an error about `rendered` with the place in `source`, the text of its template.
pub fn in_template(error: &YamlError, rendered: &str, source: &str) -> String {
    let YamlError {
        file,
        line,
        column,
        message,
    } = error;
    let at = usize::try_from(*line).unwrap_or(0);
    let Some(text) = at.checked_sub(1).and_then(|at| rendered.lines().nth(at)) else {
        return error.to_string();
    };
    match line_of(text, at, source) {
        // Values before the place may have moved it along the line.
        Some((line, true)) => format!("{file}:{line}:{column}: {message}"),
        Some((line, false)) => format!("{file}:{line}: {message}"),
        None => format!("{file}: line {line}, column {column} of what it gave: {message}"),
    }
}

/// The template's line that gave a text, and whether it is the same text.
fn line_of(text: &str, rendered_at: usize, source: &str) -> Option<(usize, bool)> {
    let same = |line: &str| line == text;
    let nearest = |matches: &dyn Fn(&str) -> bool| {
        let mut found = source.lines().enumerate().filter(|(_, line)| matches(line));
        let first = found.next()?.0 + 1;
        // Several are as good as none, but for one that did not move at all.
        match found.next() {
            None => Some(first),
            Some(_) => source
                .lines()
                .nth(rendered_at - 1)
                .filter(|line| matches(line))
                .map(|_| rendered_at),
        }
    };
    if let Some(line) = nearest(&same) {
        return Some((line, true));
    }
    nearest(&|line: &str| gives(line, text)).map(|line| (line, false))
}

/// Whether a template's line can give a text.
fn gives(line: &str, text: &str) -> bool {
    if !line.contains("{{") {
        return false;
    }
    let mut parts = line.split("{{");
    let Some(mut rest) = parts.next().and_then(|head| text.strip_prefix(head)) else {
        return false;
    };
    for part in parts {
        let Some((_, literal)) = part.split_once("}}") else {
            return false;
        };
        let Some(at) = rest.find(literal) else {
            return false;
        };
        rest = &rest[at + literal.len()..];
        // Nothing follows the last value: it may be anything.
        if literal.is_empty() {
            return true;
        }
    }
    rest.is_empty()
}
