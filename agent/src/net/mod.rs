//! Brings up the NIC that booted, by its MAC address, and gives it an IPv4 address: the one from
//! the kernel command line, else one by DHCP. Also sets the clock from the command line.
//!
//! Not here: any other NIC, IPv6, names. One link to one server is all the agent needs.

mod dhcp;
mod link;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anneal_protocol::cmdline::{Address, Boot};
use anneal_protocol::machine::Mac;
use anyhow::{Context as _, bail};

use crate::init::modules;

/// Drivers of big cards take their time to probe.
const FIND_NIC: Duration = Duration::from_secs(60);
/// Switch ports that run spanning tree stay silent for 30 seconds or more.
const WAIT_CARRIER: Duration = Duration::from_secs(90);

/// Makes the machine reachable. Blocks until it is.
///
/// # Errors
/// When there is no such NIC, no link, or no address; the text says which.
pub fn up(boot: &Boot) -> anyhow::Result<()> {
    let name = find(boot.mac)?;
    tracing::info!(nic = name, mac = %boot.mac, "found the NIC that booted");
    link::up("lo")?;
    link::up(&name)?;
    wait_for_carrier(&name)?;
    let address = match boot.address {
        Some(address) => address,
        None => dhcp::acquire(&name, boot.mac)?,
    };
    configure(&name, address)
}

fn configure(nic: &str, address: Address) -> anyhow::Result<()> {
    link::set_address(nic, address.ip, address.prefix)?;
    if let Some(gateway) = address.gateway {
        link::add_default_route(nic, gateway)?;
    }
    tracing::info!(
        nic,
        address = format!("{}/{}", address.ip, address.prefix),
        gateway = address.gateway.map(tracing::field::display),
        "network is up"
    );
    Ok(())
}

/// Sets the clock when it is off by more than a minute: certificates have lifetimes, and boards
/// with empty batteries think it is 1970. Less than that is the time it took to boot.
pub fn set_clock(secs: i64) {
    use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
    let now = clock_gettime(ClockId::Realtime);
    if now.tv_sec.abs_diff(secs) <= 60 {
        return;
    }
    let time = Timespec {
        tv_sec: secs,
        tv_nsec: 0,
    };
    match clock_settime(ClockId::Realtime, time) {
        Ok(()) => tracing::info!(moved_secs = secs - now.tv_sec, "clock set"),
        Err(error) => tracing::warn!(%error, "cannot set the clock"),
    }
}

fn find(mac: Mac) -> anyhow::Result<String> {
    let deadline = Instant::now() + FIND_NIC;
    loop {
        modules::coldplug();
        let found = nics(Path::new("/sys/class/net"));
        if let Some((name, _)) = found.iter().find(|(_, address)| *address == mac) {
            return Ok(name.clone());
        }
        if Instant::now() > deadline {
            let seen: Vec<String> = found.iter().map(|(n, m)| format!("{n} {m}")).collect();
            bail!(
                "no NIC has the address {mac} from the kernel command line; there are: {}",
                if seen.is_empty() {
                    "none (driver missing?)".to_owned()
                } else {
                    seen.join(", ")
                }
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Kernel name and address of every NIC with a device behind it.
fn nics(class: &Path) -> Vec<(String, Mac)> {
    let Ok(entries) = std::fs::read_dir(class) else {
        return Vec::new();
    };
    let mut found: Vec<(String, Mac)> = entries
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| {
            let mac = std::fs::read_to_string(entry.path().join("address")).ok()?;
            Some((
                entry.file_name().to_string_lossy().into_owned(),
                mac.trim().parse().ok()?,
            ))
        })
        .collect();
    found.sort();
    found
}

fn wait_for_carrier(nic: &str) -> anyhow::Result<()> {
    let path: PathBuf = Path::new("/sys/class/net").join(nic).join("carrier");
    let deadline = Instant::now() + WAIT_CARRIER;
    let mut said = false;
    loop {
        // Reading fails while the link is being brought up.
        if std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == "1") {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "{nic} has no link after {} s: check cable and switch port",
                WAIT_CARRIER.as_secs()
            );
        }
        if !said {
            tracing::info!(nic, "waiting for the link");
            said = true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Random bytes from the kernel.
///
/// # Errors
/// When the kernel has none to give.
pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    use std::io::Read as _;
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes)
}
