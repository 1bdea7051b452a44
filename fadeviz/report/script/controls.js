// The controls of the viewer, and the keyboard.

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

  // The slider counts snapshots, not steps: label some of them with their steps.
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
  // Elsewhere on the page these keys scroll, as usual.
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
