// Charts of curves over training. Shared by the report and the viewer.

/** Round values between two ends, about so many. */
function ticks(low, high, about) {
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const width = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / width - 1e-9); i * width <= high + width * 1e-9; i += 1) found.push(Number((i * width).toPrecision(12)));
  return found;
}

const time = (step) => (state.log ? Math.log1p(step) : step);

/** The axis of steps of one chart: where a step stands, which step stands somewhere, and its marks. */
function timeAxis(first, last, left, right, pad = 0) {
  const low = time(first) - pad;
  const span = time(last) + pad - low || 1;
  const place = (step) => left + ((time(step) - low) / span) * (right - left);
  const step = (x) => {
    const value = low + ((x - left) / (right - left)) * span;
    return state.log ? Math.expm1(value) : value;
  };
  const all = state.log ? [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000, 300000] : ticks(first, last, 5);
  const marks = all.filter((one) => one >= first && one <= last);
  if (state.log && place(last) - place(marks.at(-1) ?? first) > 34) marks.push(last);
  return { place, step, marks };
}

function drawTimeAxis(svg, axis, top, bottom, label, right) {
  for (const mark of axis.marks) {
    const x = axis.place(mark);
    svg.append(draw("line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
    svg.append(draw("text", { x, y: bottom + 15, "text-anchor": "middle" }, count(mark)));
  }
  svg.append(draw("text", { x: right, y: bottom + 29, "text-anchor": "end" }, label));
}

const axisLabel = () => (state.log ? "training step (log scale)" : "training step");

function onClick(svg, width, axis) {
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    setPlaying(false);
    goTo(nearest(axis.step(((event.clientX - box.left) / box.width) * width)));
  });
}

const VARIANTS = { like: "7 2 1 2" };
const DASHES = ["", "6 3", "2 2", "9 3 2 3", "14 4", "9 2 2 2 2 2", "5 6", "1.5 4"];

/** Colour and dashes of a line, so that it is told from the others without its colour as well. */
function look(role) {
  const [main, variant] = role.split(" ");
  const operator = /^operator-(\d+)-(\d+)$/.exec(main); // its colour and its dashes
  if (operator) return { colour: `var(--operator-${operator[1]})`, dash: DASHES[Number(operator[2]) % DASHES.length], thin: false };
  const series = /^series-(\d+)$/.exec(main);
  const place = series ? Number(series[1]) % 8 : 0;
  const dash = series ? DASHES[place] : variant ? VARIANTS[variant] : main === "interior" ? "6 3" : "";
  return { colour: `var(--${series ? `series-${place}` : main})`, dash, thin: Boolean(variant) };
}

function styled(element, { colour, dash, thin }) {
  element.style.stroke = colour;
  element.style.strokeDasharray = dash || "none";
  element.style.strokeWidth = thin ? "1.3" : "2";
  return element;
}

function makeChart(panel, [lowest, highest]) {
  const [width, height, right, top, bottom] = [360, 210, 346, 10, 172];
  const first = Math.min(steps[0], ...panel.curves.map((line) => line.steps[0]));
  const last = Math.max(steps.at(-1), ...panel.curves.map((line) => line.steps.at(-1)));
  let [low, high] = Number.isFinite(lowest) ? [lowest, highest] : [0, 1];
  if (low > 0 && low < 0.4 * high) low = 0;
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const margin = (high - low) * 0.04;
  const bottomValue = low === 0 ? 0 : low - margin;
  const scale = (value) => bottom - ((value - bottomValue) / (high + margin - bottomValue)) * (bottom - top);

  const marks = ticks(bottomValue, high + margin, 4);
  const left = 12 + 6.4 * Math.max(3, ...marks.map((mark) => String(mark).length));
  const axis = timeAxis(first, last, left, right);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary(panel) });
  for (const mark of marks) {
    const y = scale(mark);
    svg.append(draw("line", { class: "grid-line", x1: left, x2: right, y1: y, y2: y }));
    svg.append(draw("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, String(mark).replace("-", MINUS)));
  }
  if (panel.chance !== null) {
    const [up, down] = [panel.chance, -panel.chance].map((value) => Math.min(bottom, Math.max(top, scale(value))));
    svg.append(draw("rect", { class: "chance", x: left, width: right - left, y: up, height: down - up }));
  }
  svg.append(draw("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  drawTimeAxis(svg, axis, top, bottom, axisLabel(), right);
  const cursor = draw("line", { class: "cursor", y1: top, y2: bottom });
  svg.append(cursor);
  for (const { step, role } of panel.marks) {
    const x = axis.place(step);
    const mark = draw("line", { class: "half-way", x1: x, x2: x, y1: top, y2: bottom });
    mark.style.stroke = look(role).colour;
    svg.append(mark);
  }

  const dots = [];
  for (const line of panel.curves) {
    const style = look(line.role);
    for (const part of parts(line.steps.length, (i) => line.low[i] !== null && line.high[i] !== null)) {
      const forth = part.map((i) => `${axis.place(line.steps[i]).toFixed(1)},${scale(line.high[i]).toFixed(1)}`);
      const back = [...part].reverse().map((i) => `${axis.place(line.steps[i]).toFixed(1)},${scale(line.low[i]).toFixed(1)}`);
      const band = draw("path", { class: "band", d: `M${[...forth, ...back].join("L")}Z` });
      band.style.fill = style.colour;
      svg.append(band);
    }
  }
  for (const line of panel.curves) {
    const style = look(line.role);
    for (const part of parts(line.steps.length, (i) => line.middle[i] !== null)) {
      const places = part.map((i) => `${axis.place(line.steps[i]).toFixed(1)},${scale(line.middle[i]).toFixed(1)}`);
      svg.append(styled(draw("path", { class: "curve", d: `M${places.join("L")}` }), style));
      // Few points, or one between gaps, are hardly visible as a line.
      if (line.steps.length <= 8 || part.length === 1) {
        for (const i of part) svg.append(dot(axis.place(line.steps[i]), scale(line.middle[i]), style.colour, 2.5));
      }
    }
    const mark = dot(0, 0, style.colour, 3.5);
    mark.setAttribute("class", "now");
    svg.append(mark);
    const value = make("b", { class: "now" });
    const sample = draw("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, styled(draw("line", { x1: 0, x2: 22, y1: 4, y2: 4 }), style));
    dots.push({ line, mark, value, entry: make("li", {}, sample, line.label, value) });
  }
  followers.push((step) => {
    const x = axis.place(step);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    for (const { line, mark, value } of dots) {
      // Between two tests the value of the last one is shown.
      const at = line.steps.findLastIndex((one) => one <= step);
      const now = at < 0 ? null : line.middle[at];
      value.textContent = number(now);
      mark.setAttribute("visibility", now === null ? "hidden" : "visible");
      if (now !== null) {
        mark.setAttribute("cx", axis.place(line.steps[at]));
        mark.setAttribute("cy", scale(now));
      }
    }
  });
  onClick(svg, width, axis);
  return make("figure", { class: "chart" },
    make("figcaption", {}, panel.title, make("span", {}, `, ${panel.unit}`)),
    make("div", { class: "plot" }, svg),
    make("ul", { class: "legend" }, ...dots.map(({ entry }) => entry)));
}

function dot(x, y, colour, radius) {
  const made = draw("circle", { cx: x, cy: y, r: radius });
  made.style.fill = colour;
  return made;
}

/** Stretches of neighbours that are all there. */
function parts(length, there) {
  const found = [];
  for (let i = 0; i < length; i += 1) {
    if (!there(i)) continue;
    if (i > 0 && there(i - 1)) found.at(-1).push(i);
    else found.push([i]);
  }
  return found;
}

function summary(panel) {
  const lines = panel.curves.map((line) => {
    const known = line.middle.map((value, i) => [line.steps[i], value]).filter(([, value]) => value !== null);
    if (!known.length) return `${line.label}: nothing`;
    const [[start, from], [end, to]] = [known[0], known.at(-1)];
    return `${line.label}: ${number(from)} at step ${start}, ${number(to)} at step ${end}`;
  });
  return `${panel.title}, ${panel.unit}. ${lines.join("; ")}`;
}
