//! Terms of a query, matched against rows before any other processing.

use std::sync::Arc;

use aho_corasick::AhoCorasick;
use serde_json::Value;

use crate::search::query::Word;

/// Compiled terms.
#[derive(Clone)]
pub struct Words(Arc<Vec<(AhoCorasick, bool)>>);

impl Words {
    /// Compiles terms.
    ///
    /// # Errors
    /// If a term is too long to be searched for.
    pub fn new(words: &[Word]) -> Result<Words, String> {
        let prepared = words.iter().map(|word| {
            // The term in its encoding within a JSON string.
            let quoted = Value::String(word.text.clone()).to_string();
            let inner = &quoted[1..quoted.len() - 1];
            let finder = AhoCorasick::builder().ascii_case_insensitive(true).build([inner]);
            finder.map(|finder| (finder, word.is_excluded)).map_err(|error| error.to_string())
        });
        Ok(Words(Arc::new(prepared.collect::<Result<_, _>>()?)))
    }

    /// Returns whether a row contains all required terms and no excluded one.
    #[must_use]
    pub fn fit(&self, data: &[u8]) -> bool {
        let mut value: Option<Value> = None;
        self.0.iter().all(|(finder, is_excluded)| {
            // The raw bytes rule out most rows. Field names must not match, so a hit is verified against the values.
            let found = finder.is_match(data) && {
                let value = value.get_or_insert_with(|| serde_json::from_slice(data).unwrap_or_default());
                has(value, finder)
            };
            found != *is_excluded
        })
    }
}

fn has(value: &Value, finder: &AhoCorasick) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => items.iter().any(|item| has(item, finder)),
        Value::Object(fields) => fields.values().any(|item| has(item, finder)),
        // Encoded as JSON again, because the term is encoded, too.
        other => finder.is_match(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_looked_for_in_values_without_regard_to_case() {
        let fit = |words: &[(&str, bool)], data: &str| {
            let words: Vec<Word> = words
                .iter()
                .map(|(text, is_excluded)| Word { text: (*text).into(), is_excluded: *is_excluded })
                .collect();
            Words::new(&words).expect("words").fit(data.as_bytes())
        };
        let row = r#"{"user":"Bob","what":["say \"hi\"",12.5,true],"d":{"e":"straße"}}"#;
        for (word, found) in [
            ("bob", true),
            ("user", false),
            ("say \"HI\"", true),
            ("12.5", true),
            ("true", true),
            ("straße", true),
            ("x", false),
        ] {
            assert_eq!(fit(&[(word, false)], row), found, "{word}");
            assert_eq!(fit(&[(word, true)], row), !found, "-{word}");
        }
        assert!(fit(&[("bob", false), ("alice", true)], row) && !fit(&[("bob", false), ("12.5", true)], row));
        assert!(fit(&[], "null") && fit(&[("a line", false)], "\"such a line\""));
    }
}
