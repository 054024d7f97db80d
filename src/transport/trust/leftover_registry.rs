//! Choice between a member registry left in a trust directory and the one in the CA backup being restored there.
//!
//! An older backup lacks later enrolments and revocations. The existing registry is therefore kept if it is the later
//! one. If the two differ in more than positions, the operator must choose.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::authority::{read_text, write_private};
use super::descent::{Descent, Standing, descent, described, standing};
use super::registry::{COPY, FILE};
use super::{Authority, CaBackup, MemberState, RecoveryKey, Registry, TrustError, hex};
use gravwell_env::fs::first_free;
use gravwell_model::codec::json_lines::timestamp;

/// The registry to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterChoice {
    /// The existing registry.
    Here,
    /// The registry in the encrypted backup.
    Copy,
}

/// Returns the text and contents of the later of the registry in `dir` and its copy, as far as they are readable.
pub(super) fn readable(dir: &Path) -> Option<(String, Registry)> {
    let texts = [FILE, COPY].into_iter().filter_map(|name| read_text(&dir.join(name)).ok());
    let registers = texts.filter_map(|text| Registry::from_text(&text, 0).ok().map(|register| (text, register)));
    registers.max_by_key(|(_, register)| register.revision())
}

/// Returns the later of the registry in the trust directory `dir` and its copy, as far as they are readable. It may be one
/// change behind. For use when [`Registry::open`] fails.
#[must_use]
pub fn readable_register(dir: &Path) -> Option<Registry> {
    readable(dir).map(|(_, register)| register)
}

/// Returns the text of the registry in `dir` if it is kept when `escrow` is restored; `None` if the one in `escrow`
/// is used. If the operator chose it, the caller records over which one, see [`Registry::choose_over`].
///
/// # Errors
/// If the one in `dir` is the later one and the operator has not chosen, or if it belongs to another CA.
pub(super) fn stays(
    escrow: &CaBackup,
    key: &RecoveryKey,
    dir: &Path,
    wish: Option<RegisterChoice>,
) -> Result<Option<String>, TrustError> {
    let sealed = escrow.register(key)?;
    let Some((text, here)) = readable(dir).filter(|(_, here)| here.members().next().is_some()) else {
        if wish == Some(RegisterChoice::Here) {
            let what = format!("no member registry is left in {}; use `--register copy`", dir.display());
            return Err(TrustError::Refused(what));
        }
        return Ok(None);
    };
    let is_earlier = standing(&here, &sealed) == Standing::Later;
    match wish {
        Some(RegisterChoice::Copy) => return Ok(None),
        Some(RegisterChoice::Here) => {}
        None if is_earlier => return Ok(None),
        // An operator chose it before.
        None if here.has_given_up(&sealed.mark()) => {}
        None => {
            let differing = differing(&here, &sealed);
            if !differing.is_empty() {
                return Err(TrustError::Refused(question(dir, &here, &sealed)));
            }
        }
    }
    match Authority::certificate_in(dir) {
        Some(own) if hex(&own) != escrow.authority => Err(super::other_authority(
            dir,
            &format!("its member registry was to be kept, while the CA backup contains {}", escrow.name()),
        )),
        _ => Ok(Some(text)),
    }
}

/// Returns the members that differ between the two, apart from positions and invitations, which a backup does
/// not restore.
pub(super) fn differing(here: &Registry, sealed: &Registry) -> BTreeSet<String> {
    let lasting = |register: &Registry| -> BTreeSet<(String, String)> {
        let members = register.members().filter(|member| member.state != MemberState::Invited);
        members.map(|member| (member.name.to_string(), member.lasting())).collect()
    };
    lasting(here).symmetric_difference(&lasting(sealed)).map(|(name, _)| name.clone()).collect()
}

fn question(dir: &Path, here: &Registry, sealed: &Registry) -> String {
    let position = |register: &Registry| {
        let log = register.log_mark().map(|mark| format!(", log at sequence {}", mark.seq)).unwrap_or_default();
        format!("revision {} of {}{log}", register.revision(), timestamp(register.saved_ms()))
    };
    let is_later = match descent(here, sealed) {
        Descent::Known => true,
        Descent::Unnamed => here.revision() >= sealed.revision(),
        Descent::NotKnown => false,
    };
    let (relation, lacking) = match is_later {
        true => ("is later than", "later enrollments and revocations are not in the backup"),
        false => ("has diverged from", "each of them may lack enrollments and revocations of the other one"),
    };
    format!(
        "the member registry left in {} ({}) {relation} the one in the CA backup ({}), and they differ in {}: \
         {lacking}; nothing was changed. Use `--register here` to keep the present registry, or `--register copy` to \
         restore the registry from the backup, which keeps the present one under another name; then revoke again the \
         members that are revoked in the other one",
        dir.display(),
        position(here),
        position(sealed),
        described(here, sealed)
    )
}

/// Replaces the registry in `dir` with `text`. A different existing registry is first copied to another name.
pub(super) fn replace_registry(dir: &Path, text: &str) -> Result<(), TrustError> {
    [FILE, COPY].into_iter().try_for_each(|name| keep_other(&dir.join(name), text))?;
    [FILE, COPY].into_iter().try_for_each(|name| write_private(&dir.join(name), text.as_bytes()))
}

/// Replaces a file with `text`. One with different contents, which may be the only copy of a key, is first copied to
/// another name.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), TrustError> {
    keep_other(path, text)?;
    write_private(path, text.as_bytes())
}

/// Renames a file to `NAME.left-N`.
pub(super) fn set_aside(path: &Path) -> Result<(), TrustError> {
    let io = |source| TrustError::Io { path: path.to_owned(), source };
    fs::rename(path, left_name(path).map_err(io)?).map_err(io)
}

/// Copies a file to `NAME.left-N` if its contents differ from `text`. One that cannot be read is renamed.
fn keep_other(path: &Path, text: &str) -> Result<(), TrustError> {
    let io = |source| TrustError::Io { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) if bytes == text.as_bytes() => Ok(()),
        Ok(bytes) => write_private(&left_name(path).map_err(io)?, &bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(_) => set_aside(path),
    }
}

fn left_name(path: &Path) -> std::io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = first_free(|number| path.with_file_name(format!("{name}.left-{number}")));
    free.ok_or(std::io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::super::{GivenUp, NewKey, Role, restore_trust};
    use super::*;
    use gravwell_model::{MemberName, Seq};

    const NOW: u64 = 1_800_000_000_000;

    fn name(name: &str) -> MemberName {
        MemberName::new(name).expect("name")
    }

    fn enrol(register: &mut Registry, authority: &Authority, member: &str) {
        let request = NewKey::generate(&name(member)).expect("a key").request_der;
        let secret = register.invite(&name(member), Role::Webserver, 1000, NOW, false).expect("invites");
        register.redeem(authority, &name(member), &secret, &request, 30, NOW).expect("joins");
    }

    /// Creates a trust directory with two members, and an encrypted backup of it.
    fn sealed(dir: &Path) -> (Registry, CaBackup, RecoveryKey) {
        let mut register = Registry::open(dir, NOW).expect("register");
        let authority = Authority::open_or_create(dir, NOW).expect("authority");
        ["web1", "web2"].iter().for_each(|member| enrol(&mut register, &authority, member));
        let escrow = CaBackup::seal(dir, &authority, &mut register, NOW).expect("seals");
        let key = RecoveryKey::open_or_create(dir).expect("key");
        (register, escrow, key)
    }

    fn states(dir: &Path) -> Vec<String> {
        let register = Registry::open(dir, NOW).expect("opens");
        register.members().map(|member| format!("{} {}", member.name, member.state)).collect()
    }

    const BEFORE: [&str; 2] = ["web1 enrolled", "web2 enrolled"];
    const AFTER: [&str; 2] = ["web1 enrolled", "web2 revoked"];

    /// Creates a directory whose registry contains a revocation that the backup lacks, and which `damage` then damages.
    fn damaged(damage: impl Fn(&Path)) -> (tempfile::TempDir, CaBackup, RecoveryKey) {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let (mut register, escrow, key) = sealed(&dir);
        register.revoke(&name("web2"), NOW + 1).expect("revokes");
        damage(&dir);
        (temp, escrow, key)
    }

    #[test]
    fn p13_an_older_sealed_copy_does_not_take_the_place_of_a_later_register_unasked() {
        type Damage<'a> = &'a dyn Fn(&Path);
        let damages: [(&str, Damage); 3] = [
            ("no key", &|dir| fs::remove_file(dir.join("ca.key")).expect("removes")),
            ("no CA files", &|dir| {
                ["ca.key", "ca.pem"].iter().for_each(|name| fs::remove_file(dir.join(name)).expect("removes"));
            }),
            ("only the registry's copy", &|dir| {
                fs::write(dir.join(FILE), "damaged").expect("writes");
            }),
        ];
        for (what, damage) in damages {
            let (temp, escrow, key) = damaged(damage);
            let dir = temp.path().join("trust");
            let listing = || fs::read_dir(temp.path()).expect("lists").count();
            let before = listing();
            let error = restore_trust(&escrow, &key, &dir, NOW, None).expect_err(what).to_string();
            let revisions =
                [readable(&dir).expect("is readable").1.revision(), escrow.register(&key).expect("opens").revision()];
            assert!(revisions[0] > revisions[1]);
            for word in
                revisions.map(|revision| format!("revision {revision} of")).iter().map(String::as_str).chain(["web2"])
            {
                assert!(error.contains(word), "{what}: {word}: {error}");
            }
            assert_eq!(listing(), before, "{what}: nothing was changed");
            let here = restore_trust(&escrow, &key, &dir, NOW, Some(RegisterChoice::Here)).expect(what);
            assert!(here.has_kept_register && here.aside.is_some(), "{what}");
            assert_eq!(states(&dir), AFTER, "{what}");
            assert_eq!(hex(&Authority::load(&dir).expect("is restored").fingerprint()), escrow.authority, "{what}");

            let (temp, escrow, key) = damaged(damage);
            let dir = temp.path().join("trust");
            let copy = restore_trust(&escrow, &key, &dir, NOW, Some(RegisterChoice::Copy)).expect(what);
            assert_eq!(states(&dir), BEFORE, "{what}");
            let aside = copy.aside.expect("the previous one is kept");
            assert_eq!(readable(&aside).expect("is readable").1.revision(), revisions[0], "{what}");
        }
    }

    #[test]
    fn p13_a_register_that_differs_in_positions_only_stays() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let (mut register, escrow, key) = sealed(&dir);
        register.note_position(&name("web1"), Seq(7), Seq(9), NOW + 1);
        register.save(NOW + 1).expect("saves");
        fs::remove_file(dir.join("ca.key")).expect("removes");
        assert!(restore_trust(&escrow, &key, &dir, NOW, None).expect("restores").has_kept_register);
        let back = Registry::open(&dir, NOW).expect("opens");
        assert_eq!(back.member(&name("web1")).expect("is listed").applied, Some(Seq(7)));
        // A backup that is later than the existing registry is used.
        let (temp, _, key) = damaged(|_| {});
        let dir = temp.path().join("trust");
        let (mut register, authority) =
            (Registry::open(&dir, NOW).expect("opens"), Authority::load(&dir).expect("loads"));
        let later = CaBackup::seal(&dir, &authority, &mut register, NOW + 2).expect("seals");
        fs::remove_file(dir.join("ca.key")).expect("removes");
        assert!(!restore_trust(&later, &key, &dir, NOW, None).expect("restores").has_kept_register);
        assert_eq!(states(&dir), AFTER);
    }

    #[test]
    fn p13_what_is_left_of_a_register_where_the_authority_is_gone_is_kept_or_asked_about() {
        // The situation in which `recover` and `restore` find it.
        let damage = |dir: &Path| fs::remove_file(dir.join("ca.key")).expect("removes");
        let (temp, escrow, key) = damaged(damage);
        let dir = temp.path().join("trust");
        assert!(escrow.restore(&key, &dir, NOW, None).expect_err("asks").to_string().contains("--register here"));
        assert!(!dir.join("ca.key").exists());
        assert!(escrow.restore(&key, &dir, NOW, Some(RegisterChoice::Here)).expect("restores"));
        assert_eq!(states(&dir), AFTER);
        let (temp, escrow, key) = damaged(damage);
        let dir = temp.path().join("trust");
        assert!(!escrow.restore(&key, &dir, NOW, Some(RegisterChoice::Copy)).expect("restores"));
        assert_eq!(states(&dir), BEFORE);
        for name in ["members.json.left-1", "members.copy.left-1"] {
            let text = read_text(&dir.join(name)).expect("is kept");
            assert!(Registry::from_text(&text, 0).is_ok_and(|register| register.revision() > 3), "{name}");
        }
    }

    #[test]
    fn p13_a_branch_with_more_changes_and_a_later_time_is_asked_about_beside_a_sound_register_too() {
        for is_sound in [true, false] {
            let temp = tempfile::tempdir().expect("temp dir");
            let dir = temp.path().join("trust");
            let (mut register, _, key) = sealed(&dir);
            let before = read_text(&dir.join(FILE)).expect("reads");
            register.revoke(&name("web2"), NOW + 1).expect("revokes");
            // The other branch goes on from a copy of before the revocation.
            let authority = Authority::load(&dir).expect("loads");
            let mut other = Registry::from_text(&before, NOW).expect("reads");
            ["web4", "web5"].iter().for_each(|member| enrol(&mut other, &authority, member));
            (0..9).for_each(|at| drop(other.text(NOW + 10 + at).expect("text")));
            let branch = CaBackup::seal(&dir, &authority, &mut other, NOW + 30).expect("seals");
            if !is_sound {
                fs::remove_file(dir.join("ca.key")).expect("removes");
            }
            let said = restore_trust(&branch, &key, &dir, NOW + 40, None).expect_err("asks").to_string();
            for word in ["web2", "web4", "web5", "has diverged from", "--register here", "--register copy"] {
                assert!(said.contains(word), "{word}: {said}");
            }
            assert_eq!(states(&dir), AFTER, "nothing was changed");
            let done = restore_trust(&branch, &key, &dir, NOW + 40, Some(RegisterChoice::Copy)).expect("restores");
            assert!(done.aside.is_some() && states(&dir).contains(&"web2 enrolled".to_owned()));
            let mut back = Registry::open(&dir, NOW).expect("opens");
            assert!(back.relation(&register.mark()).is_some(), "the command records the choice");
            back.choose_over(&[GivenUp::of(&register)], NOW + 41).expect("chooses");
            assert_eq!(back.relation(&register.mark()), None, "the operator chose to give it up");
        }
    }

    #[test]
    fn p13_a_copy_of_another_branch_does_not_replace_a_register_for_its_higher_revision() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let (mut register, early, key) = sealed(&dir);
        for step in 1..8 {
            register.note_position(&name("web1"), Seq(step), Seq(step), NOW + step);
            register.save(NOW + step).expect("saves");
        }
        let authority = Authority::load(&dir).expect("loads");
        let late = CaBackup::seal(&dir, &authority, &mut register, NOW + 10).expect("seals");
        drop(register);
        // Restored from the early backup, after which a member was revoked.
        fs::remove_dir_all(&dir).expect("wipes");
        early.restore(&key, &dir, NOW + 20, None).expect("restores");
        Registry::open(&dir, NOW + 20).expect("opens").revoke(&name("web2"), NOW + 21).expect("revokes");
        let revisions = [readable(&dir).expect("is readable").1, late.register(&key).expect("opens")];
        assert!(
            revisions[0].revision() > revisions[1].revision(),
            "a restored registry continues with higher revisions"
        );
        fs::remove_file(dir.join("ca.key")).expect("removes");
        let said = restore_trust(&late, &key, &dir, NOW + 30, None).expect_err("asks").to_string();
        for word in ["web2", "--register here", "is later than"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(!dir.join("ca.key").exists(), "nothing was changed");
        restore_trust(&late, &key, &dir, NOW + 30, Some(RegisterChoice::Here)).expect("restores");
        assert_eq!(states(&dir), AFTER);
    }
}
