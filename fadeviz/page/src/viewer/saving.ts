// Saving the view: as a figure that the library draws, and as a link that opens it again.

import { button, byId, select } from "../common/dom.js";
import { download } from "../common/download.js";
import { stepNow, view } from "../common/view.js";
import { linkTo, writeLink } from "./links.js";
import { kindOf, layerOf, mapOf } from "./runs.js";
import { askRaw, isAway, query, Refused } from "./server.js";
import { data, PREDICTION, state } from "./state.js";

const MOVING = ["gif", "apng", "webp", "mp4"];
const isMoving = (): boolean => MOVING.includes(select("format").value);

/** The runs that the figure shows: of an overlay or a difference, the two that are compared. */
function drawnRuns(): string[] {
  const there = state.runs.filter((id) => typeof mapOf(id) !== "string");
  return byId("viewer").dataset.arrangement === "side" ? there : view.pair.filter((id) => there.includes(id));
}

async function saveFigure(): Promise<void> {
  const line = byId("saved");
  const isDifference = byId("viewer").dataset.arrangement === "difference";
  const ids = drawnRuns();
  if (!ids.length) {
    line.textContent = "There are no maps to draw.";
    return;
  }
  const oneStep = select("drawn").value === "step" && !isMoving();
  const first = ids[0] ?? "";
  const wanted = {
    runs: ids.join(","), format: select("format").value, kind: view.kind, image: view.kind === "constant" ? 0 : view.image,
    normalize: view.scope, colormap: isDifference ? "signed" : view.palette, call: state.call,
    layers: view.kind === PREDICTION ? null : JSON.stringify(ids.map((id) => layerOf(id)?.name ?? "")),
    channel: kindOf(first)?.channels ? state.channel : null,
    steps: oneStep ? stepNow() : null,
    difference: isDifference ? 1 : null,
  };
  button("save").disabled = true;
  line.textContent = "Drawing …";
  try {
    const response = await askRaw(`api/figure?${query(wanted)}`);
    const notes = JSON.parse(decodeURIComponent(response.headers.get("x-notes") ?? "[]")) as string[];
    if (oneStep && view.scope !== "frame" && !(view.kind in data.fixedRanges)) notes.push("the colours span the step that is drawn alone");
    if (byId("viewer").dataset.arrangement === "overlay") notes.push("the two maps are drawn side by side");
    const file = /filename="([\w.]+)"/.exec(response.headers.get("content-disposition") ?? "")?.[1] ?? `fadeviz.${wanted.format}`;
    download(await response.blob(), file);
    line.textContent = [`Saved as ${file}.`, ...notes.map((note) => `Note: ${note}.`)].join(" ").replaceAll("..", ".");
  } catch (error) {
    if (!isAway(error)) throw error;
    line.textContent = error instanceof Refused ? error.message : "The server does not answer.";
  } finally {
    button("save").disabled = false;
  }
}

async function copyLink(): Promise<void> {
  const address = new URL(linkTo(state.runs), location.href).href;
  writeLink(address);
  try {
    await navigator.clipboard.writeText(address);
    byId("saved").textContent = "The link is copied: it opens this view again.";
  } catch {
    byId("saved").textContent = address; // to be copied by hand
  }
}

export function startSaving(): void {
  byId("save").addEventListener("click", () => { void saveFigure(); });
  byId("copy").addEventListener("click", () => { void copyLink(); });
  select("format").addEventListener("change", () => {
    if (isMoving()) select("drawn").value = "all";
    select("drawn").disabled = isMoving();
  });
}
