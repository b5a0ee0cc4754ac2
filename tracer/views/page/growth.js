/* The growth chart: stacked bands of what each process touched, the line of allocated bytes, and lanes of events below. */

const LANES = [
  ["starts", "process starts"], ["exits", "exits"], ["execs", "execs"], ["made", "regions made"], ["gone", "regions gone"],
];
const LANE_PX = 14;
const GUTTER_PX = 88;

/** The bands from the bottom up: the process that touched first is lowest. */
function growthBands() {
  const { bands, before, unseen, others } = DATA.growth;
  const came = (band) => band.bytes.findIndex((bytes) => bytes !== 0);
  const found = [
    { owner: BEFORE, name: "before the trace", kind: "before", bytes: before },
    ...TOP.map((process, rank) => ({ owner: process, name: nameOf(process), kind: `c${rank}`, bytes: bands[rank] }))
      .sort((a, b) => came(a) - came(b)),
    { owner: OTHERS, name: "other processes", kind: "others", bytes: others },
    { owner: null, name: "unseen", kind: "unseen", bytes: unseen },
  ];
  return found.filter((band) => came(band) >= 0);
}

function happenings() {
  const within = (times) => times.filter((time) => time !== null && time > 0 && time <= SESSION.ended);
  return {
    starts: within(DATA.processes.started),
    exits: within(DATA.processes.exited),
    execs: within(DATA.execs.time || []),
    made: within(DATA.regions.filter((region) => region.peak_bytes).map((region) => region.created)),
    gone: within(DATA.regions.filter((region) => region.peak_bytes).map((region) => region.gone)),
  };
}

function showGrowth() {
  const holder = byId("growth");
  const bands = growthBands();
  const seconds = (us) => (SESSION.started + us) / 1e6;
  const { edges, allocated, host } = DATA.growth;
  const sums = [];
  for (const band of bands) sums.push(band.bytes.map((bytes, i) => bytes + (sums.length ? sums[sums.length - 1][i] : 0)));
  if (SESSION.tier === "proc" || (!bands.length && !allocated.times.length)) {
    byId("growth-hint").hidden = byId("growth-readout").hidden = true;
    holder.append(make("p", {}, SESSION.tier === "proc" ? "A snapshot from /proc has no growth over time." : "Nothing was allocated."));
    return;
  }
  const tables = [[edges.map(seconds), ...sums.slice().reverse()], [allocated.times.map(seconds), allocated.bytes]];
  const data = uPlot.join(tables);
  const events = happenings();
  const happened = [...events.gone.map((time) => [time, "region gone"]), ...events.execs.map((time) => [time, "exec"])].sort((a, b) => a[0] - b[0]);
  let plot = null;

  const size = () => ({ width: holder.clientWidth, height: Math.max(240, Math.min(380, holder.clientWidth * 0.45)) });
  const paint = (kind, owner) => (u) => {
    const told = emphasized !== null && emphasized !== owner && bands.some((band) => band.owner === emphasized);
    return told ? css("absent") : paintOf(u.ctx, kind, devicePixelRatio);
  };

  const draw = () => {
    if (plot) {
      if (plot.width === holder.clientWidth) plot.redraw(false);
      else plot.setSize(size());
      return;
    }
    const axis = { stroke: () => css("faint"), grid: { stroke: () => css("line"), width: 1 }, ticks: { stroke: () => css("line") }, font: "12px system-ui, sans-serif" };
    plot = new uPlot({
      ...size(),
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
      scales: { y: { range: (_u, _low, high) => [0, Math.max(high, PAGE_BYTES) * 1.06] } },
      axes: [
        { ...axis, space: 90, values: (_u, splits, _axis, _space, step) => splits.map((time) => formatTick(time, step)) },
        { ...axis, size: GUTTER_PX, values: (_u, splits) => splits.map(formatRound),
          incrs: Array.from({ length: 48 }, (_, i) => 2 ** i) },
      ],
      series: [
        {},
        ...bands.slice().reverse().map((band) => ({
          label: band.name, spanGaps: true, points: { show: false }, width: 1, stroke: () => css("ground"), fill: paint(band.kind, band.owner),
        })),
        { label: "allocated", spanGaps: true, points: { show: false }, width: 2, stroke: () => css("total") },
      ],
      hooks: { draw: [drawLanes], setCursor: [(u) => readTime(u.cursor.idx)] },
      padding: [8, 24, 0, 0],
    }, data, holder);
    plot.over.setAttribute("role", "application");
    plot.over.setAttribute("aria-label", "Growth over time. Left and right arrow keys move along it, plus and minus zoom, zero shows all.");
    plot.over.setAttribute("aria-describedby", "growth-readout");
    plot.over.tabIndex = 0;
    plot.over.addEventListener("keydown", moveAlong);
  };

  const lanes = make("canvas", { role: "img", "aria-label": laneSummary(events) });

  function drawLanes(u) {
    const scale = devicePixelRatio;
    const shown = LANES.filter(([key]) => events[key].length);
    const width = holder.clientWidth;
    const height = shown.length * LANE_PX + 4;
    Object.assign(lanes, { width: width * scale, height: height * scale });
    Object.assign(lanes.style, { width: `${width}px`, height: `${height}px` });
    const pen = lanes.getContext("2d");
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
      const counts = new Map(); // events by x, in steps of two pixels; more events draw a taller bar
      for (const time of events[key]) {
        const x = Math.round(u.valToPos(seconds(time), "x") / 2) * 2;
        if (x >= 0 && x <= u.bbox.width / scale) counts.set(x, (counts.get(x) || 0) + 1);
      }
      const most = Math.max(...counts.values());
      for (const [x, count] of counts) {
        const tall = Math.max(5, (9 * count) / most);
        pen.fillRect(left + x - 1, middle + 5 - tall, 2, tall);
      }
    });
    // a vertical line at every exec and wherever a region went
    u.ctx.save();
    u.ctx.strokeStyle = css("ink");
    u.ctx.lineWidth = scale;
    u.ctx.setLineDash([4 * scale, 4 * scale]);
    u.ctx.beginPath();
    for (const [time] of happened) {
      const x = u.valToPos(seconds(time), "x", true);
      if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
      u.ctx.moveTo(x, u.bbox.top);
      u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
    }
    u.ctx.stroke();
    u.ctx.setLineDash([]);
    u.ctx.font = `${11 * scale}px system-ui, sans-serif`;
    u.ctx.textBaseline = "top";
    u.ctx.textAlign = "left";
    const labels = []; // labels that would overlap are joined
    for (const [time, text] of happened) {
      const x = u.valToPos(seconds(time), "x", true);
      const last = labels[labels.length - 1];
      if (last && x < last.x + u.ctx.measureText(last.text).width + 8 * scale) {
        if (!last.text.split(", ").includes(text)) last.text += `, ${text}`;
      } else if (x >= u.bbox.left) labels.push({ x, text });
    }
    for (const { x, text } of labels) {
      const width = u.ctx.measureText(text).width;
      const left = Math.min(x + 4 * scale, u.bbox.left + u.bbox.width - width);
      u.ctx.fillStyle = css("ground");
      u.ctx.fillRect(left - 2 * scale, u.bbox.top + scale, width + 4 * scale, 14 * scale);
      u.ctx.fillStyle = css("ink");
      u.ctx.fillText(text, left, u.bbox.top + 2 * scale);
    }
    u.ctx.restore();
  }

  function readTime(index) {
    if (index === null || index === undefined) return;
    const us = data[0][index] * 1e6 - SESSION.started;
    let i = 0;
    while (i < edges.length - 1 && edges[i + 1] <= us) i++;
    const parts = bands.filter((band) => band.bytes[i]).sort((a, b) => b.bytes[i] - a.bytes[i]);
    const total = parts.reduce((sum, band) => sum + band.bytes[i], 0);
    const text = parts.slice(0, 4).map((band) => `${band.name} ${formatBytes(band.bytes[i])}`).join("; ");
    byId("growth-readout").textContent = `${formatTime(us)}: ${formatBytes(total)}${text ? ` — ${text}` : ""}${parts.length > 4 ? `; ${parts.length - 4} more` : ""}`;
  }

  function zoomTime(factor) {
    const { min, max } = plot.scales.x;
    const [first, last] = [data[0][0], data[0][data[0].length - 1]];
    const middle = plot.cursor.idx == null ? (min + max) / 2 : data[0][plot.cursor.idx];
    const half = factor ? (max - min) / factor / 2 : Infinity;
    plot.setScale("x", { min: Math.max(first, middle - half), max: Math.min(last, middle + half) });
  }

  function moveAlong(event) {
    const zooms = { "+": 2, "=": 2, "-": 0.5, 0: 0 };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in zooms) {
      event.preventDefault();
      zoomTime(zooms[event.key]);
    }
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const last = data[0].length - 1;
    const from = plot.cursor.idx ?? last;
    const index = Math.max(0, Math.min(last, from + steps[event.key]));
    plot.setCursor({ left: plot.valToPos(data[0][index], "x"), top: 10 });
  }

  keepDrawn(holder, draw);
  holder.after(lanes);
  byId("growth-readout").textContent = `In all: ${laneSummary(events)}.`;
  showLegend(bands);
}

/** Local time, as precise as the step between two ticks needs. */
function formatTick(time, step) {
  const us = Math.round(time * 1e6) - SESSION.started;
  if (step < 1) return formatTime(us, step < 0.1 ? 2 : 1).slice(-(step < 0.1 ? 11 : 10));
  const clock = formatTime(us, 0);
  if (step >= 86400) return clock.slice(0, 10);
  return step >= 60 ? clock.replace(/:\d\d$/, "") : clock;
}

function laneSummary(events) {
  return LANES.filter(([key]) => events[key].length).map(([key, title]) => `${title} ${formatCount(events[key].length)}`).join(", ") || "no events";
}

function showLegend(bands) {
  const legend = byId("legend");
  for (const band of bands) {
    const figure = make("span", { class: "figure" }, formatBytes(Math.max(...band.bytes)));
    const name = make("span", { class: "name", title: band.name }, band.name);
    const button = make("button", { type: "button", "aria-pressed": "false", onclick: () => emphasize(band.owner) }, swatch(band.kind), name, figure);
    onEmphasis.push(() => button.setAttribute("aria-pressed", String(emphasized !== null && emphasized === band.owner)));
    legend.append(make("li", {}, band.owner === null ? make("span", { class: "static" }, swatch(band.kind), name, figure) : button));
  }
  legend.append(make("li", {}, make("span", { class: "static" }, swatch("total"), make("span", { class: "name" }, "allocated, by the inodes' count"))));
}
