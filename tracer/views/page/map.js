/* The page map: a region from its first page to its last. A cell's colour shows who touched its pages first. */

const MAP_PX = 300;
const MAP_GUTTER_PX = 72;
const CELL_SIZES = [24, 16, 12, 8, 6, 5];
const MAX_OPEN = 3;
const MAX_MAPS = 24; // at first
const PALE = 0.15;

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

/** What tally() asks of each span: its value in the chosen dimension, and whether it is in the window and found. What is
    from before the trace was touched in no window. */
function judge(region, spans) {
  const value = new Int32Array(spans.count), lit = new Uint8Array(spans.count);
  const isChosen = choice.region === null || choice.region === region;
  const beforeIsLit = isChosen && !isWindow() && (!isSearch() || found.region[region] === 1);
  const fits = new Uint8Array(BINS.count + 1).map((_, bin) => (inWindow(bin) ? 1 : 0));
  const known = DATA.who.command.map((_, who) => (isFound(region, who) ? 1 : 0));
  const values = known.map((_, who) => valueOf(choice.by, region, who));
  for (let i = 0; i < spans.count; i++) {
    const who = spans.who[i];
    value[i] = who < 0 ? BEFORE : values[who];
    lit[i] = who < 0 ? beforeIsLit : fits[spans.bin[i]] & known[who];
  }
  spans.value = value;
  spans.lit = lit;
}

/** The pages of each value, to be asked for the most and emptied. A value is BEFORE or more. */
class Counts {
  constructor() {
    this.pages = [];
    this.values = [];
  }

  add(value, pages) {
    const place = value - BEFORE;
    if (!this.pages[place]) this.values.push(value);
    this.pages[place] = (this.pages[place] || 0) + pages;
  }

  takeMost() {
    let most = BEFORE, pages = 0;
    for (const value of this.values) {
      if (this.pages[value - BEFORE] > pages) [most, pages] = [value, this.pages[value - BEFORE]];
      this.pages[value - BEFORE] = 0;
    }
    this.values.length = 0;
    return [most, pages];
  }
}

/** For each cell: the value that has most of its pages, of the lit ones if it has any; how many pages that value has,
    how many are lit, and how many are allocated. */
function tally(spans, from, pagesPerCell, cells) {
  const most = new Int32Array(cells);
  const mostPages = new Float64Array(cells), lit = new Float64Array(cells), present = new Float64Array(cells);
  let low = 0, high = spans.count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (spans.end[middle] <= from) low = middle + 1; else high = middle;
  }
  let cell = -1;
  const bright = new Counts(), pale = new Counts();
  const settle = () => {
    const [value, pages] = bright.takeMost(), [other, otherPages] = pale.takeMost();
    most[cell] = pages ? value : other;
    mostPages[cell] = pages || otherPages;
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
      (spans.lit[i] ? bright : pale).add(spans.value[i], (stop - at) * share);
      if (spans.lit[i]) lit[here] += (stop - at) * thereShare;
      present[here] += (stop - at) * thereShare;
      at = stop;
    }
  }
  if (cell >= 0) settle();
  return { most, mostPages, lit, present };
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
  constructor(number, holder) {
    const region = this.region = DATA.regions[number];
    this.number = number;
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
    this.canvas.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") this.point(event); });
    this.canvas.addEventListener("click", (event) => { if (this.point(event)) this.pick(); }); // a tap, too
    this.canvas.addEventListener("focus", () => this.draw(true));
    this.canvas.addEventListener("blur", () => this.draw());
    this.canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.point(event);
      this.zoom(event.deltaY < 0 ? 2 : 0.5);
    }, { passive: false });
    this.holder = holder;
    this.isStale = true;
    this.isSeen = false;
    new IntersectionObserver((entries) => {
      this.isSeen = entries[entries.length - 1].isIntersecting;
      this.refresh();
    }, { rootMargin: "200px" }).observe(this.canvas);
    keepDrawn(holder, () => this.draw());
    const tell = afterwards(() => { if (!this.isRead) this.readout.textContent = this.summary(); });
    onChoice.push((changed) => {
      this.isStale = true;
      if (changed.size > 1 || !changed.has("picked")) {
        this.isJudged = this.isRead = false;
        tell();
      }
      this.refresh();
    });
  }

  /** Draws it anew if it is out of date, and on the screen. */
  refresh() {
    if (this.isStale && this.isSeen) this.draw();
  }

  draw(read = false) {
    if (!this.isJudged) judge(this.number, this.spans);
    this.isJudged = true;
    const width = this.holder.clientWidth - parseFloat(getComputedStyle(this.holder).paddingLeft) * 2;
    if (width <= 0) return;
    this.isStale = false;
    this.grid = layOut(this.until - this.from, width - MAP_GUTTER_PX);
    const { size, across, columns, rows, pagesPerCell } = this.grid;
    const scale = devicePixelRatio;
    const height = rows * size + 2;
    Object.assign(this.canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const cells = Math.ceil((this.until - this.from) / pagesPerCell);
    const { most, lit, present } = this.cells = tally(this.spans, this.from, pagesPerCell, cells);
    const inner = size - 1;
    this.drawAbsent(pen, cells);
    const byPaint = new Map(); // cells of one paint together: to change it takes long
    const add = (cell, pages, alpha) => {
      const paint = `${alpha} ${colourName(most[cell])}`;
      if (!byPaint.has(paint)) byPaint.set(paint, []);
      byPaint.get(paint).push([cell, Math.max(1, Math.round(inner * Math.min(1, pages / pagesPerCell)))]);
    };
    for (let cell = 0; cell < cells; cell++) {
      if (lit[cell] < present[cell]) add(cell, present[cell], PALE);
      if (lit[cell]) add(cell, lit[cell], choice.picked === null || isPicked(most[cell]) ? 1 : PALE);
    }
    for (const paint of [...byPaint.keys()].sort()) { // the pale ones first
      const [alpha, kind] = paint.split(" ");
      pen.globalAlpha = alpha;
      pen.fillStyle = paintOf(pen, kind);
      for (const [cell, part] of byPaint.get(paint)) {
        pen.fillRect(MAP_GUTTER_PX + (cell % columns) * across, Math.floor(cell / columns) * size + inner - part, across - 1, part);
      }
    }
    pen.globalAlpha = 1;
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

  /** All cells, as if nothing were there. */
  drawAbsent(pen, cells) {
    const { size, across, columns, rows } = this.grid;
    pen.fillStyle = css("absent");
    pen.fillRect(MAP_GUTTER_PX, 0, Math.min(columns, cells) * across - 1, (rows - 1) * size);
    pen.fillRect(MAP_GUTTER_PX, (rows - 1) * size, (cells - (rows - 1) * columns) * across - 1, size - 1);
    pen.fillStyle = css("ground");
    for (let column = 1; column < columns; column++) pen.fillRect(MAP_GUTTER_PX + column * across - 1, 0, 1, rows * size);
    for (let row = 1; row < rows; row++) pen.fillRect(MAP_GUTTER_PX, row * size - 1, columns * across, 1);
  }

  /** The sentence below the map: who touched most of the region. */
  summary() {
    const pages = new Map();
    for (let group = 0; group < GROUPS; group++) {
      if (DATA.cells.region[group] !== this.number || !inside.pages[group]) continue;
      const value = valueOf(choice.by === "region" ? "command" : choice.by, this.number, DATA.cells.who[group]);
      pages.set(value, (pages.get(value) || 0) + inside.pages[group]);
    }
    const by = choice.by === "region" ? "command" : choice.by;
    const parts = [...pages].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([value, count]) => `${nameOf(value, by)} ${formatBytes(count * PAGE_BYTES)}`);
    const nobody = SESSION.tier === "proc" ? "Who touched its pages is unknown: /proc does not record it." : `No process touched a page of it ${isWindow() ? "in this window" : "during the trace"}.`;
    const { merged } = this.region.map;
    const exact = merged === 1 ? "" : ` ${formatCount(merged)} neighbouring stretches are drawn as one, in the colour and at the time of the longest.`;
    return `${parts.length ? `Most by ${parts.join(", ")}.` : nobody}${exact}`;
  }

  cellOf(page) { return Math.floor((page - this.from) / this.grid.pagesPerCell); }

  pick() {
    const cell = this.cellOf(this.cursor);
    if (this.cells.present[cell]) pick(this.cells.most[cell]);
  }

  read() {
    this.isRead = true; // so a summary that is under way does not replace it
    const { pagesPerCell } = this.grid;
    const cell = this.cellOf(this.cursor);
    const first = this.from + cell * pagesPerCell, last = Math.min(first + pagesPerCell, this.pages) - 1;
    const where = `${first === last ? `page ${formatCount(first)}` : `pages ${formatCount(first)} to ${formatCount(last)}`}, at ${formatBytes(first * PAGE_BYTES)}`;
    const there = Math.round(this.cells.present[cell] || 0);
    if (!there) { this.readout.textContent = `${where}: absent`; return; }
    const value = this.cells.most[cell];
    const pages = Math.round(this.cells.mostPages[cell]);
    const { who, begin, end } = this.ownerOf(value, first, last + 1);
    const when = end < 0 ? "" : `, ${formatTime(edgeTime(begin), DIGITS)} to ${formatTime(edgeTime(end + 1), DIGITS)}`;
    const rest = last > first ? `; ${formatCount(pages)} of ${formatCount(last - first + 1)} pages${there > pages ? `, ${formatCount(there - pages)} of others` : ""}` : "";
    this.readout.textContent = `${where}: ${value === BEFORE ? nameOf(BEFORE) : this.told(who)}${when}${rest}`;
  }

  /** Who it was in words: the process, and what it was doing. */
  told(who) {
    const process = DATA.who.process[who];
    const name = process < 0 ? `${nameOf(DATA.who.command[who], "command")}, one of the other processes` : processName(process);
    const ended = endOf(process);
    const kinds = [...new Set([...LABELS.slice(0, 1), ...[choice.by].filter((by) => VALUES.has(by) && by !== "command")])];
    return [`${name}${ended ? ` (${ended})` : ""}`, ...kinds.map((by) => `${by} ${nameOf(DATA.who[by][who], by)}`)].join("; ");
  }

  /** Of the value's pages here: who has most of them, and the first and last bin. In the window, if it has any there. */
  ownerOf(value, first, until) {
    const { spans } = this;
    for (const wanted of [true, false]) {
      const pages = new Map();
      let begin = Infinity, end = -1;
      for (let i = 0; i < spans.count && spans.start[i] < until; i++) {
        if (spans.end[i] <= first || spans.value[i] !== value) continue;
        if (Boolean(spans.lit[i]) !== wanted) continue;
        const here = Math.min(spans.end[i], until) - Math.max(spans.start[i], first);
        pages.set(spans.who[i], (pages.get(spans.who[i]) || 0) + here * (spans.pages ? spans.pages[i] / (spans.end[i] - spans.start[i]) : 1));
        if (value === BEFORE || spans.bin[i] === BINS.count) continue;
        begin = Math.min(begin, spans.bin[i]);
        end = Math.max(end, spans.bin[i]);
      }
      if (pages.size) return { who: [...pages].reduce((most, next) => (next[1] > most[1] ? next : most))[0], begin, end };
    }
    return { who: BEFORE, begin: 0, end: -1 };
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
    else if (event.key === "Enter" || event.key === " ") this.pick();
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
    if (column < 0 || column >= columns || row < 0 || page >= this.until) return false;
    this.cursor = page;
    this.draw(true);
    return true;
  }
}

function showMaps() {
  const holder = byId("maps");
  const kinds = [["before", "before the trace"], ["others", "others, without a colour of their own"], ["absent", "absent, or unseen: where unseen pages lie is unknown"]];
  byId("map-legend").append(...kinds.map(([kind, text]) => make("li", {}, make("span", { class: "static" }, swatch(kind), make("span", { class: "words" }, text)))));
  const numbers = [...DATA.regions.keys()].filter((number) => {
    const region = DATA.regions[number];
    return isShown(region) && (region.peak_bytes > 0 || region.map.gap.length);
  });
  if (!numbers.length) holder.append(make("p", { class: "hint" }, "No region has a page."));
  numbers.slice(0, MAX_MAPS).forEach((number, i) => addMap(holder, number, i < MAX_OPEN));
  const rest = numbers.slice(MAX_MAPS);
  const more = make("button", { type: "button", onclick: showRest }, `show ${formatCount(rest.length)} more regions`);
  function showRest() {
    more.remove();
    for (const number of rest.splice(0)) addMap(holder, number, false);
  }
  if (rest.length) holder.append(more);
  onChoice.push((changed) => {
    if (!changed.has("region")) return;
    if (rest.includes(choice.region)) showRest();
    for (const details of holder.querySelectorAll("details")) {
      details.hidden = choice.region !== null && details.region !== choice.region;
      if (details.region === choice.region) details.open = true;
    }
  });
}

/** One region, drawn when it is opened. */
function addMap(holder, number, isOpen) {
  const region = DATA.regions[number];
  const facts = [
    region.kind,
    formatBytes(region.size_bytes),
    `${formatBytes(region.allocated_bytes)} allocated${region.gone === null ? "" : ` when it went, ${formatTime(region.gone, 0)}`}`,
    `made by ${region.creator === null ? "?" : DATA.processes.tgid[region.creator]}`,
  ];
  if (region.unseen_bytes) facts.push(`${formatBytes(region.unseen_bytes)} unseen, somewhere in what is drawn as absent`);
  const details = make("details", { class: "map" }, make("summary", {}, make("strong", { class: "name" }, regionTitle(region)), ` ${facts.join(", ")}`));
  details.region = number;
  details.addEventListener("toggle", () => {
    if (!details.open) return;
    if (!details.map) details.map = new PageMap(number, details);
  });
  details.open = isOpen;
  holder.append(details);
}
