//! Interface flags, address and route by the classic ioctls (netdevice(7), route(7)).

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;

use anyhow::Context as _;
use rustix::net::{AddressFamily, SocketType, socket};

/// Switches an interface on.
pub fn up(nic: &str) -> anyhow::Result<()> {
    let mut request = request(nic)?;
    let fd = inet()?;
    call(&fd, libc::SIOCGIFFLAGS, &mut request)
        .with_context(|| format!("cannot read the flags of {nic}"))?;
    // SAFETY: SIOCGIFFLAGS has just filled the flags member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // IFF_UP is 1: it fits.
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    call(&fd, libc::SIOCSIFFLAGS, &mut request).with_context(|| format!("cannot switch {nic} on"))
}

/// Gives an interface its address.
pub fn set_address(nic: &str, ip: Ipv4Addr, prefix: u8) -> anyhow::Result<()> {
    let fd = inet()?;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    for (what, code, value) in [
        ("address", libc::SIOCSIFADDR, ip),
        ("netmask", libc::SIOCSIFNETMASK, Ipv4Addr::from(mask)),
    ] {
        let mut request = request(nic)?;
        request.ifr_ifru.ifru_addr = sockaddr(value);
        call(&fd, code, &mut request)
            .with_context(|| format!("cannot set the {what} {value} on {nic}"))?;
    }
    Ok(())
}

/// Adds the default route. A gateway outside the subnet gets a host route first.
pub fn add_default_route(nic: &str, gateway: Ipv4Addr) -> anyhow::Result<()> {
    let up = libc::RTF_UP;
    let host = add_route(nic, gateway, Ipv4Addr::BROADCAST, None, up | libc::RTF_HOST);
    host.with_context(|| format!("cannot route to the gateway {gateway} through {nic}"))?;
    let any = Ipv4Addr::UNSPECIFIED;
    add_route(nic, any, any, Some(gateway), up | libc::RTF_GATEWAY)
        .with_context(|| format!("cannot set the default route to {gateway}"))
}

fn add_route(
    nic: &str,
    to: Ipv4Addr,
    mask: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    flags: u16,
) -> std::io::Result<()> {
    let name = std::ffi::CString::new(nic)?;
    // SAFETY: rtentry is plain data; all zero is a valid value.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = sockaddr(to);
    route.rt_genmask = sockaddr(mask);
    route.rt_gateway = sockaddr(gateway.unwrap_or(Ipv4Addr::UNSPECIFIED));
    route.rt_flags = flags;
    route.rt_dev = name.as_ptr().cast_mut();
    let fd = inet()?;
    // SAFETY: `route` and the name it points to outlive the call; SIOCADDRT only reads them.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCADDRT as _, &route) };
    match std::io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}

fn inet() -> std::io::Result<OwnedFd> {
    Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)?)
}

fn request(nic: &str) -> anyhow::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data; all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    anyhow::ensure!(
        nic.len() < request.ifr_name.len(),
        "interface name {nic} is too long"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(nic.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn sockaddr(ip: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr is plain data; all zero is a valid value.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::AF_INET as libc::sa_family_t;
    // sockaddr_in (ip(7)): two bytes of port, then the address in network order.
    for (to, from) in address.sa_data[2..6].iter_mut().zip(ip.octets()) {
        *to = from as libc::c_char;
    }
    address
}

fn call(fd: &OwnedFd, code: libc::c_ulong, request: &mut libc::ifreq) -> std::io::Result<()> {
    // SAFETY: the codes used here read or fill one ifreq, which `request` is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), code as _, std::ptr::from_mut(request)) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
