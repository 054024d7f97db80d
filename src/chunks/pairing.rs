//! Which old chunks a new one may resemble, found from the two lists alone.

use std::collections::{HashMap, HashSet};

use super::manifest::Part;

/// Most bases of one new chunk: it lies across the seam of two old ones more often than not, seldom across more.
pub const PAIRED_MAX: usize = 3;

/// How far beyond the place that is looked for old chunks still count as near: rows that grew or shrank move contents.
const SLACK_BYTES: u64 = 16 << 10;

/// A new chunk and old ones that lie at the same place of the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairing {
    /// The new chunk.
    pub part: Part,
    /// At most [`PAIRED_MAX`] old chunks, in their order.
    pub bases: Vec<Part>,
}

/// A chunk that is in both lists at corresponding places: offset in the old and in the new content, and length.
#[derive(Clone, Copy, Debug, Default)]
struct Anchor {
    old: u64,
    new: u64,
    bytes: u64,
}

/// For each chunk of `new` that is not in `old`, once, the old chunks that overlap the same place. Places correspond
/// between common chunks; between two of them, and where there are none, in proportion.
#[must_use]
pub fn pair(old: &[Part], new: &[Part]) -> Vec<Pairing> {
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
        pairs.push(Pairing { part: *part, bases: near(old, &old_starts, from, to) });
    }
    pairs
}

/// Offset of each part, and the length of all.
fn starts(parts: &[Part]) -> (Vec<u64>, u64) {
    let mut end = 0;
    let mut starts = Vec::with_capacity(parts.len());
    for part in parts {
        starts.push(end);
        end += u64::from(part.bytes);
    }
    (starts, end)
}

/// Chunks that occur once in each list, as pairs of places that rise in both: the longest such sequence.
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
    // Patience: `tails[n]` ends the sequence of n + 1 pairs whose last place in `old` is lowest.
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

/// The place in the old content that corresponds to an offset of the new one.
fn place(anchors: &[Anchor], offset: u64) -> u64 {
    let after = anchors.partition_point(|anchor| anchor.new + anchor.bytes <= offset).min(anchors.len() - 1);
    let (Some(right), Some(left)) = (anchors.get(after), anchors.get(after.saturating_sub(1))) else { return 0 };
    let (old_from, new_from) = (left.old + left.bytes, left.new + left.bytes);
    let (old_gap, new_gap) = (right.old.saturating_sub(old_from), right.new.saturating_sub(new_from));
    let into = offset.saturating_sub(new_from).min(new_gap);
    let scaled = u128::from(into) * u128::from(old_gap) / u128::from(new_gap.max(1));
    old_from + u64::try_from(scaled).unwrap_or(0)
}

/// Old parts around a range: those that overlap most of it, with some slack.
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
