// The report: a page that draws itself from the JSON and the packed maps in it.

import { byId, make, onRadio, setRadio } from "./common/dom.js";
import { curvesCsv, downloadText, startDownloads } from "./common/download.js";
import { tableCsv } from "./common/csv.js";
import { paint, startMaps } from "./common/maps.js";
import { clamp } from "./common/numbers.js";
import { setPlaying, startPlayback } from "./common/playback.js";
import { view } from "./common/view.js";
import { data, readData } from "./report/data.js";
import { showCharts } from "./report/groups.js";
import { narrow } from "./report/kymographs.js";
import { showPredictionStep, startPredictions } from "./report/predictions.js";
import { setImage, showSelection, source, startControls } from "./report/selection.js";

async function goTo(at: number): Promise<void> {
  view.at = clamp(at, 0, data.steps.length - 1);
  showPredictionStep();
  await paint();
}

/** A button below each table that saves it. */
function saveTables(): void {
  for (const table of document.querySelectorAll<HTMLTableElement>("table[data-file]")) {
    const save = make("button", { type: "button", class: "plain screen" }, "Table (CSV)");
    save.addEventListener("click", () => { downloadText(tableCsv(table), `fadeviz_${table.dataset.file ?? "table"}.csv`); });
    table.parentElement?.after(save);
  }
}

readData();
startMaps(source);
startPlayback({ goTo, setImage });
startControls();
startPredictions();
startDownloads((value) => Number(value.toPrecision(5))); // of 256 levels no more is known
setRadio("axis", view.log ? "log" : "linear");
onRadio("axis", (value) => {
  view.log = value === "log";
  showCharts();
});
narrow.addEventListener("change", showCharts);
byId("curves-csv").addEventListener("click", () => {
  downloadText(curvesCsv(data.groups.flatMap((group) => group.panels)), "fadeviz_curves.csv");
});
byId("play-maps").addEventListener("click", () => {
  byId("viewer").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  byId("play").focus({ preventScroll: true });
  setPlaying(true);
});
saveTables();
for (const half of document.querySelectorAll<HTMLDetailsElement>("details.half")) half.open = !narrow.matches;
showCharts();
void showSelection();
