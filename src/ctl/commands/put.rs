//! `put`: writes one object.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use gravwell_model::codec::json_lines::parse_value;
use gravwell_model::{Collection, Condition, Key, Op, Seq};

use crate::client::parse::seq;
use crate::client::transact::submit_one;
use crate::error::{CtlError, CtlResult};

/// Write one object.
#[derive(Debug, clap::Args)]
pub struct Put {
    /// Collection of the object.
    pub collection: Collection,
    /// Key of the object.
    pub key: Key,
    /// New value as JSON.
    #[arg(long, value_name = "JSON", conflicts_with = "file", required_unless_present = "file")]
    pub value: Option<String>,
    /// Read the new value from a file, byte for byte; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Write only if the object does not exist.
    #[arg(long, conflicts_with = "if_version")]
    pub if_absent: bool,
    /// Write only if the object has this version.
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub if_version: Option<Seq>,
    /// Return once the change is durable locally, without waiting for the datastore.
    #[arg(long)]
    pub no_wait: bool,
}

/// Maximum size of a value read from a file.
const VALUE_BYTES_MAX: u64 = gravwell_model::limits::HARD.value_bytes_max as u64;

/// Writes the object.
pub(super) async fn run(dir: &Path, json: bool, put: Put) -> CtlResult {
    let value = match (&put.value, &put.file) {
        (Some(value), _) => parse_value(value).map_err(|error| CtlError {
            message: format!("--value is not JSON: {error}; put strings in double quotes"),
            exit: 2,
        })?,
        (None, Some(file)) => read_value(file)?,
        (None, None) => return Err(CtlError { message: "pass --value or --file".into(), exit: 2 }),
    };
    let (collection, key) = (put.collection, put.key);
    let mut conditions = Vec::new();
    if put.if_absent {
        conditions.push(Condition::Absent { collection: collection.clone(), key: key.clone() });
    }
    if let Some(version) = put.if_version {
        conditions.push(Condition::Version { collection: collection.clone(), key: key.clone(), version });
    }
    submit_one(dir, json, Op::Put { collection, key, value }, conditions, put.no_wait).await
}

fn read_value(file: &Path) -> Result<Bytes, CtlError> {
    let mut value = Vec::new();
    let named = |error: std::io::Error| CtlError::new(format!("{}: {error}", file.display()));
    if file == Path::new("-") {
        std::io::stdin().take(VALUE_BYTES_MAX + 1).read_to_end(&mut value).map_err(named)?;
    } else {
        let opened = std::fs::File::open(file).map_err(named)?;
        opened.take(VALUE_BYTES_MAX + 1).read_to_end(&mut value).map_err(named)?;
    }
    if value.len() as u64 > VALUE_BYTES_MAX {
        return Err(CtlError::new(format!("{} is larger than {VALUE_BYTES_MAX} bytes", file.display())));
    }
    Ok(value.into())
}
