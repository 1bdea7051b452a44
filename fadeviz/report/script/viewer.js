// The viewer: a tile per operator, the marked pixel, the step and its playback.

const seeds = [];
for (const operator of data.operators) {
  operator.runs = operator.runs.filter((run) => data.shown.includes(run.run));
  if (operator.runs.length > 1) {
    for (const run of operator.runs) if (!seeds.includes(run.seed)) seeds.push(run.seed);
  }
}
state.seed = seeds.length ? seeds[0] : null;

/** The run of an operator that is shown; one that has no other run is shown with any seed. */
function runOf(operator) {
  if (operator.runs.length === 1) return operator.runs[0];
  return operator.runs.find((run) => run.seed === state.seed) || null;
}

let tiles = [];
let turn = 0; // counts selections, so that one that is slow to unpack does not replace a later one

async function showSelection() {
  turn += 1;
  const mine = turn;
  const image = data.images[state.image];
  const input = makeTile("Input", null, image);
  const shown = make("img", { src: image.image, alt: `Input image ${image.name}`, draggable: "false" });
  input.frame.append(shown, input.over.svg);
  input.element.append(make("div", { class: "range" }, imageName(image)), input.reading);
  const made = [input];
  if (image.matte) {
    const truth = makeTile("True alpha", null, image);
    truth.frame.append(make("img", { src: image.matte, alt: `True alpha of ${image.name}`, draggable: "false" }), truth.over.svg);
    truth.element.append(make("div", { class: "range" }, "black 0, white 1"), truth.reading);
    made.push(truth);
  }
  for (const operator of data.operators) {
    const run = runOf(operator);
    const sequence = run && sequenceOf(run.run, state.layer, state.kind, state.image);
    const tile = makeTile(operator.title, seeds.length && run ? run.seed : null, image, sequence && sequence.layer);
    tile.title = operator.title;
    tile.sequence = sequence;
    if (tile.sequence) {
      tile.canvas = make("canvas", { role: "img" });
      tile.frame.append(tile.canvas, tile.over.svg);
      tile.ends = [make("span"), make("span")];
      tile.bar = make("canvas", { width: 256, height: 1, "aria-hidden": "true" });
      tile.element.append(make("div", { class: "range" }, tile.ends[0], tile.bar, tile.ends[1]), tile.reading);
    } else {
      const why = run ? `no ${title(state.kind)} of this layer` : `no run with seed ${state.seed}`;
      tile.frame.append(make("div", { class: "missing" }, why));
    }
    made.push(tile);
  }
  try {
    await Promise.all(made.filter((tile) => tile.sequence).map(async (tile) => { tile.maps = await unpack(tile.sequence); }));
  } catch (error) {
    trouble("The maps cannot be unpacked in this browser. It needs DecompressionStream: Chrome 80, Firefox 113, Safari 16.4 or newer.");
    return;
  }
  if (mine !== turn) return;
  tiles = made;
  byId("tiles").replaceChildren(...made.map((tile) => tile.element));
  byId("tiles").classList.toggle("with-truth", Boolean(image.matte));
  byId("tiles").style.maxWidth = `${made.length * 420}px`;
  showCaption();
  showContour();
  showStep();
  showStrip();
  showPredictions();
}

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = false;
}

function showFrames() {
  for (const tile of tiles.filter((one) => one.maps)) {
    paint(tile.canvas, tile.sequence, tile.maps, state.at);
    const limits = shownLimits(tile.sequence, state.at);
    tile.ends.forEach((end, side) => { end.textContent = limits === null ? "not finite" : number(limits[side]); });
    tile.canvas.setAttribute("aria-label",
      `${tile.title}, ${title(state.kind)} at step ${steps[state.at]}` +
      (limits === null ? "" : `, from ${number(limits[0])} to ${number(limits[1])}`));
    drawRamp(tile.bar, palettes[state.palette]);
  }
}

function showCaption() {
  const runs = data.shown.length;
  const scope = {
    frame: "each frame spans its own minimum to maximum; brightness cannot be compared between frames",
    run: "one range over all steps of a run",
    shared: runs > 1 ? `one range over all steps of all ${runs} runs whose maps are here` : "one range over all steps",
  }[state.scope];
  const name = title(state.kind);
  byId("caption").textContent =
    `${state.layer}. ${name[0].toUpperCase()}${name.slice(1)}: ${data.kinds[state.kind]}. Colours: ${scope}.`;
}

function showContour() {
  tiles.forEach((tile, position) => {
    // The input always shows the contour, where it hides no measured values.
    tile.over.lines.setAttribute("visibility", state.contour || position === 0 ? "visible" : "hidden");
  });
}

function point(place) {
  state.point = place;
  showPoint();
}

function showPoint() {
  const first = tiles.find((tile) => tile.maps);
  if (!first) return;
  const place = state.point;
  for (const tile of tiles) {
    const [rows, columns] = (tile.sequence || first.sequence).size;
    const row = place && Math.floor(place.y * rows);
    const column = place && Math.floor(place.x * columns);
    markCell(tile, row, column, rows, columns);
    if (tile === tiles[0] && place) {
      byId("place").textContent = `Row ${row}, column ${column} of ${rows} × ${columns}, counted from 0.`;
    }
    if (!tile.maps) continue;
    if (!place) {
      tile.reading.textContent = "";
      continue;
    }
    const cell = state.at * rows * columns + row * columns + column;
    const limits = frameLimits(tile.sequence, state.at);
    const broken = limits === null || isHole(tile.maps.holes, cell);
    tile.reading.textContent = broken ? "not finite here" : `${number(levelValue(tile.maps.levels[cell], limits))} here`;
  }
  if (!place) byId("place").textContent = "Point at a map to read its values; the same place is marked in all of them.";
}

/** Six iterations of what is selected, for paper. */
function showStrip() {
  const some = Array.from({ length: Math.min(6, steps.length) }, (_, i) =>
    Math.round((i * (steps.length - 1)) / Math.max(1, Math.min(6, steps.length) - 1)));
  const image = data.images[state.image];
  const over = overlay(image);
  over.svg.append(over.lines);
  const shown = make("div", { class: "frame" }, make("img", { src: image.image, alt: "" }), over.svg);
  const truth = image.matte ? [make("div", { class: "frame" }, make("img", { src: image.matte, alt: "" }))] : [];
  const rows = [
    make("div", { class: "strip-row" }, make("span", {}, imageName(image)), shown, ...truth),
    make("div", { class: "strip-row" }, make("span"), ...some.map((at) => make("span", {}, `step ${count(steps[at])}`))),
  ];
  for (const tile of tiles.filter((one) => one.maps)) {
    const frames = some.map((at) => {
      const canvas = make("canvas");
      paint(canvas, tile.sequence, tile.maps, at);
      return canvas;
    });
    rows.push(make("div", { class: "strip-row" }, make("span", {}, tile.title), ...frames));
  }
  byId("strip").replaceChildren(...rows);
}

// --- the step ------------------------------------------------------------------------------------------------------

function showStep() {
  const slider = byId("slider");
  slider.value = state.at;
  slider.setAttribute("aria-valuetext", `step ${steps[state.at]}`);
  byId("step").textContent = `step ${count(steps[state.at])}`;
  showFrames();
  showPoint();
  showPredictionStep();
  for (const follow of followers) follow(steps[state.at]);
}

function goTo(at) {
  state.at = Math.min(steps.length - 1, Math.max(0, at));
  showStep();
}
