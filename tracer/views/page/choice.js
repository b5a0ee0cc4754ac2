/* What the reader has chosen (the dimension, a window, a region, a search, a value), and what is left of the cells then.

   A group is what one owner touched of one region: a row of DATA.cells. A value is a place in a dimension. */

const DIMENSIONS = [...DATA.dimensions.map(({ by }) => by), "region", "process"];
const VALUES = new Map(DATA.dimensions.map(({ by, values }) => [by, values]));
const LABELS = DIMENSIONS.filter((by) => !["command", "unit", "host", "region", "process"].includes(by)); // their kinds
const MAX_COLOURS = 10; // values with a colour of their own; all others share one
const GROUPS = DATA.cells.region.length;

const choice = { by: DATA.by, from: 0, until: BINS.count, region: null, search: "", picked: null };
const onChoice = []; // each is called with the set of what has changed

function choose(changes) {
  const changed = new Set(Object.keys(changes).filter((name) => choice[name] !== changes[name]));
  if (!changed.size) return;
  Object.assign(choice, changes);
  if (changed.has("by") && !("picked" in changes)) {
    choice.picked = null;
    changed.add("picked");
  }
  if (changed.has("from") || changed.has("until")) countWindow();
  if (changed.has("region") || changed.has("search")) search();
  for (const listener of onChoice) listener(changed);
}

const pick = (value) => choose({ picked: choice.picked === value ? null : value });
const isWindow = () => choice.from > 0 || choice.until < BINS.count;
const showAll = () => choose({ from: 0, until: BINS.count });
/** Whether a bin is in the window. BINS.count: the time is unknown, which is in no window. */
const inWindow = (bin) => !isWindow() || (bin >= choice.from && bin < choice.until);

/* ---- values ---- */

function valueOf(by, region, who) {
  if (by === "region") return isShown(DATA.regions[region]) ? region : OTHERS;
  return DATA.who[by][who];
}

function nameOf(value, by = choice.by) {
  if (value === BEFORE) return "before the trace";
  if (value === UNSEEN) return "unseen";
  if (value === OTHERS) return `other ${by === "process" ? "processe" : by.replace(/y$/, "ie")}s`;
  if (value === UNKNOWN) return "?";
  if (by === "process") return processName(value);
  return by === "region" ? regionTitle(DATA.regions[value]) : VALUES.get(by)[value];
}

/** The value of a process in a dimension; undefined: it may have several. */
function valueOfProcess(process, by = choice.by) {
  const { group, unit, host } = DATA.processes;
  return { process, command: group[process], unit: unit[process], host: host[process] }[by];
}

/* ---- the cells ---- */

const firstCell = new Int32Array(GROUPS + 1);
for (let group = 0; group < GROUPS; group++) firstCell[group + 1] = firstCell[group] + DATA.cells.bins[group];
const cellBin = Int32Array.from(DATA.cells.bin), cellPages = Float64Array.from(DATA.cells.pages);

/** Of each group: its pages in the window, and the first and last bin there. */
const inside = { pages: new Float64Array(GROUPS), first: new Int32Array(GROUPS), last: new Int32Array(GROUPS) };
/** The pages of each group at any time. */
const everPages = new Float64Array(GROUPS);

function countWindow() {
  const all = !isWindow();
  for (let group = 0; group < GROUPS; group++) {
    let pages = 0, first = -1, last = -1;
    for (let cell = firstCell[group]; cell < firstCell[group + 1]; cell++) {
      const bin = cellBin[cell];
      if (!all && (bin < choice.from || bin >= choice.until)) continue;
      pages += cellPages[cell];
      if (bin === BINS.count) continue;
      if (first < 0) first = bin;
      last = bin;
    }
    inside.pages[group] = pages;
    inside.first[group] = first;
    inside.last[group] = last;
  }
}
countWindow();
everPages.set(inside.pages);

/* ---- the search ---- */

const found = { who: new Uint8Array(DATA.who.command.length).fill(1), region: new Uint8Array(DATA.regions.length).fill(1) };
const texts = DATA.who.command.map((_, who) =>
  [...DATA.dimensions.map(({ by }) => by), "process"].map((by) => nameOf(DATA.who[by][who], by)).join("\n").toLowerCase());
const regionTexts = DATA.regions.map((region) => [region.name, region.label, region.id].join("\n").toLowerCase());

/** Whether pages of a region and an owner are what is searched for; in the chosen region, if one is. */
const isFound = (region, who) => (choice.region === null || choice.region === region) && (found.region[region] || found.who[who]) === 1;
const isSearch = () => choice.search !== "";

function search() {
  const text = choice.search.toLowerCase();
  texts.forEach((of, who) => { found.who[who] = of.includes(text) ? 1 : 0; });
  regionTexts.forEach((of, region) => { found.region[region] = text && of.includes(text) ? 1 : 0; });
  if (!text) found.region.fill(1);
}

/* ---- sums ---- */

/** By value, what is in the window and found: a list of { value, pages, processes, others, regions, first, last }.
    processes is a set; others says that there are more. */
function sums(by = choice.by) {
  const rows = new Map();
  for (let group = 0; group < GROUPS; group++) {
    const region = DATA.cells.region[group], who = DATA.cells.who[group];
    if (!inside.pages[group] || !isFound(region, who)) continue;
    const value = valueOf(by, region, who);
    let row = rows.get(value);
    if (!row) rows.set(value, row = { value, pages: 0, processes: new Set(), others: false, regions: new Set(), first: Infinity, last: -1 });
    row.pages += inside.pages[group];
    const process = DATA.who.process[who];
    if (process < 0) row.others = true; else row.processes.add(process);
    row.regions.add(region);
    if (inside.first[group] >= 0) row.first = Math.min(row.first, inside.first[group]);
    row.last = Math.max(row.last, inside.last[group]);
  }
  return [...rows.values()].sort((a, b) => (a.value === OTHERS) - (b.value === OTHERS) || b.pages - a.pages);
}

/** Pages of the whole capture, or of the chosen region, in one of these parts: allocated, before, unseen. */
const partPages = (part) => DATA.regions.reduce((sum, region, number) =>
  sum + (choice.region === null || choice.region === number ? region[`${part}_bytes`] / PAGE_BYTES : 0), 0);

/* ---- which value has which colour: the same everywhere, whatever the window ---- */

const ranks = new Map();

/** The place of each value by what it touched in the whole capture. */
function ranksOf(by = choice.by) {
  if (!ranks.has(by)) {
    const pages = new Map();
    for (let group = 0; group < GROUPS; group++) {
      const value = valueOf(by, DATA.cells.region[group], DATA.cells.who[group]);
      if (value !== OTHERS) pages.set(value, (pages.get(value) || 0) + everPages[group]);
    }
    const order = [...pages].sort((a, b) => b[1] - a[1]).map(([value]) => value);
    ranks.set(by, new Map(order.map((value, rank) => [value, rank])));
  }
  return ranks.get(by);
}

function colourName(value) {
  if (value === BEFORE) return "before";
  if (value === UNSEEN) return "unseen";
  const rank = ranksOf().get(value);
  if (rank < MAX_COLOURS) return `c${rank}`;
  return value === choice.picked && value !== OTHERS ? "ink" : "others";
}

/** Whether a value is the picked one, or one of those that share the colour of the picked others. */
function isPicked(value) {
  if (choice.picked === OTHERS) return value === OTHERS || ranksOf().get(value) >= MAX_COLOURS;
  return value === choice.picked;
}

/** A button that picks a value. It shows its colour, and whether it is picked. */
function pickButton(value, name, title, ...more) {
  const mark = make("span");
  const button = make("button", { type: "button", class: "pick", onclick: (event) => { event.stopPropagation(); pick(value); } },
    mark, make("span", { class: "name", title }, name), ...more);
  button.show = () => {
    button.setAttribute("aria-pressed", String(choice.picked === value));
    mark.replaceChildren(swatch(colourName(value)));
  };
  button.show();
  return button;
}

onChoice.push((changed) => {
  if (changed.has("picked")) for (const button of document.querySelectorAll("button.pick")) if (button.show) button.show();
});
