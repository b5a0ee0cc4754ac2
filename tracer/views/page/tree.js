/* The process tree: what each process made and touched. */

const MAX_CHILDREN = 12;

/** Bytes by process over all regions. madeGone and touchedGone are of regions that are gone. */
function bytesByProcess() {
  const found = DATA.processes.tgid.map(() => ({ made: 0, madeGone: 0, touched: 0, touchedGone: 0, freed: 0, faults: null, regions: 0 }));
  for (const region of DATA.regions) {
    const gone = region.gone === null ? "" : "Gone";
    if (region.creator !== null) {
      found[region.creator][`made${gone}`] += region.allocated_bytes;
      found[region.creator].regions += 1;
    }
    const { process, touched_bytes, freed_bytes, faults } = region.touchers;
    process.forEach((who, i) => {
      found[who][`touched${gone}`] += touched_bytes[i];
      found[who].freed += freed_bytes[i];
      if (faults[i] !== null) found[who].faults = (found[who].faults || 0) + faults[i];
    });
  }
  return found;
}

/** A button that highlights one process in all pictures. */
function pick(process) {
  const mark = make("span");
  const button = make("button", { type: "button", class: "pick", onclick: () => emphasize(process) }, mark, make("span", { class: "name" }, nameOf(process)));
  const show = () => {
    button.setAttribute("aria-pressed", String(emphasized === process));
    mark.replaceChildren(swatch(colourName(process)));
  };
  onEmphasis.push(show);
  show();
  return button;
}

function showTree() {
  const bytes = bytesByProcess();
  const weight = bytes.map((of) => of.made + of.madeGone + of.touched + of.touchedGone);
  const children = new Map();
  const { parent, tgid } = DATA.processes;
  tgid.forEach((_, process) => {
    const above = parent[process];
    if (!children.has(above)) children.set(above, []);
    children.get(above).push(process);
  });
  const below = new Map();
  const total = (process) => {
    if (!below.has(process)) {
      below.set(process, 0);
      below.set(process, weight[process] + (children.get(process) || []).reduce((sum, child) => sum + total(child), 0));
    }
    return below.get(process);
  };
  const most = Math.max(1, ...bytes.map((of) => of.touched + of.touchedGone));

  function item(process) {
    const of = bytes[process];
    const figures = [];
    if (of.regions) figures.push(`made ${formatBytes(of.made)}${of.madeGone ? ` and ${formatBytes(of.madeGone)} gone since` : ""}`);
    const touched = of.touched + of.touchedGone;
    figures.push(`touched ${formatBytes(touched)}`);
    const exited = exitOf(process);
    const bar = make("span");
    bar.style.width = `${(100 * touched) / most}%`;
    bar.style.background = `var(--${colourName(process)})`;
    const kids = children.get(process);
    return make("li", {},
      make("div", { class: "process" },
        make("span", {}, pick(process), exited ? make("span", { class: "exited" }, ` ${exited}`) : null,
          DATA.processes.outside_tree[process] ? " (outside the tree)" : null),
        make("span", { class: "figures" }, figures.join(" · ")),
        touched ? make("span", { class: "bar", "aria-hidden": "true" }, bar) : null),
      kids ? list(kids, "") : null);
  }

  function list(processes, kind) {
    const sorted = processes.slice().sort((a, b) => total(b) - total(a) || tgid[a] - tgid[b]);
    const element = make("ul", { class: kind });
    const add = (some) => element.append(...some.map(item));
    const shown = sorted.filter((process, i) => i < MAX_CHILDREN && (total(process) > 0 || i < 3));
    add(shown);
    const rest = sorted.slice(shown.length);
    if (rest.length) {
      const text = `show ${formatCount(rest.length)} more, ${formatBytes(rest.reduce((sum, process) => sum + total(process), 0))}`;
      const more = make("li", {}, make("button", { type: "button", onclick: () => { more.remove(); add(rest); } }, text));
      element.append(more);
    }
    return element;
  }

  const roots = tgid.map((_, process) => process).filter((process) => parent[process] === null);
  byId("tree").append(roots.length ? list(roots, "tree") : make("p", { class: "hint" }, "No process was seen."));
}
