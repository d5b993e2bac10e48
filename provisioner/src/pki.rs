//! The daemon's own certificate authority, its server certificate, and agents' certificates.
//!
//! Owns: the key files under `<state>/pki`, renewal of the server certificate, signing of agent
//! requests, and the identity inside an agent certificate.
//!
//! Invariants: private keys are readable by the owner only and never leave their file. An agent
//! certificate names one machine and one run and lives for hours. What a request asks for beyond
//! its public key is ignored: subject, names and usages are ours.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

const CA_LIFE: Duration = Duration::days(3650);
const SERVER_LIFE: Duration = Duration::days(90);
/// A server certificate with less than this left is made anew.
const SERVER_RENEW: Duration = Duration::days(30);
const AGENT_LIFE: Duration = Duration::hours(12);
/// Clocks of freshly booted machines are wrong by minutes.
const BACKDATE: Duration = Duration::hours(1);

/// Prefix of the URI in an agent's certificate.
const AGENT_URI: &str = "anneal://agent/";

/// The authority and the server's certificate.
#[derive(Debug)]
pub struct Pki {
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    addresses: Vec<IpAddr>,
    server: Arc<Served>,
}

/// The certificate that the listener shows now; replaced when it is renewed.
#[derive(Debug)]
struct Served(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.clone())
    }
}

/// Who an agent's certificate says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    /// Machine.
    pub machine: String,
    /// Run.
    pub run: String,
    /// The enrolment, by the id of the boot token that was redeemed: a later agent of the same
    /// run has another one.
    pub enrolment: String,
}

impl Pki {
    /// Opens the authority under `dir`, making what is not there, and renews the server
    /// certificate when it is due or does not name all of `addresses`.
    ///
    /// # Errors
    /// When files cannot be read or written, or hold something else.
    pub fn open(dir: &Path, addresses: &[IpAddr]) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let (ca_pem, issuer) = authority(dir)?;
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|e| anyhow::anyhow!("{}: {e}", dir.join("ca.pem").display()))?;
        let certificate = certified(dir, &issuer, addresses, &ca_der)?;
        Ok(Self {
            ca_pem,
            ca_der,
            issuer,
            dir: dir.to_owned(),
            addresses: addresses.to_vec(),
            server: Arc::new(Served(RwLock::new(certificate))),
        })
    }

    /// Makes the server certificate anew when it is due; new connections see it at once. True
    /// when it was.
    ///
    /// # Errors
    /// When the files cannot be read or written.
    pub fn renew(&self) -> anyhow::Result<bool> {
        let fresh = certified(&self.dir, &self.issuer, &self.addresses, &self.ca_der)?;
        let mut current = self
            .server
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let renewed = current.cert != fresh.cert;
        *current = fresh;
        Ok(renewed)
    }

    /// The CA certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// SHA-256 of the CA certificate (DER), lower-case hex: what agents pin.
    #[must_use]
    pub fn ca_sha256(&self) -> String {
        hex::encode(Sha256::digest(&self.ca_der))
    }

    /// Signs an agent's request.
    ///
    /// # Errors
    /// When the request is not a valid PKCS#10 request signed by its own key.
    pub fn sign_agent(&self, csr_pem: &str, identity: &AgentIdentity) -> anyhow::Result<String> {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem)
            .context("reading the certificate request")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, identity.machine.as_str());
        let AgentIdentity {
            machine,
            run,
            enrolment,
        } = identity;
        let uri = format!("{AGENT_URI}{machine}/{run}/{enrolment}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        lifetime(&mut params, AGENT_LIFE);
        csr.params = params;
        Ok(csr
            .signed_by(&self.issuer)
            .context("signing the certificate request")?
            .pem())
    }

    /// TLS for the listener: our certificate; client certificates of our CA are accepted and
    /// passed on, absence of one too (operators and nodes have other credentials).
    ///
    /// # Errors
    /// When the certificate and its key do not fit.
    pub fn server_config(&self) -> anyhow::Result<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca_der.clone())?;
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            provider.clone(),
        )
        .allow_unauthenticated()
        .build()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.server.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Who a client certificate that our CA signed belongs to; `None` if it is not an agent's.
#[must_use]
pub fn agent_identity(certificate: &CertificateDer<'_>) -> Option<AgentIdentity> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => {
                let (machine, rest) = uri.strip_prefix(AGENT_URI)?.split_once('/')?;
                let (run, enrolment) = rest.split_once('/')?;
                Some(AgentIdentity {
                    machine: machine.to_owned(),
                    run: run.to_owned(),
                    enrolment: enrolment.to_owned(),
                })
            }
            _ => None,
        })
}

fn authority(dir: &Path) -> anyhow::Result<(String, Issuer<'static, KeyPair>)> {
    let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
    if !cert_path.exists() {
        let key = key_pair(&key_path)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "anneal CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        lifetime(&mut params, CA_LIFE);
        write_file(
            &cert_path,
            0o644,
            params.self_signed(&key)?.pem().as_bytes(),
        )?;
    }
    let key = key_pair(&key_path)?;
    let pem = read(&cert_path)?;
    let issuer = Issuer::from_ca_cert_pem(&pem, key)
        .with_context(|| format!("reading {}", cert_path.display()))?;
    Ok((pem, issuer))
}

/// The server certificate with its chain and key, as TLS wants it.
fn certified(
    dir: &Path,
    issuer: &Issuer<'static, KeyPair>,
    addresses: &[IpAddr],
    ca: &CertificateDer<'static>,
) -> anyhow::Result<Arc<CertifiedKey>> {
    let (leaf, key) = server(dir, issuer, addresses)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(vec![leaf, ca.clone()], key, &provider)
        .context("the server certificate and its key do not fit: remove both and start again")?;
    Ok(Arc::new(certified))
}

fn server(
    dir: &Path,
    issuer: &Issuer<'static, KeyPair>,
    addresses: &[IpAddr],
) -> anyhow::Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
    let (cert_path, key_path) = (dir.join("server.pem"), dir.join("server-key.pem"));
    let key = key_pair(&key_path)?;
    let current = fs::read(&cert_path)
        .ok()
        .filter(|pem| still_good(pem, &key, addresses));
    let pem = match current {
        Some(pem) => pem,
        None => {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
            params
                .subject_alt_names
                .extend(addresses.iter().copied().map(SanType::IpAddress));
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, "anneal");
            params.is_ca = IsCa::ExplicitNoCa;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            lifetime(&mut params, SERVER_LIFE);
            let pem = params.signed_by(&key, issuer)?.pem().into_bytes();
            write_file(&cert_path, 0o644, &pem)?;
            pem
        }
    };
    let leaf = CertificateDer::from_pem_slice(&pem)
        .map_err(|e| anyhow::anyhow!("{}: {e}", cert_path.display()))?;
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
        .map_err(|e| anyhow::anyhow!("{}: {e}", key_path.display()))?;
    Ok((leaf, key))
}

/// Whether a stored server certificate has time left, fits the key and names every address.
fn still_good(pem: &[u8], key: &KeyPair, addresses: &[IpAddr]) -> bool {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let Ok(der) = CertificateDer::from_pem_slice(pem) else {
        return false;
    };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else {
        return false;
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return false;
    };
    let named = |address: &IpAddr| {
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        names
            .value
            .general_names
            .iter()
            .any(|n| matches!(n, GeneralName::IPAddress(b) if *b == bytes))
    };
    let renew_at = OffsetDateTime::now_utc() + SERVER_RENEW;
    use rcgen::PublicKeyData;
    certificate.validity().not_after.timestamp() > renew_at.unix_timestamp()
        && *certificate.public_key().subject_public_key.data == *key.der_bytes()
        && addresses.iter().all(named)
}

fn lifetime(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + life;
}

/// The key in `path`; made there first when absent.
fn key_pair(path: &Path) -> anyhow::Result<KeyPair> {
    if !path.exists() {
        write_file(path, 0o600, KeyPair::generate()?.serialize_pem().as_bytes())?;
    }
    KeyPair::from_pem(&read(path)?).with_context(|| format!("reading {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Writes a file as a whole or not at all, with these permissions from the first byte on.
pub(crate) fn write_file(path: &Path, mode: u32, contents: &[u8]) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        // A left-over of a killed daemon would keep its old mode.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Vec<IpAddr> {
        vec!["127.0.0.1".parse().unwrap(), "10.77.0.1".parse().unwrap()]
    }

    fn shown(pki: &Pki) -> Vec<CertificateDer<'static>> {
        pki.server.0.read().unwrap().cert.clone()
    }

    #[test]
    fn renews_only_what_is_due() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &addresses()).unwrap();
        let before = shown(&pki);
        assert!(!pki.renew().unwrap());
        assert_eq!(shown(&pki), before);
        // A certificate that cannot be read is as good as one that is due.
        fs::write(dir.path().join("server.pem"), "nothing").unwrap();
        assert!(pki.renew().unwrap());
        assert_ne!(shown(&pki), before);
        assert_eq!(shown(&pki)[1], before[1], "the authority stays");
    }

    #[test]
    fn is_the_same_authority_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &addresses()).unwrap();
        let second = Pki::open(dir.path(), &addresses()).unwrap();
        assert_eq!(first.ca_sha256(), second.ca_sha256());
        assert_eq!(shown(&first), shown(&second));
        let mut more = addresses();
        more.push("10.88.0.1".parse().unwrap());
        let third = Pki::open(dir.path(), &more).unwrap();
        assert_eq!(first.ca_sha256(), third.ca_sha256());
        assert_ne!(shown(&first), shown(&third));
        third.server_config().unwrap();
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(dir.path().join("ca-key.pem"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_agent_certificate_names_machine_and_run_only() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &addresses()).unwrap();
        let key = KeyPair::generate().unwrap();
        // The request asks for the daemon's own name.
        let params = CertificateParams::new(vec!["10.77.0.1".to_owned()]).unwrap();
        let csr = params.serialize_request(&key).unwrap();
        let identity = AgentIdentity {
            machine: "r1n1".into(),
            run: "run-1".into(),
            enrolment: "token-1".into(),
        };
        let pem = pki.sign_agent(&csr.pem().unwrap(), &identity).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(agent_identity(&der), Some(identity));
        use x509_parser::prelude::{FromDer, X509Certificate};
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert!(!certificate.is_ca());
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        assert_eq!(agent_identity(&pki.ca_der), None);
    }

    #[test]
    fn refuses_what_is_no_request() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &addresses()).unwrap();
        let identity = AgentIdentity {
            machine: "r1n1".into(),
            run: "run-1".into(),
            enrolment: "token-1".into(),
        };
        assert!(
            pki.sign_agent("-----BEGIN NONSENSE-----", &identity)
                .is_err()
        );
    }
}
