//! Nesting depth of JSON, determined without recursion. Values that later readers could not parse are rejected.

/// Maximum nesting that is accepted from a client, and that is shown as JSON.
pub const DEPTH_MAX: usize = 64;

/// Returns the number of nested levels of arrays and objects. The input need not be JSON.
#[must_use]
pub fn depth(json: &[u8]) -> usize {
    let (mut now, mut deepest) = (0usize, 0);
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'[' | b'{' if !is_text => {
                now += 1;
                deepest = deepest.max(now);
            }
            b']' | b'}' if !is_text => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Returns whether the nesting exceeds [`DEPTH_MAX`].
#[must_use]
pub fn is_deep(json: &[u8]) -> bool {
    depth(json) > DEPTH_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_text_do_not_count() {
        let cases = [("1", 0), ("[]", 1), (r#"{"a":[1,{"b":2}],"c":[]}"#, 3), (r#"["[[[\"[{"]"#, 1), ("]]][", 1)];
        for (json, wanted) in cases {
            assert_eq!(depth(json.as_bytes()), wanted, "{json}");
        }
        assert!(is_deep("[".repeat(65).as_bytes()) && !is_deep("[".repeat(64).as_bytes()));
    }
}
