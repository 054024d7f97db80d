// Differences between two texts, line by line.

/** Limit of the comparison table; larger differences are shown as replaced. */
const CELLS_MAX = 4_000_000;

/** Lines of the longest common subsequence, as a table of lengths. */
function lengths(left, right) {
  const width = right.length + 1;
  const table = new Uint32Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      table[i * width + j] =
        left[i] === right[j]
          ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    }
  }
  return { table, width };
}

function middle(left, right) {
  const removed = (line) => ({ kind: 'removed', line });
  const added = (line) => ({ kind: 'added', line });
  if ((left.length + 1) * (right.length + 1) > CELLS_MAX) return [...left.map(removed), ...right.map(added)];
  const { table, width } = lengths(left, right);
  const found = [];
  let [i, j] = [0, 0];
  while (i < left.length && j < right.length) {
    if (left[i] === right[j]) {
      found.push({ kind: 'same', line: left[i] });
      i += 1;
      j += 1;
    } else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) {
      found.push(removed(left[i]));
      i += 1;
    } else {
      found.push(added(right[j]));
      j += 1;
    }
  }
  return [...found, ...left.slice(i).map(removed), ...right.slice(j).map(added)];
}

/** [{ kind: 'same' | 'removed' | 'added', line }] */
export function diff(before, after) {
  const left = before === '' ? [] : before.split('\n');
  const right = after === '' ? [] : after.split('\n');
  let head = 0;
  while (head < left.length && head < right.length && left[head] === right[head]) head += 1;
  let tail = 0;
  while (tail < left.length - head && tail < right.length - head && left.at(-1 - tail) === right.at(-1 - tail)) tail += 1;
  const same = (lines) => lines.map((line) => ({ kind: 'same', line }));
  return [
    ...same(left.slice(0, head)),
    ...middle(left.slice(head, left.length - tail), right.slice(head, right.length - tail)),
    ...same(left.slice(left.length - tail)),
  ];
}

/** Keeps `around` lines next to changes and replaces the others with { kind: 'skipped', count }. */
export function shortened(lines, around = 3) {
  const keep = new Uint8Array(lines.length);
  lines.forEach((line, at) => {
    if (line.kind === 'same') return;
    for (let near = Math.max(0, at - around); near <= Math.min(lines.length - 1, at + around); near += 1) keep[near] = 1;
  });
  const found = [];
  lines.forEach((line, at) => {
    if (keep[at]) found.push(line);
    else if (found.at(-1)?.kind === 'skipped') found.at(-1).count += 1;
    else found.push({ kind: 'skipped', count: 1 });
  });
  return found;
}
