"use strict";
/* The data, the formatting of its values, and colours. Names come from other programs: insert them by textContent
   only. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const PAGE_BYTES = 4096;
const UNKNOWN = -1, OTHERS = -2; // instead of a value
const BEFORE = -3, UNSEEN = -4; // and of nobody's
const SESSION = DATA.session;
const BINS = DATA.bins;

/** An element with attributes and children. A string becomes a text node; null is skipped. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const byId = (id) => document.getElementById(id);

/* ---- values to text ---- */

function formatBytes(bytes) {
  if (bytes === null || bytes === undefined) return "?";
  const sign = bytes < 0 ? "−" : "";
  let value = Math.abs(bytes);
  if (value < 1024) return `${sign}${value} B`;
  let unit;
  for (unit of ["KiB", "MiB", "GiB", "TiB"]) {
    value /= 1024;
    if (value < 1023.5) break;
  }
  return `${sign}${value.toFixed(value < 99.95 ? 1 : 0)} ${unit}`;
}

/** Bytes for an axis: without a fraction of 0. */
const formatRound = (bytes) => formatBytes(bytes).replace(".0 ", " ");

const formatCount = (count) => (count === null || count === undefined ? "?" : count.toLocaleString("en"));

/** Local time of day of microseconds since the capture began; with the date unless it is the day of the end. */
function formatTime(us, digits = 1) {
  if (us === null || us === undefined) return "?";
  const at = (time) => new Date((SESSION.started + time) / 1000);
  const two = (number) => String(number).padStart(2, "0");
  const day = (date) => `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const time = at(us);
  const fraction = digits ? (time.getMilliseconds() / 1000).toFixed(3).slice(1, 2 + digits) : "";
  const clock = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}${fraction}`;
  return day(time) === day(at(SESSION.ended)) ? clock : `${day(time)} ${clock}`;
}

/** Microseconds since the capture began at an edge between bins; the first and last are the capture's own ends. */
const edgeTime = (edge) => Math.max(0, Math.min(SESSION.ended, BINS.origin + edge * BINS.width));
const DIGITS = BINS.width >= 1e6 ? 0 : 3;

/* ---- names ---- */

const commandOf = (process) => DATA.commands[DATA.processes.command[process]];
const processName = (process) => (process === null ? "?" : `${DATA.processes.tgid[process]} ${commandOf(process)}${onHost(process)}`);
/** On which of several hosts a process is; "": there is one. */
const HOSTS = (DATA.dimensions.find(({ by }) => by === "host") || { values: [] }).values;
const onHost = (process) => (DATA.processes.host[process] >= 0 ? ` on ${HOSTS[DATA.processes.host[process]]}` : "");

function endOf(process) {
  const exited = process >= 0 ? DATA.processes.exited[process] : null;
  return exited === null ? "" : `${DATA.processes.ending[process] || "exited"} ${formatTime(exited, 0)}`;
}

const regionName = (region) => region.label || region.name;
const isShown = (region) => region.map !== null; // else it stands for several, which are not told apart
const sameName = new Map();
for (const region of DATA.regions) sameName.set(regionName(region), (sameName.get(regionName(region)) || 0) + 1);

/** With its inode number, or of many hosts its id, if others are called the same. */
function regionTitle(region) {
  const name = regionName(region);
  return sameName.get(name) > 1 && isShown(region) ? `${name} ${region.host ? region.id : region.id.split("/")[1]}` : name;
}

/* ---- colours ---- */

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** The fill style for a canvas: hatched for before, a grid for unseen, else a colour. */
function paintOf(context, kind, scale = 1) {
  if (kind !== "before" && kind !== "unseen") return css(kind);
  const tile = document.createElement("canvas");
  tile.width = tile.height = Math.round(6 * scale);
  const pen = tile.getContext("2d");
  const size = tile.width;
  pen.fillStyle = css("ground");
  pen.fillRect(0, 0, size, size);
  pen.strokeStyle = css("before");
  pen.lineWidth = scale * 1.2;
  pen.beginPath();
  if (kind === "before") {
    for (const shift of [-size, 0, size]) {
      pen.moveTo(shift - 1, size + 1);
      pen.lineTo(shift + size + 1, -1);
    }
  } else {
    pen.moveTo(size / 2, 0);
    pen.lineTo(size / 2, size);
    pen.moveTo(0, size / 2);
    pen.lineTo(size, size / 2);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

function swatch(kind) {
  const element = make("span", { class: `swatch ${kind}`, "aria-hidden": "true" });
  if (/^c\d$|^others$|^ink$/.test(kind)) element.style.background = `var(--${kind})`;
  return element;
}

/** Draws now, and again when the size or the colour scheme changes. */
function keepDrawn(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (element.clientWidth && element.clientWidth !== width) {
      width = element.clientWidth;
      draw();
    }
  }).observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

/** What is out of sight can wait until the answer is on the screen: a function that has `act` called after that, once. */
function afterwards(act) {
  let isWaiting = false;
  return () => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => setTimeout(() => { isWaiting = false; act(); }));
  };
}
