//! Text files that end in a checksum of what comes before: a bit that flips on the medium must not become another name.

/// `body` with its checksum behind.
#[must_use]
pub fn seal(body: &str) -> String {
    format!("{body}\n{}\n", blake3::hash(body.as_bytes()).to_hex())
}

/// The body of a sealed text, when the checksum is there and matches.
///
/// # Errors
/// Says what is wrong with the checksum.
pub fn open(text: &str) -> Result<&str, String> {
    let (body, sum) = text.trim_end().rsplit_once('\n').ok_or("the checksum is missing")?;
    if blake3::hash(body.as_bytes()).to_hex().as_str() != sum {
        return Err("the checksum does not match".into());
    }
    Ok(body)
}
