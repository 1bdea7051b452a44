// The charts of the report: a group for each kind of measure.

function showCharts() {
  followers.length = 0;
  byId("figures").replaceChildren(...data.groups.map(makeGroup));
  showKymographs();
  showStep();
}

function makeGroup(group) {
  const ranges = {};
  for (const panel of group.panels) {
    const values = panel.curves.flatMap((curve) => [...curve.middle, ...curve.low, ...curve.high]).filter((v) => v !== null);
    const old = ranges[panel.scale] || [Infinity, -Infinity];
    ranges[panel.scale] = [Math.min(old[0], ...values), Math.max(old[1], ...values)];
  }
  const charts = make("div", { class: "charts curves" }, ...group.panels.map((panel) => makeChart(panel, ranges[panel.scale])));
  const meanings = make("dl", {}, ...group.measures.map(([name, meaning]) =>
    make("div", {}, make("dt", {}, name), ": ", make("dd", {}, meaning))));
  const name = group.name[0].toUpperCase() + group.name.slice(1);
  return make("section", { class: "group", "aria-label": name },
    make("h3", {}, name, make("span", {}, `: ${group.meaning}`)),
    ...(group.note ? [make("p", { class: "quiet note" }, group.note)] : []), charts,
    make("details", { class: "meanings" }, make("summary", {}, "What these are"), meanings));
}
