// The view of a run in a notebook: its maps as pictures, with a slider over the steps. The same output may be on a page
// twice, as in a second view of a notebook, so that nothing is found by an id.

import { draw, make } from "./common/dom.js";
import { PAUSE, PLAY } from "./common/playback.js";
import { clamp } from "./common/numbers.js";

interface Kind {
  readonly name: string;
  readonly frames: readonly string[]; // PNG in base64, one a step
  readonly ranges: readonly string[];
}

interface Data {
  readonly steps: readonly number[];
  readonly metrics: readonly string[];
  readonly kinds: readonly Kind[];
}

const PERIOD = 400; // ms
const [SMALLEST, LARGEST] = [150, 200]; // width of a map in CSS pixels

function tile(image: HTMLImageElement, label: string) {
  image.style.cssText = "display: block; image-rendering: pixelated; width: 100%; max-width: none; height: auto";
  const caption = make("figcaption", {}, label);
  caption.style.cssText = "font-size: smaller; white-space: pre-line";
  const figure = make("figure", {}, image, caption);
  figure.style.margin = "0";
  return { figure, image, caption };
}

function build(box: Element, data: Data): void {
  const view = box.querySelector<HTMLElement>(".fadeviz-view");
  const still = box.querySelector<HTMLElement>(".fadeviz-still");
  if (!view || !still || view.firstChild) return;
  const last = data.steps.length - 1;
  const shape = draw("path", { d: PLAY, fill: "currentColor" });
  const play = make("button", { type: "button", "aria-label": "Play" }, draw("svg", { viewBox: "0 0 20 20", width: 14, height: 14, "aria-hidden": "true" }, shape));
  const slider = make("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "step" });
  slider.value = String(last);
  play.style.minHeight = "28px";
  slider.style.cssText = "flex: 0 1 30em; margin: 0; height: 28px";
  const status = make("span");
  const line = make("div", {}, play, slider, status);
  line.style.cssText = "display: flex; flex-wrap: wrap; gap: 1em; align-items: center; margin: 0.5em 0";
  const tiles = data.kinds.map((kind) => tile(new Image(), kind.name));
  const observed = [...still.querySelectorAll<HTMLImageElement>(".fadeviz-observed")].map((image) => tile(image.cloneNode() as HTMLImageElement, image.alt));
  const row = make("div", {}, ...[...observed, ...tiles].map(({ figure }) => figure));
  const most = row.childElementCount;
  row.style.cssText = `display: grid; grid-template-columns: repeat(auto-fit, minmax(${SMALLEST}px, 1fr)); gap: 12px; max-width: ${most * (LARGEST + 12) - 12}px`;
  view.append(line, row);

  const show = () => {
    const at = Number(slider.value);
    const [step, metrics] = [data.steps[at] ?? 0, data.metrics[at] ?? ""];
    status.textContent = `step ${step}${metrics ? `: ${metrics}` : ""}`;
    slider.setAttribute("aria-valuetext", status.textContent);
    data.kinds.forEach((kind, index) => {
      const one = tiles[index];
      if (!one) return;
      one.image.src = `data:image/png;base64,${kind.frames[at] ?? ""}`;
      one.image.alt = `${kind.name}, step ${step}`;
      one.caption.textContent = `${kind.name}\n${kind.ranges[at] ?? ""}`; // the range has a line of its own, so that no step moves what is below
    });
  };
  let timer = 0;
  const pause = () => {
    clearInterval(timer);
    timer = 0;
    shape.setAttribute("d", PLAY);
    play.setAttribute("aria-label", "Play");
  };
  const goTo = (at: number) => {
    slider.value = String(clamp(at, 0, last));
    show();
  };
  play.addEventListener("click", () => {
    if (timer) {
      pause();
      return;
    }
    if (Number(slider.value) === last) goTo(0);
    shape.setAttribute("d", PAUSE);
    play.setAttribute("aria-label", "Pause");
    timer = window.setInterval(() => {
      // The cell may have been cleared in the meantime.
      if (!box.isConnected || Number(slider.value) === last) pause();
      else goTo(Number(slider.value) + 1);
    }, PERIOD);
  });
  slider.addEventListener("input", () => { pause(); show(); });
  show();
  still.style.display = "none";
}

/** Builds the view in every element of an id. */
export function show(name: string, data: Data): void {
  for (const box of document.querySelectorAll(`#${name}`)) build(box, data);
}
