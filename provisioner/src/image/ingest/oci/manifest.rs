//! Manifests and indexes of registries, and choosing from them. Pure.
//!
//! Source: OCI image specification 1.1, and Docker's manifest schema 2, which means the same.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::image::ingest::IngestError;

const VERSION: &str = "org.opencontainers.image.version";
const TITLE: &str = "org.opencontainers.image.title";
/// A placeholder for "no content" (image specification 1.1).
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// A layer that is so many times larger than the next is the disk.
const LARGER: u64 = 16;

/// `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// Reads `linux/amd64`.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn parse(text: &str) -> Result<Self, IngestError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() {
            return Err(IngestError::Invalid(format!(
                "platform {text:?} is not of the form linux/amd64"
            )));
        }
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
    }
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<DescribedPlatform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct DescribedPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl DescribedPlatform {
    fn name(&self) -> String {
        let variant = self.variant.as_ref().map(|variant| format!("/{variant}"));
        format!(
            "{}/{}{}",
            self.os,
            self.architecture,
            variant.unwrap_or_default()
        )
    }
}

/// One or the other.
#[derive(Debug)]
pub enum Manifest {
    /// Manifests for several platforms.
    Index(Index),
    /// Layers.
    Image(Image),
}

/// Manifests for several platforms.
#[derive(Debug, Deserialize)]
pub struct Index {
    manifests: Vec<Descriptor>,
}

/// Layers.
#[derive(Debug, Deserialize)]
pub struct Image {
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A layer that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its file name, if the manifest tells.
    pub title: Option<String>,
    version: Option<String>,
}

impl Manifest {
    /// Reads a manifest or an index.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(bytes: &[u8]) -> Result<Self, IngestError> {
        let wrong = |why: String| {
            IngestError::Source(format!(
                "what the registry has under this reference is not an image manifest or index: {why}"
            ))
        };
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if value.get("manifests").is_some() {
            let index = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
            return Ok(Self::Index(index));
        }
        if value.get("layers").is_some() {
            let image = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
            return Ok(Self::Image(image));
        }
        Err(wrong("it has neither layers nor manifests".to_owned()))
    }
}

impl Index {
    /// The digest of the manifest for a platform.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn choose(&self, wanted: &Platform) -> Result<String, IngestError> {
        let fits = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_some_and(|platform| {
                platform.os == wanted.os
                    && platform.architecture == wanted.architecture
                    && (wanted.variant.is_none() || platform.variant == wanted.variant)
            })
        };
        let mut fitting = self.manifests.iter().filter(fits);
        match (fitting.next(), fitting.next(), &self.manifests[..]) {
            (Some(one), None, _) => Ok(one.digest.clone()),
            // An index around a single artefact for no platform in particular.
            (None, _, [only]) if only.platform.is_none() => Ok(only.digest.clone()),
            (found, ..) => Err(IngestError::Invalid(format!(
                "the index has {} for {}/{}, choose with `--platform` or by digest from: {}",
                if found.is_some() {
                    "several images"
                } else {
                    "no image"
                },
                wanted.os,
                wanted.architecture,
                self.list()
            ))),
        }
    }

    fn list(&self) -> String {
        let one = |descriptor: &Descriptor| match &descriptor.platform {
            Some(platform) => format!("{} ({})", platform.name(), descriptor.digest),
            None => descriptor.digest.clone(),
        };
        self.manifests
            .iter()
            .map(one)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Image {
    /// The layer with the disk: the one that `wanted` names (digest, title or media type), the
    /// only one, the only one that says it is a disk, or one that dwarfs the others.
    ///
    /// # Errors
    /// When none of these is one layer.
    pub fn choose(&self, wanted: Option<&str>) -> Result<Layer, IngestError> {
        let layers: Vec<&Descriptor> = self
            .layers
            .iter()
            .filter(|layer| layer.size > 0 && layer.media_type != EMPTY)
            .collect();
        if let Some(wanted) = wanted {
            let named = layers.iter().filter(|layer| {
                layer.digest == wanted
                    || layer.media_type == wanted
                    || layer
                        .annotations
                        .get(TITLE)
                        .is_some_and(|title| title == wanted)
            });
            return match named.collect::<Vec<_>>()[..] {
                [one] => Ok(one.layer()),
                ref several => Err(IngestError::Invalid(format!(
                    "{} layers are {wanted:?}, one was expected: {}",
                    several.len(),
                    list(&layers)
                ))),
            };
        }
        if let [only] = layers[..] {
            return Ok(only.layer());
        }
        if let [disk] = layers
            .iter()
            .filter(|layer| layer.is_disk())
            .collect::<Vec<_>>()[..]
        {
            return Ok(disk.layer());
        }
        let mut by_size = layers.clone();
        by_size.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        if let [first, second, ..] = by_size[..]
            && first.size / LARGER >= second.size
        {
            return Ok(first.layer());
        }
        Err(IngestError::Invalid(format!(
            "which layer holds the disk is not clear, choose with `--layer DIGEST` from: {}",
            list(&layers)
        )))
    }

    /// The version that the layer's or the manifest's annotations tell.
    #[must_use]
    pub fn version(&self, layer: &Layer) -> Option<String> {
        layer
            .version
            .clone()
            .or_else(|| self.annotations.get(VERSION).cloned())
    }
}

impl Descriptor {
    fn layer(&self) -> Layer {
        Layer {
            digest: self.digest.clone(),
            size: self.size,
            title: self.annotations.get(TITLE).cloned(),
            version: self.annotations.get(VERSION).cloned(),
        }
    }

    fn is_disk(&self) -> bool {
        let title = self.annotations.get(TITLE).map_or("", String::as_str);
        let title = [".gz", ".xz", ".bz2", ".zst", ".lz4"]
            .iter()
            .find_map(|ending| title.strip_suffix(ending))
            .unwrap_or(title);
        let named = [".raw", ".img", ".qcow2", ".iso", ".bin"];
        let typed = ["disk", "qcow2", "raw", "iso"];
        let words = || self.media_type.split(|c: char| !c.is_ascii_alphanumeric());
        named.iter().any(|ending| title.ends_with(ending))
            || words().any(|word| typed.contains(&word))
    }
}

fn list(layers: &[&Descriptor]) -> String {
    let one = |layer: &&Descriptor| {
        let title = layer
            .annotations
            .get(TITLE)
            .map(|title| format!(" {title:?}"));
        format!(
            "{}{} ({}, {} bytes)",
            layer.digest,
            title.unwrap_or_default(),
            layer.media_type,
            layer.size
        )
    };
    match layers {
        [] => "no layers".to_owned(),
        layers => layers.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(layers: serde_json::Value) -> Image {
        let json = serde_json::json!({ "layers": layers, "annotations": { VERSION: "12.9" } });
        match Manifest::parse(json.to_string().as_bytes()).unwrap() {
            Manifest::Image(image) => image,
            Manifest::Index(_) => panic!("an index"),
        }
    }

    fn layer(name: &str, media_type: &str, size: u64, title: Option<&str>) -> serde_json::Value {
        let mut value = serde_json::json!({
            "mediaType": media_type, "digest": format!("sha256:{name}"), "size": size,
        });
        if let Some(title) = title {
            value["annotations"] = serde_json::json!({ TITLE: title });
        }
        value
    }

    #[test]
    fn the_disk_is_the_only_layer_or_says_so_or_dwarfs_the_others() {
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let only = image(serde_json::json!([
            layer("a", tar, 9, None),
            layer("e", EMPTY, 2, None)
        ]));
        let found = only.choose(None).unwrap();
        assert_eq!(found.digest, "sha256:a");
        assert_eq!(only.version(&found).as_deref(), Some("12.9"));
        let titled = image(serde_json::json!([
            layer("a", tar, 9, Some("README.md")),
            layer("b", tar, 9, Some("disk.raw.xz"))
        ]));
        assert_eq!(titled.choose(None).unwrap().digest, "sha256:b");
        let typed = image(serde_json::json!([
            layer("a", tar, 9, None),
            layer("b", "application/vnd.example.disk.v1", 9, None)
        ]));
        assert_eq!(typed.choose(None).unwrap().digest, "sha256:b");
        let sized = image(serde_json::json!([
            layer("a", tar, 160, None),
            layer("b", tar, 10, None)
        ]));
        assert_eq!(sized.choose(None).unwrap().digest, "sha256:a");
    }

    #[test]
    fn what_is_not_clear_is_listed_and_can_be_named() {
        let tar = "application/vnd.oci.image.layer.v1.tar";
        let two = image(serde_json::json!([
            layer("a", tar, 100, Some("one")),
            layer("b", tar, 90, None)
        ]));
        let error = two.choose(None).unwrap_err().to_string();
        for word in ["--layer", "sha256:a \"one\"", "sha256:b", "90 bytes"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(two.choose(Some("sha256:b")).unwrap().digest, "sha256:b");
        assert_eq!(two.choose(Some("one")).unwrap().digest, "sha256:a");
        let error = two.choose(Some(tar)).unwrap_err().to_string();
        assert!(error.contains("2 layers are"), "{error}");
        let none = image(serde_json::json!([]));
        assert!(
            none.choose(None)
                .unwrap_err()
                .to_string()
                .contains("no layers")
        );
    }

    #[test]
    fn the_platform_is_picked_from_an_index() {
        let json = serde_json::json!({ "manifests": [
            { "digest": "sha256:a", "size": 1, "platform": { "os": "linux", "architecture": "amd64" } },
            { "digest": "sha256:b", "size": 1, "platform": { "os": "linux", "architecture": "arm64", "variant": "v8" } },
            { "digest": "sha256:c", "size": 1, "platform": { "os": "unknown", "architecture": "unknown" } },
        ]});
        let Manifest::Index(index) = Manifest::parse(json.to_string().as_bytes()).unwrap() else {
            panic!("not an index");
        };
        let choose = |text: &str| index.choose(&Platform::parse(text).unwrap());
        assert_eq!(choose("linux/amd64").unwrap(), "sha256:a");
        assert_eq!(choose("linux/arm64").unwrap(), "sha256:b");
        assert_eq!(choose("linux/arm64/v8").unwrap(), "sha256:b");
        let error = choose("linux/riscv64").unwrap_err().to_string();
        assert!(error.contains("linux/arm64/v8 (sha256:b)"), "{error}");
        assert!(Platform::parse("amd64").is_err());
    }
}
