//! Compares a rejected transaction with the current objects, and submits it again on top of them.

use std::path::Path;

use gravwell_model::codec::admin::{OutboxItem, RejectedInfo, Request, SeenVersion};
use gravwell_model::codec::json_lines::{parse_line, value_member};
use gravwell_model::codec::message::Row;
use gravwell_model::deletions::Named;
use gravwell_model::{Condition, Op, TxnId};
use gravwell_objects::kinds;

use super::name;
use crate::client::Client;
use crate::client::deletions::Deletions;
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};

/// Rejected transaction with the current objects that it concerns.
struct Compared {
    info: RejectedInfo,
    ops: Vec<Op>,
    /// Objects that the transaction requires to be unchanged since they were read.
    required: Vec<Named>,
    present: Vec<(Named, Option<Present>)>,
}

struct Present {
    version: gravwell_model::Seq,
    value: bytes::Bytes,
}

impl Compared {
    async fn of(client: &Client, id: TxnId) -> Result<Compared, CtlError> {
        let items: Vec<OutboxItem> = client.items(&Request::Outbox).await?;
        let found = items.into_iter().find_map(|item| match item {
            OutboxItem::Rejected(info) if info.id == id => Some(info),
            _ => None,
        });
        let missing = || CtlError::new(format!("no rejected transaction {}; run `outbox` to list them", name(&id)));
        let info = found.ok_or_else(missing)?;
        let (ops, conditions) = parse_line(&info.txn.to_string()).map_err(CtlError::new)?;
        let of_read = |condition: &Condition| matches!(condition, Condition::Version { .. });
        let named = |condition: &Condition| (condition.collection().clone(), condition.key().clone());
        let required: Vec<Named> = conditions.iter().filter(|condition| of_read(condition)).map(named).collect();
        let mut places: Vec<Named> = ops.iter().map(|op| (op.collection().clone(), op.key().clone())).collect();
        places.extend(required.iter().filter(|place| !ops.iter().any(|op| is_of(op, place))).cloned());
        let mut present = Vec::new();
        for place in places {
            let found = look_up(client, &place).await?;
            present.push((place, found));
        }
        Ok(Compared { info, ops, required, present })
    }

    /// Prints the comparison. Operators paste this output, so secrets of webservers are compared but printed
    /// only `with_secrets`.
    fn print(&self, output: &mut Output, json: bool, with_secrets: bool) -> CtlResult {
        if !json {
            output.line(&format!("rejected: {}", self.info.reason))?;
        }
        for (place, present) in &self.present {
            let op = self.ops.iter().rev().find(|op| is_of(op, place));
            let present_text = present.as_ref().map(|present| value_member(&present.value));
            let mine = op.map(|op| op.value().map(|value| value_member(value)));
            let version = present.as_ref().map(|present| present.version);
            let (collection, key) = place;
            if !with_secrets && kinds::is_secret(collection.as_str()) {
                let written = op.map(|op| op.value().cloned());
                let is_same = written == Some(present.as_ref().map(|present| present.value.clone()));
                self.print_withheld(output, json, (place, version), (written.map(|value| value.is_some()), is_same))?;
                continue;
            }
            if json {
                output.json(&serde_json::json!({
                    "collection": collection, "key": key, "version": version, "present": present_text,
                    "writes": op.is_some(), "mine": mine.flatten(), "is_required_unchanged": self.required.contains(place),
                }))?;
                continue;
            }
            output.line(&format!("{collection}/{key}"))?;
            let there = match (version, &present_text) {
                (Some(version), Some(text)) => format!("version {version}: {text}"),
                _ => "absent".to_owned(),
            };
            output.line(&format!("  now:    {there}"))?;
            let mine = match mine {
                None => "(only a condition)".to_owned(),
                Some(None) => "deletes it".to_owned(),
                Some(Some(text)) => text,
            };
            output.line(&format!("  change: {mine}"))?;
        }
        Ok(())
    }
}

/// Effect of a change on an object: `None` if it only depends on the object, else whether it writes a value (`true`) or
/// deletes the object (`false`).
type Done = Option<bool>;

impl Compared {
    fn print_withheld(
        &self,
        output: &mut Output,
        json: bool,
        (place, version): (&Named, Option<gravwell_model::Seq>),
        (done, is_same): (Done, bool),
    ) -> CtlResult {
        let (collection, key) = place;
        if json {
            return output.json(&serde_json::json!({
                "collection": collection, "key": key, "version": version, "writes": done.is_some(), "deletes": done == Some(false),
                "withheld": true, "is_same": is_same, "is_required_unchanged": self.required.contains(place),
            }));
        }
        output.line(&format!("{collection}/{key}"))?;
        let there = version.map_or("absent".to_owned(), |version| format!("version {version}: withheld"));
        output.line(&format!("  now:    {there}"))?;
        let mine = match done {
            None => "(only a condition)",
            Some(false) => "deletes it",
            Some(true) if is_same => "the same (shown with --with-secrets)",
            Some(true) => "another value (shown with --with-secrets)",
        };
        output.line(&format!("  change: {mine}"))
    }
}

fn is_of(op: &Op, (collection, key): &Named) -> bool {
    op.collection() == collection && op.key() == key
}

async fn look_up(client: &Client, (collection, key): &Named) -> Result<Option<Present>, CtlError> {
    Ok(match client.object(collection, key, None).await? {
        Some(Row::Object { version, value, .. }) => Some(Present { version, value }),
        _ => None,
    })
}

/// `outbox show`
pub(super) async fn show(dir: &Path, json: bool, id: TxnId, with_secrets: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let compared = Compared::of(&client, id).await;
    client.close().await;
    let mut output = Output::new();
    compared?.print(&mut output, json, with_secrets)?;
    output.flush()
}

/// `outbox retry --upon-present`
pub(super) async fn retry(dir: &Path, json: bool, id: TxnId, with_secrets: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let compared = Compared::of(&client, id).await?;
    let mut output = Output::new();
    compared.print(&mut output, json, with_secrets)?;
    output.flush()?;
    let mut upon = Vec::new();
    for (place, present) in compared.present.iter().filter(|(place, _)| compared.required.contains(place)) {
        let (collection, key) = place.clone();
        match present {
            None => {
                let mut deletions = Deletions::default();
                deletions.renew(&client).await?;
                let what = if deletions.has(place) { "was deleted since" } else { "does not exist" };
                return Err(CtlError::new(format!(
                    "{collection}/{key} {what}, and is not re-created; create it again if needed"
                )));
            }
            Some(present) if present.version == gravwell_model::Seq::ZERO => {
                return Err(CtlError::new(format!("{collection}/{key} has a pending change; try again later")));
            }
            Some(present) => upon.push(SeenVersion { collection, key, version: present.version }),
        }
    }
    let done: Result<Vec<TxnId>, _> = client.items(&Request::Retry { id: Some(id), upon }).await;
    client.close().await;
    let done = done?;
    if !json {
        output.line(&format!(
            "submitted again on top of the current values, as {}",
            done.iter().map(name).collect::<String>()
        ))?;
    }
    output.flush()
}
