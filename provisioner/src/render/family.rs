//! Families of operating systems: a template of one is not for an image of another.
//!
//! Pure. Which family an image is of was found or said when it was added (`image::ingest`).

use minijinja::{Error, ErrorKind, State};

/// The folder whose templates are for every system.
const COMMON: &str = "common";

/// Families that anneal has templates for or detects. Operators may have others.
pub const FAMILIES: &[&str] = &[
    "talos",
    "flatcar",
    "fcos",
    "rhcos",
    "bottlerocket",
    "kairos",
    "bootc",
    "debian",
    "ubuntu",
    "rauc",
];

/// A family's word, for images that were added under another one.
#[must_use]
pub fn canonical(os: &str) -> &str {
    match os {
        "fedora-coreos" => "fcos",
        other => other,
    }
}

/// The known family that a word misspells, if it is one letter away from one.
#[must_use]
pub fn slip(word: &str) -> Option<&'static str> {
    let near = |known: &&&str| **known != word && strsim::damerau_levenshtein(known, word) <= 1;
    match FAMILIES.contains(&word) {
        true => None,
        false => FAMILIES.iter().find(near).copied(),
    }
}

/// Refuses a template that is in the folder of another family than the image's. Folders that no
/// known family is called by are the operator's own business, as are runs without an image.
///
/// # Errors
/// Says which family the image is of.
pub fn check(template: &str, image_os: Option<&str>) -> Result<(), String> {
    let Some((folder, _)) = template.split_once('/') else {
        return Ok(());
    };
    let Some(os) = image_os else { return Ok(()) };
    if folder == COMMON || !FAMILIES.contains(&folder) || folder == canonical(os) {
        return Ok(());
    }
    Err(format!(
        "template `{template}` is for {folder}, and the image is {os}: expected a template of \
         `{}/` or `{COMMON}/`",
        canonical(os)
    ))
}

/// [`check`] inside a rendering.
pub(super) fn check_in(state: &State, template: &str) -> Result<(), Error> {
    let image = state.lookup("image");
    let os = image.and_then(|image| image.get_attr("os").ok());
    let os = os.as_ref().and_then(|os| os.as_str());
    check(template, os).map_err(|told| Error::new(ErrorKind::InvalidOperation, told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_for_its_own_family() {
        for (template, os, fits) in [
            ("debian/user-data", Some("debian"), true),
            ("debian/user-data", Some("ubuntu"), false),
            ("fcos/config.ign", Some("fedora-coreos"), true),
            ("common/motd", Some("talos"), true),
            ("site/motd", Some("talos"), true),
            ("motd", Some("talos"), true),
            ("talos/config", None, true),
            ("talos/config", Some("own"), false),
        ] {
            assert_eq!(check(template, os).is_ok(), fits, "{template} {os:?}");
        }
        assert_eq!(
            check("talos/config", Some("flatcar")).unwrap_err(),
            "template `talos/config` is for talos, and the image is flatcar: expected a template of \
             `flatcar/` or `common/`"
        );
    }
}
