//! Who this boot of the agent is: a key that never leaves RAM, and the certificate it earns.

use std::sync::Arc;

use anneal_protocol::agent::EnrollResponse;
use anyhow::Context as _;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

/// A fresh key pair.
pub struct Identity {
    key: rcgen::KeyPair,
    machine: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.machine)
    }
}

impl Identity {
    /// Makes a key for this machine.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(machine: &str) -> anyhow::Result<Self> {
        Ok(Self {
            key: rcgen::KeyPair::generate().context("cannot generate a key")?,
            machine: machine.to_owned(),
        })
    }

    /// The PKCS#10 request, PEM. The same for every call with the same key.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn request(&self) -> anyhow::Result<String> {
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, self.machine.as_str());
        let request = params.serialize_request(&self.key)?;
        Ok(request.pem()?)
    }

    /// TLS with this key and the certificate of the answer, trusting the answer's authority,
    /// which must be the pinned one.
    pub(super) fn config(
        &self,
        ca_sha256: &str,
        answer: &EnrollResponse,
    ) -> anyhow::Result<rustls::ClientConfig> {
        let authority = CertificateDer::from_pem_slice(answer.ca.as_bytes())
            .context("the server's answer has no usable authority certificate")?;
        anyhow::ensure!(
            <[u8; 32]>::from(Sha256::digest(authority.as_ref()))
                == super::tls::fingerprint(ca_sha256)?,
            "the server's answer names another authority than anneal.ca"
        );
        let chain = CertificateDer::pem_slice_iter(answer.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("the server's answer has no usable client certificate")?;
        let mut roots = RootCertStore::empty();
        roots.add(authority)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .context("the client certificate does not fit the key")
    }
}
