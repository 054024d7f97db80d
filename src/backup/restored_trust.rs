//! The CA and the member registry of a restored datastore.

use std::path::Path;

use super::restore::{RegisterOf, RestoreError, RestoreOptions, SealedIn};
use gravwell_datastore::stale_registry::{accept_noted_invitations, accept_over_noted, recorded};
use gravwell_env::{Clock, SystemClock};
use gravwell_model::LogId;
use gravwell_transport::trust::{
    Authorities, CaBackup, Choice, FoundCopy, GivenCopies, KeepWish, Latest, RecoveryKey, RegisterChoice, Registry,
    TrustError, UnreadCopy, UsedRegister, check_key_counts, check_known, keep_registry, key_that_counts, latest,
    latest_of_branch, restore_trust,
};

/// Description of a CA that was not restored.
const EXISTING: &str = "the existing one";

/// Restores the CA and the registry if there are none, or the registry if the one of the backups is later.
pub(super) fn authority(
    log_id: LogId,
    path: &Path,
    wishes: &RestoreOptions<'_>,
) -> Result<(String, Option<RegisterOf>), RestoreError> {
    let trust = gravwell_datastore::service::trust_dir(path);
    let is_there = trust.join("ca.key").exists();
    let given = copies(wishes.escrows, log_id);
    match wishes.recovery_key {
        Some(key) => with_key((path, &trust), given, key, wishes),
        None if is_there => existing(&trust, given, wishes).map(|what| (what, None)),
        None => {
            // Records that the CA is not missing but was abandoned.
            Registry::open(&trust, SystemClock.now_ms())?.establish(SystemClock.now_ms())?;
            if Registry::is_unused(&trust) {
                accept_over_noted(path)?;
            }
            Ok(("none; let members join again, or restore with --recovery-key".into(), None))
        }
    }
}

/// Keeps the registry that is in the trust directory, without the recovery key. An earlier command may have put it back
/// from an earlier backup.
fn existing(trust: &Path, given: GivenCopies, wishes: &RestoreOptions<'_>) -> Result<String, RestoreError> {
    if wishes.register == Some(RegisterChoice::Copy) {
        return Err(RestoreError::NotCovered(
            "the member registry of a backup is encrypted; nothing was changed; pass the recovery key with \
             --recovery-key to use it"
                .into(),
        ));
    }
    let now_ms = SystemClock.now_ms();
    let wish = KeepWish { is_chosen: wishes.register.is_some(), is_earlier_wanted: wishes.earlier_copy };
    let choice = keep_registry(trust, given, &[], wish, now_ms)?.choice;
    choice.record(trust, now_ms)?;
    Ok(kept(EXISTING, &choice))
}

/// Describes a registry that was kept, and what is given up for it.
fn kept(what: &str, choice: &Choice) -> String {
    std::iter::once(what).chain(choice.said.iter().map(String::as_str)).collect::<Vec<_>>().join("; ")
}

/// Restores the CA and the registry from the backups that `key` opens, unless those that are there are the latest.
fn with_key(
    (path, trust): (&Path, &Path),
    given: GivenCopies,
    key: &RecoveryKey,
    wishes: &RestoreOptions<'_>,
) -> Result<(String, Option<RegisterOf>), RestoreError> {
    let is_there = trust.join("ca.key").exists();
    let (now_ms, wants_here) = (SystemClock.now_ms(), wishes.register == Some(RegisterChoice::Here));
    let (copies, said) = given.readable(wants_here || wishes.earlier_copy)?;
    let mut choice = Choice { given_up: Vec::new(), said };
    // An existing registry is kept unless the backups have a later one. An earlier attempt may have restored it from
    // older backups. One that is damaged is repaired.
    let is_kept = |found: &Latest| match Registry::open(trust, now_ms) {
        _ if !is_there => Ok(false),
        Err(TrustError::Damaged { .. }) => Ok(false),
        Err(error) => Err(error),
        Ok(_) => found.escrow.exceeds(key, trust, now_ms, wishes.register).map(|exceeds| !exceeds),
    };
    let existing = match wishes.register {
        Some(RegisterChoice::Copy) => format!("{EXISTING}, whose member registry goes on from that of the backups"),
        _ => EXISTING.into(),
    };
    // Includes backups later than the restored point in time: the registry must be the current one, not that of an
    // earlier time.
    let Some(found) = latest(copies.clone(), key)? else {
        return match is_there {
            true => Ok((kept(EXISTING, &choice), None)),
            false => Err(RestoreError::Wrong("no backup contains an encrypted CA backup".into())),
        };
    };
    let is_latest = is_kept(&found)?;
    if !(is_latest && wants_here) {
        found.check(wishes.earlier_copy)?;
    }
    if is_latest {
        let others = others(trust, &copies, key, &choice)?;
        if wants_here || wishes.earlier_copy {
            choice.extend(others);
            choice.record(trust, now_ms)?;
            return Ok((kept(&existing, &choice), None));
        }
        if found.apart.is_none() || others.given_up.is_empty() {
            return Ok((kept(&existing, &choice), None));
        }
    }
    let (found, is_named) = of_branch(found, &copies, wishes, key)?;
    if is_named && is_kept(&found)? {
        choice.extend(others(trust, &copies, key, &choice)?);
        choice.record(trust, now_ms)?;
        return Ok((kept(&existing, &choice), None));
    }
    put_back((path, trust), (found, is_named), (&copies, key), wishes, choice)
}

/// Returns the registries in the backups, of other branches and also of backups that the key does not open, that have
/// changes which the registry in the trust directory `trust` lacks and which `choice` does not give up.
fn others(trust: &Path, copies: &[FoundCopy], key: &RecoveryKey, choice: &Choice) -> Result<Choice, RestoreError> {
    let used = UsedRegister::in_dir(trust, SystemClock.now_ms())?.over(&choice.given_up);
    Ok(used.lacks_of(copies, Some(key), &Authorities::load(trust)?).into())
}

/// Restores the CA and the registry of the CA backup `found`, which `is_named` says that the operator named.
fn put_back(
    (path, trust): (&Path, &Path),
    (found, is_named): (Latest, bool),
    (copies, key): (&[FoundCopy], &RecoveryKey),
    wishes: &RestoreOptions<'_>,
    mut choice: Choice,
) -> Result<(String, Option<RegisterOf>), RestoreError> {
    let (now_ms, wished) = (SystemClock.now_ms(), (wishes.register, wishes.earlier_copy));
    check_key_counts(&found.escrow, key, trust, wished)?;
    choice.extend(check_known(&found.escrow, key, trust, wished, recorded(path))?);
    let (has_kept, aside) = if trust.join("ca.key").exists() {
        let put_back = restore_trust(&found.escrow, key, trust, now_ms, wishes.register)?;
        (put_back.has_kept_register, put_back.aside)
    } else {
        (found.escrow.restore(key, trust, now_ms, wishes.register)?, None)
    };
    if is_named || wishes.register.is_some() || wishes.earlier_copy {
        choice.extend(others(trust, copies, key, &choice)?);
    }
    choice.record(trust, now_ms)?;
    accept_noted_invitations(path)?;
    let stays = if has_kept { "; kept the existing member registry" } else { "" };
    let doubt = found
        .doubt
        .map_or(String::new(), |doubt| format!("; {doubt}; used the one with the highest revision, check `members`"));
    let counts = match RecoveryKey::load(trust)? {
        Some(present) if present == *key => String::new(),
        _ => format!("; {}", key_that_counts(trust, key)?),
    };
    let aside = aside.map_or(String::new(), |aside| format!("; the previous files are kept in {}", aside.display()));
    let register = RegisterOf { backup: found.place, made_ms: found.rank.made_ms };
    let what = kept(&format!("restored{stays}{aside}{counts}{doubt}"), &choice);
    Ok((what, (!has_kept).then_some(register)))
}

/// Returns the latest CA backup if it goes on from all others, and else the latest one of the branch that the operator
/// named, which the second value tells.
fn of_branch(
    found: Latest,
    copies: &[FoundCopy],
    wishes: &RestoreOptions<'_>,
    key: &RecoveryKey,
) -> Result<(Latest, bool), RestoreError> {
    let Some(apart) = &found.apart else { return Ok((found, false)) };
    let of_named = |named: &str| match latest_of_branch(copies.to_vec(), key, named)? {
        Some(found) => Ok(found),
        None => Err(RestoreError::NotCovered(format!("backup {named} contains no encrypted CA backup"))),
    };
    match wishes.named.map(of_named).transpose()? {
        Some(named) if named.apart.is_none() => Ok((named, true)),
        named => {
            let apart = named.and_then(|named| named.apart).unwrap_or_else(|| apart.clone());
            Err(RestoreError::NotCovered(format!(
                "{apart}; nothing was changed; choose the backup with the right member registry by --backup ID (see \
                 `backup list`)"
            )))
        }
    }
}

/// Parses the encrypted CA backups, ordered by how far their backups reach.
fn copies(sealed: &[SealedIn<'_>], log_id: LogId) -> GivenCopies {
    let mut given = GivenCopies::default();
    let sealed = sealed.iter().enumerate().filter(|(_, sealed)| !sealed.escrow.is_empty());
    for (order, sealed) in sealed {
        let (place, is_own) = (sealed.backup.to_owned(), sealed.log_id == log_id);
        match CaBackup::from_text(sealed.escrow) {
            Ok(escrow) => given.found.push(FoundCopy { escrow, place, order: Some(order), is_own }),
            Err(what) => {
                let why = format!("the encrypted CA backup in backup {place} cannot be read: {what}");
                given.unread.push(UnreadCopy { why, option: None });
            }
        }
    }
    given
}
