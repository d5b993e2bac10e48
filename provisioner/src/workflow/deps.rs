//! What the engine needs from other rooms, as small traits, so that it can be tested without them.

use std::fmt::Debug;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anneal_image::SigningKey;

use crate::bmc::BmcControl;
use crate::event::Recorder;
use crate::image::{Catalog, ImageError};
use crate::render::{ImageFacts, MetadataBase, Renderer};
use crate::store::Store;
use crate::token::issuer::Issuers;
use crate::token::{Mint, Purpose, Tokens};

/// A boxed future.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Everything the engine works with.
#[derive(Debug, Clone)]
pub struct EngineDeps {
    /// State.
    pub store: Store,
    /// Events.
    pub recorder: Recorder,
    /// Power.
    pub bmc: Arc<dyn BmcControl>,
    /// Templates.
    pub renderer: Arc<Renderer>,
    /// Tokens for nodes.
    pub tokens: Arc<dyn TokenSource>,
    /// Tokens with which machines join clusters.
    pub join: Arc<Issuers>,
    /// Images.
    pub images: Arc<dyn ImageSource>,
    /// Folder of workflows that come before the built-in ones.
    pub workflows_dir: Option<PathBuf>,
    /// How long an agent may be silent before its step counts as lost.
    pub agent_silence: Duration,
    /// The daemon's TLS address for nodes, `https://10.77.0.1:8443`.
    pub node_url: String,
    /// The boot listener's address, `http://10.77.0.1:8080`, if configuration may be fetched there.
    pub plain_config_url: Option<String>,
    /// Where the metadata service is reached, if it is on.
    pub metadata_url: Option<MetadataBase>,
    /// The event sink as machines reach it, `10.77.0.1:8082`; none when it is off.
    pub event_sink: Option<String>,
    /// The daemon's CA, PEM.
    pub ca_pem: String,
    /// Base URL of the image port, `http://10.77.0.1:8081`; none when images go over TLS only.
    /// [`crate::http::blob::url`] makes the URL of a file.
    pub image_url: Option<String>,
}

/// Makes and revokes tokens of runs.
pub trait TokenSource: Debug + Send + Sync {
    /// A token's secret.
    fn mint<'a>(&'a self, mint: Mint<'a>) -> Boxed<'a, anyhow::Result<String>>;
    /// Revokes what is left of a run's tokens, or all but those for phoning home.
    fn revoke<'a>(&'a self, run: &'a str, keep_phone_home: bool) -> Boxed<'a, anyhow::Result<()>>;
}

impl TokenSource for Tokens {
    fn mint<'a>(&'a self, mint: Mint<'a>) -> Boxed<'a, anyhow::Result<String>> {
        Box::pin(async move { Ok(Tokens::mint(self, mint).await?) })
    }

    fn revoke<'a>(&'a self, run: &'a str, keep_phone_home: bool) -> Boxed<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let but = keep_phone_home.then_some(Purpose::PhoneHome);
            self.revoke_run(run, but).await?;
            Ok(())
        })
    }
}

/// Knows images by name.
pub trait ImageSource: Debug + Send + Sync {
    /// The image `name@version`; `None` when there is none.
    fn resolve_image<'a>(
        &'a self,
        reference: &'a str,
    ) -> Boxed<'a, anyhow::Result<Option<ImageFacts>>>;
    /// URLs of other places that have the data of image `id`, which is or was `name@version`.
    fn mirrors<'a>(
        &'a self,
        reference: &'a str,
        id: &'a str,
    ) -> Boxed<'a, anyhow::Result<Vec<String>>>;
    /// The daemon's key, for statements.
    fn signing_key(&self) -> SigningKey;
}

impl ImageSource for Catalog {
    fn resolve_image<'a>(
        &'a self,
        reference: &'a str,
    ) -> Boxed<'a, anyhow::Result<Option<ImageFacts>>> {
        Box::pin(async move {
            match self.resolve(reference).await {
                Ok(image) => Ok(Some(ImageFacts {
                    id: image.id,
                    name: image.name,
                    version: image.version,
                    os: image.os,
                    os_version: image.os_version,
                    size: image.size,
                    sha256: image.sha256,
                    unproven: image.proof.is_none(),
                })),
                Err(ImageError::NotFound(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn mirrors<'a>(
        &'a self,
        reference: &'a str,
        id: &'a str,
    ) -> Boxed<'a, anyhow::Result<Vec<String>>> {
        Box::pin(async move {
            match self.resolve(reference).await {
                Ok(image) if image.id == id => Ok(image.mirrors),
                Ok(_) | Err(ImageError::NotFound(_)) => Ok(Vec::new()),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn signing_key(&self) -> SigningKey {
        Self::signing_key(self)
    }
}
