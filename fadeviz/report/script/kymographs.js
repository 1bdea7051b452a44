// Distance-time maps; and the start of the page.

const narrow = matchMedia("(max-width: 560px)");
narrow.addEventListener("change", showCharts);

function showKymographs() {
  const { edges, operators } = data.kymographs;
  const groups = [["value", "Values"], ["gradient", "Steepness"]].map(([quantity, name]) =>
    make("div", { class: "group" }, make("h3", {}, name),
      make("div", { class: operators.length > 4 ? "charts wide many" : "charts wide" }, ...operators.map((operator) => makeKymograph(operator.title, name, operator[quantity], edges)))));
  byId("kymograph-charts").replaceChildren(...groups);
  const colours = bytes(data.kymographs.colours);
  const bar = byId("bar").getContext("2d");
  for (let i = 0; i < 256; i += 1) {
    bar.fillStyle = `rgb(${colours[3 * i]}, ${colours[3 * i + 1]}, ${colours[3 * i + 2]})`;
    bar.fillRect(i, 0, 1, 1);
  }
}

function makeKymograph(name, quantity, rows, edges) {
  const width = narrow.matches || data.operators.length > 4 ? 350 : 480; // about the size on the screen, so that text stays readable
  const [height, left, right, top, bottom] = [280, 52, width - 8, 8, 240];
  // Cells extend half-way to their neighbours.
  const times = steps.map(time);
  const borders = times.slice(1).map((one, i) => (one + times[i]) / 2);
  const start = borders.length ? 2 * times[0] - borders[0] : times[0] - 0.5;
  const end = borders.length ? 2 * times.at(-1) - borders.at(-1) : times[0] + 0.5;
  const across = (value) => left + ((value - start) / (end - start)) * (right - left);
  const place = (step) => across(time(step));
  const stepAt = (x) => {
    const value = start + ((x - left) / (right - left)) * (end - start);
    return state.log ? Math.expm1(value) : value;
  };
  const up = (distance) => bottom - ((distance - edges[0]) / (edges.at(-1) - edges[0])) * (bottom - top);

  const fine = 3; // canvas pixels per unit of the drawing, so that cells are crisp on any screen
  const canvas = make("canvas", { width: (right - left) * fine, height: (bottom - top) * fine, "aria-hidden": "true" });
  const box = { left: left / width, top: top / height, width: (right - left) / width, height: (bottom - top) / height };
  for (const [side, share] of Object.entries(box)) canvas.style[side] = `${100 * share}%`;
  const context = canvas.getContext("2d");
  const colours = bytes(data.kymographs.colours);
  const [low, high] = data.kymographs.span;
  context.fillStyle = "rgb(209, 209, 209)"; // undefined
  context.fillRect(0, 0, canvas.width, canvas.height);
  const all = [start, ...borders, end];
  rows.forEach((row, at) => {
    const x = Math.round((across(all[at]) - left) * fine);
    const next = Math.round((across(all[at + 1]) - left) * fine);
    row.forEach((value, bin) => {
      if (value === null) return;
      const i = 3 * rint(Math.min(1, Math.max(0, (value - low) / (high - low))) * 255);
      const y = Math.round((up(edges[bin + 1]) - top) * fine);
      context.fillStyle = `rgb(${colours[i]}, ${colours[i + 1]}, ${colours[i + 2]})`;
      context.fillRect(x, y, next - x, Math.round((up(edges[bin]) - top) * fine) - y);
    });
  });

  const svg = draw("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": `${name}: ${quantity.toLowerCase()} by distance to the contour, ${edges[0]} to ${edges.at(-1)} pixels, and step, ${steps[0]} to ${steps.at(-1)}`,
  });
  for (const mark of ticks(edges[0], edges.at(-1), 6)) {
    svg.append(draw("line", { class: "axis", x1: left - 4, x2: left, y1: up(mark), y2: up(mark) }));
    svg.append(draw("text", { x: left - 7, y: up(mark) + 4, "text-anchor": "end" }, count(mark)));
  }
  const middle = (top + bottom) / 2;
  svg.append(draw("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(12 ${middle}) rotate(-90)` }, "inside ← distance to contour, px → outside"));
  svg.append(draw("line", { class: "zero", x1: left, x2: right, y1: up(0), y2: up(0) }));
  const marks = timeAxis(steps[0], steps.at(-1), place(steps[0]), place(steps.at(-1))).marks;
  drawTimeAxis(svg, { place, marks }, top, bottom, axisLabel(), right);
  const cursors = ["cursor-under", "cursor"].map((kind) => draw("line", { class: kind, y1: top, y2: bottom }));
  svg.append(...cursors);
  followers.push((step) => {
    for (const cursor of cursors) {
      cursor.setAttribute("x1", place(step));
      cursor.setAttribute("x2", place(step));
    }
  });
  onClick(svg, width, { step: stepAt });
  return make("figure", { class: "chart kymograph" }, make("figcaption", {}, name), make("div", { class: "plot" }, canvas, svg));
}

// --- begin ---------------------------------------------------------------------------------------------------------

makeControls();
showCharts();
showSelection();
