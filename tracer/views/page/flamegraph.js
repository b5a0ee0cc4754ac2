/* A click on a frame gives it the whole width, Escape gives it to all regions again. Names stay text. */
"use strict";
{
  const COLUMN_PX = 7.3, MARGIN_PX = 3;
  const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\u{1f300}-\u{3fffd}]/u;
  const all = document.documentElement.viewBox.baseVal.width;
  const frames = [...document.querySelectorAll(".frame")].map((element) => ({
    element,
    y: Number(element.getAttribute("y")),
    from: Number(element.dataset.from),
    bytes: Number(element.dataset.bytes),
    name: element.querySelector("title").textContent.split("\n")[0],
  }));
  const root = frames.find((frame) => frame.element.classList.contains("root"));

  /** As much of a text as fits. */
  function cut(text, width) {
    let columns = Math.floor((width - 2 * MARGIN_PX) / COLUMN_PX);
    if (columns <= 2) return "";
    const characters = [...text];
    const widths = characters.map((character) => (WIDE.test(character) ? 2 : 1));
    if (widths.reduce((sum, each) => sum + each, 0) <= columns) return text;
    let shown = 0;
    for (columns -= 1; (columns -= widths[shown]) >= 0; shown += 1);
    return characters.slice(0, shown).join("") + "…";
  }

  function zoom(to) {
    const scale = all / (to.bytes || 1);
    for (const { element, y, from, bytes, name } of frames) {
      const above = y < to.y && from <= to.from && from + bytes >= to.from + to.bytes;
      const within = y >= to.y && from >= to.from && from + bytes <= to.from + to.bytes;
      const width = above || element === to.element ? all : bytes * scale;
      element.style.display = above || within ? "" : "none";
      element.classList.toggle("above", above);
      element.setAttribute("x", above ? 0 : (from - to.from) * scale);
      element.setAttribute("width", width);
      let text = element.querySelector("text");
      const shown = cut(name, width);
      if (!text && shown) {
        text = document.createElementNS("http://www.w3.org/2000/svg", "text");
        text.setAttribute("x", MARGIN_PX);
        text.setAttribute("y", 14);
        element.append(text);
      }
      if (text) text.textContent = shown;
    }
  }

  document.addEventListener("click", (event) => {
    const element = event.target.closest(".frame");
    zoom(frames.find((frame) => frame.element === element) || root);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") zoom(root);
  });
}
