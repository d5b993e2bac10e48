//! Other places where an image's data lies: any HTTP server, or an OCI registry.
//!
//! A mirror is asked when it is added whether it has the right number of bytes, answers ranges,
//! and gives the right first and last frame. What it sends later is checked frame by frame by
//! whoever fetches: the manifest is trusted, never a mirror.
//!
//! Owns: reading mirror URLs, finding the blob behind an `oci://` reference. Not here: fetching
//! by agents, who have no credentials: what wants a login is no mirror.

use std::time::Duration;

use anneal_image::{Manifest, SignedManifest, decode_frame};
use reqwest::header::{ACCEPT, CONTENT_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::ingest::guard::Guard;
use super::{Catalog, ImageError, ImageRecord};
use crate::clock::now;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Longest OCI manifest that is read, in bytes; registries refuse longer ones too.
const OCI_MANIFEST: usize = 4 << 20;
const OCI_MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// Longest URL.
const MAX_URL: usize = 2048;
/// Most mirrors of one image.
const MAX_MIRRORS: usize = 16;

impl Catalog {
    /// Adds a mirror to an image, after asking it; returns the URL that agents will be told.
    ///
    /// # Errors
    /// When the image is unknown, or the mirror does not have its data.
    pub async fn add_mirror(
        &self,
        reference: &str,
        url: &str,
    ) -> Result<(ImageRecord, String), ImageError> {
        let image = self.resolve(reference).await?;
        if image.mirrors.len() >= MAX_MIRRORS {
            return Err(ImageError::Mirror(format!(
                "image {reference} has {MAX_MIRRORS} mirrors already: remove one first"
            )));
        }
        let manifest = self.manifest(&image).await?;
        let url = check(url, &manifest, self.guard).await?;
        self.store.add_image_mirror(&image.id, &url, now()).await?;
        tracing::info!(image = reference, url, "image mirror added");
        Ok((self.resolve(reference).await?, url))
    }

    /// Forgets a mirror; `url` as it is shown.
    ///
    /// # Errors
    /// When the image is unknown or has no such mirror.
    pub async fn remove_mirror(
        &self,
        reference: &str,
        url: &str,
    ) -> Result<ImageRecord, ImageError> {
        let image = self.resolve(reference).await?;
        if !self.store.remove_image_mirror(&image.id, url).await? {
            return Err(ImageError::Mirror(format!(
                "image {reference} has no mirror {url:?}; it has {}",
                match image.mirrors.is_empty() {
                    true => "none".to_owned(),
                    false => image.mirrors.join(", "),
                }
            )));
        }
        self.resolve(reference).await
    }

    /// The manifest of an image, verified.
    async fn manifest(&self, image: &ImageRecord) -> Result<Manifest, ImageError> {
        let missing = || ImageError::FilesMissing {
            reference: image.reference(),
            folder: self.folder.path(&image.id),
        };
        let path = self.manifest_path(&image.id).ok_or_else(missing)?;
        let (keys, id) = (self.public_keys(), image.id.clone());
        super::blocking(move || {
            let json = std::fs::read(&path).map_err(super::folder::failed("reading", &path))?;
            Ok(SignedManifest::open(&json, &keys, &id)?)
        })
        .await
    }
}

/// Asks every mirror of an image that is being added; returns the URLs that agents will be told.
pub(super) async fn check_all(
    urls: &[String],
    manifest: &Manifest,
    guard: Guard,
) -> Result<Vec<String>, ImageError> {
    if urls.len() > MAX_MIRRORS {
        return Err(ImageError::Mirror(format!(
            "{} mirrors, an image can have {MAX_MIRRORS}",
            urls.len()
        )));
    }
    let mut checked = Vec::new();
    for url in urls {
        checked.push(check(url, manifest, guard).await?);
    }
    Ok(checked)
}

/// Asks a mirror for the first and the last frame; returns the URL of the data.
async fn check(url: &str, manifest: &Manifest, guard: Guard) -> Result<String, ImageError> {
    let refuse = |reason: String| ImageError::Mirror(format!("mirror {url:?} {reason}"));
    let place = Place::parse(url).map_err(refuse)?;
    let first = match &place {
        Place::Http(url) => url,
        Place::Oci(oci) => &oci.base,
    };
    guard
        .url(first)
        .map_err(|error| refuse(format!("is refused: {error}")))?;
    let client = Client::builder()
        .no_proxy()
        .redirect(guard.redirects())
        .dns_resolver(guard.resolver())
        .connect_timeout(CONNECT_LIMIT)
        .timeout(ANSWER_LIMIT)
        .user_agent(concat!("anneal/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| refuse(format!("cannot be asked: {error}")))?;
    let data = match place {
        Place::Http(url) => url,
        Place::Oci(oci) => find_blob(&client, &oci, manifest.file_size())
            .await
            .map_err(refuse)?,
    };
    let last = manifest.frames().len() - 1;
    for frame in [0, last] {
        check_frame(&client, &data, manifest, frame)
            .await
            .map_err(refuse)?;
    }
    Ok(data.to_string())
}

async fn check_frame(
    client: &Client,
    url: &Url,
    manifest: &Manifest,
    frame: usize,
) -> Result<(), String> {
    let range = manifest.data_range(frame..frame + 1);
    let request = client
        .get(url.clone())
        .header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
    let response = request.send().await.map_err(|error| unreachable(&error))?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::OK => {
            return Err("does not answer ranges: it sent everything when asked for a part".into());
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            return Err(format!(
                "is too short: it has no bytes {}-{} of the image's {}",
                range.start,
                range.end - 1,
                manifest.file_size()
            ));
        }
        status => return Err(refused(status)),
    }
    let total = response.headers().get(CONTENT_RANGE);
    let total =
        total.and_then(|value| value.to_str().ok()?.rsplit_once('/')?.1.parse::<u64>().ok());
    if total != Some(manifest.file_size()) {
        let said = total.map_or_else(|| "not said how many".to_owned(), |total| total.to_string());
        return Err(format!(
            "has other data: it has {said} bytes, the image's data.zst has {}",
            manifest.file_size()
        ));
    }
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let bytes = body(response, length).await?;
    let mut raw = Vec::new();
    decode_frame(manifest, frame, &bytes, &mut raw)
        .map_err(|_| format!("has other data: frame {frame} is not that of the image"))
}

/// Where a mirror's URL points.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Http(Url),
    Oci(Oci),
}

#[derive(Debug, PartialEq, Eq)]
struct Oci {
    /// `https://registry[:port]/v2/repository/`.
    base: Url,
    /// Tag, or `sha256:` and a digest.
    reference: String,
}

impl Place {
    /// `http(s)://…`, or `oci://registry/repository:tag` or `@sha256:…` (`oci+http://` for a
    /// registry without TLS).
    fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_URL {
            return Err(format!("is longer than {MAX_URL} bytes"));
        }
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
        let place = match scheme {
            "http" | "https" => {
                Self::Http(Url::parse(text).map_err(|error| format!("cannot be read: {error}"))?)
            }
            "oci" => Self::Oci(Oci::parse("https", &text["oci://".len()..])?),
            "oci+http" => Self::Oci(Oci::parse("http", &text["oci+http://".len()..])?),
            _ => return Err("is not an http, https or oci URL".to_owned()),
        };
        let url = match &place {
            Self::Http(url) => url,
            Self::Oci(oci) => &oci.base,
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "has a user name or password: it would be shown to everybody who lists images"
                    .to_owned(),
            );
        }
        if url.fragment().is_some() {
            return Err("has a fragment, which no server sees".to_owned());
        }
        Ok(place)
    }
}

impl Oci {
    fn parse(scheme: &str, rest: &str) -> Result<Self, String> {
        let wrong = || "is not oci://registry/repository:tag or @sha256:digest".to_owned();
        let (registry, path) = rest.split_once('/').ok_or_else(wrong)?;
        let (repository, reference) = match path.split_once('@') {
            Some((repository, digest)) => (repository, digest),
            None => path.rsplit_once(':').unwrap_or((path, "latest")),
        };
        let word = |text: &str, more: &str| {
            !text.is_empty()
                && text.len() <= 255
                && !text.contains("..")
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if registry.is_empty() || !word(repository, "._-/") || !word(reference, "._-:") {
            return Err(wrong());
        }
        let base = Url::parse(&format!("{scheme}://{registry}/v2/{repository}/"));
        Ok(Self {
            base: base.map_err(|error| format!("cannot be read: {error}"))?,
            reference: reference.to_owned(),
        })
    }
}

/// The part of an OCI manifest that matters here (image-spec 1.1, manifest.md).
#[derive(Deserialize)]
struct OciManifest {
    #[serde(default)]
    layers: Vec<OciLayer>,
}

#[derive(Deserialize)]
struct OciLayer {
    digest: String,
    size: u64,
}

/// The blob of `size` bytes that the manifest names (distribution-spec 1.1, pull).
async fn find_blob(client: &Client, oci: &Oci, size: u64) -> Result<Url, String> {
    let joined = |path: String| {
        let url = oci.base.join(&path);
        url.map_err(|error| format!("cannot be read: {error}"))
    };
    let url = joined(format!("manifests/{}", oci.reference))?;
    let request = client.get(url).header(ACCEPT, OCI_MANIFEST_TYPES);
    let response = request.send().await.map_err(|error| unreachable(&error))?;
    if response.status() != StatusCode::OK {
        return Err(refused(response.status()));
    }
    let manifest: OciManifest = serde_json::from_slice(&body(response, OCI_MANIFEST).await?)
        .map_err(|error| format!("has a manifest that cannot be read: {error}"))?;
    let mut layers = manifest.layers.iter().filter(|layer| layer.size == size);
    let layer = layers.next().ok_or_else(|| {
        let sizes: Vec<_> = manifest.layers.iter().map(|l| l.size.to_string()).collect();
        format!(
            "has no layer of {size} bytes, the size of the image's data.zst; its layers have [{}]",
            sizes.join(", ")
        )
    })?;
    let hex = layer.digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Err("has a layer without a SHA-256 digest".to_owned());
    }
    // A relative URL must not begin with a word and a colon.
    joined(format!("./blobs/{}", layer.digest))
}

/// The body, which has at most `most` bytes.
async fn body(mut response: Response, most: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| unreachable(&error))?
    {
        if bytes.len() + chunk.len() > most {
            return Err(format!("sent more than the {most} bytes asked for"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn unreachable(error: &reqwest::Error) -> String {
    let mut text = format!("does not answer: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn refused(status: StatusCode) -> String {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
            "answers {status}: agents fetch without credentials, so it must be readable by everybody"
        ),
        status => format!("answers {status}"),
    }
}

#[cfg(test)]
mod tests;
