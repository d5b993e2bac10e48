//! The check itself: evidence and bytes in, a proof out.

use anneal_image::{MAX_PROOF_TEXT, Proof, ProofMethod};
use anneal_protocol::api::ProofRequest;
use sha2::{Digest, Sha256, Sha512};

use super::sums::{self, Algorithm};
use super::{Policy, ProofError, limit};

/// What is known of an image beside its bytes.
#[derive(Debug, Default)]
pub struct Published {}

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
    /// The bytes must have this digest.
    Digest {
        algorithm: Algorithm,
        expected: Vec<u8>,
        proof: Proof,
    },
}

impl Checker {
    /// Reads the evidence and checks everything that can be checked without the image.
    ///
    /// # Errors
    /// When evidence cannot be used or had, is by somebody who is not trusted, or is wrong.
    pub async fn new(
        request: &ProofRequest,
        policy: &Policy,
        published: &Published,
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
        _policy: &Policy,
        _published: &Published,
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
                signature: None,
                keys: None,
                source,
            } => self.add_unsigned(text, file_name, source.as_deref()),
            ProofRequest::All { .. } => Err(ProofError::Unusable(
                "proofs of kind \"all\" cannot be nested: expected one list of proofs".to_owned(),
            )),
            ProofRequest::Sums { .. }
            | ProofRequest::Openpgp { .. }
            | ProofRequest::Minisign { .. }
            | ProofRequest::Cosign { .. }
            | ProofRequest::Tuf { .. } => Err(ProofError::Unusable(
                "this daemon does not check signatures yet: give --sha256 or --sha512".to_owned(),
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
        let proof = unsigned(algorithm, source, None);
        self.expect(algorithm, expected, proof)
    }

    fn add_unsigned(
        &mut self,
        text: &str,
        file_name: &str,
        source: Option<&str>,
    ) -> Result<(), ProofError> {
        bounded("the list of digests", text.len(), limit::SUMS)?;
        bounded("the published file name", file_name.len(), limit::NAME)?;
        let entry = sums::find(text, file_name).map_err(ProofError::Unusable)?;
        let note = if text.contains("-----BEGIN PGP SIGNED MESSAGE-----") {
            "from a list whose signature was not checked: no key was given"
        } else {
            "from an unsigned list"
        };
        let proof = unsigned(entry.algorithm, source, Some(note));
        self.expect(entry.algorithm, entry.digest, proof)
    }

    fn expect(
        &mut self,
        algorithm: Algorithm,
        expected: Vec<u8>,
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
            match part {
                Part::Digest {
                    algorithm,
                    expected,
                    proof,
                } => {
                    let found = match algorithm {
                        Algorithm::Sha256 => &sha256,
                        Algorithm::Sha512 => &sha512,
                    };
                    if found.as_ref() != Some(&expected) {
                        return Err(differs(
                            algorithm,
                            &expected,
                            found.as_deref(),
                            self.received,
                        ));
                    }
                    proofs.push(proof);
                }
            }
        }
        combine(proofs)
    }
}

/// Refuses evidence that is larger than any real one.
pub(super) fn bounded(what: &str, length: usize, most: usize) -> Result<(), ProofError> {
    if length <= most {
        return Ok(());
    }
    Err(ProofError::Unusable(format!(
        "{what} has {length} bytes, allowed are {most}"
    )))
}

/// A proof that nobody signed.
fn unsigned(algorithm: Algorithm, source: Option<&str>, note: Option<&str>) -> Proof {
    Proof {
        method: match algorithm {
            Algorithm::Sha256 => ProofMethod::Sha256,
            Algorithm::Sha512 => ProofMethod::Sha512,
        },
        signer: None,
        source: source.map(str::to_owned),
        detail: note.map(str::to_owned),
    }
}

fn differs(
    algorithm: Algorithm,
    expected: &[u8],
    found: Option<&[u8]>,
    received: u64,
) -> ProofError {
    ProofError::Failed(format!(
        "the {received} bytes that came have the {algorithm} {}, expected {}: the file was damaged or exchanged, or the proof is of another file (it is checked on the file as published, before unpacking)",
        found.map(hex::encode).unwrap_or_default(),
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
