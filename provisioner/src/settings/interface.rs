//! Which network interface and address to serve on.
//!
//! [`choose`] is pure; [`list`] asks the kernel. Not here: opening sockets on it.

use std::net::Ipv4Addr;

use nix::net::if_::InterfaceFlags;

use crate::machine::Cidr;

/// A network interface of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Can broadcast and is not the loopback: machines can be on it.
    pub broadcast: bool,
    /// IPv4 addresses, in the kernel's order.
    pub addresses: Vec<Cidr>,
}

/// The interfaces of this host.
///
/// # Errors
/// When the kernel does not tell.
pub fn list() -> std::io::Result<Vec<Interface>> {
    let mut interfaces: Vec<Interface> = Vec::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        let index = match interfaces
            .iter()
            .position(|interface| interface.name == entry.interface_name)
        {
            Some(index) => index,
            None => {
                let flags = entry.flags;
                interfaces.push(Interface {
                    name: entry.interface_name,
                    up: flags.contains(InterfaceFlags::IFF_UP),
                    broadcast: flags.contains(InterfaceFlags::IFF_BROADCAST)
                        && !flags.contains(InterfaceFlags::IFF_LOOPBACK),
                    addresses: Vec::new(),
                });
                interfaces.len() - 1
            }
        };
        let v4 = |address: Option<nix::sys::socket::SockaddrStorage>| {
            address.and_then(|a| a.as_sockaddr_in().map(|a| a.ip()))
        };
        if let (Some(ip), Some(mask)) = (v4(entry.address), v4(entry.netmask)) {
            let prefix = u8::try_from(mask.to_bits().leading_ones()).unwrap_or(32);
            interfaces[index].addresses.push(Cidr { ip, prefix });
        }
    }
    Ok(interfaces)
}

/// Chooses the interface and our address on it from what was asked for; with nothing asked for,
/// the only interface that is up and has an IPv4 address.
///
/// # Errors
/// Says which interfaces there are and which flag decides.
pub fn choose(
    interfaces: &[Interface],
    name: Option<&str>,
    address: Option<Cidr>,
) -> Result<(String, Cidr), String> {
    let interface = match (name, address) {
        (Some(name), _) => named(interfaces, name)?,
        (None, Some(address)) => interfaces
            .iter()
            .find(|interface| interface.addresses.iter().any(|a| a.ip == address.ip))
            .ok_or_else(|| {
                format!(
                    "no interface has the address {}{}",
                    address.ip,
                    known(interfaces)
                )
            })?,
        (None, None) => only(interfaces)?,
    };
    if !interface.up {
        return Err(format!(
            "interface {name} is down: run `ip link set {name} up`",
            name = interface.name
        ));
    }
    let own = address_on(interface, address.map(|address| address.ip))?;
    if let Some(address) = address.filter(|address| address.prefix != own.prefix) {
        return Err(format!(
            "interface {} has {own}, not {address}: use the same prefix length",
            interface.name
        ));
    }
    Ok((interface.name.clone(), own))
}

fn named<'a>(interfaces: &'a [Interface], name: &str) -> Result<&'a Interface, String> {
    interfaces
        .iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| format!("no interface is called {name}{}", known(interfaces)))
}

fn only(interfaces: &[Interface]) -> Result<&Interface, String> {
    let candidates: Vec<&Interface> = interfaces
        .iter()
        .filter(|interface| interface.up && interface.broadcast && !interface.addresses.is_empty())
        .collect();
    match candidates.as_slice() {
        [one] => Ok(one),
        [] => Err(format!(
            "no interface is up with an IPv4 address{}: give one an address, or choose with \
             --interface",
            known(interfaces)
        )),
        several => Err(format!(
            "several interfaces could be the one that machines are on: {}: choose with \
             --interface",
            several
                .iter()
                .map(|i| describe(i))
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
}

fn address_on(interface: &Interface, wanted: Option<Ipv4Addr>) -> Result<Cidr, String> {
    let name = &interface.name;
    match wanted {
        Some(ip) => interface
            .addresses
            .iter()
            .find(|address| address.ip == ip)
            .copied()
            .ok_or_else(|| {
                format!(
                    "interface {} does not have the address {ip}",
                    describe(interface)
                )
            }),
        None => interface.addresses.first().copied().ok_or_else(|| {
            format!(
                "interface {name} has no IPv4 address: run `ip address add 10.77.0.1/24 dev {name}`"
            )
        }),
    }
}

fn known(interfaces: &[Interface]) -> String {
    let names: Vec<String> = interfaces
        .iter()
        .filter(|interface| interface.broadcast)
        .map(describe)
        .collect();
    if names.is_empty() {
        return " (there are none)".to_owned();
    }
    format!(" (there are: {})", names.join(", "))
}

fn describe(interface: &Interface) -> String {
    let what = if !interface.up {
        "down".to_owned()
    } else if interface.addresses.is_empty() {
        "no IPv4 address".to_owned()
    } else {
        let addresses: Vec<String> = interface.addresses.iter().map(Cidr::to_string).collect();
        addresses.join(" ")
    };
    format!("{} ({what})", interface.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, up: bool, addresses: &[&str]) -> Interface {
        Interface {
            name: name.to_owned(),
            up,
            broadcast: name != "lo",
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn host() -> Vec<Interface> {
        vec![
            interface("lo", true, &["127.0.0.1/8"]),
            interface("eth0", true, &["192.0.2.7/24"]),
            interface("eth1", true, &["10.77.0.1/24", "10.78.0.1/16"]),
            interface("eth2", false, &[]),
            interface("eth3", true, &[]),
        ]
    }

    #[test]
    fn takes_the_only_one() {
        let host = &host()[..2];
        assert_eq!(
            choose(host, None, None),
            Ok(("eth0".to_owned(), "192.0.2.7/24".parse().unwrap()))
        );
    }

    #[test]
    fn takes_what_is_asked_for() {
        let eth1 = |address: &str| Ok(("eth1".to_owned(), address.parse().unwrap()));
        assert_eq!(choose(&host(), Some("eth1"), None), eth1("10.77.0.1/24"));
        let second = "10.78.0.1/16".parse().unwrap();
        assert_eq!(choose(&host(), None, Some(second)), eth1("10.78.0.1/16"));
        assert_eq!(
            choose(&host(), Some("eth1"), Some(second)),
            eth1("10.78.0.1/16")
        );
    }

    #[test]
    fn says_what_there_is_and_what_to_do() {
        let cidr = |text: &str| Some(text.parse().unwrap());
        for (name, address, told) in [
            (
                None,
                None,
                "several interfaces could be the one that machines are on: eth0 (192.0.2.7/24), eth1 (10.77.0.1/24 10.78.0.1/16): choose with --interface",
            ),
            (
                Some("br0"),
                None,
                "no interface is called br0 (there are: eth0 (192.0.2.7/24), eth1 (10.77.0.1/24 10.78.0.1/16), eth2 (down), eth3 (no IPv4 address))",
            ),
            (
                Some("eth2"),
                None,
                "interface eth2 is down: run `ip link set eth2 up`",
            ),
            (
                Some("eth3"),
                None,
                "interface eth3 has no IPv4 address: run `ip address add 10.77.0.1/24 dev eth3`",
            ),
            (
                Some("eth0"),
                cidr("10.77.0.1/24"),
                "interface eth0 (192.0.2.7/24) does not have the address 10.77.0.1",
            ),
            (
                Some("eth0"),
                cidr("192.0.2.7/16"),
                "interface eth0 has 192.0.2.7/24, not 192.0.2.7/16: use the same prefix length",
            ),
        ] {
            assert_eq!(choose(&host(), name, address).unwrap_err(), told);
        }
        assert_eq!(
            choose(&host()[..1], None, None).unwrap_err(),
            "no interface is up with an IPv4 address (there are none): give one an address, or \
             choose with --interface"
        );
    }

    #[test]
    fn the_kernel_lists_the_loopback() {
        let interfaces = list().unwrap();
        let lo = interfaces.iter().find(|i| i.name == "lo").unwrap();
        assert!(!lo.broadcast);
    }
}
