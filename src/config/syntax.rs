//! Parser of `gravwell.conf`: sections, names, values, comments, continuations, raw strings.
//!
//! Every error has a line and a column, both starting at 1.

use std::fmt;

/// Maximum size of a configuration file, in bytes.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// Position in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLocation {
    /// Line number, starting at 1.
    pub line: usize,
    /// Column in characters, starting at 1.
    pub column: usize,
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// One `name = value` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Section, as written.
    pub section: String,
    /// Subsection, if any.
    pub subsection: Option<String>,
    /// Name, as written.
    pub name: String,
    /// Value; `None` for a name without `=`.
    pub value: Option<String>,
    /// Position of the name.
    pub place: SourceLocation,
}

/// Syntax error with its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct SyntaxError {
    /// Position of the error.
    pub place: SourceLocation,
    /// Description of the error and how to fix it.
    pub what: String,
}

struct Scanner<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    place: SourceLocation,
}

impl Scanner<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest.peek().copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        if next == '\n' {
            self.place = SourceLocation { line: self.place.line + 1, column: 1 };
        } else {
            self.place.column += 1;
        }
        Some(next)
    }

    fn error<T>(&self, place: SourceLocation, what: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { place, what: what.into() })
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(|c| matches!(c, ' ' | '\t' | '\r')) {
            self.next();
        }
    }

    fn skip_line(&mut self) {
        while self.peek().is_some_and(|c| c != '\n') {
            self.next();
        }
    }

    fn name(&mut self, what: &str) -> Result<String, SyntaxError> {
        let start = self.place;
        let mut name = String::new();
        while let Some(c) =
            self.peek().filter(|c| c.is_alphabetic() || (!name.is_empty() && (c.is_numeric() || *c == '-')))
        {
            name.push(c);
            self.next();
        }
        match (name.is_empty(), self.peek()) {
            (true, _) => self.error(start, format!("expected {what}: a letter, then letters, digits and `-`")),
            (false, Some(c @ ('_' | '.'))) => {
                self.error(self.place, format!("`{c}` is not allowed in {what}; use letters, digits and `-`"))
            }
            (false, _) => Ok(name),
        }
    }

    fn section(&mut self) -> Result<(String, Option<String>), SyntaxError> {
        self.skip_blanks();
        let name = self.name("a section name")?;
        self.skip_blanks();
        let subsection = match self.peek() {
            Some('"') => Some(self.subsection()?),
            _ => None,
        };
        self.skip_blanks();
        let end = self.place;
        if self.next() != Some(']') {
            return self.error(end, "expected `]` after the section name");
        }
        self.skip_blanks();
        match self.peek() {
            None | Some('\n' | '#' | ';') => Ok((name, subsection)),
            Some(_) => self.error(self.place, "only a comment may follow a section name on its line"),
        }
    }

    fn subsection(&mut self) -> Result<String, SyntaxError> {
        let start = self.place;
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') if text.is_empty() => return self.error(start, "a subsection name must not be empty"),
                Some('"') => return Ok(text),
                Some('\\') => match self.next() {
                    Some(c @ ('\\' | '"')) => text.push(c),
                    _ => return self.error(self.place, r#"unknown escape in a subsection name; use only \\ and \""#),
                },
                None | Some('\n') => return self.error(start, "the subsection name has no closing `\"`"),
                Some(c) => text.push(c),
            }
        }
    }

    fn value(&mut self) -> Result<String, SyntaxError> {
        self.skip_blanks();
        if self.peek() == Some('`') {
            return self.raw();
        }
        let mut value = String::new();
        // Trailing blanks are removed from unquoted text, but not from quoted text.
        let mut kept = 0;
        loop {
            match self.peek() {
                None | Some('\n' | '#' | ';') => {
                    value.truncate(kept.max(value.trim_end_matches([' ', '\t']).len()));
                    return Ok(value);
                }
                Some('"') => {
                    self.quoted(&mut value)?;
                    kept = value.len();
                }
                Some('\\') => {
                    let at = self.place;
                    self.next();
                    if self.peek() == Some('\r') {
                        self.next();
                    }
                    match self.next() {
                        Some('\n') => {}
                        Some('"') => value.push('"'),
                        _ => {
                            return self
                                .error(at, "a backslash is allowed only before a line end or `\"`; quote the value");
                        }
                    }
                }
                Some(c) => {
                    self.next();
                    if c != '\r' {
                        value.push(c);
                    }
                }
            }
        }
    }

    fn quoted(&mut self, value: &mut String) -> Result<(), SyntaxError> {
        let start = self.place;
        self.next();
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                None | Some('\n') => return self.error(start, "the value has no closing `\"` on its line"),
                Some('\\') => match self.next() {
                    Some(c @ ('\\' | '"')) => value.push(c),
                    Some('n') => value.push('\n'),
                    Some('t') => value.push('\t'),
                    _ => return self.error(self.place, r#"unknown escape in quotes; use only \\, \", \n and \t"#),
                },
                Some(c) => value.push(c),
            }
        }
    }

    fn raw(&mut self) -> Result<String, SyntaxError> {
        let start = self.place;
        self.next();
        let mut value = String::new();
        loop {
            match self.next() {
                Some('`') => break,
                None => return self.error(start, "the raw value has no closing backtick"),
                Some('\r') => {}
                Some(c) => value.push(c),
            }
        }
        self.skip_blanks();
        match self.peek() {
            None | Some('\n' | '#' | ';') => Ok(value),
            Some(_) => self.error(self.place, "only a comment may follow a raw value on its line"),
        }
    }
}

/// Parses the text of a file.
///
/// # Errors
/// If the text is invalid; reports the first error.
pub fn parse(text: &str) -> Result<Vec<Setting>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut scanner = Scanner { rest: text.chars().peekable(), place: SourceLocation { line: 1, column: 1 } };
    if text.len() > FILE_BYTES_MAX {
        return scanner.error(
            scanner.place,
            format!("the file has {} bytes, but at most {FILE_BYTES_MAX} are allowed", text.len()),
        );
    }
    let mut settings = Vec::new();
    let mut section: Option<(String, Option<String>)> = None;
    loop {
        scanner.skip_blanks();
        let place = scanner.place;
        match scanner.peek() {
            None => return Ok(settings),
            Some('\n') => drop(scanner.next()),
            Some('#' | ';') => scanner.skip_line(),
            Some('\0') => return scanner.error(place, "the file contains a NUL byte and is not text"),
            Some('[') => {
                scanner.next();
                section = Some(scanner.section()?);
                scanner.skip_line();
            }
            Some(_) => {
                let name = scanner.name("a parameter name")?;
                let Some((section, subsection)) = section.clone() else {
                    return scanner.error(place, format!("`{name}` precedes the first section; put [Global] above it"));
                };
                scanner.skip_blanks();
                let value = match scanner.peek() {
                    Some('=') => {
                        scanner.next();
                        Some(scanner.value()?)
                    }
                    None | Some('\n' | '#' | ';') => None,
                    Some(_) => return scanner.error(scanner.place, format!("expected `=` after `{name}`")),
                };
                scanner.skip_line();
                settings.push(Setting { section, subsection, name, value, place });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Result<Option<String>, SyntaxError> {
        parse(&format!("[Global]\n{line}\n")).map(|mut settings| settings.remove(0).value)
    }

    #[test]
    fn values_follow_the_documented_rules() {
        let cases = [
            ("a=b#c", Some("b")),
            ("a = b c  ; comment", Some("b c")),
            ("a=", Some("")),
            ("a", None),
            ("a=\"x # y\" # z", Some("x # y")),
            ("a=\"a\" \"b\"", Some("a b")),
            ("a=\"tail \"", Some("tail ")),
            (r#"a="q\"\\\n\t""#, Some("q\"\\\n\t")),
            ("a=one\\\ntwo", Some("onetwo")),
            ("a=`raw \\n \"x\"\nmore` # c", Some("raw \\n \"x\"\nmore")),
            ("a=b\r", Some("b")),
            ("\ta=Gravwell Users:gravwell-users", Some("Gravwell Users:gravwell-users")),
        ];
        for (line, value) in cases {
            assert_eq!(one(line), Ok(value.map(str::to_owned)), "{line}");
        }
    }

    #[test]
    fn mistakes_name_their_place() {
        let cases = [
            ("a=1\n", 1, 1, "precedes the first section"),
            ("[Global\na=1", 1, 8, "expected `]`"),
            ("[Global] x\n", 1, 10, "only a comment"),
            ("[a.b]\n", 1, 3, "`.` is not allowed"),
            ("[a \"\"]\n", 1, 4, "must not be empty"),
            ("[Global]\nLog_Level=1", 2, 4, "`_` is not allowed"),
            ("[Global]\na=\"x\n", 2, 3, "no closing"),
            ("[Global]\na=\\x\n", 2, 3, "backslash"),
            ("[Global]\na=`x\n", 2, 3, "backtick"),
            ("[Global]\na b\n", 2, 3, "expected `=`"),
            ("[Global]\n\0", 2, 1, "NUL"),
        ];
        for (text, line, column, what) in cases {
            let error = parse(text).expect_err(text);
            assert_eq!(error.place, SourceLocation { line, column }, "{text}: {error}");
            assert!(error.what.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn sections_repeat_and_keep_their_subsections() {
        let settings =
            parse("\u{feff}[global]\nA=1\n[Storage-Well \"x\\\"y\"] # c\nB=2\n[Global]\nA=3\n").expect("parses");
        assert_eq!(settings.len(), 3);
        assert_eq!(settings[1].subsection.as_deref(), Some("x\"y"));
        assert_eq!((settings[2].name.as_str(), settings[2].value.as_deref()), ("A", Some("3")));
    }
}
