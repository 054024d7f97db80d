//! `diff`: compares two states. Both are read in key order and merged.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::path::Path;

use bytes::Bytes;

use gravwell_model::codec::admin::{Request, Status};
use gravwell_model::codec::json_lines::value_member;
use gravwell_model::codec::message::Row;
use gravwell_model::{Collection, Key, Seq};
use gravwell_objects::kinds;

use crate::client::output::{Output, size};
use crate::client::parse::seq;
use crate::client::{Call, Client, Piece};
use crate::error::{CtlError, CtlResult};

/// Compare the whole state at two sequences; exit with 1 if it differs.
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// The earlier sequence.
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub from: Seq,
    /// The later sequence [default: the current one].
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub to: Option<Seq>,
    /// Print the values as well.
    #[arg(long)]
    pub values: bool,
}

struct Object {
    collection: Collection,
    key: Key,
    version: Seq,
    value: Bytes,
}

/// Objects of one state, in key order.
struct Side {
    call: Call,
    waiting: VecDeque<Object>,
}

impl Side {
    async fn open(client: &Client, at: Seq) -> Result<Side, CtlError> {
        let call = client.call(&Request::Export { at: Some(at), is_check: false }).await?;
        Ok(Side { call, waiting: VecDeque::new() })
    }

    /// Ensures that `waiting` is not empty; returns `false` at the end.
    async fn fill(&mut self) -> Result<bool, CtlError> {
        while self.waiting.is_empty() {
            match self.call.next().await? {
                None => return Ok(false),
                Some(Piece::Rows(rows)) => self.waiting.extend(rows.into_iter().filter_map(|row| match row {
                    Row::Object { collection, key, version, value, .. } => {
                        Some(Object { collection, key, version, value })
                    }
                    Row::Origin { .. } | Row::Maker { .. } | Row::Withheld { .. } => None,
                })),
                Some(_) => {}
            }
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Counts {
    added: u64,
    changed: u64,
    removed: u64,
}

/// Prints the differences. Exit codes are those of diff(1): 1 if the states differ, 2 if they cannot be compared.
pub(super) async fn run(dir: &Path, json: bool, args: Diff) -> CtlResult {
    let Diff { from, to, values } = args;
    let found = ask(dir, json, from, to, values).await;
    let (to, counts) =
        found.map_err(|error| CtlError { exit: if error.exit == 1 { 2 } else { error.exit }, ..error })?;
    let Counts { added, changed, removed } = counts;
    let mut output = Output::new();
    if !json {
        output.line(&format!("from sequence {from} to {to}: {added} added, {changed} changed, {removed} removed"))?;
    }
    output.flush()?;
    if added + changed + removed == 0 { Ok(()) } else { Err(CtlError { message: String::new(), exit: 1 }) }
}

async fn ask(dir: &Path, json: bool, from: Seq, to: Option<Seq>, values: bool) -> Result<(Seq, Counts), CtlError> {
    let client = Client::open(dir).await?;
    let to = match to {
        Some(to) => to,
        None => client.item::<Status>(&Request::Status).await?.seq,
    };
    let counts = compare(&client, json, from, to, values).await;
    client.close().await;
    Ok((to, counts?))
}

async fn compare(client: &Client, json: bool, from: Seq, to: Seq, values: bool) -> Result<Counts, CtlError> {
    let mut counts = Counts::default();
    let mut output = Output::new();
    let (mut old, mut new) = (Side::open(client, from).await?, Side::open(client, to).await?);
    loop {
        let (in_old, in_new) = (old.fill().await?, new.fill().await?);
        let order = match (in_old, in_new) {
            (false, false) => break,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (true, true) => {
                let (old, new) = (&old.waiting[0], &new.waiting[0]);
                (&old.collection, &old.key).cmp(&(&new.collection, &new.key))
            }
        };
        let before = if order.is_le() { old.waiting.pop_front() } else { None };
        let after = if order.is_ge() { new.waiting.pop_front() } else { None };
        match (&before, &after) {
            (Some(before), Some(after)) if before.value == after.value => continue,
            (Some(_), Some(_)) => counts.changed += 1,
            (Some(_), None) => counts.removed += 1,
            _ => counts.added += 1,
        }
        print(&mut output, json, values, before.as_ref(), after.as_ref())?;
    }
    output.flush()?;
    Ok(counts)
}

fn print(output: &mut Output, json: bool, values: bool, before: Option<&Object>, after: Option<&Object>) -> CtlResult {
    let Some(named) = after.or(before) else { return Ok(()) };
    let what = match (before, after) {
        (Some(_), Some(_)) => ("changed", '~'),
        (Some(_), None) => ("removed", '-'),
        _ => ("added", '+'),
    };
    // Never print secrets of webservers.
    let values = values && !kinds::is_secret(named.collection.as_str());
    let value = |object: Option<&Object>| {
        object
            .filter(|_| values)
            .and_then(|object| serde_json::from_str(&format!("{{{}}}", value_member(&object.value))).ok())
    };
    if json {
        let (old, new): (Option<serde_json::Value>, Option<serde_json::Value>) = (value(before), value(after));
        return output.json(&serde_json::json!({
            "change": what.0, "collection": named.collection, "key": named.key,
            "from_version": before.map(|object| object.version), "to_version": after.map(|object| object.version),
            "from": old, "to": new,
        }));
    }
    let bytes = |object: Option<&Object>| object.map_or("-".to_owned(), |object| size(object.value.len() as u64));
    let line = format!("{} {}/{}  {} -> {}", what.1, named.collection, named.key, bytes(before), bytes(after));
    output.line(&line)?;
    for (sign, object) in [('<', before), ('>', after)] {
        if let Some(object) = object.filter(|_| values) {
            output.line(&format!("  {sign} {}", value_member(&object.value)))?;
        }
    }
    Ok(())
}
