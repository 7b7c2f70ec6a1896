//! How records lie in the database, and how it is known that they are all there.
//!
//! Layout 2: one tree `records` with keys `sessions/VOLUME` and `stages/VOLUME`, and the
//! *manifest*, which each change writes in the same batch: how many changes there have been,
//! how many records there are, and a digest over all of them. sled may fall back to an older
//! state of a page without a word (measured); the digest notices, and a file beside the
//! database notices when all of it has fallen back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The version of this layout.
pub(super) const SCHEMA: u32 = 2;
/// In sled's default tree.
pub(super) const SCHEMA_KEY: &str = "schema";
pub(super) const RECORDS_TREE: &str = "records";
pub(super) const HISTORY_TREE: &str = "history";
/// In the tree of records; no table has a name without a slash.
pub(super) const MANIFEST_KEY: &str = "manifest";

/// All records, by `table/key`, as JSON.
pub(super) type Records = BTreeMap<String, Vec<u8>>;

/// What must be true of the records as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Changes since the journal was begun.
    pub(super) sequence: u64,
    pub(super) records: usize,
    digest: String,
}

impl Manifest {
    pub(super) fn of(records: &Records, sequence: u64) -> Self {
        let mut digest = Sha256::new();
        for (key, value) in records {
            // With their lengths, so that no two sets of records read the same.
            for part in [key.as_bytes(), value] {
                digest.update((part.len() as u64).to_be_bytes());
                digest.update(part);
            }
        }
        Self { sequence, records: records.len(), digest: hex::encode(digest.finalize()) }
    }

    /// The manifest's own bytes, sealed like a record.
    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec(self).map(|json| seal(MANIFEST_KEY, &json)).map_err(|e| e.to_string())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(unseal(MANIFEST_KEY, bytes)?).map_err(|e| format!("manifest: {e}"))
    }
}

/// A value with a checksum that covers its key too: a record under another's key is wrong.
pub(super) fn seal(key: &str, json: &[u8]) -> Vec<u8> {
    let mut sealed = checksum(key, json).to_vec();
    sealed.extend_from_slice(json);
    sealed
}

pub(super) fn unseal<'a>(key: &str, sealed: &'a [u8]) -> Result<&'a [u8], String> {
    match sealed.split_first_chunk::<4>() {
        Some((sum, json)) if *sum == checksum(key, json) => Ok(json),
        _ => Err(format!("record {key} does not match its checksum")),
    }
}

fn checksum(key: &str, json: &[u8]) -> [u8; 4] {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key.as_bytes());
    sum.update(&[0]);
    sum.update(json);
    sum.finalize().to_be_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_under_another_key_or_with_a_flipped_bit_is_refused() {
        let sealed = seal("stages/a", b"{}");
        assert_eq!(unseal("stages/a", &sealed).unwrap(), b"{}");
        assert!(unseal("stages/b", &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal("stages/a", &damaged).is_err(), "bit {bit}");
        }
        assert!(unseal("stages/a", &sealed[..3]).is_err());
    }

    #[test]
    fn a_manifest_fits_only_its_own_records() {
        let one: Records = [("a".to_owned(), b"1".to_vec())].into();
        let manifest = Manifest::of(&one, 7);
        assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        for other in [
            Records::new(),
            [("a".to_owned(), b"2".to_vec())].into(),
            [("b".to_owned(), b"1".to_vec())].into(),
            [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), Vec::new())].into(),
        ] {
            assert_ne!(Manifest::of(&other, 7), manifest, "{other:?}");
        }
    }
}
