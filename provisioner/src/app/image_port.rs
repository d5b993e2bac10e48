//! Binds the image port and says how machines reach it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::event::Recorder;
use crate::http::blob::{Config, Patience, Server};
use crate::image::Catalog;
use crate::machine::Directory;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// The port, bound, and its base URL; none when images go over TLS only.
pub(super) async fn bind(
    settings: &Settings,
    images: &Arc<Catalog>,
    directory: &Directory,
    recorder: &Recorder,
    metrics: &Metrics,
) -> anyhow::Result<Option<(Server, String)>> {
    let Some(address) = settings.images.listen else {
        return Ok(None);
    };
    let config = Config {
        images: images.clone(),
        directory: directory.clone(),
        recorder: recorder.clone(),
        metrics: metrics.image_port(),
        limits: settings.images.limits,
        patience: Patience::default(),
    };
    let server = Server::bind(address, config).await?;
    let reached = reached_at(server.local_addr()?, settings.address.ip);
    Ok(Some((server, format!("http://{reached}"))))
}

/// How machines reach a socket: one that is bound to every address is reached at ours.
pub(super) fn reached_at(bound: SocketAddr, own: Ipv4Addr) -> SocketAddr {
    let ip = if bound.ip().is_unspecified() {
        IpAddr::V4(own)
    } else {
        bound.ip()
    };
    SocketAddr::new(ip, bound.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_told_an_address_they_can_reach() {
        let own = Ipv4Addr::new(10, 77, 0, 1);
        for (bound, reached) in [
            ("0.0.0.0:8081", "10.77.0.1:8081"),
            ("10.78.0.1:80", "10.78.0.1:80"),
        ] {
            let at = reached_at(bound.parse().unwrap(), own);
            assert_eq!(at.to_string(), reached);
        }
    }
}
