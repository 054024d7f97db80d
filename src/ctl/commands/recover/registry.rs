//! The CA and the member registry with which `recover` rebuilds a log.
//!
//! Both are in place before members are asked. What the operator gives up for the registry is recorded in the mark of the
//! unfinished recovery, and in the registry when the log is in place: an attempt that is refused leaves no decision behind.

use std::path::{Path, PathBuf};

use gravwell_datastore::install_marker::{self, Trust as Authority, Unfinished, Work};
use gravwell_datastore::service::trust_dir;
use gravwell_datastore::stale_registry::{accept_over_noted, recorded};
use gravwell_env::{Clock, SystemClock};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_transport::trust::{
    Authorities, CaBackup, Choice, CopyRank, FoundCopy, GivenCopies, GivenUp, Identity, KeepWish, KeptRegister,
    RecoveryKey, RegisterChoice, Registry, TrustError, UnreadCopy, UsedRegister, check_authority, check_key_counts,
    check_known, keep_registry, key_that_counts, latest, other_authority, readable_register, replace_trust,
};

use super::args::{Recover, RegistryToUse};
use crate::client::ca_restore::read_key;
use crate::error::{CtlError, CtlResult};

/// Directory of the CA in a dry run.
const REHEARSAL: &str = "trust.rehearsal";

/// Trust directory in use during the recovery.
pub(super) struct Trust {
    pub path: PathBuf,
    /// The registry with which the marks of members are compared; `None` for that of a new CA, and for one that cannot be
    /// read: no member is accepted then.
    pub used: Option<UsedRegister>,
    /// Registries that the operator gave up for this one and that the mark of the recovery does not have yet.
    pub given_up: Vec<GivenUp>,
}

/// Provides the CA: the existing one, one from an encrypted CA backup or, if requested, a new one. In each case, the
/// mark of an unfinished recovery is written first.
pub(super) fn trust(
    dir: &Path,
    work: &Path,
    args: &Recover,
    kept: Option<Authority>,
) -> Result<(Trust, Authority), CtlError> {
    let here = trust_dir(dir);
    if let Some(found) = kept {
        let (trust, becomes) = match found {
            Authority::New => (Trust { path: here, used: None, given_up: Vec::new() }, found),
            Authority::Kept | Authority::Restored => beside_given(dir, work, args, found)?,
        };
        begin(dir, args, becomes)?;
        return Ok((trust, becomes));
    }
    let place = if args.dry_run { work.join(REHEARSAL) } else { here };
    match args.new_authority {
        true => new_authority(dir, place, args),
        false => from_backup(dir, place, args),
    }
}

fn begin(dir: &Path, args: &Recover, becomes: Authority) -> CtlResult {
    if args.dry_run { Ok(()) } else { mark(dir, becomes, &[]).write(dir).map_err(CtlError::new) }
}

fn new_authority(dir: &Path, place: PathBuf, args: &Recover) -> Result<(Trust, Authority), CtlError> {
    begin(dir, args, Authority::New)?;
    let now_ms = SystemClock.now_ms();
    if let Some(aside) = Registry::set_aside(&place).map_err(CtlError::new)? {
        complain!("the previous member registry is kept in {}", aside.display());
    }
    let register = Registry::open(&place, now_ms);
    register.and_then(|mut register| register.establish(now_ms)).map_err(CtlError::new)?;
    if !args.dry_run {
        accept_over_noted(dir).map_err(CtlError::new)?;
    }
    Ok((Trust { path: place, used: None, given_up: Vec::new() }, Authority::New))
}

/// Restores the CA from an encrypted backup into the trust directory `place`, which has none.
fn from_backup(dir: &Path, place: PathBuf, args: &Recover) -> Result<(Trust, Authority), CtlError> {
    let (left, now_ms) = (trust_dir(dir), SystemClock.now_ms());
    let register = readable_register(&left);
    let wish = wish_of(args, register.as_ref());
    let key = read_key(args.recovery_key.as_deref(), args.recovery_key_file.as_deref())?;
    let copies = readable_copies(args, wish)?;
    let newest = newest_escrow(args, wish, &copies, key.as_ref())?;
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
    check_key_counts(&escrow, &key, &left, (wish, args.earlier_copy)).map_err(CtlError::new)?;
    let choice = check_known(&escrow, &key, &left, (wish, args.earlier_copy), recorded(dir)).map_err(CtlError::new)?;
    let copy = UsedRegister::in_copy(&escrow, &key).map_err(CtlError::new)?;
    if !args.dry_run {
        mark_restored(dir, rank, choice.given_up.clone())?;
    }
    let has_kept = escrow.restore_beside(&key, (&left, &place), now_ms, wish).map_err(CtlError::new)?;
    let used = match has_kept {
        false => copy,
        true => UsedRegister::in_dir(&place, now_ms).map_err(CtlError::new)?,
    };
    let used = used.over(&choice.given_up);
    choice.said.iter().for_each(|what| complain!("{what}"));
    let passed = passed_over(&used, &place, &copies, &key, args, is_named)?;
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
    complain!("{}", key_that_counts(&place, &key).map_err(CtlError::new)?);
    let used = Some(used.over(&passed.given_up));
    Ok((Trust { path: place, used, given_up: passed.given_up }, Authority::Restored))
}

/// Returns which changes of the given CA backups the registry in use lacks, if the operator was asked about them: then they
/// are given up.
fn passed_over(
    used: &UsedRegister,
    trust: &Path,
    copies: &[FoundCopy],
    key: &RecoveryKey,
    args: &Recover,
    is_named: bool,
) -> Result<Choice, CtlError> {
    used.given_up_before(copies, key).iter().for_each(|what| complain!("{what}"));
    if !is_named && args.register.is_none() && !args.earlier_copy {
        return Ok(Choice::default());
    }
    let authorities = Authorities::load(trust).map_err(CtlError::new)?;
    let choice = Choice::from(used.lacks_of(copies, Some(key), &authorities));
    choice.said.iter().for_each(|what| complain!("{what}"));
    Ok(choice)
}

/// Returns the origin of the existing CA, if there is one: as recorded by an interrupted recovery,
/// else [`Authority::Kept`].
pub(super) fn kept(dir: &Path, args: &Recover) -> Result<Option<Authority>, CtlError> {
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
    let earlier = install_marker::find(dir).and_then(Result::ok).filter(|_| found == Authority::Restored);
    let key = read_key(args.recovery_key.as_deref(), args.recovery_key_file.as_deref())?;
    let (here, now_ms) = (trust_dir(dir), SystemClock.now_ms());
    // What was given up for the registry that an earlier attempt put back is not asked about again.
    let settled = earlier.as_ref().map_or(&[][..], |earlier| &earlier.given_up);
    let wish = wish_of(args, readable_register(&here).as_ref());
    let Some(key) = key else {
        return without_key(here, args, wish, settled).map(|trust| (trust, found));
    };
    let copies = readable_copies(args, wish)?;
    let used = UsedRegister::in_dir(&here, now_ms).map_err(|error| {
        CtlError::new(format!(
            "{error}; the registry cannot be compared with that of a CA backup; repair it first, with `gravwell-logctl \
             --data-dir {} authority restore FILE --recovery-key KEY`, or leave out the recovery key to rebuild the log \
             alone",
            dir.display()
        ))
    })?;
    let used = used.over(settled);
    let Some(Newest { escrow, is_named }) = newest_escrow(args, wish, &copies, Some(&key))? else {
        return Ok((Trust { path: here, used: Some(used), given_up: Vec::new() }, found));
    };
    let rank = escrow.rank(&key).map_err(CtlError::new)?;
    // Naming a copy decides against what an earlier attempt put back, but not against the datastore's own registry.
    let is_preferred = is_named && found == Authority::Restored;
    let wish = wish.or(is_preferred.then_some(RegisterChoice::Copy));
    let is_later = match earlier.as_ref().map(|earlier| (earlier.copy, earlier.copy_ms)) {
        Some((Some(copy), _)) => rank > copy,
        Some((None, Some(copy_ms))) => rank.made_ms > copy_ms,
        _ => false,
    };
    // One of lower rank may have changes that the one which was put back lacks.
    if !is_later && !escrow.exceeds(&key, &here, now_ms, wish).map_err(CtlError::new)? {
        let choice = passed_over(&used, &here, &copies, &key, args, is_named)?;
        let used = Some(used.over(&choice.given_up));
        return Ok((Trust { path: here, used, given_up: choice.given_up }, found));
    }
    let choice = check_known(&escrow, &key, &here, (wish, args.earlier_copy), recorded(dir)).map_err(CtlError::new)?;
    choice.said.iter().for_each(|what| complain!("{what}"));
    if wish == Some(RegisterChoice::Here) {
        let used = used.over(&choice.given_up);
        let passed = passed_over(&used, &here, &copies, &key, args, is_named)?;
        let used = Some(used.over(&passed.given_up));
        return Ok((Trust { path: here, used, given_up: [choice.given_up, passed.given_up].concat() }, found));
    }
    let path = if args.dry_run { work.join(REHEARSAL) } else { here };
    let used = replace(dir, &path, (&escrow, &key), &choice, (args.dry_run, found == Authority::Kept))?;
    let passed = passed_over(&used, &path, &copies, &key, args, is_named)?;
    let used = Some(used.over(&passed.given_up));
    Ok((Trust { path, used, given_up: passed.given_up }, Authority::Restored))
}

/// Replaces the CA and the registry that are there with those of `escrow`; a dry run writes them to `path`. Returns the
/// registry, which the operator chose over what `choice` has.
fn replace(
    dir: &Path,
    path: &Path,
    (escrow, key): (&CaBackup, &RecoveryKey),
    choice: &Choice,
    (is_dry_run, keeps_keys): (bool, bool),
) -> Result<UsedRegister, CtlError> {
    let rank = escrow.rank(key).map_err(CtlError::new)?;
    let (made, place, now_ms) = (timestamp(rank.made_ms), trust_dir(dir), SystemClock.now_ms());
    let what = format!("the CA backup of {made} has a later member registry than {}", place.display());
    let used = if is_dry_run {
        complain!("{what}, and would replace it");
        escrow.restore(key, path, now_ms, None).map_err(CtlError::new)?;
        UsedRegister::in_copy(escrow, key)
    } else {
        let aside = replace_trust(escrow, key, &place, now_ms, keeps_keys).map_err(CtlError::new)?;
        mark_restored(dir, rank, choice.given_up.clone())?;
        let aside = aside.map_or_else(|| "nothing".into(), |aside| aside.display().to_string());
        complain!("{what}, and replaces it; the previous files are kept in {aside}");
        UsedRegister::in_dir(&place, now_ms)
    };
    Ok(used.map_err(CtlError::new)?.over(&choice.given_up))
}

/// Keeps the registry that is in `here`, compared with the signed marks in the given CA backups.
fn without_key(
    here: PathBuf,
    args: &Recover,
    wish: Option<RegisterChoice>,
    settled: &[GivenUp],
) -> Result<Trust, CtlError> {
    if wish == Some(RegisterChoice::Copy) {
        return Err(CtlError::new(
            "the member registry of a CA backup is encrypted; pass the recovery key with --recovery-key to use it",
        ));
    }
    let wish = KeepWish { is_chosen: wish.is_some(), is_earlier_wanted: args.earlier_copy };
    let now_ms = SystemClock.now_ms();
    let (given, left_out) = given_copies(args)?;
    let kept = keep_registry(&here, given, settled, wish, now_ms).map_err(CtlError::new)?;
    let KeptRegister { used, choice } = kept;
    left_out.iter().chain(&choice.said).for_each(|what| complain!("{what}"));
    Ok(Trust { path: here, used, given_up: choice.given_up })
}

/// Returns the mark of this recovery, including the CA backup recorded by an earlier attempt and what was given up for it,
/// and what is given up now.
pub(super) fn mark(dir: &Path, becomes: Authority, given_up: &[GivenUp]) -> Unfinished {
    let mark = Unfinished::of(dir, Work::Recover, becomes);
    let earlier = install_marker::find(dir).and_then(Result::ok);
    let (copy, copy_ms) = earlier.as_ref().map(|earlier| (earlier.copy, earlier.copy_ms)).unwrap_or_default();
    // What was given up for a registry that is kept counts for one attempt.
    let former = earlier.filter(|_| becomes == Authority::Restored).map(|earlier| earlier.given_up);
    let mut all = former.unwrap_or_default();
    for new in given_up {
        if !all.contains(new) {
            all.push(new.clone());
        }
    }
    Unfinished { copy_ms, copy, given_up: all, ..mark }
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
    let wish = wish_of(args, readable_register(here).as_ref());
    let copies = if is_given { given_copies(args)?.0.found } else { Vec::new() };
    let checked = match (newest_escrow(args, wish, &copies, key.as_ref())?, key) {
        (Some(newest), Some(key)) => newest.escrow.check_goes_on_from(&key, here),
        (Some(newest), None) => newest.escrow.check_same(here),
        (None, Some(key)) => key.check_same(here),
        (None, None) => Ok(()),
    };
    checked.map_err(CtlError::new)
}

/// Fails if the member in `home` belongs to a different CA, while the local CA is new and has no members: all members
/// would silently have to join again.
pub(super) fn check_member(here: &Path, home: &Path) -> CtlResult {
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

/// Returns which of the registry that is left here and that of a CA backup the operator wants. A registry that is named by
/// its last change is the one here if that one is at it.
fn wish_of(args: &Recover, here: Option<&Registry>) -> Option<RegisterChoice> {
    match args.register.as_ref()? {
        RegistryToUse::Here => Some(RegisterChoice::Here),
        RegistryToUse::Copy => Some(RegisterChoice::Copy),
        RegistryToUse::At { count, name } if here.is_some_and(|here| here.is_at(*count, name)) => {
            Some(RegisterChoice::Here)
        }
        RegistryToUse::At { .. } => Some(RegisterChoice::Copy),
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
fn newest_escrow(
    args: &Recover,
    wish: Option<RegisterChoice>,
    copies: &[FoundCopy],
    key: Option<&RecoveryKey>,
) -> Result<Option<Newest>, CtlError> {
    let Some(key) = key else {
        return Ok(copies.last().map(|found| Newest { escrow: found.escrow.clone(), is_named: false }));
    };
    let Some(latest) = latest(copies.to_vec(), key).map_err(CtlError::new)? else { return Ok(None) };
    // The registry that is here is compared with later ones that the key does not open.
    latest.check(args.earlier_copy || wish == Some(RegisterChoice::Here)).map_err(CtlError::new)?;
    if let (Some(RegisterChoice::Copy), Some(RegistryToUse::At { count, name })) = (wish, &args.register) {
        let is_it = |copy: &&FoundCopy| opened(copy, key).is_some_and(|register| register.is_at(*count, name));
        let found = copies.iter().find(is_it).ok_or_else(|| {
            let named = registries_in(copies, key);
            CtlError::new(format!("no given CA backup has the member registry {count}/{name}; use one of {named}"))
        })?;
        return Ok(Some(Newest { escrow: found.escrow.clone(), is_named: true }));
    }
    let is_named =
        |copy: &&FoundCopy| matches!(&args.authority[..], [only] if only.display().to_string() == copy.place);
    let named = copies.first().filter(is_named);
    match (latest.apart.or(latest.doubt), named) {
        (None, _) => Ok(Some(Newest { escrow: latest.escrow, is_named: false })),
        (Some(_), Some(named)) => Ok(Some(Newest { escrow: named.escrow.clone(), is_named: true })),
        (Some(doubt), None) => Err(CtlError::new(format!(
            "{doubt}; nothing was changed; pass the CA backup to use with a single --authority FILE, or name its member \
             registry: {}",
            registries_in(copies, key)
        ))),
    }
}

fn opened(copy: &FoundCopy, key: &RecoveryKey) -> Option<Registry> {
    UsedRegister::in_copy(&copy.escrow, key).ok().map(UsedRegister::into_registry)
}

/// Lists the registries in the CA backups that the key opens, as options, each once.
fn registries_in(copies: &[FoundCopy], key: &RecoveryKey) -> String {
    let mut options: Vec<(String, &str)> = Vec::new();
    for copy in copies {
        let Some(mark) = opened(copy, key).map(|register| register.mark()) else { continue };
        let option = format!("--register {}/{}", mark.count, mark.name);
        if options.iter().all(|(known, _)| *known != option) {
            options.push((option, &copy.place));
        }
    }
    options.iter().map(|(option, place)| format!("{option} ({place})")).collect::<Vec<_>>().join(", ")
}

/// Returns the given CA backups that can be read. Others stop the command unless the operator keeps the registry that is
/// here, or accepts an earlier one.
fn readable_copies(args: &Recover, wish: Option<RegisterChoice>) -> Result<Vec<FoundCopy>, CtlError> {
    let is_wanted = wish == Some(RegisterChoice::Here) || args.earlier_copy;
    let (given, left_out) = given_copies(args)?;
    let (copies, said) = given.readable(is_wanted).map_err(CtlError::new)?;
    left_out.iter().chain(&said).for_each(|what| complain!("{what}"));
    Ok(copies)
}

/// Reads the CA backups that were named, and after them those in the directories of members. Also describes those of members
/// that the operator leaves out because they cannot be read.
fn given_copies(args: &Recover) -> Result<(GivenCopies, Vec<String>), CtlError> {
    let (mut given, mut left_out) = (GivenCopies::default(), Vec::new());
    for path in &args.authority {
        if !path.exists() {
            return Err(CtlError::new(format!(
                "{} does not exist; use an encrypted CA backup, which every member keeps in its directory as \
                 identity/escrow",
                path.display()
            )));
        }
        match CaBackup::load(path) {
            Ok(escrow) => given.found.push(copy_in(path, escrow)),
            Err(error) => given.unread.push(UnreadCopy { why: error.to_string(), option: None }),
        }
    }
    for from in &args.from {
        copies_of_member(from, args, (&mut given, &mut left_out))?;
    }
    Ok((given, left_out))
}

/// Adds the CA backups in the directory of a member.
fn copies_of_member(from: &Path, args: &Recover, (given, left_out): (&mut GivenCopies, &mut Vec<String>)) -> CtlResult {
    let mut paths = vec![Identity::escrow(from)];
    paths.extend(Identity::left_escrows(from).map_err(CtlError::new)?);
    // A member sets one aside that it cannot read, and gets another one, which may be an earlier one.
    paths.extend(Identity::damaged_escrows(from).map_err(CtlError::new)?);
    let member = Identity::load(from).map(|identity| identity.name().to_string());
    for path in paths {
        match CaBackup::load(&path) {
            Ok(escrow) => given.found.push(copy_in(&path, escrow)),
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) if member.as_ref().is_ok_and(|member| args.without.contains(member)) => {
                left_out.push(format!("{error}; continuing without it: it may have later revocations"));
            }
            // It may be the latest one, and the only one with the latest revocations.
            Err(error) => {
                let option = member.as_ref().ok().map(|member| format!("--without {member}"));
                given.unread.push(UnreadCopy { why: error.to_string(), option });
            }
        }
    }
    Ok(())
}

fn copy_in(path: &Path, escrow: CaBackup) -> FoundCopy {
    FoundCopy { escrow, place: path.display().to_string(), order: None, is_own: false }
}
