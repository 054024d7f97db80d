//! `recover`: rebuilds a datastore that has lost its disk from its members.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::install_marker::{self, Trust as Authority, Unfinished, Work};
use gravwell_datastore::rebuild::{DonorOffer, check_descent, check_empty, choose, dissent, recover, side};
use gravwell_datastore::recovery_collector::{self, Gathered};
use gravwell_datastore::repair::RepairReport;
use gravwell_datastore::service::trust_dir;
use gravwell_datastore::stale_registry::{accept_over_noted, recorded};
use gravwell_env::real_fs::create_dirs;
use gravwell_env::scratch::Scratch;
use gravwell_env::{Clock, SystemClock, data_dir};
use gravwell_log::generations;
use gravwell_model::codec::admin::GenerationInfo;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::{LogId, Seq};
use gravwell_state::StateStore;
use gravwell_transport::trust::TrustError;
use gravwell_transport::trust::{
    CaBackup, CopyRank, FoundCopy, GivenUp, Identity, LogMark, MemberState, RecoveryKey, RegisterChoice, Registry,
    Role, UsedRegister, check_authority, check_kept, check_key_counts, check_known, finish_exchange, key_that_counts,
    latest, other_authority, readable_register, replace_trust,
};

use super::args::Recover;
use super::output::Output;
use super::repair::{MemberSource, find_member, open_member};
use super::{CtlError, CtlResult};

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

/// Hint printed after a member registry was restored from a backup.
pub(super) const REVOKE_AGAIN: &str = "check `members`, and revoke again the members revoked since the CA backup";

/// Directory of the CA in a dry run.
const REHEARSAL: &str = "trust.rehearsal";

/// `recover`
pub(super) async fn run(dir: &Path, json: bool, args: Recover) -> CtlResult {
    // A dry run works in a scratch directory and leaves `dir` unchanged.
    let scratch = args.dry_run.then(Scratch::new).transpose().map_err(CtlError::new)?;
    let work = scratch.as_ref().map_or(dir, Scratch::path).to_owned();
    tokio::select! {
        result = recover_from(dir, &work, json, args) => result,
        () = super::datastore::stop_signal() => {
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
        let used = used.as_ref().map(|used| (used, args.earlier_copy));
        let found = recovery_collector::gather(&config, &trust, wait, args.expect, used, &mut announce).await;
        let found = found.map_err(CtlError::new)?;
        for lacking in found.lacking() {
            complain!("{lacking}: members revoked since then are enrolled again; revoke them again");
        }
        if found.refused() > 0 {
            complain!(
                "{} connections were refused, because their certificates are not in the member registry: if they are \
                 members, this CA backup is older than their certificates; pass a newer one with --authority, the file \
                 identity/escrow of a member's directory",
                found.refused()
            );
        }
        if authority != Authority::New {
            if found.foreign() > 0 {
                complain!(
                    "{} connections failed, because one side does not know the CA of the other one: members that have \
                     certificates of another CA have to be enrolled again",
                    found.foreign()
                );
            }
            found.unread().for_each(|unread| complain!("{unread}; it may have later revocations"));
        }
        offers.extend(found.offers());
        gathered = Some(found);
    }
    let chosen = pick(&offers, args.member.as_deref(), register.as_ref().and_then(Registry::log_mark))?;
    dissent(&offers, chosen).iter().for_each(|line| complain!("{line}"));
    let name = offers[chosen].name.clone();
    if !args.dry_run {
        let mut mark = mark(dir, authority);
        // The choice holds when a member shows the registry that was given up.
        given_up.retain(|other| !mark.given_up.contains(other));
        mark.given_up.append(&mut given_up);
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
    let is_any_foreign = gathered.as_ref().is_some_and(|gathered| gathered.foreign() > 0);
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

/// Trust directory in use during the recovery.
struct Trust {
    path: PathBuf,
    /// The registry with which the marks of members are compared; `None` for that of a new CA.
    used: Option<UsedRegister>,
    /// Registries that the operator gave up for this one, which is recorded when the log is in place.
    given_up: Vec<GivenUp>,
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

/// Provides the CA: the existing one, one from an encrypted CA backup or, if requested, a new one. In each case, the
/// mark of an unfinished recovery is written first.
fn trust(dir: &Path, work: &Path, args: &Recover, kept: Option<Authority>) -> Result<(Trust, Authority), CtlError> {
    let here = trust_dir(dir);
    let begin = |becomes: Authority| match args.dry_run {
        true => Ok(()),
        false => mark(dir, becomes).write(dir).map_err(CtlError::new),
    };
    if let Some(found) = kept {
        let (trust, becomes) = match found {
            Authority::New => (Trust { path: here, used: None, given_up: Vec::new() }, found),
            Authority::Kept | Authority::Restored => beside_given(dir, work, args, found)?,
        };
        begin(becomes)?;
        return Ok((trust, becomes));
    }
    let found = if args.dry_run { work.join(REHEARSAL) } else { here };
    if args.new_authority {
        begin(Authority::New)?;
        let now_ms = SystemClock.now_ms();
        if let Some(aside) = Registry::set_aside(&found).map_err(CtlError::new)? {
            complain!("the previous member registry is kept in {}", aside.display());
        }
        let register = Registry::open(&found, now_ms);
        register.and_then(|mut register| register.establish(now_ms)).map_err(CtlError::new)?;
        if !args.dry_run {
            // The registry of the former CA is given up.
            accept_over_noted(dir).map_err(CtlError::new)?;
        }
        return Ok((Trust { path: found, used: None, given_up: Vec::new() }, Authority::New));
    }
    let key = read_key(args.recovery_key.as_deref(), args.recovery_key_file.as_deref())?;
    let newest = newest_escrow(args, key.as_ref())?;
    let (Newest { escrow, is_named }, key) = newest.zip(key).ok_or_else(|| {
        CtlError::new(
            "the CA key is lost; pass --recovery-key and an encrypted CA backup, either a member's directory with \
             --from, or its file identity/escrow (or a file written by `authority backup`) with --authority; or use \
             --new-authority, after which every member must join again with a new token and keeps its state and \
             outbox",
        )
    })?;
    let rank = escrow.rank(&key).map_err(CtlError::new)?;
    let made_ms = rank.made_ms;
    let wish = args.register.map(RegisterChoice::from);
    check_key_counts(&escrow, &key, &trust_dir(dir), (wish, args.earlier_copy)).map_err(CtlError::new)?;
    let given_up = check_known(&escrow, &key, &trust_dir(dir), (wish, args.earlier_copy), recorded(dir));
    let given_up = given_up.map_err(CtlError::new)?;
    let copy = UsedRegister::in_copy(&escrow, &key).map_err(CtlError::new)?;
    let other = match wish {
        None => None,
        Some(RegisterChoice::Here) => Some(GivenUp::of(copy.registry())),
        Some(RegisterChoice::Copy) => readable_register(&trust_dir(dir)).as_ref().map(GivenUp::of),
    };
    let others = Vec::from_iter(other);
    if !args.dry_run {
        mark_restored(dir, rank, others.clone())?;
    }
    let (left, now_ms) = (trust_dir(dir), SystemClock.now_ms());
    let has_kept = escrow.restore_beside(&key, (&left, &found), now_ms, wish).map_err(CtlError::new)?;
    let used = match has_kept {
        false => Ok(copy),
        true => UsedRegister::put_back_in(&found, true, now_ms),
    };
    let used = Some(used.map_err(CtlError::new)?.over(&others));
    given_up.iter().for_each(|what| complain!("{what}"));
    if !args.dry_run && (!has_kept || wish.is_some()) {
        accept_over_noted(dir).map_err(CtlError::new)?;
    }
    if is_named || given_up.is_some() {
        // The operator was asked, and knows of the other copies.
        let now_ms = SystemClock.now_ms();
        let register = Registry::open(&found, now_ms);
        register.and_then(|mut register| register.give_up_others(now_ms)).map_err(CtlError::new)?;
    }
    let age = SystemClock.now_ms().saturating_sub(made_ms) / 1000;
    let (made, age) = (timestamp(made_ms), lasting(age));
    complain!(
        "restored the CA {}",
        match has_kept {
            true => format!("from a backup of {made}, {age} old; kept the existing member registry"),
            false => format!(
                "and the member registry from a backup of {made}, {age} old; repeat changes to members made since then"
            ),
        }
    );
    complain!("{}", key_that_counts(&found, &key).map_err(CtlError::new)?);
    Ok((Trust { path: found, used, given_up: Vec::new() }, Authority::Restored))
}

/// Returns the origin of the existing CA, if there is one: as recorded by an interrupted recovery,
/// else [`Authority::Kept`].
fn kept(dir: &Path, args: &Recover) -> Result<Option<Authority>, CtlError> {
    let here = trust_dir(dir);
    if !here.join("ca.key").exists() {
        return Ok(None);
    }
    let found = install_marker::find(dir).and_then(Result::ok).map_or(Authority::Kept, |earlier| earlier.trust);
    check_same(&here, found, args)?;
    Ok(Some(found))
}

/// Replaces the CA and the registry that are there if the given backup has a later registry: only that one contains the
/// members and revocations since. An interrupted recovery or another command may have restored an earlier backup.
/// Without the key, only the signed marks in the backups are compared.
fn beside_given(dir: &Path, work: &Path, args: &Recover, found: Authority) -> Result<(Trust, Authority), CtlError> {
    let earlier = install_marker::find(dir).and_then(Result::ok);
    let key = read_key(args.recovery_key.as_deref(), args.recovery_key_file.as_deref())?;
    let (here, now_ms) = (trust_dir(dir), SystemClock.now_ms());
    let is_unfinished = found == Authority::Restored;
    // What was given up for the registry that an earlier attempt put back is not asked about again.
    let settled = earlier.as_ref().filter(|_| is_unfinished).map_or(&[][..], |earlier| &earlier.given_up);
    // If it cannot be read, no member is accepted, and so none is compared with it.
    let used = UsedRegister::put_back_in(&here, is_unfinished, now_ms).ok().map(|used| used.over(settled));
    let wish = args.register.map(RegisterChoice::from);
    let Some(key) = key else {
        let is_chosen = wish == Some(RegisterChoice::Here);
        let copies = match given_copies(args) {
            Err(_) if is_chosen => Vec::new(),
            copies => copies?,
        };
        let lacking = used.as_ref().map(|used| check_kept(used, &here, &copies, is_chosen || args.earlier_copy));
        let lacking = lacking.transpose().map_err(CtlError::new)?.unwrap_or_default();
        lacking.iter().for_each(|(_, what)| complain!("{what}: revoke again the members that were revoked since"));
        let given_up: Vec<_> = lacking.iter().filter(|_| is_chosen).map(|(mark, _)| GivenUp::at(mark)).collect();
        return Ok((Trust { path: here, used: used.map(|used| used.over(&given_up)), given_up }, found));
    };
    let Some(Newest { escrow, is_named }) = newest_escrow(args, Some(&key))? else {
        return Ok((Trust { path: here, used, given_up: Vec::new() }, found));
    };
    let rank = escrow.rank(&key).map_err(CtlError::new)?;
    // Naming a copy decides against what an earlier attempt put back, but not against the datastore's own registry.
    let is_named = is_named && is_unfinished;
    let wish = wish.or(is_named.then_some(RegisterChoice::Copy));
    let is_later = match (found, earlier.as_ref().map(|earlier| (earlier.copy, earlier.copy_ms))) {
        (Authority::Restored, Some((Some(copy), _))) => rank > copy,
        (Authority::Restored, Some((None, Some(copy_ms)))) => rank.made_ms > copy_ms,
        _ => false,
    };
    // One of lower rank may have changes that the one which was put back lacks.
    if !is_later && !escrow.exceeds(&key, &here, now_ms, wish).map_err(CtlError::new)? {
        return Ok((Trust { path: here, used, given_up: Vec::new() }, found));
    }
    let given_up =
        check_known(&escrow, &key, &here, (wish, args.earlier_copy), recorded(dir)).map_err(CtlError::new)?;
    given_up.iter().for_each(|what| complain!("{what}"));
    let copy = UsedRegister::in_copy(&escrow, &key).map_err(CtlError::new)?;
    if wish == Some(RegisterChoice::Here) {
        let given_up = vec![GivenUp::of(copy.registry())];
        return Ok((Trust { path: here, used: used.map(|used| used.over(&given_up)), given_up }, found));
    }
    let former = used.filter(|_| wish.is_some()).map(|used| GivenUp::of(used.registry()));
    let former = Vec::from_iter(former);
    let (made, place) = (timestamp(rank.made_ms), here.display());
    let what = format!("the CA backup of {made} has a later member registry than {place}");
    if args.dry_run {
        complain!("{what}, and would replace it");
        let path = work.join(REHEARSAL);
        escrow.restore(&key, &path, now_ms, None).map_err(CtlError::new)?;
        return Ok((Trust { path, used: Some(copy.over(&former)), given_up: Vec::new() }, Authority::Restored));
    }
    let (is_decided, keeps_keys) = (wish.is_some() || given_up.is_some(), found == Authority::Kept);
    let aside = replace_trust(&escrow, &key, &here, now_ms, (is_decided, keeps_keys)).map_err(CtlError::new)?;
    accept_over_noted(dir).map_err(CtlError::new)?;
    mark_restored(dir, rank, former.clone())?;
    let aside = aside.map_or_else(|| "nothing".into(), |aside| aside.display().to_string());
    complain!("{what}, and replaces it; the previous files are kept in {aside}");
    let used = UsedRegister::put_back_in(&here, true, now_ms).ok().map(|used| used.over(&former));
    Ok((Trust { path: here, used, given_up: Vec::new() }, Authority::Restored))
}

/// Returns the mark of this recovery, including the CA backup recorded by an earlier attempt and what was given up for it.
fn mark(dir: &Path, becomes: Authority) -> Unfinished {
    let mark = Unfinished::of(dir, Work::Recover, becomes);
    let Some(earlier) = install_marker::find(dir).and_then(Result::ok) else { return mark };
    let Unfinished { copy_ms, copy, mut given_up, .. } = earlier;
    // What was given up for a registry that is kept counts for one attempt.
    given_up.retain(|_| becomes == Authority::Restored);
    Unfinished { copy_ms, copy, given_up, ..mark }
}

fn mark_restored(dir: &Path, rank: CopyRank, given_up: Vec<GivenUp>) -> CtlResult {
    let mark = Unfinished::of(dir, Work::Recover, Authority::Restored);
    let mark = Unfinished { copy_ms: Some(rank.made_ms), copy: Some(rank), given_up, ..mark };
    mark.write(dir).map_err(CtlError::new)
}

/// Fails if a given CA backup or key belongs to a different CA than the existing one, which would be used nonetheless.
fn check_same(here: &Path, found: Authority, args: &Recover) -> CtlResult {
    if args.new_authority {
        let own = (found != Authority::New).then(|| other_authority(here, "--new-authority requests a new one"));
        return own.map_or(Ok(()), |error| Err(CtlError::new(error)));
    }
    let key = read_key(args.recovery_key.as_deref(), args.recovery_key_file.as_deref())?;
    let is_given = key.is_some() || !args.authority.is_empty();
    let newest = if is_given { newest_escrow(args, key.as_ref())? } else { None };
    let checked = match (newest, key) {
        (Some(newest), Some(key)) => newest.escrow.check_goes_on_from(&key, here),
        (Some(newest), None) => newest.escrow.check_same(here),
        (None, Some(key)) => key.check_same(here),
        (None, None) => Ok(()),
    };
    checked.map_err(CtlError::new)
}

/// Fails if the member in `home` belongs to a different CA, while the local CA is new and has no members: all members
/// would silently have to join again.
fn check_member(here: &Path, home: &Path) -> CtlResult {
    if !Registry::is_unused(here) {
        return Ok(());
    }
    let Ok(theirs) = Identity::load(home).and_then(|identity| identity.roots()) else { return Ok(()) };
    let checked = check_authority(here, &theirs, &format!("{} belongs to", home.display()));
    checked.map_err(CtlError::new)
}

/// Formats a duration for people.
fn lasting(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The CA backup to restore.
struct Newest {
    escrow: CaBackup,
    /// Whether the operator named it, and another one may contradict it.
    is_named: bool,
}

/// Returns the latest CA backup according to its authenticated contents, because the holder of a backup can alter its
/// plaintext part. If it is not known to go on from all others, or the timestamps contradict each other, the one that
/// the operator named is used.
fn newest_escrow(args: &Recover, key: Option<&RecoveryKey>) -> Result<Option<Newest>, CtlError> {
    let mut found = given_copies(args)?;
    let named = if args.authority.len() == 1 { found.first().map(|found| found.escrow.clone()) } else { None };
    let Some(key) = key else { return Ok(found.pop().map(|found| Newest { escrow: found.escrow, is_named: false })) };
    let Some(latest) = latest(found, key).map_err(CtlError::new)? else { return Ok(None) };
    latest.check(args.earlier_copy).map_err(CtlError::new)?;
    match (latest.apart.or(latest.doubt), named) {
        (None, _) => Ok(Some(Newest { escrow: latest.escrow, is_named: false })),
        (Some(_), Some(escrow)) => Ok(Some(Newest { escrow, is_named: true })),
        (Some(doubt), None) => Err(CtlError::new(format!(
            "{doubt}; nothing was changed; pass the CA backup to use with a single --authority FILE"
        ))),
    }
}

/// Reads the CA backups that were named, and after them those in the directories of members.
fn given_copies(args: &Recover) -> Result<Vec<FoundCopy>, CtlError> {
    let mut found = Vec::new();
    for path in &args.authority {
        if !path.exists() {
            return Err(CtlError::new(format!(
                "{} does not exist; use an encrypted CA backup, which every member keeps in its directory as \
                 identity/escrow",
                path.display()
            )));
        }
        found.push(copy_in(path, CaBackup::load(path).map_err(CtlError::new)?));
    }
    let mut of_members = Vec::new();
    for from in &args.from {
        of_members.push(Identity::escrow(from));
        of_members.extend(Identity::left_escrows(from).map_err(CtlError::new)?);
        // A member sets one aside that it cannot read, and gets another one, which may be an earlier one.
        of_members.extend(Identity::damaged_escrows(from).map_err(CtlError::new)?);
    }
    for path in of_members {
        match CaBackup::load(&path) {
            Ok(escrow) => found.push(copy_in(&path, escrow)),
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) if args.earlier_copy => tracing::warn!(%error, "ignoring encrypted CA backup of a member"),
            // It may be the latest one, and the only one with the latest revocations.
            Err(error) => {
                return Err(CtlError::new(format!(
                    "{error}; nothing was changed, because this CA backup may be the latest; make it readable, or use \
                     --earlier-copy to continue without it and revoke again the members revoked since the backup that \
                     is used"
                )));
            }
        }
    }
    Ok(found)
}

fn copy_in(path: &Path, escrow: CaBackup) -> FoundCopy {
    FoundCopy { escrow, place: path.display().to_string(), order: None, is_own: false }
}

/// Returns the recovery key from its text or from a file.
pub(super) fn read_key(text: Option<&str>, file: Option<&Path>) -> Result<Option<RecoveryKey>, CtlError> {
    let text = match (text, file) {
        (Some(text), _) => text.to_owned(),
        (None, Some(file)) => {
            std::fs::read_to_string(file).map_err(|error| CtlError::new(format!("{}: {error}", file.display())))?
        }
        (None, None) => return Ok(None),
    };
    text.trim().parse().map(Some).map_err(CtlError::new)
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
