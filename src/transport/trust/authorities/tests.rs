use std::os::unix::fs::PermissionsExt;

use super::super::{CaBackup, Identity, NewKey, RecoveryKey, RegisterChoice, Registry, Role, restore_trust};
use super::*;
use gravwell_model::{Digest, LogId, MemberName, Position, Seq};

const NOW: u64 = 1_800_000_000_000;

fn print(authority: &Authority) -> Fingerprint {
    authority.fingerprint()
}

fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("makes");
    for entry in fs::read_dir(from).expect("lists").map(|entry| entry.expect("entry")) {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}

fn proof_of(authority: &Authority, generation: u64, time_ms: u64) -> Proof {
    let (log_id, generation, seq) = (LogId([1; 16]), Generation(generation), Seq(7));
    let position = Position { log_id, generation, seq, chain: [4; 16], digest: Digest::ZERO };
    Proof::sign(authority, position, time_ms).expect("signs")
}

#[test]
fn p11_each_step_of_a_rotation_is_whole() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("trust");
    let first = Authorities::open_or_create(&dir, NOW).expect("makes");
    assert!(
        Authorities::finish(&dir, Generation(1), NOW).is_err() && Authorities::abort(&dir, Generation(1), NOW).is_err()
    );
    assert_eq!(first.stamp(), "");
    let old = print(first.current());

    let begun = Authorities::begin(&dir, NOW).expect("begins");
    let new = print(begun.next().expect("a next CA"));
    assert_eq!((print(begun.current()), Authorities::is_rotating(&dir)), (old, true));
    assert_eq!(Authorities::begin(&dir, NOW).expect("resumes").next().map(print), Some(new), "the same each time");
    for name in [NEXT_KEY, NEXT_CERTIFICATE] {
        assert_eq!(fs::metadata(dir.join(name)).expect("file exists").permissions().mode() & 0o777, 0o600, "{name}");
    }
    let back = Authorities::abort(&dir, Generation(1), NOW).expect("aborts");
    assert_eq!((print(back.current()), back.next().is_none(), dir.join(NEXT_KEY).exists()), (old, true, false));
    assert_ne!(back.stamp(), begun.stamp());

    let third = print(Authorities::begin(&dir, NOW).expect("begins again").next().expect("a next CA"));
    assert_ne!(third, new);
    let done = Authorities::finish(&dir, Generation(1), NOW + 5).expect("ends");
    assert_eq!((print(done.current()), done.next().is_none()), (third, true));
    let former: Vec<_> = done.former().iter().map(|former| (fingerprint(&former.certificate), former.end)).collect();
    assert_eq!(former, [(old, End::Replaced), (new, End::TakenBack)]);
    assert_eq!(print(Authorities::load(&dir).expect("loads").current()), third);
}

#[test]
fn p13_a_rotation_that_is_interrupted_at_any_file_leaves_the_state_before_or_after() {
    let temp = tempfile::tempdir().expect("temp dir");
    let (kept, done, back) = (temp.path().join("kept"), temp.path().join("done"), temp.path().join("back"));
    let first = print(Authorities::open_or_create(&kept, NOW).expect("makes").current());
    let bare = temp.path().join("bare");
    copied(&kept, &bare);
    let next = print(Authorities::begin(&kept, NOW).expect("begins").next().expect("a next CA"));
    copied(&kept, &done);
    copied(&kept, &back);
    Authorities::finish(&done, Generation(1), NOW).expect("ends");
    Authorities::abort(&back, Generation(1), NOW).expect("aborts");
    let put = |from: &Path, to: &Path, name: &str| {
        fs::copy(from.join(name), to.join(name)).expect("copies");
    };
    type Step<'a> = Box<dyn Fn(&Path) + 'a>;
    let rename = |from: &'static str, to: &'static str| -> Step<'static> {
        Box::new(move |dir: &Path| fs::rename(dir.join(from), dir.join(to)).expect("renames"))
    };
    let remove = |name: &'static str| -> Step<'static> {
        Box::new(move |dir: &Path| fs::remove_file(dir.join(name)).expect("removes"))
    };
    // Name, initial directory, steps, number of steps after which it counts as done, and the expected CAs.
    type Case<'a> = (&'a str, &'a Path, Vec<Step<'a>>, usize, Fingerprint, Option<Fingerprint>);
    let cases: [Case<'_>; 3] = [
        (
            "begin",
            &bare,
            vec![
                Box::new(|dir: &Path| {
                    fs::copy(kept.join(NEXT_CERTIFICATE), dir.join(NEXT_MADE)).expect("copies");
                }),
                Box::new(|dir: &Path| put(&kept, dir, NEXT_KEY)),
                rename(NEXT_MADE, NEXT_CERTIFICATE),
            ],
            3,
            first,
            Some(next),
        ),
        (
            "finish",
            &kept,
            vec![
                Box::new(|dir: &Path| put(&done, dir, FORMER)),
                rename(NEXT_KEY, KEY),
                rename(NEXT_CERTIFICATE, CERTIFICATE),
            ],
            2,
            next,
            None,
        ),
        (
            "abort",
            &kept,
            vec![Box::new(|dir: &Path| put(&back, dir, FORMER)), remove(NEXT_CERTIFICATE), remove(NEXT_KEY)],
            2,
            first,
            None,
        ),
    ];
    for (what, from, steps, counts, current, waiting) in cases {
        for count in 0..=steps.len() {
            let dir = temp.path().join(format!("{what}-{count}"));
            copied(from, &dir);
            steps[..count].iter().for_each(|step| step(&dir));
            let before = (first, (what != "begin").then_some(next));
            let expected = if count >= counts { (current, waiting) } else { before };
            let state = |found: &Authorities| (print(found.current()), found.next().map(print));
            let looked = Authorities::load(&dir).expect("loads");
            assert_eq!(state(&looked), expected, "{what}, {count} steps");
            assert_eq!(Authorities::is_rotating(&dir), expected.1.is_some(), "{what}, {count} steps");
            // The CA alone, as recovery reads it.
            assert_eq!(Authority::load(&dir).expect("loads").fingerprint(), expected.0, "{what}, {count} steps");
            let opened = Authorities::open_or_create(&dir, NOW).expect("opens");
            assert_eq!(state(&opened), expected, "{what}, {count} steps");
            // All later operations succeed.
            let begun = Authorities::begin(&dir, NOW).expect("begins");
            assert_eq!(print(begun.current()), expected.0, "{what}, {count} steps");
            let ended = Authorities::finish(&dir, Generation(1), NOW).expect("ends");
            assert_eq!(Some(print(ended.current())), begun.next().map(print), "{what}, {count} steps");
        }
    }
}

#[test]
fn p13_a_replaced_authority_vouches_for_its_own_time_alone() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("trust");
    let old = Authorities::open_or_create(&dir, NOW).expect("makes");
    let proofs =
        [proof_of(old.current(), 3, NOW), proof_of(old.current(), 4, NOW), proof_of(old.current(), 3, NOW + 6)];
    let begun = Authorities::begin(&dir, NOW).expect("begins");
    assert!(proofs.iter().all(|proof| begun.has_signed(proof)));
    let next = proof_of(begun.next().expect("a next CA"), 9, NOW + 9);
    assert!(begun.has_signed(&next));
    let done = Authorities::finish(&dir, Generation(3), NOW + 5).expect("ends");
    let signed = [&proofs[0], &proofs[1], &proofs[2], &next].map(|proof| done.has_signed(proof));
    assert_eq!(
        signed,
        [true, false, false, true],
        "current ones of its time, a later generation and a later time, and the present one"
    );
    // A CA whose rotation was aborted never signed a position.
    let begun = Authorities::begin(&dir, NOW).expect("begins");
    let taken_back = proof_of(begun.next().expect("a next CA"), 1, NOW);
    let back = Authorities::abort(&dir, Generation(3), NOW + 7).expect("aborts");
    assert!(!back.has_signed(&taken_back) && back.has_signed(&proofs[0]));
    let other = Authorities::open_or_create(&temp.path().join("other"), NOW).expect("makes");
    assert!(!back.has_signed(&proof_of(other.current(), 1, NOW)));
}

#[test]
fn p13_a_sealed_copy_brings_a_rotation_back_and_never_mixes_two() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("trust");
    let mut register = Registry::open(&dir, NOW).expect("register");
    register.establish(NOW).expect("writes");
    Authorities::open_or_create(&dir, NOW).expect("makes");
    let key = RecoveryKey::open_or_create(&dir).expect("key");
    let mut seal = |here: &Authorities| CaBackup::seal(&dir, here.current(), &mut register, NOW).expect("seals");
    let before = seal(&Authorities::load(&dir).expect("loads"));
    let begun = Authorities::begin(&dir, NOW).expect("begins");
    let during = seal(&begun);
    let done = Authorities::finish(&dir, Generation(1), NOW).expect("ends");
    assert!(
        CaBackup::seal(&dir, begun.current(), &mut Registry::default(), NOW).is_err(),
        "a backup requires the current CA"
    );
    let after =
        CaBackup::seal(&dir, done.current(), &mut Registry::open(&dir, NOW).expect("opens"), NOW).expect("seals");
    let stamps = [&before, &during, &after].map(|escrow| escrow.stamp.clone());
    assert!(stamps[0] != stamps[1] && stamps[1] != stamps[2], "{stamps:?}");
    for (escrow, current, next, former) in [
        (&before, begun.current(), None, 0),
        (&during, begun.current(), begun.next(), 0),
        (&after, done.current(), None, 1),
    ] {
        // Leftover files of the other phases are not mistaken for a part of this one.
        let left = temp.path().join(format!("left-{}-{former}", u8::from(next.is_some())));
        copied(&dir, &left);
        fs::write(left.join(NEXT_KEY), "left").expect("writes");
        fs::write(left.join(NEXT_CERTIFICATE), "left").expect("writes");
        fs::remove_file(left.join(KEY)).expect("removes");
        escrow.restore(&key, &left, NOW, None).expect("restores");
        let back = Authorities::load(&left).expect("loads");
        assert_eq!((print(back.current()), back.next().map(print)), (print(current), next.map(print)));
        assert_eq!(back.former().len(), former);
    }
    // Backups from other phases are distinguished from those of another datastore.
    assert!(after.check_same(&dir).is_ok());
    let said = before.check_same(&dir).expect_err("is a former CA").to_string();
    assert!(said.contains("which was replaced at"), "{said}");
    let rotating = temp.path().join("rotating");
    during.restore(&key, &rotating, NOW, None).expect("restores");
    let said = after.check_same(&rotating).expect_err("is a later CA").to_string();
    assert!(said.contains("from after this rotation"), "{said}");
    fs::remove_file(rotating.join(NEXT_KEY)).expect("removes");
    assert!(Authorities::load(&rotating).is_err(), "a next certificate without its key is corrupt");
    restore_trust(&during, &key, &rotating, NOW, None).expect("restores");
    assert_eq!(Authorities::load(&rotating).expect("loads").next().map(print), begun.next().map(print));
}

#[test]
fn p13_half_of_the_new_authority_is_damage_is_never_overwritten_and_comes_back_from_a_sealed_copy() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("trust");
    let mut register = Registry::open(&dir, NOW).expect("register");
    register.establish(NOW).expect("writes");
    let first = Authorities::open_or_create(&dir, NOW).expect("makes");
    let key = RecoveryKey::open_or_create(&dir).expect("key");
    let before = CaBackup::seal(&dir, first.current(), &mut register, NOW).expect("seals");
    let begun = Authorities::begin(&dir, NOW).expect("begins");
    let name = MemberName::new("web1").expect("name");
    let request = NewKey::generate(&name).expect("a key").request_der;
    let secret = register.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
    register.redeem(begun.next().expect("a next CA"), &name, &secret, &request, 30, NOW).expect("joins");
    let during = CaBackup::seal(&dir, begun.current(), &mut register, NOW).expect("seals");
    register.save(NOW).expect("saves");
    let lost: [&[&str]; 3] = [&[NEXT_CERTIFICATE], &[NEXT_KEY], &[NEXT_KEY, NEXT_CERTIFICATE]];
    for (number, lost) in lost.into_iter().enumerate() {
        let half = temp.path().join(format!("half-{number}"));
        copied(&dir, &half);
        lost.iter().for_each(|name| fs::remove_file(half.join(name)).expect("removes"));
        let kept = fs::read(half.join(NEXT_KEY)).ok();
        if lost.len() == 1 {
            let found = Authorities::load(&half).err().expect("is corrupt");
            assert!(matches!(&found, TrustError::Damaged { path, .. } if path.ends_with(lost[0])), "{found}");
            assert!(Authorities::open_or_create(&half, NOW).is_err() && Authorities::begin(&half, NOW).is_err());
        }
        assert_eq!(fs::read(half.join(NEXT_KEY)).ok(), kept);
        let refused = restore_trust(&before, &key, &half, NOW, None);
        assert!(refused.is_err(), "a backup from another time");
        restore_trust(&during, &key, &half, NOW, Some(RegisterChoice::Here)).expect("restores");
        let back = Authorities::load(&half).expect("loads");
        assert_eq!(back.next().map(print), begun.next().map(print), "{lost:?}");
        assert!(
            Registry::open(&half, NOW)
                .expect("opens")
                .is_in_use(&authority_name(&print(back.next().expect("is restored"))))
        );
    }
    // The leftover key of an aborted rotation is not corruption, and existing files are never overwritten.
    let ended = temp.path().join("ended");
    copied(&dir, &ended);
    Authorities::abort(&ended, Generation(1), NOW).expect("aborts");
    fs::copy(dir.join(NEXT_KEY), ended.join(NEXT_KEY)).expect("copies");
    assert!(Authorities::load(&ended).expect("loads").next().is_none());
    assert!(
        Authorities::begin(&ended, NOW)
            .expect("starts again")
            .next()
            .is_some_and(|next| print(next) != print(begun.next().expect("a next CA")))
    );
}

#[test]
fn p13_a_recovery_key_alone_comes_back_with_a_sealed_copy() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("trust");
    let mut register = Registry::open(&dir, NOW).expect("register");
    register.establish(NOW).expect("writes");
    let here = Authorities::open_or_create(&dir, NOW).expect("makes");
    let copy = CaBackup::seal(&dir, here.current(), &mut register, NOW).expect("seals");
    let key = RecoveryKey::open_or_create(&dir).expect("key");
    assert!(restore_trust(&copy, &key, &dir, NOW, None).expect_err("valid").to_string().contains("are valid"));
    fs::remove_file(dir.join("recovery.key")).expect("removes");
    let done = restore_trust(&copy, &key, &dir, NOW, None).expect("restores");
    assert!(done.is_key_alone && done.aside.is_none());
    assert_eq!(RecoveryKey::open_or_create(&dir).expect("key"), key);
}

#[test]
fn p15_a_damaged_list_of_former_authorities_is_named() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("trust");
    Authorities::begin(&dir, NOW).expect("begins");
    let done = Authorities::finish(&dir, Generation(1), NOW).expect("ends");
    let good = fs::read(dir.join(FORMER)).expect("reads");
    for at in (0..good.len() - 1).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        write_private(&dir.join(FORMER), &bad).expect("writes");
        let found = Authorities::load(&dir).map(|found| found.former().len());
        assert!(matches!(found, Err(TrustError::Damaged { .. })), "byte {at}");
    }
    write_private(&dir.join(FORMER), &good).expect("writes");
    assert_eq!(Authorities::load(&dir).expect("loads").stamp(), done.stamp());
}

#[test]
fn p11_a_member_trusts_a_new_root_only_on_the_word_of_one_that_it_trusts() {
    let temp = tempfile::tempdir().expect("temp dir");
    let (trust, home) = (temp.path().join("trust"), temp.path().join("web1"));
    let here = Authorities::open_or_create(&trust, NOW).expect("makes");
    let name = MemberName::new("web1").expect("name");
    let key = NewKey::generate(&name).expect("a key");
    let certificate = here.current().sign_member(&key.request_der, &name, Role::Webserver, 30, NOW).expect("signs");
    let root = here.current().certificate();
    let mut identity =
        Identity::create(&home, name.clone(), Role::Webserver, vec![], root, &certificate, &key).expect("makes");
    let begun = Authorities::begin(&trust, NOW).expect("begins");
    let told = begun.roots(|_| false).expect("roots");
    let prints =
        |identity: &Identity| identity.roots().expect("roots").iter().map(|root| fingerprint(root)).collect::<Vec<_>>();
    let (old, new) = (print(begun.current()), print(begun.next().expect("a next CA")));

    // The root of another datastore is not trusted, whatever signature it carries.
    let other = Authorities::begin(&temp.path().join("other"), NOW).expect("begins");
    let foreign = other.roots(|_| false).expect("roots");
    assert!(identity.adopt_roots(&foreign).is_err());
    let stolen = [foreign[0].clone(), Link { word: told[1].word.clone(), ..foreign[1].clone() }];
    assert!(identity.adopt_roots(&stolen).is_err());
    assert!(
        !identity.adopt_roots(&[vec![told[0].clone()], foreign.clone()].concat()).expect("keeps"),
        "no root is new"
    );
    assert_eq!(prints(&identity), [old]);

    assert!(identity.adopt_roots(&told).expect("takes"));
    assert!(!identity.adopt_roots(&told).expect("takes"), "the same");
    assert_eq!(prints(&Identity::load(&home).expect("loads")), [old, new]);
    assert_eq!([&old, &new].map(|print| identity.is_issued_by(print).expect("decodes")), [Some(true), Some(false)]);
    assert_eq!(identity.is_issued_by(&print(other.current())).expect("decodes"), None);
    let done = Authorities::finish(&trust, Generation(1), NOW).expect("ends");
    assert!(identity.adopt_roots(&done.roots(|_| false).expect("roots")).expect("takes"));
    assert_eq!(prints(&Identity::load(&home).expect("loads")), [new]);

    // A CA whose rotation was aborted stays trusted while a member has a certificate from it.
    let third = Authorities::begin(&trust, NOW).expect("begins").next().map(print).expect("a next CA");
    let back = Authorities::abort(&trust, Generation(1), NOW).expect("aborts");
    let in_use = authority_name(&third);
    assert!(identity.adopt_roots(&back.roots(|name| name == in_use).expect("roots")).expect("takes"));
    assert_eq!(prints(&identity), [new, third]);
    assert!(identity.adopt_roots(&back.roots(|_| false).expect("roots")).expect("takes"));
    assert_eq!(prints(&identity), [new]);
}
