//! Detection of passwords that are guessed first: common passwords, common words with additions, keyboard rows,
//! repetitions, and the user's name.
//!
//! The list is `common-passwords.txt`; its origin is stated at its start.

use std::collections::HashSet;
use std::sync::LazyLock;

/// Minimum length of a user name that is searched for in passwords.
const NAME_CHARS_MIN: usize = 3;
/// Maximum length of the unit of a repetition that is always weak.
const UNIT_CHARS_MAX: usize = 4;
/// A password is a keyboard walk if its runs have at least this average length.
const RUN_CHARS: usize = 4;

/// Rows of keys or characters whose neighbours are typed one after the other.
const ROWS: [&str; 8] = [
    "1234567890",
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertz",
    "1q2w3e4r5t6y7u8i9o0p",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
];

static COMMON: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    let lines = include_str!("common-passwords.txt").lines();
    lines.filter(|line| !line.starts_with('#') && !line.is_empty()).collect()
});

/// Returns why a password is easy to guess; `None` if no reason is known.
#[must_use]
pub fn weakness(password: &str, user: &str) -> Option<&'static str> {
    let (folded, name) = (fold(password), fold(user));
    if is_guessed(&folded) {
        return Some("it is a common password");
    }
    let has_name = name.chars().count() >= NAME_CHARS_MIN && folded.contains(&name);
    if has_name && is_little(&folded.replacen(&name, "", usize::MAX)) {
        return Some("it is derived from the user name");
    }
    None
}

fn fold(text: &str) -> String {
    use unicode_normalization::UnicodeNormalization as _;
    text.trim().nfkc().collect::<String>().to_lowercase()
}

/// Returns whether the rest without the user's name adds next to nothing.
fn is_little(rest: &str) -> bool {
    let letters = rest.chars().filter(|c| c.is_alphabetic()).count();
    letters < NAME_CHARS_MIN || is_guessed(rest)
}

fn is_guessed(folded: &str) -> bool {
    is_common(folded) || is_repetition(folded) || is_walk(folded)
}

/// Returns whether the list contains it, either unchanged or after removing characters around a word and replacing
/// signs with letters.
fn is_common(folded: &str) -> bool {
    let is_letter = |c: char| c.is_alphabetic();
    let after = folded.trim_end_matches(|c| !is_letter(c));
    let within = after.trim_start_matches(|c| !is_letter(c));
    // Signs that stand for letters may be at the ends.
    let signs = folded.trim_end_matches(|c: char| !is_letter(c) && plain(c, 'l') == c);
    [folded, after, within, signs].into_iter().any(|part| {
        let read = |one: char| part.chars().map(|c| plain(c, one)).collect::<String>();
        !part.is_empty() && [part, &read('l'), &read('i')].into_iter().any(|word| COMMON.contains(word))
    })
}

/// Returns the letter that a sign stands for; `1` is an `l` or an `i`.
fn plain(c: char, one: char) -> char {
    match c {
        '0' => 'o',
        '1' | '!' => one,
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' => 't',
        c => c,
    }
}

/// Returns whether it only repeats a few characters or a common word.
fn is_repetition(folded: &str) -> bool {
    let chars: Vec<char> = folded.chars().collect();
    let unit =
        (1..=chars.len() / 2).find(|length| chars.iter().skip(*length).eq(chars.iter().take(chars.len() - length)));
    unit.is_some_and(|length| length <= UNIT_CHARS_MAX || is_common(&chars[..length].iter().collect::<String>()))
}

/// Returns whether it follows rows, in either direction, for most of its length.
fn is_walk(folded: &str) -> bool {
    let chars: Vec<char> = folded.chars().collect();
    let is_step = |pair: &[char]| {
        let (from, to) = (pair[0], pair[1]);
        let follows = |row: &str| {
            let at = |c: char| row.chars().position(|key| key == c);
            let length = row.chars().count();
            at(from).zip(at(to)).is_some_and(|(from, to)| (from + 1) % length == to || (to + 1) % length == from)
        };
        from == to || ROWS.iter().any(|row| follows(row))
    };
    let runs = 1 + chars.windows(2).filter(|pair| !is_step(pair)).count();
    chars.len() >= 2 * RUN_CHARS && chars.len() / runs >= RUN_CHARS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_passwords_are_detected() {
        let weak = [
            "password",
            "Password1234",
            "P@ssw0rd!!!!",
            "passwordpassword",
            "123456789012",
            "098765432109",
            "aaaaaaaaaaaa",
            "abcabcabcabc",
            "qwertyuiop[]",
            "qwerty123456",
            "1q2w3e4r5t6y",
            "1qaz2wsx3edc",
            "Welcome2026!",
            "letmein12345",
            "iloveyou1234",
            "Changeme1234",
            "administrator",
            "4dministrator",
            "Gravwell2026",
            "ＰＡＳＳＷＯＲＤ１２３４",
            "monkeymonkey",
            "unbelievable",
        ];
        for password in weak {
            assert!(weakness(password, "bob").is_some(), "{password}");
        }
        let names = [
            ("alice", "alicealice12"),
            ("alice", "2026-Alice-2026"),
            ("Bob Smith", "bob smith 1234"),
            ("eve", "evepassword1"),
        ];
        for (user, password) in names {
            assert!(weakness(password, user).is_some(), "{user}: {password}");
        }
    }

    #[test]
    fn uncommon_passwords_are_accepted() {
        let strong = [
            "Passw0rd-of-x-1",
            "Adm1n-pass-word",
            "An0ther-Passw0rd",
            "correct horse battery staple",
            "a plain horse",
            "tr0ub4dor and three",
            "kx7-Ppq2mmA!",
            "alles im gruenen bereich",
            "密码不是这个而是另一个啊",
        ];
        for password in strong {
            assert_eq!(weakness(password, "alice"), None, "{password}");
        }
        assert_eq!(weakness("the walk of alice at noon", "alice"), None);
        // Two letters of a name occur in many passwords.
        assert_eq!(weakness("go to the river", "go"), None);
    }
}
