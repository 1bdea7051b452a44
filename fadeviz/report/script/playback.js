// The steps: playback, labels of the slider, and the keyboard. Shared by the report and the viewer, each of which has the
// recorded steps, goTo() and setImage().

function nearest(step) {
  let best = 0;
  steps.forEach((one, at) => { if (Math.abs(one - step) < Math.abs(steps[best] - step)) best = at; });
  return best;
}

const followers = []; // functions that update cursors and legends when the step changes

let timer = 0;

function setPlaying(playing) {
  state.playing = playing;
  clearTimeout(timer);
  const button = byId("play");
  button.setAttribute("aria-label", playing ? "Pause" : "Play");
  button.setAttribute("aria-pressed", String(playing));
  byId("play-shape").setAttribute("d", playing ? "M5 3h4v14H5zM11 3h4v14h-4z" : "M5 3l12 7-12 7z");
  // Screen readers need not read out every step of an animation.
  byId("step").setAttribute("aria-live", playing ? "off" : "polite");
  if (!playing) return;
  if (state.at === steps.length - 1) goTo(0);
  wait();
}

function wait() {
  const mine = setTimeout(async () => {
    await goTo(state.at + 1); // in the viewer, when the maps are there
    if (!state.playing || mine !== timer) return; // paused in the meantime
    if (state.at === steps.length - 1) setPlaying(false);
    else wait();
  }, Number(byId("speed").value));
  timer = mine;
}

/** The slider counts snapshots, not steps: some of them are labelled with their steps. */
function labelTrack() {
  const last = Math.max(1, steps.length - 1);
  const places = Math.min(6, steps.length);
  byId("track-steps").replaceChildren(...Array.from({ length: places }, (_, i) => {
    const at = Math.round((i * last) / Math.max(1, places - 1));
    const label = make("span", {}, count(steps[Math.min(at, steps.length - 1)]));
    label.style.left = `${(100 * at) / last}%`;
    return label;
  }));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const target = event.target;
  const viewer = byId("viewer").getBoundingClientRect();
  // Elsewhere on the page these keys scroll, as usual.
  if (viewer.bottom < 0 || viewer.top > innerHeight) return;
  if (target !== document.body && !byId("viewer").contains(target)) return;
  const slider = target === byId("slider");
  const takesArrows = ["SELECT", "INPUT"].includes(target.tagName) && !slider;
  const takesSpace = ["SELECT", "BUTTON", "SUMMARY", "A"].includes(target.tagName) || (target.tagName === "INPUT" && !slider);
  const move = { ArrowLeft: state.at - 1, ArrowRight: state.at + 1, Home: 0, End: steps.length - 1 };
  if (event.key === "[") setImage(state.image - 1);
  else if (event.key === "]") setImage(state.image + 1);
  else if (event.key === " " && !takesSpace) setPlaying(!state.playing);
  else if (event.key in move && !takesArrows) {
    setPlaying(false);
    goTo(move[event.key]);
  } else return;
  event.preventDefault();
}
