//! Output as tables for people and as JSON for scripts, from the same values.

use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;

use gravwell_model::printable;

use crate::error::{CtlError, CtlResult};

/// Buffered standard output. If the reader closes the pipe, the command exits without an error message.
pub(crate) struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    pub(crate) fn new() -> Output {
        Output(BufWriter::with_capacity(64 << 10, io::stdout().lock()))
    }

    /// Prints one line for people. Control characters are escaped, so that it stays one line and cannot
    /// affect the terminal.
    pub(crate) fn line(&mut self, line: &str) -> CtlResult {
        self.raw_line(&printable::escape(line))
    }

    /// Prints a line of JSON, or a line whose parts are already escaped.
    pub(crate) fn raw_line(&mut self, line: &str) -> CtlResult {
        self.0.write_all(line.as_bytes()).and_then(|()| self.0.write_all(b"\n")).map_err(output_error)
    }

    pub(crate) fn json<T: Serialize>(&mut self, value: &T) -> CtlResult {
        self.raw_line(&serde_json::to_string(value).map_err(CtlError::new)?)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> CtlResult {
        self.0.write_all(bytes).map_err(output_error)
    }

    pub(crate) fn flush(&mut self) -> CtlResult {
        self.0.flush().map_err(output_error)
    }

    /// Prints `rows` as JSON lines, or as a table with `headings` and the cells returned by `cells`.
    pub(crate) fn list<T: Serialize>(
        &mut self,
        json: bool,
        rows: &[T],
        headings: &[&str],
        cells: impl Fn(&T) -> Vec<String>,
    ) -> CtlResult {
        if json {
            rows.iter().try_for_each(|row| self.json(row))?;
        } else {
            // Escape before column widths are computed.
            let escaped = |cells: Vec<String>| cells.iter().map(|cell| printable::escape(cell).into_owned()).collect();
            let rows = rows.iter().map(cells).map(escaped).collect::<Vec<Vec<String>>>();
            self.table(headings, &rows)?;
        }
        self.flush()
    }

    fn table(&mut self, headings: &[&str], rows: &[Vec<String>]) -> CtlResult {
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.filter(|chars| *chars <= ALIGNED_CHARS_MAX).max().unwrap_or(0).max(headings[column].len())
        };
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        self.line(&aligned(headings, &widths))?;
        rows.iter().try_for_each(|row| self.line(&aligned(row, &widths)))
    }
}

/// Longer cells are printed whole, but no column is as wide as they are.
const ALIGNED_CHARS_MAX: usize = 200;

/// Returns a row of a table with columns of these widths.
pub(crate) fn aligned(cells: &[impl AsRef<str>], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        let cell = cell.as_ref();
        line.push_str(cell);
        // The formatter's padding is limited to 65,535 characters.
        line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
    }
    line.trim_end().to_owned()
}

fn output_error(error: io::Error) -> CtlError {
    let exit = u8::from(error.kind() != io::ErrorKind::BrokenPipe);
    let message = if exit == 0 { String::new() } else { format!("standard output: {error}") };
    CtlError { message, exit }
}

/// Formats a size for people.
pub(crate) fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "rounded for display")]
    let value = bytes as f64;
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", value / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", value / 1_048_576.0),
        _ => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

/// Formats an optional value for people; `None` is a dash.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p07_a_table_shows_cells_of_any_length() {
        let long = "x".repeat(70_000);
        let rows = [["a", "b"], ["long", &long], ["c", "d"]];
        let lines = rows.map(|row| aligned(&row, &[4, 1]));
        assert_eq!(lines, ["a     b".to_owned(), format!("long  {long}"), "c     d".to_owned()]);
        assert_eq!(aligned(&[long.as_str(), "b"], &[4, 1]), format!("{long}  b"));
    }
}
