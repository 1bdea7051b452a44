// The list of runs: sorted, filtered, searched; only lines that changed are drawn again.

const COLUMNS = [
  { key: "place", text: "Run", of: (one) => `${one.title || one.name}\u0000${one.place}` },
  { key: "network", text: "Network", wide: true },
  { key: "data", text: "Data", wide: true },
  { key: "seed", text: "Seed", wide: true, of: (one) => one.seed ?? Infinity },
  { key: "status", text: "Status" },
  { key: "step", text: "Progress", mid: true, of: (one) => one.step ?? -1 },
  { key: "metrics", text: "Last metrics", wide: true, of: metricRank },
  { key: "changed", text: "Changed", wide: true },
];
const MOST_ROWS = 1000;
let mostRows = MOST_ROWS;
const rows = new Map(); // id -> { element, entry }
const collator = new Intl.Collator("en", { numeric: true });

function metricRank(entry) {
  const name = Object.keys(data.metrics).find((one) => one in entry.metrics) ?? "loss";
  return entry.metrics[name] ?? -Infinity;
}

function metricText(entry) {
  const parts = [];
  if (entry.metrics.loss !== undefined) parts.push(`loss ${number(entry.metrics.loss)}`);
  for (const [name, { title: text, unit }] of Object.entries(data.metrics)) {
    const value = entry.metrics[name];
    if (text && value !== undefined) parts.push(`${text} ${unit === "share" && value !== null ? value.toFixed(3) : number(value)}`);
  }
  return parts.join(", ");
}

function progressText(entry) {
  if (entry.step === null) return entry.status === "damaged" ? "" : "no snapshot yet";
  return entry.last_step === null ? `step ${count(entry.step)}` : `${count(entry.step)} of ${count(entry.last_step)}`;
}

/** How long ago, in one unit. */
function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  const units = [[86400, "d"], [3600, "h"], [60, "min"]];
  const [length, unit] = units.find(([one]) => past >= one) ?? [1, "s"];
  return `${Math.floor(past / length)} ${unit} ago`;
}

function found(entry) {
  for (const [key, value] of Object.entries(state.filters)) if (value && entry[key] !== value) return false;
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const text = [entry.title, entry.name, entry.network, entry.data, entry.place, entry.status, `seed ${entry.seed}`]
    .join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

function sorted(list) {
  const column = COLUMNS.find((one) => one.key === state.sort) ?? COLUMNS[0];
  const value = column.of ?? ((one) => one[column.key]);
  const sign = state.down ? -1 : 1;
  const order = (a, b) => (typeof a === "string" ? collator.compare(a, b) : a === b ? 0 : a < b ? -1 : 1);
  return list.map((entry) => [value(entry), entry])
    .sort(([a, one], [b, other]) => sign * order(a, b) || collator.compare(one.place, other.place))
    .map(([, entry]) => entry);
}

function showList() {
  for (const id of state.picked) if (!entries.has(id)) state.picked.delete(id);
  showFilters();
  const list = sorted([...entries.values()].filter(found));
  const body = byId("body");
  const shown = list.slice(0, mostRows).map(rowOf);
  for (const [id] of rows) if (!entries.has(id)) rows.delete(id);
  // Rows that stay where they are keep the focus, and are not laid out again.
  const stay = new Set(shown);
  for (const row of [...body.children]) if (!stay.has(row)) row.remove();
  shown.forEach((row, place) => { if (body.children[place] !== row) body.insertBefore(row, body.children[place] ?? null); });
  byId("more").hidden = list.length <= mostRows;
  byId("more").textContent = `Show all ${count(list.length)}`;
  byId("runs").hidden = !list.length;
  byId("none").hidden = Boolean(list.length);
  byId("none").textContent = entries.size
    ? "No run has all of this. Change the search or the filters."
    : "There are no runs in these folders yet. Record one: fadeviz record --out FOLDER/NAME; it appears here by itself.";
  byId("counted").textContent = list.length === entries.size
    ? `${count(entries.size)} run${entries.size === 1 ? "" : "s"}` : `${count(list.length)} of ${count(entries.size)} runs`;
  showPicked();
}

function rowOf(entry) {
  const known = rows.get(entry.id);
  if (known && known.entry === entry) return known.element;
  const made = makeRow(entry);
  if (known) {
    // The same element, so that what has the focus keeps it.
    const focused = known.element.contains(document.activeElement) ? document.activeElement.dataset.part : null;
    known.element.replaceChildren(...made);
    known.entry = entry;
    if (focused) known.element.querySelector(`[data-part=${focused}]`).focus();
    return known.element;
  }
  const element = make("tr", {}, ...made);
  rows.set(entry.id, { element, entry });
  return element;
}

function makeRow(entry) {
  const name = entry.title || entry.name || entry.place;
  const box = make("input", { type: "checkbox", "aria-label": `Select ${name}, ${entry.place}`, "data-part": "pick" });
  box.checked = state.picked.has(entry.id);
  box.addEventListener("change", () => {
    if (box.checked) state.picked.add(entry.id);
    else state.picked.delete(entry.id);
    showPicked();
  });
  const brief = [entry.network, entry.data, entry.seed === null ? "" : `seed ${entry.seed}`, metricText(entry)].filter(Boolean).join(" · ");
  const link = make("a", { href: linkTo([entry.id]), "data-part": "open" }, name);
  const why = entry.message && entry.status !== "finished" ? [make("span", { class: "why" }, entry.message)] : [];
  const share = entry.last_step > 0 && entry.step !== null ? Math.min(1, entry.step / entry.last_step) : null;
  const bar = make("span");
  if (share !== null) bar.style.width = `${100 * share}%`;
  const changed = make("time", {}, entry.changed ? ago(entry.changed) : "");
  if (entry.changed) {
    const date = new Date(entry.changed * 1000);
    fill(changed, { datetime: date.toISOString(), title: date.toLocaleString(), "data-changed": entry.changed }, []);
  }
  return [
    make("td", { class: "pick" }, make("label", {}, box)),
    make("th", { scope: "row" }, link, make("span", { class: "where" }, entry.place), make("span", { class: "where narrow" }, brief), ...why),
    make("td", { class: "wide" }, entry.network),
    make("td", { class: "wide" }, entry.data),
    make("td", { class: "wide number" }, entry.seed === null ? "" : String(entry.seed)),
    make("td", {}, make("span", { class: `state ${ACTIVE.concat("finished", "failed", "stopped", "damaged", "interrupted").includes(entry.status) ? entry.status : ""}` }, entry.status), make("span", { class: "where small" }, progressText(entry))),
    make("td", { class: "mid number" }, progressText(entry), ...(share === null || !isActive(entry) ? [] : [make("span", { class: "progress", "aria-hidden": "true" }, bar)])),
    make("td", { class: "wide" }, metricText(entry)),
    make("td", { class: "wide number" }, changed),
  ];
}

function showPicked() {
  const picked = state.picked.size;
  byId("compare").disabled = picked === 0;
  byId("compare").textContent = picked === 0 ? "Show selected" : picked === 1 ? "Show 1 run" : `Compare ${picked} runs`;
  byId("clear").hidden = picked === 0;
  for (const [id, { element }] of rows) {
    element.classList.toggle("marked-row", state.picked.has(id));
    element.querySelector("input").checked = state.picked.has(id);
  }
}

function showFilters() {
  for (const [key, chosen] of Object.entries(state.filters)) {
    const select = byId(`filter-${key}`);
    const values = [...new Set([...entries.values()].map((entry) => entry[key]).filter(Boolean))].sort(collator.compare);
    if (chosen && !values.includes(chosen)) values.push(chosen);
    const wanted = JSON.stringify([chosen, values]);
    if (select.dataset.made === wanted) continue; // an open list stays open
    select.dataset.made = wanted;
    options(select, [["", "all"], ...values.map((value) => [value, value])], chosen);
  }
}

function showHead() {
  byId("head").replaceChildren(
    make("td", { class: "pick" }, make("span", { class: "unseen" }, "Select")),
    ...COLUMNS.map((column) => {
      const button = make("button", { type: "button" }, column.text);
      button.addEventListener("click", () => sortBy(column.key, state.sort === column.key && !state.down));
      const direction = state.sort !== column.key ? "none" : state.down ? "descending" : "ascending";
      return make("th", { scope: "col", "aria-sort": direction, class: column.wide ? "wide" : column.mid ? "mid" : "" }, button);
    }));
  options(byId("sort"), COLUMNS.map(({ key, text }) => [key, text]), state.sort);
}

function sortBy(key, down) {
  const place = [...byId("head").querySelectorAll("button")].indexOf(document.activeElement);
  state.sort = key;
  state.down = down;
  showHead();
  if (place >= 0) byId("head").querySelectorAll("button")[place].focus();
  showList();
  keepLink();
}

function makeList() {
  byId("folders").textContent = data.folders.join(", ");
  showHead();
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", (event) => { state.search = event.target.value; showList(); keepLink(); });
  for (const key of Object.keys(state.filters)) {
    byId(`filter-${key}`).addEventListener("change", (event) => { state.filters[key] = event.target.value; showList(); keepLink(); });
  }
  byId("sort").addEventListener("change", (event) => sortBy(event.target.value, ["changed", "step", "metrics"].includes(event.target.value)));
  byId("compare").addEventListener("click", () => { location.hash = linkTo([...state.picked].sort(byPlace)); });
  byId("clear").addEventListener("click", () => { state.picked.clear(); showPicked(); });
  byId("more").addEventListener("click", () => { mostRows = Infinity; showList(); });
  setInterval(() => {
    for (const time of document.querySelectorAll("time[data-changed]")) time.textContent = ago(Number(time.dataset.changed));
  }, 10000);
}

const byPlace = (a, b) => collator.compare(entries.get(a)?.place ?? "", entries.get(b)?.place ?? "");
