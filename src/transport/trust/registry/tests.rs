use super::*;
use crate::trust::Roster;
use gravwell_model::address::{EXTERNAL_ADDR_BYTES_MAX, HOST_BYTES_MAX};
use gravwell_model::codec::report_limits::{HOSTS_BYTES_MAX, HOSTS_MAX};
use rcgen::{CertificateParams, KeyPair};

const NOW: u64 = 1_800_000_000_000;

fn request() -> Vec<u8> {
    let key = KeyPair::generate().expect("key");
    CertificateParams::default().serialize_request(&key).expect("request").der().to_vec()
}

fn name() -> MemberName {
    MemberName::new("web1").expect("name")
}

fn open() -> (tempfile::TempDir, Authority, Registry) {
    let temp = tempfile::tempdir().expect("temp dir");
    let registry = Registry::open(temp.path(), NOW).expect("registry");
    let authority = Authority::open_or_create(temp.path(), NOW).expect("authority");
    (temp, authority, registry)
}

#[test]
fn p11_a_token_works_once_and_not_too_late() {
    let (temp, authority, mut registry) = open();
    let secret = registry.invite(&name(), Role::Webserver, 1000, NOW, false).expect("invites");
    let late = registry.redeem(&authority, &name(), &secret, &request(), 90, NOW + 1000);
    assert!(late.expect_err("late").to_string().contains("expired"));
    assert!(registry.redeem(&authority, &name(), &[0; 32], &request(), 90, NOW).is_err(), "wrong secret");
    let (certificate, role) = registry.redeem(&authority, &name(), &secret, &request(), 90, NOW).expect("first use");
    assert_eq!(role, Role::Webserver);
    assert!(registry.redeem(&authority, &name(), &secret, &request(), 90, NOW).is_err(), "second use");
    let mut again = Registry::open(temp.path(), NOW).expect("reopens");
    assert_eq!(again.authorise(&certificate, NOW), Ok((name(), Role::Webserver)));
    assert_eq!(again.authorise(&certificate, NOW + 91 * MS_PER_DAY), Err(Refusal::Expired(name())));
    again.revoke(&name(), NOW).expect("revokes");
    assert_eq!(again.authorise(&certificate, NOW), Err(Refusal::Revoked(name())));
    again.remove(&name(), NOW).expect("removes");
    assert_eq!(again.authorise(&certificate, NOW), Err(Refusal::Unknown));
}

#[test]
fn p11_an_invitation_does_not_revive_a_revoked_certificate() {
    let (temp, authority, mut registry) = open();
    let secret = registry.invite(&name(), Role::Webserver, 1000, NOW, false).expect("invites");
    let (stolen, _) = registry.redeem(&authority, &name(), &secret, &request(), 90, NOW).expect("joins");
    registry.revoke(&name(), NOW).expect("revokes");
    let secret = registry.invite(&name(), Role::Webserver, 1000, NOW, false).expect("invites again");
    assert_eq!(registry.authorise(&stolen, NOW), Err(Refusal::Unknown));
    let mut again = Registry::open(temp.path(), NOW).expect("reopens");
    assert_eq!(again.authorise(&stolen, NOW), Err(Refusal::Unknown));
    let (fresh, _) = again.redeem(&authority, &name(), &secret, &request(), 90, NOW).expect("joins");
    assert!(again.authorise(&fresh, NOW).is_ok());
    assert_eq!(again.authorise(&stolen, NOW), Err(Refusal::Unknown));
}

#[test]
fn a_renewed_certificate_replaces_the_old_one_when_used() {
    let (_temp, authority, mut registry) = open();
    let secret = registry.invite(&name(), Role::Reader, 1000, NOW, false).expect("invites");
    let (old, _) = registry.redeem(&authority, &name(), &secret, &request(), 90, NOW).expect("joins");
    let new = registry.renew(&authority, &name(), &request(), 90, NOW).expect("renews");
    assert!(registry.authorise(&old, NOW).is_ok(), "the new one may not have arrived");
    assert!(registry.authorise(&new, NOW).is_ok());
    assert_eq!(registry.authorise(&old, NOW), Err(Refusal::Unknown));
}

#[test]
fn p10_a_damaged_register_is_named_never_emptied() {
    let (temp, _authority, mut registry) = open();
    registry.invite(&name(), Role::Reader, 1000, NOW, false).expect("invites");
    let path = temp.path().join(FILE);
    let good = std::fs::read(&path).expect("read");
    // The newline at the end has no meaning.
    for at in (0..good.len() - 1).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).expect("write");
        assert!(Registry::open(temp.path(), NOW).is_err(), "byte {at}");
    }
}

fn enrolled(registry: &mut Registry, name: &MemberName, role: Role) {
    registry.invite(name, role, 1000, NOW, false).expect("invites");
    registry.enrol(name, role, name.as_str().as_bytes(), 90, NOW).expect("enrols");
}

/// A registry of [`MEMBERS_MAX`] members, each with the longest accepted values.
fn largest() -> Registry {
    let mut registry = Registry::default();
    for number in 0..MEMBERS_MAX {
        let name = MemberName::new(format!("{number:0>63}")).expect("name");
        let certificate = |byte: char| Certificate {
            fingerprint: byte.to_string().repeat(64),
            expires_ms: u64::MAX,
            issuer: Some("a".repeat(16)),
            is_held: true,
        };
        let external_addr = Some(format!("{}:65535", "a".repeat(HOST_BYTES_MAX)));
        let member = Member {
            name: name.clone(),
            role: Role::Webserver,
            state: MemberState::Enrolled,
            applied: Some(Seq(u64::MAX)),
            passed: Some(Seq(u64::MAX)),
            advanced_ms: Some(u64::MAX),
            last_seen_ms: Some(u64::MAX),
            enrolled_ms: Some(u64::MAX),
            revoked_ms: Some(u64::MAX),
            certificates: vec![certificate('a'), certificate('b')],
            invite: None,
            external_addr,
            contradiction: None,
            enrolled_in: Some(LogId([7; 16])),
            copy_keys: None,
        };
        registry.contents.members.insert(name, member);
    }
    registry
}

#[test]
fn p15_the_largest_roster_that_the_bounds_allow_fits_into_one_message() {
    let mut roster = largest().roster();
    for member in &mut roster.members {
        // The announced hosts, plus the address from which the datastore sees the member.
        let host = "a".repeat(HOSTS_BYTES_MAX / HOSTS_MAX);
        member.peer_addresses = vec![format!("{host}:65535"); HOSTS_MAX];
        member.peer_addresses.push(format!("[{}]:65535", "ffff:".repeat(7) + "ffff"));
        member.external_addr = Some("a".repeat(EXTERNAL_ADDR_BYTES_MAX));
    }
    let encoded = roster.encode();
    assert!(encoded.len() <= crate::trust::ROSTER_BYTES_MAX, "{} bytes", encoded.len());
    assert_eq!(Roster::decode(&encoded), Ok(roster));
}

#[test]
fn p15_the_register_takes_no_more_members_than_a_roster_can_name() {
    let mut registry = largest();
    let name = MemberName::new("one-more").expect("name");
    let refused = registry.invite(&name, Role::Reader, 1000, NOW, false).expect_err("the registry is full");
    assert!(refused.to_string().contains("--remove"), "{refused}");
    let former = registry.members().next().expect("a member").name.clone();
    registry.invite(&former, Role::Reader, 1000, NOW, true).expect("an existing member is invited again");
    registry.remove(&former, NOW).expect("removes");
    registry.invite(&name, Role::Reader, 1000, NOW, false).expect("there is space again");
}

#[test]
fn p15_an_address_beyond_the_bounds_in_an_earlier_register_is_shown_and_stays_small() {
    for wrong in ["\u{1}".repeat(1 << 20), "a\nb:1".into(), "https://web1/".into()] {
        let mut registry = Registry::default();
        enrolled(&mut registry, &name(), Role::Webserver);
        registry.note_address(&name(), Some(&wrong));
        let mut back = Registry::from_text(&registry.text(NOW).expect("text"), NOW).expect("opens");
        let shown = back.member(&name()).and_then(|member| member.external_addr.clone()).expect("is stored");
        assert!(shown.contains(&format!("({} bytes)", wrong.len())), "{shown}");
        assert!(shown.len() < 300 && shown.chars().all(printable::is_printable), "{shown}");
        assert!(back.text(NOW).expect("text").len() < 2000);
        back.note_address(&name(), Some("web1:443"));
        let again = Registry::from_text(&back.text(NOW).expect("text"), NOW).expect("opens");
        assert_eq!(again.member(&name()).and_then(|member| member.external_addr.as_deref()), Some("web1:443"));
    }
}

#[test]
fn p15_no_member_pins_the_floor_with_a_position_that_does_not_rise() {
    const RETENTION: u64 = 1000;
    let (reader, web) = (MemberName::new("reader").expect("name"), name());
    let head = Seq(100);
    let mut registry = Registry::default();
    enrolled(&mut registry, &reader, Role::Reader);
    registry.note_position(&reader, Seq(1), head, NOW);
    assert_eq!(registry.floor(NOW, RETENTION, head), head, "a reader does not pin it");
    registry.set_floor_policy(FloorPolicy { readers: true, lag_ops_max: u64::MAX });
    assert_eq!(registry.floor(NOW, RETENTION, head), Seq(1), "unless the operator configures it");
    registry.set_floor_policy(FloorPolicy::default());

    enrolled(&mut registry, &web, Role::Webserver);
    registry.note_position(&web, Seq(50), head, NOW);
    registry.note_position(&web, Seq(1), head, NOW);
    assert_eq!(registry.floor(NOW, RETENTION, head), Seq(50), "a position does not go back");
    assert_eq!(registry.member(&web).and_then(|member| member.applied), Some(Seq(1)), "but is displayed");
    for later in (0..=RETENTION).step_by(100) {
        registry.note_position(&web, Seq(1), head, NOW + later);
    }
    assert_eq!(registry.floor(NOW + RETENTION, RETENTION, head), Seq(50));
    assert_eq!(registry.floor(NOW + RETENTION + 1, RETENTION, head), head, "it is connected but does not advance");
    registry.note_position(&web, Seq(51), head, NOW + RETENTION + 1);
    assert_eq!(registry.floor(NOW + RETENTION + 1, RETENTION, head), Seq(51), "it advances again");
    registry.set_floor_policy(FloorPolicy { readers: false, lag_ops_max: 48 });
    assert_eq!(registry.floor(NOW + RETENTION + 1, RETENTION, head), head, "it is too far behind");
    // A caught-up member never counts as stalled, however long nothing is written.
    registry.set_floor_policy(FloorPolicy::default());
    registry.note_position(&web, head, head, NOW);
    registry.note_position(&web, head, head, NOW + 10 * RETENTION);
    assert_eq!(registry.floor(NOW + 10 * RETENTION + 1, RETENTION, Seq(200)), head);
    for role in [Role::Admin, Role::Balancer] {
        let other = MemberName::new(role.to_string()).expect("name");
        enrolled(&mut registry, &other, role);
        registry.note_position(&other, Seq(1), Seq(200), NOW + 10 * RETENTION);
        assert_eq!(registry.floor(NOW + 10 * RETENTION + 1, RETENTION, Seq(200)), head, "{role}");
    }
}

#[test]
fn p04_the_floor_waits_for_members_that_count() {
    let (temp, authority, mut registry) = open();
    let head = Seq(100);
    assert_eq!(registry.floor(NOW, 1000, head), head);
    let secret = registry.invite(&name(), Role::Webserver, 1000, NOW, false).expect("invites");
    registry.redeem(&authority, &name(), &secret, &request(), 90, NOW).expect("joins");
    assert_eq!(registry.floor(NOW, 1000, head), head, "never connected");
    registry.note_position(&name(), Seq(40), head, NOW);
    assert_eq!(registry.floor(NOW + 1000, 1000, head), Seq(40));
    assert_eq!(registry.floor(NOW + 1001, 1000, head), head, "silent for longer than the retention");
    registry.note_position(&name(), Seq(40), head, NOW);
    registry.save(NOW + 400).expect("saves");
    let back = Registry::open(temp.path(), NOW + 90_000).expect("reopens");
    assert_eq!(
        back.floor(NOW + 90_500, 1000, head),
        Seq(40),
        "no member could be contacted while the datastore was down"
    );
    assert_eq!(back.floor(NOW + 90_700, 1000, head), head);
    // Holds after any number of restarts, and contact between them counts.
    let mut back = back;
    for number in 1..4_u64 {
        back.note_log(LogMark { log_id: LogId([7; 16]), generation: Generation(1), seq: Seq(number) });
        back.save(NOW + 90_000 * number + 100).expect("saves");
        back = Registry::open(temp.path(), NOW + 90_000 * (number + 1)).expect("reopens");
        let running = number * 100;
        assert_eq!(back.floor(NOW + 90_000 * (number + 1) + 500 - running, 1000, head), Seq(40), "start {number}");
        assert_eq!(back.floor(NOW + 90_000 * (number + 1) + 700 - running, 1000, head), head, "start {number}");
    }
    registry.revoke(&name(), NOW).expect("revokes");
    assert_eq!(registry.floor(NOW, 1000, head), head);
}

#[test]
fn p11_a_token_is_good_for_a_year_at_most() {
    let (_temp, _authority, mut registry) = open();
    for ttl_ms in [u64::MAX, super::TOKEN_LIFE_MAX_MS + 1] {
        let refused = registry.invite(&name(), Role::Webserver, ttl_ms, NOW, false).expect_err("too long").to_string();
        assert!(refused.contains("a year at most"), "{refused}");
    }
    registry.invite(&name(), Role::Webserver, super::TOKEN_LIFE_MAX_MS, u64::MAX - 5, false).expect("a wrong clock");
}

#[test]
fn p13_a_register_that_is_older_than_its_copy_is_not_believed() {
    let (temp, _authority, mut registry) = open();
    registry.invite(&name(), Role::Webserver, 1000, NOW, false).expect("invites");
    let (file, copy) = (temp.path().join(FILE), temp.path().join(COPY));
    let old = std::fs::read(&file).expect("reads");
    registry.revoke(&name(), NOW).expect("revokes");
    let new = std::fs::read(&file).expect("reads");
    // A crash between the two writes leaves an older copy.
    std::fs::write(&copy, &old).expect("writes");
    Registry::open(temp.path(), NOW).expect("the file was written first");
    std::fs::write(&copy, &new).expect("writes");
    std::fs::write(&file, &old).expect("writes");
    let refused = Registry::open(temp.path(), NOW).err().expect("refused").to_string();
    assert!(refused.contains("older") && refused.contains("mv "), "{refused}");
    // When the registry is rejected, its copy still shows who was revoked.
    let readable = crate::trust::readable_register(temp.path()).expect("the copy is readable");
    assert_eq!(readable.member(&name()).map(|member| member.state), Some(MemberState::Revoked));
    std::fs::rename(&copy, &file).expect("follows the remedy");
    let found = Registry::open(temp.path(), NOW).expect("the newer registry");
    assert!(found.members().all(|member| member.state == MemberState::Revoked));
}
