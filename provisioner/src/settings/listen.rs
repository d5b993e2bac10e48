//! `event_sink:` and `metadata:` of the settings, and what all say who listen somewhere.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::file::{ListenFile, MetadataFile};
use super::merge::{Given, Merge, refuse};
use super::{MetadataSettings, SettingsError};
use crate::machine::Cidr;
use crate::yaml::Spanned;

impl Merge<'_> {
    /// Off unless there is such a section; then it says where.
    pub(super) fn event_sink(
        &self,
        raw: Option<Spanned<ListenFile>>,
        own: Cidr,
        taken: &[(&str, u16)],
    ) -> Result<Option<SocketAddr>, SettingsError> {
        let Some(section) = raw else { return Ok(None) };
        let Some(listen) = &section.value.listen else {
            let message = "there is no event sink: expected `listen`, such as `listen: :8082`";
            return Err(self.place(&section).refuse(message));
        };
        self.listen(&self.in_file(listen), own.ip, taken).map(Some)
    }

    /// Off unless there is such a section; then it says where.
    pub(super) fn metadata(
        &self,
        raw: Option<Spanned<MetadataFile>>,
        own: Cidr,
        taken: &[(&str, u16)],
    ) -> Result<Option<MetadataSettings>, SettingsError> {
        let Some(section) = raw else { return Ok(None) };
        let Some(listen) = &section.value.listen else {
            let message =
                "there is no metadata service: expected `listen`, such as `listen: :8444`";
            return Err(self.place(&section).refuse(message));
        };
        let listen = self.listen(&self.in_file(listen), own.ip, taken)?;
        let plain = section.value.plain.unwrap_or(false);
        let ours = listen.ip().is_unspecified() || listen.ip() == IpAddr::V4(own.ip);
        if !plain && !ours {
            let message = format!(
                "the daemon's certificate is for {}: expected a port alone",
                own.ip
            );
            return Err(refuse("metadata.listen", message));
        }
        Ok(Some(MetadataSettings { listen, plain }))
    }

    /// Reads `:8081`, or `10.77.0.1:8081`; `taken` are the ports of others.
    pub(super) fn listen(
        &self,
        given: &Given,
        own: Ipv4Addr,
        taken: &[(&str, u16)],
    ) -> Result<SocketAddr, SettingsError> {
        let bad = || {
            given.refuse(format!(
                "\"{}\" is not where to listen: expected :8081 or 10.77.0.1:8081",
                given.text
            ))
        };
        let (host, port) = given.text.rsplit_once(':').ok_or_else(bad)?;
        let ip = match host {
            "" => own,
            host => host.parse().map_err(|_| bad())?,
        };
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(bad)?;
        if let Some((what, _)) = taken.iter().find(|(_, other)| *other == port) {
            let message = format!("the {what} port is {port} too: expected another one");
            return Err(given.refuse(message));
        }
        Ok((ip, port).into())
    }
}
