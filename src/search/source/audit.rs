//! The log as events: who did what, when, from where, to what, with what was there before and after. Secrets are taken out
//! as everywhere (`objects/exposed.rs`). Only administrators may read it.
//!
//! The log is the datastore's, so it is asked, page by page. What an object was before is remembered while reading,
//! therefore reading begins where the log does, whatever the range: compaction keeps that short.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Output, Range, Source, Surroundings, Telling};
use crate::codec::admin::Request;
use crate::model::{Collection, Entry, EntryBody, Key, Op, Seq};
use crate::objects::store::Author;
use crate::objects::{Moment, depth, exposed};
use crate::replica::{AskError, Replica};

/// Transactions that are asked for at once.
const PAGE: u64 = 512;
/// Bytes of former values that are remembered.
const BEFORE_BYTES_MAX: usize = 16 << 20;

/// The log.
pub struct Audit {
    replica: Replica,
}

impl Audit {
    /// The log, for those who may read it.
    ///
    /// # Errors
    /// Says who may.
    pub fn open(around: &Surroundings) -> Result<Audit, String> {
        if !around.person.admin {
            return Err("only administrators may search audit, with a session of their own".into());
        }
        Ok(Audit { replica: around.store.replica().clone() })
    }
}

/// One event.
#[derive(Serialize)]
struct Event<'a> {
    time: Moment,
    seq: u64,
    member: String,
    uid: Option<i32>,
    user: Option<&'a str>,
    from: Option<&'a str>,
    via: Option<&'a str>,
    what: Option<&'a str>,
    op: &'static str,
    collection: Option<&'a str>,
    key: Option<&'a str>,
    before: Option<Cow<'a, RawValue>>,
    after: Option<Cow<'a, RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Former values of objects whose values may be shown.
#[derive(Default)]
struct Before {
    values: HashMap<(Collection, Key), Box<RawValue>>,
    bytes: usize,
    is_full: bool,
}

impl Before {
    fn replace(&mut self, op: &Op) -> Option<Box<RawValue>> {
        let place = (op.collection().clone(), op.key().clone());
        let former = self.values.remove(&place);
        self.bytes -= former.as_ref().map_or(0, |value| value.get().len());
        let next = op.value().and_then(|value| exposed::value(op.collection(), value));
        if let Some(next) = next {
            self.is_full |= self.bytes + next.get().len() > BEFORE_BYTES_MAX;
            if self.bytes + next.get().len() <= BEFORE_BYTES_MAX {
                self.bytes += next.get().len();
                self.values.insert(place, next.to_owned());
            }
        }
        former
    }
}

/// A value as every stage of a search can read it: one that is nested too deeply is shown as text.
fn readable(value: &RawValue) -> Cow<'_, RawValue> {
    let text = depth::is_deep(value.get().as_bytes()).then(|| serde_json::value::to_raw_value(value.get()).ok());
    text.flatten().map_or(Cow::Borrowed(value), Cow::Owned)
}

fn events(entry: &Entry, before: &mut Before, is_wanted: bool) -> Vec<Bytes> {
    let mut found = Vec::new();
    let mut add = |event: &Event<'_>| found.extend(serde_json::to_vec(event).ok().map(Bytes::from));
    let base = Event {
        time: Moment::from_ms(entry.time_ms),
        seq: entry.seq.0,
        member: entry.member.to_string(),
        uid: None,
        user: None,
        from: None,
        via: None,
        what: None,
        op: "unknown",
        collection: None,
        key: None,
        before: None,
        after: None,
        reason: None,
    };
    match &entry.body {
        EntryBody::Commit(txn) => {
            let author = Author::of(&txn.note);
            for op in &txn.ops {
                let former = before.replace(op);
                if !is_wanted {
                    continue;
                }
                let author = author.as_ref();
                add(&Event {
                    member: base.member.clone(),
                    uid: author.map(|author| author.uid),
                    user: author.map(|author| author.user.as_str()),
                    from: author.map(|author| author.from.as_str()),
                    via: author.map(|author| author.via.as_str()),
                    what: author.map(|author| author.what.as_str()),
                    op: if op.value().is_some() { "put" } else { "delete" },
                    collection: Some(op.collection().as_str()),
                    key: Some(exposed::key(op.collection(), op.key())),
                    before: former.as_deref().map(readable),
                    after: op.value().and_then(|value| exposed::value(op.collection(), value)).map(readable),
                    reason: None,
                    ..base
                });
            }
        }
        EntryBody::Reject { reason, .. } if is_wanted => {
            add(&Event { op: "rejected", reason: Some(reason.to_string()), ..base });
        }
        EntryBody::Unknown { .. } if is_wanted => add(&base),
        EntryBody::Reject { .. } | EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => {}
    }
    found
}

impl Source for Audit {
    fn name(&self) -> String {
        "audit".into()
    }

    fn tell(self: Box<Self>, range: Range, mut out: Output) -> Telling {
        Box::pin(async move {
            let (mut before, mut page) = (Before::default(), PAGE);
            let mut after = self.replica.status().horizon.0;
            loop {
                let request = Request::Tail { from: Seq(after), to: Some(Seq(after + page)), follow: false };
                let entries = match self.replica.ask_datastore(&request).await {
                    Ok(reply) => reply.entries,
                    // Transactions differ in size by a factor of a thousand.
                    Err(AskError::TooLarge) if page > 1 => {
                        page /= 8;
                        continue;
                    }
                    Err(error) => return Err(format!("the log is kept by the datastore: {error}")),
                };
                let asked = after;
                for entry in entries.iter().filter(|entry| (asked + 1..=asked + page).contains(&entry.seq.0)) {
                    after = entry.seq.0;
                    let time = i64::try_from(entry.time_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
                    if time >= range.until {
                        return out.flush().await;
                    }
                    for event in events(entry, &mut before, time >= range.since) {
                        if out.push(time, &event)? {
                            out.flush().await?;
                        }
                    }
                }
                out.flush().await?;
                if after == asked {
                    break;
                }
            }
            match before.is_full {
                true => Err("former values are missing: objects are too many to be remembered".into()),
                false => Ok(()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(collection: &str, key: &str, value: &'static str) -> Op {
        let collection = Collection::new(collection).expect("name");
        Op::Put { collection, key: Key::new(key).expect("key"), value: Bytes::from_static(value.as_bytes()) }
    }

    #[test]
    fn what_is_nested_deeply_is_shown_as_text() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        let op = Op::Put {
            collection: Collection::new("dashboards").expect("name"),
            key: Key::new("7").expect("key"),
            value: deep.clone().into(),
        };
        let value = exposed::value(op.collection(), op.value().expect("value")).expect("open");
        let shown: serde_json::Value = serde_json::from_str(readable(value).get()).expect("every stage reads it");
        assert_eq!(shown, deep.as_str());
        let flat = exposed::value(op.collection(), br#"{"a":1.50}"#).expect("open");
        assert_eq!(readable(flat).get(), r#"{"a":1.50}"#);
    }

    #[test]
    fn former_values_are_remembered_where_they_may_be_shown() {
        let mut before = Before::default();
        assert!(before.replace(&put("users", "7", r#"{"User":"a"}"#)).is_none());
        assert!(before.replace(&put("passwords", "7", r#"{"Hash":"x"}"#)).is_none());
        assert!(before.replace(&put("passwords", "7", r#"{"Hash":"y"}"#)).is_none());
        assert_eq!(before.replace(&put("users", "7", "not json")).expect("former").get(), r#"{"User":"a"}"#);
        assert!(before.replace(&put("users", "7", "1")).is_none() && before.bytes == 1);
        let collection = Collection::new("users").expect("name");
        let delete = Op::Delete { collection, key: Key::new("7").expect("key") };
        assert_eq!(before.replace(&delete).expect("former").get(), "1");
        assert!(before.bytes == 0 && before.values.is_empty());
    }
}
