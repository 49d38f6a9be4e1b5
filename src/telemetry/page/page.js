// The fleet page: takes the stream of changes, filters and groups, and shows one node.

import { Grid } from './grid.js';
import { List, element } from './list.js';

const get = (id) => document.getElementById(id);
const nodes = new Map();
const filters = new Set();
// How many pods ran on a node, over the time that the page has been open; a figure for each message.
const history = new Map();
const REMEMBERED = 120;
const AGAIN = 2000;
const TOGETHER = 500;
let [chosen, dirty, opened, ordered, timer] = [null, false, 0, null, 0];

const grid = new Grid(get('grid'), get('tip'), (name) => { list.activate(name); choose(name); });
const list = new List(get('list'), get('rows'), choose);

/* Filters: words of the search, and states. Both are kept in the address, so that a view can be passed on. */

function matcher() {
  const words = get('query').value.toLowerCase().split(/\s+/).filter(Boolean);
  const states = [...filters].filter((f) => f !== 'cordoned');
  return (node) => {
    if (states.length && !states.includes(node.state)) return false;
    if (filters.has('cordoned') && !node.cordoned) return false;
    return words.every((word) => {
      const [, field, value] = word.match(/^(name|reason|shard|zone|provider):(.*)$/) ?? [];
      if (field) return node[field].toLowerCase().includes(value);
      return [node.name, node.reason, node.shard, node.zone, node.provider].some((t) => t.toLowerCase().includes(word));
    });
  };
}

function draw() {
  dirty = false;
  if (!ordered) ordered = [...nodes.keys()].sort();
  const [matches, by] = [matcher(), get('group').value];
  const counts = { ready: 0, not_ready: 0, deleting: 0, cordoned: 0, running: 0, shown: 0 };
  const groups = new Map();
  for (const name of ordered) {
    const node = nodes.get(name);
    counts[node.state] += 1;
    counts.running += node.pods.running;
    if (node.cordoned) counts.cordoned += 1;
    if (!matches(node)) continue;
    counts.shown += 1;
    const key = by ? node[by] : '';
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(node);
  }
  const sorted = [...groups].sort(([a], [b]) => (a < b ? -1 : 1));
  grid.show(sorted, chosen);
  list.show(sorted.flatMap(([, group]) => group), chosen);
  get('none').hidden = counts.shown > 0;
  for (const chip of document.querySelectorAll('.chip')) chip.querySelector('b').textContent = counts[chip.dataset.filter];
  const only = counts.shown === ordered.length ? '' : `, ${counts.shown} shown`;
  const text = `${counts.ready} of ${ordered.length} nodes ready, ${counts.running} pods running${only}`;
  if (get('summary').textContent !== text) get('summary').textContent = text;
}

/** Draws with the next frame; what comes from the stream waits for more of it. */
function later(patience = 0) {
  if (dirty && patience) return;
  dirty = true;
  clearTimeout(timer);
  timer = setTimeout(() => requestAnimationFrame(draw), patience);
}

function remember() {
  const params = new URLSearchParams();
  if (get('query').value) params.set('q', get('query').value);
  if (filters.size) params.set('state', [...filters].join(','));
  if (get('group').value) params.set('group', get('group').value);
  if (chosen) params.set('node', chosen);
  const text = params.toString();
  window.history.replaceState(null, '', text ? `?${text}` : location.pathname);
}

function recall() {
  const params = new URLSearchParams(location.search);
  get('query').value = params.get('q') ?? '';
  get('group').value = params.get('group') ?? '';
  (params.get('state') ?? '').split(',').filter(Boolean).forEach((f) => filters.add(f));
  for (const chip of document.querySelectorAll('.chip')) chip.setAttribute('aria-pressed', filters.has(chip.dataset.filter));
  if (params.get('node')) choose(params.get('node'));
}

get('tools').addEventListener('submit', (e) => e.preventDefault());
get('query').addEventListener('input', () => { later(); remember(); });
get('group').addEventListener('change', () => { later(); remember(); });
for (const chip of document.querySelectorAll('.chip')) {
  chip.addEventListener('click', () => {
    const what = chip.dataset.filter;
    if (!filters.delete(what)) filters.add(what);
    chip.setAttribute('aria-pressed', filters.has(what));
    later();
    remember();
  });
}
document.addEventListener('keydown', (e) => {
  if (e.key === '/' && !e.target.closest('input, select, dialog')) { e.preventDefault(); get('query').focus(); }
  if (e.key === 'Escape' && chosen && !e.target.closest('dialog')) { close(); get('list').focus(); }
});

/* One node. */

function choose(name, focus = false) {
  chosen = name;
  remember();
  later();
  look(focus);
}

function close() {
  chosen = null;
  get('detail').hidden = true;
  remember();
  later();
}

async function look(focus = false) {
  const name = chosen;
  if (!name) return;
  const answer = await ask(`/fleet/nodes/${encodeURIComponent(name)}`).catch(() => null);
  if (chosen !== name) return;
  if (!answer?.ok) { if (answer?.status === 404) close(); return; }
  const detail = await answer.json();
  if (chosen === name) show(detail, focus);
}

function show(detail, focus) {
  const { node } = detail;
  const aside = get('detail');
  const top = aside.scrollTop;
  const closing = element('button', '', 'Close');
  closing.type = 'button';
  closing.addEventListener('click', () => { close(); get('list').focus(); });
  const title = element('h2', '', node.name);
  title.id = 'name';
  const facts = element('dl');
  const fact = (what, value) => { if (value) facts.append(element('dt', '', what), element('dd', '', value)); };
  const state = node.state.replace('_', ' ');
  fact('State', (node.reason ? `${state}: ${node.reason}` : state) + (node.cordoned ? ', cordoned' : ''));
  fact('Provider', [node.provider, detail.providerStatus?.version].filter(Boolean).join(' '));
  fact('Shard', node.shard);
  fact('Zone', node.zone);
  fact('Endpoint', node.endpoint);
  fact('Pods', `${node.pods.running} running, ${node.pods.pending} pending, ${node.pods.failed} failed`);
  fact('Capacity', Object.entries(detail.capacity ?? {}).map(([k, v]) => `${k} ${v}`).join(', '));
  fact('Taints', (detail.taints ?? []).map((t) => `${t.key}=${t.value ?? ''}:${t.effect}`).join(', '));
  fact('Created', detail.created && new Date(detail.created).toLocaleString());
  const parts = [element('header', '', title, closing), facts];
  const past = history.get(node.name);
  if (past?.length > 1) parts.push(element('h3', '', 'Running pods since this page was opened'), spark(past));
  parts.push(element('h3', '', 'Conditions'), table(['Condition', 'Since', 'Message'], (detail.conditions ?? []).map((c) => [
    element('span', c.status === 'True' ? 'true' : 'false', `${c.status === 'True' ? '✓' : '✗'} ${c.type}`), ago(c.lastTransitionTime), c.message])));
  parts.push(element('h3', '', 'Pods'));
  if (!detail.listed) parts.push(element('p', '', `Run by ${node.shard || 'another replica'}, whose page lists them.`));
  else if (!detail.podList.length) parts.push(element('p', '', 'None.'));
  else {
    parts.push(table(['Pod', 'Phase', 'Ready', 'Restarts', 'Age'], detail.podList.map((p) => [
      `${p.namespace}/${p.name}`, p.deleting ? 'Terminating' : p.phase, `${p.ready}/${p.containers}`, p.restarts, ago(p.created)])));
  }
  parts.push(element('h3', '', 'More'), element('pre', '',
    `kubectl vnode doctor ${node.name}\nkubectl vnode events ${node.name}\nkubectl describe node ${node.name}`));
  aside.replaceChildren(...parts);
  aside.hidden = false;
  aside.scrollTop = top;
  if (focus) aside.focus();
}

function table(head, rows) {
  const line = (kind, cells) => element('tr', '', ...cells.map((c) => element(kind, '', c ?? '')));
  return element('table', '', element('thead', '', line('th', head)), element('tbody', '', ...rows.map((r) => line('td', r))));
}

function spark(values) {
  const kind = 'http://www.w3.org/2000/svg';
  const [svg, path] = [document.createElementNS(kind, 'svg'), document.createElementNS(kind, 'polyline')];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const y = (v) => (high === low ? 17 : 32 - ((v - low) / (high - low)) * 30);
  path.setAttribute('points', values.map((v, i) => `${(i / (values.length - 1)) * 300},${y(v)}`).join(' '));
  svg.setAttribute('viewBox', '0 0 300 34');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('class', 'spark');
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', `between ${low} and ${high}, now ${values.at(-1)}`);
  svg.append(path);
  return svg;
}

function ago(time) {
  const seconds = Math.max(0, Math.round((Date.now() - new Date(time)) / 1000));
  if (!time || Number.isNaN(seconds)) return '';
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)}m`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)}h` : `${Math.round(seconds / 86400)}d`;
}

/* The stream. EventSource cannot carry a token, so the format is read by hand: it is two lines a message. */

function ask(path, options = {}) {
  const token = sessionStorage.getItem('token');
  return fetch(path, { ...options, headers: token ? { authorization: `Bearer ${token}` } : {} });
}

async function login(why) {
  get('refused').textContent = why;
  get('token').value = '';
  get('login').showModal();
  await new Promise((done) => get('login').addEventListener('close', done, { once: true }));
  sessionStorage.setItem('token', get('token').value.trim());
}

function take(event, { set, gone }) {
  if (event === 'all') { nodes.clear(); ordered = null; }
  for (const name of gone) { nodes.delete(name); history.delete(name); ordered = null; }
  for (const node of set) {
    if (!nodes.has(node.name)) ordered = null;
    nodes.set(node.name, node);
    const past = history.get(node.name) ?? [];
    past.push(node.pods.running);
    if (past.length > REMEMBERED) past.shift();
    history.set(node.name, past);
  }
  later(event === 'all' ? 0 : TOGETHER);
  if (chosen && (gone.includes(chosen) || set.some((n) => n.name === chosen))) look();
}

async function follow() {
  const link = (state, text) => { get('link').dataset.state = state; get('link').textContent = text; };
  const answer = await ask('/fleet/stream');
  if (answer.status === 401 || answer.status === 403) {
    link('lost', 'not allowed');
    await login(sessionStorage.getItem('token') ? (await answer.text()).trim() : '');
    return;
  }
  if (!answer.ok) throw new Error(await answer.text());
  link('live', 'live');
  opened = Date.now();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const messages = rest.split('\n\n');
    rest = messages.pop();
    for (const message of messages) {
      const [, event, data] = message.match(/^event: (\w+)\ndata: (.*)$/s) ?? [];
      if (event) take(event, JSON.parse(data));
    }
  }
}

recall();
for (;;) {
  const before = opened;
  try {
    await follow();
  } catch {
    get('link').dataset.state = 'lost';
    get('link').textContent = 'the operator does not answer; trying again';
  }
  // A stream that lived is opened again at once: the server ends each after some minutes.
  if (opened === before) await new Promise((done) => setTimeout(done, get('link').dataset.state === 'lost' ? AGAIN : 0));
}
