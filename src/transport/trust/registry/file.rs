//! The registry's file when it is held separately from the registry, and its disk reserve.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{COPY, Member, RegisterMark, Registry, write_copy, write_register};
use crate::trust::TrustError;
use gravwell_env::RealFs;
use gravwell_env::fs::is_full;
use gravwell_env::reserve::Reserve;
use gravwell_model::MemberName;

/// Disk reserve next to the registry: it allows members to be revoked even if the disk is full.
const RESERVE: &str = "members.reserve";
/// Enough for a registry with the maximum number of members.
const RESERVE_BYTES: u64 = 4 << 20;

/// The file of a registry, split off from it.
#[derive(Debug)]
pub struct RegistryFile {
    /// `None`: writes are ignored.
    path: Option<PathBuf>,
    /// The last text was not written.
    is_behind: bool,
}

fn reserve_of(path: &Path) -> Reserve {
    Reserve::new(Arc::new(RealFs), path.with_file_name(RESERVE), RESERVE_BYTES, 0)
}

impl RegistryFile {
    pub(super) fn new(path: Option<PathBuf>, is_behind: bool) -> RegistryFile {
        RegistryFile { path, is_behind }
    }

    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Writes the text returned by [`Registry::unwritten`]; durable when it returns.
    ///
    /// # Errors
    /// If it cannot be written; the next [`Registry::unwritten`] returns the whole text again.
    pub fn write(&mut self, text: &str) -> Result<(), TrustError> {
        self.is_behind = true;
        if let Some(path) = &self.path {
            write_register(path, text)?;
            // Only the registry itself is authoritative. Its copy shows that one existed and may be one change behind.
            if let Err(error) = write_copy(path, text) {
                tracing::warn!(%error, "failed to write {COPY}; will retry");
                return Ok(());
            }
        }
        self.is_behind = false;
        Ok(())
    }

    /// As [`RegistryFile::write`], but releases the disk reserve and tries again if the disk is full.
    ///
    /// # Errors
    /// As [`RegistryFile::write`].
    pub fn write_at_any_price(&mut self, text: &str) -> Result<(), TrustError> {
        let written = self.write(text);
        let is_full = matches!(&written, Err(TrustError::Io { source, .. }) if is_full(source));
        let has_room = is_full && self.path.as_deref().is_some_and(|path| reserve_of(path).give_back());
        if has_room { self.write(text) } else { written }
    }

    /// Re-creates the disk reserve if it was released and there is room for it.
    pub fn keep_reserve(&self) {
        if let Some(path) = &self.path {
            reserve_of(path).restore();
        }
    }
}

/// Returns the fields that decide whether a member may take part.
fn standing(member: &Member) -> impl PartialEq + '_ {
    (member.state, member.role, &member.invite, member.enrolled_ms, member.revoked_ms)
}

/// Returns `now` if it was reported after `before`, and the value from `changed` otherwise.
fn later<T: PartialEq>(now: T, before: T, changed: T) -> T {
    if now == before { changed } else { now }
}

impl Registry {
    /// Splits the registry from its file, so that it can be read while the file is written.
    #[must_use]
    pub fn into_parts(self) -> (Registry, RegistryFile) {
        let file = RegistryFile::new(self.path.clone(), self.is_dirty);
        (self.detached(), file)
    }

    /// Continues from the revision of `other`, a copy of this registry that was written or was about to be: no two
    /// texts may have the same revision.
    pub fn count_on_from(&mut self, other: &Registry) {
        let (here, there) = (&mut self.contents, &other.contents);
        here.revision = here.revision.max(there.revision);
        here.saved_ms = here.saved_ms.max(there.saved_ms);
    }

    /// Merges the change of a member made in `changed`, a copy of this registry from when the member was `before` and
    /// the registry was at the mark. Values that the member reported since are kept.
    ///
    /// # Errors
    /// If the member was revoked or otherwise changed in the meantime. Nothing is merged then.
    pub fn adopt(
        &mut self,
        name: &MemberName,
        (before, mark): (Option<&Member>, &RegisterMark),
        changed: &Registry,
        now_ms: u64,
    ) -> Result<(), TrustError> {
        let now = self.contents.members.get(name);
        if now.map(standing) != before.map(standing) {
            self.is_dirty = true;
            let what = format!("{name} was revoked or changed at the same time; check `members` and try again");
            return Err(TrustError::Refused(what));
        }
        match (changed.contents.members.get(name), now, before) {
            (Some(changed), Some(now), Some(before)) => {
                let merged = merged(now, before, changed);
                self.contents.members.insert(name.clone(), merged);
            }
            (Some(changed), ..) => drop(self.contents.members.insert(name.clone(), changed.clone())),
            (None, ..) => drop(self.contents.members.remove(name)),
        }
        self.adopt_changes(mark, changed, now_ms);
        self.index();
        Ok(())
    }
}

fn merged(now: &Member, before: &Member, changed: &Member) -> Member {
    let mut merged = changed.clone();
    // A certificate that was used, or reported as held, in the meantime has invalidated its predecessors.
    if now.certificates != before.certificates {
        let was = |print: &str| before.certificates.iter().any(|certificate| certificate.fingerprint == print);
        let made = changed.certificates.iter().filter(|certificate| !was(&certificate.fingerprint));
        let kept = now.certificates.iter().filter(|certificate| changed.has(&certificate.fingerprint));
        merged.certificates = kept.chain(made).cloned().collect();
    }
    merged.applied = later(now.applied, before.applied, changed.applied);
    merged.passed = later(now.passed, before.passed, changed.passed);
    merged.advanced_ms = later(now.advanced_ms, before.advanced_ms, changed.advanced_ms);
    merged.last_seen_ms = later(now.last_seen_ms, before.last_seen_ms, changed.last_seen_ms);
    merged.contradiction = later(now.contradiction, before.contradiction, changed.contradiction);
    merged.external_addr = later(&now.external_addr, &before.external_addr, &changed.external_addr).clone();
    merged.copy_keys = later(&now.copy_keys, &before.copy_keys, &changed.copy_keys).clone();
    merged
}
