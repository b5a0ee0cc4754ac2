/* Growth over time: what each process touched, stacked; on top what the inodes say; below what happened. */

const LANES = [
  ["starts", "process starts"], ["exits", "exits"], ["execs", "program starts"], ["made", "regions made"], ["gone", "regions gone"],
];
const LANE_PX = 14;
const GUTTER_PX = 88;

/** Names, colours and heights, from the bottom up. */
function growthBands() {
  const { bands, before, unseen, others } = DATA.growth;
  const found = [
    { owner: BEFORE, name: "before the capture", kind: "before", bytes: before },
    ...TOP.map((process, rank) => ({ owner: process, name: nameOf(process), kind: `c${rank}`, bytes: bands[rank] })),
    { owner: OTHERS, name: "other processes", kind: "others", bytes: others },
    { owner: null, name: "unseen", kind: "unseen", bytes: unseen },
  ];
  return found.filter((band) => band.bytes.some((bytes) => bytes !== 0));
}

function happenings() {
  const within = (times) => times.filter((time) => time !== null && time > 0 && time <= SESSION.ended);
  const list = within(DATA.regions.flatMap((region) => [region.gone]));
  return {
    starts: within(DATA.processes.started),
    exits: within(DATA.processes.exited),
    execs: within(DATA.execs.time || []),
    made: within(DATA.regions.map((region) => region.created)),
    gone: list,
  };
}

function showGrowth() {
  const holder = byId("growth");
  const bands = growthBands();
  const seconds = (us) => (SESSION.started + us) / 1e6;
  const { edges, allocated, host } = DATA.growth;
  const sums = [];
  for (const band of bands) sums.push(band.bytes.map((bytes, i) => bytes + (sums.length ? sums[sums.length - 1][i] : 0)));
  if (!bands.length && !allocated.times.length) {
    holder.append(make("p", { class: "hint" }, SESSION.tier === "proc" ? "From /proc alone nothing is known over time." : "Nothing was allocated."));
    return;
  }
  const tables = [[edges.map(seconds), ...sums.slice().reverse()], [allocated.times.map(seconds), allocated.bytes]];
  const data = uPlot.join(tables);
  const events = happenings();
  let plot = null;

  const draw = () => {
    if (plot) plot.destroy();
    const paint = (kind, owner) => (u) => {
      const faded = emphasized !== null && emphasized !== owner;
      return faded ? css("absent") : paintOf(u.ctx, kind, devicePixelRatio);
    };
    const axis = { stroke: () => css("faint"), grid: { stroke: () => css("line"), width: 1 }, ticks: { stroke: () => css("line") }, font: "12px system-ui, sans-serif" };
    plot = new uPlot({
      width: holder.clientWidth,
      height: Math.max(240, Math.min(380, holder.clientWidth * 0.45)),
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
      scales: { y: { range: (_u, _low, high) => [0, Math.max(high, PAGE_BYTES) * 1.06] } },
      axes: [
        { ...axis, space: 80 },
        { ...axis, size: GUTTER_PX, values: (_u, splits) => splits.map((bytes) => (bytes ? formatBytes(bytes) : "0")),
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
      padding: [8, 12, 0, 0],
    }, data, holder);
    plot.over.setAttribute("role", "application");
    plot.over.setAttribute("aria-label", "Growth over time. Left and right arrow keys move along it.");
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
      pen.fillRect(left, middle, u.bbox.width / scale, 1);
      pen.fillStyle = css("ink");
      for (const time of events[key]) {
        const x = left + u.valToPos(seconds(time), "x");
        if (x >= left && x <= left + u.bbox.width / scale) pen.fillRect(Math.round(x) - 1, middle - 4, 2, 9);
      }
    });
    // where a program was started anew or a region went, a line through the picture
    u.ctx.save();
    u.ctx.strokeStyle = css("ink");
    u.ctx.lineWidth = scale;
    u.ctx.setLineDash([4 * scale, 4 * scale]);
    u.ctx.beginPath();
    for (const time of [...events.execs, ...events.gone]) {
      const x = u.valToPos(seconds(time), "x", true);
      if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
      u.ctx.moveTo(x, u.bbox.top);
      u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
    }
    u.ctx.stroke();
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

  function moveAlong(event) {
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
  showLegend(bands);
}

function laneSummary(events) {
  return LANES.filter(([key]) => events[key].length).map(([key, title]) => `${events[key].length} ${title}`).join(", ") || "no events";
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
  legend.append(make("li", {}, make("span", { class: "static" }, swatch("total"), make("span", { class: "name" }, "allocated, as the inodes count"))));
}
