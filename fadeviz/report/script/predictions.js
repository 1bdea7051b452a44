// Predictions: the classes or alphas of the image at the step shown; the slider is that of the maps, once more.

const predictionColours = data.predictions && Uint32Array.from({ length: 256 }, (_, i) =>
  packed(...data.predictions.colours.slice(3 * i, 3 * i + 3)));
let predictionTiles = [];
let predictionImage = 0; // the image of these tiles: the chosen one, as soon as it is unpacked

function predictionTile(name, seed, image) {
  const tile = makeTile(name, seed, image);
  tile.over.svg.append(tile.over.lines);
  return tile;
}

async function showPredictions() {
  if (!data.predictions) return;
  const mine = turn;
  const chosen = state.image;
  const image = data.images[chosen];
  const truth = data.predictions.truths[state.image];
  const made = [];
  if (truth) {
    const tile = predictionTile("Truth", null, image);
    const shown = make("img", { src: truth, alt: `Truth of ${image.name}`, draggable: "false" });
    shown.style.imageRendering = "pixelated";
    tile.frame.append(shown);
    made.push(tile);
  }
  for (const operator of data.operators) {
    const run = runOf(operator);
    const tile = predictionTile(operator.title, seeds.length && run ? run.seed : null, image);
    tile.title = operator.title;
    const sequence = run && data.predictions.sequences.find((one) => one.run === run.run && one.image === state.image);
    if (sequence) {
      tile.sequence = sequence;
      tile.canvas = make("canvas", { role: "img" });
      tile.frame.append(tile.canvas, ...(data.predictions.outlined ? [tile.over.svg] : []));
      tile.maps = await unpack(sequence);
    } else {
      tile.frame.append(make("div", { class: "missing" }, run ? "no predictions of this image" : `no run with seed ${state.seed}`));
    }
    made.push(tile);
  }
  if (mine !== turn) return;
  predictionTiles = made;
  predictionImage = chosen;
  byId("prediction-tiles").replaceChildren(...made.map((tile) => tile.element));
  byId("prediction-tiles").style.maxWidth = `${made.length * 420}px`;
  byId("prediction-image").value = String(state.image);
  showPredictionStep();
}

function showPredictionStep() {
  if (!data.predictions) return;
  byId("prediction-slider").value = state.at;
  byId("prediction-slider").setAttribute("aria-valuetext", `step ${steps[state.at]}`);
  byId("prediction-step").textContent = `step ${count(steps[state.at])}`;
  byId("prediction-caption").textContent = `${data.images[predictionImage].name}, step ${count(steps[state.at])}.`;
  for (const tile of predictionTiles.filter((one) => one.maps)) {
    const [height, width] = tile.sequence.size;
    if (tile.canvas.width !== width || tile.canvas.height !== height) Object.assign(tile.canvas, { width, height });
    const area = width * height;
    const levels = tile.maps.levels.subarray(state.at * area, (state.at + 1) * area);
    const pixels = Uint32Array.from(levels, (level) => predictionColours[level]);
    tile.canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
    tile.canvas.setAttribute("aria-label", `${tile.title}, prediction at step ${steps[state.at]}`);
  }
}

function makePredictionControls() {
  if (!data.predictions) return;
  byId("predictions").hidden = false;
  options(byId("prediction-image"), data.images.slice(0, data.count).map((image, i) => [String(i), image.name]), state.image);
  byId("prediction-image").addEventListener("change", (event) => setImage(Number(event.target.value)));
  byId("prediction-slider").max = steps.length - 1;
  byId("prediction-slider").addEventListener("input", (event) => { setPlaying(false); goTo(Number(event.target.value)); });
  byId("prediction-legend").replaceChildren(...data.predictions.legend.map(([name, index]) => {
    const [red, green, blue] = data.predictions.colours.slice(3 * index, 3 * index + 3);
    const square = draw("svg", { viewBox: "0 0 10 10", width: 10, height: 10, "aria-hidden": "true" },
      draw("rect", { width: 10, height: 10, fill: `rgb(${red}, ${green}, ${blue})` }));
    return make("li", {}, square, name);
  }));
}
