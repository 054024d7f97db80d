//! Sample data for `demo`: vendors of network cards if the system has the list, else the bundled USB ids.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use gravwell_model::{Collection, Key};

use crate::error::CtlError;

/// Path in Debian's package `ieee-data`.
const OUI: &str = "/usr/share/ieee-data/oui.csv";
const USB: &str = include_str!("../../../../examples/data/usb.ids");

/// A lookup table.
pub(super) struct Table {
    /// Description of the origin, for people.
    pub source: String,
    /// Name of the resource that stores the table.
    pub collection: Collection,
    /// Rows in key order; values are compact JSON.
    pub rows: BTreeMap<Key, Bytes>,
}

/// Loads the best available table, truncated to at most `rows_max` rows.
pub(super) fn load(rows_max: usize) -> Result<Table, CtlError> {
    let (source, name, rows) = match std::fs::read(Path::new(OUI)) {
        Ok(text) => {
            let source = format!("the IEEE OUI vendor list ({OUI})");
            (source, "oui", oui(&String::from_utf8_lossy(&text)))
        }
        Err(_) => ("the USB id list (examples/data/usb.ids, linux-usb.org)".to_owned(), "usb", usb(USB)),
    };
    let collection = Collection::new(name).map_err(CtlError::new)?;
    Ok(Table { source, collection, rows: rows.into_iter().take(rows_max).collect() })
}

fn row(rows: &mut BTreeMap<Key, Bytes>, key: String, value: &serde_json::Value) {
    if let Ok(key) = Key::new(key) {
        rows.insert(key, Bytes::from(value.to_string()));
    }
}

/// Parses `Registry,Assignment,Organization Name,Organization Address`; quoted fields may contain commas and
/// line breaks.
fn oui(text: &str) -> BTreeMap<Key, Bytes> {
    let mut rows = BTreeMap::new();
    for record in csv(text).into_iter().skip(1) {
        let [registry, assignment, organization, address, ..] = record.as_slice() else { continue };
        let value = serde_json::json!({ "registry": registry, "organization": organization, "address": address });
        row(&mut rows, assignment.clone(), &value);
    }
    rows
}

fn csv(text: &str) -> Vec<Vec<String>> {
    let (mut records, mut record, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => field.extend(characters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => record.push(std::mem::take(&mut field).trim().to_owned()),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                record.push(std::mem::take(&mut field).trim().to_owned());
                records.push(std::mem::take(&mut record));
            }
            other => field.push(other),
        }
    }
    if !record.is_empty() || !field.is_empty() {
        record.push(field.trim().to_owned());
        records.push(record);
    }
    records
}

/// Parses vendors, which start at column 0, with their products behind one tab. Other classes of ids follow
/// the vendors.
fn usb(text: &str) -> BTreeMap<Key, Bytes> {
    let mut rows = BTreeMap::new();
    let mut vendor: Option<(&str, &str)> = None;
    let is_id = |id: &str| id.len() == 4 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let product = line.strip_prefix('\t');
        let Some((id, name)) = product.unwrap_or(line).split_once("  ") else {
            vendor = vendor.filter(|_| product.is_some());
            continue;
        };
        match (product, vendor) {
            (None, _) if is_id(id) => {
                vendor = Some((id, name));
                row(&mut rows, id.to_owned(), &serde_json::json!({ "vendor": name }));
            }
            (None, _) => vendor = None,
            (Some(_), Some((vendor_id, vendor))) if is_id(id) => {
                let value = serde_json::json!({ "vendor": vendor, "product": name });
                row(&mut rows, format!("{vendor_id}:{id}"), &value);
            }
            (Some(_), _) => {}
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_are_read() {
        let text = "Registry,Assignment,Organization Name,Organization Address\r\n\
            MA-L,002272,American Micro-Fuel Device Corp.,\"2181 \"\"B\"\" Street, Ferndale\"\r\n";
        let rows = oui(text);
        let value = &rows[&Key::new("002272").expect("key")];
        let value: serde_json::Value = serde_json::from_slice(value).expect("json");
        assert_eq!(value["address"], "2181 \"B\" Street, Ferndale");

        let rows = usb(USB);
        assert!(rows.len() > 20_000, "{}", rows.len());
        let text = |key: &str| String::from_utf8_lossy(&rows[&Key::new(key).expect("key")]).into_owned();
        assert_eq!(text("0003"), r#"{"vendor":"Club Mac"}"#);
        assert_eq!(
            text("0001:7778"),
            r#"{"product":"Counterfeit flash drive [Kingston]","vendor":"Fry's Electronics"}"#
        );
    }
}
