//! Commands on the results of a search, which clients send over WebSocket connections and partly as paths.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::searchctrl::{info, renderer};
use crate::app::AppRef;
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::search_forwarding::{self, Deed, PAGE_ROWS_MAX, Page, PageRow, Standing, Who};
use gravwell_objects::Timestamp;
use gravwell_objects::searches::{Search, State as Progress};
use gravwell_runtime::tasks::blocking;
use gravwell_search::pick::{Held, members};
use gravwell_search::render::{Columns, text_of};
use gravwell_search::row::Row;

pub(super) const CLOSE: u32 = 0x1;
const ENTRY_COUNT: u32 = 0x3;
const DETAILS: u32 = 0x4;
const TAGS: u32 = 0x5;
const ENTRIES: u32 = 0x10;
const ENTRIES_BETWEEN: u32 = 0x12;
const RAW_ENTRIES: u32 = 0x13;
const EXPLORE: u32 = 0xf010;
const EXPLORE_BETWEEN: u32 = 0xf012;
const STATS_FIRST: u32 = 0x7f00_0001;
const STATS_LAST: u32 = 0x7f00_0007;
const METADATA: u32 = 0x1_0001;
pub(super) const FAILED: u32 = 0xffff_ffff;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Command {
    pub(super) id: u32,
    pub(super) entryrange: Option<EntryRange>,
    addendum: Option<Box<RawValue>>,
    stats: Option<Box<RawValue>>,
}

/// Maximum size of a text that is returned to the client unchanged.
const ADDENDUM_BYTES_MAX: usize = 4 << 10;
/// Maximum memory of the entries of a response. Further rows are left for the next request.
const ENTRIES_BYTES_MAX: usize = 64 << 20;
/// Memory of an object with a few members, and of a cell, in addition to the texts.
const OBJECT_BYTES: usize = 1 << 10;
const CELL_BYTES: usize = 64;
/// Maximum number of fields of a row that are listed.
const FIELDS_MAX: usize = 16 << 10;

impl Command {
    pub(super) fn new(id: u32, range: EntryRange) -> Command {
        Command { id, entryrange: Some(range), ..Command::default() }
    }

    fn addendum(&self) -> ApiResult<Value> {
        let Some(addendum) = self.addendum.as_ref().map(|addendum| addendum.get()) else { return Ok(Value::Null) };
        if addendum.len() > ADDENDUM_BYTES_MAX {
            return Err(ApiError::bad(format!("Addendum has more than {ADDENDUM_BYTES_MAX} bytes")));
        }
        serde_json::from_str(addendum).map_err(ApiError::bad)
    }
}

/// Time range of statistics; a time of another type counts as none.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Stretch<'a> {
    #[serde(borrow)]
    set_start: Option<&'a RawValue>,
    #[serde(borrow)]
    set_end: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
pub(super) struct EntryRange {
    #[serde(rename = "StartTS", default)]
    pub(super) startts: Timestamp,
    #[serde(rename = "EndTS", default)]
    pub(super) endts: Timestamp,
    #[serde(rename = "First", default)]
    pub(super) first: u64,
    #[serde(rename = "Last", default)]
    pub(super) last: u64,
}

pub(super) async fn standing(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<(Search, Vec<u64>)> {
    let Standing { search, histogram } =
        search_forwarding::anywhere(app, &Who::from(caller), id, Deed::Status).await?.told()?.read()?;
    Ok((search, histogram))
}

/// Executes a command and returns the response in the common form.
pub(super) async fn command(app: &AppRef, caller: &Caller, id: &str, command: &Command) -> ApiResult<Value> {
    let (search, histogram) = standing(app, caller, id).await?;
    let mut answer = json!({
        "ID": command.id,
        "Finished": search.state != Progress::Running,
        "EntryCount": search.rows,
        "EntryCountValid": true,
        "AdditionalEntries": false,
        "OverLimit": search.over_limit,
        "LimitDroppedRange": { "StartTS": Timestamp::NEVER, "EndTS": Timestamp::NEVER },
        "Warning": search.warnings.join("; "),
        "Addendum": command.addendum()?,
    });
    match command.id {
        CLOSE | ENTRY_COUNT => {}
        DETAILS => answer["SearchInfo"] = info(&search),
        TAGS => answer["Tags"] = tags(&search),
        ENTRIES | ENTRIES_BETWEEN | RAW_ENTRIES | EXPLORE | EXPLORE_BETWEEN => {
            let range = command.entryrange.as_ref();
            let (rows, total, first) = rows(app, caller, &search, command.id, range).await?;
            let Entries { entries, explored } = blocking::run(|| entries(&search, &rows, command.id));
            let last = first + entries.len() as u64;
            answer["AdditionalEntries"] = (last < total).into();
            answer["Tags"] = tags(&search);
            answer["EntryRange"] = json!({ "First": first, "Last": last });
            answer["Entries"] = match search.columns.as_ref().filter(|_| command.id != RAW_ENTRIES) {
                Some(columns) => Map::from_iter([
                    ("Columns".to_owned(), columns.as_slice().into()),
                    ("Rows".to_owned(), Value::Array(entries)),
                ])
                .into(),
                None => Value::Array(entries),
            };
            if is_explored(command.id) {
                answer["Explore"] = Value::Array(explored);
            }
        }
        STATS_FIRST..=STATS_LAST => answer["Stats"] = stats(&search, &histogram, command.stats.as_deref()),
        METADATA => answer["Metadata"] = json!({}),
        other => return Err(ApiError::bad(format!("unknown command {other:#x}"))),
    }
    if search.state == Progress::Failed {
        answer["Error"] = search.error.into();
    }
    Ok(answer)
}

async fn rows(
    app: &AppRef,
    caller: &Caller,
    search: &Search,
    command: u32,
    range: Option<&EntryRange>,
) -> ApiResult<(Vec<Row>, u64, u64)> {
    let (first, last) = range.map_or((0, PAGE_ROWS_MAX as u64), |range| (range.first, range.last));
    let between = range.filter(|_| matches!(command, ENTRIES_BETWEEN | EXPLORE_BETWEEN));
    let (since, until) = (between.map(|range| range.startts), between.map(|range| range.endts));
    let count = usize::try_from(last.saturating_sub(first)).unwrap_or(PAGE_ROWS_MAX);
    let deed = Deed::Rows { first, count, since, until };
    let told = search_forwarding::anywhere(app, &Who::from(caller), &search.id, deed).await?.told()?;
    let page: Page = blocking::run(|| told.read())?;
    let row = |row: PageRow| {
        let tag = search.tags.iter().position(|tag| row.tag == *tag).unwrap_or_default();
        Row { time: row.time.ns(), tag: u16::try_from(tag).unwrap_or(0), data: row.json.into() }
    };
    Ok((page.rows.into_iter().map(row).collect(), page.total, first))
}

fn tags(search: &Search) -> Value {
    (0u16..).zip(&search.tags).map(|(number, tag)| (tag.clone(), number.into())).collect::<Map<_, _>>().into()
}

fn is_explored(command: u32) -> bool {
    matches!(command, EXPLORE | EXPLORE_BETWEEN)
}

/// The rows of a response, and the fields of each if they were asked for.
#[derive(Default)]
struct Entries {
    entries: Vec<Value>,
    explored: Vec<Value>,
}

/// Returns the first rows, as many as fit into a response.
fn entries(search: &Search, rows: &[Row], command: u32) -> Entries {
    let columns = search.columns.as_ref().filter(|_| command != RAW_ENTRIES).map(|names| Columns::new(names));
    let (mut shown, mut held) = (Entries::default(), Held::new(ENTRIES_BYTES_MAX));
    for row in rows {
        let time = Timestamp::from_ns(row.time);
        let (entry, bytes) = match &columns {
            Some(columns) => {
                let cells = columns.cells(row);
                let bytes = cells.iter().map(|cell| CELL_BYTES + cell.len()).sum::<usize>();
                (json!({ "TS": time, "Row": cells }), bytes)
            }
            None => {
                let data = STANDARD.encode(text_of(&row.data));
                let bytes = data.len();
                (json!({ "TS": time, "SRC": "", "Tag": row.tag, "Data": data, "Enumerated": [] }), bytes)
            }
        };
        let fields = is_explored(command).then(|| explored(row));
        let of_fields = fields.as_ref().map_or(0, |fields| fields.len() * OBJECT_BYTES + row.data.len());
        if !held.take(OBJECT_BYTES + bytes + of_fields) && !shown.entries.is_empty() {
            break;
        }
        shown.entries.push(entry);
        shown.explored.extend(fields.map(|fields| json!({ "Elements": fields })));
    }
    shown
}

/// Returns the command that reads rows, by index or time, with or without their fields.
pub(super) fn entries_command(is_between: bool, is_explored: bool) -> u32 {
    match (is_between, is_explored) {
        (false, false) => ENTRIES,
        (true, false) => ENTRIES_BETWEEN,
        (false, true) => EXPLORE,
        (true, true) => EXPLORE_BETWEEN,
    }
}

/// Returns the fields of a row.
fn explored(row: &Row) -> Vec<Value> {
    let fields = members(&row.data, FIELDS_MAX).into_iter();
    fields.map(|(name, value)| json!({ "Module": "json", "Name": name, "Value": value.cell() })).collect()
}

/// Returns row counts per time interval; with a range, of the intervals that start within it.
fn stats(search: &Search, histogram: &[u64], wish: Option<&RawValue>) -> Value {
    let (since, until) = (search.start_range.ns(), search.end_range.ns());
    let width = (until - since) / i64::try_from(histogram.len().max(1)).unwrap_or(1);
    let at = |number: i64| Timestamp::from_ns(since + number * width);
    let wish: Stretch<'_> = wish.and_then(|wish| serde_json::from_str(wish.get()).ok()).unwrap_or_default();
    let time = |text: &RawValue| Timestamp::parse(&serde_json::from_str::<String>(text.get()).ok()?);
    let first = wish.set_start.and_then(time).map_or(i64::MIN, Timestamp::ns);
    let end = wish.set_end.and_then(time).map_or(i64::MAX, Timestamp::ns);
    let counts = || {
        (0i64..)
            .zip(histogram)
            .map(|(number, count)| (at(number), count))
            .filter(|(time, _)| (first..=end).contains(&time.ns()))
    };
    let overview = counts().map(|(time, count)| json!({ "Count": count, "Bytes": 0, "TS": time }));
    // Statistics are per stage; here the whole query is one stage.
    let stage = |count: &u64| {
        json!({
            "Name": renderer(search),
            "Args": "",
            "Duration": 0,
            "InputBytes": 0,
            "InputCount": count,
            "OutputBytes": 0,
            "OutputCount": count,
        })
    };
    let set = counts().map(|(time, count)| json!({ "TS": time, "Stats": [stage(count)] }));
    json!({
        "RangeStart": search.start_range,
        "RangeEnd": search.end_range,
        "Current": search.end_range,
        "Size": histogram.len(),
        "Set": set.collect::<Vec<_>>(),
        "OverviewSet": overview.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(columns: Option<Vec<String>>) -> Search {
        let search = json!({
            "ID": "1", "UID": 1, "UserQuery": "tag=a", "Tags": ["a"], "Columns": columns, "Webserver": "w",
            "StartRange": Timestamp::NEVER, "EndRange": Timestamp::NEVER, "Started": Timestamp::NEVER, "Updated": Timestamp::NEVER,
        });
        serde_json::from_value(search).expect("a search")
    }

    #[test]
    fn p15_a_response_has_as_many_rows_as_fit() {
        let fields: String = (0..5000).map(|number| format!("\"{number}\":0,")).collect();
        let row = Row { time: 0, tag: 0, data: format!("{{{fields}\"z\":1}}").into() };
        let rows = vec![row; 100];
        let shown = entries(&search(None), &rows, EXPLORE);
        assert!((1..20).contains(&shown.entries.len()), "{}", shown.entries.len());
        assert_eq!(shown.explored.len(), shown.entries.len());
        assert_eq!(shown.explored[0]["Elements"].as_array().map(Vec::len), Some(5001));
        assert_eq!(entries(&search(None), &rows, ENTRIES).entries.len(), 100);
        let columns = (0..100_000).map(|number| number.to_string()).collect();
        let shown = entries(&search(Some(columns)), &rows, ENTRIES);
        assert!((1..20).contains(&shown.entries.len()), "{}", shown.entries.len());
    }

    #[test]
    fn p15_what_is_returned_unchanged_is_short() {
        let command = |length: usize| Command {
            addendum: RawValue::from_string(format!("[{}0]", "0,".repeat(length))).ok(),
            ..Command::default()
        };
        assert_eq!(command(1).addendum().expect("is short"), json!([0, 0]));
        assert!(command(ADDENDUM_BYTES_MAX).addendum().is_err());
    }
}
