// JSON as text: validated, indented and split without converting numbers to doubles, which would change large ones.

const DEPTH_MAX = 120;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const WORD = /true|false|null/y;
const BLANK = /[ \t\r\n]*/y;

class Fault extends Error {
  constructor(at, message) {
    super(message);
    this.at = at;
  }
}

/** Parses the text; calls `visit(kind, start, end, depth)` for every bracket, comma, colon and scalar. */
class Walk {
  constructor(text, visit) {
    this.text = text;
    this.visit = visit;
    this.at = 0;
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found === null) return false;
    this.at += found[0].length;
    return true;
  }

  blank() {
    this.match(BLANK);
  }

  mark(kind, depth) {
    this.visit(kind, this.at, this.at + 1, depth);
    this.at += 1;
  }

  fail(message) {
    throw new Fault(this.at, this.at >= this.text.length ? 'Unexpected end of the text.' : message);
  }

  document() {
    this.blank();
    this.value(0);
    this.blank();
    if (this.at < this.text.length) this.fail('Unexpected text after the end of the value.');
  }

  scalar(pattern, kind, depth, wrong) {
    const start = this.at;
    if (!this.match(pattern)) this.fail(wrong);
    this.visit(kind, start, this.at, depth);
  }

  value(depth) {
    if (depth > DEPTH_MAX) this.fail(`The value is nested more than ${DEPTH_MAX} levels deep.`);
    const next = this.text[this.at];
    if (next === '{') this.sequence('}', depth, () => this.pair(depth + 1));
    else if (next === '[') this.sequence(']', depth, () => this.value(depth + 1));
    else if (next === '"') this.scalar(STRING, 'string', depth, 'The string is unterminated or contains a character that must be escaped.');
    else if (next === '-' || (next >= '0' && next <= '9')) this.scalar(NUMBER, 'number', depth, 'Invalid number.');
    else this.scalar(WORD, 'word', depth, 'Expected a value: a string in double quotes, a number, {, [, true, false or null.');
  }

  pair(depth) {
    if (this.text[this.at] !== '"') this.fail('Expected a name in double quotes.');
    this.scalar(STRING, 'name', depth, 'The name is unterminated or contains a character that must be escaped.');
    this.blank();
    if (this.text[this.at] !== ':') this.fail('Expected a colon.');
    this.mark('colon', depth);
    this.blank();
    this.value(depth);
  }

  sequence(end, depth, item) {
    this.mark('open', depth);
    this.blank();
    if (this.text[this.at] !== end) {
      for (;;) {
        item();
        this.blank();
        if (this.text[this.at] !== ',') break;
        this.mark('comma', depth + 1);
        this.blank();
      }
    }
    if (this.text[this.at] !== end) this.fail(`Expected a comma or ${end}.`);
    this.mark('close', depth);
  }
}

/** Returns null if the text is valid JSON, else { message, at, line, column }. */
export function fault(text) {
  try {
    new Walk(text, () => {}).document();
    return null;
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    const before = text.slice(0, error.at).split('\n');
    return { message: error.message, at: error.at, line: before.length, column: before[before.length - 1].length + 1 };
  }
}

/** Indents JSON by two spaces per level; returns invalid JSON unchanged. */
export function indented(text) {
  const parts = [];
  let last = '';
  const line = (depth) => parts.push('\n', '  '.repeat(depth));
  try {
    new Walk(text, (kind, start, end, depth) => {
      const token = text.slice(start, end);
      if (kind === 'close') {
        if (last !== 'open') line(depth);
      } else if (last === 'open' || last === 'comma') {
        line(depth);
      }
      parts.push(token);
      if (kind === 'colon') parts.push(' ');
      last = kind;
    }).document();
  } catch (error) {
    if (error instanceof Fault) return text;
    throw error;
  }
  return parts.join('');
}

/** Returns the members of the outermost object as a map from name to raw text; empty if the text is not an object. */
export function members(text) {
  const found = new Map();
  let begin = -1;
  let name = null;
  const visit = (kind, start, end, depth) => {
    const isOuter = depth === 1;
    if (kind === 'name' && isOuter) name = JSON.parse(text.slice(start, end));
    else if (kind === 'colon' && isOuter) begin = end;
    else if (name !== null && ((kind === 'comma' && isOuter) || (kind === 'close' && depth === 0))) {
      found.set(name, text.slice(begin, start).trim());
      name = null;
    }
  };
  new Walk(text, visit).document();
  return found;
}

/** Returns the text of an object with members from `fields`, which are values, and `raw`, which is JSON text copied unchanged. */
export function spliced(fields, raw) {
  const parts = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`);
  for (const [name, text] of Object.entries(raw)) parts.push(`${JSON.stringify(name)}:${text}`);
  return `{${parts.join(',')}}`;
}

/** Indents JSON and sorts the members of the outermost object, so that a different order does not appear as a change. */
export function comparable(text) {
  if (!text.trim().startsWith('{')) return indented(text);
  const byName = [...members(text)].sort(([one], [other]) => (one < other ? -1 : 1));
  return indented(`{${byName.map(([name, raw]) => `${JSON.stringify(name)}:${raw}`).join(',')}}`);
}
