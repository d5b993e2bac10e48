//! Whether Talos answers on its API port: what is left to look at when no event of it arrives.
//!
//! Two things make it Talos with its configuration rather than any TLS server, or a Talos that
//! waits for one: the certificate is signed by the key it shows, and the server asks for a client
//! certificate. In maintenance mode the same port answers without asking. The certificate's own
//! chain is not checked: the machine's authority is not ours, so this is evidence, not proof.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where Talos' API listens.
pub(super) const PORT: u16 = 50_000;
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// SHA-256 of the certificate, hex.
    pub certificate: String,
}

/// Looks once.
///
/// # Errors
/// What is missing: no connection, no TLS, or no question for a client certificate.
pub(super) async fn look(address: SocketAddr) -> anyhow::Result<Answer> {
    tokio::time::timeout(PATIENCE, shake_hands(address))
        .await
        .with_context(|| format!("{address} does not answer"))?
}

async fn shake_hands(address: SocketAddr) -> anyhow::Result<Answer> {
    let provider = CryptoProvider::get_default().context("no TLS provider is installed")?;
    let seen = Arc::new(Seen {
        provider: provider.clone(),
        facts: Mutex::default(),
    });
    let config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_client_cert_resolver(seen.clone());
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("connecting to {address}"))?;
    let name = ServerName::from(address.ip());
    // A server that insists on a client certificate may refuse us before or after this: what
    // counts is what it showed and asked for until then.
    let ended = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    let facts = seen
        .facts
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let Some(certificate) = facts.certificate.filter(|_| facts.signed) else {
        ended.with_context(|| format!("TLS with {address}"))?;
        bail!("{address} showed no certificate");
    };
    if !facts.asked {
        bail!("{address} asks for no client certificate: Talos waits for its configuration there");
    }
    Ok(Answer { certificate })
}

#[derive(Debug, Clone, Default)]
struct Facts {
    certificate: Option<String>,
    signed: bool,
    asked: bool,
}

/// Takes notes of a handshake.
#[derive(Debug)]
struct Seen {
    provider: Arc<CryptoProvider>,
    facts: Mutex<Facts>,
}

impl Seen {
    fn note(&self, note: impl FnOnce(&mut Facts)) {
        note(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let digest = hex::encode(Sha256::digest(end_entity));
        self.note(|facts| facts.certificate = Some(digest));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = verify_tls12_signature(message, cert, dss, algorithms)?;
        self.note(|facts| facts.signed = true);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = verify_tls13_signature(message, cert, dss, algorithms)?;
        self.note(|facts| facts.signed = true);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ResolvesClientCert for Seen {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.note(|facts| facts.asked = true);
        None
    }

    fn has_certs(&self) -> bool {
        // Else a question for a certificate is answered without us hearing of it.
        true
    }
}

#[cfg(test)]
mod tests {
    use rustls::server::WebPkiClientVerifier;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A server with a certificate of its own; `asks` for one of the client, as Talos does.
    async fn server(asks: bool) -> SocketAddr {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["talos".to_owned()]).unwrap();
        let der = made.cert.der().clone();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der.clone()).unwrap();
        let builder = rustls::ServerConfig::builder();
        let builder = match asks {
            true => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder(roots.into()).build().unwrap(),
            ),
            false => builder.with_no_client_auth(),
        };
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let config = builder.with_single_cert(vec![der], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
                let _ = stream.read(&mut [0]).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_server_that_asks_who_we_are_is_told_from_one_that_does_not() {
        let answer = look(server(true).await).await.unwrap();
        assert_eq!(answer.certificate.len(), 64);
        let error = look(server(false).await).await.unwrap_err().to_string();
        assert!(error.contains("asks for no client certificate"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_tls_is_no_answer() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            drop(stream);
        });
        let error = format!("{:#}", look(address).await.unwrap_err());
        assert!(error.starts_with("TLS with 127.0.0.1:"), "{error}");
    }
}
