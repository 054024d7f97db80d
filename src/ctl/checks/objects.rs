//! Objects of webservers: whether each is valid for its collection, and whether names and their owners are consistent.

use std::path::Path;

use gravwell_model::codec::admin::Request;
use gravwell_model::codec::message::{Row, TxnOutcome};
use gravwell_objects::claims::{Claims, Repair};
use gravwell_objects::kinds;

use super::Findings;
use crate::client::output::Output;
use crate::client::transact;
use crate::client::{Client, Piece};
use crate::error::{CtlError, CtlResult};

/// Maximum number of findings of one kind that are listed; the rest is counted.
const NAMED: usize = 20;
/// Maximum number of repair rounds; one repair may uncover the next dispute.
const ROUNDS: usize = 4;

#[derive(Default)]
struct Read {
    objects: u64,
    invalid: Vec<String>,
    claims: Claims,
}

async fn read(client: &Client) -> Result<Read, CtlError> {
    let mut found = Read::default();
    client
        .each(&Request::Export { at: None, is_check: true }, |piece| {
            let Piece::Rows(rows) = piece else { return Ok(()) };
            for row in rows {
                let Row::Object { collection, key, value, version, .. } = row else { continue };
                let Some(kind) = kinds::of(collection.as_str()) else { continue };
                found.objects += 1;
                match (kind.check)(key.as_str(), &value) {
                    Ok(()) => found.claims.take(&collection, &key, &value, version),
                    Err(reason) => found.invalid.push(format!("invalid {collection}/{key}: {reason}")),
                }
            }
            Ok(())
        })
        .await?;
    Ok(found)
}

fn repairs(claims: &Claims) -> Result<Vec<Repair>, CtlError> {
    claims.repairs().map_err(CtlError::new)
}

pub(super) async fn examine(client: &Client, findings: &mut Findings) {
    let found = match read(client).await {
        Ok(found) if found.objects == 0 => return,
        Ok(found) => found,
        Err(error) => return findings.problem("objects", error, "check its log: journalctl -u UNIT"),
    };
    for text in found.invalid.iter().take(NAMED) {
        findings.problem("objects", text, "replace it with gravwell-logctl put, or delete it");
    }
    if found.invalid.len() > NAMED {
        let more = format!("{} more are invalid", found.invalid.len() - NAMED);
        findings.problem("objects", more, "replace or delete those listed here, then run `doctor` again");
    }
    if found.invalid.is_empty() {
        findings.good("objects", format!("{} are valid in their collections", found.objects));
    }
    let disputes = match repairs(&found.claims) {
        Ok(repairs) => repairs,
        Err(error) => return findings.problem("names", error, "check its log: journalctl -u UNIT"),
    };
    for repair in disputes.iter().take(NAMED) {
        let remedy = format!("run gravwell-logctl doctor --fix, which will {}", repair.what);
        findings.problem("names", &repair.dispute, remedy);
    }
    if disputes.is_empty() {
        findings.good("names", format!("{} names belong to one user or group each", found.claims.len()));
    }
}

/// Repairs names, each in one transaction on the condition that nothing it read has changed.
pub(crate) async fn fix(dir: &Path) -> CtlResult {
    let client = Client::open(dir).await?;
    let mut output = Output::new();
    let result = fix_all(&client, &mut output).await;
    output.flush()?;
    client.close().await;
    result
}

async fn fix_all(client: &Client, output: &mut Output) -> CtlResult {
    for _ in 0..ROUNDS {
        let repairs = repairs(&read(client).await?.claims)?;
        if repairs.is_empty() {
            return Ok(());
        }
        for Repair { dispute, what, ops, conditions } in repairs {
            let fate = transact::submit(client, ops, conditions, true).await?;
            let became = match fate {
                TxnOutcome::Committed(_) | TxnOutcome::Decided(_) => "done".to_owned(),
                TxnOutcome::Rejected(_, reason) => format!("rejected, {reason}"),
                other => format!("pending: {other:?}"),
            };
            output.line(&format!("{dispute}: {what}: {became}"))?;
        }
    }
    Ok(())
}
