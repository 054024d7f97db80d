//! Renewal of a connected member's identity: the CAs that it trusts, its certificate, and the encrypted CA backup.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;

use gravwell_env::{Clock, SystemClock};
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::authority::{EscrowInfo, RootInfo, RootsInfo};
use gravwell_model::codec::message::{Kind, Open};
use gravwell_model::ids::hex_bytes;
use gravwell_runtime::telemetry::log_rate_limit::LogRateLimit;
use gravwell_transport::peer::Peers;
use gravwell_transport::trust::{CaBackup, Fingerprint, Identity, Link, NewKey, TrustError, fingerprint};
use gravwell_transport::wire;

use super::request;
use super::service::MemberConnector;

/// Interval at which a connected member checks the age of its certificate.
const RENEWAL_EVERY: Duration = Duration::from_secs(3600);
/// Interval at which it requests missing items. It also does so whenever the members change.
const EVERY: Duration = Duration::from_secs(15);
/// Reason of the health for a CA backup that was set aside.
const SET_ASIDE: &str = "the stored CA backup could not be read, and may have been the latest one; it is kept in";

/// Problem of the CA backup that a member keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaBackupProblem {
    /// Its contents are damaged.
    Damaged(String),
    /// It cannot be opened or read at the moment; its contents may be sound.
    Unreadable(String),
}

static UNREADABLE: LogRateLimit = LogRateLimit::new();

/// Most exchanges until everything is up to date: the member learns the roots, reports them, renews, and reports that.
const EXCHANGES_MAX: usize = 4;

fn text(error: TrustError) -> String {
    error.to_string()
}

fn print_of(certificate: &[u8]) -> String {
    fingerprint(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl MemberConnector {
    /// Keeps roots, certificate and CA backup up to date for as long as the connection lives.
    pub(super) async fn keep_up(&self, connection: &quinn::Connection) {
        loop {
            if let Err(error) = self.keep_identity(connection).await {
                tracing::warn!(error, "failed to renew the certificate; will retry");
            }
            // The second request shows the datastore that the copy has arrived.
            match self.fetch_escrow(connection).await {
                Ok(true) => drop(self.fetch_escrow(connection).await),
                Ok(false) => {}
                // Datastores of earlier versions do not send one.
                Err(error) => tracing::debug!(error, "failed to fetch the encrypted CA backup"),
            }
            let _ = tokio::time::timeout(EVERY, self.members_changed.notified()).await;
        }
    }

    /// Adopts the CAs that the datastore lists as trusted, and renews the certificate if it is due or another CA is to
    /// sign it.
    ///
    /// # Errors
    /// Describes the failure. The former roots and certificate are kept then.
    pub async fn keep_identity(&self, connection: &quinn::Connection) -> Result<(), String> {
        // An administrator's commands may use the identity at the same time.
        let Some(_turn) = Identity::turn(&self.data_dir).map_err(text)? else { return Ok(()) };
        for _ in 0..EXCHANGES_MAX {
            let before = Identity::load(&self.data_dir).map_err(text)?;
            let mut is_due = self.is_old(&before).map_err(text)?;
            let mut has_news = false;
            match self.request_roots(connection, &before).await {
                Ok(told) => (has_news, is_due) = self.adopt_roots(&told, is_due)?,
                // Datastores of earlier versions have one CA and do not list it.
                Err(error) => tracing::debug!(error, "failed to fetch the list of trusted CAs"),
            }
            if is_due {
                self.renew(connection).await?;
                tracing::info!("certificate renewed");
            }
            if !is_due && !has_news {
                break;
            }
        }
        Ok(())
    }

    /// Returns whether the certificate is due for renewal. Checked only once per interval: a wrong clock must not make
    /// it due again and again.
    fn is_old(&self, identity: &Identity) -> Result<bool, TrustError> {
        let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        if looked_at.is_some_and(|at| at.elapsed() < RENEWAL_EVERY) {
            return Ok(false);
        }
        *looked_at = Some(Instant::now());
        identity.needs_renewal(SystemClock.now_ms())
    }

    async fn request_roots(&self, connection: &quinn::Connection, identity: &Identity) -> Result<RootsInfo, String> {
        let known = identity.roots().map_err(text)?.iter().map(|root| print_of(root)).collect();
        let certificate = print_of(&identity.certificate().map_err(text)?);
        let told = one(connection, &Request::Roots { known, certificate }).await?;
        told.ok_or_else(|| "the answer is empty".to_owned())
    }

    /// Adopts the roots. Returns whether other CAs are trusted than before, and whether to renew the certificate.
    fn adopt_roots(&self, told: &RootsInfo, is_due: bool) -> Result<(bool, bool), String> {
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
        let link = |root: &RootInfo| Ok(Link { root: decode(&root.certificate)?, word: decode(&root.word)? });
        let links: Vec<Link> = told.roots.iter().map(link).collect::<Result<_, String>>()?;
        let mut identity = Identity::load(&self.data_dir).map_err(text)?;
        let has_news = identity.adopt_roots(&links).map_err(text)?;
        if has_news {
            tracing::info!(roots = identity.roots().map_err(text)?.len(), "trusted CAs changed");
            self.use_identity()?;
        }
        let issuing: Option<Fingerprint> = told.issuing.as_deref().and_then(hex_bytes);
        let is_issued = issuing.map(|issuing| identity.is_issued_by(&issuing)).transpose().map_err(text)?.flatten();
        Ok((has_news, is_due || is_issued == Some(false)))
    }

    async fn renew(&self, connection: &quinn::Connection) -> Result<(), String> {
        let before = Identity::load(&self.data_dir).map_err(text)?;
        let key = NewKey::generate(before.name()).map_err(text)?;
        let exchange = async {
            let (mut send, mut receive) = connection.open_bi().await?;
            wire::send(&mut send, Kind::Open, &Open::Renew).await?;
            wire::send_raw(&mut send, Kind::Renew, &key.request_der).await?;
            wire::read(&mut receive).await
        };
        match exchange.await.map_err(|error| error.to_string())? {
            Some((Kind::Renewed, certificate)) => {
                let mut identity = Identity::load(&self.data_dir).map_err(text)?;
                if identity.certificate().map_err(text)? != before.certificate().map_err(text)? {
                    return Err("the member has joined again in the meantime".into());
                }
                identity.renew(&certificate, &key).map_err(text)?;
                self.use_identity()
            }
            Some((kind, _)) => Err(format!("the datastore answered with {kind:?}")),
            None => Err("no response from the datastore".into()),
        }
    }

    /// Uses the present identity for future connections.
    fn use_identity(&self) -> Result<(), String> {
        self.forget_endpoints();
        self.peers.as_ref().map_or(Ok(()), Peers::take_identity).map_err(text)
    }

    /// Fetches the encrypted CA backup. Returns whether the datastore sent another copy than the one stored here. An
    /// earlier copy never replaces a later one, but is stored next to it: the datastore's registry went back, and the
    /// revocations in the later copy are recorded nowhere else. For the same reason a copy is kept under another name when
    /// the one that replaces it is not known to go on from it.
    async fn fetch_escrow(&self, connection: &quinn::Connection) -> Result<bool, String> {
        let (path, earlier) = (Identity::escrow(&self.data_dir), Identity::earlier_escrow(&self.data_dir));
        let kept = self.kept_escrow()?;
        let last = CaBackup::load(&earlier).ok();
        let known = last.as_ref().or(kept.as_ref()).map(|escrow| escrow.known().to_owned());
        let seen = kept.as_ref().and_then(|kept| kept.mark.clone());
        let info: Option<EscrowInfo> = one(connection, &Request::Escrow { known, seen }).await?;
        let Some(EscrowInfo { text: Some(text), continues, .. }) = info else { return Ok(false) };
        let given = CaBackup::from_text(&text)?;
        if kept.as_ref().map_or(Ok(false), |kept| self.is_later(kept, &given))? {
            tracing::warn!("datastore sent an older CA backup than the stored one; keeping the stored one");
            given.save(&earlier).map_err(|error| error.to_string())?;
            return Ok(true);
        }
        if let Some(kept) = kept.filter(|_| !continues) {
            tracing::warn!("datastore sent a CA backup that does not go on from the stored one; keeping both");
            Identity::keep_left(&self.data_dir, &kept).map_err(|error| error.to_string())?;
        }
        given.save(&path).map_err(|error| error.to_string())?;
        match std::fs::remove_file(&earlier) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(true),
        }
    }

    /// Returns the stored CA backup; `None` if there is none. A damaged one is renamed, because it may hold revocations that
    /// are recorded nowhere else.
    ///
    /// # Errors
    /// If it cannot be determined what is stored. Nothing may replace it then.
    fn kept_escrow(&self) -> Result<Option<CaBackup>, String> {
        let (kept, problem) = match CaBackup::load(&Identity::escrow(&self.data_dir)) {
            Ok(kept) => (Ok(Some(kept)), None),
            Err(TrustError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => (Ok(None), None),
            Err(error @ TrustError::Damaged { .. }) => match Identity::set_escrow_aside(&self.data_dir) {
                Ok(aside) => {
                    tracing::error!(%error, kept = %aside.display(), "stored CA backup is damaged; fetching another one");
                    (Ok(None), None)
                }
                Err(failed) => (Err(format!("{error}; {failed}")), Some(CaBackupProblem::Damaged(error.to_string()))),
            },
            // Whether it is sound is unknown.
            Err(error) => (Err(error.to_string()), Some(CaBackupProblem::Unreadable(error.to_string()))),
        };
        if let Err(error) = &kept
            && let Some(left_out) = UNREADABLE.note()
        {
            tracing::error!(error, left_out, "failed to read the stored CA backup; not replacing it");
        }
        *self.escrow_problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        kept
    }

    /// Returns why the stored CA backup cannot be read, or may not be the latest one that was sent, until an operator
    /// removes the damaged file.
    pub(super) fn escrow_problem(&self) -> Option<CaBackupProblem> {
        let problem = self.escrow_problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let damaged = || Identity::damaged_escrows(&self.data_dir).unwrap_or_default().into_iter().next();
        let set_aside = |path: PathBuf| CaBackupProblem::Damaged(format!("{SET_ASIDE} {}", path.display()));
        problem.or_else(|| damaged().map(set_aside))
    }

    /// Shows the datastore the signed mark of the registry in the copy that is here. Nothing is fetched.
    ///
    /// # Errors
    /// Describes the failure.
    pub(super) async fn show_mark(&self, connection: &quinn::Connection) -> Result<(), String> {
        let kept = CaBackup::load(&Identity::escrow(&self.data_dir)).map_err(text)?;
        let (known, seen) = (Some(kept.known().to_owned()), kept.mark);
        one::<EscrowInfo>(connection, &Request::Escrow { known, seen }).await.map(drop)
    }

    /// Returns whether the stored copy is later than the one sent. A copy of a CA that is no longer trusted is
    /// never later.
    ///
    /// # Errors
    /// If the trusted CAs cannot be read.
    fn is_later(&self, kept: &CaBackup, given: &CaBackup) -> Result<bool, String> {
        let count = |escrow: &CaBackup| escrow.mark.as_ref().map(|signed| signed.mark.count);
        let roots = Identity::load(&self.data_dir).and_then(|identity| identity.roots()).map_err(text)?;
        let is_trusted = roots.iter().any(|root| print_of(root) == kept.authority);
        let (Some(kept), Some(given)) = (count(kept), count(given)) else { return Ok(false) };
        Ok(is_trusted && kept > given)
    }
}

/// Returns the first item of the answer to a request.
async fn one<T: DeserializeOwned>(connection: &quinn::Connection, request: &Request) -> Result<Option<T>, String> {
    let reply = request::ask(connection, request).await.map_err(|error| error.to_string())?;
    Ok(reply.items.first().and_then(|item| serde_json::from_slice(item).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_transport::trust::{Authority, Registry};

    #[test]
    fn p13_a_stored_ca_backup_that_cannot_be_read_is_not_replaced() {
        const NOW: u64 = 1_800_000_000_000;
        let temp = tempfile::tempdir().expect("temp dir");
        let connector = MemberConnector::new(temp.path(), Vec::new());
        let path = Identity::escrow(temp.path());
        std::fs::create_dir(Identity::dir(temp.path())).expect("creates");
        assert_eq!((connector.kept_escrow(), connector.escrow_problem()), (Ok(None), None));
        let trust = temp.path().join("trust");
        let authority = Authority::open_or_create(&trust, NOW).expect("authority");
        let mut register = Registry::open_or_begin(&temp.path().join("other"), NOW).expect("register");
        let escrow = CaBackup::seal(&trust, &authority, &mut register, NOW).expect("seals");
        escrow.save(&path).expect("saves");
        assert_eq!(connector.kept_escrow(), Ok(Some(escrow.clone())));
        // Without the trusted CAs it is unknown which one is later.
        connector.is_later(&escrow, &escrow).expect_err("there is no identity");
        // A flipped bit, also one that makes it no text.
        for (number, bit) in [(1, 0), (2, 7)] {
            escrow.save(&path).expect("saves");
            let mut bad = std::fs::read(&path).expect("reads");
            let at = bad.len() - 2;
            bad[at] ^= 1 << bit;
            std::fs::write(&path, &bad).expect("writes");
            assert_eq!(connector.kept_escrow(), Ok(None));
            let aside = path.with_file_name(format!("escrow.damaged-{number}"));
            assert_eq!(std::fs::read(&aside).expect("is kept"), bad);
            let Some(CaBackupProblem::Damaged(what)) = connector.escrow_problem() else { panic!("is not reported") };
            assert!(what.contains("escrow.damaged-1"), "{what}");
        }
        assert_eq!(Identity::damaged_escrows(temp.path()).expect("lists").len(), 2);
        // What it contains is unknown after another error.
        std::fs::create_dir(&path).expect("creates");
        connector.kept_escrow().expect_err("is not replaced");
        let Some(CaBackupProblem::Unreadable(what)) = connector.escrow_problem() else { panic!("it may be sound") };
        assert!(path.is_dir() && what.contains("identity/escrow:"), "{what}");
    }
}
