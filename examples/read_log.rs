//! Reads a log without a datastore: `read_log DIRECTORY`, with a copy of a datastore's directory `log`. Nothing in it is changed.

use std::path::Path;
use std::sync::Arc;

use gravwell_log::env::RealFs;
use gravwell_log::env::view_fs::ViewFs;
use gravwell_log::model::{EntryBody, Op};
use gravwell_log::{Log, LogOptions, verify};

/// Verifies every byte of the log, then returns one line for each change in it.
pub fn read_log(directory: &Path) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let report = verify(&RealFs, directory, &mut |_, _| {});
    if let Some(damage) = report.damages.first() {
        return Err(damage.to_string().into());
    }
    // Opening a log repairs what a crash has left; through a view, the files stay as they are.
    let (log, _) = Log::open(Arc::new(ViewFs::default()), directory, LogOptions::default())?;
    let reader = log.reader();
    let mut lines = Vec::new();
    for entry in reader.history(log.head().0) {
        let entry = entry?;
        let EntryBody::Commit(txn) = &entry.body else { continue };
        for op in &txn.ops {
            let change = match op {
                Op::Put { value, .. } => format!("{} bytes", value.len()),
                Op::Delete { .. } => "deleted".into(),
            };
            lines.push(format!("{} {} {}/{}: {change}", entry.seq, entry.member, op.collection(), op.key()));
        }
    }
    Ok(lines)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory] = arguments.as_slice() else { return Err("usage: read_log DIRECTORY".into()) };
    read_log(Path::new(directory))?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
