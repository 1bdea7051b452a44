// Elements of the document. Names come from files of others: they reach it as text only, never as markup.

const SVG = "http://www.w3.org/2000/svg";

type Attributes = Record<string, string | number>;
type Child = Node | string;

/** The element with an id, which the page's markup has. */
export function byId<T extends Element = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`no element #${id}`);
  return element as Element as T;
}

export const input = (id: string) => byId<HTMLInputElement>(id);
export const select = (id: string) => byId<HTMLSelectElement>(id);
export const button = (id: string) => byId<HTMLButtonElement>(id);

export function fill<T extends Element>(element: T, attributes: Attributes, ...children: Child[]): T {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

export function make<K extends keyof HTMLElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]) {
  return fill(document.createElement(tag), attributes, ...children);
}

export function draw<K extends keyof SVGElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]) {
  return fill(document.createElementNS(SVG, tag), attributes, ...children);
}

/** The page's data, which stands in it as JSON. */
export function pageData<T>(): T {
  return JSON.parse(byId("data").textContent) as T;
}

export type Entry = readonly [value: string, text: string];

/** Fills a list to choose from; one that has these entries already is left alone, so that it stays open. */
export function setOptions(list: HTMLSelectElement, entries: readonly Entry[], chosen: string | number): void {
  const wanted = JSON.stringify([entries, String(chosen)]);
  if (list.dataset.made === wanted && list.value === String(chosen)) return;
  list.dataset.made = wanted;
  list.replaceChildren(...entries.map(([value, text]) => {
    const option = make("option", { value }, text);
    option.selected = value === String(chosen);
    return option;
  }));
}

function radios(name: string): HTMLInputElement[] {
  return [...document.querySelectorAll<HTMLInputElement>(`input[name="${name}"]`)];
}

export function setRadio(name: string, value: string): void {
  for (const radio of radios(name)) radio.checked = radio.value === value;
}

export function onRadio(name: string, take: (value: string) => void): void {
  for (const radio of radios(name)) radio.addEventListener("change", () => { take(radio.value); });
}

/** The two-dimensional context of a canvas, which every browser has. */
export function context(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const found = canvas.getContext("2d");
  if (found === null) throw new Error("this browser has no canvas");
  return found;
}
