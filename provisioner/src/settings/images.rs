//! `images:` of the settings: what images must bring along, where the image port listens and how
//! much it may send.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::SettingsError;
use super::file::ImagesFile;
use super::merge::{Given, Merge};
use crate::http::blob::Limits;
use crate::machine::Cidr;
use crate::machine::check::size;

/// Port of images when nothing else is said.
const PORT: u16 = 8081;
/// Slower than this, requests would time out, in bytes per second.
const SLOWEST: u64 = 64 * 1024;

/// What images must bring along, and how they are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSettings {
    /// Refuse images without proof of their publisher, unless an admin asks for it each time.
    pub require_proof: bool,
    /// Files of keys; when there are any, only signatures by these count.
    pub trusted_keys: Vec<PathBuf>,
    /// Where images are served over plain HTTP; none: only to agents, over TLS.
    pub listen: Option<SocketAddr>,
    /// Bandwidth of that port.
    pub limits: Limits,
    /// The largest raw disk that is taken, bytes: what a decompression bomb may become.
    pub max_size: u64,
    /// Fetch images from addresses of the daemon's own host and link, too: tests and labs.
    pub allow_local_sources: bool,
    /// How long an upload may be silent before it is given up.
    pub upload_patience: Duration,
}

impl Default for ImageSettings {
    fn default() -> Self {
        Self {
            require_proof: true,
            trusted_keys: Vec::new(),
            listen: None,
            limits: Limits::default(),
            max_size: 1 << 40,
            allow_local_sources: false,
            upload_patience: Duration::from_secs(600),
        }
    }
}

impl Merge<'_> {
    /// `own` is the address that machines reach us at; `taken` are the ports of others.
    pub(super) fn images(
        &self,
        raw: ImagesFile,
        own: Cidr,
        taken: [(&str, u16); 2],
    ) -> Result<ImageSettings, SettingsError> {
        let flag = self.flags.images_listen.as_ref();
        let listen = match self.pick("--images-listen", flag, raw.listen.as_ref()) {
            Some(given) => Some(self.listen(&given, own.ip, &taken)?),
            None => None,
        };
        let plain = raw.plain.unwrap_or(true) && !self.flags.no_plain_images;
        let default = SocketAddr::from((own.ip, PORT));
        let limit = |raw: Option<crate::yaml::Spanned<String>>| {
            raw.map(|value| rate(&self.in_file(&value))).transpose()
        };
        let keys = raw.trusted_keys.iter();
        let usual = ImageSettings::default();
        let max_size = raw.max_size.as_ref().map(|value| {
            let given = self.in_file(value);
            size(&given.text).map_err(|told| given.refuse(told))
        });
        Ok(ImageSettings {
            require_proof: raw.require_proof.unwrap_or(usual.require_proof),
            max_size: max_size.transpose()?.unwrap_or(usual.max_size),
            allow_local_sources: raw.allow_local_sources.unwrap_or(usual.allow_local_sources),
            upload_patience: self.duration(
                raw.upload_patience,
                usual.upload_patience,
                Duration::from_secs(1)..=Duration::from_secs(86_400),
            )?,
            trusted_keys: keys.map(|value| self.in_file(value).path()).collect(),
            listen: plain.then_some(listen.unwrap_or(default)),
            limits: Limits {
                per_machine: limit(raw.limit_per_machine)?,
                total: limit(raw.limit_total)?,
            },
        })
    }
}

/// Reads `100MiB/s`.
fn rate(given: &Given) -> Result<u64, SettingsError> {
    let text = given.text.trim();
    let bytes = text
        .strip_suffix("/s")
        .and_then(|size_text| size(size_text).ok());
    match bytes {
        Some(bytes) if bytes >= SLOWEST => Ok(bytes),
        Some(_) => Err(given.refuse(format!(
            "\"{text}\" is too slow to install anything: expected at least 64KiB/s"
        ))),
        None => Err(given.refuse(format!(
            "\"{text}\" is not a rate: expected bytes per second such as 100MiB/s or 1GB/s"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::interface::Interface;
    use super::super::{Flags, Host, Settings, merge};
    use super::*;

    fn with(text: &str, flags: &Flags) -> Result<Settings, SettingsError> {
        let host = Host {
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                up: true,
                broadcast: true,
                addresses: vec!["10.77.0.1/24".parse().unwrap()],
            }],
            program_dir: None,
            working_dir: "/".into(),
        };
        merge(Some((text, Path::new("/etc/anneal.yaml"))), flags, &host)
    }

    fn images(text: &str) -> ImageSettings {
        with(text, &Flags::default()).unwrap().images
    }

    #[test]
    fn listens_on_the_serving_address_unless_told_otherwise() {
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(images("tftp: true\n").listen, at("10.77.0.1:8081"));
        assert_eq!(
            images("images: { listen: ':81' }\n").listen,
            at("10.77.0.1:81")
        );
        assert_eq!(
            images("images: { listen: '0.0.0.0:81' }\n").listen,
            at("0.0.0.0:81")
        );
        assert_eq!(images("images: { plain: false }\n").listen, None);
        let flags = Flags {
            images_listen: Some(":99".to_owned()),
            ..Flags::default()
        };
        let settings = with("images: { listen: ':81' }\n", &flags).unwrap();
        assert_eq!(settings.images.listen, at("10.77.0.1:99"));
        let flags = Flags {
            no_plain_images: true,
            ..Flags::default()
        };
        assert_eq!(with("tftp: true\n", &flags).unwrap().images.listen, None);
    }

    #[test]
    fn reads_rates() {
        let limits = images("images: { limit_per_machine: 100MiB/s, limit_total: 1GB/s }\n").limits;
        assert_eq!(limits.per_machine, Some(100 << 20));
        assert_eq!(limits.total, Some(1_000_000_000));
        assert_eq!(images("tftp: true\n").limits, Limits::default());
    }

    #[test]
    fn tells_each_mistake_with_its_place() {
        for (text, told) in [
            (
                "images: { listen: '8081' }\n",
                "1:19: \"8081\" is not where to listen: expected :8081 or 10.77.0.1:8081",
            ),
            (
                "images: { listen: ':0' }\n",
                "1:19: \":0\" is not where to listen: expected :8081 or 10.77.0.1:8081",
            ),
            (
                "images: { limit_total: 100MiB }\n",
                "1:24: \"100MiB\" is not a rate: expected bytes per second such as 100MiB/s or 1GB/s",
            ),
            (
                "images: { limit_total: 1B/s }\n",
                "1:24: \"1B/s\" is too slow to install anything: expected at least 64KiB/s",
            ),
            (
                "images: { listen: ':8080' }\n",
                "1:19: the boot port is 8080 too: expected another one",
            ),
        ] {
            let error = with(text, &Flags::default()).unwrap_err();
            assert_eq!(error.to_string(), format!("/etc/anneal.yaml:{told}"));
        }
    }
}
