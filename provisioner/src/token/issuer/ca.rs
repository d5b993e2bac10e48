//! The pin by which a joining node knows its cluster.

use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// `sha256:` and the hex digest of the first certificate's public key (`SubjectPublicKeyInfo`,
/// DER), as `kubeadm join --discovery-token-ca-cert-hash` takes it.
///
/// # Errors
/// When the text holds no certificate.
pub(super) fn pin(pem: &str) -> Result<String, String> {
    let wrong = || "the cluster's CA is not a certificate in PEM".to_owned();
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| wrong())?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).map_err(|_| wrong())?;
    let digest = Sha256::digest(certificate.public_key().raw);
    Ok(format!("sha256:{}", hex::encode(digest)))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// The pipe of openssl commands that kubeadm's documentation gives.
    const RECIPE: &str = "openssl x509 -pubkey | openssl pkey -pubin -outform der | \
         openssl dgst -sha256 -hex | sed 's/^.* //'";

    #[test]
    fn is_what_the_documented_recipe_gives() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let mut shell = Command::new("sh")
            .args(["-c", RECIPE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = shell.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, pem.as_bytes()).unwrap();
        drop(stdin);
        let output = shell.wait_with_output().unwrap();
        let expected = String::from_utf8(output.stdout).unwrap();
        assert_eq!(expected.trim().len(), 64, "openssl (package openssl)");
        assert_eq!(pin(&pem).unwrap(), format!("sha256:{}", expected.trim()));
        assert!(pin("nothing").is_err());
    }
}
