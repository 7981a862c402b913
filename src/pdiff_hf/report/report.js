"use strict";
// What points stand for, groups that can be hidden, tables that can be sorted. All text is set as text.

const REACH = 24; // CSS pixels between a pointer and the point that it means

function makeElement(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function makeChart(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const hidden = new Set();
  let current = null; // the series and the row that are shown

  const tip = plot.appendChild(makeElement("div", "tip"));
  tip.setAttribute("role", "status");
  const ring = document.createElementNS(plot.querySelector("svg").namespaceURI, "circle");
  ring.setAttribute("class", "ring");
  ring.setAttribute("r", "6");

  // The drawing that is on the screen, and its points that are in view.
  function drawing() {
    const width = plot.querySelector(".wide").offsetParent ? "wide" : "narrow";
    const svg = plot.querySelector(`.${width} svg`);
    const points = [];
    data.places[width].forEach((places, series) => {
      const group = data.series[series].group;
      if (!hidden.has(group)) {
        places.forEach((place, row) => place && points.push({ series, row, group, x: place[0], y: place[1] }));
      }
    });
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return { svg, points, scale };
  }

  function hide() {
    current = null;
    ring.remove();
    tip.replaceChildren();
  }

  function show(point, { svg, scale }) {
    if (current && current.series === point.series && current.row === point.row && current.group === point.group) return;
    current = point;
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    svg.append(ring);
    const { title, fields, rows } = data.series[point.series];
    const lines = rows[point.row].map((value, i) => makeElement("span", i ? "" : "what", `${fields[i]}: ${value}`));
    tip.replaceChildren(makeElement("strong", "", title), ...lines);
    const [x, y] = [point.x * scale, point.y * scale];
    const left = x + 14 + tip.offsetWidth <= plot.clientWidth ? x + 14 : Math.max(0, x - 14 - tip.offsetWidth);
    const above = y - 14 - tip.offsetHeight;
    // Beside the point where there is room, else above or below it.
    const beside = left >= x || left + tip.offsetWidth <= x;
    tip.style.left = `${left}px`;
    tip.style.top = `${beside ? Math.max(0, y - tip.offsetHeight / 2) : above >= 0 ? above : y + 14}px`;
  }

  function point(event) {
    const now = drawing();
    const box = now.svg.getBoundingClientRect();
    let best = null;
    let least = REACH;
    for (const candidate of now.points) {
      const far = Math.hypot(
        box.left + candidate.x * now.scale - event.clientX, box.top + candidate.y * now.scale - event.clientY
      );
      // Of equally near ones, that which is drawn last.
      if (far <= least) [best, least] = [candidate, far];
    }
    best ? show(best, now) : hide();
  }

  // Along a group from left to right, or to the next group, there to the point that is nearest.
  function move(key) {
    const now = drawing();
    if (!now.points.length) return;
    const groups = [...new Set(now.points.map((candidate) => candidate.group))].sort((a, b) => a - b);
    const of = (group) =>
      now.points.filter((candidate) => candidate.group === group).sort((a, b) => a.x - b.x || a.y - b.y);
    const place = current ? groups.indexOf(current.group) : -1;
    if (place < 0) return show(of(groups[0])[0], now);
    const own = of(current.group);
    const at = own.findIndex((candidate) => candidate.series === current.series && candidate.row === current.row);
    if (key === "ArrowUp" || key === "ArrowDown") {
      const next = groups[(place + (key === "ArrowDown" ? 1 : groups.length - 1)) % groups.length];
      const far = (candidate) => Math.hypot(candidate.x - current.x, candidate.y - current.y);
      show(of(next).reduce((a, b) => (far(b) < far(a) ? b : a)), now);
    } else {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: own.length - 1 }[key];
      show(own[Math.min(Math.max(to, 0), own.length - 1)], now);
    }
  }

  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  plot.addEventListener("blur", hide);
  plot.addEventListener("focus", () => plot.matches(":focus-visible") && move("Home"));
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    move(event.key);
  });
  window.addEventListener("resize", hide);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  plot.tabIndex = 0;
  plot.setAttribute("role", "application");
  plot.setAttribute("aria-label", `Points of the figure: ${figure.querySelector("figcaption strong").textContent}`);
  const hint = makeElement("p", "hint", "← → Home End: points of a group · ↑ ↓: groups · Esc: hide");
  plot.after(hint);

  for (const entry of figure.querySelectorAll(".legend li[data-group]")) {
    const button = makeElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(...entry.childNodes);
    entry.append(button);
    const group = Number(entry.dataset.group);
    button.addEventListener("click", () => {
      hidden.has(group) ? hidden.delete(group) : hidden.add(group);
      button.setAttribute("aria-pressed", String(!hidden.has(group)));
      for (const part of plot.querySelectorAll(`g[data-group="${group}"]`)) {
        part.classList.toggle("off", hidden.has(group));
      }
      hide();
    });
  }
}

// The number that a cell begins with, or nothing.
function numberOf(text) {
  const found = text.replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1").match(/^[<>≥≤]?\s*([+-]?\d*\.?\d+(e[+-]?\d+)?)/i);
  return found ? Number(found[1]) : null;
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  if (original.length < 2) return;
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    if (header.classList.contains("bar")) return;
    const button = makeElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const next = { none: "ascending", ascending: "descending", descending: "none" }[now];
      for (const other of headers) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", next);
      body.append(...(next === "none" ? original : sorted(original, column, next === "descending")));
    });
  });
}

function sorted(rows, column, isDescending) {
  const cells = rows.map((row) => ({ row, text: row.cells[column].textContent.trim() }));
  const known = cells.filter(({ text }) => text && text !== "–");
  const areNumbers = known.every(({ text }) => numberOf(text) !== null);
  // Row 10 is after row 2, but noise 0.1 is not before noise 0.05.
  const numeric = !known.some(({ text }) => /\d\.\d/.test(text));
  const compare = areNumbers
    ? (a, b) => numberOf(a.text) - numberOf(b.text)
    : (a, b) => a.text.localeCompare(b.text, "en", { numeric });
  known.sort((a, b) => (isDescending ? compare(b, a) : compare(a, b)));
  // What is missing stays at the end.
  return [...known, ...cells.filter((cell) => !known.includes(cell))].map(({ row }) => row);
}

document.querySelectorAll("[data-chart]").forEach(makeChart);
document.querySelectorAll("table").forEach(makeSortable);
