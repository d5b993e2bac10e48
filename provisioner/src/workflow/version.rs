//! Whether the system that called home is the version that was installed. Pure.
//!
//! A machine whose update did not start falls back to what it ran before and calls home from
//! that: it is up, and it is not what was asked for. What the node says is believed; a version
//! that it does not say is unknown, not another.

use serde_json::Value;

use crate::render::ImageFacts;

/// Key of a report that the daemon adds when another version runs.
pub const INSTALLED: &str = "installed_version";

/// An image of one version was installed, and another version runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// What was installed, for people: image and version.
    image: String,
    /// The version that was installed.
    pub installed: String,
    /// The version that the node says.
    pub runs: String,
}

impl Other {
    /// Compares what a node said with the image that was written to its disk. `None`: they agree,
    /// or one of them says no version.
    ///
    /// `image_version` names an image and must be the same text, unless what was installed says the
    /// release to the letter: then nobody said which image it is. `version` names a release, of
    /// which the image may be one of many (`12` and `12.9`), or which may name its build
    /// (`3.2.1` and `3.2.1-k3s1`): there the parts that both have must be the same, and a `v` before
    /// the first says nothing.
    #[must_use]
    pub fn of(said: &Value, image: &ImageFacts) -> Option<Self> {
        let installed = image.os_version.as_deref()?;
        let word = |key: &str| said[key].as_str().filter(|word| !word.is_empty());
        let (runs, same) = match (word("image_version"), word("version")) {
            (Some(runs), release) => (runs, [Some(runs), release].contains(&Some(installed))),
            (None, Some(runs)) => (runs, begins(runs, installed) || begins(installed, runs)),
            (None, None) => return None,
        };
        (!same).then(|| Self {
            image: format!("{}@{}", image.name, image.version),
            installed: installed.to_owned(),
            runs: runs.to_owned(),
        })
    }

    /// One sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self {
            image,
            installed,
            runs,
        } = self;
        format!("the installed image {image} says version {installed}, the node runs {runs}")
    }
}

/// Whether a version is another's beginning, up to a place where one of its parts ends.
fn begins(short: &str, long: &str) -> bool {
    bare(long)
        .strip_prefix(bare(short))
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
}

/// A version without the `v` that some publishers write before it.
fn bare(version: &str) -> &str {
    let rest = version.strip_prefix('v');
    rest.filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workflow::plan_tests::image;

    fn compare(said: &Value, os_version: Option<&str>) -> Option<String> {
        let mut image = image();
        image.os_version = os_version.map(str::to_owned);
        Other::of(said, &image).map(|other| other.runs)
    }

    #[test]
    fn an_images_own_version_is_compared_to_the_letter() {
        for (runs, installed, same) in [
            ("2", "2", true),
            ("1", "2", false),
            ("2.0", "2.0.1", false),
            ("2.0.1", "2.0", false),
            ("12", "1", false),
        ] {
            let said = json!({ "image_version": runs, "version": "41" });
            let other = (!same).then(|| runs.to_owned());
            assert_eq!(compare(&said, Some(installed)), other, "{runs} {installed}");
        }
    }

    #[test]
    fn an_image_of_a_release_is_not_another_version() {
        let said = json!({ "image_version": "20261115-2293", "version": "12" });
        assert_eq!(compare(&said, Some("12")), None);
        assert_eq!(compare(&said, Some("20261115-2293")), None);
        for installed in ["13", "12.9", "20261201-1"] {
            assert!(compare(&said, Some(installed)).is_some(), "{installed}");
        }
    }

    #[test]
    fn a_release_may_be_less_exact_than_its_image_and_the_other_way_round() {
        for (runs, installed, same) in [
            ("12", "12.9", true),
            ("41", "41.20250105.3.0", true),
            ("4.17", "4.17.0", true),
            ("3.2.1-k3s1", "3.2.1", true),
            ("3.2.1", "v3.2.1", true),
            ("3.2.2", "v3.2.1", false),
            ("v1", "vega", false),
            ("4230.2.1", "4230.2.1", true),
            ("4230.2.0", "4230.2.1", false),
            ("12", "13.1", false),
            ("1", "12", false),
            ("12", "1", false),
        ] {
            let said = json!({ "version": runs });
            let other = (!same).then(|| runs.to_owned());
            assert_eq!(compare(&said, Some(installed)), other, "{runs} {installed}");
        }
    }

    #[test]
    fn what_nobody_says_is_unknown() {
        let said = json!({ "version": "1", "image_version": "1" });
        assert_eq!(compare(&said, None), None);
        for said in [
            json!({ "os": "Debian GNU/Linux 12" }),
            json!({ "version": "", "image_version": "" }),
            json!({ "version": null, "image_version": 7 }),
            Value::Null,
        ] {
            assert_eq!(compare(&said, Some("2")), None, "{said}");
        }
    }
}
