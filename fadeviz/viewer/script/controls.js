// The controls of the maps, saving, and the start.

/** Chooses what is left open, and fills the lists with what the runs have. */
function showControls() {
  const layers = allLayers();
  const details = state.runs.map(detailsOf).filter(Boolean);
  if (!layers.some(({ name }) => name === state.layer) && layers.length) {
    const figure = details.find((one) => one.layers.some(({ name }) => name === one.figureLayer))?.figureLayer;
    state.layer = figure ?? layers[Math.max(0, layers.length - 2)].name;
  }
  setOptions("layer", layers.map((layer) => {
    const size = Object.values(layer.kinds)[0]?.calls[0];
    return [layer.name, size ? `${layer.name}, ${size.join("×")}` : layer.name];
  }), state.layer);

  const recorded = new Set(state.runs.flatMap((id) => Object.keys(layerOf(id)?.kinds ?? {})));
  const kinds = Object.keys(data.kinds).filter((kind) => recorded.has(kind));
  if (details.some((one) => one.predictions)) kinds.push(PREDICTION);
  if (!kinds.includes(state.kind) && kinds.length) [state.kind] = kinds;
  setOptions("kind", kinds.map((kind) => [kind, title(kind)]), state.kind);
  const drawn = state.kind !== PREDICTION;
  byId("layer").disabled = !drawn;

  const found = state.runs.map(kindOf).filter(Boolean);
  const calls = [...new Set(found.flatMap((kind) => Object.keys(kind.calls)))].sort((a, b) => a - b);
  if (calls.length && !calls.includes(String(state.call))) state.call = Number(calls[0]);
  setOptions("call", calls.map((call) => [call, `${call}, ${found.find((kind) => call in kind.calls).calls[call].join("×")}`]), state.call);
  byId("call-label").hidden = calls.length < 2 || !drawn;

  const images = state.runs.map((id) => opened.get(id)?.images?.images ?? []).sort((a, b) => b.length - a.length)[0] ?? [];
  const most = Math.max(0, images.length, ...found.filter(() => state.kind !== "constant").map((kind) => kind.images));
  if (most && state.image >= most) state.image = 0;
  setOptions("image", Array.from({ length: most }, (_, i) => [String(i), images[i]?.name ?? `image ${i}`]), state.image);
  byId("image").disabled = state.kind === "constant";

  const channels = Math.max(0, ...found.map((kind) => kind.channels ?? 0));
  byId("channel-label").hidden = !channels || !drawn;
  if (channels && state.channel >= channels) state.channel = 0;
  byId("channel").max = Math.max(0, channels - 1);
  byId("channels").textContent = channels ? `of ${channels}` : "";
  if (document.activeElement !== byId("channel")) byId("channel").value = state.channel;
  byId("viewer").classList.toggle("empty", !steps.length); // nothing to choose from, or not yet
  byId("play").disabled = steps.length < 2;
  byId("save").disabled = !steps.length;
}

function setOptions(id, entriesOf, chosen) {
  const select = byId(id);
  const wanted = JSON.stringify([entriesOf, String(chosen)]);
  if (select.dataset.made === wanted) return;
  select.dataset.made = wanted;
  options(select, entriesOf, chosen);
}

/** The runs that are shown, with how far they are. */
function showShown() {
  const open = state.runs.length > 0;
  const names = labels();
  byId("heading").textContent = open ? [...new Set(names.map(([name]) => name))].slice(0, 4).join(", ") + (new Set(names.map(([name]) => name)).size > 4 ? " …" : "") : "Runs";
  document.title = open ? `${byId("heading").textContent} · fadeviz` : "fadeviz";
  const wanted = JSON.stringify([names, state.runs.map((id) => entries.get(id) ?? id)]);
  const list = byId("shown");
  if (list.dataset.made === wanted) return;
  list.dataset.made = wanted;
  list.replaceChildren(...state.runs.map((id, place) => {
    const entry = entries.get(id);
    const [name, extra] = names[place];
    const remove = make("button", { type: "button", "aria-label": `Close ${name} ${extra}`, title: "Close" }, "×");
    remove.addEventListener("click", () => { location.hash = linkTo(state.runs.filter((one) => one !== id)); });
    const status = entry ? entry.status : "gone";
    const badge = make("span", { class: `state ${ACTIVE.concat("finished", "failed", "stopped", "damaged", "interrupted", "gone").includes(status) ? status : ""}` }, entry ? status : "not there");
    const far = entry ? [entry.place === extra ? "" : entry.place, progressText(entry), metricText(entry)].filter(Boolean).join(" · ") : "";
    return make("li", {}, make("span", {}, make("b", {}, name), extra ? ` ${extra}` : ""), badge, make("span", { class: "far" }, far), remove);
  }));
  byId("follow").parentElement.parentElement.hidden = !state.runs.some((id) => isActive(entries.get(id)));
}

/** What a reader has to know of the runs: damage, why a run ended, images that differ or are lost. */
function showNotes() {
  const names = labels().map(([name, extra]) => [name, extra].filter(Boolean).join(", "));
  const notes = [];
  const digests = new Map();
  state.runs.forEach((id, place) => {
    const entry = entries.get(id);
    const one = opened.get(id);
    if (entry?.status === "stopped") notes.push(`${names[place]}: its process ended without reporting a result.`);
    if (entry?.message && entry.status !== "damaged" && entry.status !== "finished") notes.push(`${names[place]}: ${entry.message}`);
    for (const broken of one?.details?.broken ?? []) notes.push(`${names[place]}: ${broken}`);
    if (one?.images?.lost) notes.push(`${names[place]}: ${one.images.lost}`);
    const digest = one?.images?.images[state.image]?.digest;
    if (digest) digests.set(digest, [...(digests.get(digest) ?? []), names[place]]);
  });
  if (digests.size > 1) {
    notes.push(`These runs did not observe the same image ${state.image}: ${[...digests.values()].map((some) => some.join(" and ")).join("; ")}. The input is that of the first.`);
  }
  byId("notes").replaceChildren(...notes.map((text) => make("li", {}, text)));
}

function setImage(image) {
  const most = byId("image").options.length;
  if (!most || state.kind === "constant") return;
  state.image = (image + most) % most;
  choose();
}

/** After a choice. */
function choose() {
  refresh();
  keepLink();
}

// --- saving --------------------------------------------------------------------------------------------------------

async function saveFigure() {
  const button = byId("save");
  const line = byId("saved");
  const ids = state.runs.filter((id) => typeof mapOf(id) !== "string");
  if (!ids.length) {
    line.textContent = "There are no maps to draw.";
    return;
  }
  const one = byId("drawn").value === "step";
  const moving = ["gif", "apng", "webp", "mp4"].includes(byId("format").value);
  const wanted = {
    runs: ids.join(","), format: byId("format").value, kind: state.kind, image: state.kind === "constant" ? 0 : state.image,
    normalize: state.scope, colormap: state.palette, call: state.call,
    layers: state.kind === PREDICTION ? null : JSON.stringify(ids.map((id) => layerOf(id).name)),
    channel: kindOf(ids[0])?.channels ? state.channel : null,
    steps: one && !moving ? steps[state.at] : null,
  };
  button.disabled = true;
  line.textContent = "Drawing …";
  try {
    const response = await ask(`api/figure?${query(wanted)}`);
    const notes = JSON.parse(decodeURIComponent(response.headers.get("x-notes")));
    if (wanted.steps !== null && state.scope !== "frame" && !(state.kind in data.fixedRanges)) notes.push("the colours span the step that is drawn alone");
    const file = /filename="([\w.]+)"/.exec(response.headers.get("content-disposition"))[1];
    const address = URL.createObjectURL(await response.blob());
    make("a", { href: address, download: file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    line.textContent = [`Saved as ${file}.`, ...notes.map((note) => `Note: ${note}.`)].join(" ").replaceAll("..", ".");
  } catch (error) {
    if (!(error instanceof Refused || error instanceof TypeError)) throw error;
    line.textContent = error instanceof Refused ? error.message : "The server does not answer.";
  } finally {
    button.disabled = false;
  }
}

async function copyLink() {
  const address = new URL(linkTo(state.runs), location.href).href;
  history.replaceState(null, "", address);
  try {
    await navigator.clipboard.writeText(address);
    byId("saved").textContent = "The link is copied: it opens this view again.";
  } catch {
    byId("saved").textContent = address; // to be copied by hand
  }
}

// --- start -----------------------------------------------------------------------------------------------------------

let started = false;

function start() {
  started = true;
  followLink();
}

function makeControls() {
  options(byId("palette"), Object.keys(data.palettes).map((name) => [name, name]), state.palette);
  const onChange = (id, take) => byId(id).addEventListener("change", (event) => { take(event.target); choose(); });
  onChange("layer", ({ value }) => { state.layer = value; state.own = {}; });
  onChange("kind", ({ value }) => { state.kind = value; });
  onChange("call", ({ value }) => { state.call = Number(value); });
  byId("image").addEventListener("change", (event) => setImage(Number(event.target.value)));
  byId("channel").addEventListener("input", (event) => {
    const channel = Number(event.target.value);
    if (!Number.isInteger(channel) || channel < 0 || channel > Number(event.target.max) || event.target.value === "") return;
    state.channel = channel;
    choose();
  });
  byId("palette").addEventListener("change", (event) => { state.palette = event.target.value; showStep(); keepLink(); });
  byId("contour").addEventListener("change", (event) => { state.contour = event.target.checked; showContour(); keepLink(); });
  byId("log").addEventListener("change", (event) => { state.log = event.target.checked; showCurves(); keepLink(); });
  byId("follow").addEventListener("change", (event) => {
    state.follow = event.target.checked;
    if (state.follow) goTo(steps.length - 1);
    else keepLink();
  });
  for (const radio of document.querySelectorAll("input[name=scope]")) {
    radio.addEventListener("change", () => { state.scope = radio.value; showCaption(); showStep(); keepLink(); });
  }
  byId("slider").addEventListener("input", (event) => {
    setPlaying(false);
    goTo(Number(event.target.value));
  });
  byId("play").addEventListener("click", () => setPlaying(!state.playing));
  byId("save").addEventListener("click", saveFigure);
  byId("copy").addEventListener("click", copyLink);
  byId("format").addEventListener("change", ({ target }) => {
    const moving = ["gif", "apng", "webp", "mp4"].includes(target.value);
    if (moving) byId("drawn").value = "all";
    byId("drawn").disabled = moving;
  });
  document.addEventListener("keydown", (event) => { if (!byId("viewer").hidden && steps.length) onKey(event); });
}

window.addEventListener("hashchange", () => { if (started) followLink(); });
makeList();
makeControls();
poll();
