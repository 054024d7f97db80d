//! Delta base selection: finds old chunks that a new one may resemble, from the two chunk lists alone.

use std::collections::{HashMap, HashSet};

use super::manifest::Part;

/// Maximum number of bases of one new chunk. It usually spans the boundary of two old chunks, rarely more.
pub const PAIRED_MAX: usize = 3;

/// Distance up to which old chunks still count as near, because rows that grow or shrink shift the data.
const SLACK_BYTES: u64 = 16 << 10;

/// A new chunk and old chunks at the same position of the blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaBases {
    /// The new chunk.
    pub part: Part,
    /// At most [`PAIRED_MAX`] old chunks, ordered by position.
    pub bases: Vec<Part>,
}

/// A chunk in both lists at corresponding positions: its offsets in the old and in the new blob, and its length.
#[derive(Clone, Copy, Debug, Default)]
struct Anchor {
    old: u64,
    new: u64,
    bytes: u64,
}

/// Returns, for each distinct chunk of `new` that is not in `old`, the old chunks that overlap the same position.
/// Chunks in both lists align the two blobs. Between two of them, or if there are none, positions are interpolated.
#[must_use]
pub fn pair(old: &[Part], new: &[Part]) -> Vec<DeltaBases> {
    let (old_starts, old_total) = starts(old);
    let (new_starts, new_total) = starts(new);
    let mut anchors = vec![Anchor::default()];
    anchors.extend(common(old, new).into_iter().map(|(o, n)| Anchor {
        old: old_starts[o],
        new: new_starts[n],
        bytes: u64::from(new[n].bytes),
    }));
    anchors.push(Anchor { old: old_total, new: new_total, bytes: 0 });
    let known: HashSet<_> = old.iter().map(|part| part.id).collect();
    let mut seen = HashSet::new();
    let mut pairs = Vec::new();
    for (part, start) in new.iter().zip(&new_starts) {
        if known.contains(&part.id) || !seen.insert(part.id) {
            continue;
        }
        let from = place(&anchors, *start);
        let to = place(&anchors, start + u64::from(part.bytes)).max(from);
        pairs.push(DeltaBases { part: *part, bases: near(old, &old_starts, from, to) });
    }
    pairs
}

/// Returns the offset of each part and the total length.
fn starts(parts: &[Part]) -> (Vec<u64>, u64) {
    let mut end = 0;
    let mut starts = Vec::with_capacity(parts.len());
    for part in parts {
        starts.push(end);
        end += u64::from(part.bytes);
    }
    (starts, end)
}

/// Returns the longest sequence of chunks that occur once in each list, as pairs of positions that increase in both.
fn common(old: &[Part], new: &[Part]) -> Vec<(usize, usize)> {
    let once = |parts: &[Part]| {
        let mut places: HashMap<_, Option<usize>> = HashMap::new();
        for (at, part) in parts.iter().enumerate() {
            places.entry(part.id).and_modify(|place| *place = None).or_insert(Some(at));
        }
        places
    };
    let (old_places, new_places) = (once(old), once(new));
    let shared: Vec<(usize, usize)> =
        new.iter().filter_map(|part| Some(((*old_places.get(&part.id)?)?, (*new_places.get(&part.id)?)?))).collect();
    // Longest increasing subsequence: `tails[n]` ends the sequence of n + 1 pairs with the lowest last position in `old`.
    let mut tails: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; shared.len()];
    for (at, (place, _)) in shared.iter().enumerate() {
        let length = tails.partition_point(|tail| shared[*tail].0 < *place);
        before[at] = length.checked_sub(1).map(|last| tails[last]);
        if length == tails.len() { tails.push(at) } else { tails[length] = at }
    }
    let mut chosen = Vec::with_capacity(tails.len());
    let mut next = tails.last().copied();
    while let Some(at) = next {
        chosen.push(shared[at]);
        next = before[at];
    }
    chosen.reverse();
    chosen
}

/// Returns the offset in the old blob that corresponds to an offset in the new one.
fn place(anchors: &[Anchor], offset: u64) -> u64 {
    let after = anchors.partition_point(|anchor| anchor.new + anchor.bytes <= offset).min(anchors.len() - 1);
    let (Some(right), Some(left)) = (anchors.get(after), anchors.get(after.saturating_sub(1))) else { return 0 };
    let (old_from, new_from) = (left.old + left.bytes, left.new + left.bytes);
    let (old_gap, new_gap) = (right.old.saturating_sub(old_from), right.new.saturating_sub(new_from));
    let into = offset.saturating_sub(new_from).min(new_gap);
    let scaled = u128::from(into) * u128::from(old_gap) / u128::from(new_gap.max(1));
    old_from + u64::try_from(scaled).unwrap_or(0)
}

/// Returns the old parts that overlap most of a range, which is extended by [`SLACK_BYTES`] on both sides.
fn near(old: &[Part], starts: &[u64], from: u64, to: u64) -> Vec<Part> {
    let (from, to) = (from.saturating_sub(SLACK_BYTES), to + SLACK_BYTES);
    let first = starts.partition_point(|start| *start <= from).saturating_sub(1);
    let mut found: Vec<(u64, usize)> = Vec::new();
    for (at, (part, start)) in old.iter().zip(starts).enumerate().skip(first) {
        if *start >= to {
            break;
        }
        let overlap = (start + u64::from(part.bytes)).min(to).saturating_sub((*start).max(from));
        if overlap > 0 && !found.iter().any(|(_, other)| old[*other].id == part.id) {
            found.push((overlap, at));
        }
    }
    found.sort_by_key(|(overlap, at)| (std::cmp::Reverse(*overlap), *at));
    found.truncate(PAIRED_MAX);
    found.sort_by_key(|(_, at)| *at);
    found.into_iter().map(|(_, at)| old[at]).collect()
}
