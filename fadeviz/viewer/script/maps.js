// The maps of the runs that are shown: their tiles, the step, and what is fetched for them.

const opened = new Map(); // id -> { details, images, problem }
let tiles = [];
let turn = 0; // counts what was asked to be shown, so that a slow answer does not replace a later one
let made = ""; // what the tiles were made for

// --- runs ----------------------------------------------------------------------------------------------------------

async function load(id) {
  const known = opened.get(id);
  try {
    const details = await ask(`api/run/${id}`);
    const sameRun = known && known.details && known.details.runId === details.runId && known.images;
    const images = sameRun ? known.images : await ask(`api/run/${id}/images`);
    opened.set(id, { details, images, versions: new Map(details.steps), problem: "" });
  } catch (error) {
    // What was fetched stays as it was while the server does not answer.
    if (error instanceof Refused || !known) opened.set(id, { details: null, images: null, problem: error instanceof Refused ? error.message : "waiting for the server" });
  }
}

const detailsOf = (id) => opened.get(id)?.details ?? null;

/** Names that tell the runs apart: the operator, then the seed, then the folder. */
function labels() {
  const all = state.runs.map((id) => detailsOf(id) ?? entries.get(id) ?? { title: "run", place: id, seed: null, network: "" });
  return all.map((one) => {
    const name = one.title || one.name || one.place;
    const twins = all.filter((other) => other !== one && (other.title || other.name || other.place) === name);
    if (!twins.length) return [name, ""];
    if (one.network && twins.every((other) => other.network !== one.network)) return [name, one.network];
    if (one.seed !== null && twins.every((other) => other.seed !== one.seed)) return [name, `seed ${one.seed}`];
    return [name, one.place];
  });
}

/** The layer of a run that is meant by the chosen one: of its very name, or of one that differs in prefixes only. */
function layerOf(id) {
  const details = detailsOf(id);
  if (!details) return null;
  const own = details.layers.find((layer) => layer.name === state.own[id]);
  if (own) return own;
  const bare = allLayers().find((layer) => layer.name === state.layer)?.bare;
  return details.layers.find((layer) => layer.name === state.layer)
    ?? details.layers.find((layer) => layer.bare === bare) ?? null;
}

function allLayers() {
  const found = new Map();
  for (const id of state.runs) {
    for (const layer of detailsOf(id)?.layers ?? []) if (!found.has(layer.name)) found.set(layer.name, layer);
  }
  return [...found.values()];
}

/** The kind of a run's layer: its calls, images and channels; null if it was not recorded. */
const kindOf = (id) => layerOf(id)?.kinds[state.kind] ?? null;

/** The map of a run that is chosen; or a sentence on why there is none. */
function mapOf(id) {
  const details = detailsOf(id);
  if (!entries.has(id) && !details) return "This run is not there (any more).";
  if (!details) return opened.get(id)?.problem ?? "";
  if (!entries.has(id)) return "This run is not there any more: its folder was removed or renamed.";
  if (!details.steps.length) return isActive(entries.get(id)) ? "No snapshot yet." : "No whole snapshot.";
  if (state.kind === PREDICTION) {
    if (!details.predictions) return "no predictions were stored";
    return { kind: PREDICTION, image: state.image };
  }
  const layer = layerOf(id);
  if (!layer) return `no layer ${state.layer}`;
  const kind = layer.kinds[state.kind];
  if (!kind) return `no ${title(state.kind)} of this layer`;
  if (!(state.call in kind.calls)) return `no call ${state.call} of this layer`;
  const image = state.kind === "constant" ? 0 : state.image;
  if (image >= kind.images) return `no ${title(state.kind)} of image ${image}: recorded of the first ${kind.images}`;
  if (kind.channels !== null && state.channel >= kind.channels) return `no channel ${state.channel}: there are ${kind.channels}`;
  return { layer: layer.name, kind: state.kind, call: state.call, image, channel: kind.channels === null ? null : state.channel };
}

function findSteps() {
  const all = new Set();
  for (const id of state.runs) for (const [step] of detailsOf(id)?.steps ?? []) all.add(step);
  return [...all].sort((a, b) => a - b);
}

/** The last snapshot of a run that is not later than a step; null if there is none. */
function stepOf(id, step) {
  let last = null;
  for (const [one] of detailsOf(id)?.steps ?? []) {
    if (one > step) break;
    last = one;
  }
  return last;
}

// --- what a run that changed changes ---------------------------------------------------------------------------------

/** After a poll: runs whose entries changed are loaded again if they are shown. */
async function runsChanged(ids) {
  showShown();
  const mine = state.runs.filter((id) => ids.has(id) || !opened.has(id) || (opened.get(id).problem && entries.has(id)));
  if (!mine.length) return;
  await Promise.all(mine.filter((id) => entries.has(id)).map(load));
  refresh();
}

/** Shows what was loaded: at the newest step if the page follows, else at the step that was shown. */
function refresh() {
  const before = steps[state.at];
  const atEnd = state.at >= steps.length - 1;
  steps = findSteps();
  state.at = state.follow && atEnd && !state.playing ? steps.length - 1 : nearest(before ?? Infinity);
  state.at = Math.max(0, Math.min(steps.length - 1, state.at));
  byId("slider").max = Math.max(0, steps.length - 1);
  labelTrack();
  showControls();
  const now = JSON.stringify([state.runs, labels(), state.runs.map((id) => [mapOf(id), detailsOf(id)?.runId, opened.get(id)?.images?.lost])]);
  if (now !== made || !tiles.length) {
    made = now;
    showSelection();
  } else {
    showStep();
  }
  showNotes();
  loadCurves();
}

/** After the server was away. */
function again() {
  for (const id of state.runs) opened.get(id) || opened.set(id, { details: null, images: null, problem: "waiting" });
  Promise.all(state.runs.map(load)).then(() => { if (state.runs.length) refresh(); });
}

// --- tiles -----------------------------------------------------------------------------------------------------------

function showSelection() {
  const names = labels();
  const source = state.runs.find((id) => opened.get(id)?.images?.images[state.image]);
  const list = [];
  if (source !== undefined && state.kind !== "constant") {
    const { images, truth } = opened.get(source).images;
    const image = images[state.image];
    const path = (what) => `api/run/${source}/image?${query({ what, image: state.image, v: detailsOf(source)?.runId })}`;
    for (const [name, what] of [["Input", "image"], [`True ${truth}`, "truth"]]) {
      const tile = makeTile(name, null, image);
      const shown = make("img", { src: path(what), alt: `${name} of ${image.name}`, draggable: "false" });
      tile.frame.append(shown, tile.over.svg);
      tile.element.append(make("div", { class: "range" }, what === "image" ? imageName(image) : ""), tile.reading);
      tile.input = what === "image";
      list.push(tile);
    }
  }
  state.runs.forEach((id, place) => {
    const map = mapOf(id);
    const own = opened.get(id)?.images?.images[state.image];
    const size = typeof map === "string" ? null : sizeOf(id);
    const image = own && state.kind !== "constant" ? own : { name: "", size: size ?? [3, 4], contour: "" };
    const [name, extra] = names[place];
    const tile = makeTile(name, null, image);
    tile.element.querySelector(".name").append(...(extra ? [" ", make("span", {}, extra)] : []));
    Object.assign(tile, { id, title: [name, extra].filter(Boolean).join(", "), map, shown: null, limits: null });
    tile.note = make("span", { class: "at" });
    if (typeof map === "string") {
      tile.frame.append(make("div", { class: "missing" }, make("div", {}, map, ...layerChoice(id))));
      tile.element.append(tile.note);
    } else {
      tile.canvas = make("canvas", { role: "img" });
      tile.frame.append(tile.canvas, tile.over.svg);
      tile.ends = [make("span"), make("span")];
      tile.bar = make("canvas", { width: 256, height: 1, "aria-hidden": "true" });
      tile.scale = make("div", { class: "range" }, tile.ends[0], tile.bar, tile.ends[1]);
      tile.scale.hidden = state.kind === PREDICTION;
      tile.element.append(tile.scale, tile.note, tile.reading);
    }
    list.push(tile);
  });
  tiles = list;
  byId("tiles").replaceChildren(...list.map((tile) => tile.element));
  byId("tiles").classList.toggle("with-truth", list.some((tile) => tile.input));
  arrange();
  showCaption();
  showContour();
  return showStep();
}

const LEAST_TILE = 180; // pixels
const MOST_TILE = 460;

/** As many tiles in a row as fit, in rows of equal length: eight are twice four, not six and two. */
function arrange() {
  const wide = byId("viewer").clientWidth;
  const most = Math.max(wide < 560 ? 2 : 3, Math.floor((wide + 16) / (LEAST_TILE + 16)));
  const columns = Math.ceil(tiles.length / Math.max(1, Math.ceil(tiles.length / most)));
  const grid = byId("tiles").style;
  grid.gridTemplateColumns = `repeat(${Math.max(1, columns)}, minmax(0, 1fr))`;
  // Not so large that the slider is off the screen.
  grid.maxWidth = `${Math.max(1, columns) * Math.min(MOST_TILE, Math.max(260, 0.55 * innerHeight))}px`;
}

new ResizeObserver(arrange).observe(byId("viewer"));

function sizeOf(id) {
  const kind = kindOf(id);
  return kind ? kind.calls[state.call] ?? null : null;
}

/** A run that has no such layer can show another of its own beside the others. */
function layerChoice(id) {
  const details = detailsOf(id);
  if (!details || !entries.has(id) || state.kind === PREDICTION || layerOf(id)) return [];
  const usable = details.layers.filter((layer) => state.kind in layer.kinds);
  if (!usable.length) return [];
  const select = make("select", { "aria-label": "Layer of this run" });
  options(select, [["", "choose one of its layers"], ...usable.map(({ name }) => [name, name])], "");
  select.addEventListener("change", () => {
    state.own[id] = select.value;
    refresh();
    keepLink();
  });
  return [select];
}

function showCaption() {
  const several = state.runs.length > 1;
  const scope = {
    frame: "each frame spans its own minimum to maximum; brightness cannot be compared between frames",
    run: "one range over all steps of a run so far",
    shared: several ? "one range over all steps of all runs shown" : "one range over all steps so far",
  }[state.scope];
  if (!steps.length || !state.kind) byId("caption").textContent = "";
  else if (state.kind === PREDICTION) byId("caption").textContent = "Prediction: what the model made of the image at this step.";
  else {
    const name = title(state.kind);
    byId("caption").textContent =
      `${state.layer}. ${name[0].toUpperCase()}${name.slice(1)}: ${data.kinds[state.kind]}. Colours: ${scope}.`;
  }
}

function showContour() {
  for (const tile of tiles) tile.over.lines.setAttribute("visibility", state.contour || tile.input ? "visible" : "hidden");
}

// --- the step --------------------------------------------------------------------------------------------------------

function goTo(at) {
  state.at = Math.max(0, Math.min(steps.length - 1, at));
  state.follow = state.at === steps.length - 1; // as long as the newest one is shown
  byId("follow").checked = state.follow;
  keepLink();
  return showStep();
}

/** Resolves when every map of the step is painted. */
async function showStep() {
  turn += 1;
  const mine = turn;
  const step = steps[state.at];
  const slider = byId("slider");
  slider.value = state.at;
  slider.disabled = !steps.length;
  slider.setAttribute("aria-valuetext", steps.length ? `step ${step}` : "no snapshot");
  byId("step").textContent = steps.length ? `step ${count(step)}` : "";
  if (!steps.length) return;
  for (const follow of followers) follow(step);
  await Promise.all(tiles.filter((tile) => tile.canvas).map((tile) => showTile(tile, step, mine)));
  if (mine === turn) prefetch();
}

async function showTile(tile, step, mine) {
  const own = stepOf(tile.id, step);
  if (own === null) {
    tile.shown = null;
    tile.canvas.width = tile.canvas.width; // empty
    tile.note.textContent = `no snapshot up to step ${count(step)}`;
    tile.ends.forEach((end) => { end.textContent = ""; });
    showPoint();
    return;
  }
  try {
    const frame = await frameAt(tile.id, tile.map, own, opened.get(tile.id).versions.get(own));
    const limits = frame.values ? await limitsOf(tile, frame) : null;
    if (mine !== turn) return;
    tile.shown = frame;
    tile.limits = limits;
    tile.note.textContent = own === step ? "" : `of step ${count(own)}, its last one before`; // or it is not there yet
    paintTile(tile, own);
  } catch (error) {
    if (!(error instanceof Refused || error instanceof TypeError)) throw error;
    if (mine !== turn) return;
    if (error instanceof Refused) {
      tile.shown = null;
      tile.canvas.width = tile.canvas.width;
      tile.note.textContent = error.message;
    } else tile.note.textContent = "waiting for the server";
  }
  showPoint();
}

/** The values that the two ends of the colours stand for; null if the frame has no finite value. */
async function limitsOf(tile, frame) {
  if (state.scope === "frame") return frame.own;
  if (state.kind in data.fixedRanges) return data.fixedRanges[state.kind];
  const ids = state.scope === "shared" ? tiles.filter((one) => one.canvas).map((one) => one.id) : [tile.id];
  let low = Infinity;
  let high = -Infinity;
  for (const range of await Promise.all(ids.map(rangeOf))) {
    if (range === null) continue;
    low = Math.min(low, range[0]);
    high = Math.max(high, range[1]);
  }
  if (low > high) return [0, 0];
  return [state.kind === "gradient" ? Math.min(0, high) : low, high];
}

const rangesKept = new Map(); // id -> { path, details, range }

/** Least and greatest value of a run's map over all its steps. */
function rangeOf(id) {
  const map = mapOf(id);
  const path = `api/run/${id}/ranges?${query(map)}`;
  const details = detailsOf(id);
  const known = rangesKept.get(id);
  if (known?.path !== path || known.details !== details) {
    const range = ask(path).then(({ low, high }) => {
      const there = low.flatMap((one, at) => (one === null ? [] : [[one, high[at]]]));
      return there.length ? [Math.min(...there.map(([one]) => one)), Math.max(...there.map(([, one]) => one))] : null;
    });
    range.catch(() => rangesKept.delete(id));
    rangesKept.set(id, { path, details, range });
  }
  return rangesKept.get(id).range;
}

/** The maps that are likely to be shown next. */
function prefetch() {
  const next = state.playing ? [1, 2, 3] : [1, -1];
  for (const tile of tiles.filter((one) => one.canvas)) {
    for (const far of next) {
      const step = steps[state.at + far];
      const own = step === undefined ? null : stepOf(tile.id, step);
      if (own !== null) frameAt(tile.id, tile.map, own, opened.get(tile.id).versions.get(own)).catch(() => {});
    }
  }
}

// --- painting --------------------------------------------------------------------------------------------------------

function paintTile(tile, step) {
  const { shown, limits, canvas } = tile;
  const [height, width] = shown.size;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  if (shown.image) {
    canvas.getContext("2d").drawImage(shown.image, 0, 0);
    canvas.setAttribute("aria-label", `${tile.title}, prediction at step ${step}`);
    return;
  }
  const colours = palettes[state.palette];
  const pixels = new Uint32Array(width * height);
  const [low, high] = limits ?? [0, 0];
  const span = high - low;
  for (let cell = 0; cell < pixels.length; cell += 1) {
    const value = shown.values[cell];
    if (!Number.isFinite(value)) pixels[cell] = nonFinite;
    else {
      // As normalize() and to_indices() of the library do: a share as float32, and the nearest of 256.
      const share = span > 0 ? (value - low) / span : 0.5 + 0.5 * Math.sign(value - low);
      pixels[cell] = colours[rint(Math.fround(Math.min(1, Math.max(0, share))) * 255)];
    }
  }
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
  tile.ends.forEach((end, side) => {
    end.textContent = limits === null ? "not finite" : number(limits[side]);
    end.title = limits === null ? "" : exact(limits[side]);
  });
  canvas.setAttribute("aria-label", `${tile.title}, ${title(state.kind)} at step ${step}` +
    (limits === null ? "" : `, from ${number(limits[0])} to ${number(limits[1])}`));
  drawRamp(tile.bar, colours);
}

function point(place) {
  state.point = place;
  showPoint();
}

function showPoint() {
  const place = state.point;
  const first = tiles.find((tile) => tile.shown);
  if (!place || !first) byId("place").textContent = "";
  for (const tile of tiles) {
    const grid = tile.shown ?? first;
    const size = tile.shown?.size ?? first?.shown.size;
    if (!place || !grid || !size) {
      markCell(tile, null);
      tile.reading.textContent = "";
      continue;
    }
    const [height, width] = size;
    const row = Math.floor(place.y * height);
    const column = Math.floor(place.x * width);
    markCell(tile, row, column, height, width);
    if (tile === tiles[0]) byId("place").textContent = `Row ${row}, column ${column} of ${height} × ${width}, counted from 0.`;
    if (tile.shown?.values) {
      const value = tile.shown.values[row * width + column];
      tile.reading.textContent = Number.isFinite(value) ? `${exact(value)} here` : `${value} here`;
    }
  }
}
