//! The bytes on the wire: golden messages of every kind, and the tables of `docs/protocol.md` against the code.
//!
//! A golden message is written once, by the version that is released with it, and never changed: a failure here means that this
//! version cannot communicate with another one. Its directory is the first protocol version that may send it.

mod document;
mod samples;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use gravwell_model::codec::message::{
    HEADER_BYTES, Kind, MESSAGE_BYTES_MAX, VERSION_MAX, decode_any_header, decode_header,
};
use gravwell_model::{Digest, Generation, LogId, MemberName, Origin, Position, Seq};
use gravwell_transport::trust::{Authority, Proof, Token};
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use samples::{Encoding, Sample};

fn golden(version: u16, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the root")
        .join(format!("tests/golden/wire/v{version}"))
        .join(name)
}

fn is_creating() -> bool {
    std::env::var_os("GOLDEN_CREATE").is_some()
}

/// Returns the bytes of a golden file. If `GOLDEN_CREATE` is set, a missing one is created from `new`.
fn released(path: &Path, new: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(_) if is_creating() => {
            let bytes = new();
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("creates the directory");
            std::fs::write(path, &bytes).expect("writes");
            bytes
        }
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn kinds() -> impl Iterator<Item = Kind> {
    (0..=u8::MAX).filter_map(Kind::from_byte)
}

fn all_samples() -> Vec<(Kind, Sample)> {
    kinds().flat_map(|kind| samples::of(kind).into_iter().map(move |sample| (kind, sample))).collect()
}

fn body_of(message: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&message[HEADER_BYTES..])
}

/// Returns whether `written` contains everything that `released` contains.
fn says_the_same(written: &Value, released: &Value) -> bool {
    match (written, released) {
        (Value::Object(written), Value::Object(released)) => {
            let is_there = |(name, value): (&String, &Value)| {
                written.get(name).is_some_and(|written| says_the_same(written, value))
            };
            released.iter().all(is_there)
        }
        (written, released) => written == released,
    }
}

#[test]
fn p12_every_kind_of_message_is_written_and_read_as_released() {
    let mut files = BTreeSet::new();
    for kind in kinds() {
        let samples = samples::of(kind);
        assert!(!samples.is_empty(), "no message of kind {kind:?}");
        for Sample { version, name, bytes, encoding, check } in samples {
            let path = golden(version, &format!("{name}.bin"));
            let released = released(&path, || bytes.clone());
            let header = released.first_chunk::<HEADER_BYTES>().expect("a header");
            assert_eq!(decode_header(*header, MESSAGE_BYTES_MAX), Ok((kind, released.len() - HEADER_BYTES)), "{name}");
            check(&body_of(&released))
                .unwrap_or_else(|error| panic!("{name} does not decode to the original: {error}"));
            match encoding {
                Encoding::Json => {
                    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(&bytes[HEADER_BYTES..]).expect("JSON");
                    assert!(says_the_same(&json(&bytes), &json(&released)), "{name} omits a field");
                }
                Encoding::Closed | Encoding::Opaque => {
                    assert!(bytes == released, "{name} does not encode to the released bytes");
                }
            }
            assert!((1..=VERSION_MAX).contains(&version), "{name}");
            assert!(files.insert(path), "duplicate sample {name}");
        }
    }
    // A version that adds no message has no directory.
    let of_version = |version| std::fs::read_dir(golden(version, "")).into_iter().flatten();
    let found = (1..=VERSION_MAX).flat_map(of_version).map(|entry| entry.expect("lists").path());
    let messages = found.filter(|path| path.extension().is_some_and(|extension| extension == "bin"));
    let unknown: Vec<PathBuf> = messages.filter(|path| !files.contains(path) && !is_signed(path)).collect();
    assert!(unknown.is_empty(), "messages without a test: {unknown:?}");
}

/// Whether another test of this file, or one of those of searches, reads it.
fn is_signed(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    matches!(name, "proof.bin" | "search-question.bin" | "search-head.bin")
}

#[test]
fn p12_a_postcard_body_ends_with_its_last_field() {
    for (kind, Sample { name, bytes, encoding, check, .. }) in all_samples() {
        let body = body_of(&bytes);
        let longer = Bytes::from([&body[..], &[0]].concat());
        match encoding {
            Encoding::Closed => {
                assert!(check(&longer).is_err(), "{kind:?} {name}: one more byte");
                let cut = body.len().checked_sub(1).map(|length| body.slice(..length));
                assert!(cut.is_none_or(|cut| check(&cut).is_err()), "{kind:?} {name}: one byte less");
            }
            Encoding::Json => {
                let mut value: Value = serde_json::from_slice(&body).expect("JSON");
                value.as_object_mut().expect("an object").insert("of_a_later_version".into(), 1.into());
                // What consists of whatever comes is compared as a whole.
                if kind != Kind::AdminEnd {
                    let found = check(&serde_json::to_vec(&value).expect("encodes").into());
                    assert_eq!(found, Ok(()), "{kind:?} {name}: an unknown field is ignored");
                }
            }
            Encoding::Opaque => {}
        }
    }
}

#[test]
fn p12_a_kind_that_is_not_known_has_a_length_like_any_other() {
    let unknown = (0..=u8::MAX).filter(|byte| Kind::from_byte(*byte).is_none());
    for kind in unknown {
        assert_eq!(decode_any_header([4, 0, 0, 0, kind], 3), Ok((None, 3)));
        assert!(decode_header([4, 0, 0, 0, kind], 3).is_err());
    }
}

#[test]
fn p13_a_signed_position_is_verified_with_the_ca() {
    let (proof_file, authority_file) = (golden(1, "proof.bin"), golden(1, "proof-authority.der"));
    if is_creating() && !proof_file.exists() && !authority_file.exists() {
        let temp = tempfile::tempdir().expect("temp dir");
        let authority = Authority::open_or_create(temp.path(), 1_800_000_000_000).expect("a certificate authority");
        let (log_id, digest) = (LogId([0x10; 16]), Digest::from_bytes([0x33; 32]));
        let position = Position { log_id, generation: Generation(300), seq: Seq(4711), chain: [0x22; 16], digest };
        let proof = Proof::sign(&authority, position, 1_700_000_000_000).expect("signs");
        let message = gravwell_model::codec::message::encode_raw(Kind::Proof, proof.to_text().as_bytes());
        released(&authority_file, || authority.certificate().to_vec());
        released(&proof_file, || message);
    }
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (message, authority) = (read(&proof_file), CertificateDer::from(read(&authority_file)));
    let proof = Proof::from_bytes(&body_of(&message)).expect("reads");
    assert_eq!((proof.position.seq, proof.position.generation), (Seq(4711), Generation(300)));
    assert!(proof.is_of(&authority));
    let mut later = proof;
    later.time_ms += 1;
    assert!(!later.is_of(&authority));
}

#[test]
fn p12_a_released_token_is_read() {
    let name = MemberName::new("web-1.example").expect("a name");
    let addresses = vec!["datastore.example.net:9405".into(), "[2001:db8::1]:9405".into()];
    let token = Token::new(addresses, [7; 32], [9; 32], name, 1_800_000_000_000);
    let text = released(&golden(1, "token.txt"), || token.to_string().into_bytes());
    assert_eq!(std::str::from_utf8(&text).expect("text").parse(), Ok(token.clone()));
    assert_eq!(token.to_string().into_bytes(), text);
}

/// Other words for a rejection, and members of two versions differ in the digest of equal states.
#[test]
fn p09_the_text_of_a_rejection_is_the_same_in_every_version() {
    let digest = Digest::of_origin(Origin([0xa1; 16]), &samples::origin_row()).to_string();
    let path = golden(1, "origin-digest.txt");
    assert_eq!(released(&path, || digest.clone().into_bytes()), digest.into_bytes(), "the digest of an origin");
    document::check_texts(&samples::reasons());
}
