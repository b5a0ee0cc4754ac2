/* The tables, which have every figure of the pictures and can be sorted. */

const MAX_ROWS = 50;

/** A column has a title, a value to sort by, and a text. A `number` column is aligned right and sorts descending first.
    A column with `owner` shows a row's value as a button that picks it. Rows in the foot are not sorted. */
class Sortable {
  constructor(caption, columns, read) {
    this.columns = columns;
    this.read = read; // gives { rows, foot }
    this.by = null;
    this.descending = false;
    this.isAll = false;
    this.body = make("tbody");
    this.foot = make("tfoot");
    this.more = make("button", { type: "button", onclick: () => { this.isAll = true; this.fill(); } });
    this.heads = columns.map((column) => make("th", { scope: "col", class: column.number ? "number" : "" },
      make("button", { type: "button", onclick: () => this.sort(column) }, column.title)));
    const table = make("table", { "aria-label": caption }, make("thead", {}, make("tr", {}, ...this.heads)), this.body, this.foot);
    this.element = make("div", {}, make("div", { class: "table", tabindex: "0", role: "region", "aria-label": caption }, table), this.more);
    this.update();
  }

  /** Reads the rows anew. */
  update() {
    const { rows, foot } = this.read();
    this.rows = rows;
    this.foot.replaceChildren(...(foot || []).map((row) => this.line(row)));
    this.fill();
  }

  sort(column) {
    this.descending = this.by === column ? !this.descending : Boolean(column.number);
    this.by = column;
    this.columns.forEach((other, i) => {
      if (other === column) this.heads[i].setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else this.heads[i].removeAttribute("aria-sort");
    });
    this.fill();
  }

  fill() {
    const sorted = this.by ? this.rows.slice().sort((a, b) => this.compare(a, b)) : this.rows;
    const shown = this.isAll ? sorted : sorted.slice(0, MAX_ROWS);
    this.body.replaceChildren(...shown.map((row) => this.line(row)));
    this.more.hidden = shown.length === sorted.length;
    this.more.textContent = `show all ${formatCount(sorted.length)} rows`;
  }

  compare(a, b) {
    const x = this.by.value(a), y = this.by.value(b);
    if (x === null || y === null) return (x === null) - (y === null); // unknown comes last, either way
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return this.descending ? -order : order;
  }

  line(row) {
    const owner = this.columns.find((column) => column.owner)?.owner(row);
    const line = make("tr", {}, ...this.columns.map((column) => {
      const text = String((column.text ? column.text(row) : column.value(row)) ?? "?");
      const cell = make("td", { class: column.number ? "number" : column.name ? "name" : "" });
      cell.append(column.owner && owner !== undefined ? pickButton(owner, text, text) : text);
      return cell;
    }));
    if (owner !== undefined) line.addEventListener("click", () => pick(owner));
    return line;
  }
}

/** A table that is made when it is opened. It shows what is chosen: columns and read are asked again when that changes. */
function showTable(id, title, columns, read) {
  const count = read().rows.length;
  if (!count) return;
  const details = make("details", { class: "data", id }, make("summary", {}, `${title} (${formatCount(count)})`));
  let table = null;
  const update = (isOther) => {
    if (!details.open) return;
    if (table && !isOther) table.update();
    else {
      table?.element.remove();
      details.append((table = new Sortable(title, columns(), read)).element);
    }
  };
  details.addEventListener("toggle", () => update(true));
  onChoice.push((changed) => { if (changed.size > 1 || !changed.has("picked")) update(changed.has("by") || changed.has("region")); });
  byId("tables").append(details);
}

const bytesColumn = (title, value) => ({ title, value, text: (row) => formatBytes(value(row)), number: true });
const countColumn = (title, value) => ({ title, value, text: (row) => formatCount(value(row)), number: true });
const timeColumn = (title, value, digits = DIGITS) => ({ title, value, text: (row) => (value(row) === null ? "" : formatTime(value(row), digits)), number: true });
const pidColumn = (title, process) => ({ title, value: (row) => (process(row) === null ? null : DATA.processes.tgid[process(row)]), text: (row) => (process(row) === null ? "?" : String(DATA.processes.tgid[process(row)])), number: true });
const commandColumn = (title, process) => ({ title, value: (row) => (process(row) === null ? null : commandOf(process(row))), name: true });

/* ---- who touched it, by the chosen dimension, in the window ---- */

function mainColumns() {
  const bytes = (row) => row.pages * PAGE_BYTES;
  const ofProcess = (value) => (row) => (row.value >= 0 ? value(row.value) : null);
  const share = (row) => (row.whole ? row.pages / row.whole : null);
  const blank = (column) => ({ ...column, text: (row) => (column.value(row) === null ? "" : column.text(row)) });
  return [
    bytesColumn("touched", bytes),
    { title: "share", value: share, text: (row) => (share(row) === null ? "" : `${(100 * share(row)).toFixed(1)}%`), number: true },
    { title: choice.by, value: (row) => row.name ?? nameOf(row.value), owner: (row) => (row.name === undefined || row.value === BEFORE ? row.value : undefined), name: true },
    ...(choice.by === "process" ? [
      blank(countColumn("faults in all", ofProcess((process) => DATA.processes.faults[process]))),
      blank(bytesColumn("freed in all", ofProcess((process) => DATA.processes.freed_bytes[process]))),
      timeColumn("exited", ofProcess((process) => DATA.processes.exited[process]), 0),
    ] : [{ title: "processes", value: (row) => (row.processes ? row.processes.size : null), text: (row) => (!row.processes ? "" : row.processes.size ? `${formatCount(row.processes.size)}${row.others ? "+" : ""}` : "?"), number: true }]),
    ...(choice.by === "region" ? [] : [blank(countColumn("regions", (row) => (row.regions ? row.regions.size : null)))]),
    timeColumn("first", (row) => (row.last >= 0 ? edgeTime(row.first) : null)),
    timeColumn("last", (row) => (row.last >= 0 ? edgeTime(row.last + 1) : null)),
  ];
}

/** The rows add up to what is allocated, unless they are searched. */
function mainRows() {
  const rows = sums();
  const allocated = partPages("allocated");
  const touched = rows.reduce((sum, row) => sum + row.pages, 0);
  for (const row of rows) row.whole = allocated;
  const part = (name, pages, value) => ({ name, pages, value, whole: allocated, first: 0, last: -1 });
  if (isSearch()) return { rows, foot: [part("found", touched)] };
  const before = partPages("before"), unseen = partPages("unseen");
  const other = allocated - touched - before - unseen;
  return { rows, foot: [
    ...(isWindow() ? [part("at other times", other)] : []),
    ...(before ? [part("before the trace", before, BEFORE)] : []), ...(unseen ? [part("unseen", unseen)] : []), part("allocated", allocated),
  ] };
}

function showMainTable() {
  let table = null;
  const build = () => {
    table = new Sortable(`Touched, by ${choice.by}`, mainColumns(), mainRows);
    byId("main-table").replaceChildren(table.element);
  };
  build();
  onChoice.push((changed) => {
    if (changed.has("by")) build();
    else if (changed.size > 1 || !changed.has("picked")) table.update();
  });
}

/* ---- the others ---- */

/** A table of `report --by`, of the whole capture. columns and foot are as _table() in html.py makes them. */
function showGroups({ by, columns, foot }) {
  const rows = columns[0].values.map((_, row) => columns.map((column) => column.values[row]));
  const texts = { bytes: formatBytes, ns: (us) => (us === null ? "" : formatTime(us, 3)), text: (text) => text };
  showTable(`table-by-${by}`, by === "unmapped" ? "Mapped by no process" : `By ${by}, whenever touched`, () => columns.map(({ title, unit }, i) => ({
    title,
    value: (row) => row[i],
    text: (row) => (texts[unit] || ((number) => number ?? ""))(row[i]) ?? "",
    number: unit !== "text",
    name: unit === "text",
  })), () => ({ rows, foot }));
}

function showTables() {
  const bytes = (title, name) => bytesColumn(title, (region) => region[name]);
  showTable("table-regions", "Regions", () => [
    bytes("allocated", "allocated_bytes"), bytes("grown", "grown_bytes"),
    { title: "region", value: regionTitle, name: true }, { title: "id", value: (region) => region.id }, { title: "kind", value: (region) => region.kind },
    { title: "name", value: (region) => region.name, name: true },
    pidColumn("made by PID", (region) => region.creator), commandColumn("made by", (region) => region.creator),
    { title: "known by", value: (region) => region.how, text: (region) => region.how || "?" },
    bytes("size", "size_bytes"), bytes("peak", "peak_bytes"), bytes("resident", "resident_bytes"), bytes("swapped", "swapped_bytes"),
    bytes("before", "before_bytes"), bytes("unseen", "unseen_bytes"), countColumn("mappers", (region) => region.mappers),
    timeColumn("made", (region) => region.created), timeColumn("gone", (region) => region.gone),
  ], () => ({ rows: DATA.regions.filter((region, number) => isShown(region) && (!isSearch() || found.region[number])) }));
  showTable("table-processes", "Processes", () => [
    bytesColumn("touched", (row) => row.touched), pidColumn("PID", (row) => row.process), commandColumn("command", (row) => row.process),
    pidColumn("parent", (row) => DATA.processes.parent[row.process]),
    bytesColumn("made", (row) => row.made), bytesColumn("freed in all", (row) => DATA.processes.freed_bytes[row.process]),
    countColumn("faults in all", (row) => DATA.processes.faults[row.process]),
    timeColumn("started", (row) => DATA.processes.started[row.process]), timeColumn("exited", (row) => DATA.processes.exited[row.process]),
  ], () => ({ rows: bytesByProcess().sum.map((sum, process) => ({ ...sum, process })).filter((row) => !isSearch() || row.touched) }));
  DATA.tables.forEach(showGroups);
  showTable("table-growth", "Growth over time", () => [
    timeColumn("time", (edge) => edgeTime(edge), 3), bytesColumn("allocated", (edge) => samplesOf(choice.region)?.allocated[edge]),
    ...growthBands().map((band) => bytesColumn(band.name, (edge) => band.bytes[edge])),
    bytesColumn("host shmem", (edge) => DATA.growth.host[edge]),
  ], () => ({ rows: SESSION.tier === "proc" ? [] : EDGES }));
  const execs = DATA.execs;
  showTable("table-execs", "Programs started", () => [
    timeColumn("time", (row) => execs.time[row], 3), pidColumn("PID", (row) => execs.process[row]),
    { title: "command", value: (row) => DATA.commands[execs.command[row]], name: true },
  ], () => ({ rows: execs.time.map((_, row) => row) }));
}
