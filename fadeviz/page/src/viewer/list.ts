// The list of runs: sorted, filtered, searched; only lines that changed are drawn again.

import { button, byId, fill, input, make, select, setOptions, type Entry } from "../common/dom.js";
import { count, number } from "../common/numbers.js";
import { keepLink, linkTo } from "./links.js";
import { data, entries, FILTERS, isActive, state, statusClass, type ListEntry } from "./state.js";

interface Column {
  readonly key: string;
  readonly text: string;
  readonly shown: "" | "wide" | "mid"; // on which screens
  of(entry: ListEntry): string | number;
}

const COLUMNS: readonly Column[] = [
  { key: "place", text: "Run", shown: "", of: (one) => `${one.title || one.name}\u0000${one.place}` },
  { key: "network", text: "Network", shown: "wide", of: (one) => one.network },
  { key: "data", text: "Data", shown: "wide", of: (one) => one.data },
  { key: "seed", text: "Seed", shown: "wide", of: (one) => one.seed ?? Infinity },
  { key: "status", text: "Status", shown: "", of: (one) => one.status },
  { key: "step", text: "Progress", shown: "mid", of: (one) => one.step ?? -1 },
  { key: "metrics", text: "Last metrics", shown: "wide", of: metricRank },
  { key: "changed", text: "Changed", shown: "wide", of: (one) => one.changed ?? 0 },
];
export const SORTS = COLUMNS.map(({ key }) => key);
const MOST_ROWS = 1000;
let mostRows = MOST_ROWS;
const rows = new Map<string, { readonly element: HTMLTableRowElement; entry: ListEntry }>();
const collator = new Intl.Collator("en", { numeric: true });

function metricRank(entry: ListEntry): number {
  const name = Object.keys(data.metrics).find((one) => one in entry.metrics) ?? "loss";
  return entry.metrics[name] ?? -Infinity;
}

export function metricText(entry: ListEntry): string {
  const parts: string[] = [];
  // A value stays on the line of its name.
  if (entry.metrics.loss !== undefined) parts.push(`loss\u00a0${number(entry.metrics.loss)}`);
  for (const [name, { column: text, unit }] of Object.entries(data.metrics)) {
    const value = entry.metrics[name];
    if (text && value !== undefined) parts.push(`${text}\u00a0${unit === "share" && value !== null ? value.toFixed(3) : number(value)}`);
  }
  return parts.join(", ");
}

export function progressText(entry: ListEntry): string {
  if (entry.step === null) return entry.status === "damaged" ? "" : "no snapshot yet";
  return entry.last_step === null ? `step ${count(entry.step)}` : `${count(entry.step)} of ${count(entry.last_step)}`;
}

/** How long ago, in one unit. */
function ago(seconds: number): string {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  const units = [[86400, "d"], [3600, "h"], [60, "min"]] as const;
  const [length, unit] = units.find(([one]) => past >= one) ?? [1, "s"];
  return `${Math.floor(past / length)} ${unit} ago`;
}

function found(entry: ListEntry): boolean {
  if (FILTERS.some((key) => state.filters[key] && entry[key] !== state.filters[key])) return false;
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const text = [entry.title, entry.name, entry.network, entry.data, entry.place, entry.status, `seed ${entry.seed ?? "none"}`]
    .join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

function sorted(list: readonly ListEntry[]): ListEntry[] {
  const column = COLUMNS.find((one) => one.key === state.sort);
  const sign = state.down ? -1 : 1;
  const order = (a: string | number, b: string | number) =>
    (typeof a === "string" ? collator.compare(a, String(b)) : a === b ? 0 : a < Number(b) ? -1 : 1);
  return list.map((entry) => [column?.of(entry) ?? "", entry] as const)
    .sort(([a, one], [b, other]) => sign * order(a, b) || collator.compare(one.place, other.place))
    .map(([, entry]) => entry);
}

export function showList(): void {
  for (const id of state.picked) if (!entries.has(id)) state.picked.delete(id);
  showFilters();
  const list = sorted([...entries.values()].filter(found));
  const body = byId("body");
  const shown = list.slice(0, mostRows).map(rowOf);
  for (const [id] of rows) if (!entries.has(id)) rows.delete(id);
  // Rows that stay where they are keep the focus, and are not laid out again.
  const stay = new Set<Element>(shown);
  for (const row of [...body.children]) if (!stay.has(row)) row.remove();
  shown.forEach((row, place) => { if (body.children[place] !== row) body.insertBefore(row, body.children[place] ?? null); });
  byId("more").hidden = list.length <= mostRows;
  byId("more").textContent = `Show all ${count(list.length)}`;
  byId("runs").hidden = !list.length;
  byId("none").hidden = Boolean(list.length);
  byId("none").replaceChildren(...(entries.size ? ["No run has all of this. Change the search or the filters."] : nothingYet()));
  for (const part of ["filters", "chosen"]) byId(part).hidden = !entries.size;
  byId("counted").textContent = list.length === entries.size
    ? `${count(entries.size)} run${entries.size === 1 ? "" : "s"}` : `${count(list.length)} of ${count(entries.size)} runs`;
  showPicked();
}

function nothingYet(): (string | HTMLElement)[] {
  const [folder = "FOLDER", ...more] = data.folders;
  const where = more.length ? "these folders" : "this folder";
  return [`There are no runs in ${where} yet. A run that is recorded there appears here by itself:`,
    make("pre", {}, make("code", {}, `fadeviz record --out ${shellQuoted(folder)}/NAME`))];
}

const shellQuoted = (path: string): string => (/^[\w./~+:@%-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`);

function rowOf(entry: ListEntry): HTMLTableRowElement {
  const known = rows.get(entry.id);
  if (known && known.entry === entry) return known.element;
  const made = makeRow(entry);
  if (known) {
    // The same element, so that what has the focus keeps it.
    const active = document.activeElement;
    const focused = active instanceof HTMLElement && known.element.contains(active) ? active.dataset.part : undefined;
    known.element.replaceChildren(...made);
    known.entry = entry;
    if (focused) known.element.querySelector<HTMLElement>(`[data-part=${focused}]`)?.focus();
    return known.element;
  }
  const element = make("tr", {}, ...made);
  rows.set(entry.id, { element, entry });
  return element;
}

function makeRow(entry: ListEntry): HTMLElement[] {
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
  const share = entry.last_step !== null && entry.last_step > 0 && entry.step !== null ? Math.min(1, entry.step / entry.last_step) : null;
  const bar = make("span");
  if (share !== null) bar.style.width = `${100 * share}%`;
  const changed = make("time", {}, entry.changed ? ago(entry.changed) : "");
  if (entry.changed) {
    const date = new Date(entry.changed * 1000);
    fill(changed, { datetime: date.toISOString(), title: date.toLocaleString(), "data-changed": entry.changed });
  }
  return [
    make("td", { class: "pick" }, make("label", {}, box)),
    make("th", { scope: "row" }, link, make("span", { class: "where" }, entry.place), make("span", { class: "where narrow" }, brief), ...why),
    make("td", { class: "wide" }, entry.network),
    make("td", { class: "wide" }, entry.data),
    make("td", { class: "wide number" }, entry.seed === null ? "" : String(entry.seed)),
    make("td", {}, make("span", { class: statusClass(entry.status) }, entry.status), make("span", { class: "where small" }, progressText(entry))),
    make("td", { class: "mid number" }, progressText(entry), ...(share === null || !isActive(entry) ? [] : [make("span", { class: "progress", "aria-hidden": "true" }, bar)])),
    make("td", { class: "wide" }, metricText(entry)),
    make("td", { class: "wide number" }, changed),
  ];
}

function showPicked(): void {
  const picked = state.picked.size;
  button("compare").disabled = picked === 0;
  byId("compare").textContent = picked === 0 ? "Show selected" : picked === 1 ? "Show 1 run" : `Compare ${picked} runs`;
  byId("clear").hidden = picked === 0;
  for (const [id, { element }] of rows) {
    element.classList.toggle("marked-row", state.picked.has(id));
    const box = element.querySelector("input");
    if (box) box.checked = state.picked.has(id);
  }
}

function showFilters(): void {
  for (const key of FILTERS) {
    const chosen = state.filters[key];
    const values = [...new Set([...entries.values()].map((entry) => entry[key]).filter(Boolean))].sort(collator.compare);
    if (chosen && !values.includes(chosen)) values.push(chosen);
    setOptions(select(`filter-${key}`), [["", "all"], ...values.map((value): Entry => [value, value])], chosen);
  }
}

export function showHead(): void {
  byId("head").replaceChildren(
    make("td", { class: "pick" }, make("span", { class: "unseen" }, "Select")),
    ...COLUMNS.map((column) => {
      const sort = make("button", { type: "button" }, column.text);
      sort.addEventListener("click", () => { sortBy(column.key, state.sort === column.key && !state.down); });
      const direction = state.sort !== column.key ? "none" : state.down ? "descending" : "ascending";
      return make("th", { scope: "col", "aria-sort": direction, class: column.shown }, sort);
    }));
  setOptions(select("sort"), COLUMNS.map(({ key, text }): Entry => [key, text]), state.sort);
}

function sortBy(key: string, down: boolean): void {
  const place = [...byId("head").querySelectorAll("button")].findIndex((one) => one === document.activeElement);
  state.sort = key;
  state.down = down;
  showHead();
  if (place >= 0) byId("head").querySelectorAll("button")[place]?.focus();
  showList();
  keepLink();
}

export function startList(): void {
  byId("folders").textContent = data.folders.join(", ");
  showHead();
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", () => { state.search = input("search").value; showList(); keepLink(); });
  for (const key of FILTERS) {
    const list = select(`filter-${key}`);
    list.addEventListener("change", () => { state.filters[key] = list.value; showList(); keepLink(); });
  }
  select("sort").addEventListener("change", () => { sortBy(select("sort").value, ["changed", "step", "metrics"].includes(select("sort").value)); });
  byId("compare").addEventListener("click", () => { location.hash = linkTo([...state.picked].sort(byPlace)); });
  byId("clear").addEventListener("click", () => { state.picked.clear(); showPicked(); });
  byId("more").addEventListener("click", () => { mostRows = Infinity; showList(); });
  setInterval(() => {
    for (const time of document.querySelectorAll<HTMLElement>("time[data-changed]")) time.textContent = ago(Number(time.dataset.changed));
  }, 10000);
}

const byPlace = (a: string, b: string): number => collator.compare(entries.get(a)?.place ?? "", entries.get(b)?.place ?? "");
