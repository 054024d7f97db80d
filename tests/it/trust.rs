use crate::fleet::Fleet;

#[test]
fn p11_a_token_is_used_once_and_a_revoked_member_is_disconnected_immediately() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let token = fleet.ok("d", &["enroll", "a", "--role", "webserver"]);
    assert_eq!(token.lines().count(), 1, "the token alone on standard output");
    fleet.ok("a", &["join", token.trim()]);
    let again = fleet.run("b", &["join", token.trim()]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("already used"), "{again:?}");
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.ok("d", &["revoke", "a"]);
    fleet.wait("the member is disconnected", || fleet.status("a")["connected"] == false);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(fleet.status("a")["connected"], false, "and does not reconnect");
    assert_eq!(fleet.ok("d", &["presence", "--json"]), "");
    assert_eq!(fleet.ok("a", &["get", "c", "k"]).trim(), "1", "it stays readable");
    // The running process adopts its new identity without a restart, also under another name, and repeatedly.
    for name in ["a", "another", "a"] {
        let token = fleet.ok("d", &["enroll", name]);
        fleet.ok("a", &["join", token.trim()]);
        fleet.wait_connected("a");
        assert!(fleet.ok("d", &["presence"]).contains(name));
        fleet.ok("d", &["revoke", name]);
        fleet.wait("it is disconnected again", || fleet.status("a")["connected"] == false);
    }
}

#[test]
fn p11_a_reader_reads_and_does_not_write() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.enroll("a", "reader");
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
    fleet.wait("it has the data", || fleet.run("a", &["get", "c", "k"]).status.success());
    let refused = fleet.run("a", &["put", "c", "mine", "--value", "1", "--no-wait"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is a reader"), "the reason is named");
    assert_eq!((fleet.status("a")["outbox"].clone(), fleet.status("d")["head"].clone()), (0.into(), 1.into()));
    assert_eq!(fleet.run("a", &["get", "c", "mine"]).status.code(), Some(1), "no data is shown");
    assert_eq!(fleet.run("a", &["compact"]).status.code(), Some(1));
    assert_eq!(fleet.run("a", &["revoke", "a"]).status.code(), Some(1));
}

#[test]
fn p07_pending_changes_of_a_member_without_write_permission_are_rejected_visibly() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    for (name, role) in [("demoted", "reader"), ("revoked", "")] {
        fleet.enroll(name, "webserver");
        let replica = fleet.replica(name);
        fleet.wait_connected(name);
        drop(replica);
        fleet.ok(name, &["put", "c", name, "--value", "1", "--no-wait"]);
        assert_eq!(fleet.status(name)["outbox"], 1);
        if role.is_empty() {
            fleet.ok("d", &["revoke", name]);
        } else {
            let token = fleet.ok("d", &["enroll", name, "--role", role, "--replace"]);
            fleet.ok(name, &["join", token.trim()]);
        }
        let _replica = fleet.replica(name);
        fleet.wait("it is on the rejected list", || fleet.status(name)["rejected"] == 1);
        assert_eq!(fleet.status(name)["outbox"], 0);
        assert_eq!(fleet.run(name, &["get", "c", name]).status.code(), Some(1), "no data is shown");
        assert!(fleet.ok(name, &["outbox"]).contains("may"), "the reason is named");
        assert_eq!(fleet.run(name, &["outbox", "retry", "--all"]).status.code(), Some(1));
        fleet.ok(name, &["outbox", "dismiss", "--all"]);
        assert_eq!(fleet.status(name)["rejected"], 0);
    }
    drop(datastore);
}

#[test]
fn files_of_trust_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let mode = |path: &str| std::fs::metadata(fleet.dir(path)).expect(path).permissions().mode() & 0o777;
    assert_eq!((mode("d/trust"), mode("d/trust/ca.key"), mode("d/trust/members.json")), (0o700, 0o600, 0o600));
    assert_eq!((mode("a/identity"), mode("a/identity/member.json"), mode("d/ctl.sock")), (0o700, 0o600, 0o600));
    let second = fleet.spawn_datastore();
    fleet.wait("the second one gives up", || fleet.log_of("d").contains("in use by another process"));
    drop((second, datastore));
}

#[test]
fn p11_an_administrator_works_from_another_host_and_loses_that_with_the_certificate() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("admin", "admin");
    let token = fleet.ok("admin", &["enroll", "web9", "--role", "webserver"]);
    fleet.ok("web9", &["join", token.trim()]);
    fleet.ok("admin", &["put", "c", "k", "--value", "1"]);
    assert_eq!(fleet.ok("admin", &["get", "c", "k"]).trim(), "1");
    assert!(fleet.ok("admin", &["members"]).contains("web9"));
    assert_eq!(fleet.status("admin")["role"], "datastore");
    fleet.ok("admin", &["compact", "--history-ops", "0"]);
    fleet.ok("admin", &["verify"]);
    fleet.ok("admin", &["revoke", "web9"]);
    fleet.ok("d", &["revoke", "admin"]);
    let refused = fleet.run("admin", &["members"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("revoked"), "{refused:?}");
}
