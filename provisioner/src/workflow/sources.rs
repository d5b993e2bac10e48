//! Where an agent can fetch the data of an image: known only when the order is sent.
//!
//! The image's mirrors first, then the plain image port. The daemon's encrypted endpoint is the
//! agent's own last resort. None of them is trusted: the agent trusts the manifest.
//!
//! The netboot environment has no resolver, so the names of mirrors are looked up here. A mirror
//! whose name is unknown is still passed on: the agent's result then says so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anneal_protocol::agent::{AgentAction, StreamOptions};

use super::driver::Engine;
use super::run::Snapshot;
use crate::http::blob::{self, Part};

/// How long a name may take: the order waits for it.
const LOOKUP: Duration = Duration::from_secs(3);

impl Engine {
    /// Adds the sources to an order that writes an image.
    pub(super) async fn add_sources(&self, s: &Snapshot, action: &mut AgentAction) {
        let AgentAction::StreamImage { image, options, .. } = action else {
            return;
        };
        let deps = &self.inner.deps;
        if let Some(facts) = &s.plan.image {
            let reference = format!("{}@{}", facts.name, facts.version);
            match deps.images.mirrors(&reference, image).await {
                Ok(mirrors) => options.sources = mirrors,
                // The daemon itself still serves.
                Err(error) => tracing::warn!(image = reference, "no mirrors: {error:#}"),
            }
        }
        resolve(options).await;
        let hex = image.split_once(':').map_or(image.as_str(), |(_, hex)| hex);
        let own = deps.image_url.iter();
        options
            .sources
            .extend(own.map(|base| blob::url(base, hex, Part::Data)));
    }
}

/// Looks up the names in the sources.
async fn resolve(options: &mut StreamOptions) {
    let urls = options.sources.iter();
    let urls = urls.filter_map(|url| reqwest::Url::parse(url).ok());
    let names: BTreeSet<String> = urls
        .filter_map(|url| url.domain().map(str::to_owned))
        .collect();
    let mut hosts = BTreeMap::new();
    for name in names {
        let lookup = async {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: BTreeSet<IpAddr> = found.map(|address| address.ip()).collect();
            Ok::<_, std::io::Error>(found.into_iter().collect())
        };
        match tokio::time::timeout(LOOKUP, lookup).await {
            Ok(Ok(found)) => {
                hosts.insert(name.clone(), found);
            }
            Ok(Err(error)) => tracing::warn!(name, %error, "the mirror's name is unknown"),
            Err(_) => tracing::warn!(name, "the mirror's name was not found in time"),
        }
    }
    options.hosts = hosts;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_looked_up_and_addresses_are_not() {
        let mut options = StreamOptions {
            sources: vec![
                "http://localhost:81/data.zst".into(),
                "https://10.77.0.9/x".into(),
            ],
            ..StreamOptions::default()
        };
        resolve(&mut options).await;
        assert_eq!(options.hosts.len(), 1);
        assert!(options.hosts["localhost"].iter().all(IpAddr::is_loopback));
        assert_eq!(options.sources.len(), 2);
    }
}
