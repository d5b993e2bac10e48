//! What `anneal serve` says when it starts: where everything is.

use super::App;
use crate::machine::check::size_text;
use crate::settings::Settings;

impl App {
    /// What an operator wants to see at start.
    ///
    /// # Errors
    /// When a socket is gone.
    pub fn banner(&self) -> anyhow::Result<String> {
        let settings = &self.shared.settings;
        let mut lines = vec![
            format!(
                "anneal {} on {} ({})",
                env!("CARGO_PKG_VERSION"),
                settings.interface,
                settings.address
            ),
            format!(
                "  API, agents, nodes   https://{}",
                self.tls_listener.local_addr()?
            ),
            format!(
                "  boot files           http://{}/boot/",
                self.boot_listener.local_addr()?
            ),
        ];
        lines.push(match &self.shared.image_url {
            Some(url) => format!("  images               {url}/images/{}", limits(settings)),
            None => "  images               to agents only, over TLS".to_owned(),
        });
        if let Some(base) = &self.shared.metadata_url {
            lines.push(format!("  metadata             {}", base.url));
        }
        if let Some(endpoint) = &self.shared.event_sink {
            lines.push(format!("  Talos' events        {endpoint}"));
        }
        lines.push(match &self.tftp {
            Some(_) => format!("  TFTP                 {}:69", settings.address.ip),
            None => "  TFTP                 off".to_owned(),
        });
        lines.push(match &settings.dhcp {
            Some(dhcp) => format!(
                "  DHCP                 {}: {}",
                settings.interface,
                dhcp_scope(dhcp)
            ),
            None => "  DHCP                 off".to_owned(),
        });
        lines.push(format!(
            "  state                {}",
            settings.state_dir.display()
        ));
        lines.push(format!(
            "  CA fingerprint       sha256:{}",
            self.shared.pki.ca_sha256()
        ));
        lines.push(format!(
            "  admin context        {}",
            settings.state_dir.join("admin.context.json").display()
        ));
        Ok(lines.join("\n"))
    }
}

/// The limits of the image port, for people.
fn limits(settings: &Settings) -> String {
    let limits = settings.images.limits;
    let each = [
        ("a machine", limits.per_machine),
        ("in total", limits.total),
    ];
    let said: Vec<String> = each
        .into_iter()
        .filter_map(|(what, rate)| Some(format!("{}/s {what}", size_text(rate?))))
        .collect();
    match said.is_empty() {
        true => String::new(),
        false => format!(" (at most {})", said.join(", ")),
    }
}

fn dhcp_scope(dhcp: &crate::settings::DhcpSettings) -> String {
    match (dhcp.pool, dhcp.serve_unknown) {
        (Some((first, last)), true) => {
            format!("reserved addresses of the inventory, {first} to {last} for anybody else")
        }
        (Some((first, last)), false) => {
            format!("reserved addresses of the inventory, {first} to {last} for the rest of it")
        }
        (None, _) => "reserved addresses of the inventory, nobody else".to_owned(),
    }
}
