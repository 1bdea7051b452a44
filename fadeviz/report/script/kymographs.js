// Distance-time maps with their arrivals, as fadeviz plot draws them; and the start of the page.

const narrow = matchMedia("screen and (max-width: 740px)");
narrow.addEventListener("change", showCharts);

/** What is drawn in each place of a distance-time map: its width, and what moves its cursor. */
const drawnMaps = new Map();
// Drawn again for another width, so that words keep their size.
const widths = new ResizeObserver(() => {
  for (const slot of drawnMaps.keys()) {
    if (Math.abs(mapWidth(slot) - drawnMaps.get(slot).width) > 8) drawMap(slot);
  }
});

const mapWidth = (slot) => Math.min(900, Math.max(150, Math.round(slot.clientWidth)));

function drawMap(slot) {
  const width = mapWidth(slot);
  const { figure, follow } = makeKymograph(data.signature.panels[Number(slot.dataset.panel)], width);
  drawnMaps.set(slot, { width, follow });
  slot.replaceChildren(figure);
  follow(steps[state.at]);
}

function showKymographs() {
  for (const slot of document.querySelectorAll(".signature")) {
    drawMap(slot);
    widths.observe(slot);
    followers.push((step) => drawnMaps.get(slot).follow(step));
  }
  if (data.signature.panels.length) showKey();
  onlyTerms();
  if (narrow.matches) foldGroups();
}

/** A list of definitions may hold nothing else: the style sheet sets the colons. */
function onlyTerms() {
  for (const entry of document.querySelectorAll(".meanings dl > div")) entry.replaceChildren(...entry.children);
}

const unfolded = new Set();

/** On a phone a group of curves is a line that opens. */
function foldGroups() {
  for (const group of document.querySelectorAll("#figures > .group")) {
    const name = group.getAttribute("aria-label");
    const [heading, ...rest] = group.children;
    const fold = make("details", { class: "fold" }, make("summary", {}, heading), ...rest);
    fold.open = unfolded.has(name);
    fold.addEventListener("toggle", () => { unfolded[fold.open ? "add" : "delete"](name); });
    group.append(fold);
  }
}

/** A position between the ends of the colours as a colour. */
function signedColour(value) {
  const { span } = data.signature;
  const i = 3 * rint(Math.min(1, Math.max(0, (value + span) / (2 * span))) * 255);
  return `rgb(${signedColours[i]}, ${signedColours[i + 1]}, ${signedColours[i + 2]})`;
}
const signedColours = bytes(data.signature.colours);
const signed = (value) => (value > 0 ? "+" : "") + number(value);

/** Steps to label: the first and last one and round ones, as far as their labels do not touch. */
function labelled(axis, letter) {
  const first = axis.marks[0];
  const last = axis.marks.at(-1);
  const powers = axis.marks.filter((step) => Number.isInteger(Math.log10(step)));
  const found = [];
  for (const step of new Set([first, last, ...powers, ...axis.marks])) {
    const apart = (other) => Math.abs(axis.place(step) - axis.place(other));
    const room = (other) => ((count(step).length + count(other).length) / 2 + 1.2) * letter;
    if (found.every((other) => apart(other) > room(other))) found.push(step);
  }
  return found.sort((a, b) => a - b);
}

/** Cells of the snapshots: their ends on the axis, half-way to their neighbours; the outer ones are short. */
function cellBorders() {
  const times = steps.map(time);
  if (times.length === 1) return [times[0] - 0.5, times[0] + 0.5];
  const borders = times.slice(1).map((one, i) => (one + times[i]) / 2);
  const outside = (times.at(-1) - times[0]) / 30;
  const start = Math.max(2 * times[0] - borders[0], times[0] - outside);
  const end = Math.min(2 * times.at(-1) - borders.at(-1), times.at(-1) + outside);
  return [start, ...borders, end];
}

function makeKymograph(panel, width) {
  const { edges } = data.signature;
  const height = narrow.matches ? 150 : data.operators.length > 3 ? 144 : width > 480 ? 194 : 172;
  const [left, right, top, bottom] = [48, width - 10, 6, height - 36];
  const borders = cellBorders();
  const [start, end] = [borders[0], borders.at(-1)];
  const across = (value) => left + ((value - start) / (end - start)) * (right - left);
  const place = (step) => across(time(step));
  const stepAt = (x) => {
    const value = start + ((x - left) / (right - left)) * (end - start);
    return state.log ? Math.expm1(value) : value;
  };
  const up = (depth) => bottom - ((depth - edges[0]) / (edges.at(-1) - edges[0])) * (bottom - top);
  const depthAt = (y) => edges[0] + ((bottom - y) / (bottom - top)) * (edges.at(-1) - edges[0]);

  const fine = 3; // canvas pixels per unit of the drawing, so that cells are crisp on any screen
  const canvas = make("canvas", { width: (right - left) * fine, height: (bottom - top) * fine, "aria-hidden": "true" });
  const box = { left: left / width, top: top / height, width: (right - left) / width, height: (bottom - top) / height };
  for (const [side, share] of Object.entries(box)) canvas.style[side] = `${100 * share}%`;
  const context = canvas.getContext("2d");
  context.fillStyle = "rgb(219, 219, 219)"; // undefined
  context.fillRect(0, 0, canvas.width, canvas.height);
  panel.value.forEach((row, at) => {
    const x = Math.round((across(borders[at]) - left) * fine);
    const next = Math.round((across(borders[at + 1]) - left) * fine);
    row.forEach((value, bin) => {
      if (value === null) return;
      const y = Math.round((up(edges[bin + 1]) - top) * fine);
      context.fillStyle = signedColour(value);
      context.fillRect(x, y, next - x, Math.round((up(edges[bin]) - top) * fine) - y);
    });
  });

  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken(panel), tabindex: "0" });
  svg.style.setProperty("--drawn", width); // for print, which shows it in another size
  svg.append(draw("rect", { class: "frame-line", x: left, y: top, width: right - left, height: bottom - top }));
  for (let depth = Math.ceil(edges[0]); depth <= edges.at(-1); depth += 1) {
    svg.append(draw("line", { class: "axis", x1: left - 4, x2: left, y1: up(depth), y2: up(depth) }));
    svg.append(draw("text", { x: left - 7, y: up(depth) + 4, "text-anchor": "end" }, count(depth)));
  }
  svg.append(draw("text", { "text-anchor": "middle", transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)` }, height < 190 ? "inside ← radii → out" : "inside ← object radii → outside"));
  svg.append(draw("line", { class: "zero", x1: left, x2: right, y1: up(0), y2: up(0) }));
  const axis = { place, marks: timeAxis(steps[0], steps.at(-1), place(steps[0]), place(steps.at(-1))).marks };
  drawTimeAxis(svg, { place, marks: labelled(axis, 6.4) }, top, bottom, axisLabel(), right);
  const cursors = ["cursor-under", "cursor"].map((kind) => draw("line", { class: kind, y1: top, y2: bottom }));
  svg.append(...cursors);
  for (const arrival of panel.arrivals) svg.append(...arrivalMark(arrival, place, up, left, right));
  const follow = (step) => {
    for (const cursor of cursors) {
      cursor.setAttribute("x1", place(step));
      cursor.setAttribute("x2", place(step));
    }
  };
  onClick(svg, width, { step: stepAt });
  const plot = make("div", { class: "plot" }, canvas, svg);
  addReading(plot, svg, panel, { width, height, left, right, top, bottom, place, up, stepAt, depthAt });
  return { figure: make("figure", { class: "chart kymograph" }, plot), follow };
}

/** A symbol with its interval: black on a white rim, so that it is visible on every colour. */
function arrivalMark({ label, step, low, high, depth, fromStart }, place, up, left, right) {
  const made = [];
  const y = up(depth);
  if (low !== null) {
    const from = Math.max(left, place(Math.max(0, low)));
    const to = high === null ? right + 1 : place(high);
    for (const kind of ["bar-under", "bar"]) made.push(draw("line", { class: kind, x1: from, x2: Math.min(to, right), y1: y, y2: y }));
    if (to > right) made.push(draw("path", { class: "symbol", d: `M${right - 7} ${y - 5}l9 5l-9 5z` }));
  }
  const x = fromStart ? place(steps[0]) : step === null ? Infinity : place(step);
  if (x <= right) made.push(symbol(label, fromStart, x, y));
  return made;
}

function symbol(label, open, x, y) {
  const shape = label === "outline"
    ? draw("circle", { cx: x, cy: y, r: 4.6 })
    : draw("path", { d: `M${x} ${y - 5.6}l5.6 5.6l-5.6 5.6l-5.6 -5.6z` });
  shape.setAttribute("class", open ? "symbol open" : "symbol");
  return shape;
}

/** The value under the pointer, or at the place that the arrow keys move. */
function addReading(plot, svg, panel, { width, height, left, right, top, bottom, place, up, stepAt, depthAt }) {
  const { edges } = data.signature;
  const tip = make("div", { class: "tip screen", hidden: "" });
  const spot = draw("rect", { class: "spot", width: 9, height: 9, visibility: "hidden" });
  svg.append(spot);
  plot.append(tip);
  const cell = { at: steps.length - 1, bin: Math.floor((edges.length - 1) / 2) };
  const show = () => {
    const depth = (edges[cell.bin] + edges[cell.bin + 1]) / 2;
    const value = panel.value[cell.at][cell.bin];
    const where = `${Number(Math.abs(depth).toFixed(2))} radii ${depth < 0 ? "inside" : "outside"}`;
    tip.textContent = `step ${count(steps[cell.at])}, ${where}: ${value === null ? "undefined" : signed(value)}`;
    const [x, y] = [place(steps[cell.at]), up(depth)];
    spot.setAttribute("x", x - 4.5);
    spot.setAttribute("y", y - 4.5);
    spot.setAttribute("visibility", "visible");
    tip.hidden = false;
    // Beside the cell, and within the chart.
    const scale = plot.clientWidth / width;
    const wide = tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(x * scale - wide / 2, plot.clientWidth - wide))}px`;
    tip.style.top = `${y * scale + (y > height / 2 ? -tip.offsetHeight - 10 : 10)}px`;
  };
  const hide = () => {
    tip.hidden = true;
    spot.setAttribute("visibility", "hidden");
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const y = ((event.clientY - box.top) / box.height) * height;
    if (x < left || x > right || y < top || y > bottom) return hide();
    cell.at = nearest(stepAt(x));
    cell.bin = Math.min(edges.length - 2, Math.max(0, edges.findLastIndex((edge) => edge <= depthAt(y))));
    return show();
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(); });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === "Enter") goTo(cell.at);
    else if (move) {
      cell.at = Math.min(steps.length - 1, Math.max(0, cell.at + move[0]));
      cell.bin = Math.min(edges.length - 2, Math.max(0, cell.bin + move[1]));
      show();
      svg.setAttribute("aria-label", tip.textContent);
    } else return;
    event.preventDefault();
  });
}

function spoken(panel) {
  const marks = panel.arrivals.map(({ label, step, fromStart }) =>
    fromStart ? `${label} there from the start` : `${label} arrives at step ${number(step)}`);
  const name = panel.row ? `${panel.title}, ${panel.row}` : panel.title;
  return [`${name}: ${panel.subtitle}`, ...marks, "Arrow keys read values"].join(". ");
}

/** The legend of the symbols that occur, and the bar of colours. */
function showKey() {
  const { panels, span } = data.signature;
  const arrivals = panels.flatMap((panel) => panel.arrivals);
  const since = steps[0] === 0 ? "before training" : "at the first snapshot";
  const entry = (text, ...shapes) => make("li", {}, draw("svg", { viewBox: "0 0 30 14", "aria-hidden": "true" }, ...shapes), text);
  const entries = [entry("contour", draw("line", { class: "zero", x1: 1, x2: 29, y1: 7, y2: 7 }))];
  for (const open of [false, true]) {
    for (const label of ["outline", "interior"]) {
      if (!arrivals.some((one) => one.label === label && one.fromStart === open)) continue;
      const bar = open ? [] : [draw("line", { class: "bar", x1: 2, x2: 28, y1: 7, y2: 7 })];
      entries.push(entry(open ? `${label} there ${since}` : `${label} arrives, with its interval`, ...bar, symbol(label, open, 15, 7)));
    }
  }
  byId("symbols").replaceChildren(...entries);
  const bar = byId("bar").getContext("2d");
  for (let i = 0; i < 256; i += 1) {
    bar.fillStyle = signedColour(((2 * i) / 255 - 1) * span);
    bar.fillRect(i, 0, 1, 1);
  }
}

// --- begin ---------------------------------------------------------------------------------------------------------

makeControls();
makePredictionControls();
for (const half of document.querySelectorAll("details.half")) half.open = !narrow.matches;
showCharts();
showSelection();
