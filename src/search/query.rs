//! Query language: `tag=audit,journal since=-1h until=now "words" -without | FILTER`.
//!
//! The part before the first bar selects rows; stages follow. A stage that starts with `count`, `sort`, `limit` or
//! `table` is built in; everything else is jq. jq keeps its own bars: adjacent jq stages form one filter. To call jq's
//! own `sort`, a user writes `(sort)`. Errors name the column.

use std::collections::HashSet;

use gravwell_objects::Timestamp;

/// Maximum length of a query, in bytes.
pub const QUERY_BYTES_MAX: usize = 16 << 10;
/// Maximum number of tags of a query.
const TAGS_MAX: usize = 32;
/// Maximum number of search terms of a query.
const WORDS_MAX: usize = 32;
/// Maximum number of stages of a query; each filter is a process.
const STAGES_MAX: usize = 16;
/// Maximum number of rows that `limit` accepts.
const LIMIT_MAX: u64 = 1 << 40;

/// Error in a query, with its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct QueryError {
    /// Position in the query, in characters, starting at 1.
    pub column: usize,
    /// Description of the error and how to fix it.
    pub message: String,
}

impl QueryError {
    /// Creates an error at byte offset `byte` of the query.
    #[must_use]
    pub fn at(text: &str, byte: usize, message: impl Into<String>) -> QueryError {
        let before = text.char_indices().take_while(|(at, _)| *at < byte).count();
        QueryError { column: before + 1, message: message.into() }
    }
}

/// A tag and its position in the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Name as written in the query.
    pub name: String,
    /// Byte offset of the tag in the query.
    pub at: usize,
}

/// A term that rows must or must not contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Text of the term.
    pub text: String,
    /// Whether rows that contain the term are excluded.
    pub is_excluded: bool,
}

/// Path of a field in a row, outermost name first.
pub type Field = Vec<String>;

/// Stage that processes the selected rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A jq filter.
    Filter {
        /// Source text of the filter.
        code: String,
        /// Byte offset of the filter in the query.
        at: usize,
    },
    /// Counts all rows, or rows with equal fields.
    Count {
        /// Fields to group by; empty: count all rows.
        by: Vec<Field>,
    },
    /// Sorts rows.
    Sort {
        /// Fields to sort by; empty: by time.
        by: Vec<Field>,
        /// Whether the largest value comes first.
        descending: bool,
    },
    /// Passes on this many rows.
    Limit(u64),
    /// Shows these fields as columns.
    Table(Vec<Field>),
}

/// A parsed query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Query as written.
    pub text: String,
    /// Tags to search.
    pub tags: Vec<Tag>,
    /// Start of the time range, inclusive, if the query sets one.
    pub since: Option<Timestamp>,
    /// End of the time range, exclusive, if the query sets one.
    pub until: Option<Timestamp>,
    /// Terms, in the order of the query.
    pub words: Vec<Word>,
    /// Stages, in order.
    pub stages: Vec<Stage>,
}

impl Query {
    /// Returns the columns if `table` or `count` determines them; a filter after these makes the columns unknown.
    #[must_use]
    pub fn columns(&self) -> Option<Vec<String>> {
        let unique = |mut names: Vec<String>| {
            let mut seen = HashSet::new();
            names.retain(|name| seen.insert(name.clone()));
            Some(names)
        };
        for stage in self.stages.iter().rev() {
            match stage {
                Stage::Table(fields) => return unique(fields.iter().map(|field| field.join(".")).collect()),
                Stage::Count { by } => {
                    let names = by.iter().map(|field| field.join("."));
                    return unique(names.chain(["count".to_owned()]).collect());
                }
                Stage::Sort { .. } | Stage::Limit(_) => {}
                Stage::Filter { .. } => return None,
            }
        }
        None
    }

    /// Returns the renderer for clients that ask for one.
    #[must_use]
    pub fn renderer(&self) -> &'static str {
        if self.columns().is_some() { "table" } else { "text" }
    }
}

/// Parses a query; relative times are relative to `now`.
///
/// # Errors
/// Returns the column of the error and how to fix it.
pub fn parse(text: &str, now: Timestamp) -> Result<Query, QueryError> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(QueryError::at(text, 0, format!("a query may have at most {QUERY_BYTES_MAX} bytes")));
    }
    let parts = split(text)?;
    let mut query = Query {
        text: text.to_owned(),
        tags: Vec::new(),
        since: None,
        until: None,
        words: Vec::new(),
        stages: Vec::new(),
    };
    let (head, stages) = parts.split_first().map_or((0..0, &[][..]), |(head, stages)| (head.clone(), stages));
    read_head(text, head, now, &mut query)?;
    for part in stages {
        read_stage(text, part.clone(), &mut query)?;
    }
    if query.stages.len() > STAGES_MAX {
        return Err(QueryError::at(text, 0, format!("a query may have at most {STAGES_MAX} stages")));
    }
    if let (Some(since), Some(until)) = (query.since, query.until)
        && since >= until
    {
        return Err(QueryError::at(text, 0, "since= must precede until="));
    }
    Ok(query)
}

/// Returns the ranges of the parts between those bars that are outside quotation marks and brackets.
fn split(text: &str) -> Result<Vec<std::ops::Range<usize>>, QueryError> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let in_text = open.last().is_some_and(|(kind, _)| *kind == '"');
        match c {
            '\\' if in_text => match chars.next() {
                Some((at, '(')) => open.push(('(', at)),
                Some(_) => {}
                None => break,
            },
            '"' if in_text => drop(open.pop()),
            _ if in_text => {}
            '"' => open.push(('"', at)),
            // A jq comment ends at the end of its line.
            '#' if !parts.is_empty() => while chars.next_if(|(_, c)| *c != '\n').is_some() {},
            '(' | '[' | '{' => open.push((c, at)),
            ')' | ']' | '}' => {
                let wanted = match c {
                    ')' => '(',
                    ']' => '[',
                    _ => '{',
                };
                if open.pop().is_none_or(|(kind, _)| kind != wanted) {
                    return Err(QueryError::at(
                        text,
                        at,
                        format!("unmatched {c}; remove it or add the opening bracket"),
                    ));
                }
            }
            // jq's `|=` is one operator.
            '|' if open.is_empty() && chars.peek().is_none_or(|(_, next)| *next != '=') => {
                parts.push(begin..at);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if let Some((kind, at)) = open.first() {
        return Err(QueryError::at(text, *at, format!("{kind} is not closed")));
    }
    parts.push(begin..text.len());
    Ok(parts)
}

/// Returns the byte offset of the bar before the first stage, or the length of the query.
///
/// # Errors
/// If a quotation mark or bracket is not closed.
pub fn head_end(text: &str) -> Result<usize, QueryError> {
    Ok(split(text)?.first().map_or(text.len(), |head| head.end))
}

/// Token of the part before the first bar.
struct Token {
    at: usize,
    text: String,
    is_quoted: bool,
    is_excluded: bool,
}

fn tokens(text: &str, range: std::ops::Range<usize>) -> Vec<Token> {
    let mut found = Vec::new();
    let mut chars = text[range.clone()].char_indices().map(|(at, c)| (at + range.start, c)).peekable();
    while let Some((at, c)) = chars.peek().copied() {
        if c.is_whitespace() {
            chars.next();
            continue;
        }
        let is_excluded = c == '-' && {
            chars.next();
            true
        };
        let is_quoted = chars.next_if(|(_, c)| *c == '"').is_some();
        let mut token = String::new();
        if is_quoted {
            while let Some((_, c)) = chars.next() {
                match c {
                    '"' => break,
                    '\\' => token.extend(chars.next().map(|(_, c)| c)),
                    c => token.push(c),
                }
            }
        } else {
            let mut in_text = false;
            while let Some((_, c)) = chars.next_if(|(_, c)| in_text || !c.is_whitespace()) {
                if c == '"' { in_text = !in_text } else { token.push(c) }
            }
        }
        found.push(Token { at, text: token, is_quoted, is_excluded });
    }
    found
}

fn read_head(text: &str, range: std::ops::Range<usize>, now: Timestamp, query: &mut Query) -> Result<(), QueryError> {
    for token in tokens(text, range) {
        let wrong = |message: String| QueryError::at(text, token.at, message);
        let pair = token.text.split_once('=').filter(|_| !token.is_quoted && !token.is_excluded);
        match pair {
            Some(("tag", names)) => read_tags(text, token.at, names, query)?,
            Some(("since", time)) => query.since = Some(read_time(time, now).map_err(wrong)?),
            Some(("until", time)) => query.until = Some(read_time(time, now).map_err(wrong)?),
            Some((name @ ("tags" | "start" | "end" | "from" | "to"), _)) => {
                return Err(wrong(format!("unknown {name}=; use tag=, since= or until=, or quote the term")));
            }
            _ if token.text.is_empty() => return Err(wrong("missing search term".into())),
            _ => query.words.push(Word { text: token.text, is_excluded: token.is_excluded }),
        }
    }
    if query.words.len() > WORDS_MAX {
        return Err(QueryError::at(
            text,
            0,
            format!("a query may have at most {WORDS_MAX} search terms; use a filter"),
        ));
    }
    if query.tags.is_empty() {
        return Err(QueryError::at(text, 0, "missing tag; add tag=audit, tag=journal or tag=resource:NAME"));
    }
    Ok(())
}

fn read_tags(text: &str, at: usize, names: &str, query: &mut Query) -> Result<(), QueryError> {
    let mut begin = at + "tag=".len();
    for name in names.split(',') {
        if name.is_empty() {
            return Err(QueryError::at(text, begin, "missing tag name"));
        }
        if !query.tags.iter().any(|tag| tag.name == name) {
            query.tags.push(Tag { name: name.to_owned(), at: begin });
        }
        begin += name.len() + 1;
    }
    if query.tags.len() > TAGS_MAX {
        return Err(QueryError::at(text, at, format!("a query may have at most {TAGS_MAX} tags")));
    }
    Ok(())
}

/// Parses a time: `now`, `-1h30m`, `2026-01-31`, or RFC 3339.
///
/// # Errors
/// Returns a message that lists the accepted forms.
pub fn read_time(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let wrong = || format!("{text:?} is not a time; use now, -90s, -15m, -1h, -7d, 2026-01-31 or 2026-01-31T12:00:00Z");
    if text == "now" {
        return Ok(now);
    }
    if let Some(span) = text.strip_prefix('-') {
        let ns = read_span(span).ok_or_else(wrong)?;
        return Ok(Timestamp::from_ns(now.ns().saturating_sub(ns)));
    }
    let is_day = text.len() == 10;
    let parsed = if is_day { Timestamp::parse(&format!("{text}T00:00:00Z")) } else { Timestamp::parse(text) };
    parsed.ok_or_else(wrong)
}

/// Parses a duration such as `1h30m`, `7d` or `150ms` and returns nanoseconds.
#[must_use]
pub fn read_span(text: &str) -> Option<i64> {
    let (mut total, mut rest) = (0f64, text);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return None,
        };
        total += number * seconds;
        rest = &rest[unit..];
    }
    // The limit of about a thousand years keeps the result in range.
    (total <= 3.2e10).then_some(total * 1e9).map(|ns| ns as i64)
}

/// Splits a built-in stage into its keyword and arguments; `None` if the part is jq.
fn own_stage(part: &str) -> Option<(&str, &str)> {
    let word = ["count", "sort", "limit", "table"].into_iter().find(|word| part.starts_with(word))?;
    let rest = &part[word.len()..];
    let is_whole = rest.is_empty() || rest.starts_with(char::is_whitespace);
    (is_whole && !rest.trim_start().starts_with('(')).then_some((word, rest))
}

fn read_stage(text: &str, range: std::ops::Range<usize>, query: &mut Query) -> Result<(), QueryError> {
    let part = &text[range.clone()];
    let trimmed = part.trim();
    let at = range.start + (part.len() - part.trim_start().len());
    if trimmed.is_empty() {
        return Err(QueryError::at(text, range.start, "missing filter; write one after the bar, or remove the bar"));
    }
    let Some((word, rest)) = own_stage(trimmed) else {
        if let Some(Stage::Filter { code, .. }) = query.stages.last_mut() {
            // The text is appended unchanged, so that byte offsets in the filter still match columns of the query.
            code.push('|');
            code.push_str(part);
        } else {
            query.stages.push(Stage::Filter { code: text[at..range.end].to_owned(), at });
        }
        return Ok(());
    };
    let wrong = |message: String| QueryError::at(text, at, message);
    let words: Vec<&str> = rest.split([' ', '\t', '\n', ',']).filter(|word| !word.is_empty()).collect();
    query.stages.push(match word {
        "limit" => {
            let number = words.first().and_then(|word| word.parse().ok()).filter(|n| (1..=LIMIT_MAX).contains(n));
            let number = number.filter(|_| words.len() == 1);
            Stage::Limit(number.ok_or_else(|| wrong("invalid limit; use for example limit 100".into()))?)
        }
        "table" => Stage::Table(
            fields(&words)
                .filter(|fields| !fields.is_empty())
                .ok_or_else(|| wrong("invalid table; use for example table user what".into()))?,
        ),
        "count" => match words.split_first() {
            None => Stage::Count { by: Vec::new() },
            Some((&"by", names)) if !names.is_empty() => Stage::Count {
                by: fields(names).ok_or_else(|| wrong("invalid field; use names separated by dots: a.b".into()))?,
            },
            Some(_) => return Err(wrong("invalid count; use count, or for example count by user".into())),
        },
        _ => read_sort(&words)
            .ok_or_else(|| wrong("invalid sort; use for example sort by count desc, or (sort) for jq's sort".into()))?,
    });
    Ok(())
}

fn read_sort(words: &[&str]) -> Option<Stage> {
    let (descending, words) = match words.split_last() {
        Some((&"desc", rest)) => (true, rest),
        Some((&"asc", rest)) => (false, rest),
        _ => (false, words),
    };
    match words.split_first() {
        None if descending => Some(Stage::Sort { by: Vec::new(), descending }),
        Some((&"by", ["time"])) => Some(Stage::Sort { by: Vec::new(), descending }),
        Some((&"by", names)) if !names.is_empty() => Some(Stage::Sort { by: fields(names)?, descending }),
        _ => None,
    }
}

fn fields(words: &[&str]) -> Option<Vec<Field>> {
    let field = |word: &&str| {
        let names: Field = word.trim_start_matches('.').split('.').map(str::to_owned).collect();
        (!names.iter().any(String::is_empty)).then_some(names)
    };
    words.iter().map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::parse("2026-01-31T12:00:00Z").expect("a time")
    }

    fn field(text: &str) -> Field {
        text.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn a_whole_query() {
        let text = r#"tag=audit,resource:"my users.csv" since=-1h until=now "two words" -cron x=1 | .a |= 1 | select(.b | test("|")) | count by .a.b, c | sort by count desc | limit 3"#;
        let query = parse(text, now()).expect("parses");
        let names: Vec<&str> = query.tags.iter().map(|tag| tag.name.as_str()).collect();
        assert_eq!(names, ["audit", "resource:my users.csv"]);
        assert_eq!(query.since.expect("since").text(), "2026-01-31T11:00:00Z");
        assert_eq!(query.until, Some(now()));
        let word = |text: &str, is_excluded| Word { text: text.into(), is_excluded };
        assert_eq!(query.words, [word("two words", false), word("cron", true), word("x=1", false)]);
        let [Stage::Filter { code, at }, rest @ ..] = &query.stages[..] else { panic!("{query:?}") };
        assert_eq!(code.trim(), r#".a |= 1 | select(.b | test("|"))"#);
        assert!(text[*at..].starts_with(".a |= 1"));
        assert_eq!(
            rest,
            [
                Stage::Count { by: vec![field("a.b"), field("c")] },
                Stage::Sort { by: vec![field("count")], descending: true },
                Stage::Limit(3)
            ]
        );
        assert_eq!(query.columns().expect("columns"), ["a.b", "c", "count"]);
    }

    #[test]
    fn built_in_and_jq_stages_are_distinguished() {
        let stages = |text: &str| parse(&format!("tag=a | {text}"), now()).expect(text).stages;
        let is_filter = |text: &str| matches!(stages(text)[..], [Stage::Filter { .. }]);
        for jq in [
            "(sort)",
            "limit(3; .[])",
            "limit (3; .[])",
            "counter",
            "table_of(.)",
            "# count | sort\n.",
            "\"a\\(1 | 2)|\"",
        ] {
            assert!(is_filter(jq), "{jq}: {:?}", stages(jq));
        }
        assert_eq!(stages("count"), [Stage::Count { by: vec![] }]);
        assert_eq!(stages("sort desc"), [Stage::Sort { by: vec![], descending: true }]);
        assert_eq!(stages("sort by time"), [Stage::Sort { by: vec![], descending: false }]);
        assert_eq!(stages(". | limit 1 | . as $x | $x").len(), 3);
    }

    #[test]
    fn errors_name_the_column() {
        let cases = [
            ("", 1, "missing tag"),
            ("word", 1, "missing tag"),
            ("tag=a,,b", 7, "missing tag name"),
            ("tag=a since=yesterday", 7, "is not a time"),
            ("tag=a since=-1x", 7, "is not a time"),
            ("tag=a since=now until=-1h", 1, "must precede"),
            ("tag=a end=now", 7, "unknown end="),
            ("tag=a |", 8, "missing filter"),
            ("tag=a | | .", 8, "missing filter"),
            ("tag=a | .[", 10, "[ is not closed"),
            ("tag=ä | .]", 10, "unmatched ]"),
            ("tag=a \"x", 7, "\" is not closed"),
            ("tag=a | limit none", 9, "limit 100"),
            ("tag=a | limit 0", 9, "limit 100"),
            ("tag=a | count user", 9, "count by"),
            ("tag=a | sort user", 9, "(sort)"),
            ("tag=a | table", 9, "table user"),
            ("tag=a | table a..b", 9, "table user"),
            ("tag=a -", 7, "missing search term"),
        ];
        for (text, column, message) in cases {
            let error = parse(text, now()).expect_err(text);
            assert!(error.column == column && error.message.contains(message), "{text}: {error}");
        }
        assert!(parse(&"x".repeat(QUERY_BYTES_MAX + 1), now()).is_err());
    }

    #[test]
    fn spans() {
        assert_eq!(read_span("1h30m"), Some(5_400_000_000_000));
        assert_eq!(read_span("1.5s"), Some(1_500_000_000));
        assert_eq!(read_span("150ms"), Some(150_000_000));
        for bad in ["", "h", "1", "1y", "-1h", "1h-", "9999999999999w", "."] {
            assert_eq!(read_span(bad), None, "{bad}");
        }
    }
}
