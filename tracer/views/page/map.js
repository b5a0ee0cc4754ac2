/* The page map: a region from its first page to its last. A cell's colour shows who touched its pages first. */

const MAP_PX = 300;
const MAP_GUTTER_PX = 72;
const CELL_SIZES = [24, 16, 12, 8, 6, 5];
const MAX_OPEN = 3;
const MAX_MAPS = 24; // at first

/** The map's columns, with gaps and lengths converted to start and end pages. */
function decodeMap(map) {
  const count = map.gap.length;
  const spans = { start: new Float64Array(count), end: new Float64Array(count), ...map, count };
  let page = 0;
  for (let i = 0; i < count; i++) {
    spans.start[i] = page += map.gap[i];
    spans.end[i] = page += map.length[i];
  }
  return spans;
}

/** For each cell: who touched most of its pages, how many that is, and how many of its pages are allocated. */
function tally(spans, from, pagesPerCell, cells) {
  const most = new Int32Array(cells).fill(-9);
  const mostPages = new Float64Array(cells);
  const present = new Float64Array(cells);
  let low = 0, high = spans.count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (spans.end[middle] <= from) low = middle + 1; else high = middle;
  }
  let cell = -1, counts = new Map();
  const settle = () => {
    for (const [owner, pages] of counts) if (pages > mostPages[cell]) { most[cell] = owner; mostPages[cell] = pages; }
    counts = new Map();
  };
  const until = from + cells * pagesPerCell;
  for (let i = low; i < spans.count && spans.start[i] < until; i++) {
    const length = spans.end[i] - spans.start[i];
    const share = (spans.pages ? spans.pages[i] : length) / length;
    const thereShare = (spans.present ? spans.present[i] : length) / length;
    let at = Math.max(spans.start[i], from);
    const end = Math.min(spans.end[i], until);
    while (at < end) {
      const here = Math.floor((at - from) / pagesPerCell);
      const stop = Math.min(end, from + (here + 1) * pagesPerCell);
      if (here !== cell) { if (cell >= 0) settle(); cell = here; }
      counts.set(spans.process[i], (counts.get(spans.process[i]) || 0) + (stop - at) * share);
      present[here] += (stop - at) * thereShare;
      at = stop;
    }
  }
  if (cell >= 0) settle();
  return { most, mostPages, present };
}

/** The grid that fits: the biggest cells, of one page each if possible, in rows that begin at round offsets. */
function layOut(pages, width) {
  let grid = null;
  for (const size of CELL_SIZES) {
    const columns = round(Math.floor(width / size), pages);
    grid = { size, columns, rows: Math.ceil(pages / columns), pagesPerCell: 1, across: pages > columns ? width / columns : size };
    if (grid.rows * size <= MAP_PX) return grid;
  }
  while (grid.rows * grid.size > MAP_PX) {
    grid.pagesPerCell *= 2;
    grid.rows = Math.ceil(pages / grid.pagesPerCell / grid.columns);
  }
  return grid;
}

/** This many columns, or a few less to make a round number. */
function round(columns, pages) {
  if (pages <= columns) return Math.max(1, columns);
  for (const step of [64, 32, 16, 8]) if (columns >= 2 * step) return columns - (columns % step);
  return Math.max(1, columns);
}

class PageMap {
  constructor(region, holder) {
    this.region = region;
    this.spans = decodeMap(region.map);
    const last = this.spans.count ? this.spans.end[this.spans.count - 1] : 0;
    this.pages = Math.max(1, Math.ceil((region.size_bytes || 0) / PAGE_BYTES), last);
    this.from = 0;
    this.until = this.pages;
    this.cursor = 0;
    this.canvas = make("canvas", {
      tabindex: "0", role: "application",
      "aria-label": `Page map of ${regionName(region)}. Arrow keys move, plus and minus zoom, zero shows all.`,
    });
    this.readout = make("p", { class: "readout", "aria-live": "polite" }, this.summary());
    this.shown = make("span", { class: "shown" });
    const tool = (text, label, act) => make("button", { type: "button", "aria-label": label, onclick: act }, text);
    const tools = make("div", { class: "tools" },
      tool("+", "zoom in", () => this.zoom(2)), tool("−", "zoom out", () => this.zoom(0.5)), tool("all", "show all", () => this.zoom(0)), this.shown);
    holder.append(tools, this.canvas, this.readout);
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("dblclick", (event) => { this.point(event); this.zoom(4); });
    this.canvas.addEventListener("focus", () => this.draw(true));
    this.canvas.addEventListener("blur", () => this.draw());
    this.canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.point(event);
      this.zoom(event.deltaY < 0 ? 2 : 0.5);
    }, { passive: false });
    this.holder = holder;
    keepDrawn(holder, () => this.draw());
  }

  draw(read = false) {
    const width = this.holder.clientWidth - parseFloat(getComputedStyle(this.holder).paddingLeft) * 2;
    if (width <= 0) return;
    this.grid = layOut(this.until - this.from, width - MAP_GUTTER_PX);
    const { size, across, columns, rows, pagesPerCell } = this.grid;
    const scale = devicePixelRatio;
    const height = rows * size + 2;
    Object.assign(this.canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const cells = Math.ceil((this.until - this.from) / pagesPerCell);
    const { most, present } = this.cells = tally(this.spans, this.from, pagesPerCell, cells);
    const paints = new Map();
    const absent = css("absent");
    const inner = size - 1;
    for (let cell = 0; cell < cells; cell++) {
      const x = MAP_GUTTER_PX + (cell % columns) * across, y = Math.floor(cell / columns) * size;
      pen.fillStyle = absent;
      pen.fillRect(x, y, across - 1, inner);
      if (!present[cell]) continue;
      const kind = colourName(most[cell]);
      if (!paints.has(kind)) paints.set(kind, paintOf(pen, kind));
      pen.globalAlpha = emphasized === null || isEmphasized(most[cell]) ? 1 : 0.15;
      pen.fillStyle = paints.get(kind);
      const part = Math.max(1, Math.round(inner * Math.min(1, present[cell] / pagesPerCell)));
      pen.fillRect(x, y + inner - part, across - 1, part);
      pen.globalAlpha = 1;
    }
    pen.fillStyle = css("faint");
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "top";
    const every = Math.ceil(28 / size);
    for (let row = 0; row < rows && (row === 0 || row * size + 11 <= height); row += every) {
      const offset = (this.from + row * columns * pagesPerCell) * PAGE_BYTES;
      pen.fillText(formatRound(offset), MAP_GUTTER_PX - 8, row * size);
    }
    if (document.activeElement === this.canvas || read) {
      const cell = this.cellOf(this.cursor);
      pen.strokeStyle = css("ink");
      pen.lineWidth = 2;
      pen.strokeRect(MAP_GUTTER_PX + (cell % columns) * across - 1, Math.floor(cell / columns) * size - 1, across + 1, size + 1);
    }
    this.shown.textContent = `${formatRound((this.until - this.from) * PAGE_BYTES)} from ${formatRound(this.from * PAGE_BYTES)}; a cell is ${formatCount(pagesPerCell)} ${pagesPerCell === 1 ? "page" : "pages"}`;
    if (read) this.read();
  }

  /** The sentence below the map: who touched most of the region. */
  summary() {
    const { process, touched_bytes } = this.region.touchers;
    const parts = process.filter((_, i) => touched_bytes[i]).slice(0, 3).map((who, i) => `${nameOf(who)} ${formatBytes(touched_bytes[i])}`);
    const nobody = SESSION.tier === "proc" ? "Who touched its pages is unknown: /proc does not record it." : "No process touched a page of it during the trace.";
    const exact = this.region.map.cell_pages === 1 ? "" : ` Every ${formatCount(this.region.map.cell_pages)} pages are drawn together, in the colour of who touched most of them.`;
    return `${parts.length ? `Most by ${parts.join(", ")}.` : nobody}${exact}`;
  }

  cellOf(page) { return Math.floor((page - this.from) / this.grid.pagesPerCell); }

  read() {
    const { pagesPerCell } = this.grid;
    const cell = this.cellOf(this.cursor);
    const first = this.from + cell * pagesPerCell, last = Math.min(first + pagesPerCell, this.pages) - 1;
    const where = `${first === last ? `page ${formatCount(first)}` : `pages ${formatCount(first)} to ${formatCount(last)}`}, at ${formatBytes(first * PAGE_BYTES)}`;
    const there = Math.round(this.cells.present[cell] || 0);
    if (!there) { this.readout.textContent = `${where}: absent`; return; }
    const owner = this.cells.most[cell];
    const pages = Math.round(this.cells.mostPages[cell]);
    const [begin, end] = this.times(owner, first, last + 1);
    const when = begin === null ? "" : begin === end ? `, at ${formatTime(begin, 3)}` : `, ${formatTime(begin, 3)} to ${formatTime(end, 3)}`;
    const rest = last > first ? `; ${formatCount(pages)} of ${formatCount(last - first + 1)} pages${there > pages ? `, ${formatCount(there - pages)} of others` : ""}` : "";
    const exited = exitOf(owner);
    const doing = owner === BEFORE ? null : doingOf(this.text(owner, first, last + 1));
    this.readout.textContent = `${where}: ${nameOf(owner)}${exited ? ` (${exited})` : ""}${when}${rest}${doing ? `; ${doing}` : ""}`;
  }

  /** The label text that most of the owner's pages here have. */
  text(owner, first, until) {
    const { spans } = this, pages = new Map();
    for (let i = 0; i < spans.count && spans.start[i] < until; i++) {
      if (!spans.text || spans.end[i] <= first || spans.process[i] !== owner) continue;
      const here = Math.min(spans.end[i], until) - Math.max(spans.start[i], first);
      const share = spans.pages ? spans.pages[i] / (spans.end[i] - spans.start[i]) : 1;
      pages.set(spans.text[i], (pages.get(spans.text[i]) || 0) + here * share);
    }
    return [...pages].reduce((most, next) => (next[1] > most[1] ? next : most), [UNKNOWN, 0])[0];
  }

  times(owner, first, until) {
    const { spans } = this;
    let begin = null, end = null;
    for (let i = 0; i < spans.count && spans.start[i] < until; i++) {
      if (spans.end[i] <= first || spans.process[i] !== owner || spans.first[i] === null) continue;
      begin = begin === null ? spans.first[i] : Math.min(begin, spans.first[i]);
      end = Math.max(end ?? -Infinity, spans.first[i] + spans.lasted[i]);
    }
    return [begin, end];
  }

  move(cells) {
    const { pagesPerCell } = this.grid;
    this.cursor = Math.max(0, Math.min(this.pages - 1, this.cursor + cells * pagesPerCell));
    const span = this.until - this.from;
    if (this.cursor < this.from) this.look(this.from - Math.ceil(span / 2), span);
    else if (this.cursor >= this.until) this.look(this.from + Math.ceil(span / 2), span);
    this.draw(true);
  }

  look(from, span) {
    this.from = Math.max(0, Math.min(Math.floor(from), this.pages - span));
    this.until = Math.min(this.pages, this.from + span);
    if (this.cursor < this.from || this.cursor >= this.until) this.cursor = this.from;
  }

  /** 0: all of it. */
  zoom(factor) {
    const span = factor ? Math.max(Math.min(16, this.pages), Math.min(this.pages, Math.round((this.until - this.from) / factor))) : this.pages;
    const cursor = this.cursor;
    this.from = 0;
    this.until = this.pages;
    this.look(cursor - span / 2, span);
    this.cursor = cursor;
    this.draw(true);
  }

  key(event) {
    const { columns, rows } = this.grid;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -columns * rows, PageDown: columns * rows, Home: -Infinity, End: Infinity };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in moves) this.move(moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(2);
    else if (event.key === "-") this.zoom(0.5);
    else if (event.key === "0") this.zoom(0);
    else return;
    event.preventDefault();
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const { size, across, columns, pagesPerCell } = this.grid;
    const column = Math.floor((event.clientX - box.left - MAP_GUTTER_PX) / across), row = Math.floor((event.clientY - box.top) / size);
    const page = this.from + (row * columns + column) * pagesPerCell;
    if (column < 0 || column >= columns || row < 0 || page >= this.until) return;
    this.cursor = page;
    this.draw(true);
  }
}

function showMaps() {
  const holder = byId("maps");
  const kinds = [["before", "before the trace"], ["others", "other processes"], ["absent", "absent, or unseen: where unseen pages lie is unknown"]];
  byId("map-legend").append(...kinds.map(([kind, text]) => make("li", {}, make("span", { class: "static" }, swatch(kind), make("span", { class: "words" }, text)))));
  const regions = DATA.regions.filter((region) => region.peak_bytes > 0 || region.map.gap.length);
  if (!regions.length) holder.append(make("p", { class: "hint" }, "No region has a page."));
  regions.slice(0, MAX_MAPS).forEach((region, i) => addMap(holder, region, i < MAX_OPEN));
  const rest = regions.slice(MAX_MAPS);
  if (!rest.length) return;
  const more = make("button", { type: "button", onclick: () => {
    more.remove();
    for (const region of rest) addMap(holder, region, false);
  } }, `show ${formatCount(rest.length)} more regions`);
  holder.append(more);
}

/** One region, drawn when it is opened. */
function addMap(holder, region, isOpen) {
  const facts = [
    region.kind,
    formatBytes(region.size_bytes),
    `${formatBytes(region.allocated_bytes)} allocated${region.gone === null ? "" : ` when it went, ${formatTime(region.gone, 0)}`}`,
    `made by ${region.creator === null ? "?" : DATA.processes.tgid[region.creator]}`,
  ];
  if (region.unseen_bytes) facts.push(`${formatBytes(region.unseen_bytes)} unseen, somewhere in what is drawn as absent`);
  const details = make("details", { class: "map" }, make("summary", {}, make("strong", { class: "name" }, regionName(region)), ` ${facts.join(", ")}`));
  details.addEventListener("toggle", () => {
    if (details.open && !details.map) details.map = new PageMap(region, details);
  });
  details.open = isOpen;
  holder.append(details);
}
