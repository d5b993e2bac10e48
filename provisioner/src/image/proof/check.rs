//! The check itself: evidence and bytes in, a proof out.

use anneal_image::{MAX_PROOF_TEXT, Proof, ProofMethod};
use anneal_protocol::api::ProofRequest;
use sha2::{Digest, Sha256, Sha512};

use super::evidence::{self, Vouched, bounded};
use super::oci::{self, OciImage};
use super::sums::{self, Algorithm, Entry};
use super::{Policy, ProofError, cosign, limit, minisign, openpgp, tuf};

/// What is known of an image beside its bytes.
#[derive(Debug, Default)]
pub struct Published<'a> {
    /// Where it is, if it comes from an OCI registry.
    pub oci: Option<OciImage<'a>>,
}

/// Sees every published byte once and then says whether all the evidence holds.
#[derive(Debug, Default)]
pub struct Checker {
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
    received: u64,
    parts: Vec<Part>,
}

/// One proof on its way.
#[derive(Debug)]
enum Part {
    /// The bytes must have this digest and, where it is known, this length.
    Digest {
        algorithm: Algorithm,
        expected: Vec<u8>,
        length: Option<u64>,
        proof: Proof,
    },
    /// The bytes must be what was signed; the signer comes at the end.
    Openpgp(openpgp::Verifier, Option<String>),
    Minisign(minisign::Verifier, Option<String>),
    Cosign(cosign::Verifier, Option<String>),
}

impl Checker {
    /// Reads the evidence and checks everything that can be checked without the image.
    ///
    /// # Errors
    /// When evidence cannot be used or had, is by somebody who is not trusted, or is wrong.
    pub async fn new(
        request: &ProofRequest,
        policy: &Policy,
        published: &Published<'_>,
    ) -> Result<Self, ProofError> {
        let requests = match request {
            ProofRequest::All { proofs } => proofs.as_slice(),
            one => std::slice::from_ref(one),
        };
        if requests.is_empty() || requests.len() > limit::PROOFS {
            return Err(ProofError::Unusable(format!(
                "{} proofs for one image: expected 1 to {}",
                requests.len(),
                limit::PROOFS
            )));
        }
        let mut checker = Self::default();
        for request in requests {
            checker.add(request, policy, published).await?;
        }
        Ok(checker)
    }

    async fn add(
        &mut self,
        request: &ProofRequest,
        policy: &Policy,
        published: &Published<'_>,
    ) -> Result<(), ProofError> {
        match request {
            ProofRequest::Sha256 { value, source } => {
                self.add_value(Algorithm::Sha256, value, source.as_deref())
            }
            ProofRequest::Sha512 { value, source } => {
                self.add_value(Algorithm::Sha512, value, source.as_deref())
            }
            ProofRequest::Sums {
                text,
                file_name,
                signature,
                keys,
                source,
            } => {
                bounded("the list of digests", text.len(), limit::SUMS)?;
                bounded("the published file name", file_name.len(), limit::NAME)?;
                let (list, vouched) =
                    evidence::list(text, signature.as_ref(), keys.as_ref(), policy)?;
                self.add_list(&list, file_name, vouched, source.clone())
            }
            ProofRequest::Openpgp {
                signature,
                keys,
                source,
            } => {
                let verifier = evidence::detached(signature, keys, policy)?;
                self.parts.push(Part::Openpgp(verifier, source.clone()));
                Ok(())
            }
            ProofRequest::Minisign {
                signature,
                key,
                source,
            } => {
                let verifier = evidence::minisigned(signature, key, policy)?;
                self.parts.push(Part::Minisign(verifier, source.clone()));
                Ok(())
            }
            ProofRequest::Cosign {
                signature,
                key,
                source,
            } => {
                let signature = signature.as_deref();
                self.add_cosign(signature, key, source.clone(), policy, published)
                    .await
            }
            ProofRequest::Tuf {
                root,
                metadata_url,
                target,
            } => {
                bounded("the TUF root", root.len(), limit::ROOT)?;
                bounded(
                    "the address of TUF metadata",
                    metadata_url.len(),
                    limit::NAME,
                )?;
                bounded("the TUF target", target.len(), limit::NAME)?;
                let _one_at_a_time = policy.tuf_lock().await;
                let found =
                    tuf::find(policy.tuf_dir(), policy.guard(), root, metadata_url, target).await?;
                let length = Some(found.length);
                self.expect(Algorithm::Sha256, found.sha256, length, found.proof)
            }
            ProofRequest::All { .. } => Err(ProofError::Unusable(
                "proofs of kind \"all\" cannot be nested: expected one list of proofs".to_owned(),
            )),
        }
    }

    fn add_value(
        &mut self,
        algorithm: Algorithm,
        text: &str,
        source: Option<&str>,
    ) -> Result<(), ProofError> {
        let expected = sums::value(algorithm, text).map_err(ProofError::Unusable)?;
        let proof = Proof {
            method: method_of(algorithm),
            signer: None,
            source: source.map(str::to_owned),
            detail: None,
        };
        self.expect(algorithm, expected, None, proof)
    }

    fn add_list(
        &mut self,
        list: &str,
        file_name: &str,
        vouched: Vouched,
        source: Option<String>,
    ) -> Result<(), ProofError> {
        let Entry {
            algorithm, digest, ..
        } = sums::find(list, file_name).map_err(ProofError::Unusable)?;
        let proof = match vouched {
            Vouched::Nobody(note) => Proof {
                method: method_of(algorithm),
                signer: None,
                source,
                detail: Some(note.to_owned()),
            },
            Vouched::Signer {
                method,
                signer,
                detail,
            } => Proof {
                method,
                signer: Some(signer),
                source,
                detail: Some(format!("{algorithm} from a list, {detail}")),
            },
        };
        self.expect(algorithm, digest, None, proof)
    }

    async fn add_cosign(
        &mut self,
        signature: Option<&str>,
        key: &str,
        source: Option<String>,
        policy: &Policy,
        published: &Published<'_>,
    ) -> Result<(), ProofError> {
        bounded("the cosign key", key.len(), limit::KEYS)?;
        let key = cosign::Key::parse(key).map_err(ProofError::Unusable)?;
        if let Some(trusted) = policy.trusted() {
            trusted.cosign(&key).map_err(ProofError::Failed)?;
        }
        if let Some(signature) = signature {
            bounded("the cosign signature", signature.len(), limit::SIGNATURE)?;
            let verifier = cosign::Verifier::new(signature, key).map_err(ProofError::Unusable)?;
            self.parts.push(Part::Cosign(verifier, source));
            return Ok(());
        }
        let Some(image) = &published.oci else {
            return Err(ProofError::Unusable(
                "a cosign key without signature is for images from an OCI registry: give --signature"
                    .to_owned(),
            ));
        };
        let proof = oci::check(image, &key).await?;
        let (algorithm, expected) = layer(&image.layer)?;
        self.expect(algorithm, expected, None, proof)
    }

    fn expect(
        &mut self,
        algorithm: Algorithm,
        expected: Vec<u8>,
        length: Option<u64>,
        proof: Proof,
    ) -> Result<(), ProofError> {
        proof.check().map_err(ProofError::Unusable)?;
        match algorithm {
            Algorithm::Sha256 => {
                self.sha256.get_or_insert_default();
            }
            Algorithm::Sha512 => {
                self.sha512.get_or_insert_default();
            }
        }
        self.parts.push(Part::Digest {
            algorithm,
            expected,
            length,
            proof,
        });
        Ok(())
    }

    /// The next bytes, as they were published.
    pub fn update(&mut self, bytes: &[u8]) {
        self.received += bytes.len() as u64;
        if let Some(hasher) = &mut self.sha256 {
            hasher.update(bytes);
        }
        if let Some(hasher) = &mut self.sha512 {
            hasher.update(bytes);
        }
        for part in &mut self.parts {
            match part {
                Part::Digest { .. } => {}
                Part::Openpgp(verifier, _) => verifier.update(bytes),
                Part::Minisign(verifier, _) => verifier.update(bytes),
                Part::Cosign(verifier, _) => verifier.update(bytes),
            }
        }
    }

    /// All bytes were given: does the evidence hold?
    ///
    /// # Errors
    /// When any of it does not, with what was expected and what came.
    pub fn finish(self) -> Result<Proof, ProofError> {
        let sha256 = self.sha256.map(|hasher| hasher.finalize().to_vec());
        let sha512 = self.sha512.map(|hasher| hasher.finalize().to_vec());
        let mut proofs = Vec::new();
        for part in self.parts {
            let found = match &part {
                Part::Digest { algorithm, .. } => match algorithm {
                    Algorithm::Sha256 => sha256.as_deref(),
                    Algorithm::Sha512 => sha512.as_deref(),
                },
                _ => None,
            };
            let proof = part.finish(found.unwrap_or_default(), self.received)?;
            proof.check().map_err(ProofError::Unusable)?;
            proofs.push(proof);
        }
        combine(proofs)
    }
}

impl Part {
    fn finish(self, found: &[u8], received: u64) -> Result<Proof, ProofError> {
        let (method, signer, source, detail) = match self {
            Self::Digest {
                algorithm,
                expected,
                length,
                proof,
            } => {
                if length.is_some_and(|length| length != received) || found != expected {
                    return Err(differs(algorithm, &expected, found, length, received));
                }
                return Ok(proof);
            }
            Self::Openpgp(verifier, source) => {
                let signer = verifier.finish().map_err(ProofError::Failed)?;
                let detail = Some(signer.detail());
                (ProofMethod::Openpgp, signer.fingerprint, source, detail)
            }
            Self::Minisign(verifier, source) => {
                let signer = verifier.finish().map_err(ProofError::Failed)?;
                let detail = Some(signer.comment).filter(|text| !text.trim().is_empty());
                (ProofMethod::Minisign, signer.key, source, detail)
            }
            Self::Cosign(verifier, source) => {
                let signer = verifier.finish().map_err(ProofError::Failed)?;
                (ProofMethod::Cosign, signer, source, None)
            }
        };
        Ok(Proof {
            method,
            signer: Some(signer),
            source,
            detail,
        })
    }
}

/// Reads the digest of an OCI layer.
fn layer(digest: &str) -> Result<(Algorithm, Vec<u8>), ProofError> {
    let (algorithm, hex) = match digest.split_once(':') {
        Some(("sha256", hex)) => (Algorithm::Sha256, hex),
        Some(("sha512", hex)) => (Algorithm::Sha512, hex),
        _ => {
            return Err(ProofError::Unusable(format!(
                "the layer's digest \"{digest}\" is of an unknown kind"
            )));
        }
    };
    let value = sums::value(algorithm, hex).map_err(ProofError::Unusable)?;
    Ok((algorithm, value))
}

fn method_of(algorithm: Algorithm) -> ProofMethod {
    match algorithm {
        Algorithm::Sha256 => ProofMethod::Sha256,
        Algorithm::Sha512 => ProofMethod::Sha512,
    }
}

fn differs(
    algorithm: Algorithm,
    expected: &[u8],
    found: &[u8],
    length: Option<u64>,
    received: u64,
) -> ProofError {
    let length = length.map(|length| format!("{length} bytes with "));
    ProofError::Failed(format!(
        "the {received} bytes that came have the {algorithm} {}, expected {}{}: the file was damaged or exchanged, or the proof is of another file (it is checked on the file as published, before unpacking)",
        hex::encode(found),
        length.unwrap_or_default(),
        hex::encode(expected)
    ))
}

/// One proof to show for several: the first that is signed, with a word on the others.
fn combine(proofs: Vec<Proof>) -> Result<Proof, ProofError> {
    let first = proofs.iter().position(|proof| proof.method.is_signed());
    let first = first.unwrap_or(0);
    let mut details = Vec::new();
    for (index, proof) in proofs.iter().enumerate() {
        if index == first {
            details.splice(0..0, proof.detail.clone());
        } else {
            let signer = proof
                .signer
                .as_deref()
                .map(|signer| format!(" by {signer}"));
            details.push(format!(
                "also {}{}",
                proof.method,
                signer.unwrap_or_default()
            ));
        }
    }
    let nothing = || ProofError::Unusable("no proof was given".to_owned());
    let mut proof = proofs.into_iter().nth(first).ok_or_else(nothing)?;
    proof.detail = Some(details.join("; ")).filter(|text| !text.is_empty());
    if let Some(detail) = &mut proof.detail {
        let most = detail.floor_char_boundary(MAX_PROOF_TEXT);
        detail.truncate(most);
    }
    proof.check().map_err(ProofError::Unusable)?;
    Ok(proof)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
