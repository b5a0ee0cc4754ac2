/* The process tree: what each process made, and what it touched in the window. */

const MAX_CHILDREN = 12;

/** Bytes by process. touched is of the window, and of what is found; all else is of the whole capture. */
function bytesByProcess() {
  const sum = DATA.processes.tgid.map(() => ({ made: 0, regions: 0, touched: 0 }));
  DATA.regions.forEach((region, number) => {
    if (!isShown(region) || region.creator === null || (choice.region !== null && choice.region !== number)) return;
    sum[region.creator].made += region.allocated_bytes;
    sum[region.creator].regions += 1;
  });
  let others = 0;
  for (let group = 0; group < GROUPS; group++) {
    if (!isFound(DATA.cells.region[group], DATA.cells.who[group])) continue;
    const process = DATA.who.process[DATA.cells.who[group]];
    if (process < 0) others += inside.pages[group] * PAGE_BYTES;
    else sum[process].touched += inside.pages[group] * PAGE_BYTES;
  }
  return { sum, others };
}

/** Picks what a process is of the chosen dimension; if it may be several there, the process itself. */
function pickProcess(process) {
  const value = valueOfProcess(process);
  if (value === undefined) choose({ by: "process", picked: process });
  else pick(value);
}

function processButton(process) {
  const mark = make("span");
  const name = processName(process);
  const button = make("button", { type: "button", class: "pick", onclick: () => pickProcess(process) }, mark, make("span", { class: "name" }, name));
  button.show = () => {
    const value = valueOfProcess(process);
    button.setAttribute("aria-pressed", String(value !== undefined && choice.picked === value));
    mark.replaceChildren(...(value === undefined ? [] : [swatch(colourName(value))]));
  };
  button.show();
  return button;
}

const parentOf = DATA.processes.parent;
const childrenOf = new Map();
parentOf.forEach((above, process) => {
  if (!childrenOf.has(above)) childrenOf.set(above, []);
  childrenOf.get(above).push(process);
});

function drawTree() {
  const { sum, others } = bytesByProcess();
  const isFiltered = isWindow() || isSearch() || choice.region !== null;
  const weight = sum.map((of) => of.touched + (isFiltered ? 0 : of.made));
  const below = new Float64Array(weight.length).fill(-1);
  const total = (process) => {
    if (below[process] >= 0) return below[process];
    below[process] = 0; // if it is its own ancestor
    let all = weight[process];
    for (const child of childrenOf.get(process) || []) all += total(child);
    below[process] = all;
    return all;
  };
  const most = sum.reduce((all, of) => Math.max(all, of.touched), 1);

  function item(process) {
    const of = sum[process];
    const figures = [];
    if (of.regions) figures.push(`made ${formatBytes(of.made)}`);
    figures.push(`touched ${formatBytes(of.touched)}`);
    const ended = endOf(process);
    const bar = make("span");
    bar.style.width = `${(100 * of.touched) / most}%`;
    const kids = childrenOf.get(process);
    return make("li", {},
      make("div", { class: "process" },
        make("span", {}, processButton(process), ended ? make("span", { class: "exited" }, ` ${ended}`) : null,
          DATA.processes.outside_tree[process] ? " (outside the tree)" : null),
        make("span", { class: "figures" }, figures.join(" · ")),
        of.touched ? make("span", { class: "bar", "aria-hidden": "true" }, bar) : null),
      kids ? list(kids, "") : null);
  }

  function list(processes, kind) {
    const sorted = processes.slice().sort((a, b) => total(b) - total(a) || DATA.processes.tgid[a] - DATA.processes.tgid[b]);
    const element = make("ul", { class: kind });
    const shown = sorted.filter((process, i) => i < MAX_CHILDREN && (total(process) > 0 || (!isFiltered && i < 3)));
    element.append(...shown.map(item));
    const rest = sorted.slice(shown.length).filter((process) => !isFiltered || total(process) > 0);
    if (rest.length) {
      const text = `show ${formatCount(rest.length)} more, ${formatBytes(rest.reduce((all, process) => all + total(process), 0))}`;
      const more = make("li", {}, make("button", { type: "button", onclick: () => { more.remove(); element.append(...rest.map(item)); } }, text));
      element.append(more);
    }
    return element;
  }

  const roots = childrenOf.get(null) || [];
  const tree = list(roots, "tree");
  if (others) tree.append(make("li", {}, make("div", { class: "process" }, make("span", {}, "other processes, which the page does not tell apart"), make("span", { class: "figures" }, `touched ${formatBytes(others)}`))));
  const none = roots.length ? "No process that touched anything fits." : "No process was seen.";
  byId("tree").replaceChildren(tree.childElementCount ? tree : make("p", { class: "hint" }, none));
}

function showTree() {
  drawTree();
  const redraw = afterwards(drawTree);
  onChoice.push((changed) => {
    if (["from", "until", "region", "search"].some((name) => changed.has(name))) redraw();
    else for (const button of document.querySelectorAll("#tree button.pick")) button.show();
  });
}
