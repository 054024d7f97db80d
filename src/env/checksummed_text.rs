//! Text files that end in a checksum of the preceding text, so that a bit flipped on the medium cannot silently change a name.

/// Appends a checksum to `body`.
#[must_use]
pub fn seal(body: &str) -> String {
    format!("{body}\n{}\n", blake3::hash(body.as_bytes()).to_hex())
}

/// Returns the body of a sealed text if its checksum is valid.
///
/// # Errors
/// If the checksum is missing or does not match.
pub fn open(text: &str) -> Result<&str, String> {
    let (body, sum) = text.trim_end().rsplit_once('\n').ok_or("the checksum is missing")?;
    if blake3::hash(body.as_bytes()).to_hex().as_str() != sum {
        return Err("the checksum does not match".into());
    }
    Ok(body)
}
