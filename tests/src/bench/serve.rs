//! Serving the same file to the same clients: the image port beside nginx.

use std::net::SocketAddr;
use std::time::Duration;

use super::measure::{cpu_of, cpu_of_family, median};
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
    /// Of the image port: megabytes per second, processor seconds per GiB.
    pub anneal: (f64, f64),
    /// Of nginx.
    pub nginx: (f64, f64),
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
            let mut seen = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
            for _ in 0..runs {
                for ((address, path, cpu), seen) in servers.iter().zip(&mut seen) {
                    let from = World::clients();
                    let before = cpu()?;
                    let took = fetch(*address, path, size, total, &from, clients, Take::Drop)?;
                    let used = (cpu()? - before).as_secs_f64();
                    let gib = total as f64 / f64::from(1 << 30);
                    println!(
                        "  {address:16} {clients:2} clients {:6.0} MB/s, {:.3} CPU s/GiB",
                        total as f64 / 1e6 / took.as_secs_f64(),
                        used / gib
                    );
                    seen.0.push(total as f64 / 1e6 / took.as_secs_f64());
                    seen.1.push(used / gib);
                }
            }
            let [anneal, nginx] = seen.map(|(rate, cpu)| (median(&rate), median(&cpu)));
            Ok(Row {
                clients,
                anneal,
                nginx,
            })
        })
        .collect()
}
