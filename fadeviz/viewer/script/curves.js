// What the trainings logged, as curves that follow the step and the training.

const logged = new Map(); // id -> { curves, leftOut, at }
const OFTEN = 3000; // ms between two readings of a log that grows

let curvesTimer = 0;

/** Fetches what was logged of the runs shown, where it may have changed, and draws it. */
async function loadCurves() {
  clearTimeout(curvesTimer);
  const wanted = state.runs.filter((id) => entries.has(id) && logged.get(id)?.entry !== entries.get(id));
  const early = wanted.filter((id) => logged.has(id) && performance.now() - logged.get(id).at < OFTEN);
  if (early.length) curvesTimer = setTimeout(loadCurves, OFTEN);
  await Promise.all(wanted.filter((id) => !early.includes(id)).map(async (id) => {
    const entry = entries.get(id);
    try {
      logged.set(id, { ...await ask(`api/run/${id}/logged`), entry, at: performance.now() });
    } catch (error) {
      if (!(error instanceof Refused || error instanceof TypeError)) throw error;
      if (error instanceof Refused) logged.set(id, { curves: {}, leftOut: 0, entry, at: performance.now() });
    }
  }));
  showCurves();
}

function showCurves() {
  followers.length = 0;
  const names = [...new Set(state.runs.flatMap((id) => Object.keys(logged.get(id)?.curves ?? {})))];
  const labelled = labels().map(([name, extra]) => [name, extra].filter(Boolean).join(", "));
  const panels = names.map((name) => ({
    title: data.metrics[name]?.title || title(name),
    unit: data.metrics[name]?.unit || "value",
    marks: [],
    chance: null,
    curves: state.runs.flatMap((id, place) => {
      const curve = logged.get(id)?.curves[name];
      return curve?.middle.some((one) => one !== null) ? [{ ...curve, label: labelled[place], role: `series-${place}` }] : [];
    }),
  })).filter((panel) => panel.curves.length);
  byId("logged").hidden = !panels.length || !steps.length;
  if (byId("logged").hidden) return;
  byId("figures").replaceChildren(...panels.map((panel) => {
    const values = panel.curves.flatMap((curve) => [...curve.middle, ...curve.low, ...curve.high]).filter((one) => one !== null);
    return makeChart(panel, [least(values), -least(values.map((one) => -one))]);
  }));
  for (const follow of followers) follow(steps[state.at]);
}

const least = (values) => values.reduce((low, one) => (one < low ? one : low), Infinity);
