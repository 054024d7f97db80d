//! Slow, unauthenticated clients of a webserver.

use std::cell::RefCell;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::fleet::Fleet;
use crate::web::Web;

/// More connections than the webserver has descriptors, from many addresses.
const STRANGERS: usize = 250;

/// Connects from a distinct loopback address.
fn connect(number: usize, to: SocketAddr) -> Option<TcpStream> {
    let [high, low] = u16::try_from(number / 2).expect("few").to_be_bytes();
    let from = SocketAddr::from((Ipv4Addr::new(127, 7, high, low.max(2)), 0));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.bind(&from.into()).ok()?;
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).ok()?;
    Some(socket.into())
}

struct EndAtDrop<'a>(&'a AtomicBool);

impl Drop for EndAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn p15_slow_unauthenticated_clients_block_no_user() {
    let mut fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    fleet.wrapper = vec!["sh", "-c", "ulimit -n 256 && exec \"$@\"", "sh"];
    let web = Web::start(&fleet, "a", &[]);
    fleet.wrapper.clear();
    let admin = web.admin(&fleet);
    let starts: [&[u8]; 3] = [
        b"POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{",
        b"GET /api/health HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"PUT /api/resources/x/raw HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n",
    ];
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Closed connections are reopened, so the attack continues.
            let mut held: Vec<Option<TcpStream>> = (0..STRANGERS).map(|_| None).collect();
            while !is_over.load(Ordering::Relaxed) {
                for (number, slot) in held.iter_mut().enumerate() {
                    let sent = match slot {
                        Some(stream) => stream.write_all(b"a").is_ok(),
                        None => false,
                    };
                    if !sent {
                        *slot = connect(number, web.address());
                        let start = starts[number % starts.len()];
                        let _ = slot.as_mut().map(|stream| stream.write_all(start));
                    }
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        // Also ends the attack when a later assertion fails.
        let _end = EndAtDrop(&is_over);
        for number in 0..20 {
            fleet.wait("signed-in users are served", || {
                let name = format!("made nevertheless {number}");
                admin
                    .try_post("/api/dashboards", &json!({ "Name": name, "Data": {} }))
                    .is_some_and(|status| status == 200)
            });
            fleet.wait("another user signs in", || {
                let credentials = json!({ "User": "admin", "Pass": crate::web::ADMIN_PASSWORD });
                web.nobody().try_post("/api/login", &credentials).is_some_and(|status| status == 200)
            });
        }
    });
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.wait("replication continues", || fleet.run("a", &["get", "c", "k"]).status.success());
}

#[test]
fn p15_bodies_of_one_user_leave_room_for_those_of_others() {
    const LENGTH: usize = 32 << 20;
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "open sesame now" }));
    let bob = web.login("bob", "open sesame now");
    // Two request bodies of which only the end is missing.
    let hold = || {
        let mut stream = TcpStream::connect(web.address()).expect("connects");
        let head = format!(
            "POST /api/dashboards HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {LENGTH}\r\n\r\n",
            admin.token()
        );
        stream.write_all(head.as_bytes()).expect("sends");
        stream.write_all(&vec![b' '; LENGTH - (256 << 10)]).expect("sends");
        stream
    };
    let large = json!({ "Name": "large", "Data": { "text": "x".repeat(700 << 10) } });
    let held = RefCell::new(None);
    fleet.wait("one user has reached the limit", || {
        // The probe may be admitted before the held bodies use up the limit, so the attempt is repeated.
        held.replace(Some([hold(), hold()]));
        std::thread::sleep(Duration::from_secs(1));
        admin.post("/api/dashboards", &large).status == 429
    });
    assert_eq!(bob.post("/api/dashboards", &large).status, 200);
    assert_eq!(admin.get("/api/dashboards").status, 200);
    drop(held);
    fleet.wait("connections are accepted again", || admin.post("/api/dashboards", &large).status == 200);
}
