//! Which machine has an address: by the inventory, cards and bonds and VLANs alike, or by a
//! lease that counts.
//!
//! An address is no proof of who calls. It narrows whom a caller may be.

use std::net::IpAddr;

use crate::app::Shared;
use crate::clock::now;
use crate::store::StoreError;

/// The machine that has `address` now.
///
/// # Errors
/// When the database fails.
pub(super) async fn machine_at(
    shared: &Shared,
    address: IpAddr,
) -> Result<Option<String>, StoreError> {
    let snapshot = shared.directory.snapshot();
    if let Some(machine) = snapshot.owner_of(address) {
        return Ok(Some(machine));
    }
    let IpAddr::V4(address) = address else {
        return Ok(None);
    };
    let card = shared.store.leased_to(address, now()).await?;
    Ok(card.and_then(|mac| Some(snapshot.by_mac.get(&mac)?.machine.clone())))
}
