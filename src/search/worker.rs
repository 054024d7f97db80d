//! Process in which a jq filter runs.
//!
//! A filter is a program typed by a user: it may loop forever, allocate all memory, or recurse until the stack overflows.
//! None of that may affect the webserver. The webserver therefore starts its own executable as a worker with one filter
//! and limits enforced by the kernel; rows arrive on standard input and leave on standard output. If the worker fails,
//! only its search ends, with a reason.
//!
//! After setting its limits the worker confines itself (`search/sandbox.rs`), before it reads any byte of the filter.
//!
//! Input: the filter, as a length (u32, little-endian) and its text; then batches, each a length (u32, little-endian) and
//! that many bytes of rows in the format of [`super::row::Row::write`]. Output: first one line, either `+` if the filter
//! compiles, followed by the sandbox layers that are missing, or `-BYTE MESSAGE`. Then follow frames of rows in the same
//! format, and a frame of length zero after the output of each batch. A row with the tag [`MESSAGE_TAG`] is an error
//! message of the filter instead of a row.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::str::FromStr;

use jaq_core::load::{self, Arena, Loader, span};
use jaq_core::{Compiler, Ctx, DataT, Filter, Lut, Vars, data, native, unwrap_valr};
use jaq_json::Val;
use jaq_std::input::{self, Inputs, RcIter};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use super::query::QUERY_BYTES_MAX;
use super::row::{ROW_BYTES_MAX, ROW_HEAD_BYTES, read_head, write_head};
use super::sandbox;

/// First argument that makes the program run as a filter worker.
pub const ARGUMENT: &str = "--run-search-filter";
/// Memory limit of a filter, in bytes.
pub const MEMORY_BYTES: u64 = 128 << 20;
/// Maximum length of a message, in bytes.
const MESSAGE_BYTES_MAX: usize = 500;
/// Maximum length of a batch (in) and of a frame (out), in bytes: one row of maximum size and the rows before it.
pub const FRAME_BYTES_MAX: usize = ROW_BYTES_MAX + (64 << 10);
/// A frame is written once it has this many bytes.
const PIECE_BYTES: usize = 48 << 10;
/// Tag of messages; queries cannot have that many tags.
pub const MESSAGE_TAG: u16 = u16::MAX;

/// Data that a filter can access besides its input.
struct Kind;

impl DataT for Kind {
    type V<'a> = Val;
    type Data<'a> = &'a Around<'a>;
}

struct Around<'a> {
    lut: &'a Lut<Kind>,
    inputs: Inputs<'a, Val>,
}

impl<'a> data::HasLut<'a, Kind> for &'a Around<'a> {
    fn lut(&self) -> &'a Lut<Kind> {
        self.lut
    }
}

impl<'a> input::HasInputs<'a, Val> for &'a Around<'a> {
    fn inputs(&self) -> Inputs<'a, Val> {
        self.inputs
    }
}

/// Behavior on a kernel that cannot confine filters fully.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Filters run with the confinement that is available, and a warning is logged.
    #[default]
    Preferred,
    /// Filters do not run.
    Required,
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sandbox::Preferred => "preferred",
            Sandbox::Required => "required",
        })
    }
}

impl FromStr for Sandbox {
    type Err = String;

    fn from_str(text: &str) -> Result<Sandbox, String> {
        match text.to_ascii_lowercase().as_str() {
            "preferred" => Ok(Sandbox::Preferred),
            "required" => Ok(Sandbox::Required),
            _ => Err(format!("unknown value `{text}`; use preferred or required")),
        }
    }
}

/// Runs this process as a filter worker if it was started as one, and returns its exit code.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(60);
    // An invalid value selects the stricter mode.
    let sandbox = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(Sandbox::Required);
    Some(match start(seconds, sandbox) {
        Ok(()) => ExitCode::SUCCESS,
        // The other end of a pipe was closed, so there is nothing left to do.
        Err(_) => ExitCode::FAILURE,
    })
}

fn start(seconds: u64, sandbox: Sandbox) -> std::io::Result<()> {
    // Batches are read and written whole, so buffering would only add a copy.
    let mut stdout = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let mut stdin = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let missing = match bound(seconds).and_then(|()| sandbox::confine()) {
        Ok(missing) if sandbox == Sandbox::Preferred || missing.is_empty() => missing,
        Ok(missing) => {
            let refused = format!(
                "this kernel cannot confine filters: {missing}; boot one that can, or set Search-Filter-Sandbox=preferred"
            );
            return stdout.write_all(format!("-0 {}\n", one_line(&refused)).as_bytes());
        }
        Err(error) => {
            return stdout.write_all(format!("-0 cannot set the resource limits of a filter: {error}\n").as_bytes());
        }
    };
    let code = read_code(&mut stdin)?;
    run(&code, stdin, stdout, &one_line(&missing))
}

fn read_code(stdin: &mut File) -> std::io::Result<String> {
    let mut length = [0; LENGTH];
    stdin.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > QUERY_BYTES_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut code = vec![0; length];
    stdin.read_exact(&mut code)?;
    String::from_utf8(code).map_err(std::io::Error::other)
}

/// Sets the resource limits, which the kernel enforces from here on.
fn bound(seconds: u64) -> std::io::Result<()> {
    // The OOM killer should pick this process first. Failing to set the score is not an error.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let limit = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::Data, limit(MEMORY_BYTES))?;
    setrlimit(Resource::Cpu, limit(seconds))?;
    setrlimit(Resource::Core, limit(0))?;
    setrlimit(Resource::Fsize, limit(0))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

fn compile(code: &str) -> Result<Filter<Kind>, (usize, String)> {
    let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    let inputs = input::funs::<Kind>().into_vec().into_iter().map(native::run::<Kind>);
    let funs = jaq_core::funs::<Kind>().chain(jaq_std::funs::<Kind>()).chain(jaq_json::funs::<Kind>()).chain(inputs);
    let arena = Arena::default();
    let modules =
        Loader::new(defs).load(&arena, load::File { path: (), code }).map_err(|errors| load_error(code, errors))?;
    // Data that is imported would be a variable, for which the filter gets no value.
    load::import(&modules, |_| Err(String::new())).map_err(|errors| load_error(code, errors))?;
    Compiler::default().with_funs(funs).compile(modules).map_err(|errors| {
        let first = errors.into_iter().flat_map(|(_, errors)| errors).next();
        first.map_or((0, String::new()), |(found, undefined)| {
            (span(code, found).start, format!("unknown {} {found}", undefined.as_str()))
        })
    })
}

fn load_error(code: &str, errors: jaq_core::load::Errors<&str, ()>) -> (usize, String) {
    use jaq_core::load::Error;
    let place = |part: &str| if part.is_empty() { code.len() } else { span(code, part).start };
    let first = errors.into_iter().map(|(_, error)| error).next();
    let told = match first {
        Some(Error::Io(errors)) => {
            errors.into_iter().next().map(|(path, _)| (place(path), "modules are not supported".into()))
        }
        Some(Error::Lex(errors)) => {
            errors.into_iter().next().map(|(wanted, found)| (place(found), format!("expected {}", wanted.as_str())))
        }
        Some(Error::Parse(errors)) => {
            errors.into_iter().next().map(|(wanted, found)| (place(found), format!("expected {}", wanted.as_str())))
        }
        None => None,
    };
    told.unwrap_or((0, "invalid filter".into()))
}

fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = text.char_indices().map(|(at, _)| at).find(|at| *at >= MESSAGE_BYTES_MAX).unwrap_or(text.len());
    text[..end].to_owned()
}

fn run(code: &str, stdin: File, mut stdout: File, missing: &str) -> std::io::Result<()> {
    let filter = match compile(code) {
        Ok(filter) => filter,
        Err((at, message)) => {
            return stdout.write_all(format!("-{at} {}\n", one_line(&message)).as_bytes());
        }
    };
    stdout.write_all(format!("+{missing}\n").as_bytes())?;
    let out = RefCell::new(Out { stdout, piece: Vec::with_capacity(PIECE_BYTES * 2) });
    // Output rows have the time and tag of the input row that was read last.
    let head = Cell::new((0i64, 0u16));
    let rows = Rows { head: &head, out: &out, stdin, batch: Vec::new(), at: 0, is_first: true };
    let rows = RcIter::new(rows);
    let rows: Inputs<'_, Val> = &rows;
    let around = Around { lut: &filter.lut, inputs: rows };
    let context = Ctx::<Kind>::new(&around, Vars::new([]));
    for row in rows {
        let Ok(row) = row else {
            out.borrow_mut().message("row is not JSON")?;
            continue;
        };
        for result in filter.id.run((context.clone(), row)).map(unwrap_valr) {
            match result {
                Ok(value) => out.borrow_mut().row(head.get(), &value)?,
                Err(error) => out.borrow_mut().message(&error.to_string())?,
            }
        }
    }
    out.borrow_mut().write_piece()
}

/// Writer of output frames. The first bytes of a frame are its length.
struct Out {
    stdout: File,
    piece: Vec<u8>,
}

const LENGTH: usize = size_of::<u32>();

impl Out {
    fn add(
        &mut self,
        (time, tag): (i64, u16),
        write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        if self.piece.is_empty() {
            self.piece.extend_from_slice(&[0; LENGTH]);
        }
        let begin = self.piece.len();
        write_head(time, tag, 0, &mut self.piece);
        write(&mut self.piece)?;
        let length = u32::try_from(self.piece.len() - begin - ROW_HEAD_BYTES).map_err(std::io::Error::other)?;
        self.piece[begin + ROW_HEAD_BYTES - LENGTH..begin + ROW_HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
        if self.piece.len() >= PIECE_BYTES { self.write_piece() } else { Ok(()) }
    }

    fn row(&mut self, head: (i64, u16), value: &Val) -> std::io::Result<()> {
        self.add(head, |to| jaq_json::write::write(to, &jaq_json::write::Pp::default(), 0, value))
    }

    fn message(&mut self, text: &str) -> std::io::Result<()> {
        self.add((0, MESSAGE_TAG), |to| to.write_all(one_line(text).as_bytes()))
    }

    fn close_piece(&mut self) -> std::io::Result<()> {
        if let Some(length) = self.piece.len().checked_sub(LENGTH) {
            let length = u32::try_from(length).map_err(std::io::Error::other)?;
            self.piece[..LENGTH].copy_from_slice(&length.to_le_bytes());
        }
        Ok(())
    }

    fn write_piece(&mut self) -> std::io::Result<()> {
        self.close_piece()?;
        self.stdout.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }

    fn end_batch(&mut self) -> std::io::Result<()> {
        self.close_piece()?;
        self.piece.extend_from_slice(&[0; LENGTH]);
        self.stdout.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }
}

struct Rows<'a> {
    head: &'a Cell<(i64, u16)>,
    out: &'a RefCell<Out>,
    stdin: File,
    batch: Vec<u8>,
    at: usize,
    is_first: bool,
}

impl Rows<'_> {
    /// Reads the next batch; returns `None` at the end of the input, or if the output was closed.
    fn next_batch(&mut self) -> Option<()> {
        if !std::mem::replace(&mut self.is_first, false) {
            self.out.borrow_mut().end_batch().ok()?;
        }
        let mut length = [0; LENGTH];
        self.stdin.read_exact(&mut length).ok()?;
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return None;
        }
        self.batch.resize(length, 0);
        self.at = 0;
        self.stdin.read_exact(&mut self.batch).ok()
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Val, String>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at >= self.batch.len() {
            self.next_batch()?;
        }
        let rest = &self.batch[self.at..];
        let (time, tag, length) = read_head(rest)?;
        let data = rest.get(ROW_HEAD_BYTES..ROW_HEAD_BYTES + length)?;
        self.head.set((time, tag));
        self.at += ROW_HEAD_BYTES + length;
        Some(jaq_json::read::parse_single(data.trim_ascii()).map_err(|error| error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_data_cannot_be_imported() {
        for code in ["import \"x\" as y; .", "import \"x\" as $y; $y", "include \"x\"; ."] {
            let (at, message) = compile(code).err().expect("is refused");
            assert!(at <= code.len() && message == "modules are not supported", "{code}: {at} {message}");
        }
        assert!(compile(".").is_ok());
    }
}
