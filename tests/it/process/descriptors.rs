use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::fleet::Fleet;
use crate::web::Web;

/// Number of idle connections, each with a descriptor here.
const IDLE: usize = 300;

#[test]
fn p15_clients_that_use_all_connections_leave_descriptors_for_storage() {
    let mut fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    fleet.wrapper = vec!["sh", "-c", "ulimit -n 192 && exec \"$@\"", "sh"];
    let web = Web::start(&fleet, "a", &[]);
    fleet.wrapper.clear();
    let admin = web.admin(&fleet);
    admin.made("/api/dashboards", &json!({ "Name": "before", "Data": {} }));
    let mut idle: Vec<TcpStream> = Vec::new();
    for _ in 0..IDLE {
        idle.extend(TcpStream::connect_timeout(&web.address(), Duration::from_secs(5)));
    }
    // The administration socket still works, and entries from the datastore are stored.
    fleet.enroll("b", "webserver");
    let _b = fleet.replica("b");
    fleet.wait_connected("b");
    fleet.ok("b", &["put", "c", "meanwhile", "--value", "1"]);
    fleet.wait("the webserver keeps it", || fleet.run("a", &["get", "c", "meanwhile"]).status.success());
    fleet.ok("a", &["put", "c", "here", "--value", "1"]);
    assert_eq!(fleet.status("a")["healthy"], true, "{}", fleet.status("a"));
    drop(idle);
    fleet.wait("clients are served again", || web.nobody().answers());
    admin.made("/api/dashboards", &json!({ "Name": "after", "Data": {} }));
    fleet.converges(&["a", "b"]);
    datastore.terminate();
}
