//! Marker file of a command that installs a log. It is written before anything else and removed once the log is in
//! place. Such a command first restores CA and registry, which alone look like a datastore that lost its log. If an
//! empty log were created next to them, no member would follow it.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use gravwell_config::datastore::Recovery;
use gravwell_env::checksummed_text;
use gravwell_env::data_dir::{DirectoryError, io_error, replace_file};
use gravwell_env::real_fs::RealFs;
use gravwell_log::repair::LOG;
use gravwell_log::salvage::salvage;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::{Generation, LogId, Seq};
use gravwell_transport::trust::{CopyRank, GivenUp, Registry, TrustError};

const FILE: &str = "unfinished";
/// Directory of a trial restore within a data directory. One that was killed leaves it behind.
pub const REHEARSAL: &str = "restore.rehearsal";

/// The interrupted command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// The command `recover`.
    Recover,
    /// The command `restore`.
    Restore,
}

impl Work {
    fn command(self) -> &'static str {
        match self {
            Work::Recover => "recover",
            Work::Restore => "restore",
        }
    }
}

/// Treatment of the certificate authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// The existing CA is kept.
    Kept,
    /// The CA is restored from an encrypted backup.
    Restored,
    /// A new CA is created.
    New,
}

impl Trust {
    /// Returns the name used in reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Trust::Kept => "kept",
            Trust::Restored => "restored",
            Trust::New => "new",
        }
    }
}

/// A command that was started and not finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The command that was started.
    pub work: Work,
    /// Treatment of the CA and the member registry.
    pub trust: Trust,
    /// ID of the log to be installed, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_id: Option<LogId>,
    /// Time at which the encrypted CA backup being restored was made, in milliseconds since 1970-01-01 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_ms: Option<u64>,
    /// Rank of that backup among CA backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyRank>,
    /// Registries that the operator gave up for the one that is in place. A repeated command does not ask about them
    /// again, and the registry records the choice when the log is in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<GivenUp>,
    /// Generation of the replaced log; zero if there was none.
    pub replaces: Generation,
    /// Start time, in milliseconds since 1970-01-01 UTC.
    pub begun_ms: u64,
}

impl Unfinished {
    /// Creates the marker of `work` in the data directory `path`, started now.
    #[must_use]
    pub fn of(path: &Path, work: Work, trust: Trust) -> Unfinished {
        Unfinished {
            work,
            trust,
            log_id: None,
            copy_ms: None,
            copy: None,
            given_up: Vec::new(),
            replaces: generation_in(path),
            begun_ms: super::shared::now_ms(),
        }
    }

    /// Writes the marker to the data directory `path`, whose lock the caller holds. It is durable when this returns.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), DirectoryError> {
        let body = serde_json::to_string(self).map_err(std::io::Error::other).map_err(io_error(path))?;
        replace_file(&path.join(FILE), checksummed_text::seal(&body).as_bytes())
    }

    fn parse(text: &str) -> Result<Unfinished, String> {
        serde_json::from_str(checksummed_text::open(text)?).map_err(|error| error.to_string())
    }
}

/// Returns the generation of the log in the data directory `path`; zero if it cannot be determined.
#[must_use]
pub fn generation_in(path: &Path) -> Generation {
    let found = salvage(&RealFs, &path.join(LOG), &mut |_, _| {});
    found.ok().and_then(|found| found.head).map(|head| head.generation).unwrap_or_default()
}

/// Reads the marker in the data directory `path`. The inner error is the reason why an existing marker cannot be read.
#[must_use]
pub fn find(path: &Path) -> Option<Result<Unfinished, String>> {
    match fs::read_to_string(path.join(FILE)) {
        Ok(text) => Some(Unfinished::parse(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error.to_string())),
    }
}

/// Removes the marker, after the log was put in place or if nothing was changed.
///
/// # Errors
/// Returns an error if it cannot be removed.
pub fn end(path: &Path) -> Result<(), DirectoryError> {
    let file = path.join(FILE);
    match fs::remove_file(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error(&file)(error)),
        Ok(()) => fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error(path)),
    }
}

/// Completes a command whose log is in place in the data directory `path`, whose lock the caller holds: the registry
/// records the operator's choice, so that it holds when a member shows a registry that was given up. Then the marker is
/// removed. If that fails, the next start does it.
pub fn complete(path: &Path) {
    let given_up = find(path).and_then(Result::ok).map(|found| found.given_up).unwrap_or_default();
    let record = || {
        let (trust, now_ms) = (super::service::trust_dir(path), super::shared::now_ms());
        // A registry that is missing is not created here.
        if !given_up.is_empty() && trust.join("ca.key").exists() {
            Registry::open(&trust, now_ms)?.choose_over(&given_up, now_ms)?;
            super::stale_registry::accept_noted_invitations(path)?;
        }
        Ok::<_, TrustError>(())
    };
    let done = record().map_err(|error| error.to_string());
    if let Err(error) = done.and_then(|()| end(path).map_err(|error| error.to_string())) {
        tracing::warn!(error, "failed to complete an interrupted recovery, whose log is in place; the next start does");
    }
}

/// Checks that the data directory `path` may be served with `log`, the head and generation of its log. Serving is
/// allowed if the interrupted command had put its log in place, or if `mode` accepts the loss.
///
/// # Errors
/// Returns the interrupted command and the remedy.
pub fn judge(path: &Path, log: Option<(Seq, Generation)>, mode: Recovery) -> Result<(), String> {
    let Some(found) = find(path) else { return Ok(()) };
    let replaces = found.as_ref().map_or(Generation::MAX, |found| found.replaces);
    if log.is_some_and(|(head, generation)| head > Seq::ZERO || generation > replaces) || mode == Recovery::Off {
        return Ok(());
    }
    let dir = path.display();
    let begun = match &found {
        Ok(Unfinished { work, trust, log_id, begun_ms, .. }) => {
            let (command, begun) = (work.command(), timestamp(*begun_ms));
            let log = log_id.map_or(String::new(), |log_id| format!(" of log {log_id}"));
            format!("`{command}`{log} (authority: {}), started at {begun}, was interrupted in {dir}", trust.word())
        }
        Err(what) => format!("a recovery or a restore was interrupted in {dir} ({what})"),
    };
    let command = found.as_ref().map_or("recover", |found| found.work.command());
    Err(format!(
        "{begun}: its log is not in place, and no empty log is started with the restored certificate authority and \
         members; run the same command again, `gravwell-logctl --data-dir {dir} {command} ...`; only to give the \
         former log up, start the datastore with --recovery off"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_transport::trust::{Authority, RegisterMark, Role};

    #[test]
    fn p05_an_unfinished_recovery_counts_until_its_log_is_there() {
        let temp = tempfile::tempdir().expect("temp dir");
        let path = temp.path();
        let judge = |log| judge(path, log, Recovery::Auto);
        assert_eq!(judge(None), Ok(()));
        let mark = Unfinished {
            work: Work::Recover,
            trust: Trust::Restored,
            log_id: Some(LogId([7; 16])),
            copy_ms: Some(5),
            copy: Some(CopyRank { generation: Generation(1), changes: 2, revision: 3, made_ms: 5 }),
            given_up: vec![GivenUp::at(&RegisterMark { count: 9, name: "ab".into(), changed_ms: 5 })],
            replaces: Generation(1),
            begun_ms: 0,
        };
        mark.write(path).expect("writes");
        assert_eq!(find(path), Some(Ok(mark)));
        for log in [None, Some((Seq::ZERO, Generation(1)))] {
            let said = judge(log).expect_err("nothing is in place");
            assert!(said.contains("`recover`") && said.contains("restored"), "{said}");
            assert_eq!(super::judge(path, log, Recovery::Off), Ok(()));
        }
        for log in [(Seq(1), Generation(1)), (Seq::ZERO, Generation(2))] {
            assert_eq!(judge(Some(log)), Ok(()));
        }
        let good = fs::read(path.join(FILE)).expect("reads");
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(path.join(FILE), &bad).expect("writes");
            assert!(judge(None).is_err(), "byte {at}");
            assert!(find(path).is_some_and(|found| found.is_err()), "byte {at}");
        }
        end(path).expect("removes");
        assert_eq!(judge(None), Ok(()));
        end(path).expect("no mark");
    }

    #[test]
    fn p13_a_choice_of_a_registry_is_recorded_before_the_mark_is_removed() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (path, trust) = (temp.path(), super::super::service::trust_dir(temp.path()));
        let now_ms = super::super::shared::now_ms();
        let invite = |register: &mut Registry, name: &str| {
            let name = gravwell_model::MemberName::new(name).expect("name");
            register.invite(&name, Role::Webserver, 1000, now_ms, false).expect("invites");
        };
        let mut register = Registry::open(&trust, now_ms).expect("opens");
        Authority::open_or_create(&trust, now_ms).expect("authority");
        invite(&mut register, "web1");
        let mut other = Registry::open(&trust, now_ms).expect("opens").detached();
        invite(&mut other, "web2");
        invite(&mut register, "web3");
        invite(&mut register, "web4");
        let is_evidence = || Registry::open(&trust, now_ms).expect("opens").relation(&other.mark()).is_some();
        let mark = Unfinished::of(path, Work::Recover, Trust::Kept);
        let mark = Unfinished { given_up: vec![GivenUp::of(&other)], ..mark };
        mark.write(path).expect("writes");
        assert!(is_evidence());
        // The registry cannot be written.
        let obstacle = trust.join("members.json.next");
        fs::create_dir(&obstacle).expect("creates");
        complete(path);
        assert!(is_evidence());
        assert_eq!(find(path), Some(Ok(mark)), "the next start does it");
        fs::remove_dir(&obstacle).expect("removes");
        complete(path);
        assert!(!is_evidence());
        assert_eq!(find(path), None);
        complete(path);
    }
}
