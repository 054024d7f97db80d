//! Time-based one-time passwords (RFC 6238) in the form that all authenticator apps support: HMAC-SHA-1, six digits,
//! steps of 30 seconds.

use data_encoding::BASE32_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use subtle::ConstantTimeEq;

/// Length of a seed in bytes: that of a SHA-1 hash, as RFC 4226 recommends.
pub const SEED_BYTES: usize = 20;
/// Length of a time step in seconds.
pub const STEP_S: u64 = 30;
const DIGITS: usize = 6;
/// Number of steps by which clocks may differ.
const SKEW: u64 = 1;

/// Result of checking a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeCheck {
    /// The code of this step, which was not used yet.
    Fresh(u64),
    /// The code is correct, but it or a later one was already used.
    Used,
    /// The code belongs to no step that is accepted now.
    Wrong,
}

/// Returns the step of a time in milliseconds since 1970-01-01 UTC.
#[must_use]
pub fn step_at(ms: u64) -> u64 {
    ms / 1000 / STEP_S
}

fn code(seed: &[u8], step: u64, digits: usize) -> String {
    let tag = match Hmac::<Sha1>::new_from_slice(seed) {
        Ok(mac) => mac.chain_update(step.to_be_bytes()).finalize().into_bytes(),
        // HMAC accepts keys of any length.
        Err(_) => unreachable!("HMAC accepts keys of any length"),
    };
    // RFC 4226, 5.3: the last half byte selects the 31 bits to use.
    let at = usize::from(tag[19] & 0xf);
    let bits = u32::from_be_bytes([tag[at] & 0x7f, tag[at + 1], tag[at + 2], tag[at + 3]]);
    let text = format!("{bits:010}");
    text[text.len() - digits..].to_owned()
}

/// Returns the code of a step.
#[must_use]
pub fn code_of(seed: &[u8], step: u64) -> String {
    code(seed, step, DIGITS)
}

/// Checks a code at `step`, given that the steps up to `last` were used. Spaces are ignored: apps show codes in groups.
#[must_use]
pub fn judge(seed: &[u8], given: &str, step: u64, last: Option<u64>) -> CodeCheck {
    let given: String = given.chars().filter(|c| !c.is_whitespace()).collect();
    let mut judged = CodeCheck::Wrong;
    // All steps are compared, so that the time reveals nothing.
    for step in step.saturating_sub(SKEW)..=step.saturating_add(SKEW) {
        if bool::from(code_of(seed, step).as_bytes().ct_eq(given.as_bytes())) {
            judged = if last.is_none_or(|last| step > last) { CodeCheck::Fresh(step) } else { CodeCheck::Used };
        }
    }
    judged
}

/// Returns the form of a seed that users can type into an app.
#[must_use]
pub fn seed_text(seed: &[u8]) -> String {
    BASE32_NOPAD.encode(seed)
}

/// Decodes the text form of a seed, ignoring case and spaces.
#[must_use]
pub fn seed_of(text: &str) -> Option<Vec<u8>> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_uppercase()).collect();
    BASE32_NOPAD.decode(text.as_bytes()).ok()
}

/// Returns the URL that apps read from a QR code.
#[must_use]
pub fn url(issuer: &str, user: &str, seed: &[u8]) -> String {
    let (issuer, user) = (escaped(issuer), escaped(user));
    let seed = seed_text(seed);
    format!(
        "otpauth://totp/{issuer}:{user}?secret={seed}&issuer={issuer}&algorithm=SHA1&digits={DIGITS}&period={STEP_S}"
    )
}

/// Percent-encodes all bytes except unreserved characters of RFC 3986. Apps do not accept `+` for a space.
fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &[u8] = b"12345678901234567890";

    #[test]
    fn the_codes_are_those_of_rfc_4226_and_rfc_6238() {
        let by_counter =
            ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"];
        for (counter, wanted) in (0..).zip(by_counter) {
            assert_eq!(code_of(SEED, counter), wanted, "RFC 4226, appendix D: {counter}");
        }
        let by_time = [
            (59, "94287082"),
            (1_111_111_109, "07081804"),
            (1_111_111_111, "14050471"),
            (1_234_567_890, "89005924"),
            (2_000_000_000, "69279037"),
            (20_000_000_000, "65353130"),
        ];
        for (seconds, wanted) in by_time {
            let step = step_at(seconds * 1000);
            assert_eq!(code(SEED, step, 8), wanted, "RFC 6238, appendix B: {seconds}");
            assert_eq!(code_of(SEED, step), wanted[2..], "{seconds}");
        }
    }

    #[test]
    fn a_code_counts_one_step_around_now_and_once() {
        let at = |step| code_of(SEED, step);
        let cases = [
            (at(100), None, CodeCheck::Fresh(100)),
            (at(99), None, CodeCheck::Fresh(99)),
            (at(101), None, CodeCheck::Fresh(101)),
            (at(98), None, CodeCheck::Wrong),
            (at(102), None, CodeCheck::Wrong),
            (at(100), Some(99), CodeCheck::Fresh(100)),
            (at(100), Some(100), CodeCheck::Used),
            // A skipped step counts as used.
            (at(99), Some(100), CodeCheck::Used),
            (at(101), Some(100), CodeCheck::Fresh(101)),
            (format!("{} {}", &at(100)[..3], &at(100)[3..]), None, CodeCheck::Fresh(100)),
            (String::new(), None, CodeCheck::Wrong),
            (at(100)[..5].to_owned(), None, CodeCheck::Wrong),
            (format!("{}0", at(100)), None, CodeCheck::Wrong),
        ];
        for (given, last, wanted) in cases {
            assert_eq!(judge(SEED, &given, 100, last), wanted, "{given:?} after {last:?}");
        }
        assert_eq!(judge(SEED, &at(0), 0, None), CodeCheck::Fresh(0));
    }

    #[test]
    fn a_seed_goes_into_a_text_and_an_address_and_back() {
        assert_eq!(seed_text(SEED), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
        assert_eq!(seed_of("gezd gnbv gy3t qojq gezd gnbv gy3t qojq").as_deref(), Some(SEED));
        assert_eq!((seed_of("1"), seed_of("é")), (None, None));
        let wanted = "otpauth://totp/My%20Site%26%3A:b%C3%B6b?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\
                      &issuer=My%20Site%26%3A&algorithm=SHA1&digits=6&period=30";
        assert_eq!(url("My Site&:", "böb", SEED), wanted);
    }
}
