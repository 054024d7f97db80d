//! The process in which a filter of jq runs.
//!
//! A filter is a program that somebody typed: it may never end, ask for all memory, or recurse until its stack is gone.
//! None of that may touch the webserver, so the webserver starts itself again as this: one filter, bounds that the kernel
//! keeps, rows in through standard input, rows out through standard output. Whatever happens to it, the search ends with
//! a reason and everything else goes on.
//!
//! In: lines of `TIME TAG` tab JSON. Out: first `+` when the filter is understood, or `-BYTE MESSAGE`; then lines of the same
//! form as in, and `!MESSAGE` for a row on which the filter failed.

use std::cell::Cell;
use std::io::{BufRead, BufWriter, Read, Write};
use std::process::ExitCode;

use jaq_core::load::{Arena, File, Loader, span};
use jaq_core::{Compiler, Ctx, DataT, Filter, Lut, Vars, data, native, unwrap_valr};
use jaq_json::Val;
use jaq_std::input::{self, Inputs, RcIter};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

/// First argument with which a program becomes this.
pub const ARGUMENT: &str = "--run-search-filter";
/// Memory of a filter, in bytes.
pub const MEMORY_BYTES: u64 = 128 << 20;
/// Longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 500;
/// Longest line in, in bytes: a row with its head.
const LINE_BYTES_MAX: u64 = (super::row::ROW_BYTES_MAX + 64) as u64;

/// What a filter sees besides its input.
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

/// Whether this process was started as a filter; if so, it is one and nothing else.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(60);
    let code = arguments.next().unwrap_or_default();
    if let Err(error) = bound(seconds) {
        println!("-0 the bounds of a filter cannot be set: {error}");
        return Some(ExitCode::FAILURE);
    }
    Some(match run(&code) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads any more, or nobody writes: either way there is nothing to do.
        Err(_) => ExitCode::FAILURE,
    })
}

/// From here on the kernel holds the bounds.
fn bound(seconds: u64) -> std::io::Result<()> {
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
    let modules = Loader::new(defs).load(&arena, File { path: (), code }).map_err(|errors| load_error(code, errors))?;
    Compiler::default().with_funs(funs).compile(modules).map_err(|errors| {
        let first = errors.into_iter().flat_map(|(_, errors)| errors).next();
        first.map_or((0, String::new()), |(found, undefined)| {
            (span(code, found).start, format!("{} {found} is not known", undefined.as_str()))
        })
    })
}

fn load_error(code: &str, errors: jaq_core::load::Errors<&str, ()>) -> (usize, String) {
    use jaq_core::load::Error;
    let place = |part: &str| if part.is_empty() { code.len() } else { span(code, part).start };
    let first = errors.into_iter().map(|(_, error)| error).next();
    let told = match first {
        Some(Error::Io(errors)) => {
            errors.into_iter().next().map(|(path, _)| (place(path), "modules cannot be loaded".into()))
        }
        Some(Error::Lex(errors)) => errors
            .into_iter()
            .next()
            .map(|(wanted, found)| (place(found), format!("{} is expected here", wanted.as_str()))),
        Some(Error::Parse(errors)) => errors
            .into_iter()
            .next()
            .map(|(wanted, found)| (place(found), format!("{} is expected here", wanted.as_str()))),
        None => None,
    };
    told.unwrap_or((0, "the filter is not understood".into()))
}

fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = text.char_indices().map(|(at, _)| at).find(|at| *at >= MESSAGE_BYTES_MAX).unwrap_or(text.len());
    text[..end].to_owned()
}

fn run(code: &str) -> std::io::Result<()> {
    let out = std::io::stdout().lock();
    let mut out = BufWriter::with_capacity(64 << 10, out);
    let filter = match compile(code) {
        Ok(filter) => filter,
        Err((at, message)) => {
            writeln!(out, "-{at} {}", one_line(&message))?;
            return out.flush();
        }
    };
    writeln!(out, "+")?;
    out.flush()?;
    // The row that was read last gives its time and tag to what comes out.
    let head = Cell::new((0i64, 0u16));
    let rows = RcIter::new(Rows { head: &head, lines: std::io::stdin().lock(), line: Vec::new() });
    let rows: Inputs<'_, Val> = &rows;
    let around = Around { lut: &filter.lut, inputs: rows };
    let context = Ctx::<Kind>::new(&around, Vars::new([]));
    let style = jaq_json::write::Pp::default();
    for row in rows {
        let Ok(row) = row else {
            writeln!(out, "!a row is not JSON")?;
            continue;
        };
        for result in filter.id.run((context.clone(), row)).map(unwrap_valr) {
            match result {
                Ok(value) => {
                    let (time, tag) = head.get();
                    write!(out, "{time} {tag}\t")?;
                    jaq_json::write::write(&mut out, &style, 0, &value)?;
                    out.write_all(b"\n")?;
                }
                Err(error) => writeln!(out, "!{}", one_line(&error.to_string()))?,
            }
        }
    }
    out.flush()
}

struct Rows<'a, R> {
    head: &'a Cell<(i64, u16)>,
    lines: R,
    line: Vec<u8>,
}

impl<R: BufRead> Iterator for Rows<'_, R> {
    type Item = Result<Val, String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line.clear();
        let read = (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line).ok()?;
        if read == 0 {
            return None;
        }
        let tab = self.line.iter().position(|byte| *byte == b'\t')?;
        let head = std::str::from_utf8(&self.line[..tab]).ok()?.split_once(' ')?;
        self.head.set((head.0.parse().ok()?, head.1.parse().ok()?));
        Some(jaq_json::read::parse_single(self.line[tab + 1..].trim_ascii()).map_err(|error| error.to_string()))
    }
}
