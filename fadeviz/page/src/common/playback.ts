// The steps: playback, the labels of the slider, and the keyboard.

import { byId, button, input, make, select } from "./dom.js";
import { count } from "./numbers.js";
import { stepNow, view } from "./view.js";

/** What a page does when the step or the image is changed. */
export interface Moves {
  /** Shows a step, by its index; resolves when its maps are painted. */
  goTo(at: number): Promise<void>;
  setImage(image: number): void;
}

/** Functions that update cursors and legends of charts when the step changes. */
export const followers: ((step: number) => void)[] = [];

export const PLAY = "M5 3l12 7-12 7z";
export const PAUSE = "M5 3h4v14H5zM11 3h4v14h-4z";

let moves: Moves;
let timer = 0;

/** Makes the controls of the steps work. */
export function startPlayback(given: Moves): void {
  moves = given;
  input("slider").addEventListener("input", () => {
    setPlaying(false);
    void moves.goTo(Number(input("slider").value));
  });
  byId("play").addEventListener("click", () => { setPlaying(!view.playing); });
  document.addEventListener("keydown", onKey);
}

/** Stops the playback and shows a step, by its index. */
export function goTo(at: number): void {
  setPlaying(false);
  void moves.goTo(at);
}

export function setPlaying(playing: boolean): void {
  view.playing = playing;
  clearTimeout(timer);
  const play = button("play");
  play.setAttribute("aria-label", playing ? "Pause" : "Play");
  play.setAttribute("aria-pressed", String(playing));
  byId<SVGPathElement>("play-shape").setAttribute("d", playing ? PAUSE : PLAY);
  // Screen readers need not read out every step of an animation.
  byId("step").setAttribute("aria-live", playing ? "off" : "polite");
  if (!playing) return;
  if (view.at === view.steps.length - 1) void moves.goTo(0);
  wait();
}

function wait(): void {
  const mine = window.setTimeout(() => { void next(mine); }, Number(select("speed").value));
  timer = mine;
}

async function next(mine: number): Promise<void> {
  await moves.goTo(view.at + 1); // when the maps are there
  if (!view.playing || mine !== timer) return; // paused in the meantime
  if (view.at === view.steps.length - 1) setPlaying(false);
  else wait();
}

/** The slider counts snapshots, not steps: some of them are labelled with their steps. */
export function labelTrack(): void {
  const { steps } = view;
  const last = Math.max(1, steps.length - 1);
  const places = Math.min(6, steps.length);
  input("slider").max = String(Math.max(0, steps.length - 1));
  byId("track-steps").replaceChildren(...Array.from({ length: places }, (_, i) => {
    const at = Math.round((i * last) / Math.max(1, places - 1));
    const label = make("span", {}, count(steps[Math.min(at, steps.length - 1)] ?? 0));
    label.style.left = `${(100 * at) / last}%`;
    return label;
  }));
}

/** The slider and what is written beside it. */
export function showSlider(): void {
  const step = stepNow();
  const slider = input("slider");
  slider.value = String(view.at);
  slider.disabled = step === null;
  slider.setAttribute("aria-valuetext", step === null ? "no snapshot" : `step ${step}`);
  byId("step").textContent = step === null ? "" : `step ${count(step)}`;
}

export function follow(): void {
  const step = stepNow();
  if (step !== null) for (const follower of followers) follower(step);
}

function onKey(event: KeyboardEvent): void {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || !view.steps.length) return;
  const target = event.target as HTMLElement;
  const section = byId("viewer");
  const box = section.getBoundingClientRect();
  // Elsewhere on the page these keys scroll, as usual.
  if (section.hidden || box.bottom < 0 || box.top > innerHeight) return;
  if (target !== document.body && !section.contains(target)) return;
  const slider = target === byId("slider");
  const takesArrows = ["SELECT", "INPUT"].includes(target.tagName) && !slider;
  const takesSpace = ["SELECT", "BUTTON", "SUMMARY", "A"].includes(target.tagName) || (target.tagName === "INPUT" && !slider);
  const move = new Map([["ArrowLeft", view.at - 1], ["ArrowRight", view.at + 1], ["Home", 0], ["End", view.steps.length - 1]]).get(event.key);
  if (event.key === "[") moves.setImage(view.image - 1);
  else if (event.key === "]") moves.setImage(view.image + 1);
  else if (event.key === " " && !takesSpace) setPlaying(!view.playing);
  else if (move !== undefined && !takesArrows) goTo(move);
  else return;
  event.preventDefault();
}
