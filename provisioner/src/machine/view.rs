//! A stored machine as the API shows it. Pure; the BMC's password file stays out of it.

use anneal_protocol::api::{BmcView, MachineView};

use crate::clock::rfc3339;
use crate::store::MachineRow;

impl MachineRow {
    /// What the API shows; `why` is the engine's sentence about what the machine waits for,
    /// `unproven` are its images without proof of their publisher.
    #[must_use]
    pub fn view(self, why: String, unproven: Vec<String>) -> MachineView {
        let machine = self.machine;
        MachineView {
            name: machine.name,
            rack: machine.rack,
            role: machine.role,
            state: self.state,
            why,
            nics: machine.nics,
            bmc: machine.bmc.map(|bmc| BmcView {
                url: bmc.url,
                username: bmc.username,
                tls_sha256: bmc.tls_sha256,
            }),
            disk: machine.disk,
            protected_disks: machine.protected_disks,
            image: machine.image,
            unproven,
            workflow: machine.workflow,
            labels: machine.labels,
            config: machine.config,
            run: self.active_run.or(self.last_run),
            node: self.node,
            inventory: self.inventory,
            updated_at: rfc3339(self.updated_at),
        }
    }
}
