//! Filters that clients send alongside a query; they are inserted as jq filters right after the terms.

use serde::Deserialize;
use serde_json::Value;

use super::query::{self, QueryError};

/// Maximum number of filters of a query.
const CONDITIONS_MAX: usize = 32;

/// One condition on one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Condition {
    /// Tag of the rows that it applies to; empty: all rows.
    pub tag: String,
    /// Path of the field, names separated by dots.
    pub path: String,
    /// Name of the field, used if `path` is empty.
    pub name: String,
    /// `==`, `!=`, `>`, `>=`, `<`, `<=`, `~` or `!~`.
    pub op: String,
    /// Value to compare with; for `~` and `!~` a regular expression.
    pub value: String,
}

impl Condition {
    /// Returns the jq filter that selects the rows for which the condition holds.
    fn code(&self, tags: &[query::Tag]) -> Result<String, String> {
        if self.op.is_empty() && self.value.is_empty() {
            // Clients send this to extract a field; all fields are extracted anyway.
            return Ok(".".into());
        }
        let is_of_all = self.tag.is_empty() || (tags.len() == 1 && tags.iter().all(|tag| tag.name == self.tag));
        if !is_of_all {
            return Err(format!("a filter for tag {} requires a query with only that tag", self.tag));
        }
        let field = if self.path.is_empty() { &self.name } else { &self.path };
        if field.is_empty() {
            return Err("a filter has no field; set its Path or Name".into());
        }
        let names: Vec<&str> = field.trim_start_matches('.').split('.').collect();
        let found = format!("(try getpath({}) catch null)", Value::from(names));
        let value = Value::from(self.value.as_str());
        let number = self.value.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        Ok(match (self.op.as_str(), number) {
            ("==", _) => format!("select(({found} | tostring) == {value})"),
            ("!=", _) => format!("select(({found} | tostring) != {value})"),
            (op @ (">" | ">=" | "<" | "<="), Some(_)) => {
                let number = self.value.trim();
                format!("select({found} | (tonumber? // null) | . != null and . {op} {number})")
            }
            (op @ (">" | ">=" | "<" | "<="), None) => format!("select(({found} | tostring) {op} {value})"),
            ("~", _) => format!("select({found} | tostring | test({value}))"),
            ("!~", _) => format!("select({found} | tostring | test({value}) | not)"),
            (op, _) => return Err(format!("unknown filter operator {op:?}; use == != > >= < <= ~ or !~")),
        })
    }
}

/// A query with its conditions inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditioned {
    /// Query to run.
    pub text: String,
    /// Number of characters before the insertion, and number of inserted characters.
    inserted: (usize, usize),
}

impl Conditioned {
    /// Maps the position of an error back to the query as entered.
    #[must_use]
    pub fn of_typed(&self, mut error: QueryError) -> QueryError {
        let (before, characters) = self.inserted;
        if error.column > before {
            error.column = error.column.saturating_sub(characters).max(before + 1);
        }
        error
    }
}

/// Inserts conditions into a query.
///
/// # Errors
/// If the query or a condition is invalid.
pub fn applied(text: &str, conditions: &[Condition]) -> Result<Conditioned, QueryError> {
    if conditions.is_empty() {
        return Ok(Conditioned { text: text.to_owned(), inserted: (usize::MAX, 0) });
    }
    let wrong = |message: String| QueryError::at(text, 0, message);
    if conditions.len() > CONDITIONS_MAX {
        return Err(wrong(format!("a search may have at most {CONDITIONS_MAX} filters in addition to its query")));
    }
    let tags = query::parse(text, gravwell_objects::Timestamp::now())?.tags;
    let codes: Result<Vec<String>, String> = conditions.iter().map(|condition| condition.code(&tags)).collect();
    let inserted = format!(" | {}", codes.map_err(wrong)?.join(" | "));
    let at = query::head_end(text)?;
    let (head, rest) = text.split_at(at);
    let before = head.trim_end();
    let gap = if rest.is_empty() { "" } else { " " };
    let grown = (inserted.chars().count() + gap.len()).saturating_sub(head.chars().count() - before.chars().count());
    Ok(Conditioned { text: format!("{before}{inserted}{gap}{rest}"), inserted: (before.chars().count(), grown) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(name: &str, op: &str, value: &str) -> Condition {
        Condition { name: name.into(), op: op.into(), value: value.into(), ..Condition::default() }
    }

    #[test]
    fn client_filters_follow_the_terms_directly() {
        let text = "tag=audit \"a | b\" | .x | count";
        let made = applied(text, &[condition("a.b", "==", "\"c\"")]).expect("parses");
        let code = r#"select(((try getpath(["a","b"]) catch null) | tostring) == "\"c\"")"#;
        assert_eq!(made.text, format!("tag=audit \"a | b\" | {code} | .x | count"));
        assert_eq!(applied("tag=audit", &[condition("n", ">", "5")]).expect("too").text.matches('|').count(), 3);
        assert_eq!(applied("tag=audit", &[condition("n", "", "")]).expect("too").text, "tag=audit | .");
        assert_eq!(applied(text, &[]).expect("no filters").text, text);
    }

    #[test]
    fn query_errors_are_reported() {
        for wrong in [condition("", "==", ""), condition("a", "=", "")] {
            assert!(applied("tag=audit", &[wrong]).is_err());
        }
        let of_one = Condition { tag: "audit".into(), ..condition("a", "==", "") };
        assert!(applied("tag=audit", std::slice::from_ref(&of_one)).is_ok());
        assert!(applied("tag=audit,journal", &[of_one]).is_err());
        let made = applied("tag=audit | nonsense", &[condition("a", "==", "b")]).expect("parses");
        let at = made.text.find("nonsense").expect("there");
        assert_eq!(made.of_typed(QueryError::at(&made.text, at, "?")).column, 13);
        assert_eq!(made.of_typed(QueryError::at(&made.text, 4, "?")).column, 5);
    }
}
