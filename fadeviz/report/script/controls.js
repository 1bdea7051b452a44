// The controls of the viewer, and the keyboard.

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
    const sizes = data.maps.find((maps) => maps.layer === layer).sequences.map((one) => one.size.join("×"));
    return [layer, `${layer}, ${[...new Set(sizes)].join(" and ")}`];
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
    radio.checked = (radio.value === "log") === state.log;
    radio.addEventListener("change", () => { state.log = radio.value === "log"; showCharts(); });
  }

  labelTrack();
  document.addEventListener("keydown", onKey);
}
