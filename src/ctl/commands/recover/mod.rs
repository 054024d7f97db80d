//! `recover`: rebuilds a datastore that has lost its disk from its members.

mod args;
mod registry;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::install_marker::{self, Trust as Authority, Unfinished};
use gravwell_datastore::rebuild::{DonorOffer, check_descent, check_empty, choose, dissent, recover, side};
use gravwell_datastore::recovery_collector::{self, Comparison, Gathered};
use gravwell_datastore::repair::RepairReport;
use gravwell_datastore::service::trust_dir;
use gravwell_env::real_fs::create_dirs;
use gravwell_env::scratch::Scratch;
use gravwell_env::{Clock, SystemClock, data_dir};
use gravwell_log::generations;
use gravwell_model::codec::admin::GenerationInfo;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::{LogId, Seq};
use gravwell_state::StateStore;
use gravwell_transport::trust::{
    Identity, LogMark, MemberState, Registry, Role, finish_exchange, listed, readable_register,
};

use crate::client::ca_restore::REVOKE_AGAIN;
use crate::client::member_source::{MemberSource, find_member, open_member};
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};
pub use args::Recover;
use args::RegistryToUse;
use registry::{Trust, check_member, kept, mark, trust};

/// Cache size for a state, which is read sequentially and only once.
const CACHE_BYTES: u64 = 64 << 20;

/// Result of a recovery.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    /// Origin of the CA: kept, restored or new.
    authority: &'static str,
    offers: Vec<DonorOffer>,
    chosen: String,
    log: RepairReport,
    /// Enrolled members that did not respond.
    unheard: Vec<String>,
    /// A member of another CA tried to connect.
    #[serde(skip)]
    is_any_foreign: bool,
}

/// Directory of a member's state while it is compared with the chosen one.
const COMPARED: &str = "state.compared";

/// `recover`
pub(super) async fn run(dir: &Path, json: bool, args: Recover) -> CtlResult {
    // A dry run works in a scratch directory and leaves `dir` unchanged.
    let scratch = args.dry_run.then(Scratch::new).transpose().map_err(CtlError::new)?;
    let work = scratch.as_ref().map_or(dir, Scratch::path).to_owned();
    tokio::select! {
        result = recover_from(dir, &work, json, args) => result,
        () = crate::process::signals::stop_signal() => {
            // Safe at any point: the old log is replaced atomically, now or at the next start.
            drop(scratch);
            complain!("gravwell-logctl: interrupted");
            std::process::exit(1);
        }
    }
}

/// Recovers `dir`; `work` is the directory for temporary states.
async fn recover_from(dir: &Path, work: &Path, json: bool, args: Recover) -> CtlResult {
    let config = configured(dir, &args)?;
    let in_use = |error: data_dir::DirectoryError| {
        CtlError::new(format!("{error}; stop the datastore, recover, then start it again"))
    };
    // Check the sources before the directory is marked as a datastore's.
    let looking = data_dir::claim_to_read(dir, "datastore", Duration::ZERO).map_err(in_use)?;
    if !args.dry_run {
        finish_exchange(&trust_dir(dir), SystemClock.now_ms()).map_err(CtlError::new)?;
    }
    let kept = kept(dir, &args)?;
    check_empty(dir).map_err(CtlError::new)?;
    args.from.iter().try_for_each(|from| find_member(from))?;
    let (was_there, was_claimed) = (dir.is_dir(), data_dir::is_claimed(dir));
    let lock = if args.dry_run {
        looking
    } else {
        drop(looking);
        Some(data_dir::claim(dir, "datastore", Duration::ZERO).map_err(in_use)?)
    };
    let was_marked = install_marker::find(dir).is_some();
    let found = trust(dir, work, &args, kept);
    if found.is_err() && !was_claimed && !args.dry_run && install_marker::find(dir).is_none() {
        data_dir::unclaim(dir, was_there);
    }
    let (trust, authority) = found?;
    let recovered = rebuild((dir, work), json, &args, config, lock, (trust, authority)).await;
    if recovered.is_err() && authority == Authority::Kept && !was_marked && !args.dry_run {
        // Nothing was changed, so the mark is removed.
        install_marker::end(dir).map_err(CtlError::new)?;
    }
    recovered
}

async fn rebuild(
    (dir, work): (&Path, &Path),
    json: bool,
    args: &Recover,
    config: DatastoreConfig,
    lock: Option<std::fs::File>,
    (trust, authority): (Trust, Authority),
) -> CtlResult {
    let Trust { path: trust, used, mut given_up } = trust;
    let without = args.without.iter().cloned().collect();
    let register = register_in(&trust);
    let (mut offers, mut sources) = (Vec::new(), Vec::new());
    for from in &args.from {
        let (mut offer, source) = open(from)?;
        if register.as_ref().is_some_and(|register| has_revoked(register, &offer.member)) {
            offer.reserve = Some("it was revoked according to the member registry".into());
        }
        offers.push(offer);
        sources.push(source);
    }
    distinguish(&mut offers, &args.from);
    offers.iter().for_each(announce);
    if authority == Authority::Kept {
        sources.iter().try_for_each(|source| check_member(&trust, &source.home))?;
    }
    let mut gathered = None;
    if args.from.is_empty() || args.listen.is_some() {
        complain!(
            "listening on {} for up to {} s for members to report their position",
            config.listen_address(),
            args.wait
        );
        let wait = Duration::from_secs(args.wait);
        let compared = used.as_ref().map(|used| Comparison {
            used,
            is_chosen: matches!(args.register, Some(RegistryToUse::At { .. })),
            is_earlier_wanted: args.earlier_copy,
            without: &without,
        });
        let found = recovery_collector::gather(&config, &trust, wait, args.expect, compared, &mut announce).await;
        let found = found.map_err(CtlError::new)?;
        report_unheard(&found, authority);
        given_up.extend(found.lacking().map(|lacking| lacking.other.clone()));
        offers.extend(found.offers());
        gathered = Some(found);
    }
    let chosen = pick(&offers, args.member.as_deref(), register.as_ref().and_then(Registry::log_mark))?;
    dissent(&offers, chosen).iter().for_each(|line| complain!("{line}"));
    let name = offers[chosen].name.clone();
    if !args.dry_run {
        // The choice holds when a member shows the registry that was given up.
        let mark = mark(dir, authority, &given_up);
        Unfinished { log_id: Some(offers[chosen].log_id), ..mark }.write(dir).map_err(CtlError::new)?;
    }
    complain!("rebuilding from {name}, at sequence {}", offers[chosen].seq);
    let state = match sources.get(chosen).map(|source: &MemberSource| source.state.clone()) {
        Some(state) => state,
        None => fetch(&side(work), &mut gathered, &name).await?,
    };
    if args.member.is_none() {
        let compared = compare(work, (&name, &state), &offers, &sources, &mut gathered).await;
        if compared.is_err() {
            let _ = std::fs::remove_dir_all(side(work));
        }
        compared?;
    }
    let known = known(offers[chosen].log_id, &sources, gathered.as_ref());
    let is_any_foreign = gathered.as_ref().is_some_and(|gathered| gathered.doubts().has_foreign());
    if let Some(gathered) = gathered {
        gathered.close().await;
    }
    drop(lock);
    let unheard = register.map(|register| unheard(&register, &offers)).unwrap_or_default();
    let path = dir.to_owned();
    let dry_run = args.dry_run;
    // The chosen member's generation always counts; other members could claim any.
    let claimed = offers.iter().map(|offer| offer.generation).filter(|generation| generation.is_plausible());
    let above = claimed.max().unwrap_or_default();
    let building = move || recover(&path, &config, &state, above, &known, dry_run, &mut |what| complain!("{what}"));
    let log = tokio::task::spawn_blocking(building).await.map_err(CtlError::new)?.map_err(CtlError::new);
    let _ = std::fs::remove_dir_all(side(work));
    let log = log?;
    let authority = authority.word();
    print(json, dir, &Report { dry_run, authority, offers, chosen: name, log, unheard, is_any_foreign })
}

/// Prints what members showed, or may know, that is given up, and which clients were not accepted.
fn report_unheard(found: &Gathered, authority: Authority) {
    for lacking in found.lacking() {
        complain!("{}: members revoked since then are enrolled again; revoke them again", lacking.what);
    }
    if !found.refused().is_empty() {
        complain!(
            "connections of {} were refused, because their certificates are not in the member registry: if they are \
             members, this CA backup is older than their certificates; pass a newer one with --authority, the file \
             identity/escrow of a member's directory",
            listed(found.refused())
        );
    }
    found.doubts().notes().for_each(|note| complain!("{note}"));
    // To members of the former CA, a new one is unknown.
    if authority == Authority::New {
        return;
    }
    found
        .doubts()
        .described()
        .for_each(|doubt| complain!("{doubt}; continuing without it: it may have later revocations"));
    if found.doubts().has_foreign() {
        complain!("members that have certificates of another CA have to be enrolled again");
    }
}

/// Returns how the log's generations started, as known to the members.
fn known(log_id: LogId, sources: &[MemberSource], gathered: Option<&Gathered>) -> Vec<GenerationInfo> {
    let mut known = gathered.map(|gathered| gathered.known(log_id)).unwrap_or_default();
    for source in sources {
        match generations::all(&source.home, log_id) {
            Ok(found) => known.extend(found),
            Err(error) => complain!("{error}"),
        }
    }
    known
}

fn configured(dir: &Path, args: &Recover) -> Result<DatastoreConfig, CtlError> {
    let (mut config, _): (DatastoreConfig, _) = gravwell_config::load(args.config.as_deref()).map_err(CtlError::new)?;
    dir.clone_into(&mut config.data_dir);
    if let Some(listen) = args.listen {
        (config.listen, config.port) = (Some(listen.ip()), listen.port());
    }
    Ok(config)
}

/// Returns the member registry in the trust directory `path`; its copy, which may be one change behind, if the registry
/// cannot be read. `None` if neither can be read.
fn register_in(path: &Path) -> Option<Registry> {
    let error = match Registry::open(path, SystemClock.now_ms()) {
        Ok(register) => return Some(register),
        Err(error) => error,
    };
    let copy = readable_register(path);
    match &copy {
        Some(copy) => complain!("{error}; using what can be read of it, which is of {}", copy.mark()),
        None => complain!(
            "cannot determine which members were revoked, which did not respond, and how far the log had come: {error}"
        ),
    }
    copy
}

/// Returns whether a member was revoked.
fn has_revoked(register: &Registry, name: &str) -> bool {
    register.members().any(|member| member.name.as_str() == name && member.state == MemberState::Revoked)
}

/// Returns the enrolled members that are not among the offers.
fn unheard(register: &Registry, offers: &[DonorOffer]) -> Vec<String> {
    let enrolled = register.members().filter(|member| member.state == MemberState::Enrolled);
    let names = enrolled.map(|member| member.name.to_string());
    names.filter(|name| !offers.iter().any(|offer| offer.member == *name)).collect()
}

/// Opens a member's directory and verifies its whole state.
fn open(from: &Path) -> Result<(DonorOffer, MemberSource), CtlError> {
    let source = open_member(from)?;
    let name = Identity::load(&source.home)
        .map_or_else(|_| from.display().to_string(), |identity| identity.name().to_string());
    let meta = source.state.meta().ok_or_else(|| CtlError::new(format!("{} has no state yet", from.display())))?;
    let mut offer = DonorOffer::of(&name, &meta);
    offer.unfit = match source.state.check() {
        Ok(report) => report.damage.first().map(|damage| format!("its state is damaged: {damage}")),
        Err(error) => Some(format!("its state cannot be read: {error}")),
    };
    Ok((offer, source))
}

/// Distinguishes offers of the same member by their directories.
fn distinguish(offers: &mut [DonorOffer], from: &[PathBuf]) {
    let names: Vec<String> = offers.iter().map(|offer| offer.member.clone()).collect();
    for (index, (offer, from)) in offers.iter_mut().zip(from).enumerate() {
        if names.iter().enumerate().any(|(other, name)| other != index && *name == names[index]) {
            offer.distinguish(from.display());
        }
    }
}

fn announce(offer: &DonorOffer) {
    let reserve =
        offer.reserve.as_ref().map_or(String::new(), |reason| format!("; only used as a last resort: {reason}"));
    let unfit = offer.unfit.as_ref().map_or(String::new(), |reason| format!("; unusable: {reason}"));
    complain!(
        "{}: sequence {}, generation {}, {} objects, last change {}, digest {}{reserve}{unfit}",
        offer.name,
        offer.seq,
        offer.generation,
        offer.objects,
        timestamp(offer.time_ms),
        offer.digest
    );
}

fn pick(offers: &[DonorOffer], member: Option<&str>, mark: Option<LogMark>) -> Result<usize, CtlError> {
    let Some(name) = member else { return choose(offers, mark).map_err(CtlError::new) };
    let found = offers.iter().position(|offer| offer.name == name && offer.unfit.is_none());
    let sources = offers.iter().filter(|offer| offer.unfit.is_none()).map(|offer| format!("{:?}", offer.name));
    let sources = sources.collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| CtlError::new(format!("{name} is not a usable source; choose one of: {sources}")))
}

async fn fetch(side: &Path, gathered: &mut Option<Gathered>, name: &str) -> Result<StateStore, CtlError> {
    let _ = std::fs::remove_dir_all(side);
    create_dirs(side, 0o700).map_err(CtlError::new)?;
    let gathered = gathered.as_mut().ok_or_else(|| CtlError::new("the chosen state is not available"))?;
    gathered.fetch(name, side, CACHE_BYTES).await.map_err(CtlError::new)
}

/// Fails if the chosen state has diverged from that of another member. Members at the same position with the same
/// digest have the same state, which is compared once.
async fn compare(
    work: &Path,
    chosen: (&str, &StateStore),
    offers: &[DonorOffer],
    sources: &[MemberSource],
    gathered: &mut Option<Gathered>,
) -> CtlResult {
    let at = |offer: &DonorOffer| (offer.log_id, offer.generation, offer.seq, offer.digest);
    let mut compared: Vec<_> = offers.iter().filter(|offer| offer.name == chosen.0).map(at).collect();
    for (index, offer) in offers.iter().enumerate() {
        if offer.unfit.is_some()
            || offer.role == Some(Role::Reader)
            || offer.seq == Seq::ZERO
            || compared.contains(&at(offer))
        {
            continue;
        }
        compared.push(at(offer));
        if let Some(source) = sources.get(index) {
            check_descent(chosen, &offer.name, &source.state).map_err(CtlError::new)?;
            continue;
        }
        complain!("comparing with {}, at sequence {}", offer.name, offer.seq);
        let place = work.join(COMPARED);
        let result = match fetch(&place, gathered, &offer.name).await {
            Ok(state) => check_descent(chosen, &offer.name, &state).map_err(CtlError::new),
            Err(error) => Err(error),
        };
        let _ = std::fs::remove_dir_all(&place);
        result?;
    }
    Ok(())
}

fn print(json: bool, dir: &Path, report: &Report) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(report)?;
        return output.flush();
    }
    let log = &report.log;
    output.line(&format!("log: up to sequence {}, generation {}, digest {}", log.head, log.generation, log.digest))?;
    if let Some((first, last)) = log.lost {
        output.line(&format!(
            "sequences {first} to {last} are only on {}, which did not respond: when it reconnects, it pushes its own \
             transactions again and archives the rest (`gravwell-logctl quarantine list`)",
            log.ask.first().map_or("a member", String::as_str)
        ))?;
    }
    if log.withheld > 0 {
        output.line(&format!(
            "LOST: {} objects with values withheld from readers (passwords, tokens, logins) are not in the new log; a \
             webserver that has them archives them when it reconnects (`gravwell-logctl quarantine list`), otherwise \
             set new passwords",
            log.withheld
        ))?;
    }
    let unless = if report.is_any_foreign { ", unless its certificate is of another CA" } else { "" };
    for name in &report.unheard {
        output.line(&format!("no response: {name}; it continues automatically when it reconnects{unless}"))?;
    }
    let dir = dir.display();
    if report.dry_run {
        output.line("dry run: nothing was changed")?;
        return output.flush();
    }
    output.line(&format!("recovered: start the datastore on {dir}, then take a backup"))?;
    if report.authority == "new" {
        output.line("the CA is new; for each member, with the datastore running, run")?;
        output.line(&format!("  gravwell-logctl --data-dir {dir} enroll NAME     and on the member's host"))?;
        output.line("  gravwell-logctl --data-dir MEMBER_DIR join TOKEN")?;
    } else {
        output.line(REVOKE_AGAIN)?;
    }
    output.flush()
}
