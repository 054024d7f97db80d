//! Escaping of untrusted text for terminals, log lines and table rows.

use std::borrow::Cow;

/// Returns whether a character only displays itself: it is not a control character, direction mark or invisible character.
#[must_use]
pub fn is_printable(character: char) -> bool {
    // Combining characters are printable after another character, so the character is tested after a letter.
    let mut letter_and_character = [0; 5];
    letter_and_character[0] = b'x';
    let length = character.encode_utf8(&mut letter_and_character[1..]).len() + 1;
    match std::str::from_utf8(&letter_and_character[..length]) {
        _ if matches!(character, '"' | '\'' | '\\') => true,
        Ok(text) => text.escape_debug().count() == 2,
        Err(_) => false,
    }
}

/// Returns `text` on one line, with escapes for all characters that are not printable.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) || text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match is_printable(character) {
            true => escaped.push(character),
            false => escaped.extend(character.escape_debug()),
        }
    }
    Cow::Owned(escaped)
}

/// Returns at most `chars_max` printable characters of `text`; truncated text ends with an ellipsis.
#[must_use]
pub fn shorten(text: &str, chars_max: usize) -> String {
    // An escape is longer than its character, so later characters can never be shown.
    let start: String = text.chars().take(chars_max + 1).collect();
    let escaped = escape(&start);
    if escaped.chars().count() <= chars_max {
        return escaped.into_owned();
    }
    let kept = escaped.chars().take(chars_max.saturating_sub(1));
    kept.chain(std::iter::once('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_something_to_a_terminal_is_escaped() {
        for text in ["", "plain \"text\" 'and' \\ more", "caf\u{e9} cafe\u{301} \u{928}\u{93f} \u{6f22}\u{5b57} …"] {
            assert!(matches!(escape(text), Cow::Borrowed(_)), "{text}");
        }
        for (text, shown) in [
            ("\u{1b}]0;x\u{7}", "\\u{1b}]0;x\\u{7}"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("\u{202e}abc", "\\u{202e}abc"),
            ("a\u{200b}b\u{2028}", "a\\u{200b}b\\u{2028}"),
            ("\u{0}\u{7f}", "\\0\\u{7f}"),
        ] {
            assert_eq!(escape(text), shown);
        }
    }

    #[test]
    fn a_text_is_shortened_to_printable_characters() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("abcd", 3), "ab…");
        assert_eq!(shorten(&"\u{1}".repeat(1_000_000), 8), "\\u{1}\\u…");
        assert_eq!(shorten(&"\u{e9}".repeat(300), 256).chars().count(), 256);
    }
}
