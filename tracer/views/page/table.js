/* The tables, which have every figure of the pictures and can be sorted. Loaded last, so it also starts the page. */

const MAX_ROWS = 50;

/** A column has a title, a value to sort by, and a text. A `number` column is aligned right and sorts descending first.
    Rows in the foot are not sorted. */
function sortable(caption, columns, rows, foot) {
  let sorted = rows, by = null, descending = false, all = rows.length <= MAX_ROWS;
  const body = make("tbody");
  const more = make("button", { type: "button", onclick: () => { all = true; fill(); } });
  const line = (row) => make("tr", {}, ...columns.map((column) => {
    const text = column.text ? column.text(row) : column.value(row);
    const cell = make("td", { class: column.number ? "number" : column.name ? "name" : "" });
    if (column.owner) cell.append(swatch(colourName(column.owner(row))));
    cell.append(String(text ?? "?"));
    return cell;
  }));
  const fill = () => {
    const shown = all ? sorted : sorted.slice(0, MAX_ROWS);
    body.replaceChildren(...shown.map(line));
    more.hidden = all;
    more.textContent = `show all ${formatCount(rows.length)} rows`;
  };
  const compare = (a, b) => {
    const x = by.value(a), y = by.value(b);
    if (x === null || y === null) return (x === null) - (y === null); // unknown comes last, either way
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return descending ? -order : order;
  };
  const heads = columns.map((column) => {
    const head = make("th", { scope: "col", class: column.number ? "number" : "" }, make("button", { type: "button", onclick: () => {
      descending = by === column ? !descending : Boolean(column.number);
      by = column;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sorted = rows.slice().sort(compare);
      fill();
    } }, column.title));
    return head;
  });
  fill();
  return make("div", {}, make("div", { class: "table", tabindex: "0", role: "region", "aria-label": caption },
    make("table", { "aria-label": caption }, make("thead", {}, make("tr", {}, ...heads)), body, make("tfoot", {}, ...foot.map(line)))), more);
}

function showTable(id, title, columns, rows, open, foot = []) {
  if (!rows.length) return;
  const details = make("details", { class: "data", id }, make("summary", {}, `${title} (${formatCount(rows.length)})`));
  details.addEventListener("toggle", () => { if (details.childElementCount === 1) details.append(sortable(title, columns, rows, foot)); });
  details.open = open;
  byId("tables").append(details);
}

const bytesColumn = (title, value) => ({ title, value, text: (row) => formatBytes(value(row)), number: true });
const countColumn = (title, value) => ({ title, value, text: (row) => formatCount(value(row)), number: true });
const timeColumn = (title, value, digits = 1) => ({ title, value, text: (row) => (value(row) === null ? "" : formatTime(value(row), digits)), number: true });
const whoColumns = (process) => [
  { title: "PID", value: (row) => (process(row) === null ? null : DATA.processes.tgid[process(row)]), text: (row) => (process(row) === null ? "?" : String(DATA.processes.tgid[process(row)])), number: true },
  { title: "command", value: (row) => (process(row) === null ? null : commandOf(process(row))), owner: process, name: true },
];

/** A table of `report --by`. columns and foot are as _table() in html.py makes them. */
function showGroups({ by, columns, foot }, open) {
  const rows = columns[0].values.map((_, row) => columns.map((column) => column.values[row]));
  const texts = { bytes: formatBytes, ns: (us) => (us === null ? "" : formatTime(us, 3)), text: (text) => text };
  showTable(`table-by-${by}`, by === "unmapped" ? "Mapped by no process" : `By ${by}`, columns.map(({ title, unit }, i) => ({
    title,
    value: (row) => row[i],
    text: (row) => (texts[unit] || ((number) => number ?? ""))(row[i]) ?? "",
    number: unit !== "text",
    name: unit === "text",
  })), rows, open, foot);
}

function showTables() {
  const touched = DATA.regions.flatMap((region) => region.touchers.process.map((process, i) => ({ region, process, i })));
  const of = (name) => (row) => row.region.touchers[name][i(row)];
  const i = (row) => row.i;
  showTable("table-touched", "Who touched what", [
    ...whoColumns((row) => row.process),
    { title: "region", value: (row) => regionName(row.region), name: true },
    bytesColumn("touched", of("touched_bytes")),
    { title: "share", value: (row) => (row.region.allocated_bytes ? of("touched_bytes")(row) / row.region.allocated_bytes : null),
      text: (row) => (row.region.allocated_bytes ? `${((100 * of("touched_bytes")(row)) / row.region.allocated_bytes).toFixed(1)}%` : ""), number: true },
    bytesColumn("freed", of("freed_bytes")), countColumn("faults", of("faults")),
    timeColumn("first", of("first"), 3), timeColumn("last", of("last"), 3),
    timeColumn("exited", (row) => DATA.processes.exited[row.process]),
  ], touched, true);
  DATA.tables.forEach((table, i) => showGroups(table, i === 0));
  const bytes = (title, name) => bytesColumn(title, (region) => region[name]);
  showTable("table-regions", "Regions", [
    { title: "region", value: regionName, name: true }, { title: "id", value: (region) => region.id }, { title: "kind", value: (region) => region.kind },
    { title: "name", value: (region) => region.name },
    ...whoColumns((region) => region.creator).map((column) => ({ ...column, title: column.title === "PID" ? "made by PID" : "made by" })),
    { title: "known by", value: (region) => region.how, text: (region) => region.how || "?" },
    bytes("size", "size_bytes"), bytes("allocated", "allocated_bytes"), bytes("grown", "grown_bytes"), bytes("peak", "peak_bytes"), bytes("resident", "resident_bytes"), bytes("swapped", "swapped_bytes"),
    bytes("before", "before_bytes"), bytes("unseen", "unseen_bytes"), countColumn("mappers", (region) => region.mappers),
    timeColumn("made", (region) => region.created), timeColumn("gone", (region) => region.gone),
  ], DATA.regions, true);
  const sums = bytesByProcess();
  showTable("table-processes", "Processes", [
    ...whoColumns((row) => row.process),
    { title: "parent", value: (row) => (row.parent === null ? null : DATA.processes.tgid[row.parent]), text: (row) => (row.parent === null ? "" : String(DATA.processes.tgid[row.parent])), number: true },
    bytesColumn("made", (row) => row.made), bytesColumn("made, gone", (row) => row.madeGone), bytesColumn("touched", (row) => row.touched), bytesColumn("touched, gone", (row) => row.touchedGone),
    bytesColumn("freed", (row) => row.freed), countColumn("faults", (row) => row.faults),
    timeColumn("started", (row) => DATA.processes.started[row.process]), timeColumn("exited", (row) => DATA.processes.exited[row.process]),
  ], sums.map((sum, process) => ({ ...sum, process, parent: DATA.processes.parent[process] })), false);
  const growth = DATA.growth;
  showTable("table-growth", "Growth over time", [
    timeColumn("time", (row) => growth.edges[row], 3), ...growthBands().map((band) => bytesColumn(band.name, (row) => band.bytes[row])),
  ], growth.edges.map((_, row) => row), false);
  showTable("table-samples", "Allocated, by the inodes' count", [
    timeColumn("time", (row) => growth.allocated.times[row], 3), bytesColumn("allocated", (row) => growth.allocated.bytes[row]),
  ], growth.allocated.times.map((_, row) => row), false);
  showTable("table-host", "Shared memory of the host", [
    timeColumn("time", (row) => growth.host.times[row], 3), bytesColumn("shmem", (row) => growth.host.bytes[row]),
  ], growth.host.times.map((_, row) => row), false);
  const execs = DATA.execs;
  showTable("table-execs", "Programs started", [
    timeColumn("time", (row) => execs.time[row], 3),
    { title: "PID", value: (row) => (execs.process[row] === null ? null : DATA.processes.tgid[execs.process[row]]), text: (row) => String(DATA.processes.tgid[execs.process[row]] ?? "?"), number: true },
    { title: "command", value: (row) => DATA.commands[execs.command[row]], name: true },
  ], (execs.time || []).map((_, row) => row), false);
}

function showHead() {
  byId("headline").textContent = DATA.headline;
  document.title = `shmtrace: ${DATA.headline}`;
  const { allocated, touched, before, unseen } = DATA.balance;
  if (SESSION.tier !== "proc") byId("balance").textContent = `balance ${formatCount(allocated)} pages = ${formatCount(touched)} touched + ${formatCount(before)} before + ${formatCount(unseen)} unseen`;
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const begin = new Date(SESSION.started / 1000).toLocaleDateString(undefined, { dateStyle: "medium" });
  byId("where").textContent = `${SESSION.host} · ${begin}, ${formatTime(0, 0)} to ${formatTime(SESSION.ended, 0)} (${zone}) · tier ${SESSION.tier}${SESSION.tier === "exact" ? ` by ${SESSION.mechanism}` : ""} · Linux ${SESSION.kernel}`;
  const notes = [...SESSION.warnings];
  if (!SESSION.complete) notes.unshift(`Cut off: this is the state at ${formatTime(SESSION.ended, 0)}, when the capture was last written.`);
  if (DATA.left_out.regions) notes.push(`${formatCount(DATA.left_out.regions)} smaller regions, of at most ${formatBytes(DATA.left_out.peak_bytes)} each, count in the balance and the growth chart but have no map and no table row. The capture has them.`);
  if (DATA.balance.unseen && SESSION.blind_to.length) notes.push(`Unseen may be ${SESSION.blind_to.join("; or ")}.`);
  if (SESSION.lost_events || SESSION.lost_pages || SESSION.lost_probes) notes.push(`Lost: ${formatCount(SESSION.lost_events)} events, ${formatCount(SESSION.lost_pages)} pages, ${formatCount(SESSION.lost_probes)} probe runs.`);
  byId("notes").append(...notes.map((note) => make("p", {}, note)));
  const facts = [`Host shmem ${formatBytes(SESSION.shmem_total_bytes)}, ${formatBytes(SESSION.shmem_unexplained_bytes)} of it outside these regions.`, `ps would add up to ${formatBytes(SESSION.sum_of_rss_bytes)} of RSS.`];
  byId("made-by").textContent = `${facts.join(" ")} Made by shmtrace ${SESSION.version} from a capture. The chart is drawn by uPlot (MIT licence, whose text is in this file).`;
}

showHead();
showGrowth();
showMaps();
showTree();
showTables();
