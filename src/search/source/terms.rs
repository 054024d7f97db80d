//! Terms of a query, matched against rows before any other processing.

use std::fmt;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::query::Word;

/// Compiled terms.
#[derive(Clone)]
pub struct Terms(Arc<Vec<(AhoCorasick, bool)>>);

impl Terms {
    /// Compiles terms.
    ///
    /// # Errors
    /// If a term is too long to be searched for.
    pub fn new(words: &[Word]) -> Result<Terms, String> {
        let prepared = words.iter().map(|word| {
            // The term in its encoding within a JSON string.
            let quoted = Value::String(word.text.clone()).to_string();
            let inner = &quoted[1..quoted.len() - 1];
            let finder = AhoCorasick::builder().ascii_case_insensitive(true).build([inner]);
            finder.map(|finder| (finder, word.is_excluded)).map_err(|error| error.to_string())
        });
        Ok(Terms(Arc::new(prepared.collect::<Result<_, _>>()?)))
    }

    /// Returns whether a row contains all required terms and no excluded one.
    #[must_use]
    pub fn fit(&self, data: &[u8]) -> bool {
        // The raw bytes rule out most rows. Field names must not match, so hits are verified against the values.
        let mut hits: Vec<(&AhoCorasick, bool)> = Vec::new();
        for (finder, is_excluded) in self.0.iter() {
            match finder.is_match(data) {
                true => hits.push((finder, *is_excluded)),
                false if !is_excluded => return false,
                false => {}
            }
        }
        if hits.is_empty() {
            return true;
        }
        let mut found = Found { finders: hits.iter().map(|(finder, _)| (*finder, false)).collect() };
        // In a row that is nested too deeply, the values before that place count.
        let _ = (&mut found).deserialize(&mut serde_json::Deserializer::from_slice(data));
        hits.iter().zip(found.finders).all(|((_, is_excluded), (_, is_found))| is_found != *is_excluded)
    }
}

/// Terms that were found in the values of a row, which are visited one by one.
struct Found<'w> {
    finders: Vec<(&'w AhoCorasick, bool)>,
}

impl Found<'_> {
    /// Looks for the terms in a value. It is encoded as JSON again, because the terms are encoded, too.
    fn look<T: serde::Serialize + ?Sized, E: Error>(&mut self, value: &T) -> Result<(), E> {
        let text = serde_json::to_string(value).map_err(E::custom)?;
        for (finder, is_found) in self.finders.iter_mut().filter(|(_, is_found)| !is_found) {
            *is_found = finder.is_match(&text);
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Found<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Found<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.look(&value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.look(&value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.look(&value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.look(&value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.look(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(&mut *self)?;
        }
        Ok(())
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
            Terms::new(&words).expect("words").fit(data.as_bytes())
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
        assert!(!fit(&[("user", false)], r#"{"user":["a",{"user":1}],"b":"us"}"#));
        assert!(fit(&[("x", false)], &format!("[{}\"x\"]", "{\"b\":null},".repeat(1000))));
        assert!(fit(&[], "null") && fit(&[("a line", false)], "\"such a line\""));
    }
}
