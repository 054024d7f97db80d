//! The objects of webservers: whether each is what its collection holds.

use crate::codec::admin::Request;
use crate::codec::message::Row;
use crate::ctl::client::{Client, Piece};
use crate::objects::kinds;

use super::Findings;

/// Invalid objects that are named; the others are counted.
const NAMED: usize = 20;

pub(super) async fn examine(client: &Client, findings: &mut Findings) {
    let (mut invalid, mut objects) = (Vec::new(), 0u64);
    let read = client.each(&Request::Export { at: None }, |piece| {
        let Piece::Rows(rows) = piece else { return Ok(()) };
        for row in rows {
            let Row::Object { collection, key, value, .. } = row else { continue };
            let Some(kind) = kinds::of(collection.as_str()) else { continue };
            objects += 1;
            if let Err(reason) = (kind.check)(key.as_str(), &value) {
                invalid.push(format!("invalid {collection}/{key}: {reason}"));
            }
        }
        Ok(())
    });
    if let Err(error) = read.await {
        return findings.problem("objects", error, "look at its log: journalctl -u UNIT");
    }
    if objects == 0 {
        return;
    }
    for text in invalid.iter().take(NAMED) {
        findings.problem("objects", text, "replace or delete it: gravwell-logctl put, or delete");
    }
    if invalid.len() > NAMED {
        let found = format!("{} more are invalid", invalid.len() - NAMED);
        findings.problem("objects", found, "replace or delete those named here, then look again");
    }
    if invalid.is_empty() {
        findings.good("objects", format!("{objects} are what their collections hold"));
    }
}
