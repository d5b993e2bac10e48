//! One boot loader entry (Boot Loader Specification, type 1) and its kernel arguments. Pure.
//!
//! Everything but the arguments that are meant stays byte for byte: other keys, comments, order,
//! blanks. Editing twice is the same as editing once.

use std::ops::Range;

/// Which arguments an entry has, and has not, afterwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    pub(super) add: Vec<String>,
    pub(super) remove: Vec<String>,
}

impl Change {
    /// Checks what is asked for.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn new(add: &[String], remove: &[String]) -> Result<Self, String> {
        let change = Self {
            add: add.to_vec(),
            remove: remove.to_vec(),
        };
        if add.is_empty() && remove.is_empty() {
            return Err("there is nothing to add and nothing to remove".to_owned());
        }
        // An argument may be a secret: it is named by its place.
        for (what, list) in [("add", add), ("remove", remove)] {
            for (place, argument) in (1..).zip(list) {
                if !is_one(argument) {
                    return Err(format!(
                        "{what}: argument {place} is not one kernel argument: blanks must stand in double quotes, and there must be no line break"
                    ));
                }
            }
        }
        match (1..)
            .zip(add)
            .find(|(_, argument)| remove.contains(argument))
        {
            Some((place, _)) => Err(format!("add: argument {place} is also to be removed")),
            None => Ok(change),
        }
    }

    /// What is added stays, whatever a `key=*` says: so a value is replaced.
    pub(super) fn removes(&self, argument: &str) -> bool {
        let added = self.add.iter().any(|added| added == argument);
        !added
            && self
                .remove
                .iter()
                .any(|rule| match rule.strip_suffix("=*") {
                    Some(key) => argument
                        .split_once('=')
                        .is_some_and(|(found, _)| found == key),
                    None => rule == argument,
                })
    }

    /// The entry with the change made; none when it is right already.
    ///
    /// # Errors
    /// A sentence about the entry when something is to be added behind a quote that is never
    /// closed: the quote would take it in, each time anew.
    pub fn apply(&self, entry: &str) -> Result<Option<String>, String> {
        let mut lines: Vec<String> = entry.split_inclusive('\n').map(str::to_owned).collect();
        let options: Vec<usize> = (0..lines.len())
            .filter(|&at| arguments_of(&lines[at]).is_some())
            .collect();
        for &at in &options {
            lines[at] = self.without_removed(&lines[at]);
        }
        // Several lines of options count as one, in their order.
        let missing: Vec<&str> = self
            .add
            .iter()
            .map(String::as_str)
            .filter(|wanted| {
                !options
                    .iter()
                    .any(|&at| words(&lines[at]).any(|range| lines[at][range] == **wanted))
            })
            .collect();
        if !missing.is_empty() {
            let missing = missing.join(" ");
            match options.last() {
                // An argument may be a secret: the line is named by its place.
                Some(&at) if is_open(&lines[at]) => {
                    return Err(format!(
                        "a double quote in line {} is never closed, nothing can be added behind it",
                        at + 1
                    ));
                }
                Some(&at) => {
                    let end = lines[at].trim_end().len();
                    lines[at].insert_str(end, &format!(" {missing}"));
                }
                None => {
                    if let Some(last) = lines.last_mut().filter(|last| !last.ends_with('\n')) {
                        last.push('\n');
                    }
                    lines.push(format!("options {missing}\n"));
                }
            }
        }
        let text = lines.concat();
        Ok((text != entry).then_some(text))
    }

    /// A line of options without the arguments to be removed, each with the blanks before it.
    fn without_removed(&self, line: &str) -> String {
        let mut left = String::new();
        let mut from = 0;
        for range in words(line) {
            if self.removes(&line[range.clone()]) {
                left.push_str(line[from..range.start].trim_end());
                from = range.end;
            }
        }
        left.push_str(&line[from..]);
        left
    }
}

/// Where the arguments begin, if this is a line of options.
fn arguments_of(line: &str) -> Option<usize> {
    let start = line.len() - line.trim_start().len();
    let rest = line[start..].strip_prefix("options")?;
    let begins = rest.is_empty() || rest.starts_with(char::is_whitespace);
    begins.then_some(start + "options".len())
}

/// The arguments of a line of options, as the kernel splits them: at blanks outside of double
/// quotes.
fn words(line: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = arguments_of(line).unwrap_or(line.len());
    std::iter::from_fn(move || {
        at += line[at..].len() - line[at..].trim_start().len();
        let start = at;
        let mut quoted = false;
        let end = line[start..].find(|c: char| {
            quoted ^= c == '"';
            // No argument goes beyond its line, closed or not.
            c == '\n' || (c.is_whitespace() && !quoted)
        });
        at = end.map_or(line.len(), |length| start + length);
        (at > start).then_some(start..at)
    })
}

/// Whether a quote in the arguments of a line of options is never closed.
fn is_open(line: &str) -> bool {
    let arguments = arguments_of(line).map_or("", |at| &line[at..]);
    !arguments.matches('"').count().is_multiple_of(2)
}

fn is_one(argument: &str) -> bool {
    let mut quoted = false;
    let bad = argument.chars().any(|c| {
        quoted ^= c == '"';
        c.is_control() || (c.is_whitespace() && !quoted)
    });
    !argument.is_empty() && !bad && !quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(add: &[&str], remove: &[&str]) -> Result<Change, String> {
        let owned = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        Change::new(&owned(add), &owned(remove))
    }

    const ENTRY: &str = "title Fedora CoreOS 40\n# options are below\nversion 1\noptions $ignition_firstboot ignition.platform.id=metal console=tty0  console=ttyS0,115200 quiet\nlinux /vmlinuz\n";

    #[test]
    fn changes_what_is_meant_and_nothing_else() {
        let cases: &[(&[&str], &[&str], &str)] = &[
            (&["a=1"], &[], " quiet a=1\n"),
            (&["quiet", "b"], &[], " quiet b\n"),
            (&[], &["quiet"], "ttyS0,115200\n"),
            (&[], &["console=*"], ".id=metal quiet\n"),
            (
                &["ignition.platform.id=aws"],
                &["ignition.platform.id=*"],
                " quiet ignition.platform.id=aws\n",
            ),
            (&["console=tty0"], &["console=*"], " console=tty0 quiet\n"),
            (&["x=\"a b\""], &[], " quiet x=\"a b\"\n"),
        ];
        for (add, remove, expected) in cases {
            let change = change(add, remove).unwrap();
            let edited = change.apply(ENTRY).unwrap().unwrap();
            assert!(edited.contains(expected), "{edited}");
            assert_eq!(change.apply(&edited), Ok(None), "twice is once");
            let others = |text: &str| -> Vec<String> {
                let lines = text.lines().filter(|l| !l.starts_with("options "));
                lines.map(str::to_owned).collect()
            };
            assert_eq!(others(&edited), others(ENTRY));
        }
    }

    #[test]
    fn what_is_right_already_stays() {
        assert_eq!(
            change(&["quiet"], &["nomodeset", "tty0", "consol=*"])
                .unwrap()
                .apply(ENTRY),
            Ok(None)
        );
        // The end of one argument is not another.
        let edited = change(&["metal"], &[])
            .unwrap()
            .apply(ENTRY)
            .unwrap()
            .unwrap();
        assert!(edited.contains(" quiet metal\n"), "{edited}");
    }

    #[test]
    fn entries_without_or_with_several_lines_of_options() {
        let add = change(&["a"], &["b"]).unwrap();
        let edited = |entry: &str| add.apply(entry).unwrap().unwrap();
        assert_eq!(edited("title x"), "title x\noptions a\n");
        assert_eq!(edited("options"), "options a");
        assert_eq!(
            edited("options b c\n  options d b\nlinux /v\n"),
            "options c\n  options d a\nlinux /v\n"
        );
        assert_eq!(add.apply("options a\noptions c\n"), Ok(None));
        assert_eq!(
            add.apply("options q=\"x b y\"\toptional a\n"),
            Ok(None),
            "quotes hold an argument together"
        );
        assert_eq!(edited("optionsx b\n"), "optionsx b\noptions a\n");
    }

    #[test]
    fn refuses_what_is_no_argument() {
        for (add, remove) in [
            (&[][..], &[][..]),
            (&["a b"], &[]),
            (&["a\nlinux /evil"], &[]),
            (&[""], &[]),
            (&["a=\"b"], &[]),
            (&["a"], &["a"]),
            (&[], &["\t"]),
        ] {
            let error = change(add, remove).unwrap_err();
            assert!(!error.contains("evil"), "{error}");
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_ends_with_its_line() {
        let change = change(&["a"], &["b=*"]).unwrap();
        let edited = change.apply("options b=1\"\nlinux /x\n").unwrap().unwrap();
        assert_eq!(edited, "options a\nlinux /x\n");
        assert_eq!(change.apply(&edited), Ok(None));
        // What would be added belonged to the quote.
        let told = change.apply("title x\noptions x=\"secret\nlinux /x\n");
        let told = told.unwrap_err();
        assert!(
            told.contains("line 2") && !told.contains("secret"),
            "{told}"
        );
        // Elsewhere, or with nothing to add, it does no harm.
        let edited = change
            .apply("options x=\"1\noptions y b=2\n")
            .unwrap()
            .unwrap();
        assert_eq!(edited, "options x=\"1\noptions y a\n");
        assert_eq!(change.apply(&edited), Ok(None));
        assert_eq!(change.apply("options a x=\"1\n"), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn twice_is_once(entry in "(options|linux|#|a|b=1|b=2|\"| |\n|\t|é){0,40}") {
            let change = change(&["a", "c=\"1 2\""], &["b=*"]).unwrap();
            match change.apply(&entry) {
                Ok(Some(edited)) => proptest::prop_assert_eq!(change.apply(&edited), Ok(None)),
                Ok(None) => {}
                Err(_) => {
                    let odd = |line: &str| line.matches('"').count() % 2 == 1;
                    proptest::prop_assert!(entry.lines().any(odd));
                }
            }
        }
    }
}
