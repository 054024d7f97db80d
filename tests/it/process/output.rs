use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{OFlags, fcntl_setfl};
use serde_json::json;

use crate::fleet::Fleet;
use crate::web::Web;

/// Target of standard output and standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlet {
    FullDisk,
    ClosedPipe,
    /// The reader stops reading but keeps the pipe open.
    UnreadPipe,
    /// The reader closes the pipe once both programs run.
    ClosesLater,
}

type Readers = Arc<Mutex<Vec<PipeReader>>>;

fn open(outlet: Outlet, readers: &Readers) -> OwnedFd {
    if outlet == Outlet::FullDisk {
        return File::options().write(true).open("/dev/full").expect("/dev/full").into();
    }
    let (reader, mut writer) = pipe().expect("a pipe");
    if outlet == Outlet::UnreadPipe {
        fill(&mut writer);
    }
    if outlet != Outlet::ClosedPipe {
        readers.lock().expect("readers").push(reader);
    }
    writer.into()
}

/// Fills a pipe, so that the next write blocks.
fn fill(writer: &mut PipeWriter) {
    fcntl_setfl(&writer, OFlags::NONBLOCK).expect("sets");
    while writer.write(&[b'.'; 512]).is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).expect("sets");
}

/// Checks that both programs work, including everything that produces output.
fn everything_works(outlet: Outlet) {
    let readers = Readers::default();
    let kept = Arc::clone(&readers);
    let mut fleet = Fleet::new();
    fleet.outlet = Some(Box::new(move || open(outlet, &kept)));
    fleet.datastore_flags = vec!["--log-level".into(), "trace".into()];
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let mut web = Web::start(&fleet, "a", &["--log-level", "trace"]);
    fleet.wait_connected("a");
    if outlet == Outlet::ClosesLater {
        readers.lock().expect("readers").clear();
    }
    let admin = web.admin(&fleet);
    for name in 0..50 {
        admin.made("/api/dashboards", &json!({ "Name": format!("d{name}"), "Data": {} }));
    }
    let refused = web.nobody().post("/api/login", &json!({ "User": "admin", "Pass": "no" }));
    assert_eq!(refused.status, 422, "{outlet:?}: a refusal is an answer");
    datastore.hang_up();
    web.hang_up();
    fleet.enroll("b", "webserver");
    let _b = fleet.replica("b");
    fleet.converges(&["a", "b"]);
    datastore.terminate();
    admin.made("/api/dashboards", &json!({ "Name": "while disconnected", "Data": {} }));
    let datastore = fleet.datastore();
    fleet.converges(&["a", "b"]);
    web.stop();
    datastore.terminate();
}

#[test]
fn p14_a_full_disk_under_the_log_changes_nothing() {
    everything_works(Outlet::FullDisk);
}

#[test]
fn p14_an_unwritable_log_output_changes_nothing() {
    everything_works(Outlet::ClosedPipe);
    everything_works(Outlet::ClosesLater);
}

#[test]
fn p14_a_log_output_without_a_reader_blocks_nothing() {
    everything_works(Outlet::UnreadPipe);
}
