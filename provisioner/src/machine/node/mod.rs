//! What the installed system is told, as inventory files say it.
//!
//! Owns: which host names, interfaces, Kubernetes labels and taints, SSH keys, kernel arguments,
//! files and registries are valid (`values`), and the rules between them (`read`).
//!
//! Not here: the types ([`anneal_protocol::node`]), and how an operating system writes them
//! (templates).

mod read;
mod values;

pub(crate) use read::repeatable_kernel_arg;

#[cfg(test)]
mod tests;
