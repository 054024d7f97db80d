//! Names of users and groups: one normal form and one check for every input, so that no two names look the same.
//!
//! A name is stored as entered, in Unicode's composed form (NFC), and is looked up by its [`key`]. Names from before
//! the check was added still work: a lookup also tries the keys that they had.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use unicode_security::confusable_detection::skeleton;
use unicode_security::mixed_script::AugmentedScriptSet;

use gravwell_model::limits::Limits;

/// Maximum length of the name of a user or a group, in characters.
pub const NAME_CHARS_MAX: usize = 128;
/// Maximum length of a title, such as the name of a dashboard or a resource, in characters.
pub const TITLE_CHARS_MAX: usize = 256;
/// Maximum length of a person's name or an address, in characters.
pub const PERSON_CHARS_MAX: usize = 256;
/// Maximum length of a description, in characters.
pub const TEXT_CHARS_MAX: usize = 1 << 16;
/// Maximum number of groups in one list.
pub const GROUPS_MAX: usize = 10_000;
/// Maximum number of labels of one object.
pub const LABELS_MAX: usize = 1_000;

/// Error for an invalid text; the message names the field.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field} {fault}")]
pub struct FieldError {
    field: &'static str,
    fault: String,
}

impl FieldError {
    /// Creates the error of a field; `fault` continues the sentence that starts with its name.
    #[must_use]
    pub fn new(field: &'static str, fault: impl Into<String>) -> FieldError {
        FieldError { field, fault: fault.into() }
    }
}

fn fault<T>(field: &'static str, fault: impl Into<String>) -> Result<T, FieldError> {
    Err(FieldError { field, fault: fault.into() })
}

/// Characters that are invisible, affect the display of others, or are private to a program.
const UNSEEN: [(u32, u32); 34] = [
    (0x00, 0x1f),
    (0x7f, 0x9f),
    (0xad, 0xad),
    (0x34f, 0x34f),
    (0x600, 0x605),
    (0x61c, 0x61c),
    (0x6dd, 0x6dd),
    (0x70f, 0x70f),
    (0x890, 0x891),
    (0x8e2, 0x8e2),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180f),
    (0x200b, 0x200f),
    (0x2028, 0x202e),
    (0x2060, 0x206f),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xe000, 0xf8ff),
    (0xfdd0, 0xfdef),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfffd),
    (0xfffe, 0xffff),
    (0x110bd, 0x110bd),
    (0x110cd, 0x110cd),
    (0x13430, 0x1343f),
    (0x1bca0, 0x1bca3),
    (0x1d173, 0x1d17a),
    (0x1_fffe, 0x1_ffff),
    (0x2_fffe, 0x2_ffff),
    (0xe_0000, 0xe_0fff),
    (0xf_0000, 0x10_ffff),
];

fn is_unseen(c: char) -> bool {
    let is_odd_blank = c.is_whitespace() && c != ' ';
    is_odd_blank || UNSEEN.iter().any(|(first, last)| (*first..=*last).contains(&u32::from(c)))
}

/// Returns whether all letters belong to one script, or to scripts that are commonly combined: Chinese, Japanese or
/// Korean ones, also with ASCII.
fn is_of_one_script(name: &str) -> bool {
    if !AugmentedScriptSet::for_str(name).is_empty() {
        return true;
    }
    let others: String = name.chars().filter(|c| !c.is_ascii()).collect();
    let set = AugmentedScriptSet::for_str(&others);
    !set.is_empty() && (set.jpan || set.hanb || set.kore)
}

/// Normalizes the name of a user or a group.
///
/// # Errors
/// If it is empty, too long, or could be mistaken for another name.
pub fn checked(field: &'static str, text: &str) -> Result<String, FieldError> {
    let text = text.trim();
    bounded(field, text, NAME_CHARS_MAX)?;
    let name: String = text.nfc().collect();
    bounded(field, &name, NAME_CHARS_MAX)?;
    if name.is_empty() {
        return fault(field, "is empty");
    }
    seen(field, &name)?;
    if name.starts_with(is_combining_mark) {
        return fault(field, "starts with a combining mark");
    }
    if !is_of_one_script(&name) {
        return fault(field, "mixes letters of several scripts");
    }
    Ok(name)
}

/// Checks that a text has at most `chars_max` characters.
///
/// # Errors
/// If it has more.
pub fn bounded(field: &'static str, text: &str, chars_max: usize) -> Result<(), FieldError> {
    let is_short = text.len() <= chars_max;
    let chars = if is_short { 0 } else { text.chars().count() };
    if chars > chars_max {
        return fault(field, format!("has {chars} characters; at most {chars_max} are allowed"));
    }
    Ok(())
}

/// Checks a person's name or an address: its length is limited, and all characters must be visible.
///
/// # Errors
/// If it is too long, or has characters that are invisible or affect the display of others.
pub fn person(field: &'static str, text: &str) -> Result<(), FieldError> {
    bounded(field, text, PERSON_CHARS_MAX)?;
    seen(field, text)
}

fn seen(field: &'static str, text: &str) -> Result<(), FieldError> {
    match text.chars().find(|c| is_unseen(*c)) {
        Some(unseen) => fault(field, format!("has an invisible character: U+{:04X}", u32::from(unseen))),
        None => Ok(()),
    }
}

/// Checks that a list has at most `items_max` items.
///
/// # Errors
/// If it has more.
pub fn few<T>(field: &'static str, items: &[T], items_max: usize) -> Result<(), FieldError> {
    if items.len() > items_max {
        return fault(field, format!("has {} items; at most {items_max} are allowed", items.len()));
    }
    Ok(())
}

/// Checks a title: limited length, on one line.
///
/// # Errors
/// If it is too long or has control characters.
pub fn title(field: &'static str, text: &str) -> Result<(), FieldError> {
    bounded(field, text, TITLE_CHARS_MAX)?;
    match text.chars().find(|c| c.is_control()) {
        Some(control) => fault(field, format!("has a control character: U+{:04X}", u32::from(control))),
        None => Ok(()),
    }
}

/// Checks the labels of an object.
///
/// # Errors
/// If there are too many, or one is too long.
pub fn labels(field: &'static str, labels: &[String]) -> Result<(), FieldError> {
    few(field, labels, LABELS_MAX)?;
    labels.iter().try_for_each(|label| title(field, label))
}

/// Returns the lookup key of a name: the same for all spellings that users may enter.
#[must_use]
pub fn key(name: &str) -> String {
    let folded: String = name.trim().nfkc().collect::<String>().to_lowercase();
    folded.replace('ς', "σ").nfkc().collect()
}

/// Returns the keys under which a name may be stored, the present form first: earlier versions only lower-cased names.
#[must_use]
pub fn keys(name: &str) -> Vec<String> {
    let trimmed = name.trim();
    let all = [
        key(name),
        trimmed.to_lowercase(),
        trimmed.nfc().collect::<String>().to_lowercase(),
        trimmed.nfd().collect::<String>().to_lowercase(),
    ];
    let mut found: Vec<String> = Vec::new();
    for key in all {
        let is_key = !key.is_empty() && key.len() <= Limits::default().key_bytes_max;
        if is_key && !found.contains(&key) {
            found.push(key);
        }
    }
    found
}

/// Returns whether users could mistake one name for the other. Names in ASCII are compared only by their keys.
#[must_use]
pub fn look_alike(one: &str, other: &str) -> bool {
    let (one, other) = (key(one), key(other));
    one == other || !(one.is_ascii() && other.is_ascii()) && skeleton(&one).eq(skeleton(&other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_one_script_are_taken_as_they_are_typed() {
        for name in [
            "bob",
            "Bob Smith",
            "o'brien@example.com",
            "José",
            "Zoë",
            "Иван",
            "Ελένη",
            "محمد",
            "דוד",
            "山田太郎",
            "ヤマダ たろう",
            "김철수",
            "山田 Taro",
            "สมชาย",
            "नरेंद्र",
            "x",
            "-._~",
        ] {
            assert_eq!(checked("User", name), Ok(name.nfc().collect::<String>()), "{name}");
            assert_eq!(checked("User", &format!("  {name}\u{3000}")).as_deref(), Ok(&*name.nfc().collect::<String>()));
        }
    }

    #[test]
    fn names_that_could_be_taken_for_others_are_not_taken() {
        for name in [
            "",
            " ",
            "a\nb",
            "a\0",
            "admin\u{200b}x",
            "ad\u{ad}min",
            "\u{feff}admin",
            "x\u{202e}admin",
            "\u{430}dmin",
            "admin\u{200c}",
            "admin\u{fe0f}",
            "adm\u{e0069}in",
            "a\u{a0}b",
            "\u{301}a",
            "p\u{430}ypal",
            "αdmin",
            "a\u{3164}",
            "\u{e000}",
        ] {
            assert!(checked("User", name).is_err(), "{name:?}");
        }
        let long = checked("User", &"x".repeat(129)).expect_err("long").to_string();
        assert_eq!(long, "User has 129 characters; at most 128 are allowed");
        assert!(checked("User", &"é".repeat(128)).is_ok());
    }

    #[test]
    fn names_for_people_are_bounded_and_can_be_seen() {
        for name in ["", "José Ñandú", "山田 太郎", "o'Brien, Ph.D.", "bob@example.com"] {
            assert_eq!(person("Name", name), Ok(()), "{name}");
        }
        for name in ["a\u{202e}b", "a\nb", "\u{200b}", "a\u{2066}b", "\u{1b}[31m", "\u{feff}x"] {
            assert!(person("Name", name).is_err(), "{name:?}");
        }
        assert!(person("Name", &"é".repeat(256)).is_ok() && person("Name", &"é".repeat(257)).is_err());
    }

    #[test]
    fn names_are_found_in_any_typed_form() {
        let decomposed: String = "José".nfd().collect();
        for (one, other) in [("José", decomposed.as_str()), ("Bob", " BOB "), ("ＡＤＭＩＮ", "admin"), ("ΣΑΣ", "σασ")]
        {
            assert_eq!(key(one), key(other), "{one} {other}");
        }
        // Claims made by earlier versions are found, too.
        assert!(keys("josé").contains(&decomposed.to_lowercase()));
        assert_eq!(keys("bob"), ["bob"]);
        assert!(look_alike("аdmin", "admin") && look_alike("admın", "admin") && look_alike("ѕсоре", "scope"));
        assert!(!look_alike("user1", "userl") && !look_alike("Иван", "ivan"));
    }
}
