// The part of the address after #: what is shown, so that a link or a bookmark opens it again.

/** The address of some runs, with what else is chosen. */
function linkTo(ids) {
  const values = new URLSearchParams();
  const put = (name, value, usual) => { if (value !== usual && value !== null && value !== undefined) values.set(name, value); };
  if (ids.length) {
    put("runs", ids.join(","));
    put("layer", state.layer, "");
    put("kind", state.kind, "");
    put("call", state.call, 0);
    put("image", state.image, 0);
    put("channel", state.channel, 0);
    if (steps.length && !(state.follow && state.at === steps.length - 1)) put("step", steps[state.at]);
    put("colours", state.scope, "frame");
    put("map", state.palette, "gray");
    put("contour", state.contour ? 1 : 0, 0);
    put("log", state.log ? 1 : 0, 0);
    for (const id of ids) if (state.own[id]) values.set(`layer.${id}`, state.own[id]);
  }
  put("search", state.search, "");
  for (const [key, value] of Object.entries(state.filters)) put(key, value, "");
  put("sort", `${state.down ? "-" : ""}${state.sort}`, "place");
  return `#${values}`;
}

let linkTimer = 0;

/** Keeps the address up to date; not at every frame, as browsers limit how often. */
function keepLink() {
  clearTimeout(linkTimer);
  linkTimer = setTimeout(() => {
    const link = linkTo(state.runs);
    if (link !== location.hash && !(link === "#" && !location.hash)) history.replaceState(null, "", link);
    byId("back").href = linkTo([]);
  }, 200);
}

/** Takes over what the address says. Names in it are compared with those of the runs, and shown as text alone. */
function readLink() {
  const values = new URLSearchParams(location.hash.slice(1));
  const whole = (name) => (/^\d{1,12}$/.test(values.get(name) ?? "") ? Number(values.get(name)) : 0);
  const ids = [...new Set((values.get("runs") ?? "").split(",").filter((id) => /^[0-9a-f]{12}$/.test(id)))];
  const sort = values.get("sort") ?? "place";
  state.search = values.get("search") ?? "";
  for (const key of Object.keys(state.filters)) state.filters[key] = values.get(key) ?? "";
  state.down = sort.startsWith("-");
  state.sort = COLUMNS.some(({ key }) => key === sort.replace("-", "")) ? sort.replace("-", "") : "place";
  state.runs = ids;
  if (!ids.length) return;
  state.layer = values.get("layer") ?? "";
  state.kind = values.get("kind") ?? "";
  state.call = whole("call");
  state.image = whole("image");
  state.channel = whole("channel");
  state.scope = ["run", "shared"].includes(values.get("colours")) ? values.get("colours") : "frame";
  state.palette = values.get("map") in palettes ? values.get("map") : "gray";
  state.contour = values.get("contour") === "1";
  state.log = values.get("log") === "1";
  state.follow = !values.has("step");
  state.wanted = values.has("step") ? whole("step") : null;
  state.own = {};
  for (const id of ids) if (values.has(`layer.${id}`)) state.own[id] = values.get(`layer.${id}`);
}

/** Shows what the address says: the list, or runs. */
async function followLink() {
  readLink();
  setPlaying(false);
  byId("search").value = state.search;
  showHead();
  showList();
  const open = state.runs.length > 0;
  byId("list").hidden = open;
  byId("viewer").hidden = !open;
  byId("back").href = linkTo([]);
  tiles = [];
  made = "";
  steps = [];
  state.at = 0;
  byId("tiles").replaceChildren();
  byId("logged").hidden = true;
  showShown();
  if (!open) return;
  await Promise.all(state.runs.filter((id) => entries.has(id)).map(load));
  steps = findSteps();
  state.at = state.wanted === null ? steps.length - 1 : nearest(state.wanted);
  byId("follow").checked = state.follow;
  byId("contour").checked = state.contour;
  byId("log").checked = state.log;
  byId("palette").value = state.palette;
  for (const radio of document.querySelectorAll("input[name=scope]")) radio.checked = radio.value === state.scope;
  refresh();
  keepLink();
}
