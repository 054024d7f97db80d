//! Standard output and standard error of a process: best effort, never blocking the caller.
//!
//! A dedicated thread writes the queued lines. A full disk or a pipe that is closed or not read therefore never blocks
//! callers or makes them fail. Lines that do not fit into the queue or cannot be written are counted and dropped.

use std::collections::VecDeque;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::metrics;

/// Maximum size of the queue, in bytes.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Maximum time that the exit of a process waits for queued lines.
const FLUSH_PATIENCE: Duration = Duration::from_millis(500);
/// Delay before a non-blocking descriptor is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(20);

static ERRORS: OnceLock<Arc<Output>> = OnceLock::new();
static ANSWERS: OnceLock<Arc<Output>> = OnceLock::new();

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Number of lines dropped since a line was last written.
    lost: u64,
    is_writing: bool,
    has_writer: bool,
}

#[derive(Default)]
struct Output {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Output {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(sink: impl Write + Send + 'static) -> Arc<Output> {
        let output = Arc::new(Output::default());
        let writer = Arc::clone(&output);
        let started = std::thread::Builder::new().name("output".into()).spawn(move || writer.run(sink));
        output.queue().has_writer = started.is_ok();
        output
    }

    fn put(&self, line: &[u8]) {
        let mut queue = self.queue();
        if !queue.has_writer || queue.bytes + line.len() > QUEUE_BYTES_MAX {
            queue.lost += 1;
            drop(queue);
            return metrics::log_lines_lost(1);
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        drop(queue);
        self.changed.notify_all();
    }

    fn run(&self, mut sink: impl Write) {
        let mut queue = self.queue();
        loop {
            let Some(line) = queue.lines.pop_front() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue.is_writing = true;
            drop(queue);
            let written = write_whole(&mut sink, &line);
            queue = self.queue();
            queue.is_writing = false;
            queue.bytes -= line.len();
            if written.is_err() {
                queue.lost += 1;
                metrics::log_lines_lost(1);
            } else if queue.lost > 0 {
                let lost = std::mem::take(&mut queue.lost);
                drop(queue);
                tracing::warn!(lost, "log lines lost before this one");
                queue = self.queue();
            }
            self.changed.notify_all();
        }
    }

    fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut queue = self.queue();
        while queue.has_writer && (queue.is_writing || !queue.lines.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn write_whole(sink: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_AFTER),
            Err(error) => return Err(error),
        }
    }
    sink.flush()
}

fn errors() -> &'static Arc<Output> {
    ERRORS.get_or_init(|| Output::start(io::stderr()))
}

/// Writes one line to standard error.
pub fn say(line: Arguments<'_>) {
    errors().put(format!("{line}\n").as_bytes());
}

/// Writes one line to standard output.
pub fn answer(line: Arguments<'_>) {
    ANSWERS.get_or_init(|| Output::start(io::stdout())).put(format!("{line}\n").as_bytes());
}

/// Waits a short time until queued lines are written.
pub fn flush() {
    for output in [&ERRORS, &ANSWERS].into_iter().filter_map(OnceLock::get) {
        output.flush(FLUSH_PATIENCE);
    }
}

/// Exits the process after queued lines were written, or after a timeout.
pub fn exit(code: i32) -> ! {
    flush();
    std::process::exit(code);
}

/// Installs a panic hook that writes panics through this module and counts them.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let is_captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        let backtrace = if is_captured { format!("\n{backtrace}") } else { String::new() };
        say(format_args!("thread '{}' {panic}{backtrace}", thread.name().unwrap_or("(unnamed)")));
        metrics::panic();
        flush();
    }));
}

/// Writer for log lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        errors().put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Waits for a message before each write, and fails if the channel is closed.
    struct Sink(mpsc::Receiver<bool>, mpsc::Sender<Vec<u8>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.recv() {
                Ok(true) => {
                    let part = bytes.len().min(7);
                    let _ = self.1.send(bytes[..part].to_vec());
                    Ok(part)
                }
                _ => Err(ErrorKind::StorageFull.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn writers_never_wait_for_a_reader_and_dropped_lines_are_counted() {
        let ((turn, turns), (written, lines)) = (mpsc::channel(), mpsc::channel());
        let output = Output::start(Sink(turns, written));
        let line = vec![b'x'; QUEUE_BYTES_MAX / 4];
        let started = Instant::now();
        (0..100).for_each(|_| output.put(&line));
        output.flush(Duration::from_millis(10));
        assert!(started.elapsed() < Duration::from_secs(10), "does not wait for a reader");
        assert_eq!(output.queue().lost, 96);
        // Lines that cannot be written are dropped, and the writer tries the next one.
        drop((turn, lines));
        output.flush(Duration::from_secs(60));
        let queue = output.queue();
        assert_eq!((queue.lost, queue.bytes, queue.lines.len()), (100, 0, 0));
    }

    #[test]
    fn a_line_is_written_whole_and_in_order() {
        let ((turn, turns), (written, parts)) = (mpsc::channel(), mpsc::channel());
        let output = Output::start(Sink(turns, written));
        (0..16).for_each(|_| turn.send(true).expect("writer is running"));
        output.put(b"the first line\n");
        output.put(b"the second\n");
        output.flush(Duration::from_secs(60));
        let text: Vec<u8> = parts.try_iter().flatten().collect();
        assert_eq!(text, b"the first line\nthe second\n");
        assert_eq!(output.queue().lost, 0);
    }
}
