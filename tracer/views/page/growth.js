/* The growth chart: stacked bands of what each value touched, the line of allocated bytes, and lanes of events below. A
   brush on it is the window of the whole page. */

const LANES = [
  ["starts", "process starts"], ["exits", "exits"], ["execs", "execs"], ["made", "regions made"], ["gone", "regions gone"],
];
const LANE_PX = 14;
const isNarrow = () => innerWidth < 700;
const MAX_NOTES = 12; // listed at first
const MAX_LABEL = 24; // characters of a mark on the chart, or of a path in the legend
const EDGES = Array.from({ length: BINS.count + 1 }, (_, edge) => edge);
const seconds = (us) => (SESSION.started + us) / 1e6;

/** The line and the unseen bytes of all regions or of the chosen one; null: the page has none of that one. */
const samplesOf = (region) => (region === null ? DATA.growth.all : DATA.growth.regions[region] || null);

/** The bands from the bottom up: { value, name, kind, bytes at each edge }. The value that touched first is lowest. */
function growthBands() {
  const bands = new Map();
  const bytesOf = (value) => {
    if (!bands.has(value)) bands.set(value, new Float64Array(BINS.count + 1));
    return bands.get(value);
  };
  const isThere = (region, edge) => DATA.regions[region].gone_edge === null || edge < DATA.regions[region].gone_edge;
  const takeAway = (into, region, bytes) => { if (DATA.regions[region].gone_edge !== null) into[DATA.regions[region].gone_edge] -= bytes; };
  const rank = ranksOf();
  for (let group = 0; group < GROUPS; group++) {
    const region = DATA.cells.region[group];
    if (choice.region !== null && choice.region !== region) continue;
    const value = valueOf(choice.by, region, DATA.cells.who[group]);
    const into = bytesOf(rank.get(value) < MAX_COLOURS ? value : OTHERS);
    let there = 0;
    for (let cell = firstCell[group]; cell < firstCell[group + 1]; cell++) {
      const edge = cellBin[cell] === BINS.count ? 0 : cellBin[cell] + 1;
      if (!isThere(region, edge)) continue;
      into[edge] += cellPages[cell] * PAGE_BYTES;
      there += cellPages[cell] * PAGE_BYTES;
    }
    takeAway(into, region, there);
  }
  DATA.regions.forEach((region, number) => {
    if (!region.before_bytes || (choice.region !== null && choice.region !== number) || !isThere(number, region.created_edge)) return;
    bytesOf(BEFORE)[region.created_edge] += region.before_bytes;
    takeAway(bytesOf(BEFORE), number, region.before_bytes);
  });
  for (const bytes of bands.values()) for (let edge = 1; edge <= BINS.count; edge++) bytes[edge] += bytes[edge - 1];
  const samples = samplesOf(choice.region);
  if (samples) bands.set(UNSEEN, Float64Array.from(samples.unseen));
  const came = (bytes) => bytes.findIndex((size) => size !== 0);
  const last = (value) => [OTHERS, UNSEEN].indexOf(value);
  return [...bands].filter(([, bytes]) => came(bytes) >= 0)
    .sort(([a, of], [b, its]) => (b === BEFORE) - (a === BEFORE) || last(a) - last(b) || came(of) - came(its))
    .map(([value, bytes]) => ({ value, name: nameOf(value), kind: colourName(value), bytes }));
}

function eventSummary() {
  const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
  const told = LANES.map(([key, title]) => [title, total(DATA.events[key])]).filter(([, count]) => count);
  return told.map(([title, count]) => `${title} ${formatCount(count)}`).join(", ") || "no events";
}

/** A short text for a note on the chart. */
function noteLabel({ kind, text }) {
  if (kind !== "mark") return kind;
  return text.length > MAX_LABEL ? `${text.slice(0, MAX_LABEL - 1)}…` : text;
}

class Growth {
  constructor(holder) {
    this.holder = holder;
    this.lanes = make("canvas", { role: "img", "aria-label": eventSummary() });
    holder.after(this.lanes);
    this.times = EDGES.map((edge) => seconds(edgeTime(edge)));
    this.plot = null;
    keepDrawn(holder, () => this.draw());
    onChoice.push((changed) => {
      if (changed.has("by") || changed.has("region")) this.rebuild();
      else if (changed.has("picked") && this.plot) this.plot.redraw(false);
      if (changed.has("from") || changed.has("until")) this.showWindow();
    });
  }

  size() {
    const width = this.holder.clientWidth;
    return { width, height: Math.max(220, Math.min(360, width * 0.4)) };
  }

  draw() {
    if (!this.plot) this.rebuild();
    else if (this.plot.width === this.holder.clientWidth) this.plot.redraw(false);
    else {
      this.plot.setSize(this.size());
      this.showWindow();
    }
  }

  rebuild() {
    if (this.plot) this.plot.destroy();
    this.bands = growthBands();
    const samples = samplesOf(choice.region);
    this.line = samples ? samples.allocated : EDGES.map(() => null);
    const sums = [];
    for (const band of this.bands) {
      const below = sums[sums.length - 1];
      sums.push(Array.from(band.bytes, (bytes, edge) => bytes + (below ? below[edge] : 0)));
    }
    this.sums = sums;
    const paint = (band) => (u) => {
      const told = choice.picked !== null && !isPicked(band.value) && this.bands.some(({ value }) => isPicked(value));
      return told ? css("absent") : paintOf(u.ctx, colourName(band.value), devicePixelRatio);
    };
    const axis = { stroke: () => css("faint"), grid: { stroke: () => css("line"), width: 1 }, ticks: { stroke: () => css("line") }, font: "12px system-ui, sans-serif" };
    const isAlone = (edge) => this.line[edge] !== null && (this.line[edge - 1] ?? null) === null && (this.line[edge + 1] ?? null) === null;
    this.plot = new uPlot({
      ...this.size(),
      legend: { show: false },
      cursor: {
        y: false, points: { show: false }, drag: { x: true, y: false, setScale: false, dist: 4 },
        bind: { dblclick: () => () => showAll() },
      },
      scales: { y: { range: (_u, _low, high) => [0, Math.max(high, PAGE_BYTES) * 1.06] } },
      axes: [
        { ...axis, space: isNarrow() ? 64 : 90, values: (_u, splits, _axis, _space, step) => splits.map((time) => formatTick(time, step)) },
        { ...axis, size: isNarrow() ? 60 : 88, values: (_u, splits) => splits.map(formatRound),
          incrs: Array.from({ length: 48 }, (_, i) => 2 ** i) },
      ],
      series: [
        {},
        ...this.bands.slice().reverse().map((band) => ({
          label: band.name, points: { show: false }, width: 1, stroke: () => css("ground"), fill: paint(band),
        })),
        { label: "allocated", width: 2, stroke: () => css("total"),
          points: { show: true, size: 4, filter: () => EDGES.filter(isAlone), fill: () => css("total"), stroke: () => css("total") } },
      ],
      hooks: {
        draw: [(u) => { this.drawNotes(u); this.drawLanes(u); }],
        setCursor: [(u) => this.read(u.cursor.idx)],
        setSelect: [(u) => this.brush(u)],
      },
      padding: [8, 16, 0, 0],
    }, [this.times, ...sums.slice().reverse(), this.line], this.holder);
    const { over } = this.plot;
    over.setAttribute("role", "application");
    over.setAttribute("aria-label", "Growth over time. Arrow keys move along it, with Shift they choose a window, Escape chooses all. Plus and minus zoom, zero shows all.");
    over.setAttribute("aria-describedby", "growth-readout");
    over.tabIndex = 0;
    over.addEventListener("keydown", (event) => this.key(event));
    let pressedAt = 0;
    over.addEventListener("pointerdown", (event) => { pressedAt = event.clientX; });
    over.addEventListener("click", (event) => { if (Math.abs(event.clientX - pressedAt) < 4) this.click(event); });
    this.showWindow();
  }

  /* ---- the window ---- */

  /** Of the bins that the brush has touched. */
  brush(u) {
    if (this.isShowing || u.select.width <= 0) return;
    const at = (left) => (u.posToVal(left, "x") * 1e6 - SESSION.started - BINS.origin) / BINS.width;
    const from = Math.max(0, Math.min(BINS.count - 1, Math.floor(at(u.select.left) + 1e-6)));
    const right = u.select.left + u.select.width;
    const isToTheEnd = right >= u.bbox.width / devicePixelRatio - 1 && u.scales.x.max >= this.times[BINS.count];
    const until = isToTheEnd ? BINS.count : Math.max(from + 1, Math.min(BINS.count, Math.ceil(at(right) - 1e-6)));
    choose({ from, until });
    this.showWindow();
  }

  showWindow() {
    if (!this.plot) return;
    const position = (edge) => this.plot.valToPos(this.times[edge], "x");
    const left = position(choice.from);
    this.holder.classList.toggle("has-window", isWindow());
    this.isShowing = true;
    this.plot.setSelect({ left, width: isWindow() ? position(choice.until) - left : 0, top: 0, height: this.plot.bbox.height / devicePixelRatio }, false);
    this.isShowing = false;
  }

  key(event) {
    const zooms = { "+": 2, "=": 2, "-": 0.5, 0: 0 };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in zooms) {
      event.preventDefault();
      this.zoom(zooms[event.key]);
    }
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const from = this.plot.cursor.idx ?? BINS.count;
    const edge = Math.max(0, Math.min(BINS.count, from + steps[event.key]));
    if (!event.shiftKey) this.anchor = null;
    else {
      this.anchor ??= from;
      const [low, high] = [Math.min(this.anchor, edge), Math.max(this.anchor, edge)];
      if (low < high) choose({ from: low, until: high });
    }
    this.plot.setCursor({ left: this.plot.valToPos(this.times[edge], "x"), top: 10 });
  }

  zoom(factor) {
    const { min, max } = this.plot.scales.x;
    const [first, last] = [this.times[0], this.times[BINS.count]];
    const middle = this.plot.cursor.idx == null ? (min + max) / 2 : this.times[this.plot.cursor.idx];
    const half = factor ? (max - min) / factor / 2 : Infinity;
    this.plot.setScale("x", { min: Math.max(first, middle - half), max: Math.min(last, middle + half) });
    this.showWindow();
  }

  click(event) {
    const { over } = this.plot;
    const box = over.getBoundingClientRect();
    const edge = this.plot.posToIdx(event.clientX - box.left);
    const bytes = this.plot.posToVal(event.clientY - box.top, "y");
    const number = this.sums.findIndex((sum) => bytes < sum[edge]);
    if (number >= 0 && this.bands[number].value !== UNSEEN) pick(this.bands[number].value);
  }

  read(edge) {
    if (edge === null || edge === undefined) return;
    const parts = this.bands.filter((band) => band.bytes[edge]).sort((a, b) => b.bytes[edge] - a.bytes[edge]);
    const total = parts.reduce((sum, band) => sum + band.bytes[edge], 0);
    const text = parts.slice(0, 4).map((band) => `${band.name} ${formatBytes(band.bytes[edge])}`).join("; ");
    byId("growth-readout").textContent = `${formatTime(edgeTime(edge), DIGITS)}: ${formatBytes(total)}${text ? ` — ${text}` : ""}${parts.length > 4 ? `; ${parts.length - 4} more` : ""}`;
  }

  /* ---- what happened ---- */

  drawLanes(u) {
    const scale = devicePixelRatio;
    const shown = LANES.filter(([key]) => DATA.events[key].some((count) => count));
    const width = this.holder.clientWidth;
    const height = shown.length * LANE_PX + 4;
    Object.assign(this.lanes, { width: width * scale, height: height * scale });
    Object.assign(this.lanes.style, { width: `${width}px`, height: `${height}px` });
    const pen = this.lanes.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    const left = u.bbox.left / scale;
    shown.forEach(([key, title], lane) => {
      const middle = lane * LANE_PX + LANE_PX / 2;
      pen.fillStyle = css("faint");
      pen.textAlign = "right";
      pen.fillText(title, left - 6, middle, left - 8);
      pen.fillStyle = css("line");
      pen.fillRect(left, middle + 5, u.bbox.width / scale, 1);
      pen.fillStyle = css("ink");
      const most = Math.max(...DATA.events[key]);
      DATA.events[key].forEach((count, bin) => {
        const x = u.valToPos((this.times[bin] + this.times[bin + 1]) / 2, "x");
        if (!count || x < 0 || x > u.bbox.width / scale) return;
        const tall = Math.max(5, (9 * count) / most); // more events draw a taller bar
        pen.fillRect(left + x - 1, middle + 5 - tall, 2, tall);
      });
    });
  }

  /** A vertical line at every note, and what it is. Labels that would overlap are joined. */
  drawNotes(u) {
    const { ctx, bbox } = u;
    const scale = devicePixelRatio;
    const right = bbox.left + bbox.width;
    ctx.save();
    ctx.strokeStyle = css("ink");
    ctx.lineWidth = scale;
    ctx.setLineDash([4 * scale, 4 * scale]);
    ctx.font = `${11 * scale}px system-ui, sans-serif`;
    ctx.textBaseline = "top";
    ctx.textAlign = "left";
    ctx.beginPath();
    const labels = [];
    for (const note of DATA.notes) {
      const x = u.valToPos(seconds(note.time), "x", true);
      if (x < bbox.left || x > right) continue;
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      const text = noteLabel(note);
      const last = labels[labels.length - 1];
      if (!last || x >= last.x + ctx.measureText(last.texts.join(", ")).width + 8 * scale) labels.push({ x, texts: [text] });
      else if (!last.texts.includes(text) && last.texts.length < 4) last.texts.push(text);
    }
    ctx.stroke();
    ctx.setLineDash([]);
    for (const { x, texts } of labels) {
      const text = texts.join(", ");
      const width = ctx.measureText(text).width;
      const left = Math.max(bbox.left, Math.min(x + 4 * scale, right - width));
      ctx.fillStyle = css("ground");
      ctx.fillRect(left - 2 * scale, bbox.top + scale, width + 4 * scale, 14 * scale);
      ctx.fillStyle = css("ink");
      ctx.fillText(text, left, bbox.top + 2 * scale);
    }
    ctx.restore();
  }
}

/** Local time, as precise as the step between two ticks needs. */
function formatTick(time, step) {
  const us = time * 1e6 - SESSION.started;
  if (step < 1) return formatTime(us, step < 0.1 ? 2 : 1).slice(-(step < 0.1 ? 11 : 10));
  const clock = formatTime(us, 0);
  if (step >= 86400) return clock.slice(0, 10);
  return step >= 60 ? clock.replace(/:\d\d$/, "") : clock;
}

/** The end of a path, which tells it from others. */
const shortName = (name) => (name.startsWith("/") && name.length > MAX_LABEL ? `…${name.slice(1 - MAX_LABEL)}` : name);

/* ---- the legend: what each value touched in the window ---- */

function showLegend() {
  const pagesOf = new Map(sums().map(({ value, pages }) => [value, pages]));
  const top = [...ranksOf().keys()].slice(0, MAX_COLOURS).filter((value) => pagesOf.has(value) || !isSearch());
  const rest = [...pagesOf].reduce((sum, [value, pages]) => sum + (top.includes(value) ? 0 : pages), 0);
  const line = (value, pages) => make("li", {}, pickButton(value, shortName(nameOf(value)), nameOf(value), make("span", { class: "figure" }, formatBytes(pages * PAGE_BYTES))));
  const items = top.map((value) => line(value, pagesOf.get(value) || 0)); // as many in each window: nothing moves
  if (rest) items.push(line(OTHERS, rest));
  if (!isSearch()) {
    const before = partPages("before"), unseen = partPages("unseen");
    if (before) items.push(line(BEFORE, before));
    if (unseen > 0) items.push(make("li", {}, make("span", { class: "static" }, swatch("unseen"), make("span", { class: "name" }, "unseen"), make("span", { class: "figure" }, formatBytes(unseen * PAGE_BYTES)))));
  }
  if (!items.length) items.push(make("li", { class: "hint" }, isSearch() ? "Nothing that was touched fits." : "Nothing was touched."));
  byId("legend").replaceChildren(...items);
}

/* ---- the window, by two sliders: for fingers and keyboards ---- */

function showSliders() {
  const slider = (name, text) => {
    const input = make("input", { type: "range", id: `window-${name}`, min: "0", max: String(BINS.count), step: "1", "aria-label": text });
    input.addEventListener("input", () => {
      const edge = Number(input.value);
      if (name === "from") choose({ from: Math.min(edge, BINS.count - 1), until: Math.max(choice.until, Math.min(edge, BINS.count - 1) + 1) });
      else choose({ until: Math.max(edge, 1), from: Math.min(choice.from, Math.max(edge, 1) - 1) });
      show();
    });
    return input;
  };
  const from = slider("from", "The window begins"), until = slider("until", "The window ends");
  const show = () => {
    for (const [input, edge] of [[from, choice.from], [until, choice.until]]) {
      input.value = String(edge);
      input.setAttribute("aria-valuetext", formatTime(edgeTime(edge), DIGITS));
    }
  };
  byId("sliders").append(make("label", {}, "from", from), make("label", {}, "until", until));
  onChoice.push(show);
  show();
}

function showNotes() {
  const line = ({ time, kind, text }) => make("li", {}, make("span", { class: "time" }, formatTime(time, DIGITS)), " ", make("strong", {}, kind), " ", make("span", { class: "name" }, text));
  const list = byId("happened");
  list.append(...DATA.notes.slice(0, MAX_NOTES).map(line));
  const rest = DATA.notes.slice(MAX_NOTES);
  if (!rest.length) return;
  const more = make("li", {}, make("button", { type: "button", onclick: () => { more.remove(); list.append(...rest.map(line)); } }, `show ${formatCount(rest.length)} more`));
  list.append(more);
}

function showGrowth() {
  const isEmpty = !GROUPS && !DATA.growth.all.allocated.some((bytes) => bytes);
  if (SESSION.tier === "proc" || isEmpty) {
    for (const id of ["growth-hint", "growth-readout", "sliders", "lines"]) byId(id).hidden = true;
    byId("growth").append(make("p", {}, SESSION.tier === "proc" ? "A snapshot from /proc has no growth over time." : "Nothing was allocated."));
    return;
  }
  new Growth(byId("growth"));
  byId("growth-readout").textContent = `In all: ${eventSummary()}.`;
  showSliders();
  showNotes();
  showLegend();
  onChoice.push((changed) => { if (changed.size > 1 || !changed.has("picked")) showLegend(); });
}
