// The list: only the rows that can be seen are elements, so that ten thousand nodes scroll as ten do. It is a listbox:
// one tab stop, arrow keys, Home, End, Page Up and Down, and letters typed one after the other find a name.

const ROW = 32;
const SPARE = 6;

export class List {
  #box; #room; #choose; #nodes = []; #active = null; #rows = new Map(); #typed = ''; #typedAt = 0; #due = false;

  constructor(box, room, choose) {
    this.#box = box;
    this.#room = room;
    this.#choose = choose;
    box.addEventListener('scroll', () => this.#later(), { passive: true });
    box.addEventListener('keydown', (e) => this.#key(e));
    room.addEventListener('click', (e) => {
      const row = e.target.closest('.row');
      if (row) { this.activate(row.dataset.name); this.#choose(row.dataset.name); }
    });
    new ResizeObserver(() => this.#later()).observe(box);
  }

  show(nodes, chosen) {
    this.#nodes = nodes;
    this.#room.style.height = `${nodes.length * ROW}px`;
    if (!nodes.some((n) => n.name === this.#active)) {
      this.#active = (nodes.find((n) => n.name === chosen) ?? nodes[0])?.name ?? null;
    }
    this.#later();
  }

  /** Makes a node the active one and scrolls to it. */
  activate(name) {
    const at = this.#nodes.findIndex((n) => n.name === name);
    if (at < 0) return;
    this.#active = name;
    const [top, room] = [at * ROW, this.#box.clientHeight];
    if (top < this.#box.scrollTop) this.#box.scrollTop = top;
    else if (top + ROW > this.#box.scrollTop + room) this.#box.scrollTop = top + ROW - room;
    // At once, so that a screen reader finds the row that it is told of.
    this.#draw();
  }

  #later() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => { this.#due = false; this.#draw(); });
  }

  #draw() {
    const first = Math.max(0, Math.floor(this.#box.scrollTop / ROW) - SPARE);
    const last = Math.min(this.#nodes.length, Math.ceil((this.#box.scrollTop + this.#box.clientHeight) / ROW) + SPARE);
    const wanted = new Set();
    for (let i = first; i < last; i += 1) {
      const node = this.#nodes[i];
      wanted.add(node.name);
      let row = this.#rows.get(node.name);
      if (!row) {
        row = element('div', 'row', element('span'), element('span'), element('span', 'num'), element('span'));
        row.setAttribute('role', 'option');
        row.id = `row-${node.name}`;
        row.dataset.name = node.name;
        this.#rows.set(node.name, row);
        this.#room.append(row);
      }
      row.style.top = `${i * ROW}px`;
      row.setAttribute('aria-posinset', i + 1);
      row.setAttribute('aria-setsize', this.#nodes.length);
      row.setAttribute('aria-selected', node.name === this.#active);
      const state = node.state === 'ready' ? 'ready' : node.reason || node.state.replace('_', ' ');
      const texts = [node.name, node.cordoned ? `${state}, cordoned` : state, node.pods.total, node.shard];
      const look = texts.join('|');
      if (row.dataset.look === look) continue;
      row.dataset.look = look;
      texts.forEach((text, c) => {
        if (c === 1) row.children[c].replaceChildren(element('i', `dot ${node.state}`), document.createTextNode(text));
        else row.children[c].textContent = text;
      });
      row.setAttribute('aria-label', `${node.name}, ${texts[1]}, ${node.pods.total} pods, shard ${node.shard}`);
    }
    for (const [name, row] of this.#rows) {
      if (!wanted.has(name)) { row.remove(); this.#rows.delete(name); }
    }
    if (this.#active && wanted.has(this.#active)) this.#box.setAttribute('aria-activedescendant', `row-${this.#active}`);
    else this.#box.removeAttribute('aria-activedescendant');
  }

  #key(event) {
    const at = this.#nodes.findIndex((n) => n.name === this.#active);
    const page = Math.max(1, Math.floor(this.#box.clientHeight / ROW) - 1);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: this.#nodes.length - 1,
      PageDown: at + page, PageUp: at - page }[event.key];
    if (to !== undefined && this.#nodes.length) {
      event.preventDefault();
      this.activate(this.#nodes[Math.min(Math.max(to, 0), this.#nodes.length - 1)].name);
    } else if ((event.key === 'Enter' || event.key === ' ') && this.#active) {
      event.preventDefault();
      this.#choose(this.#active, true);
    } else if (event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey) {
      this.#typed = event.timeStamp - this.#typedAt < 800 ? this.#typed + event.key : event.key;
      this.#typedAt = event.timeStamp;
      const found = this.#nodes.find((n) => n.name.startsWith(this.#typed.toLowerCase()));
      if (found) this.activate(found.name);
    }
  }
}

/** An element with a class and children. Texts never become markup. */
export function element(kind, style = '', ...children) {
  const made = document.createElement(kind);
  if (style) made.className = style;
  made.append(...children);
  return made;
}
