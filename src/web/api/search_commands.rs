//! Commands on the results of a search, which clients send over WebSocket connections and partly as paths.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::searchctrl::{info, renderer};
use crate::objects::Moment;
use crate::objects::searches::{Search, State as Progress};
use crate::search::render::{cells, text_of};
use crate::search::row::{Row, cell};
use crate::web::app::AppRef;
use crate::web::caller::Caller;
use crate::web::error::{ApiError, ApiResult};
use crate::web::searching::{self, Deed, PAGE_ROWS_MAX, Who};

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
    pub(super) addendum: Value,
    pub(super) stats: Value,
}

#[derive(Default, Deserialize)]
pub(super) struct EntryRange {
    #[serde(rename = "StartTS", default)]
    pub(super) startts: Moment,
    #[serde(rename = "EndTS", default)]
    pub(super) endts: Moment,
    #[serde(rename = "First", default)]
    pub(super) first: u64,
    #[serde(rename = "Last", default)]
    pub(super) last: u64,
}

pub(super) async fn standing(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<(Search, Vec<u64>)> {
    let told = searching::anywhere(app, &Who::from(caller), id, Deed::Status).await?.value();
    let search = serde_json::from_value(told["Search"].clone()).map_err(ApiError::internal)?;
    Ok((search, serde_json::from_value(told["Histogram"].clone()).unwrap_or_default()))
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
        "LimitDroppedRange": { "StartTS": Moment::NEVER, "EndTS": Moment::NEVER },
        "Warning": search.warnings.join("; "),
        "Addendum": command.addendum,
    });
    match command.id {
        CLOSE | ENTRY_COUNT => {}
        DETAILS => answer["SearchInfo"] = info(&search),
        TAGS => answer["Tags"] = tags(&search),
        ENTRIES | ENTRIES_BETWEEN | RAW_ENTRIES | EXPLORE | EXPLORE_BETWEEN => {
            let range = command.entryrange.as_ref();
            let (rows, total, first) = rows(app, caller, &search, command.id, range).await?;
            answer["AdditionalEntries"] = (first + (rows.len() as u64) < total).into();
            answer["Tags"] = tags(&search);
            answer["EntryRange"] = json!({ "First": first, "Last": first + rows.len() as u64 });
            answer["Entries"] = entries(&search, &rows, command.id == RAW_ENTRIES);
            if matches!(command.id, EXPLORE | EXPLORE_BETWEEN) {
                answer["Explore"] = rows.iter().map(explored).collect();
            }
        }
        STATS_FIRST..=STATS_LAST => answer["Stats"] = stats(&search, &histogram, &command.stats),
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
    let page = searching::anywhere(app, &Who::from(caller), &search.id, deed).await?.value();
    let rows = page["Rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |row: &Value| {
        let tag = search.tags.iter().position(|tag| row["Tag"] == tag.as_str()).unwrap_or_default();
        let time = row["TS"].as_str().and_then(Moment::parse).unwrap_or_default();
        let data = row["Json"].as_str().unwrap_or("null").to_owned();
        Row { time: time.ns(), tag: u16::try_from(tag).unwrap_or(0), data: data.into() }
    };
    Ok((rows.iter().map(row).collect(), page["Total"].as_u64().unwrap_or(0), first))
}

fn tags(search: &Search) -> Value {
    (0u16..).zip(&search.tags).map(|(number, tag)| (tag.clone(), number.into())).collect::<Map<_, _>>().into()
}

fn entries(search: &Search, rows: &[Row], is_raw: bool) -> Value {
    if let Some(columns) = search.columns.as_ref().filter(|_| !is_raw) {
        let line = |row: &Row| json!({ "TS": Moment::from_ns(row.time), "Row": cells(row, columns) });
        return json!({ "Columns": columns, "Rows": rows.iter().map(line).collect::<Vec<_>>() });
    }
    let entry = |row: &Row| {
        let data = STANDARD.encode(text_of(&row.data));
        json!({ "TS": Moment::from_ns(row.time), "SRC": "", "Tag": row.tag, "Data": data, "Enumerated": [] })
    };
    rows.iter().map(entry).collect()
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
fn explored(row: &Row) -> Value {
    let fields = serde_json::from_slice::<Map<String, Value>>(&row.data).unwrap_or_default();
    let field = |(name, value): (&String, &Value)| json!({ "Module": "json", "Name": name, "Value": cell(value) });
    json!({ "Elements": fields.iter().map(field).collect::<Vec<_>>() })
}

/// Returns row counts per time interval; with a range, of the intervals that start within it.
fn stats(search: &Search, histogram: &[u64], wish: &Value) -> Value {
    let (since, until) = (search.start_range.ns(), search.end_range.ns());
    let width = (until - since) / i64::try_from(histogram.len().max(1)).unwrap_or(1);
    let at = |number: i64| Moment::from_ns(since + number * width);
    let time = |name: &str| wish[name].as_str().and_then(Moment::parse);
    let (first, end) = (time("SetStart").map_or(i64::MIN, Moment::ns), time("SetEnd").map_or(i64::MAX, Moment::ns));
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
