/* The head: the answer, the window with the command that gives the same, and what can be chosen. Loaded last, so it also
   starts the page. */

const MOST = 3; // groups named in a sentence, as in tracer/answer.py

/** The answer of `report --since --until`, which has no other sentence than who it was. */
function headline() {
  if (!isWindow()) return DATA.headline;
  const growers = new Map();
  for (let group = 0; group < GROUPS; group++) {
    if (!inside.pages[group]) continue;
    const who = DATA.cells.who[group], command = DATA.who.command[who];
    if (!growers.has(command)) growers.set(command, { command, pages: 0, processes: new Set(), others: false });
    const grower = growers.get(command);
    grower.pages += inside.pages[group];
    if (DATA.who.process[who] < 0) grower.others = true; else grower.processes.add(DATA.who.process[who]);
  }
  const sorted = [...growers.values()].sort((a, b) => b.pages - a.pages);
  const touched = sorted.reduce((pages, grower) => pages + grower.pages, 0);
  const all = `${formatBytes(touched * PAGE_BYTES)} touched first in this time.`;
  if (!touched) return all;
  const words = sorted.slice(0, MOST).map(({ command, pages, processes, others }) => {
    const name = command < 0 ? nameOf(command, "command") : DATA.short[command];
    const exited = [...processes].filter((process) => DATA.processes.exited[process] !== null).length;
    const isOne = processes.size === 1 && !others;
    const plus = others ? "+" : ""; // and some that are not told apart
    const many = isOne || !processes.size ? "" : ` ×${processes.size}${plus}`;
    const number = exited === processes.size && !others ? "all" : `${exited}${plus}`;
    return `${name}${many}${exited ? (isOne ? " (exited)" : ` (${number} exited)`) : ""} ${formatBytes(pages * PAGE_BYTES)}`;
  });
  const rest = sorted.slice(MOST).reduce((pages, grower) => pages + grower.pages, 0);
  if (rest) words.push(`others ${formatBytes(rest * PAGE_BYTES)}`);
  return `${all} By ${words.join(", ")}.`;
}

/** As --since takes it: UTC, for the reader's clock may be another than the host's. */
const argument = (edge) => new Date((SESSION.started + BINS.origin + edge * BINS.width) / 1000).toISOString();

function command() {
  const since = choice.from > 0 ? ` --since ${argument(choice.from)}` : "";
  return `shmtrace report FILE${since}${choice.until < BINS.count ? ` --until ${argument(choice.until)}` : ""}`;
}

function showAnswer() {
  byId("headline").textContent = headline();
  const { allocated, touched, before, unseen } = DATA.balance;
  const now = inside.pages.reduce((sum, pages) => sum + pages, 0);
  const other = isWindow() ? ` + ${formatCount(touched - now)} at other times` : "";
  if (SESSION.tier !== "proc") byId("balance").textContent = `balance ${formatCount(allocated)} pages = ${formatCount(now)} touched${other} + ${formatCount(before)} before + ${formatCount(unseen)} unseen`;
  byId("window").replaceChildren();
  if (!isWindow()) return;
  byId("window").append(
    make("strong", {}, `${formatTime(edgeTime(choice.from), DIGITS)} to ${formatTime(edgeTime(choice.until), DIGITS)}`), " ",
    make("button", { type: "button", id: "all-times", onclick: showAll }, "all"), " the same in the terminal: ",
    make("code", {}, command()));
}

function showControls() {
  const by = make("select", { id: "by" }, ...DIMENSIONS.map((name) => make("option", { value: name }, name)));
  by.value = choice.by;
  by.addEventListener("change", () => choose({ by: by.value }));
  const regions = DATA.regions.map((region, number) => [region, number]).filter(([region]) => isShown(region) && region.peak_bytes);
  const region = make("select", { id: "region" }, make("option", { value: "" }, "all regions"),
    ...regions.map(([of, number]) => make("option", { value: String(number) }, `${regionTitle(of)}, ${formatBytes(of.allocated_bytes)}${of.gone === null ? "" : ", gone"}`)));
  region.addEventListener("change", () => choose({ region: region.value === "" ? null : Number(region.value) }));
  const text = make("input", { type: "search", id: "search", placeholder: "command, label, region, unit, PID", maxlength: "200", autocomplete: "off", spellcheck: "false" });
  text.addEventListener("input", () => choose({ search: text.value.trim() }));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("controls").append(make("label", {}, "colour by", by), make("label", {}, "in", region), make("label", { class: "search" }, "search", text));
  onChoice.push(() => {
    by.value = choice.by;
    region.value = choice.region === null ? "" : String(choice.region);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.target === text) return; // which Escape empties
    if (isWindow()) showAll();
    else choose({ picked: null });
  });
}

function showHead() {
  document.title = `shmtrace: ${DATA.kills || DATA.headline}`;
  byId("kills").textContent = DATA.kills;
  byId("kills").hidden = !DATA.kills;
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const begin = new Date(SESSION.started / 1000).toLocaleDateString(undefined, { dateStyle: "medium" });
  byId("where").textContent = `${SESSION.host} · ${begin}, ${formatTime(0, 0)} to ${formatTime(SESSION.ended, 0)} (${zone}) · tier ${SESSION.tier}${SESSION.tier === "exact" ? ` by ${SESSION.mechanism}` : ""} · Linux ${SESSION.kernel}`;
  const notes = [...SESSION.warnings];
  const { regions, peak_bytes, processes } = DATA.left_out;
  if (!SESSION.complete) notes.unshift(`Cut off: this is the state at ${formatTime(SESSION.ended, 0)}, when the capture was last written.`);
  if (regions) notes.push(`${formatCount(regions)} smaller regions, of at most ${formatBytes(peak_bytes)} each, count in the balance and the growth chart but have no map and no table row. The capture has them.`);
  if (DATA.who.process.some((process) => process < 0)) notes.push(`${formatCount(processes)} processes that touched little are not told apart here. All sums have them, and the capture tells them apart.`);
  if (DATA.balance.unseen && SESSION.blind_to.length) notes.push(`Unseen may be ${SESSION.blind_to.join("; or ")}.`);
  if (SESSION.lost_events || SESSION.lost_pages || SESSION.lost_probes) notes.push(`Lost: ${formatCount(SESSION.lost_events)} events, ${formatCount(SESSION.lost_pages)} pages, ${formatCount(SESSION.lost_probes)} probe runs.`);
  byId("notes").append(...notes.map((note) => make("p", {}, note)));
  byId("lines").append(make("li", {}, make("span", { class: "static" }, swatch("total"), make("span", { class: "name" }, "allocated, by the inodes' count"))));
  const facts = [`Host shmem ${formatBytes(SESSION.shmem_total_bytes)}, ${formatBytes(SESSION.shmem_unexplained_bytes)} of it outside these regions.`, `ps would add up to ${formatBytes(SESSION.sum_of_rss_bytes)} of RSS.`];
  byId("made-by").textContent = `${facts.join(" ")} Made by shmtrace ${SESSION.version} from a capture. The chart is drawn by uPlot (MIT licence, whose text is in this file).`;
}

showHead();
showAnswer();
onChoice.push((changed) => { if (changed.has("from") || changed.has("until")) showAnswer(); });
showControls();
showGrowth();
showMainTable();
showMaps();
showTree();
showTables();
