//! Versions of Ignition's specification, and what came with which.

use std::fmt;
use std::str::FromStr;

use crate::yaml::unknown_word;

/// A version of the specification, 3.0.0 to 3.5.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spec(u8);

/// The versions that can be written, oldest first.
const KNOWN: &[&str] = &["3.0.0", "3.1.0", "3.2.0", "3.3.0", "3.4.0", "3.5.0"];

impl Spec {
    /// 3.0.0, which every Ignition 2 takes.
    pub const V3_0: Self = Self(0);
    /// Compressed configurations, SHA-256, mount options.
    pub const V3_1: Self = Self(1);
    /// LUKS, resized partitions.
    pub const V3_2: Self = Self(2);
    /// Kernel arguments.
    pub const V3_3: Self = Self(3);
    /// Setuid, setgid and sticky bits; options of LUKS.
    pub const V3_4: Self = Self(4);
    /// LUKS with CEX.
    pub const V3_5: Self = Self(5);

    /// What a family's current releases surely take: Debian's Ignition 2.14 knows 3.3.0,
    /// OpenShift's pointer configuration is 3.2.0 since 4.7, Flatcar and Fedora CoreOS have had
    /// 3.4.0 since Ignition 2.15.
    #[must_use]
    pub fn of_family(os: &str) -> Self {
        match os {
            "flatcar" | "fcos" => Self::V3_4,
            "rhcos" => Self::V3_2,
            _ => Self::V3_3,
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "3.{}.0", self.0)
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = KNOWN.iter().position(|known| *known == text);
        let minor = found.and_then(|at| u8::try_from(at).ok());
        minor
            .map(Self)
            .ok_or_else(|| unknown_word("version of Ignition's specification", text, KNOWN))
    }
}
