//! GRUB's own configuration, `grub.cfg`, and the kernel arguments in it. Pure.
//!
//! It is a program, and nobody can say without running it which kernel it starts: so every line whose command is
//! `linux` is edited, in whatever menu entry, and nothing else; one that starts a kernel behind another command is
//! refused. All other bytes stay. Words are read as GRUB's shell
//! reads them; one with a variable in it is left alone, because nobody knows yet what it will be.

use std::ops::Range;

use super::bls::Change;

/// Commands that take a kernel and its arguments.
const COMMANDS: [&str; 3] = ["linux", "linux16", "linuxefi"];
const BLANKS: [char; 2] = [' ', '\t'];
/// What ends a command, outside of quotes.
const ENDS: &str = "\r\n;|&<>{}";

/// A word of a command.
struct Word {
    range: Range<usize>,
    /// What GRUB makes of it, if that can be known.
    text: Option<String>,
}

/// The script with the change made; none when it is right already.
///
/// # Errors
/// A sentence about the script when it has no line that starts a kernel, or one of them goes on in the next, or does
/// so behind another command; about the change when GRUB cannot hand an argument on.
pub(super) fn apply(change: &Change, script: &str) -> Result<Option<String>, String> {
    let change = in_words(change)?;
    let mut edited = String::with_capacity(script.len());
    let mut found = false;
    for (number, line) in (1..).zip(script.split_inclusive('\n')) {
        // An argument may be a secret: the line is named by its place.
        let words = command(line).map_err(|why| format!("line {number}: {why}"))?;
        let end = words.last().map_or(0, |word| word.range.end);
        if starts_inside(&line[end..]) {
            return Err(format!(
                "line {number}: a kernel is started behind another command; give it a line of its own"
            ));
        }
        match words.split_first() {
            // The first word is the kernel's file.
            Some((file, arguments)) => {
                if has_lone_return(line) {
                    return Err(format!(
                        "line {number}: a carriage return stands inside the kernel's line"
                    ));
                }
                found = true;
                edit(line, file.range.end, arguments, &change, &mut edited);
            }
            None => edited.push_str(line),
        }
    }
    if !found {
        return Err(format!(
            "it has no line that begins with {}: GRUB finds its kernels in another way here",
            COMMANDS.join(" or ")
        ));
    }
    Ok((edited != script).then_some(edited))
}

/// Puts a line with the change made behind `edited`; its kernel's file ends at `file`.
fn edit(line: &str, file: usize, arguments: &[Word], change: &Change, edited: &mut String) {
    let (mut from, mut end) = (0, file);
    for word in arguments {
        let text = word.text.as_deref();
        if text.is_some_and(|text| change.removes(text)) {
            // With the blanks before it.
            edited.push_str(&line[from..end]);
            from = word.range.end;
        }
        end = word.range.end;
    }
    edited.push_str(&line[from..end]);
    for wanted in &change.add {
        let is = |word: &Word| word.text.as_deref() == Some(wanted.as_str());
        if !arguments.iter().any(is) {
            edited.push(' ');
            edited.push_str(&quoted(wanted));
        }
    }
    edited.push_str(&line[end..]);
}

/// What is asked for, each argument as the word that GRUB is given for it.
fn in_words(change: &Change) -> Result<Change, String> {
    let all = |what: &str, list: &[String]| {
        (1..)
            .zip(list)
            .map(|(place, argument)| {
                word_for(argument).ok_or_else(|| {
                    format!(
                        "{what}: argument {place} has a quote or a backslash in it, before which GRUB would put a backslash; leave it out (quotes around a value with blanks, key=\"two words\", are right)"
                    )
                })
            })
            .collect::<Result<Vec<String>, String>>()
    };
    Ok(Change {
        add: all("add", &change.add)?,
        remove: all("remove", &change.remove)?,
    })
}

/// The word that becomes this argument: a word with a blank in it GRUB hands on in double quotes, and before a quote
/// or a backslash in any word it puts a backslash (grub-core/lib/cmdline.c), which no kernel takes away.
fn word_for(argument: &str) -> Option<String> {
    let plain = |text: &str| !text.is_empty() && !text.contains(['"', '\'', '\\']);
    if plain(argument) {
        return Some(argument.to_owned());
    }
    let unquoted = |text: &str| {
        let text = text.strip_prefix('"')?.strip_suffix('"')?;
        Some(text.to_owned())
    };
    // To the kernel `a="b c"` and `"a=b c"` are the same.
    let word = unquoted(argument).or_else(|| {
        let (key, value) = argument.split_once('=')?;
        Some(format!("{key}={}", unquoted(value)?))
    });
    word.filter(|word| plain(word))
}

/// A word as it is written so that GRUB takes it as it stands.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_=.,:/@%+-".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        // There is no quote in it.
        format!("'{word}'")
    }
}

/// Whether a kernel is started behind another command of this line. Quotes are not read: what only says so in a
/// text, behind one of these characters, is refused too.
fn starts_inside(line: &str) -> bool {
    const BEFORE: [&str; 8] = ["if", "elif", "then", "else", "while", "until", "do", "!"];
    if line.trim_start_matches(BLANKS).starts_with('#') {
        return false;
    }
    let mut commands = line.split(|c: char| ";{}|&".contains(c));
    commands.any(|command| {
        let mut words = command
            .split_whitespace()
            .skip_while(|word| BEFORE.contains(word));
        words.next().is_some_and(|word| COMMANDS.contains(&word)) && words.next().is_some()
    })
}

/// Whether a carriage return stands elsewhere than at the end of the line.
fn has_lone_return(line: &str) -> bool {
    let text = line.strip_suffix('\n').unwrap_or(line);
    text.strip_suffix('\r').unwrap_or(text).contains('\r')
}

/// What stands behind the command in a line that starts a kernel; nothing of any other line.
fn command(line: &str) -> Result<Vec<Word>, &'static str> {
    let begins = line.trim_start_matches(BLANKS);
    let name = begins
        .split(|c: char| BLANKS.contains(&c) || ENDS.contains(c))
        .next()
        .unwrap_or_default();
    let mut words = Vec::new();
    if !COMMANDS.contains(&name) {
        return Ok(words);
    }
    let mut at = line.len() - begins.len() + name.len();
    loop {
        at = line.len() - line[at..].trim_start_matches(BLANKS).len();
        let word = word(line, at)?;
        if word.range.is_empty() {
            return Ok(words);
        }
        at = word.range.end;
        words.push(word);
    }
}

/// The word that begins here; an empty one when the command ends here.
fn word(line: &str, start: usize) -> Result<Word, &'static str> {
    const OPEN: &str = "a quote or brace of the kernel's arguments is not closed in it";
    let mut text = String::new();
    let mut known = true;
    let mut quote = None;
    let mut end = line.len();
    let mut chars = line[start..].char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\n') => return Err(OPEN),
            (Some(open), _) if c == open => quote = None,
            (Some('\''), _) => text.push(c),
            (None, '\'' | '"') => quote = Some(c),
            (_, '\\') => match chars.next() {
                None | Some((_, '\r' | '\n')) => {
                    return Err("the kernel's arguments go on in the next line");
                }
                Some((_, escaped)) => {
                    if quote.is_some() && !['"', '\\', '$'].contains(&escaped) {
                        text.push('\\');
                    }
                    text.push(escaped);
                }
            },
            (_, '$') => {
                known = false;
                // The braces of a variable end nothing.
                let braces = line[start + at + 1..].starts_with('{');
                if braces && !chars.any(|(_, c)| c == '}') {
                    return Err(OPEN);
                }
            }
            (None, _) if BLANKS.contains(&c) || ENDS.contains(c) || (c == '#' && at == 0) => {
                end = start + at;
                break;
            }
            _ => text.push(c),
        }
    }
    if quote.is_some() {
        return Err(OPEN);
    }
    Ok(Word {
        range: start..end,
        text: known.then_some(text),
    })
}

#[cfg(test)]
#[path = "grub_tests.rs"]
mod tests;
