// The kinds of objects that the generic pages show: one row each, by the name in the address.
//
// Forms of fields: `text`, `flag`, `json` (an object, kept as text), and `base64` (a text that the API carries in base64).

const THING = { id: 'ThingUUID', description: 'Description', updated: 'Updated', nameHint: '' };

export const KINDS = {
  macros: {
    ...THING,
    path: '/api/macros',
    title: 'Macros',
    one: 'macro',
    id: 'ID',
    updated: 'LastUpdated',
    nameHint: 'Use capital letters, digits, _ and -.',
    fields: [{ name: 'Expansion', label: 'Expansion', form: 'text', empty: '', rows: 6 }],
  },
  templates: {
    ...THING,
    path: '/api/templates',
    title: 'Templates',
    one: 'template',
    fields: [{ name: 'Contents', label: 'Contents (JSON)', form: 'json', empty: '{}', rows: 16 }],
  },
  actionables: {
    ...THING,
    path: '/api/pivots',
    title: 'Actionables',
    one: 'actionable',
    fields: [
      { name: 'Disabled', label: 'Disabled', form: 'flag', empty: false },
      { name: 'Contents', label: 'Contents (JSON)', form: 'json', empty: '{}', rows: 16 },
    ],
  },
  'saved-queries': {
    ...THING,
    path: '/api/library',
    title: 'Saved queries',
    one: 'saved query',
    fields: [
      { name: 'Query', label: 'Query', form: 'text', empty: '', rows: 6 },
      { name: 'Metadata', label: 'Metadata (JSON)', form: 'json', empty: '{}', rows: 6 },
    ],
  },
  playbooks: {
    ...THING,
    path: '/api/playbooks',
    title: 'Playbooks',
    one: 'playbook',
    id: 'UUID',
    description: 'Desc',
    updated: 'LastUpdated',
    fields: [{ name: 'Body', label: 'Text', form: 'base64', empty: '', rows: 20 }],
  },
};
