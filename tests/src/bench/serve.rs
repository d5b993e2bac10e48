//! Serving the same file to the same clients: the image port beside nginx.

use std::net::SocketAddr;
use std::time::Duration;

use super::measure::{busy, cpu_of, cpu_of_family, median};
use super::peers::{Anneal, Nginx};
use super::sink::{Take, fetch};
use super::world::World;

/// How many clients at once.
const CLIENTS: [usize; 3] = [1, 8, 32];

/// A server with so many clients.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Clients.
    pub clients: usize,
    /// The image port.
    pub anneal: Served,
    /// nginx.
    pub nginx: Served,
}

/// How a server did.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Megabytes per second.
    pub rate: f64,
    /// Its own processor seconds per GiB.
    pub own: f64,
    /// The whole machine's, clients included. Which of the two ends pays for the work of the network is
    /// the kernel's choice and depends on who is running when a packet is due; the sum is not.
    pub all: f64,
}

/// Processor time that a server has used so far.
type Spent<'s> = &'s dyn Fn() -> anyhow::Result<Duration>;

/// Both in turn, `runs` times for each number of clients.
///
/// # Errors
/// When a request fails.
pub fn table(anneal: &Anneal, nginx: &Nginx, runs: usize, total: u64) -> anyhow::Result<Vec<Row>> {
    let size = std::fs::metadata(anneal.folder.join("data.zst"))?.len();
    let path = anneal.path();
    let servers: [(SocketAddr, &str, Spent<'_>); 2] = [
        (Anneal::address(), &path, &|| cpu_of(anneal.id())),
        (Nginx::address(), "/data.zst", &|| cpu_of_family(nginx.id())),
    ];
    CLIENTS
        .into_iter()
        .map(|clients| {
            let mut seen = [[Vec::new(), Vec::new(), Vec::new()], Default::default()];
            for _ in 0..runs {
                for ((address, path, cpu), seen) in servers.iter().zip(&mut seen) {
                    let from = World::clients();
                    let before = (cpu()?, busy()?);
                    let took = fetch(*address, path, size, total, &from, clients, Take::Drop)?;
                    let (own, all) = (cpu()? - before.0, busy()? - before.1);
                    let gib = total as f64 / f64::from(1 << 30);
                    let numbers = [
                        total as f64 / 1e6 / took.as_secs_f64(),
                        own.as_secs_f64() / gib,
                        all.as_secs_f64() / gib,
                    ];
                    println!(
                        "  {address:16} {clients:2} clients {:6.0} MB/s, {:.3} CPU s/GiB, {:.3} of the machine",
                        numbers[0], numbers[1], numbers[2]
                    );
                    for (seen, number) in seen.iter_mut().zip(numbers) {
                        seen.push(number);
                    }
                }
            }
            let [anneal, nginx] = seen.map(|[rate, own, all]| Served {
                rate: median(&rate),
                own: median(&own),
                all: median(&all),
            });
            Ok(Row {
                clients,
                anneal,
                nginx,
            })
        })
        .collect()
}
