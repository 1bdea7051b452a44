
"use strict";
// The page draws itself from the JSON and the packed movies that stand above. Names come from strangers' files: they
// reach the document as text only (textContent, setAttribute), never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const steps = data.steps;
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const MINUS = "\u2212";

  const state = {
    layer: data.layer,
    kind: data.kind,
    image: 0,
    seed: null,
    at: steps.length - 1, // index into steps
    scope: "frame",
    palette: "gray",
    contour: false,
    log: true,
    point: null, // what is pointed at, as shares of width and height: layers differ in size
    playing: false,
  };

  // --- small helpers -------------------------------------------------------------------------------------------------

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  /** A value with three significant digits and a true minus sign: format_number of the library. */
  function number(value) {
    if (value === null || !Number.isFinite(value)) return "–";
    if (Number.isInteger(value) && Math.abs(value) < 1000) return String(value).replace("-", MINUS);
    const places = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
    const text = places <= 6
      ? value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places })
      : value.toExponential(2);
    return text.replace("-", MINUS);
  }
  const count = (value) => value.toLocaleString("en-US").replace("-", MINUS);
  const title = (kind) => kind.replaceAll("_", " ");

  /** Rounds halves to even, as the library does. */
  function rint(value) {
    const below = Math.floor(value);
    const rest = value - below;
    return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
  }

  // --- colours -------------------------------------------------------------------------------------------------------

  const palettes = {};
  for (const [name, text] of Object.entries(data.palettes)) {
    const colours = bytes(text);
    palettes[name] = Uint32Array.from({ length: 256 }, (_, i) =>
      packed(colours[3 * i], colours[3 * i + 1], colours[3 * i + 2]));
  }
  const nonFinite = packed(...data.nonFinite);

  /** A colour as the four bytes of a canvas pixel, in this machine's byte order. */
  function packed(red, green, blue) {
    return new Uint32Array(new Uint8ClampedArray([red, green, blue, 255]).buffer)[0];
  }

  /** The place of a value between two limits as one of 256 colours. */
  function colourIndex(value, low, high) {
    const unit = high > low ? (value - low) / (high - low) : 0.5 + 0.5 * Math.sign(value - low);
    return rint(Math.min(1, Math.max(0, unit)) * 255);
  }

  // --- movies --------------------------------------------------------------------------------------------------------

  const decoded = new Map(); // element id -> promise of levels and holes: each is unpacked once, when it is first shown

  function movieOf(run, layer, kind, image) {
    const maps = data.maps.find((one) => one.layer === layer && one.kind === kind);
    const movie = maps && maps.movies.find((one) => one.run === run && one.image === image);
    return movie ? { ...movie, shared: maps.shared[image] } : null;
  }

  function unpack(movie) {
    if (!decoded.has(movie.element)) decoded.set(movie.element, unpackNow(movie));
    return decoded.get(movie.element);
  }

  async function unpackNow(movie) {
    const [height, width] = movie.size;
    const area = height * width;
    const stream = new Blob([bytes(byId(movie.element).textContent)]).stream()
      .pipeThrough(new DecompressionStream("deflate"));
    const raw = new Uint8Array(await new Response(stream).arrayBuffer());
    const levels = raw.subarray(steps.length, steps.length + steps.length * area);
    const rest = new Int16Array(area); // what is predicted: the frame, or its difference from the one before
    for (let frame = 0; frame < steps.length; frame += 1) {
      const after = raw[frame] === 1 && frame > 0;
      const start = frame * area;
      for (let y = 0, cell = 0; y < height; y += 1) {
        for (let x = 0; x < width; x += 1, cell += 1) {
          let guess = 0;
          if (y === 0) {
            guess = x === 0 ? 0 : rest[cell - 1];
          } else if (x === 0) {
            guess = rest[cell - width];
          } else {
            const left = rest[cell - 1];
            const above = rest[cell - width];
            const low = Math.min(left, above);
            const high = Math.max(left, above);
            guess = Math.min(high, Math.max(low, left + above - rest[cell - width - 1]));
          }
          const before = after ? levels[start - area + cell] : 0;
          const level = (levels[start + cell] + guess + before) & 255;
          levels[start + cell] = level;
          rest[cell] = level - before;
        }
      }
    }
    return { levels, holes: movie.holes ? raw.subarray(steps.length * (area + 1)) : null };
  }

  const isHole = (holes, cell) => holes !== null && (holes[cell >> 3] & (128 >> (cell & 7))) !== 0;

  /** The value of each level of a frame. */
  function frameLimits(movie, at) {
    return movie.low[at] === null ? null : [Math.fround(movie.low[at]), Math.fround(movie.high[at])];
  }

  function shownLimits(movie, at) {
    return { frame: frameLimits(movie, at), run: movie.own, shared: movie.shared }[state.scope];
  }

  function levelValue(level, [low, high]) {
    return low + (level / 255) * (high - low);
  }

  /** Draws one frame into a canvas of the map's own size. */
  function paint(canvas, movie, { levels, holes }, at) {
    const [height, width] = movie.size;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const colours = palettes[state.palette];
    const own = frameLimits(movie, at);
    let table = colours;
    if (state.scope !== "frame" && own !== null) {
      const [low, high] = shownLimits(movie, at);
      table = colours.map((_, level) => colours[colourIndex(levelValue(level, own), low, high)]);
    }
    const pixels = new Uint32Array(width * height);
    const start = at * pixels.length;
    for (let cell = 0; cell < pixels.length; cell += 1) {
      pixels[cell] = isHole(holes, start + cell) ? nonFinite : table[levels[start + cell]];
    }
    const image = new ImageData(new Uint8ClampedArray(pixels.buffer), width, height);
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // --- tiles ---------------------------------------------------------------------------------------------------------

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

  function overlay(image) {
    const [height, width] = image.size;
    const box = { width: 1, height: 1, x: 0, y: 0, visibility: "hidden" };
    return {
      svg: draw("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }),
      lines: draw("g", {}, draw("path", { class: "contour-dark", d: image.contour }), draw("path", { class: "contour-light", d: image.contour })),
      marks: [draw("rect", { class: "pixel-dark", ...box }), draw("rect", { class: "pixel-light", ...box })],
      height,
      width,
    };
  }

  function makeTile(name, seed, image) {
    const heading = make("span", { class: "name" }, name);
    if (seed !== null) heading.append(" ", make("span", {}, `seed ${seed}`));
    const frame = make("div", { class: "frame" });
    const over = overlay(image);
    over.svg.append(over.lines, ...over.marks);
    const reading = make("div", { class: "reading screen" });
    const tile = { element: make("figure", { class: "tile" }, heading, frame), frame, over, reading, movie: null, maps: null };
    frame.style.aspectRatio = `${image.size[1]} / ${image.size[0]}`;
    const follow = (event) => {
      const place = frame.getBoundingClientRect();
      const x = (event.clientX - place.left) / place.width;
      const y = (event.clientY - place.top) / place.height;
      if (x >= 0 && x < 1 && y >= 0 && y < 1) point({ x, y });
    };
    frame.addEventListener("pointermove", follow);
    frame.addEventListener("pointerdown", follow);
    // A finger that is lifted leaves the mark, so that the values can be read.
    frame.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
    return tile;
  }

  let tiles = [];
  let turn = 0; // counts selections, so that one that takes long to unpack does not replace a later one

  async function showSelection() {
    turn += 1;
    const mine = turn;
    const image = data.images[state.image];
    const input = makeTile("Input", null, image);
    const shown = make("img", { src: image.image, alt: `Input image ${image.name}`, draggable: "false" });
    input.frame.append(shown, input.over.svg);
    input.element.append(make("div", { class: "range" }, image.name), input.reading);
    const made = [input];
    if (image.matte) {
      const truth = makeTile("True alpha", null, image);
      truth.frame.append(make("img", { src: image.matte, alt: `True alpha of ${image.name}`, draggable: "false" }), truth.over.svg);
      truth.element.append(make("div", { class: "range" }, "black 0, white 1"), truth.reading);
      made.push(truth);
    }
    for (const operator of data.operators) {
      const run = runOf(operator);
      const tile = makeTile(operator.title, seeds.length && run ? run.seed : null, image);
      tile.title = operator.title;
      tile.movie = run && movieOf(run.run, state.layer, state.kind, state.image);
      if (tile.movie) {
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
      await Promise.all(made.filter((tile) => tile.movie).map(async (tile) => { tile.maps = await unpack(tile.movie); }));
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
  }

  function trouble(text) {
    byId("trouble").textContent = text;
    byId("trouble").hidden = false;
  }

  function showFrames() {
    for (const tile of tiles.filter((one) => one.maps)) {
      paint(tile.canvas, tile.movie, tile.maps, state.at);
      const limits = shownLimits(tile.movie, state.at);
      tile.ends.forEach((end, side) => { end.textContent = limits === null ? "not finite" : number(limits[side]); });
      tile.canvas.setAttribute("aria-label",
        `${tile.title}, ${title(state.kind)} at step ${steps[state.at]}` +
        (limits === null ? "" : `, from ${number(limits[0])} to ${number(limits[1])}`));
      const ramp = new Uint8ClampedArray(palettes[state.palette].slice().buffer);
      tile.bar.getContext("2d").putImageData(new ImageData(ramp, 256, 1), 0, 0);
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
      // The input shows the contour always: there it hides nothing that was measured.
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
      const [rows, columns] = (tile.movie || first.movie).size;
      const row = place && Math.floor(place.y * rows);
      const column = place && Math.floor(place.x * columns);
      for (const mark of tile.over.marks) {
        mark.setAttribute("visibility", place ? "visible" : "hidden");
        if (!place) continue;
        const wide = tile.over.width / columns;
        const high = tile.over.height / rows;
        for (const [name, value] of Object.entries({ x: column * wide, y: row * high, width: wide, height: high })) {
          mark.setAttribute(name, value);
        }
      }
      if (tile === tiles[0] && place) {
        byId("place").textContent = `Row ${row}, column ${column} of ${rows} × ${columns}, counted from 0.`;
      }
      if (!tile.maps) continue;
      if (!place) {
        tile.reading.textContent = "";
        continue;
      }
      const cell = state.at * rows * columns + row * columns + column;
      const limits = frameLimits(tile.movie, state.at);
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
      make("div", { class: "strip-row" }, make("span", {}, image.name), shown, ...truth),
      make("div", { class: "strip-row" }, make("span"), ...some.map((at) => make("span", {}, `step ${count(steps[at])}`))),
    ];
    for (const tile of tiles.filter((one) => one.maps)) {
      const frames = some.map((at) => {
        const canvas = make("canvas");
        paint(canvas, tile.movie, tile.maps, at);
        return canvas;
      });
      rows.push(make("div", { class: "strip-row" }, make("span", {}, tile.title), ...frames));
    }
    byId("strip").replaceChildren(...rows);
  }

  // --- the step ------------------------------------------------------------------------------------------------------

  const followers = []; // what else moves with the step: cursors and legends

  function showStep() {
    const slider = byId("slider");
    slider.value = state.at;
    slider.setAttribute("aria-valuetext", `step ${steps[state.at]}`);
    byId("step").textContent = `step ${count(steps[state.at])}`;
    showFrames();
    showPoint();
    for (const follow of followers) follow(steps[state.at]);
  }

  function goTo(at) {
    state.at = Math.min(steps.length - 1, Math.max(0, at));
    showStep();
  }

  function nearest(step) {
    let best = 0;
    steps.forEach((one, at) => { if (Math.abs(one - step) < Math.abs(steps[best] - step)) best = at; });
    return best;
  }

  let timer = 0;

  function setPlaying(playing) {
    state.playing = playing;
    clearTimeout(timer);
    const button = byId("play");
    button.setAttribute("aria-label", playing ? "Pause" : "Play");
    button.setAttribute("aria-pressed", String(playing));
    byId("play-shape").setAttribute("d", playing ? "M5 3h4v14H5zM11 3h4v14h-4z" : "M5 3l12 7-12 7z");
    // Nobody wants to hear every step of a movie read out.
    byId("step").setAttribute("aria-live", playing ? "off" : "polite");
    if (!playing) return;
    if (state.at === steps.length - 1) goTo(0);
    wait();
  }

  function wait() {
    timer = setTimeout(() => {
      goTo(state.at + 1);
      if (state.at === steps.length - 1) setPlaying(false);
      else wait();
    }, Number(byId("speed").value));
  }

  // --- controls ------------------------------------------------------------------------------------------------------

  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, text]) => {
      const option = make("option", { value }, text);
      option.selected = value === String(chosen);
      return option;
    }));
  }

  const layers = [...new Set(data.maps.map((maps) => maps.layer))];
  const kindsOf = (layer) => data.maps.filter((maps) => maps.layer === layer).map((maps) => maps.kind);

  function setLayer(layer) {
    state.layer = layer;
    const kinds = kindsOf(layer);
    if (!kinds.includes(state.kind)) state.kind = kinds[0];
    options(byId("kind"), kinds.map((kind) => [kind, title(kind)]), state.kind);
  }

  function setImage(image) {
    state.image = (image + data.count) % data.count;
    byId("image").value = String(state.image);
    showSelection();
  }

  function makeControls() {
    options(byId("layer"), layers.map((layer) => {
      const [height, width] = data.maps.find((maps) => maps.layer === layer).movies[0].size;
      return [layer, `${layer}, ${height}×${width}`];
    }), state.layer);
    setLayer(layers.includes(state.layer) ? state.layer : layers[0]);
    options(byId("image"), data.images.slice(0, data.count).map((image, i) => [String(i), image.name]), state.image);
    options(byId("seed"), seeds.map((seed, i) => [String(i), seed === null ? "none" : seed]), 0);
    byId("seed-label").hidden = seeds.length < 2;
    options(byId("palette"), Object.keys(data.palettes).map((name) => [name, name]), state.palette);
    byId("slider").max = steps.length - 1;

    byId("layer").addEventListener("change", (event) => { setLayer(event.target.value); showSelection(); });
    byId("kind").addEventListener("change", (event) => { state.kind = event.target.value; showSelection(); });
    byId("image").addEventListener("change", (event) => setImage(Number(event.target.value)));
    byId("seed").addEventListener("change", (event) => { state.seed = seeds[Number(event.target.value)]; showSelection(); });
    byId("palette").addEventListener("change", (event) => { state.palette = event.target.value; showFrames(); showStrip(); });
    byId("contour").addEventListener("change", (event) => { state.contour = event.target.checked; showContour(); });
    byId("slider").addEventListener("input", (event) => { setPlaying(false); goTo(Number(event.target.value)); });
    byId("play").addEventListener("click", () => setPlaying(!state.playing));
    for (const radio of document.querySelectorAll("input[name=scope]")) {
      radio.addEventListener("change", () => { state.scope = radio.value; showCaption(); showFrames(); showStrip(); });
    }
    for (const radio of document.querySelectorAll("input[name=axis]")) {
      radio.addEventListener("change", () => { state.log = radio.value === "log"; showCharts(); });
    }

    // The slider's places are snapshots, not steps: say which steps some of them are.
    const last = Math.max(1, steps.length - 1);
    const places = Math.min(6, steps.length);
    byId("track-steps").replaceChildren(...Array.from({ length: places }, (_, i) => {
      const at = Math.round((i * last) / Math.max(1, places - 1));
      const label = make("span", {}, count(steps[Math.min(at, steps.length - 1)]));
      label.style.left = `${(100 * at) / last}%`;
      return label;
    }));

    document.addEventListener("keydown", onKey);
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.target;
    const viewer = byId("viewer").getBoundingClientRect();
    // Elsewhere on the page, these keys scroll as they always do.
    if (viewer.bottom < 0 || viewer.top > innerHeight) return;
    if (target !== document.body && !byId("viewer").contains(target)) return;
    const slider = target === byId("slider");
    const takesArrows = ["SELECT", "INPUT"].includes(target.tagName) && !slider;
    const takesSpace = ["SELECT", "BUTTON", "SUMMARY", "A"].includes(target.tagName) || (target.tagName === "INPUT" && !slider);
    const move = { ArrowLeft: state.at - 1, ArrowRight: state.at + 1, Home: 0, End: steps.length - 1 };
    if (event.key === "[") setImage(state.image - 1);
    else if (event.key === "]") setImage(state.image + 1);
    else if (event.key === " " && !takesSpace) setPlaying(!state.playing);
    else if (event.key in move && !takesArrows) {
      setPlaying(false);
      goTo(move[event.key]);
    } else return;
    event.preventDefault();
  }

  // --- charts --------------------------------------------------------------------------------------------------------

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

  function showCharts() {
    followers.length = 0;
    byId("figures").replaceChildren(...data.groups.map(makeGroup));
    showKymographs();
    showStep();
  }

  function makeGroup(group) {
    const ranges = {};
    for (const panel of group.panels) {
      const values = panel.curves.flatMap((curve) => [...curve.middle, ...curve.low, ...curve.high]).filter((v) => v !== null);
      const old = ranges[panel.scale] || [Infinity, -Infinity];
      ranges[panel.scale] = [Math.min(old[0], ...values), Math.max(old[1], ...values)];
    }
    const charts = make("div", { class: "charts curves" }, ...group.panels.map((panel) => makeChart(panel, ranges[panel.scale])));
    const meanings = make("dl", {}, ...group.measures.map(([name, meaning]) =>
      make("div", {}, make("dt", {}, name), ": ", make("dd", {}, meaning))));
    const name = group.name[0].toUpperCase() + group.name.slice(1);
    return make("section", { class: "group", "aria-label": name },
      make("h3", {}, name, make("span", {}, `: ${group.meaning}`)),
      ...(group.note ? [make("p", { class: "quiet note" }, group.note)] : []), charts,
      make("details", { class: "meanings" }, make("summary", {}, "What these are"), meanings));
  }

  const VARIANTS = { faint: "2 3", like: "7 2 1 2" };
  const DASHES = ["", "6 3", "2 2", "9 3 2 3", "", "6 3", "2 2", "9 3 2 3"];

  /** Colour and dashes of a line, so that it is told from the others without its colour as well. */
  function look(role) {
    const [main, variant] = role.split(" ");
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
        // A course of a few tests, or one between gaps, is points more than a line.
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
        // Between two tests the last one holds.
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

  // --- distance-time maps --------------------------------------------------------------------------------------------

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
    const width = narrow.matches || data.operators.length > 4 ? 350 : 480; // drawn at about the size that it is shown at: its text stays readable
    const [height, left, right, top, bottom] = [280, 52, width - 8, 8, 240];
    // Cells reach half-way to their neighbours.
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

    const fine = 3; // canvas pixels a unit of the drawing, so that cells are crisp on any screen
    const canvas = make("canvas", { width: (right - left) * fine, height: (bottom - top) * fine, "aria-hidden": "true" });
    const box = { left: left / width, top: top / height, width: (right - left) / width, height: (bottom - top) / height };
    for (const [side, share] of Object.entries(box)) canvas.style[side] = `${100 * share}%`;
    const context = canvas.getContext("2d");
    const colours = bytes(data.kymographs.colours);
    const [low, high] = data.kymographs.span;
    context.fillStyle = "rgb(209, 209, 209)"; // what is undefined
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
})();
