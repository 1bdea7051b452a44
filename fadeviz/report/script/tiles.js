// A tile: an image or a map with its contour, the marked pixel and its colours. Shared by the report and the viewer, each of
// which has a function point() that is told where the pointer is.

function overlay(image) {
  const [height, width] = image.size;
  const box = { width: 1, height: 1, x: 0, y: 0, visibility: "hidden" };
  return {
    svg: draw("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }),
    lines: draw("g", {}, draw("path", { class: "contour-dark", d: image.contour }), draw("path", { class: "contour-light", d: image.contour })),
    marks: [draw("rect", { class: "pixel-dark", ...box }), draw("rect", { class: "pixel-light", ...box })],
    height,
    width,
  };
}

/** An image's name, with the class of the object whose contour is drawn, where there are several. */
function imageName(image) {
  return image.object ? `${image.name} · object: ${image.object}` : image.name;
}

function makeTile(name, seed, image, layer) {
  const heading = make("span", { class: "name" }, name);
  if (seed !== null) heading.append(" ", make("span", {}, `seed ${seed}`));
  if (layer) heading.append(" ", make("span", {}, layer)); // only where the layers of the runs differ
  const frame = make("div", { class: "frame" });
  const over = overlay(image);
  over.svg.append(over.lines, ...over.marks);
  const reading = make("div", { class: "reading screen" });
  const tile = { element: make("figure", { class: "tile" }, heading, frame), frame, over, reading, sequence: null, maps: null };
  frame.style.aspectRatio = `${image.size[1]} / ${image.size[0]}`;
  const follow = (event) => {
    const place = frame.getBoundingClientRect();
    const x = (event.clientX - place.left) / place.width;
    const y = (event.clientY - place.top) / place.height;
    if (x >= 0 && x < 1 && y >= 0 && y < 1) point({ x, y });
  };
  frame.addEventListener("pointermove", follow);
  frame.addEventListener("pointerdown", follow);
  // On touch screens the mark stays when the finger is lifted, so that the values can be read.
  frame.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
  return tile;
}

/** Marks a cell of a tile's map, or none. */
function markCell(tile, row, column, rows, columns) {
  for (const mark of tile.over.marks) {
    mark.setAttribute("visibility", row === null ? "hidden" : "visible");
    if (row === null) continue;
    const wide = tile.over.width / columns;
    const high = tile.over.height / rows;
    for (const [name, value] of Object.entries({ x: column * wide, y: row * high, width: wide, height: high })) {
      mark.setAttribute(name, value);
    }
  }
}

/** Draws the colours of a colour map into a canvas of 256 x 1 pixels. */
function drawRamp(canvas, colours) {
  const ramp = new Uint8ClampedArray(colours.slice().buffer);
  canvas.getContext("2d").putImageData(new ImageData(ramp, 256, 1), 0, 0);
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => {
    const option = make("option", { value }, text);
    option.selected = value === String(chosen);
    return option;
  }));
}
