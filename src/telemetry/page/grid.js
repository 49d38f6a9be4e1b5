// The map: every node is a cell of a canvas, so that ten thousand of them cost one element. What a cell shows is in the
// list as well, which is what keyboards and screen readers use.

const GAP = 2;
const TITLE = 22;
const STATES = ['ready', 'not_ready', 'deleting'];

export class Grid {
  #canvas; #tip; #pick; #groups = []; #cells = []; #size = 12; #selected = null; #due = false; #colours = {}; #layout = ''; #drawn = [];

  constructor(canvas, tip, pick) {
    this.#canvas = canvas;
    this.#tip = tip;
    this.#pick = pick;
    new ResizeObserver(() => this.#later()).observe(canvas.parentElement);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#recolour());
    canvas.addEventListener('click', (e) => { const node = this.#at(e); if (node) this.#pick(node.name); });
    canvas.addEventListener('mousemove', (e) => this.#hover(e));
    canvas.addEventListener('mouseleave', () => { this.#tip.hidden = true; });
    this.#recolour();
  }

  /** Groups as [title, nodes], drawn with the next frame. */
  show(groups, selected) {
    this.#groups = groups;
    this.#selected = selected;
    this.#later();
  }

  #recolour() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ['ready', 'not_ready', 'deleting', 'cordoned', 'text', 'faint', 'panel']) {
      this.#colours[name] = style.getPropertyValue(`--${name}`).trim();
    }
    this.#layout = '';
    this.#later();
  }

  #later() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => { this.#due = false; this.#draw(); });
  }

  /** The largest cell with which everything fits into the room, from 4 to 28 pixels. */
  #fit(width, height) {
    for (let size = 28; size > 4; size -= 1) {
      if (this.#height(width, size) <= height) return size;
    }
    return 4;
  }

  #height(width, size) {
    const columns = Math.max(1, Math.floor((width - GAP) / (size + GAP)));
    const titled = this.#groups.length > 1 || this.#groups[0]?.[0];
    return this.#groups.reduce((y, [, nodes]) =>
      y + (titled ? TITLE : 0) + Math.ceil(nodes.length / columns) * (size + GAP) + GAP, GAP);
  }

  #draw() {
    const room = this.#canvas.parentElement;
    const width = room.clientWidth;
    const size = this.#size = this.#fit(width, room.clientHeight - 4);
    const height = Math.max(this.#height(width, size), room.clientHeight - 4);
    const scale = devicePixelRatio || 1;
    this.#canvas.style.width = `${width}px`;
    this.#canvas.style.height = `${height}px`;
    if (this.#canvas.width !== Math.round(width * scale) || this.#canvas.height !== Math.round(height * scale)) {
      this.#canvas.width = Math.round(width * scale);
      this.#canvas.height = Math.round(height * scale);
    }
    const draw = this.#canvas.getContext('2d');
    draw.setTransform(scale, 0, 0, scale, 0, 0);
    const columns = Math.max(1, Math.floor((width - GAP) / (size + GAP)));
    const titled = this.#groups.length > 1 || this.#groups[0]?.[0];
    const layout = `${width} ${height} ${scale} ${this.#groups.map(([t, n]) => `${t}=${n.length}`)}`;
    const whole = layout !== this.#layout;
    this.#layout = layout;
    if (whole) {
      this.#drawn = [];
      draw.clearRect(0, 0, width, height);
    }
    draw.font = '600 12px system-ui, sans-serif';
    this.#cells = [];
    let [y, at] = [GAP, 0];
    for (const [title, nodes] of this.#groups) {
      if (titled) {
        if (whole) {
          draw.fillStyle = this.#colours.faint;
          draw.fillText(`${title || 'none'} (${nodes.length})`, GAP + 4, y + 15);
        }
        y += TITLE;
      }
      this.#cells.push({ y, columns, nodes });
      for (let i = 0; i < nodes.length; i += 1, at += 1) {
        const node = nodes[i];
        // Only cells that look different than before are drawn.
        const look = STATES.indexOf(node.state) * 4 + (node.cordoned ? 2 : 0) + (node.name === this.#selected ? 1 : 0);
        if (this.#drawn[at] === look) continue;
        const [left, top] = [GAP + (i % columns) * (size + GAP), y + Math.floor(i / columns) * (size + GAP)];
        if (this.#drawn[at] !== undefined) draw.clearRect(left - 1, top - 1, size + 2, size + 2);
        this.#drawn[at] = look;
        this.#cell(draw, node, left, top, size);
      }
      y += Math.ceil(nodes.length / columns) * (size + GAP) + GAP;
    }
  }

  // A state is a colour and a form, for those who do not see the colour.
  #cell(draw, node, x, y, size) {
    draw.fillStyle = this.#colours[node.state];
    draw.fillRect(x, y, size, size);
    if (node.state === 'not_ready' && size >= 6) {
      draw.strokeStyle = this.#colours.panel;
      draw.lineWidth = Math.max(1, size / 9);
      draw.beginPath();
      draw.moveTo(x + size * .25, y + size * .25); draw.lineTo(x + size * .75, y + size * .75);
      draw.moveTo(x + size * .75, y + size * .25); draw.lineTo(x + size * .25, y + size * .75);
      draw.stroke();
    } else if (node.state === 'deleting' && size >= 6) {
      draw.fillStyle = this.#colours.panel;
      draw.fillRect(x + size * .2, y + size * .42, size * .6, size * .16);
    }
    if (node.cordoned) {
      draw.strokeStyle = this.#colours.cordoned;
      draw.lineWidth = 2;
      draw.strokeRect(x + 1, y + 1, size - 2, size - 2);
    }
    if (node.name === this.#selected) {
      draw.strokeStyle = this.#colours.text;
      draw.lineWidth = 2;
      draw.strokeRect(x, y, size, size);
    }
  }

  #at(event) {
    const step = this.#size + GAP;
    const { y, columns, nodes } = this.#cells.findLast((c) => event.offsetY >= c.y) ?? {};
    if (!nodes) return null;
    const [column, line] = [Math.floor((event.offsetX - GAP) / step), Math.floor((event.offsetY - y) / step)];
    return column >= 0 && column < columns ? nodes[line * columns + column] ?? null : null;
  }

  #hover(event) {
    const node = this.#at(event);
    this.#tip.hidden = !node;
    if (!node) return;
    this.#tip.textContent = `${node.name}: ${node.reason || node.state.replace('_', ' ')}, ${node.pods.total} pods`;
    const left = Math.min(event.offsetX + 12, this.#canvas.clientWidth - this.#tip.offsetWidth - 4);
    this.#tip.style.transform = `translate(${Math.max(0, left)}px, ${event.offsetY + 16}px)`;
    this.#tip.style.left = '0';
    this.#tip.style.top = '0';
  }
}
