//! Parsers of arguments that several commands have.

use gravwell_model::{Origin, OriginCounter, Seq, TxnId};

/// Parses a sequence.
pub(crate) fn seq(text: &str) -> Result<Seq, String> {
    text.parse().map(Seq).map_err(|_| format!("`{text}` is not a sequence; use a whole number"))
}

/// Parses the name of a transaction.
pub(crate) fn txn_id(text: &str) -> Result<TxnId, String> {
    let form = || format!("`{text}` is not a transaction; use ORIGIN/COUNTER as printed by `outbox`");
    let (origin, counter) = text.split_once('/').ok_or_else(form)?;
    let origin: Origin = origin.parse().map_err(|_| form())?;
    let counter = counter.parse().map(OriginCounter).map_err(|_| form())?;
    Ok(TxnId { origin, counter })
}
